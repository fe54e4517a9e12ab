//! Connections to the brokers of a cluster, at most one a broker, used by one thread.
//!
//! Invariants: after a failure to connect, the next attempt waits for a back-off. A broker that throttles this client
//! receives no request before the throttle time has passed (KIP-219). A connection that was idle for
//! [`ConnectionConfig::max_idle`](super::config::ConnectionConfig::max_idle) is not used again, because the broker, a
//! firewall or a load balancer may have dropped it silently. No method blocks beyond its deadline.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use super::backoff::Backoff;
use super::config::BrokerAddress;
use super::connection::{Connection, ConnectionError, ConnectionErrorKind, Connector};
use super::metadata::BrokerId;
use super::protocol::Request;

/// Back-off after the first failure, before jitter.
const MIN_BACKOFF: Duration = Duration::from_millis(50);
/// Upper bound of the back-off.
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// Upper bound of the throttle time that is obeyed: a broker delays its responses itself, so an earlier request does no
/// harm, and a broker with a wrong value must not silence a client for days.
const MAX_THROTTLE: Duration = Duration::from_secs(60);

/// Returns the back-off between attempts to reach a broker, or to get another answer from it.
pub(super) fn new_backoff() -> Backoff {
    Backoff::new(MIN_BACKOFF, MAX_BACKOFF)
}

/// Sleeps until `time`, but not beyond `deadline`.
pub(super) fn sleep_until(time: Instant, deadline: Instant) {
    thread::sleep(time.min(deadline).saturating_duration_since(Instant::now()));
}

/// The connections, by broker id.
pub struct BrokerPool {
    connector: Connector,
    brokers: HashMap<BrokerId, PooledBroker>,
}

impl BrokerPool {
    /// Makes a pool without connections.
    pub fn new(connector: Connector) -> Self {
        BrokerPool { connector, brokers: HashMap::new() }
    }

    /// Returns the connection to a broker, which is ready for a request. Reuses an open one; connects if there is none,
    /// it was closed, or the broker has another address now. Blocks at most until `deadline`: to connect, and while the
    /// broker throttles this client. During the back-off after a failure it returns that failure again.
    ///
    /// After an error that makes the connection unusable the caller calls [`drop_connection`](Self::drop_connection).
    pub fn connection(
        &mut self,
        id: BrokerId,
        address: &BrokerAddress,
        deadline: Instant,
    ) -> Result<&mut Connection, ConnectionError> {
        self.broker(id, address).connection(deadline)
    }

    /// Closes the connection to a broker.
    pub fn drop_connection(&mut self, id: BrokerId) {
        if let Some(broker) = self.brokers.get_mut(&id) {
            broker.connection = None;
        }
    }

    /// Delays the next request to a broker by the `throttle_time_ms` of its response.
    pub fn throttle(&mut self, id: BrokerId, throttle_time_ms: i32) {
        if let Some(broker) = self.brokers.get_mut(&id) {
            broker.throttle(throttle_time_ms);
        }
    }

    /// Returns the broker with this id, which has this address.
    pub(super) fn broker(&mut self, id: BrokerId, address: &BrokerAddress) -> &mut PooledBroker {
        let broker = self.take(id, address);
        self.brokers.entry(id).or_insert(broker)
    }

    /// Takes the broker out of the pool, for another thread to use; [`put`](Self::put) returns it.
    pub(super) fn take(&mut self, id: BrokerId, address: &BrokerAddress) -> PooledBroker {
        // Metadata can name other ids with every response, so the pool must not keep what is no longer used.
        let max_idle = self.connector.config().max_idle;
        self.brokers.retain(|_, broker| broker.used.elapsed() < max_idle);
        match self.brokers.remove(&id) {
            Some(broker) if broker.address == *address => broker,
            _ => PooledBroker::new(self.connector.clone(), address.clone()),
        }
    }

    /// Returns a broker to the pool.
    pub(super) fn put(&mut self, id: BrokerId, broker: PooledBroker) {
        self.brokers.insert(id, broker);
    }
}

/// An address with the connection to it, its back-off and its throttle time.
pub(super) struct PooledBroker {
    connector: Connector,
    address: BrokerAddress,
    connection: Option<Connection>,
    /// The last use, or the last attempt to connect.
    used: Instant,
    throttled_until: Option<Instant>,
    backoff: Backoff,
    /// The last failure to connect, and when the next attempt may be made.
    failed: Option<(ConnectionError, Instant)>,
}

