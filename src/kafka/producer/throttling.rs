//! A sender whose broker throttles it: the pauses, the size of the requests between them, and the messages that are
//! refused meanwhile. The arithmetic is in [`super::quota`].
//!
//! A pause can be long: when a quota was set below the present load, or with a large message. The broker does not read
//! from a throttled connection until the pause ends, even if the quota is lifted. So from time to time the sender sends
//! an empty request on a new connection, whose response states the present pause.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::debug;

use super::level::{AfterAppend, LevelState};
use super::message::{AcksLevel, ProducerMessage};
use super::outcome::{BrokerId, EndedWithReason, Outcome, Stored};
use super::partition_index::PartitionIndex;
use super::quota::{Quota, TARGET_PAUSE};
use super::response::{FIRST_THROTTLED_PRODUCE, MAX_THROTTLE, throttle_time};
use super::sender::Sender;
use crate::kafka::connection::{Connection, ConnectionError, Disconnect};
use crate::kafka::produce;

/// Interval between two probes of the remaining pause, and the time limit of one probe.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// A waiting message is no longer sent when less than this time is left before its deadline.
const MIN_TIME_LEFT: Duration = Duration::from_millis(100);

/// Why a message is refused, as an error text.
const REASON: &str = "a quota of the broker leaves no time to send the message before its deadline";

impl<M: ProducerMessage> LevelState<M> {
    /// Returns the message if the quota of the leader leaves no time to send it.
    pub(super) fn accept(&mut self, index: PartitionIndex, message: M) -> Result<M, AfterAppend<M>> {
        let sender = self.accumulator.leader(index).and_then(|leader| self.senders.get_mut(&leader));
        let Some(sender) = sender else { return Ok(message) };
        let Some(quota) = &mut sender.quota else { return Ok(message) };
        match quota.accept(Instant::now(), message.deadline(), message.cost_bytes()) {
            Ok(()) => Ok(message),
            Err(wait) => {
                sender.has_refused = true;
                Err(AfterAppend::End(message, Outcome::Throttled(wait), REASON))
            }
        }
    }

    /// Returns the outcome of a message that timed out: another one if a quota of its leader was the cause.
    pub(super) fn outcome_after_quota(&self, topic: &str, partition: i32, outcome: Outcome, now: Instant) -> Outcome {
        let leader = self.index_of(topic, partition).and_then(|index| self.accumulator.leader(index));
        let quota = leader.and_then(|leader| self.senders.get(&leader)?.quota);
        // A quota whose pause ended some time ago is not the cause: the broker may be down.
        let quota = quota.filter(|quota| now < quota.until() + TARGET_PAUSE);
        match (&outcome, quota) {
            (Outcome::TimedOut(Stored::No), Some(quota)) => {
                Outcome::Throttled(quota.until().saturating_duration_since(now))
            }
            _ => outcome,
        }
    }

    /// Returns the largest request to `broker` that its quota suggests.
    pub(super) fn max_request_bytes(&self, broker: BrokerId) -> usize {
        let quota = self.senders.get(&broker).and_then(|sender| sender.quota);
        quota.map_or(usize::MAX, |quota| quota.max_request_bytes())
    }

    /// Ends the messages that wait for `broker` and whose deadlines are too near to send them, if a quota was the
    /// cause.
    pub(super) fn end_throttled(&mut self, broker: BrokerId, now: Instant) -> Vec<EndedWithReason<M>> {
        let mut ended = Vec::new();
        if self.senders.get(&broker).is_some_and(|sender| sender.quota.is_some()) {
            self.accumulator.expire_waiting(broker, now + MIN_TIME_LEFT, &mut |(message, _)| {
                ended.push((message, Outcome::Throttled(Duration::ZERO), Some(Arc::from(REASON))));
            });
        }
        ended
    }

    /// Handles the throttle time of a response; returns whether there is a quota from now on.
    fn set_pause(&mut self, broker: BrokerId, pause: Option<Duration>, sent_bytes: usize, max_bytes: usize) -> bool {
        let now = Instant::now();
        let waiting_bytes = if pause.is_some() { self.accumulator.waiting_bytes(broker) } else { 0 };
        let Some(sender) = self.senders.get_mut(&broker) else { return false };
        sender.quota = match pause {
            Some(pause) => Some(Quota::throttled(now, pause, sent_bytes, waiting_bytes)),
            None => sender.quota.and_then(|quota| quota.relaxed(now, max_bytes)),
        };
        sender.quota.is_some()
    }
}

