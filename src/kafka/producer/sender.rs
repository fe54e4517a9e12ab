//! The thread that sends the messages of one acks level to one broker, over a connection of its own.
//!
//! It has one request in flight. While it waits for the response, further messages gather; they go out together in the
//! next request, with all partitions that the broker leads. A broker processes the requests of a connection one after
//! the other, so a second request in flight would not be processed earlier. Each level has its own connection, so that
//! a request that waits for replicas does not delay those of the other levels.
//!
//! Without a connection nothing is taken out of the queue: what waits there was certainly not sent.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, warn};

use super::buffers::Buffers;
use super::level::{Level, LevelState};
use super::message::{AcksLevel, ProducerMessage};
use super::outcome::BrokerId;
use super::response::{FIRST_THROTTLED_INIT_PRODUCER_ID, throttle_time};
use super::sender_handle::Activity;
use super::shared::Shared;
use crate::kafka::backoff::Backoff;
use crate::kafka::connection::{Connection, ConnectionError, ConnectionErrorKind, Disconnect};
use crate::kafka::error_code;
use crate::kafka::metadata::{MetadataRequest, MetadataTopics};
use crate::kafka::protocol::Request;
use crate::kafka::protocol::init_producer_id::{InitProducerIdRequest, InitProducerIdResponse};

/// A connection that was idle for this long is checked before it is used: the broker may have closed it.
const CHECKED_AFTER_IDLE: Duration = Duration::from_millis(100);
/// At acks=0 a broker reports an error by closing the connection. If it does so within this time after a request, the
/// next one waits for the pause: until then metadata may name another leader.
const CLOSED_SOON: Duration = Duration::from_secs(1);
const CLOSED_SOON_PAUSE: Duration = Duration::from_millis(50);
/// Pause before another request for a producer id, for instance while the cluster starts.
const PRODUCER_ID_PAUSE: Duration = Duration::from_millis(100);

/// Sends the messages of one level to one broker.
pub(super) struct Sender<M> {
    pub(super) shared: Arc<Shared<M>>,
    pub(super) level: Arc<Level<M>>,
    pub(super) broker: BrokerId,
    pub(super) connection: Option<Connection>,
    /// When a connection was made, or a request sent on it.
    pub(super) last_used: Instant,
    pub(super) backoff: Backoff,
    /// No attempt to connect or to send is made earlier.
    pub(super) not_before: Option<Instant>,
    /// Whether the level has a [`Quota`](super::quota::Quota) of this broker.
    pub(super) has_quota: bool,
    /// Whether the broker may not read from the connection even after the pause, which was cut to an upper bound.
    pub(super) is_muted_for_longer: bool,
    /// When the sender looks whether a pause is still wanted; `None` in a short one.
    pub(super) next_probe: Option<Instant>,
    /// No producer id is requested earlier.
    next_id_request: Instant,
    /// Whether the messages that can be sent have waited for others (`linger.ms`).
    has_lingered: bool,
    /// Whether the latest response said of a partition that the broker is not its leader.
    pub(super) is_refused_as_leader: bool,
    pub(super) buffers: Buffers,
    /// With acks=0, the topics of the latest two requests, each with its largest batch of several messages (or 0): if
    /// the broker closes the connection, it is probably because it refused one of them.
    pub(super) latest_topics: [Vec<(Arc<str>, usize)>; 2],
}

impl<M: ProducerMessage> Sender<M> {
    pub(super) fn new(shared: Arc<Shared<M>>, level: Arc<Level<M>>, broker: BrokerId) -> Self {
        let backoff = shared.connector.config().reconnect_backoff.clone();
        Sender {
            shared,
            level,
            broker,
            connection: None,
            last_used: Instant::now(),
            backoff,
            not_before: None,
            has_quota: false,
            is_muted_for_longer: false,
            next_probe: None,
            next_id_request: Instant::now(),
            has_lingered: false,
            is_refused_as_leader: false,
            buffers: Buffers::default(),
            latest_topics: Default::default(),
        }
    }

    /// Sends until the producer is closed, or until the broker has not been used for the idle time.
    pub(super) fn run(mut self) {
        if let Some(handle) = self.level.lock().senders.get_mut(&self.broker) {
            handle.thread = Some(thread::current());
        }
        while !self.shared.is_closed() {
            let now = Instant::now();
            if self.is_paused(now) {
                continue;
            }
            let due = self.due(&self.level.lock(), now);
            match due {
                // A new message ends the wait.
                Some(due) if due > now => thread::park_timeout(due - now),
                Some(_) if self.lingers(now) => {}
                Some(_) => self.send(),
                None if self.wait_idle(now) => {}
                // Another thread may have taken the place of this one.
                None => return,
            }
        }
        self.level.lock().senders.remove(&self.broker);
    }

