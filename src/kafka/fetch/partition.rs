//! The read position of one assigned partition, and its messages that were fetched and not polled yet. Pure.
//!
//! Invariants: `delivered` <= `next`, and the offsets between them are those of `ready`, in order. A response counts
//! only if the request that it answers is `in_flight`; a new assignment, a revocation and a new leader end that. A
//! partition with a `stopped` event is not read any further.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::epochs::EpochHistory;
use super::event::{Divergence, FetchEvent, Messages, TopicPartition};
use super::record_set::{RecordSet, Unpacked};
use crate::kafka::backoff::Backoff;
use crate::kafka::metadata::{BrokerId, TopicId};

/// Pauses before a partition that failed is requested again. A new leader ends the pause.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Pauses before data that failed twice is requested again: it is not damaged on the way, so only a deletion or a
/// repair of the log helps, and to decode it may take seconds of the broker's thread.
const MIN_LASTING_PAUSE: Duration = Duration::from_secs(1);
const MAX_LASTING_PAUSE: Duration = Duration::from_secs(60);
/// Shortest time between two reports of an error that lasts.
pub(super) const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Errors that a new leader resolves are reported only if they last for longer than this.
pub(super) const MENDABLE_GRACE: Duration = Duration::from_secs(2);
/// Time for which a preferred read replica is used before a request goes to the leader again; the default of the Java
/// client.
const REPLICA_LEASE: Duration = Duration::from_secs(300);
/// Bytes counted for each set of messages, beside its messages.
const SET_OVERHEAD_BYTES: usize = 256;

/// The data that the next request for a partition must return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its messages.
    Reading,
    /// The range of its offsets, because the broker has no message at the position.
    CheckingRange,
    /// Its messages once more, although the position is outside of this range (oldest, newest): the range was requested
    /// by the name of the topic, so it may be that of a topic that was created again. If the broker refuses the
    /// position of the topic with this id again, it is not.
    ConfirmingRange(i64, i64),
}

/// The state of reading one assigned partition.
pub(super) struct PartitionReader {
    pub(super) name: TopicPartition,
    /// Id of the topic that is read; `None` if unknown.
    pub(super) topic_id: Option<TopicId>,
    /// Whether messages were read from the topic with this id, or the owner gave the id: another id is another log.
    pub(super) is_id_confirmed: bool,
    /// Whether the owner knows the id.
    pub(super) is_id_reported: bool,
    /// The offset to fetch next.
    pub(super) next: i64,
    /// The offset up to which the owner received the log.
    pub(super) delivered: i64,
    pub(super) epochs: EpochHistory,
    pub(super) leader: Option<BrokerId>,
    /// Epoch of the leader; -1 if unknown.
    pub(super) leader_epoch: i32,
    /// The replica to read from instead of the leader, and until when.
    pub(super) replica: Option<(BrokerId, Instant)>,
    /// A leader with a lower epoch than `leader_epoch` is in the metadata since this time.
    pub(super) older_leader_since: Option<Instant>,
    /// The leader may have changed: metadata is needed until the leader changes or a response succeeds.
    pub(super) is_leader_stale: bool,
    /// The metadata has no such partition.
    pub(super) is_missing: bool,
    /// The end of the last epoch must be compared with the leader before the next fetch (Fetch below version 12).
    pub(super) needs_validation: bool,
    pub(super) phase: Phase,
    pub(super) is_paused: bool,
    /// Number of the request in flight.
    pub(super) in_flight: Option<u64>,
    /// The partition is not requested before this time.
    pub(super) not_before: Instant,
    backoff: Backoff,
    /// Offset and checksum of the data that could not be decoded at last.
    undecodable: Option<(i64, u32)>,
    /// The pauses while the same data is returned.
    lasting_backoff: Backoff,
    failing_since: Option<Instant>,
    reported_at: Option<Instant>,
    /// A reported error has ended, and the owner does not know yet.
    pub(super) has_recovered: bool,
    ready: VecDeque<FetchedSet>,
    pub(super) ready_bytes: usize,
    /// Whether the partition is in the queue of partitions with output.
    pub(super) is_queued: bool,
    /// Number of the last response with data: partitions without data for long come first in a request.
    pub(super) last_data: u64,
    /// A response with this partition was too large: it is requested alone until a response with it is not.
    pub(super) is_fetched_alone: bool,
    /// Lower bound of the bytes to request, raised if a batch was cut off.
    pub(super) min_request_bytes: usize,
    /// Position reached before a truncation whose point is still being searched.
    truncated_from: Option<i64>,
    /// The last event of this assignment; returned after all messages.
    stopped: Option<FetchEvent>,
    pub(super) is_stopped: bool,
}

