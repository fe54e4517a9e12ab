//! The loop that owns the windows of a module: it sends messages to the workers, marks acknowledged messages done,
//! commits offsets and releases partitions.
//!
//! The diagram of its channels is in [`ktransfer`](super). Invariants: at most `window_size` jobs exist; a partition is
//! committed up to its first message that is not done; a partition is released only when no worker has a job of it,
//! except at the end of the grace of a stop. The loop never blocks on a thread that may be blocked on the loop.

mod channels;
mod filter;
mod in_flight;
mod log_track;
mod offsets;
mod partition;
mod stop_phase;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{at, never, select};
use log::{Level, info, warn};

use super::fetcher::{FetchCommand, Fetched, StartPosition};
use super::group::{Claim, Generation, GroupCommand, GroupEvent};
use super::job::{Ack, Assignment, Job, JobEnd, WindowId};
use super::worker_context::WorkerContext;
use crate::broker::{Message, Offset, PartitionId};
use crate::log_limited;
use crate::shutdown::{Never, Stop};

pub(super) use channels::{Channels, JobQueues};
use filter::{Filtered, filter};
use in_flight::InFlight;
use partition::{ClaimedPartition, ReleaseState, shown};
use stop_phase::StopPhase;

/// The events that wake the loop.
enum Event {
    Group(GroupEvent),
    Fetched(Fetched),
    Ack(Ack),
    Stop,
    /// A deadline has passed, of the stop or of the release of a partition.
    Deadline,
    /// During the stop, the thread at the other end of a channel ended early, so the loop waits for no further event.
    Disconnected,
}

/// The dispatcher of a module: its loop and the state of the loop.
pub(super) struct Dispatcher {
    channels: Channels,
    context: Arc<WorkerContext>,
    stop: Stop,
    /// Time limit, during a stop, for the pushes in flight. The rest of the module's grace is for the later steps.
    grace: Duration,
    partitions: HashMap<PartitionId, ClaimedPartition>,
    /// Partitions that are paused because of `max_commit_gap`.
    paused: BTreeSet<PartitionId>,
    /// Messages received from the fetch loop and not yet sent to a worker.
    batch: VecDeque<(WindowId, Message)>,
    /// Number and size of the jobs that workers have, including jobs of earlier claims.
    in_flight: InFlight,
    last_window: u64,
    phase: StopPhase,
    /// The earliest deadline of the partitions being drained.
    next_drain_due: Option<Instant>,
}

impl Dispatcher {
    /// Creates a dispatcher without partitions.
    pub(super) fn new(channels: Channels, context: Arc<WorkerContext>, stop: Stop, grace: Duration) -> Self {
        let in_flight = InFlight::new(context.config.window_size.get());
        Dispatcher {
            channels,
            context,
            stop,
            grace,
            partitions: HashMap::new(),
            paused: BTreeSet::new(),
            batch: VecDeque::new(),
            in_flight,
            last_window: 0,
            phase: StopPhase::Working,
            next_drain_due: None,
        }
    }

    /// Runs until the stop, then ends in order: retries end, each queued job gets at most one attempt, each partition
    /// is released with its commit point, and the group gets the command `Leave`.
    pub(super) fn run(mut self) {
        while !self.has_ended() {
            match self.next() {
                Event::Group(event) => self.on_group(event),
                Event::Fetched(fetched) => self.on_fetched(fetched),
                Event::Ack(ack) => {
                    self.on_ack(ack);
                    while let Ok(ack) = self.channels.acks.try_recv() {
                        self.on_ack(ack);
                    }
                }
                Event::Stop => self.begin_stop(),
                Event::Deadline => self.on_deadline(Instant::now()),
                Event::Disconnected => self.release_all_now(),
            }
            self.hand_out();
            self.context.metrics.window_in_use.set(i64::try_from(self.in_flight.jobs()).unwrap_or(i64::MAX));
        }
        self.channels.group_commands.send(GroupCommand::Leave);
    }

    fn next(&self) -> Event {
        let (no_batches, no_stop, no_deadline) = (never(), never::<Never>(), never());
        let is_working = self.phase == StopPhase::Working;
        let takes_batches = is_working && self.batch.is_empty() && self.in_flight.has_room();
        let batches = if takes_batches { &self.channels.fetched } else { &no_batches };
        let stop = if is_working { self.stop.closed() } else { &no_stop };
        let due = self.phase.deadline().into_iter().chain(self.next_drain_due).min();
        let deadline = due.map_or(no_deadline, at);
        let group_events = &self.channels.group_events;
        select! {
            recv(group_events) -> event => event.map_or_else(|_| self.on_disconnect(), Event::Group),
            recv(self.channels.acks) -> ack => ack.map_or_else(|_| self.on_disconnect(), Event::Ack),
            recv(batches) -> fetched => fetched.map_or_else(|_| self.on_disconnect(), Event::Fetched),
            recv(stop) -> _ => Event::Stop,
            recv(deadline) -> _ => Event::Deadline,
        }
    }