    /// Returns when there is something to do; `None` without messages for the broker.
    fn due(&self, level: &LevelState<M>, now: Instant) -> Option<Instant> {
        let send_at = level.accumulator.next_due(self.broker, now);
        let request_id_at = level.awaits_producer_id(self.broker).then(|| self.next_id_request.max(now));
        [send_at, request_id_at].into_iter().flatten().min()
    }

    /// Whether the messages that can be sent wait for others first.
    fn lingers(&mut self, now: Instant) -> bool {
        self.has_lingered = !self.has_lingered && self.shared.config.linger > Duration::ZERO;
        if self.has_lingered {
            self.not_before = Some(now + self.shared.config.linger);
        }
        self.has_lingered
    }

    /// Waits for a message; returns false once the thread must end because it was idle for too long.
    fn wait_idle(&mut self, now: Instant) -> bool {
        let idle_end = self.last_used + self.shared.connector.config().max_idle;
        if now < idle_end {
            thread::park_timeout(idle_end - now);
            return true;
        }
        let mut level = self.level.lock();
        if self.due(&level, now).is_some() {
            return true;
        }
        // Removed under the lock: the next message starts another thread.
        level.senders.remove(&self.broker);
        false
    }

    fn send(&mut self) {
        if !self.has_connection() {
            return;
        }
        self.authenticate_again();
        self.provide_producer_id();
        if self.connection.is_some() && self.not_before.is_none() {
            self.exchange();
        }
    }

    /// Makes a connection if there is none; without one the cause is recorded and metadata is requested.
    fn has_connection(&mut self) -> bool {
        let idle = self.last_used.elapsed();
        let is_unchecked = self.level.acks == AcksLevel::None || idle >= CHECKED_AFTER_IDLE;
        if self.connection.as_ref().is_some_and(|connection| self.is_outdated(connection)) {
            self.disconnect();
        }
        if self.connection.as_mut().is_some_and(|connection| is_unchecked && connection.is_closed()) {
            self.disconnect();
            self.shared.mark_topics_of(self.broker);
            if self.level.acks == AcksLevel::None {
                self.reduce_sizes();
                self.shared.report_possible_refusal(self.latest_topics.iter().flatten().map(|(topic, _)| topic));
                self.latest_topics = Default::default();
                if idle < CLOSED_SOON {
                    self.not_before = Some(Instant::now() + CLOSED_SOON_PAUSE);
                    return false;
                }
            }
        }
        self.connection.is_some() || self.connect()
    }

    /// Whether the peer has refused to be the leader, and metadata has another address of the broker by now.
    fn is_outdated(&self, connection: &Connection) -> bool {
        self.is_refused_as_leader
            && self.shared.address_of(self.broker).is_some_and(|address| address != *connection.address())
    }

    /// The broker has closed a connection with acks=0, perhaps because a batch was too large.
    fn reduce_sizes(&self) {
        let now = Instant::now();
        for (topic, bytes) in self.latest_topics.iter().flatten().filter(|(_, bytes)| *bytes > 0) {
            self.shared.change_limit(topic, |limit| limit.record_closed(*bytes, now));
        }
    }

    fn connect(&mut self) -> bool {
        let Some(address) = self.shared.address_of(self.broker) else {
            self.failed(format!("broker {} is not in the metadata of the cluster", self.broker));
            return false;
        };
        let now = Instant::now();
        let disconnect = Disconnect::new();
        self.shared.change(&self.level, |level| {
            if let Some(sender) = level.senders.get_mut(&self.broker) {
                // Before the attempt: `close` ends it.
                sender.disconnect = Some(disconnect.clone());
            }
            level.begin(self.broker, Activity::Connecting, now);
        });
        // After the handle was set: `close` either finds it or comes before this check.
        if self.shared.is_closed() {
            return false;
        }
        let deadline = now + self.shared.connector.config().connect_timeout;
        let connected = self.shared.connector.connect_with(&address, deadline, &disconnect);
        match connected.and_then(|connection| self.check_cluster(connection, deadline)) {
            Ok(connection) => {
                self.connection = Some(connection);
                self.last_used = Instant::now();
                let mut level = self.level.lock();
                level.end(self.broker, Activity::Idle);
                level.set_failure(self.broker, String::new());
                true
            }
            Err(error) => {
                self.failed(error.to_string());
                false
            }
        }
    }

    /// Requests the id of the cluster, before a batch with a producer id is sent: the broker may belong to another
    /// cluster than the one at its address before, where another client may have that id.
    fn check_cluster(&self, mut connection: Connection, deadline: Instant) -> Result<Connection, ConnectionError> {
        if self.level.acks == AcksLevel::All {
            let topics = MetadataTopics::None;
            let request = MetadataRequest { topics, allow_auto_create: false, include_rights: false };
            // Its other answers may be out of date: the metadata thread asks for them.
            self.shared.enter_cluster(connection.call(&request, deadline)?.cluster_id.as_deref());
        }
        Ok(connection)
    }

