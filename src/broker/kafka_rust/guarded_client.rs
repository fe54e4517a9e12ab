//! Calls of a Kafka client that end in time and never meet a spoiled connection.
//!
//! A [`GuardedClient`] has a thread that owns the client. The call runs there, caught if it panics; who called waits up to a
//! deadline and then abandons the thread with its client (it ends when the crate's own limit of two minutes strikes).
//! Invariant: a client is used again only if its last call ended well or with an error code that Kafka sent: after
//! anything else an answer may still be under way, which the crate would take for the answer to the next question.

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

/// Threads of one caller at a time: one that works and some that were abandoned. When so many hang, calls are refused.
const MAX_THREADS: usize = 4;
/// A connection that was idle for longer is not used again; brokers close theirs after ten minutes.
const MAX_IDLE: Duration = Duration::from_secs(60);
/// How long a host may take to accept a connection.
const MAX_CONNECTING: Duration = Duration::from_secs(1);

/// Why a call gave no result.
#[derive(Clone, Debug)]
pub(super) enum CallError {
    /// No broker could be reached; the call was not made.
    Unreachable(String),
    /// The broker said so.
    Code(KafkaCode),
    /// The answer came and cannot be read.
    Unreadable(String),
    /// No answer, or the connection broke: what the broker did is not known.
    Unclear(String),
}

impl CallError {
    /// In words.
    pub(super) fn in_words(&self) -> String {
        match self {
            Self::Unreachable(reason) | Self::Unreadable(reason) | Self::Unclear(reason) => reason.clone(),
            Self::Code(code) => format!("{code:?}"),
        }
    }
}

/// A client and the thread that owns it; both are replaced as needed.
pub(super) struct GuardedClient {
    broker: BrokerConfig,
    name: &'static str,
    /// Ends the waiting at once.
    abort: Stop,
    spread: Spread,
    jobs: Option<Sender<Job>>,
    /// Each thread of ours holds a clone.
    threads: Arc<()>,
}

type Job = Box<dyn FnOnce(&mut Option<KafkaClient>) + Send>;

impl GuardedClient {
    /// A caller without a client yet; `abort` ends its waiting.
    pub(super) fn new(broker: &BrokerConfig, name: &'static str, abort: Stop) -> Self {
        GuardedClient {
            broker: broker.clone(),
            name,
            abort,
            spread: Spread::default(),
            jobs: None,
            threads: Arc::new(()),
        }
    }

    /// Makes a call and waits for it, for `wait` at most.
    pub(super) fn call<T: Send + 'static>(
        &mut self,
        wait: Duration,
        call: impl FnOnce(&mut KafkaClient) -> kafka::Result<T> + Send + 'static,
    ) -> Result<T, CallError> {
        let (answer, answers) = bounded(1);
        self.start(call, move |outcome| drop(answer.send(outcome)))?;
        select! {
            recv(answers) -> outcome => {
                outcome.unwrap_or_else(|_| Err(CallError::Unclear("the calling thread ended".to_owned())))
            }
            recv(self.abort.closed()) -> _ => {
                self.abandon();
                Err(CallError::Unclear("stopped while waiting for an answer".to_owned()))
            }
            default(wait) => {
                self.abandon();
                Err(CallError::Unclear(format!("no answer within {} ms", wait.as_millis())))
            }
        }
    }

    /// Starts a call whose outcome is told to `done` on the calling thread. Who waits too long must [`Self::abandon`].
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
            // The others were refused at load.
            _ => Compression::NONE,
        };
        let connect_wait = self.broker.request_timeout.min(MAX_CONNECTING);
        let job: Job = Box::new(move |slot| {
            let outcome = match slot {
                Some(client) => guarded(client, call),
                None => connect(&hosts, connect_wait).and_then(|mut client| {
                    client.set_client_id(client_id);
                    client.set_compression(compression);
                    guarded(slot.insert(client), call)
                }),
            };
            if !matches!(outcome, Ok(_) | Err(CallError::Code(_))) {
                *slot = None;
            }
            done(outcome);
        });
        let jobs = self.jobs()?;
        // One call at a time is under way, so there is room; a thread that ended took its client along.
        jobs.send(job).map_err(|_| CallError::Unreachable("the calling thread has ended".to_owned()))
    }

    /// Leaves the client and its thread to themselves; the next call gets new ones.
    pub(super) fn abandon(&mut self) {
        self.jobs = None;
    }

    fn jobs(&mut self) -> Result<Sender<Job>, CallError> {
        if let Some(jobs) = &self.jobs {
            return Ok(jobs.clone());
        }
        if Arc::strong_count(&self.threads) > MAX_THREADS {
            let reason = "too many earlier calls still hang, it is tried again when one has ended".to_owned();
            return Err(CallError::Unreachable(reason));
        }
        let (sender, jobs) = bounded::<Job>(1);
        let alive = Arc::clone(&self.threads);
        // Not of the daemon's group, whose end must not wait for a call that hangs in the crate.
        let started = spawn_expendable(self.name, move || {
            let mut client = None;
            for job in jobs {
                job(&mut client);
            }
            drop(alive);
        });
        started.map_err(|cause| CallError::Unreachable(format!("no thread: {cause}")))?;
        self.jobs = Some(sender.clone());
        Ok(sender)
    }

    /// The hosts in another order each time, since the crate stays with one that takes connections and never answers.
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

