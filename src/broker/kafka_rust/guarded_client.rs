//! A Kafka client whose calls end at a deadline and never use a connection that a failed call left behind.
//!
//! A [`GuardedClient`] has a thread that owns the client of the crate. Calls run on that thread, and a panic is caught.
//! The caller waits up to a deadline and then abandons the thread together with its client; the thread ends at the
//! crate's own timeout of two minutes. Invariant: a client is used again only if its last call succeeded or failed with
//! an error code of Kafka. After any other failure a late response may arrive, and the crate would take it for the
//! response to the next request.

use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded, select};
use kafka::client::{Compression, KafkaClient};
use kafka::error::{Error, KafkaCode};

use crate::broker::BrokerConfig;
use crate::broker::partitioner::Spread;
use crate::panics;
use crate::shutdown::Stop;
use crate::supervise::spawn_expendable;

/// Largest number of threads of one guarded client: one in use, the others abandoned. While all of them hang, calls
/// fail without waiting.
const MAX_THREADS: usize = 4;
/// Idle timeout of a connection; brokers close idle connections after ten minutes by default.
const MAX_IDLE: Duration = Duration::from_secs(60);
/// How long a host may take to accept a connection.
const MAX_CONNECT_TIME: Duration = Duration::from_secs(1);

/// Why a call failed.
#[derive(Clone, Debug)]
pub(super) enum CallError {
    /// No broker could be reached; the call was not made.
    Unreachable(String),
    /// The broker returned this error code.
    Code(KafkaCode),
    /// The response cannot be decoded.
    Unreadable(String),
    /// No response, or the connection broke: the broker may have handled the request.
    Unclear(String),
}

impl CallError {
    /// Returns the error text.
    pub(super) fn in_words(&self) -> String {
        match self {
            Self::Unreachable(reason) | Self::Unreadable(reason) | Self::Unclear(reason) => reason.clone(),
            Self::Code(code) => format!("{code:?}"),
        }
    }
}

/// A client and the thread that owns it; both are replaced when a call fails.
pub(super) struct GuardedClient {
    broker: BrokerConfig,
    thread_name: &'static str,
    /// Triggering it makes [`Self::call`] return without waiting any longer.
    abort: Stop,
    /// Source of random numbers, for the order of the hosts.
    spread: Spread,
    /// Channel to the thread in use; `None` if no thread is in use. It holds one call, since at most one is in flight.
    calls: Option<Sender<ClientCall>>,
    /// Each thread holds a clone, so the reference count is the number of threads plus one.
    thread_count: Arc<()>,
}

/// A call, with the client of its thread as the argument; it empties the slot when the client must not be used again.
type ClientCall = Box<dyn FnOnce(&mut Option<KafkaClient>) + Send>;

impl GuardedClient {
    /// Makes a guarded client that has no connection and no thread yet; triggering `abort` ends a pending call.
    pub(super) fn new(broker: &BrokerConfig, thread_name: &'static str, abort: Stop) -> Self {
        GuardedClient {
            broker: broker.clone(),
            thread_name,
            abort,
            spread: Spread::default(),
            calls: None,
            thread_count: Arc::new(()),
        }
    }