impl<M: ProducerMessage> Sender<M> {
    /// Handles the throttle time of a response. The broker does not read from this connection in the meantime
    /// (KIP-219). `sent_bytes`: the size of the request if the quota counts it, else 0.
    pub(super) fn throttle(&mut self, pause: Option<Duration>, sent_bytes: usize) {
        if pause.is_none() && !self.has_quota {
            return;
        }
        let max_bytes = self.shared.config.limits.max_request_bytes;
        self.has_quota = self.level.lock().set_pause(self.broker, pause, sent_bytes, max_bytes);
        if let Some(pause) = pause {
            let now = Instant::now();
            self.not_before = Some(now + pause);
            self.is_muted_for_longer = pause >= MAX_THROTTLE;
            self.next_probe = (pause > PROBE_INTERVAL).then_some(now + PROBE_INTERVAL);
        }
    }

    /// Waits if a pause has not ended; a spurious wake-up is possible.
    pub(super) fn is_paused(&mut self, now: Instant) -> bool {
        let Some(due) = self.not_before.filter(|due| *due > now) else {
            (self.not_before, self.next_probe) = (None, None);
            if std::mem::take(&mut self.is_muted_for_longer) {
                self.connection = None;
            }
            return false;
        };
        match self.next_probe {
            Some(probe) if probe <= now => self.look_at_quota(due),
            probe => thread::park_timeout(probe.map_or(due, |probe| probe.min(due)) - now),
        }
        true
    }

    /// Ends or shortens the pause if the broker throttles less by now. `due`: the present end of the pause.
    fn look_at_quota(&mut self, due: Instant) {
        let now = Instant::now();
        self.next_probe = Some(now + PROBE_INTERVAL);
        let mut level = self.level.lock();
        let is_wanted = level.accumulator.next_due(self.broker, now).is_some();
        let has_refused =
            level.senders.get_mut(&self.broker).is_some_and(|sender| std::mem::take(&mut sender.has_refused));
        drop(level);
        if !is_wanted && !has_refused {
            return;
        }
        let disconnect = Disconnect::new();
        let (connection, pause) = match self.request_pause(&disconnect) {
            Ok(Some(answer)) => answer,
            Ok(None) => return,
            Err(error) => return debug!("{}: {error}", self.level.acks.name()),
        };
        let until = Instant::now() + pause;
        if until + PROBE_INTERVAL / 10 > due {
            return;
        }
        // Only the new connection is read so soon.
        self.connection = Some(connection);
        self.is_muted_for_longer = false;
        self.last_used = Instant::now();
        self.not_before = Some(until);
        let mut level = self.level.lock();
        if let Some(sender) = level.senders.get_mut(&self.broker) {
            sender.disconnect = Some(disconnect);
            sender.quota.iter_mut().for_each(|quota| quota.ends(until));
        }
    }

    /// Returns a new connection and the pause that the broker demands on it; `None` if the broker cannot say.
    fn request_pause(&self, disconnect: &Disconnect) -> Result<Option<(Connection, Duration)>, ConnectionError> {
        let Some(address) = self.shared.address_of(self.broker) else { return Ok(None) };
        let deadline = Instant::now() + PROBE_INTERVAL;
        let mut connection = self.shared.connector.connect_with(&address, deadline, disconnect)?;
        let version = connection.version_of(produce::API_KEY, produce::VERSIONS)?;
        if version < FIRST_THROTTLED_PRODUCE || self.level.acks == AcksLevel::None {
            return Ok(None);
        }
        let (acks, flexible) = (self.level.acks.number(), version >= produce::FIRST_FLEXIBLE);
        let sent = connection.send_with(produce::API_KEY, version, flexible, deadline, |request| {
            produce::encode_request(request, version, acks, PROBE_INTERVAL.as_millis() as i32, &[]);
        })?;
        let response = connection.receive_with(sent, deadline, |body| produce::decode_response(body, version))?;
        let pause = throttle_time(response.throttle_time_ms, version, FIRST_THROTTLED_PRODUCE);
        Ok(Some((connection, pause.unwrap_or_default())))
    }
}