    /// Returns the event for a channel whose other end was dropped. Outside a stop, the thread at the other end has
    /// failed and the supervisor is about to stop the module. This thread waits for that stop: if it returned first,
    /// the supervisor would report this thread as the failed one.
    fn on_disconnect(&self) -> Event {
        if self.phase == StopPhase::Working {
            self.stop.wait();
            return Event::Stop;
        }
        Event::Disconnected
    }

    fn has_ended(&self) -> bool {
        self.phase != StopPhase::Working && self.partitions.is_empty()
    }

    fn on_group(&mut self, event: GroupEvent) {
        match event {
            GroupEvent::Gained(claim) => self.gain(&claim),
            GroupEvent::Releasing { partition, generation } => {
                if self.is_current(partition, generation) {
                    self.begin_release(partition);
                }
            }
            GroupEvent::Lost { partition, generation } => {
                if self.is_current(partition, generation) {
                    warn!("module [{}]: lost partition {partition}", self.context.config.name);
                    self.forget(partition);
                }
            }
        }
    }

    fn is_current(&self, partition: PartitionId, generation: Generation) -> bool {
        self.partitions.get(&partition).is_some_and(|state| state.generation() == generation)
    }

    fn gain(&mut self, claim: &Claim) {
        let partition = claim.partition;
        let start = claim.position.as_ref().map(|stored| StartPosition { offset: stored.next, log: stored.log() });
        self.forget(partition);
        let window = self.new_window();
        let commit_point = self.context.metrics.commit_point(partition);
        if let Some(start) = start {
            commit_point.set(start.offset);
        }
        let state = ClaimedPartition::new(Assignment::new(claim), window, commit_point, start);
        self.partitions.insert(partition, state);
        self.count_partitions();
        if self.phase == StopPhase::Working {
            info!("module [{}]: gained partition {partition}", self.context.config.name);
            self.command_fetch_loop(FetchCommand::Assign { partition, window, generation: claim.generation, start });
        } else {
            self.begin_release(partition);
        }
    }

    fn new_window(&mut self) -> WindowId {
        self.last_window += 1;
        WindowId(self.last_window)
    }

    /// Stops reading a partition, and releases it as soon as no worker has a job of it.
    fn begin_release(&mut self, partition: PartitionId) {
        let until = Instant::now() + self.grace / 2;
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        if state.release == ReleaseState::Owned {
            state.begin_drain(until);
            self.paused.remove(&partition);
            // All drains have the same time limit, so the deadline of an earlier drain comes first.
            self.next_drain_due.get_or_insert(until);
            self.command_fetch_loop(FetchCommand::Revoke(partition));
        }
        self.release_if_drained(partition);
    }

    /// Ends each drain whose deadline has passed: no further attempt of its partition begins.
    fn end_drains(&mut self, now: Instant) {
        self.next_drain_due = None;
        for (partition, state) in &mut self.partitions {
            let ReleaseState::Draining { until } = state.release else { continue };
            if until <= now {
                // Until these pushes end, no instance reads the partition. Without a read_timeout_ms a push has no time
                // limit.
                warn!(
                    "module [{}]: partition {partition} still has pushes in flight and is released when they have \
                     ended (a read_timeout_ms above 0 limits how long a push takes)",
                    self.context.config.name
                );
                state.end_drain();
            } else {
                self.next_drain_due = Some(self.next_drain_due.map_or(until, |due| due.min(until)));
            }
        }
    }

    fn release_if_drained(&mut self, partition: PartitionId) {
        if self.partitions.get(&partition).is_some_and(ClaimedPartition::is_drained) {
            self.release_now(partition);
        }
    }

    fn release_now(&mut self, partition: PartitionId) {
        let Some(state) = self.partitions.get(&partition) else { return };
        let generation = state.generation();
        let next = state.window.commit_point();
        info!("module [{}]: releases partition {partition} at offset {}", self.context.config.name, shown(next));
        self.channels.group_commands.send(GroupCommand::Release { partition, generation, next });
        self.forget(partition);
    }

    fn release_all_now(&mut self) {
        for partition in self.partitions.keys().copied().collect::<Vec<_>>() {
            self.release_now(partition);
        }
    }

    /// Drops a claim. The workers abandon its jobs, and acknowledgements of these jobs are ignored.
    fn forget(&mut self, partition: PartitionId) {
        let Some(state) = self.partitions.remove(&partition) else { return };
        state.assignment.end();
        self.paused.remove(&partition);
        self.context.metrics.forget_commit_point(partition);
        self.count_partitions();
        // A partition that is being released was revoked when its release began.
        if state.release == ReleaseState::Owned {
            self.command_fetch_loop(FetchCommand::Revoke(partition));
        }
    }

    fn count_partitions(&self) {
        self.context.metrics.assigned.set(i64::try_from(self.partitions.len()).unwrap_or(i64::MAX));
    }

    fn command_fetch_loop(&self, command: FetchCommand) {
        // Fails only after the fetch loop has ended, and then the command has no effect anyway.
        let _ = self.channels.fetch_commands.send(command);
    }

