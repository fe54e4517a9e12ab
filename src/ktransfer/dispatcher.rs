//! The loop that owns the windows of a module: what is handed out, what is done, what is committed, what is given back.
//!
//! ```text
//!  group ──events──▶ dispatcher ──commands──▶ fetcher          own: one queue a worker, for messages with a key
//!    ▲ commands         │  ▲ ▲                   │             anyone: one queue for all, for the others
//!    └──────────────────┘  │ └──── messages ─────┘
//!        own, anyone ▼     │ acks
//!               push-0 … push-n
//! ```
//!
//! Invariants: at most `window_size` jobs exist (so neither the queues of jobs nor that of acks need another bound); a
//! partition is committed up to its first message that is not done; a partition is given back only when
//! none of its jobs is with a worker. What the loop waits for never waits for the loop, except that it takes what it is sent.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, at, never, select};
use log::{Level, info, warn};
use prometheus::IntGauge;

use super::fetcher::{FetchCommand, Fetched};
use super::group::{CommandSender, Generation, GroupCommand, GroupEvent};
use super::job::{Ack, Assignment, Job, JobEnd, WindowId};
use super::method::method_of;
use super::window::Window;
use super::worker::Shared;
use crate::broker::partitioner::fnv1a;
use crate::broker::{Message, Offset, PartitionId};
use crate::log_limited;
use crate::shutdown::{Never, Stop};

/// Bodies handed out and not done, in bytes; a single message may be larger.
const MAX_IN_FLIGHT_BYTES: usize = 64 << 20;

/// The ends of the channels that the dispatcher holds.
pub struct Ports {
    /// From the group.
    pub group_events: Receiver<GroupEvent>,
    /// To the group; never blocks.
    pub group: CommandSender,
    /// To the fetcher. When it is full the dispatcher waits, for one poll at most: the fetcher takes commands even while it cannot
    /// hand over.
    pub fetch: Sender<FetchCommand>,
    /// From the fetcher; not taken while the window is full.
    pub fetched: Receiver<Fetched>,
    /// To each worker; holds at most `window_size` jobs, see the invariants.
    pub own: Vec<Sender<Job>>,
    /// To all workers; as above.
    pub anyone: Sender<Job>,
    /// From the workers; as above.
    pub acks: Receiver<Ack>,
}

/// What wakes the loop.
enum Event {
    Group(GroupEvent),
    Fetched(Fetched),
    Ack(Ack),
    Stop,
    /// A step of the stop, or of giving a partition back, is due.
    Deadline,
    /// The group or all workers have ended before they were asked to: nothing more can be awaited.
    Alone,
}

/// How far the stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Working,
    /// Pushes under way may end until then; after it their connections are cut.
    Ending {
        until: Instant,
    },
    /// Connections were cut; the acks of those pushes are awaited until then.
    Cut {
        until: Instant,
    },
}

/// How far the giving back of a partition has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Release {
    No,
    /// What is with the workers is still tried once, until then.
    Draining {
        until: Instant,
    },
    /// Only attempts under way are awaited.
    Awaiting,
}

/// The state of one claim.
struct Partition {
    assignment: Arc<Assignment>,
    window_id: WindowId,
    window: Window,
    /// Jobs of this claim with the workers.
    in_flight: usize,
    /// Read, but held back by `max_commit_gap`. Bounded by what was queued when the fetcher was told to hold.
    held_back: VecDeque<Message>,
    release: Release,
    commit_point: IntGauge,
}

/// The loop and what it owns.
pub struct Dispatcher {
    ports: Ports,
    shared: Arc<Shared>,
    stop: Stop,
    /// For the end of pushes when the module stops; what follows it needs some of the grace as well.
    grace: Duration,
    partitions: HashMap<PartitionId, Partition>,
    /// Partitions that the fetcher holds.
    held: BTreeSet<PartitionId>,
    /// The batch being handed out.
    batch: VecDeque<(WindowId, Message)>,
    /// Jobs with the workers, also those of claims that ended.
    in_flight: usize,
    in_flight_bytes: usize,
    last_window: u64,
    phase: Phase,
    /// When the first of the partitions being given back has drained long enough.
    next_drain_due: Option<Instant>,
}