/// Messages of one response.
struct FetchedSet {
    set: Arc<RecordSet>,
    /// Number of messages that were returned.
    taken: usize,
    /// The offset to read after the set.
    next_offset: i64,
}

impl PartitionReader {
    /// Makes a reader that starts at `offset`. `leader_epoch`: epoch of the message before `offset`.
    pub(super) fn new(name: TopicPartition, offset: i64, leader_epoch: Option<i32>, now: Instant) -> Self {
        PartitionReader {
            name,
            topic_id: None,
            is_id_confirmed: false,
            is_id_reported: false,
            next: offset,
            delivered: offset,
            epochs: EpochHistory::starting(offset, leader_epoch),
            leader: None,
            leader_epoch: -1,
            replica: None,
            older_leader_since: None,
            is_leader_stale: true,
            is_missing: false,
            needs_validation: leader_epoch.is_some(),
            phase: Phase::Reading,
            is_paused: false,
            in_flight: None,
            not_before: now,
            backoff: Backoff::new(MIN_PAUSE, MAX_PAUSE),
            undecodable: None,
            lasting_backoff: Backoff::new(MIN_LASTING_PAUSE, MAX_LASTING_PAUSE),
            failing_since: None,
            reported_at: None,
            has_recovered: false,
            ready: VecDeque::new(),
            ready_bytes: 0,
            is_queued: false,
            last_data: 0,
            is_fetched_alone: false,
            min_request_bytes: 0,
            truncated_from: None,
            stopped: None,
            is_stopped: false,
        }
    }

    /// Returns the broker to send the next request to.
    pub(super) fn target(&self, now: Instant) -> Option<BrokerId> {
        match self.replica {
            Some((replica, until)) if now < until && self.phase != Phase::CheckingRange => Some(replica),
            _ => self.leader,
        }
    }