    fn on_fetched(&mut self, fetched: Fetched) {
        match fetched {
            Fetched::Messages(batches) => self.on_batches(batches),
            Fetched::StartsAt { window, partition, offset } => self.on_start_offset(window, partition, offset),
            Fetched::TopicId { window, partition, topic_id } => self.on_topic_id(window, partition, topic_id),
            Fetched::LogChanged { window, partition, change } => self.on_log_changed(window, partition, change),
        }
    }

    fn on_ack(&mut self, ack: Ack) {
        self.in_flight.remove(ack.size_bytes);
        let Some(state) = self.partitions.get_mut(&ack.partition) else { return };
        if state.generation() != ack.generation {
            return;
        }
        state.in_flight -= 1;
        if ack.end == JobEnd::Done && state.window_id == ack.window {
            let moved = state.window.close(ack.offset);
            self.commit(ack.partition, moved);
        }
        self.release_if_drained(ack.partition);
    }

    /// Sends the commit point to the group, if it is `moved` or can move past offsets without a message.
    fn commit(&mut self, partition: PartitionId, moved: Option<Offset>) {
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        let Some(next) = state.skip_read_offsets().or(moved) else { return };
        state.commit_point.set(next);
        let command = state.commit_command(next);
        self.channels.group_commands.send(command);
    }

    /// Sends messages to the workers while `in_flight` has room: first the messages held back, then the batch.
    fn hand_out(&mut self) {
        if self.phase != StopPhase::Working {
            self.batch.clear();
            return;
        }
        for partition in self.paused.clone() {
            self.hand_out_held_back(partition);
        }
        while self.in_flight.has_room() {
            let Some((window, message)) = self.batch.pop_front() else { return };
            let partition = message.from.partition;
            let max_gap = self.context.config.max_commit_gap.get();
            let Some(state) = self.partitions.get_mut(&partition) else { continue };
            if !state.is_reading_for(window) {
                continue;
            }
            if state.held_back.is_empty() && state.window.len() < max_gap {
                self.hand_out_message(message);
                continue;
            }
            state.held_back.push_back(message);
            if self.paused.insert(partition) {
                let first_open = state.window.first();
                log_limited!(
                    Level::Warn,
                    "module [{}]: partition {partition} is paused: max_commit_gap ({max_gap} messages) is reached \
                     behind offset {}, which is not done",
                    self.context.config.name,
                    shown(first_open)
                );
                self.command_fetch_loop(FetchCommand::Pause(partition));
            }
        }
    }

    fn hand_out_held_back(&mut self, partition: PartitionId) {
        let max_gap = self.context.config.max_commit_gap.get();
        while self.in_flight.has_room() {
            let Some(state) = self.partitions.get_mut(&partition) else { return };
            if max_gap <= state.window.len() {
                return;
            }
            match state.held_back.pop_front() {
                Some(message) => self.hand_out_message(message),
                // Resume only at half of max_commit_gap, so that the partition does not pause and resume with every
                // message.
                None if state.window.len() <= max_gap / 2 => {
                    self.paused.remove(&partition);
                    self.command_fetch_loop(FetchCommand::Resume(partition));
                    return;
                }
                None => return,
            }
        }
    }

    fn hand_out_message(&mut self, message: Message) {
        let partition = message.from.partition;
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        let method = match filter(&self.context, &message) {
            Filtered::Push(method) => method,
            Filtered::Pass => {
                let moved = state.window.pass(message.offset);
                self.commit(partition, moved);
                return;
            }
        };
        if !state.window.open(message.offset) {
            log_limited!(
                Level::Warn,
                "module [{}]: offset {} of partition {partition} was read again, the repeated message is ignored",
                self.context.config.name,
                message.offset
            );
            return;
        }
        state.in_flight += 1;
        let job = Job { assignment: Arc::clone(&state.assignment), window: state.window_id, message, method };
        self.in_flight.add(job.size_bytes());
        self.channels.jobs.send(job, self.context.config.serialize_by_key);
    }

    fn begin_stop(&mut self) {
        self.phase = StopPhase::Ending { until: Instant::now() + self.grace };
        for partition in self.partitions.keys().copied().collect::<Vec<_>>() {
            self.begin_release(partition);
        }
    }

    fn on_deadline(&mut self, now: Instant) {
        if self.next_drain_due.is_some_and(|due| due <= now) {
            self.end_drains(now);
        }
        match self.phase {
            StopPhase::Ending { until } if until <= now => {
                warn!(
                    "module [{}]: {} pushes did not end within their part of shutdown_grace_ms, their \
                     connections are closed",
                    self.context.config.name,
                    self.in_flight.jobs()
                );
                self.context.pusher.abort();
                self.phase = StopPhase::Aborted { until: now + self.grace / 8 };
            }
            StopPhase::Aborted { until } if until <= now => self.release_all_now(),
            _ => {}
        }
    }
}

/// Ends all pushes when the dispatcher ends, also by a panic. Without a dispatcher an acknowledgement would be lost,
/// and another instance may soon push the same partition.
impl Drop for Dispatcher {
    fn drop(&mut self) {
        for state in self.partitions.values() {
            state.assignment.end();
        }
        self.context.pusher.abort();
    }
}

#[cfg(test)]
mod tests;