    /// Runs a call and waits at most `wait` for its result. After that time, or when stopped, abandons the client.
    pub(super) fn call<T: Send + 'static>(
        &mut self,
        wait: Duration,
        call: impl FnOnce(&mut KafkaClient) -> kafka::Result<T> + Send + 'static,
    ) -> Result<T, CallError> {
        let (result, results) = bounded(1);
        self.start(call, move |outcome| drop(result.send(outcome)))?;
        select! {
            recv(results) -> outcome => {
                outcome.unwrap_or_else(|_| Err(CallError::Unclear("the client thread ended".to_owned())))
            }
            recv(self.abort.closed()) -> _ => {
                self.abandon();
                Err(CallError::Unclear("stopped while waiting for a response".to_owned()))
            }
            default(wait) => {
                self.abandon();
                Err(CallError::Unclear(format!("no response within {} ms", wait.as_millis())))
            }
        }
    }

    /// Starts a call; `done` receives its result on the client's thread. A caller that stops waiting for the result
    /// must [`Self::abandon`] the client.
    pub(super) fn start<T: Send + 'static>(
        &mut self,
        call: impl FnOnce(&mut KafkaClient) -> kafka::Result<T> + Send + 'static,
        done: impl FnOnce(Result<T, CallError>) + Send + 'static,
    ) -> Result<(), CallError> {
        let hosts = self.shuffled_hosts();
        let settings = &self.broker.settings;
        let client_id = settings.get("client.id").unwrap_or(&self.broker.client_id).to_owned();
        let compression = match settings.get("compression.type") {
            Some("gzip") => Compression::GZIP,
            Some("snappy") => Compression::SNAPPY,
            // Other values were refused when the settings were loaded, so this is `none` or no setting.
            _ => Compression::NONE,
        };
        let connect_timeout = self.broker.request_timeout.min(MAX_CONNECT_TIME);
        let client_call: ClientCall = Box::new(move |slot| {
            let outcome = match slot {
                Some(client) => guarded(client, call),
                None => connect(&hosts, connect_timeout).and_then(|mut client| {
                    client.set_client_id(client_id);
                    client.set_compression(compression);
                    guarded(slot.insert(client), call)
                }),
            };
            // A late response may still arrive on a connection of this client.
            if !matches!(outcome, Ok(_) | Err(CallError::Code(_))) {
                *slot = None;
            }
            done(outcome);
        });
        let calls = self.client_thread()?;
        // Never blocks: at most one call is in flight, and the channel has room for one.
        calls.send(client_call).map_err(|_| CallError::Unreachable("the client thread has ended".to_owned()))
    }

    /// Abandons the client and its thread; the next call starts a new thread with a new client.
    pub(super) fn abandon(&mut self) {
        self.calls = None;
    }

    /// Returns the channel to the thread in use; starts a thread if none is in use. Fails if [`MAX_THREADS`] hang.
    fn client_thread(&mut self) -> Result<Sender<ClientCall>, CallError> {
        if let Some(calls) = &self.calls {
            return Ok(calls.clone());
        }
        if Arc::strong_count(&self.thread_count) > MAX_THREADS {
            let reason = "too many earlier calls still hang; retrying when one of them has ended".to_owned();
            return Err(CallError::Unreachable(reason));
        }
        let (sender, calls) = bounded::<ClientCall>(1);
        let alive = Arc::clone(&self.thread_count);
        // Not a thread of the daemon's group, since the end of the group must not wait for a call that hangs.
        let started = spawn_expendable(self.thread_name, move || {
            let mut client = None;
            for call in calls {
                call(&mut client);
            }
            drop(alive);
        });
        started.map_err(|cause| CallError::Unreachable(format!("cannot start the client thread: {cause}")))?;
        self.calls = Some(sender.clone());
        Ok(sender)
    }

    /// Returns the hosts in random order. In a fixed order, a first host that accepts connections and never responds
    /// would be chosen every time.
    fn shuffled_hosts(&self) -> Vec<String> {
        let mut hosts = self.broker.hosts.clone();
        for end in (1..hosts.len()).rev() {
            if let Some(count) = i32::try_from(end + 1).ok().and_then(std::num::NonZeroI32::new) {
                hosts.swap(end, self.spread.next(count) as usize);
            }
        }
        hosts
    }
}

/// Makes a client for the first host that accepts a connection within `timeout`. Without this, the crate would wait for
/// minutes.
fn connect(hosts: &[String], timeout: Duration) -> Result<KafkaClient, CallError> {
    let mut found = Vec::new();
    let mut last = "no host is configured".to_owned();
    for host in hosts {
        let addresses = host.to_socket_addrs().map_err(|error| error.to_string());
        let outcome = addresses.and_then(|mut addresses| {
            let mut reached = Err("no address".to_owned());
            while reached.is_err()
                && let Some(address) = addresses.next()
            {
                reached = TcpStream::connect_timeout(&address, timeout).map_err(|error| error.to_string());
            }
            reached
        });
        match outcome {
            Ok(_) => {
                // One host is enough; the next client may use another.
                found.push(host.clone());
                break;
            }
            Err(reason) => last = format!("{host}: {reason}"),
        }
    }
    if found.is_empty() {
        return Err(CallError::Unreachable(format!("cannot connect to any of {} ({last})", hosts.join(", "))));
    }
    let mut client = KafkaClient::new(found);
    client.set_connection_idle_timeout(MAX_IDLE);
    client.set_retry_max_attempts(1);
    Ok(client)
}