impl PooledBroker {
    /// Makes a broker without a connection.
    pub(super) fn new(connector: Connector, address: BrokerAddress) -> Self {
        let used = Instant::now();
        let backoff = new_backoff();
        PooledBroker { connector, address, connection: None, used, throttled_until: None, backoff, failed: None }
    }

    /// Returns the address.
    pub(super) fn address(&self) -> &BrokerAddress {
        &self.address
    }

    /// Whether there is a connection, which the broker may have closed.
    pub(super) fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// Whether the connection works and only waits for the end of a throttle time.
    pub(super) fn is_throttled(&self) -> bool {
        self.is_connected() && self.throttled_until.is_some_and(|until| until > Instant::now())
    }

    /// Delays the next request by the `throttle_time_ms` of a response.
    pub(super) fn throttle(&mut self, throttle_time_ms: i32) {
        let duration = Duration::from_millis(u64::try_from(throttle_time_ms).unwrap_or(0)).min(MAX_THROTTLE);
        self.throttled_until = (!duration.is_zero()).then(|| Instant::now() + duration);
    }

    /// Returns the version in which a request is sent, connecting if need be.
    pub(super) fn version<R: Request>(&mut self, deadline: Instant) -> Result<i16, ConnectionError> {
        self.connection(deadline)?.version_of(R::API_KEY, R::VERSIONS)
    }

    /// Sends a request and waits for its response, connecting if need be; closes the connection if that fails.
    pub(super) fn call<R: Request>(&mut self, request: &R, deadline: Instant) -> Result<R::Response, ConnectionError> {
        let request_timeout = self.connector.config().request_timeout;
        let connection = self.connection(deadline)?;
        let result = connection.call(request, deadline.min(Instant::now() + request_timeout));
        // Every other error leaves the connection unusable.
        if let Err(ConnectionError { kind, .. }) = &result
            && *kind != ConnectionErrorKind::Unsupported
        {
            self.connection = None;
        }
        self.used = Instant::now();
        result
    }

    /// Like [`BrokerPool::connection`].
    pub(super) fn connection(&mut self, deadline: Instant) -> Result<&mut Connection, ConnectionError> {
        self.wait_for_throttle(deadline)?;
        let now = Instant::now();
        self.used = now;
        let mut open = self.connection.take();
        open.take_if(|connection| connection.is_idle_too_long(now) || connection.is_closed());
        let connection = match open {
            Some(connection) => connection,
            None => self.connect(now, deadline)?,
        };
        Ok(self.connection.insert(connection))
    }

    fn connect(&mut self, now: Instant, deadline: Instant) -> Result<Connection, ConnectionError> {
        if let Some((failure, retry_at)) = &self.failed
            && now < *retry_at
        {
            return Err(ConnectionError { kind: not_sent(failure.kind), ..failure.clone() });
        }
        let connect_timeout = self.connector.config().connect_timeout;
        let result = self.connector.connect(&self.address, deadline.min(now + connect_timeout));
        self.used = Instant::now();
        match &result {
            Ok(_) => {
                self.backoff.reset();
                self.failed = None;
            }
            Err(failure) => self.failed = Some((failure.clone(), Instant::now() + self.backoff.next())),
        }
        result.map_err(|failure| ConnectionError { kind: not_sent(failure.kind), ..failure })
    }

    fn wait_for_throttle(&mut self, deadline: Instant) -> Result<(), ConnectionError> {
        let Some(until) = self.throttled_until else { return Ok(()) };
        if until > deadline {
            let left_ms = until.saturating_duration_since(Instant::now()).as_millis();
            return Err(ConnectionError {
                address: self.address.clone(),
                kind: ConnectionErrorKind::NotSent,
                reason: format!("a quota of the broker delays the next request by {left_ms} ms"),
            });
        }
        sleep_until(until, deadline);
        self.throttled_until = None;
        Ok(())
    }
}