    /// Authenticates again if it is time, before messages are taken out of the queue: those that reach their deadlines
    /// meanwhile were certainly not sent.
    fn authenticate_again(&mut self) {
        let now = Instant::now();
        let Some(connection) = &mut self.connection else { return };
        if connection.renewal().is_none_or(|renewal| now < renewal) {
            return;
        }
        let deadline = now + self.shared.connector.config().connect_timeout;
        self.shared.change(&self.level, |level| level.begin(self.broker, Activity::Authenticating, now));
        match connection.maintain(deadline) {
            Ok(()) => self.level.lock().end(self.broker, Activity::Idle),
            Err(error) => self.failed(error.to_string()),
        }
    }

    /// Drops the connection, records the cause, requests metadata and starts the back-off.
    pub(super) fn failed(&mut self, reason: String) {
        debug!("{}: {reason}", self.level.acks.name());
        self.disconnect();
        self.level.lock().set_failure(self.broker, reason);
        self.shared.mark_topics_of(self.broker);
        (self.not_before, self.next_probe) = (Some(Instant::now() + self.backoff.next()), None);
    }

    fn disconnect(&mut self) {
        self.connection = None;
        let mut level = self.level.lock();
        level.end(self.broker, Activity::Idle);
        if let Some(sender) = level.senders.get_mut(&self.broker) {
            sender.disconnect = None;
        }
    }

    /// Requests a producer id if a partition of the level needs one. Each sender does so for itself, and the first
    /// response counts: a broker that hangs delays only the partitions that it leads. Partitions that have an id are
    /// sent whether this succeeds or not.
    fn provide_producer_id(&mut self) {
        if self.level.acks != AcksLevel::All || !self.level.lock().accumulator.needs_producer() {
            return;
        }
        let now = Instant::now();
        if self.end_refused() || self.next_id_request > now {
            return;
        }
        let Some(connection) = &mut self.connection else { return };
        let version = connection.version_of(InitProducerIdRequest::API_KEY, InitProducerIdRequest::VERSIONS);
        let deadline = now + self.shared.connector.config().request_timeout;
        self.shared.change(&self.level, |level| level.begin(self.broker, Activity::RequestingProducerId, now));
        match connection.call(&InitProducerIdRequest::NEW, deadline) {
            Ok(response) => {
                self.level.lock().end(self.broker, Activity::Idle);
                let version = version.unwrap_or_default();
                let pause = throttle_time(response.throttle_time_ms, version, FIRST_THROTTLED_INIT_PRODUCER_ID);
                if pause.is_some() {
                    self.throttle(pause, 0);
                }
                // Also after a success, so that a broker whose ids cannot be used does not cause a busy loop.
                self.next_id_request = Instant::now() + PRODUCER_ID_PAUSE;
                self.take_over_producer_id(&response);
            }
            Err(error) if error.kind == ConnectionErrorKind::Unsupported => {
                self.level.lock().end(self.broker, Activity::Idle);
                self.refuse_messages(error_code::UNSUPPORTED_VERSION, &error.to_string());
            }
            Err(error) => self.failed(error.to_string()),
        }
    }

    fn take_over_producer_id(&mut self, response: &InitProducerIdResponse) {
        let (code, broker) = (response.error_code, self.broker);
        let name = error_code::name(code);
        if code == error_code::NONE && response.producer_id >= 0 && response.producer_epoch >= 0 {
            let mut level = self.level.lock();
            let brokers = level.set_producer_id(response.producer_id, response.producer_epoch);
            level.set_failure(broker, String::new());
            drop(level);
            self.shared.wake(&self.level, &brokers);
        } else if code == error_code::NONE || error_code::is_retriable(code) {
            let failure = format!("broker {broker}: {name}: no producer id, which acks=-1 needs");
            self.level.lock().set_failure(broker, failure);
        } else {
            self.refuse_messages(code, &format!("{name}: the cluster refuses a producer id, which acks=-1 needs"));
        }
    }

    /// The cluster refuses a producer id: refuses the messages that need one, also those of the next seconds.
    fn refuse_messages(&mut self, code: i16, reason: &str) {
        if self.level.lock().refuse_producer_id(code, reason, Instant::now()) {
            warn!("messages with acks=-1 are refused: {reason}");
        }
        self.end_refused();
    }

    /// Ends the messages that wait for a producer id if the cluster has refused one; returns whether it has.
    fn end_refused(&mut self) -> bool {
        let ending = self.shared.ending();
        let ended = self.level.lock().end_refused(Instant::now());
        let is_refused = ended.is_some();
        ending.end_all(ended.into_iter().flatten());
        is_refused
    }
}