impl Dispatcher {
    /// A dispatcher that owns no partition yet.
    pub fn new(ports: Ports, shared: Arc<Shared>, stop: Stop, grace: Duration) -> Self {
        Dispatcher {
            ports,
            shared,
            stop,
            grace,
            partitions: HashMap::new(),
            held: BTreeSet::new(),
            batch: VecDeque::new(),
            in_flight: 0,
            in_flight_bytes: 0,
            last_window: 0,
            phase: Phase::Working,
            next_drain_due: None,
        }
    }

    /// Works until the stop, then ends in order: no new attempts, pushes under way end, commit points are handed to
    /// the group, which leaves.
    pub fn run(mut self) {
        while !self.has_ended() {
            match self.next() {
                Event::Group(event) => self.on_group(event),
                Event::Fetched(fetched) => self.on_fetched(fetched),
                Event::Ack(ack) => {
                    self.on_ack(ack);
                    while let Ok(ack) = self.ports.acks.try_recv() {
                        self.on_ack(ack);
                    }
                }
                Event::Stop => self.begin_to_end(),
                Event::Deadline => self.on_deadline(Instant::now()),
                Event::Alone => self.give_everything_back(),
            }
            self.hand_out();
            self.shared.metrics.window_in_use.set(i64::try_from(self.in_flight).unwrap_or(i64::MAX));
        }
        self.ports.group.send(GroupCommand::Leave);
    }

    fn next(&self) -> Event {
        let (no_messages, no_stop, no_deadline) = (never(), never::<Never>(), never());
        let is_working = self.phase == Phase::Working;
        let takes_messages = is_working && self.batch.is_empty() && self.has_room();
        let messages = if takes_messages { &self.ports.fetched } else { &no_messages };
        let stop = if is_working { self.stop.closed() } else { &no_stop };
        let phase_due = match self.phase {
            Phase::Working => None,
            Phase::Ending { until } | Phase::Cut { until } => Some(until),
        };
        let due = phase_due.into_iter().chain(self.next_drain_due).min();
        let deadline = due.map_or(no_deadline, at);
        let group_events = &self.ports.group_events;
        select! {
            recv(group_events) -> event => event.map_or_else(|_| self.alone(), Event::Group),
            recv(self.ports.acks) -> ack => ack.map_or_else(|_| self.alone(), Event::Ack),
            recv(messages) -> fetched => fetched.map_or_else(|_| self.alone(), Event::Fetched),
            recv(stop) -> _ => Event::Stop,
            recv(deadline) -> _ => Event::Deadline,
        }
    }

    /// The other side of a channel is gone: while working, since its thread failed, which stops the module in a moment (the wait leaves
    /// it to that thread to be named as the failure); while ending there is nobody left to wait for.
    fn alone(&self) -> Event {
        if self.phase == Phase::Working {
            self.stop.wait();
            return Event::Stop;
        }
        Event::Alone
    }

    fn has_room(&self) -> bool {
        let has_room_in_bytes = self.in_flight == 0 || self.in_flight_bytes < MAX_IN_FLIGHT_BYTES;
        self.in_flight < self.shared.config.window_size.get() && has_room_in_bytes
    }

    fn has_ended(&self) -> bool {
        self.phase != Phase::Working && self.partitions.is_empty()
    }

    fn on_group(&mut self, event: GroupEvent) {
        match event {
            GroupEvent::Gained { partition, generation, position } => self.gain(partition, generation, position),
            GroupEvent::Releasing { partition, generation } => {
                if self.is_current(partition, generation) {
                    self.release(partition);
                }
            }
            GroupEvent::Lost { partition, generation } => {
                if self.is_current(partition, generation) {
                    warn!("module [{}]: lost partition {partition}", self.shared.config.name);
                    self.forget(partition);
                }
            }
        }
    }