/// Returns the kind of a failure to connect for the request that needed the connection: no byte of it was sent.
fn not_sent(kind: ConnectionErrorKind) -> ConnectionErrorKind {
    match kind {
        ConnectionErrorKind::Denied | ConnectionErrorKind::Unsupported => kind,
        _ => ConnectionErrorKind::NotSent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::config::ConnectionConfig;
    use crate::kafka::protocol::api_versions::ApiVersionsRequest;
    use crate::kafka::protocol::init_producer_id::InitProducerIdRequest;
    use crate::kafka::scripted_broker::{RefusingPort, Reply, ScriptedBroker, api, connector};
    use kafka_protocol::messages::InitProducerIdResponse;

    /// Closes the connection at each third request.
    fn server() -> ScriptedBroker {
        ScriptedBroker::start(&[api::<InitProducerIdRequest>()], |received| match received.index % 3 {
            2 => Reply::Close,
            _ => received.reply(&InitProducerIdResponse::default()),
        })
    }

    /// Returns the number of connections that the server accepted.
    fn connections(server: &ScriptedBroker) -> usize {
        server.count::<ApiVersionsRequest>()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn a_connection_is_used_until_it_is_closed_dropped_or_the_address_changes() {
        let (server, other) = (server(), server());
        let mut pool = BrokerPool::new(connector());
        let mut call = |address| pool.broker(1, address).call(&InitProducerIdRequest::NEW, soon());
        assert!(call(&server.address).is_ok() && call(&server.address).is_ok());
        assert_eq!(connections(&server), 1);
        assert_eq!(call(&server.address).unwrap_err().kind, ConnectionErrorKind::Lost);
        assert!(call(&server.address).is_ok());
        assert_eq!(connections(&server), 2);
        assert!(call(&other.address).is_ok());
        assert_eq!((connections(&server), connections(&other)), (2, 1));
        pool.drop_connection(1);
        pool.drop_connection(2);
        pool.connection(1, &other.address, soon()).unwrap();
        assert_eq!(connections(&other), 2);
    }

    #[test]
    fn an_idle_connection_is_not_used_again() {
        let server = server();
        let config = ConnectionConfig { max_idle: Duration::ZERO, ..ConnectionConfig::default() };
        let mut pool = BrokerPool::new(Connector::new(config));
        for count in 1..=3 {
            pool.connection(1, &server.address, soon()).unwrap();
            assert_eq!((connections(&server), pool.brokers.len()), (count, 1));
        }
    }

    #[test]
    fn during_the_back_off_the_failure_is_returned_without_another_attempt() {
        let port = RefusingPort::bind();
        let address = port.address.clone();
        let mut pool = BrokerPool::new(connector());
        let failure = pool.connection(1, &address, soon()).err().unwrap();
        assert_eq!(failure.kind, ConnectionErrorKind::NotSent);
        let retry_at =
            |pool: &mut BrokerPool, time| pool.brokers.get_mut(&1).unwrap().failed.as_mut().unwrap().1 = time;
        retry_at(&mut pool, soon());
        let server = ScriptedBroker::start_on(port.listen(), &[api::<InitProducerIdRequest>()], |_| Reply::Close);
        let repeated = pool.connection(1, &address, soon()).err().unwrap();
        assert_eq!((repeated.to_string(), connections(&server)), (failure.to_string(), 0));
        retry_at(&mut pool, Instant::now());
        assert!(pool.connection(1, &address, soon()).is_ok());
        assert!(pool.brokers[&1].failed.is_none());
    }

    #[test]
    fn a_throttle_time_delays_or_fails_the_next_request() {
        let server = server();
        let mut pool = BrokerPool::new(connector());
        pool.connection(1, &server.address, soon()).unwrap();
        pool.throttle(1, 300);
        let start = Instant::now();
        pool.connection(1, &server.address, soon()).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(250), "{:?}", start.elapsed());
        pool.throttle(1, i32::MAX);
        let deadline = Instant::now() + Duration::from_secs(5);
        let failure = pool.connection(1, &server.address, deadline).err().unwrap();
        assert_eq!(failure.kind, ConnectionErrorKind::NotSent);
        assert!(failure.reason.contains("delays the next request by") && Instant::now() < deadline, "{failure}");
        // Wrong values and a response without throttling end it.
        pool.throttle(1, -5);
        pool.connection(1, &server.address, deadline).unwrap();
        assert_eq!(connections(&server), 1);
    }
}