fn guarded<T>(
    client: &mut KafkaClient,
    call: impl FnOnce(&mut KafkaClient) -> kafka::Result<T>,
) -> Result<T, CallError> {
    match panics::catch(|| call(client)) {
        Ok(outcome) => outcome.map_err(|error| classified(&error)),
        Err(text) => Err(CallError::Unclear(format!("the client panicked: {text}"))),
    }
}

fn classified(error: &Error) -> CallError {
    match error {
        Error::Kafka(code) => CallError::Code(*code),
        Error::TopicPartitionError { error_code, .. } => CallError::Code(*error_code),
        Error::ArcSelf(error) => classified(error),
        Error::NoHostReachable => CallError::Unreachable("no host responds".to_owned()),
        Error::Io(error) => match error.kind() {
            // Nothing was sent over a connection that was refused.
            std::io::ErrorKind::ConnectionRefused => CallError::Unreachable(error.to_string()),
            std::io::ErrorKind::UnexpectedEof => CallError::Unclear(
                "the broker closed the connection (Kafka 4.0 or later needs kafka_client: native)".to_owned(),
            ),
            _ => CallError::Unclear(error.to_string()),
        },
        Error::InvalidSnappy(_)
        | Error::UnsupportedProtocol
        | Error::UnsupportedCompression
        | Error::UnexpectedEOF
        | Error::CodecError
        | Error::StringDecodeError => CallError::Unreadable(error.to_string()),
        Error::NoTopicsAssigned | Error::InvalidDuration | Error::UnsetOffsetStorage | Error::UnsetGroupId => {
            CallError::Unclear(error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::LogEnds as _;
    use crate::broker::kafka_rust::KafkaRustLogEnds;
    use crate::supervise::{Ended, Supervisor};
    use std::net::TcpListener;
    use std::time::Instant;

    fn broker(host: String) -> BrokerConfig {
        let wait = Duration::from_millis(500);
        BrokerConfig {
            hosts: vec![host],
            engine: Default::default(),
            client_id: "t".into(),
            request_timeout: wait,
            settings: Default::default(),
            requests: Default::default(),
        }
    }

    fn guarded_client(host: String) -> GuardedClient {
        GuardedClient::new(&broker(host), "t", Stop::new())
    }

    #[test]
    fn a_peer_that_never_responds_blocks_no_caller_and_uses_a_bounded_number_of_threads() {
        let silent = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let mut client = guarded_client(silent.local_addr().expect("it is bound").to_string());
        let started = Instant::now();
        for _ in 0..MAX_THREADS {
            let outcome = client.call(Duration::from_millis(50), |client| client.load_metadata(&["t"]));
            assert!(matches!(outcome, Err(CallError::Unclear(_))), "{outcome:?}");
        }
        let refused = client.call(Duration::from_millis(50), |client| client.load_metadata(&["t"]));
        assert!(matches!(refused, Err(CallError::Unreachable(_))), "{refused:?}");
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_call_that_hangs_does_not_delay_the_end_of_the_group() {
        let silent = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let group = Supervisor::new("t", Stop::new());
        let mut ends = KafkaRustLogEnds::new(&broker(silent.local_addr().expect("it is bound").to_string()), &group);
        ends.partitions("t").expect_err("nothing responds");
        group.stop().trigger();
        assert_eq!(group.join(Duration::from_secs(5)), Ended::Stopped);
    }

    #[test]
    fn a_closed_port_is_unreachable_and_a_panic_is_caught() {
        let closed = TcpListener::bind("127.0.0.1:0").and_then(|bound| bound.local_addr()).expect("loopback has ports");
        let outcome =
            guarded_client(closed.to_string()).call(Duration::from_secs(10), |client| client.load_metadata(&["t"]));
        assert!(matches!(outcome, Err(CallError::Unreachable(_))), "{outcome:?}");

        let open = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let mut client = guarded_client(open.local_addr().expect("it is bound").to_string());
        let outcome: Result<(), _> = client.call(Duration::from_secs(10), |_| panic!("a bad array length"));
        assert!(matches!(outcome, Err(CallError::Unclear(reason)) if reason.contains("a bad array length")));
        assert!(client.call(Duration::from_secs(10), |_| Ok(7)).is_ok_and(|seven| seven == 7));
    }
}