/// A client for the hosts that take connections now. The crate itself would wait for minutes.
fn connect(hosts: &[String], wait: Duration) -> Result<KafkaClient, CallError> {
    let mut found = Vec::new();
    let mut last = "there is no host".to_owned();
    for host in hosts {
        let addresses = host.to_socket_addrs().map_err(|error| error.to_string());
        let outcome = addresses.and_then(|mut addresses| {
            let mut reached = Err("it has no address".to_owned());
            while reached.is_err()
                && let Some(address) = addresses.next()
            {
                reached = TcpStream::connect_timeout(&address, wait).map_err(|error| error.to_string());
            }
            reached
        });
        match outcome {
            Ok(_) => {
                // One will do; the next client may get another.
                found.push(host.clone());
                break;
            }
            Err(reason) => last = format!("{host}: {reason}"),
        }
    }
    if found.is_empty() {
        return Err(CallError::Unreachable(format!("none of {} can be connected to ({last})", hosts.join(", "))));
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
        Error::NoHostReachable => CallError::Unreachable("no host answers".to_owned()),
        Error::Io(error) => match error.kind() {
            // A refused connection: nothing was sent over it.
            std::io::ErrorKind::ConnectionRefused => CallError::Unreachable(error.to_string()),
            std::io::ErrorKind::UnexpectedEof => CallError::Unclear(
                "the broker closed the connection (one of Kafka 4.0 or later always does; it needs kafka_client: librdkafka)"
                    .to_owned(),
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
        }
    }

    fn caller(host: String) -> GuardedClient {
        GuardedClient::new(&broker(host), "t", Stop::new())
    }

    #[test]
    fn a_peer_that_never_answers_holds_nobody_and_not_for_ever_more_threads() {
        let silent = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let mut caller = caller(silent.local_addr().expect("it is bound").to_string());
        let started = Instant::now();
        for _ in 0..MAX_THREADS {
            let outcome = caller.call(Duration::from_millis(50), |client| client.load_metadata(&["t"]));
            assert!(matches!(outcome, Err(CallError::Unclear(_))), "{outcome:?}");
        }
        let refused = caller.call(Duration::from_millis(50), |client| client.load_metadata(&["t"]));
        assert!(matches!(refused, Err(CallError::Unreachable(_))), "{refused:?}");
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_call_that_hangs_does_not_hold_up_the_end_of_the_group() {
        let silent = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let group = Supervisor::new("t", Stop::new());
        let mut ends = KafkaRustLogEnds::new(&broker(silent.local_addr().expect("it is bound").to_string()), &group);
        ends.partitions("t").expect_err("nothing answers");
        group.stop().trigger();
        assert_eq!(group.join(Duration::from_secs(5)), Ended::Asked);
    }

    #[test]
    fn a_closed_port_is_unreachable_and_a_panic_is_caught() {
        let closed = TcpListener::bind("127.0.0.1:0").and_then(|bound| bound.local_addr()).expect("loopback has ports");
        let outcome = caller(closed.to_string()).call(Duration::from_secs(10), |client| client.load_metadata(&["t"]));
        assert!(matches!(outcome, Err(CallError::Unreachable(_))), "{outcome:?}");

        let open = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let mut caller = caller(open.local_addr().expect("it is bound").to_string());
        let outcome: Result<(), _> = caller.call(Duration::from_secs(10), |_| panic!("a bad array length"));
        assert!(matches!(outcome, Err(CallError::Unclear(reason)) if reason.contains("a bad array length")));
        assert!(caller.call(Duration::from_secs(10), |_| Ok(7)).is_ok_and(|seven| seven == 7));
    }
}
