//! Shows operators the state of the module once a second: the status for `GET /v1/modules`, the metrics of the messages
//! that hold commit points, and one log line a minute about a message that has held its commit point for long.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use log::warn;

use super::Dispatcher;
use super::hold::Head;
use super::partition::{ClaimedPartition, ReleaseState};
use crate::broker::PartitionId;
use crate::ktransfer::attempt_table::{ClaimedOffset, PushOnWire};
use crate::ktransfer::operations::{
    HeadState, HeadStatus, MessageRates, ModuleStatus, PartitionState, PartitionStatus, WindowStatus,
};

/// Interval at which the status is written.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// A message that holds a commit point for this long is logged.
const HELD_FOR_LONG: Duration = Duration::from_secs(60);
/// Pause before the next log line about a message that holds a commit point.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

impl ClaimedPartition {
    /// Returns the head, and notes a new one.
    fn note_head(&mut self, now: Instant) -> Option<Head> {
        let Some(offset) = self.window.first() else {
            self.head = None;
            return None;
        };
        let window = self.window_id;
        let known = self.head.filter(|head| (head.window, head.offset) == (window, offset));
        self.head = Some(known.unwrap_or(Head { window, offset, since: now }));
        self.head
    }

    fn shown_state(&self) -> PartitionState {
        match &self.interruption {
            _ if self.release != ReleaseState::Owned => PartitionState::Releasing,
            None => PartitionState::Pushing,
            Some(_) if self.n_awaited() > 0 => PartitionState::Draining,
            Some(interruption) if interruption.seek.is_some() => PartitionState::Seeking,
            Some(_) => PartitionState::Paused,
        }
    }
}

impl Dispatcher {
    /// Writes the status if it is due.
    pub(super) fn show_status(&mut self, now: Instant) {
        if now < self.next_status {
            return;
        }
        self.next_status = now + STATUS_INTERVAL;
        let on_wire = self.context.attempts.on_wire();
        let mut order: Vec<PartitionId> = self.partitions.keys().copied().collect();
        order.sort_unstable();
        let partitions: Vec<PartitionStatus> =
            order.into_iter().filter_map(|partition| self.partition_status(partition, &on_wire, now)).collect();
        self.show_heads(&partitions, now);
        let is_paused = |status: &&PartitionStatus| {
            self.partitions.get(&status.partition).is_some_and(|state| state.is_held_by_operator)
        };
        let n_paused = partitions.iter().filter(is_paused).count();
        self.context.metrics.paused_partitions.set(i64::try_from(n_paused).unwrap_or(i64::MAX));
        let window = WindowStatus {
            in_use: self.context.slots.in_use(),
            size: self.context.config.window_size.get(),
            not_done: partitions.iter().map(|partition| partition.not_done).sum(),
            in_flight_bytes: self.channels.memory.used_bytes(),
            max_in_flight_bytes: self.context.config.max_in_flight_bytes.get(),
        };
        let messages = self.context.metrics.counts();
        let totals = [messages.delivered, messages.failed_attempts];
        self.rates.record_totals(now.saturating_duration_since(self.started), totals);
        let rates = |[delivered, failed_attempts]: [f64; 2]| MessageRates { delivered, failed_attempts };
        let per_second = self.rates.per_second().map(rates);
        let backends = self.context.settings().backends.status(now);
        let status = ModuleStatus { window, partitions, backends, messages, per_second };
        self.channels.operator.status.set(status);
    }

    fn partition_status(
        &mut self,
        partition: PartitionId,
        on_wire: &HashMap<ClaimedOffset, PushOnWire>,
        now: Instant,
    ) -> Option<PartitionStatus> {
        let state = self.partitions.get_mut(&partition)?;
        let head = state.note_head(now);
        let state = self.partitions.get(&partition)?;
        let lease_ms = millis(state.assignment.fence.remaining());
        Some(PartitionStatus {
            partition,
            state: state.shown_state(),
            commit_point: state.window.commit_point(),
            read_to: state.log.next(),
            not_done: state.window.len() - state.window.done_ahead(),
            done_ahead: state.window.done_ahead(),
            held_back: state.held_back.len(),
            lease_ms,
            read_error: self.channels.operator.read_errors.of(partition, now),
            head: head.map(|head| self.head_status(state, head, on_wire, now)),
        })
    }

    fn head_status(
        &self,
        state: &ClaimedPartition,
        head: Head,
        on_wire: &HashMap<ClaimedOffset, PushOnWire>,
        now: Instant,
    ) -> HeadStatus {
        let window = state.job_window(head.offset);
        let message = (state.assignment.partition, state.generation(), window, head.offset);
        let (push, failure) = (on_wire.get(&message), self.context.attempts.failure(&message));
        let key = push.map(|push| push.key).or_else(|| failure.as_ref().map(|failure| failure.key));
        HeadStatus {
            offset: head.offset,
            held_ms: millis(now.saturating_duration_since(head.since)),
            state: match (push, &failure) {
                (Some(_), _) => HeadState::OnWire,
                (None, _) if state.awaits_letter(head.offset) => HeadState::DeadLetter,
                (None, Some(_)) => HeadState::Waiting,
                (None, None) => HeadState::Queued,
            },
            on_wire_ms: push.map(|push| millis(now.saturating_duration_since(push.began))),
            key: key.map(|key| key.to_string()),
            attempts: push.map(|push| push.attempt).or(failure.as_ref().map(|failure| failure.attempts)).unwrap_or(0),
            last: failure.as_ref().map(|failure| failure.outcome.clone()),
            backend: push.map(|push| push.backend.to_string()).or_else(|| failure.map(|failure| failure.backend)),
        }
    }

    /// Sets the metrics of the heads, and logs the one that has held its commit point longest.
    fn show_heads(&mut self, partitions: &[PartitionStatus], now: Instant) {
        let held = |status: &PartitionStatus| {
            let head = status.head.clone().filter(|_| status.state == PartitionState::Pushing)?;
            Some((head, status.partition, status.done_ahead))
        };
        let heads: Vec<(HeadStatus, PartitionId, usize)> = partitions.iter().filter_map(held).collect();
        let longest = heads.iter().max_by_key(|(head, ..)| head.held_ms);
        let seconds = longest.map_or(0, |(head, ..)| head.held_ms / 1_000);
        let metrics = &self.context.metrics;
        metrics.head_of_line_seconds.set(i64::try_from(seconds).unwrap_or(i64::MAX));
        metrics.head_of_line_attempts.set(longest.map_or(0, |(head, ..)| i64::from(head.attempts)));
        let is_long = |head: &HeadStatus| u128::from(head.held_ms) >= HELD_FOR_LONG.as_millis();
        let Some((head, partition, done_ahead)) = longest.filter(|(head, ..)| is_long(head)) else { return };
        if self.last_head_line.is_some_and(|at| now.saturating_duration_since(at) < LOG_INTERVAL) {
            return;
        }
        self.last_head_line = Some(now);
        let others = heads.iter().filter(|(head, ..)| is_long(head)).count() - 1;
        let config = &self.context.config;
        let unknown = || "unknown".to_owned();
        warn!(
            "module [{}]: topic={}, partition={partition}, transid={} holds the commit point for {seconds} s: {:?}, \
             attempts={}, last {}, backend={}, {done_ahead} messages behind it are done, {others} more partitions are \
             held as long, key={}",
            config.name,
            config.topic,
            head.offset,
            head.state,
            head.attempts,
            head.last.clone().unwrap_or_else(unknown),
            head.backend.clone().unwrap_or_else(unknown),
            head.key.clone().unwrap_or_else(unknown)
        );
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