    fn is_current(&self, partition: PartitionId, generation: Generation) -> bool {
        self.partitions.get(&partition).is_some_and(|state| state.assignment.generation == generation)
    }

    fn gain(&mut self, partition: PartitionId, generation: Generation, position: Option<Offset>) {
        self.forget(partition);
        let assignment = Arc::new(Assignment::new(partition, generation));
        let window_id = self.new_window();
        let commit_point = self.shared.metrics.commit_point(partition);
        if let Some(position) = position {
            commit_point.set(position);
        }
        let state = Partition {
            assignment,
            window_id,
            window: Window::new(),
            in_flight: 0,
            held_back: VecDeque::new(),
            release: Release::No,
            commit_point,
        };
        self.partitions.insert(partition, state);
        self.count_partitions();
        if self.phase == Phase::Working {
            info!("module [{}]: gained partition {partition}", self.shared.config.name);
            self.tell_fetcher(FetchCommand::Assign { partition, window: window_id, position });
        } else {
            self.release(partition);
        }
    }

    fn new_window(&mut self) -> WindowId {
        self.last_window += 1;
        WindowId(self.last_window)
    }

    /// Stops reading a partition; gives it back once nothing of it is with the workers.
    fn release(&mut self, partition: PartitionId) {
        let until = Instant::now() + self.grace / 2;
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        if state.release == Release::No {
            state.release = Release::Draining { until };
            state.held_back.clear();
            state.assignment.ending.trigger();
            self.held.remove(&partition);
            // All drains take equally long, so the first one is due first.
            self.next_drain_due.get_or_insert(until);
            self.tell_fetcher(FetchCommand::Revoke(partition));
        }
        self.give_back_if_quiet(partition);
    }

    /// Ends the drains that took too long.
    fn end_drains(&mut self, now: Instant) {
        self.next_drain_due = None;
        for (partition, state) in &mut self.partitions {
            let Release::Draining { until } = state.release else { continue };
            if until <= now {
                // Nobody pushes the partition meanwhile, and without a read_timeout_ms that may take long.
                warn!(
                    "module [{}]: partition {partition} is given back when the pushes under way have ended",
                    self.shared.config.name
                );
                state.release = Release::Awaiting;
                state.assignment.stop.trigger();
            } else {
                self.next_drain_due = Some(self.next_drain_due.map_or(until, |due| due.min(until)));
            }
        }
    }

    fn give_back_if_quiet(&mut self, partition: PartitionId) {
        if self.partitions.get(&partition).is_some_and(|state| state.release != Release::No && state.in_flight == 0) {
            self.give_back(partition);
        }
    }

    fn give_back(&mut self, partition: PartitionId) {
        let Some(state) = self.partitions.get(&partition) else { return };
        let generation = state.assignment.generation;
        let next = state.window.commit_point();
        info!("module [{}]: gives partition {partition} back, next offset {next:?}", self.shared.config.name);
        self.ports.group.send(GroupCommand::Release { partition, generation, next });
        self.forget(partition);
    }

    /// Forgets a claim. Its jobs end as abandoned, and their acks find no window.
    fn forget(&mut self, partition: PartitionId) {
        let Some(state) = self.partitions.remove(&partition) else { return };
        state.assignment.end();
        self.held.remove(&partition);
        self.shared.metrics.forget_commit_point(partition);
        self.count_partitions();
        if state.release == Release::No {
            self.tell_fetcher(FetchCommand::Revoke(partition));
        }
    }

    fn count_partitions(&self) {
        self.shared.metrics.assigned.set(i64::try_from(self.partitions.len()).unwrap_or(i64::MAX));
    }

    fn tell_fetcher(&self, command: FetchCommand) {
        // It fails only after the fetcher has ended, when there is nothing left to tell.
        let _ = self.ports.fetch.send(command);
    }