    /// Whether a request may be sent now, apart from limits of memory.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let is_wanted = !self.is_stopped && (!self.is_paused || self.must_check());
        is_wanted && self.in_flight.is_none() && self.not_before <= now
    }

    /// Whether a request is needed although the partition is paused: the point of a truncation is being searched.
    fn must_check(&self) -> bool {
        self.truncated_from.is_some()
    }

    /// Sets the leader. A new leader, or a new epoch of the same one, ends the request in flight: its data may be from
    /// before a truncation.
    pub(super) fn set_leader(&mut self, leader: BrokerId, leader_epoch: i32, now: Instant) {
        self.is_missing = false;
        self.older_leader_since = None;
        if (self.leader, self.leader_epoch) != (Some(leader), leader_epoch) {
            (self.replica, self.in_flight) = (None, None);
            self.needs_validation = self.epochs.last() >= 0;
            self.is_leader_stale = false;
            self.not_before = now;
            self.backoff.reset();
        }
        (self.leader, self.leader_epoch) = (Some(leader), leader_epoch);
    }

    /// Uses `replica` instead of the leader for some minutes.
    pub(super) fn prefer_replica(&mut self, replica: BrokerId, now: Instant) {
        self.replica = Some((replica, now + REPLICA_LEASE));
    }

    /// A request succeeded.
    pub(super) fn succeeded(&mut self) {
        self.backoff.reset();
        self.phase = Phase::Reading;
        self.has_recovered |= self.reported_at.is_some();
        (self.failing_since, self.reported_at) = (None, None);
        (self.is_leader_stale, self.is_missing) = (false, false);
    }

    /// The leader has no message at the position.
    pub(super) fn out_of_range(&mut self) {
        match self.phase {
            Phase::ConfirmingRange(oldest, newest) => {
                let (partition, offset) = (self.name.clone(), self.next);
                self.stop(FetchEvent::OffsetOutOfRange { partition, offset, oldest, newest });
            }
            Phase::Reading | Phase::CheckingRange => self.phase = Phase::CheckingRange,
        }
    }

    /// A request failed: sets the pause before the next one. Returns the error to report, unless it was reported a
    /// short time ago. `grace`: time for which the failure must last before it is reported.
    pub(super) fn failed(&mut self, reason: String, grace: Duration, now: Instant) -> Option<FetchEvent> {
        self.in_flight = None;
        self.phase = Phase::Reading;
        self.not_before = now + self.backoff.next();
        self.report(reason, grace, now)
    }

    /// The data at the position cannot be decoded. `checksum` is that of the data: where it was not damaged on the way,
    /// it is the same in the next response, and the pauses are long.
    pub(super) fn failed_to_decode(&mut self, reason: String, checksum: u32, now: Instant) -> Option<FetchEvent> {
        let data = Some((self.next, checksum));
        if self.undecodable == data {
            return self.failed_for_long(reason, now);
        }
        self.undecodable = data;
        self.lasting_backoff.reset();
        self.failed(reason, Duration::ZERO, now)
    }

    /// Like [`failed`](Self::failed), with long pauses: the next request will fail in the same way.
    pub(super) fn failed_for_long(&mut self, reason: String, now: Instant) -> Option<FetchEvent> {
        let event = self.failed(reason, Duration::ZERO, now);
        self.not_before = now + self.lasting_backoff.next();
        event
    }

    /// Like [`failed`](Self::failed), without a pause.
    pub(super) fn report(&mut self, reason: String, grace: Duration, now: Instant) -> Option<FetchEvent> {
        let failing_since = *self.failing_since.get_or_insert(now);
        let is_due = self.reported_at.is_none_or(|at| at + REPORT_INTERVAL <= now);
        // A paused partition sends no request, whose success would end the error.
        if self.is_stopped || self.is_paused || !is_due || now < failing_since + grace {
            return None;
        }
        (self.reported_at, self.has_recovered) = (Some(now), false);
        Some(FetchEvent::PartitionError { partition: self.name.clone(), offset: self.next, reason })
    }

    /// Takes decoded record data for the position `next`.
    pub(super) fn accept(&mut self, unpacked: Unpacked) {
        self.epochs.extend(&unpacked.epochs);
        self.next = unpacked.next_offset;
        self.min_request_bytes = 0;
        self.undecodable = None;
        self.lasting_backoff.reset();
        if unpacked.set.is_empty()
            && let Some(last) = self.ready.back_mut()
        {
            last.next_offset = self.next;
            return;
        }
        self.ready_bytes += unpacked.set.total_cost() + SET_OVERHEAD_BYTES;
        self.ready.push_back(FetchedSet { set: Arc::new(unpacked.set), taken: 0, next_offset: self.next });
    }

    /// The leader's log has other messages than the log that was read: `epoch` is the largest epoch of the leader's log
    /// that is not larger than the last epoch read, `end_offset` its end. Moves the position back to the largest offset
    /// at which the logs may still be equal; the next request compares them there.
    pub(super) fn diverged(&mut self, epoch: i32, end_offset: i64) {
        // An election begins a new epoch, so a log with another end of the current epoch is not the same log. Without
        // topic ids nothing else reveals a topic that was created again.
        if self.topic_id.is_none() && (0..=self.epochs.last()).contains(&self.leader_epoch) {
            self.rewind();
            self.epochs.clear();
            (self.needs_validation, self.phase) = (false, Phase::CheckingRange);
            return;
        }
        let point = self.epochs.common_end(epoch, end_offset).min(self.next - 1).max(0);
        if point < self.delivered {
            self.truncated_from.get_or_insert(self.delivered);
            self.delivered = point;
        }
        self.rewind();
        if self.epochs.last() < 0 && point == end_offset && self.next == point {
            self.epochs = EpochHistory::starting(point, Some(epoch));
        }
        self.needs_validation = self.epochs.last() >= 0;
    }

    /// The logs are equal up to the position. Stops with an event if messages that were returned are lost.
    pub(super) fn validated(&mut self) {
        self.needs_validation = false;
        if let Some(position) = self.truncated_from.take() {
            let divergence = Divergence { epoch: self.epochs.last(), end_offset: self.next };
            self.stop(FetchEvent::Truncated { partition: self.name.clone(), position, divergence });
        }
    }

    /// Whether the point of a truncation is being searched.
    pub(super) fn is_truncating(&self) -> bool {
        self.truncated_from.is_some()
    }

    /// Drops the messages that were not returned; they are fetched again.
    pub(super) fn rewind(&mut self) {
        self.ready.clear();
        self.ready_bytes = 0;
        (self.in_flight, self.phase) = (None, Phase::Reading);
        self.next = self.delivered;
        self.epochs.truncate(self.next);
    }

    /// Ends the reading; `event` is returned after the messages.
    pub(super) fn stop(&mut self, event: FetchEvent) {
        (self.is_stopped, self.stopped, self.in_flight) = (true, Some(event), None);
    }

    /// Whether [`take`](Self::take) returns something.
    pub(super) fn has_output(&self) -> bool {
        let has_event = if self.ready.is_empty() { self.stopped.is_some() } else { !self.is_paused };
        has_event || self.has_recovered || self.new_id().is_some()
    }

    /// Returns the confirmed id of the topic if it was not reported.
    fn new_id(&self) -> Option<TopicId> {
        self.topic_id.filter(|_| self.is_id_confirmed && !self.is_id_reported)
    }

    /// Returns once that an error that was reported is over.
    pub(super) fn take_recovery(&mut self) -> Option<FetchEvent> {
        std::mem::take(&mut self.has_recovered).then(|| FetchEvent::Recovered { partition: self.name.clone() })
    }

    /// Whether an error was reported that may be over: the next response shows it. Then the partition is requested even
    /// if there is no room for messages.
    pub(super) fn is_error_open(&self) -> bool {
        self.reported_at.is_some() && self.ready.is_empty()
    }

    /// Returns the next event, with at most `max` messages, `max` being at least 1.
    pub(super) fn take(&mut self, max: usize) -> Option<FetchEvent> {
        if let Some(topic_id) = self.new_id() {
            self.is_id_reported = true;
            return Some(FetchEvent::TopicId { partition: self.name.clone(), topic_id });
        }
        if let Some(recovered) = self.take_recovery() {
            return Some(recovered);
        }
        if !self.has_output() {
            return None;
        }
        let Some(front) = self.ready.front_mut() else { return self.stopped.take() };
        let range = front.taken..front.set.len().min(front.taken + max);
        front.taken = range.end;
        let cost: usize = range.clone().map(|index| front.set.cost(index)).sum();
        self.ready_bytes -= cost.min(self.ready_bytes);
        let set = Arc::clone(&front.set);
        let next_offset = if range.end == set.len() {
            self.ready_bytes -= SET_OVERHEAD_BYTES.min(self.ready_bytes);
            let next_offset = front.next_offset;
            self.ready.pop_front();
            next_offset
        } else {
            set.message(range.end - 1).offset + 1
        };
        self.delivered = next_offset;
        let leader_epoch = self.epochs.before(next_offset);
        let partition = self.name.clone();
        Some(match range.is_empty() {
            true => FetchEvent::Position { partition, next_offset, leader_epoch },
            false => FetchEvent::Messages(Messages { partition, set, range, next_offset, leader_epoch }),
        })
    }
}

#[cfg(test)]
mod tests;