    fn on_fetched(&mut self, fetched: Fetched) {
        match fetched {
            Fetched::Messages(messages) => self.batch.extend(messages),
            Fetched::Begins { window, partition, offset } => {
                // Stored at once: a restart before the first message must not begin elsewhere.
                if let Some(state) = self.partitions.get(&partition).filter(|state| state.window_id == window) {
                    state.commit_point.set(offset);
                    let generation = state.assignment.generation;
                    self.ports.group.send(GroupCommand::Commit { partition, generation, next: offset });
                }
            }
            Fetched::Gone { window, partition, offset, oldest, newest } => {
                self.restart(window, partition, offset, oldest, newest);
            }
        }
    }

    /// Goes on at the oldest offset kept. Where that lies behind what was read, it is a hole like any other: what was read is pushed, and
    /// the position waits for it. Else offsets begin anew (a topic made anew), and so does the window.
    fn restart(&mut self, window: WindowId, partition: PartitionId, offset: Offset, oldest: Offset, newest: Offset) {
        let fresh = self.new_window();
        let is_read = |state: &&mut Partition| state.window_id == window && state.release == Release::No;
        let Some(state) = self.partitions.get_mut(&partition).filter(is_read) else { return };
        let missed = oldest.saturating_sub(offset).max(0);
        warn!(
            "module [{}]: offset {offset} of {}/{partition} is not kept (kept: {oldest} to {newest}): {missed} messages were \
             deleted before they were read; goes on at {oldest}",
            self.shared.config.name, self.shared.config.topic
        );
        self.shared.metrics.offset_gap.inc_by(missed.unsigned_abs());
        if oldest < offset {
            state.window_id = fresh;
            state.window = Window::new();
            state.held_back.clear();
            self.held.remove(&partition);
        }
        let window = state.window_id;
        self.tell_fetcher(FetchCommand::Assign { partition, window, position: Some(oldest) });
        if self.held.contains(&partition) {
            // The assignment let it go.
            self.tell_fetcher(FetchCommand::Hold(partition, true));
        }
    }

    fn on_ack(&mut self, ack: Ack) {
        self.in_flight -= 1;
        self.in_flight_bytes -= ack.size;
        let Some(state) = self.partitions.get_mut(&ack.partition) else { return };
        if state.assignment.generation != ack.generation {
            return;
        }
        state.in_flight -= 1;
        if ack.end == JobEnd::Done && state.window_id == ack.window {
            let moved = state.window.close(ack.offset);
            self.commit(ack.partition, moved);
        }
        self.give_back_if_quiet(ack.partition);
    }

    fn commit(&self, partition: PartitionId, moved: Option<Offset>) {
        let (Some(state), Some(next)) = (self.partitions.get(&partition), moved) else { return };
        state.commit_point.set(next);
        let generation = state.assignment.generation;
        self.ports.group.send(GroupCommand::Commit { partition, generation, next });
    }

    /// Hands out what there is room for: first what was held back, then the batch.
    fn hand_out(&mut self) {
        if self.phase != Phase::Working {
            self.batch.clear();
            return;
        }
        if !self.held.is_empty() {
            for partition in self.held.clone() {
                self.hand_out_held_back(partition);
            }
        }
        while self.has_room() {
            let Some((window, message)) = self.batch.pop_front() else { return };
            let partition = message.from.partition;
            let max_gap = self.shared.config.max_commit_gap.get();
            let Some(state) = self.partitions.get_mut(&partition) else { continue };
            if state.window_id != window || state.release != Release::No {
                continue;
            }
            if state.held_back.is_empty() && state.window.len() < max_gap {
                self.hand_out_message(message);
                continue;
            }
            state.held_back.push_back(message);
            if self.held.insert(partition) {
                let waits_for = state.window.first();
                log_limited!(
                    Level::Warn,
                    "module [{}]: partition {partition} is held back: {max_gap} messages (max_commit_gap) wait for offset {waits_for:?}",
                    self.shared.config.name
                );
                self.tell_fetcher(FetchCommand::Hold(partition, true));
            }
        }
    }

    fn hand_out_held_back(&mut self, partition: PartitionId) {
        let max_gap = self.shared.config.max_commit_gap.get();
        while self.has_room() {
            let Some(state) = self.partitions.get_mut(&partition) else { return };
            if max_gap <= state.window.len() {
                return;
            }
            match state.held_back.pop_front() {
                Some(message) => self.hand_out_message(message),
                // The fetcher goes on only when there is some way to go.
                None if state.window.len() <= max_gap / 2 => {
                    self.held.remove(&partition);
                    self.tell_fetcher(FetchCommand::Hold(partition, false));
                    return;
                }
                None => return,
            }
        }
    }

    fn hand_out_message(&mut self, message: Message) {
        let partition = message.from.partition;
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        let method = match method_if_ours(&self.shared, &message) {
            Ok(method) => method,
            Err(NotOurs) => {
                let moved = state.window.pass(message.offset);
                self.commit(partition, moved);
                return;
            }
        };
        if !state.window.open(message.offset) {
            log_limited!(
                Level::Warn,
                "module [{}]: offset {} of partition {partition} came twice",
                self.shared.config.name,
                message.offset
            );
            return;
        }
        state.in_flight += 1;
        let job = Job { assignment: Arc::clone(&state.assignment), window: state.window_id, message, method };
        self.in_flight += 1;
        self.in_flight_bytes += job.size();
        let queue = match job.message.key.as_deref() {
            Some(key) if !key.is_empty() && self.shared.config.serialize_by_key => {
                &self.ports.own[fnv1a(key) as usize % self.ports.own.len()]
            }
            _ => &self.ports.anyone,
        };
        // It fails only when the workers are gone, and then the module is being stopped.
        let _ = queue.send(job);
    }

    fn begin_to_end(&mut self) {
        self.phase = Phase::Ending { until: Instant::now() + self.grace };
        for partition in self.partitions.keys().copied().collect::<Vec<_>>() {
            self.release(partition);
        }
    }

    fn on_deadline(&mut self, now: Instant) {
        if self.next_drain_due.is_some_and(|due| due <= now) {
            self.end_drains(now);
        }
        match self.phase {
            Phase::Ending { until } if until <= now => {
                warn!(
                    "module [{}]: {} pushes did not end in time and are cut",
                    self.shared.config.name, self.in_flight
                );
                self.shared.pusher.cut();
                self.phase = Phase::Cut { until: now + self.grace / 8 };
            }
            Phase::Cut { until } if until <= now => self.give_everything_back(),
            _ => {}
        }
    }

    fn give_everything_back(&mut self) {
        for partition in self.partitions.keys().copied().collect::<Vec<_>>() {
            self.give_back(partition);
        }
    }
}

/// However the loop ends, by a panic too, no push begins or goes on after it: nobody would hear of its end, while the partition may be
/// pushed by another soon.
impl Drop for Dispatcher {
    fn drop(&mut self) {
        for state in self.partitions.values() {
            state.assignment.end();
        }
        self.shared.pusher.cut();
    }
}

/// A message that is done without a push.
struct NotOurs;

/// Decides by the method whether a message is to be pushed, and counts it if not.
fn method_if_ours(shared: &Shared, message: &Message) -> Result<Option<Arc<str>>, NotOurs> {
    let Some(methods) = &shared.config.methods else { return Ok(None) };
    match method_of(message.value.as_deref().unwrap_or_default()) {
        Ok(method) => match methods.get(method) {
            Some(ours) => Ok(Some(Arc::clone(ours))),
            None => {
                shared.metrics.filtered.inc();
                Err(NotOurs)
            }
        },
        Err(reason) => {
            shared.metrics.undecodable.inc();
            log_limited!(
                Level::Warn,
                "module [{}]: {} offset {} is passed over, since methods are configured: {reason}",
                shared.config.name,
                message.from,
                message.offset
            );
            Err(NotOurs)
        }
    }
}

#[cfg(test)]
#[path = "dispatcher_tests.rs"]
mod tests;
