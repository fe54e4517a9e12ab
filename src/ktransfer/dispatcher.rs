//! The loop that owns the windows of a module: it sends messages to the workers, marks acknowledged messages done,
//! commits offsets and releases partitions.
//!
//! The diagram of its channels is in [`ktransfer`](super). `max_commit_gap` for each partition and the memory budget of
//! the module bound the jobs; `window_size` bounds the pushes, see `window_slots`. Invariants: a partition is committed
//! up to its first message that is not done; a partition is released only when no push of it is in flight. The loop
//! never blocks on a thread that may be blocked on the loop.
//!
//! `outbox` hands jobs to the workers, `offsets` handles start offsets, gaps and changed logs, `progress` reports to
//! the group, `release` ends claims, `stop` stops the module, `operator` carries out the requests of operators,
//! `interruption` pauses and seeks, `status` shows the state.

mod channels;
mod claims;
mod filter;
mod hold;
mod interruption;
mod log_position;
mod offsets;
mod operator;
mod outbox;
mod partition;
mod pending_request;
mod progress;
mod release;
mod status;
mod stop;
mod stop_phase;
mod worker_loads;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, at, never, select};
use log::Level;

use super::fetcher::{FetchCommand, Fetched};
use super::group::{GroupCommand, GroupEvent};
use super::job::{Ack, Job, JobPlace, WorkerReport};
use super::memory_budget::BudgetShare;
use super::operations::Request;
use super::worker_context::WorkerContext;
use crate::broker::{Message, PartitionId};
use crate::log_limited;
use crate::rates::Rates;
use crate::shutdown::{Never, Stop};

pub(super) use channels::Channels;
use filter::{Filtered, filter};
use outbox::Outbox;
use partition::{ClaimedPartition, shown};
use pending_request::PendingRequest;
use stop_phase::StopPhase;

/// Limit on the reports that are handled before the loop checks its other channels.
const MAX_REPORTS_IN_A_TURN: usize = 256;
/// How long reports are gathered after one has come. Without it each report would wake this thread: two system calls
/// and two context switches for each message.
const GATHER_REPORTS: Duration = Duration::from_micros(300);
/// Number of held-back messages at which their partition is paused. It is resumed at half of this number, so that a
/// small `max_commit_gap` does not pause and resume with every message.
const MAX_HELD_BACK: usize = 128;

/// The events that wake the loop.
enum Event {
    Group(GroupEvent),
    Fetched(Fetched),
    Report(WorkerReport),
    Operator(Request),
    Stop,
    /// A deadline has passed.
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
    outbox: Outbox,
    last_window: u64,
    phase: StopPhase,
    /// Whether reports came since the loop last waited.
    had_reports: bool,
    /// The partitions whose commit point may have moved in this turn.
    changed: Vec<PartitionId>,
    /// The earliest time at which messages done ahead of a commit point are sent to the group.
    next_snapshot_due: Option<Instant>,
    /// The earliest deadline of a release.
    next_release_due: Option<Instant>,
    /// Requests of operators that are carried out and not answered.
    pending_requests: Vec<PendingRequest>,
    /// The changes of the pauses that were followed.
    seen_pauses: u64,
    /// When the status is written next.
    next_status: Instant,
    /// Messages delivered and attempts failed, since `started`.
    rates: Rates<2>,
    started: Instant,
    /// When the latest line about a message that holds a commit point was logged.
    last_head_line: Option<Instant>,
}

impl Dispatcher {
    /// Creates a dispatcher without partitions.
    pub(super) fn new(channels: Channels, context: Arc<WorkerContext>, stop: Stop, grace: Duration) -> Self {
        let config = &context.config;
        let outbox = Outbox::new(Arc::clone(&channels.workers), config.serialize_by_key, config.window_size.get());
        Dispatcher {
            channels,
            context,
            stop,
            grace,
            partitions: HashMap::new(),
            outbox,
            last_window: 0,
            phase: StopPhase::Working,
            had_reports: false,
            changed: Vec::new(),
            next_snapshot_due: None,
            next_release_due: None,
            pending_requests: Vec::new(),
            seen_pauses: 0,
            next_status: Instant::now(),
            rates: Rates::default(),
            started: Instant::now(),
            last_head_line: None,
        }
    }

    /// Runs until the stop, then ends in order: retries end, each message that others have overtaken gets at most one
    /// attempt, each partition is released with its commit point, and the group gets the command `Leave`.
    pub(super) fn run(mut self) {
        while !self.has_ended() {
            self.turn(true);
        }
        self.channels.group_commands.send(GroupCommand::Leave);
    }

    /// Handles the events in the channels, and performs actions that are due. Waits for an event only if `may_block`.
    fn turn(&mut self, may_block: bool) {
        let has_reports = self.take_reports();
        let has_batch = self.take_batch();
        self.had_reports |= has_reports;
        let may_wait = may_block && !has_reports && !has_batch;
        if may_wait && self.may_gather() {
            std::thread::sleep(GATHER_REPORTS);
        } else if let Some(event) = self.next(may_wait) {
            self.on_event(event);
        }
        self.end_turn(Instant::now());
    }

    /// Whether the next events may wait for [`GATHER_REPORTS`]: reports are coming in, and no job waits for one. Only
    /// once after the latest report, so that an idle loop blocks.
    fn may_gather(&mut self) -> bool {
        std::mem::take(&mut self.had_reports) && self.phase == StopPhase::Working && !self.outbox.has_unkeyed()
    }

    fn has_ended(&self) -> bool {
        self.phase != StopPhase::Working && self.partitions.is_empty()
    }

    fn take_reports(&mut self) -> bool {
        let reports = self.channels.reports.clone();
        let now = Instant::now();
        reports.try_iter().take(MAX_REPORTS_IN_A_TURN).map(|report| self.on_report(report, now)).count() > 0
    }

    fn take_batch(&mut self) -> bool {
        if self.next_batch_at().is_none_or(|at| Instant::now() < at) {
            return false;
        }
        let fetched = self.channels.fetched.try_recv();
        let is_taken = fetched.is_ok();
        if let Ok(fetched) = fetched {
            self.on_fetched(fetched);
        }
        is_taken
    }

    /// Returns when the next batch is to be taken; `None` if none is to be taken before something else happens.
    fn next_batch_at(&self) -> Option<Instant> {
        self.outbox.next_batch_at().filter(|_| self.phase == StopPhase::Working)
    }

    /// Returns the next event; `None` if there is none now and `may_block` is false. Acknowledgements and batches are
    /// returned only while blocking: the loop takes them by itself.
    fn next(&self, may_block: bool) -> Option<Event> {
        let is_working = self.phase == StopPhase::Working;
        match self.channels.group_events.try_recv() {
            Ok(event) => return Some(Event::Group(event)),
            Err(TryRecvError::Disconnected) => return Some(self.on_disconnect()),
            Err(TryRecvError::Empty) => {}
        }
        if let Some(Ok(request)) = self.channels.operator.requests.as_ref().map(Receiver::try_recv) {
            return Some(Event::Operator(request));
        }
        if is_working && matches!(self.stop.closed().try_recv(), Err(TryRecvError::Disconnected)) {
            return Some(Event::Stop);
        }
        may_block.then(|| self.wait())
    }

    fn wait(&self) -> Event {
        let (no_batches, no_stop, no_deadline) = (never(), never::<Never>(), never());
        let is_working = self.phase == StopPhase::Working;
        let now = Instant::now();
        let next_batch = self.next_batch_at();
        let batches = if next_batch.is_some_and(|at| at <= now) { &self.channels.fetched } else { &no_batches };
        let stop = if is_working { self.stop.closed() } else { &no_stop };
        let later_batch = next_batch.filter(|at| now < *at && !self.channels.fetched.is_empty());
        let (no_requests, operator_check) = (never(), Some(self.next_operator_check(now)));
        let requests = self.channels.operator.requests.as_ref().unwrap_or(&no_requests);
        let due = [self.phase.deadline(), self.next_release_due, self.next_snapshot_due, later_batch, operator_check];
        let deadline = due.into_iter().flatten().min().map_or(no_deadline, at);
        select! {
            recv(self.channels.reports) -> report => report.map_or_else(|_| self.on_disconnect(), Event::Report),
            recv(batches) -> fetched => fetched.map_or_else(|_| self.on_disconnect(), Event::Fetched),
            recv(self.channels.group_events) -> event => event.map_or_else(|_| self.on_disconnect(), Event::Group),
            recv(requests) -> request => request.map_or(Event::Deadline, Event::Operator),
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

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Group(event) => self.on_group(event),
            Event::Fetched(fetched) => self.on_fetched(fetched),
            Event::Report(report) => self.on_report(report, Instant::now()),
            Event::Operator(request) => self.on_request(request),
            Event::Stop => self.begin_stop(),
            // The end of the turn performs the actions that are due.
            Event::Deadline => {}
            Event::Disconnected => self.release_all_now(),
        }
    }

    /// Performs the actions that follow from the events of this turn, and those that are due.
    fn end_turn(&mut self, now: Instant) {
        self.follow_pauses();
        self.continue_interruptions(now);
        self.outbox.send_unkeyed();
        self.outbox.send_recheck();
        self.send_commits();
        self.send_snapshots(now);
        self.settle_requests(now);
        // First: the releases of a stop end with it, without a warning for each.
        self.continue_stop(now);
        self.continue_releases(now);
        self.show_metrics();
        self.show_status(now);
    }

    fn show_metrics(&self) {
        self.context.show_window();
        let bytes = i64::try_from(self.channels.memory.used_bytes()).unwrap_or(i64::MAX);
        self.context.metrics.in_flight_bytes.set(bytes);
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

    /// Sends a message on to the workers, or holds it back at `max_commit_gap`.
    fn accept(&mut self, message: Message, memory: BudgetShare, now: Instant) {
        let partition = message.from.partition;
        let max_gap = self.context.config.max_commit_gap.get();
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        if state.held_back.is_empty() && state.window.len() < max_gap {
            return self.hand_out(message, memory, now);
        }
        state.held_back.push_back((message, memory));
        if state.held_back.len() < MAX_HELD_BACK || std::mem::replace(&mut state.is_paused, true) {
            return;
        }
        // Otherwise messages are queued and not stuck, as in any backlog.
        if max_gap / 2 <= state.window.done_ahead() {
            log_limited!(
                Level::Warn,
                "module [{}]: partition {partition} is paused: max_commit_gap ({max_gap} messages) is reached \
                 behind offset {}, which is not done",
                self.context.config.name,
                shown(state.window.first())
            );
        }
        self.command_fetch_loop(FetchCommand::Pause(partition));
    }

    /// Hands out held-back messages of a partition as far as `max_commit_gap` permits.
    fn hand_out_held_back(&mut self, partition: PartitionId, now: Instant) {
        let max_gap = self.context.config.max_commit_gap.get();
        loop {
            let Some(state) = self.partitions.get_mut(&partition) else { return };
            if state.window.len() < max_gap
                && let Some((message, memory)) = state.held_back.pop_front()
            {
                self.hand_out(message, memory, now);
                continue;
            }
            if state.is_paused && state.held_back.len() <= MAX_HELD_BACK / 2 {
                state.is_paused = false;
                self.command_fetch_loop(FetchCommand::Resume(partition));
            }
            return;
        }
    }

    fn hand_out(&mut self, message: Message, memory: BudgetShare, now: Instant) {
        let (partition, offset) = (message.from.partition, message.offset);
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        if state.awaits_letter(offset) {
            // The message was given up before a pause: the end of its job marks it done.
            let _ = state.window.open(offset);
            return;
        }
        let filtered = if state.window.was_done(offset) { Filtered::Pass } else { filter(&self.context, &message) };
        let (method, unpushable) = match filtered {
            Filtered::Push(method) => (method, None),
            Filtered::DeadLetter(reason) => (None, Some(reason)),
            Filtered::Pass => {
                state.window.pass(offset);
                return self.note_progress(partition, now);
            }
        };
        if !state.window.open(offset) {
            log_limited!(
                Level::Warn,
                "module [{}]: offset {offset} of partition {partition} was read again, the repeated message is ignored",
                self.context.config.name
            );
            return;
        }
        state.in_flight += 1;
        let (assignment, window) = (Arc::clone(&state.assignment), state.window_id);
        self.outbox.send(Box::new(Job { assignment, window, message, method, unpushable, _memory: Some(memory) }));
    }

    fn on_report(&mut self, report: WorkerReport, now: Instant) {
        match report {
            WorkerReport::Waits { worker } => self.outbox.on_wait(worker),
            WorkerReport::AwaitsLetter(job) => self.on_letter(&job),
            WorkerReport::Ack(ack) => self.on_ack(ack, now),
        }
    }

    fn on_letter(&mut self, job: &JobPlace) {
        if let Some(state) =
            self.partitions.get_mut(&job.partition).filter(|state| state.generation() == job.generation)
        {
            state.note_letter(job.window, job.offset);
        }
    }

    fn on_ack(&mut self, ack: Ack, now: Instant) {
        self.outbox.on_ack(&ack);
        let partition = ack.partition;
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        if state.generation() != ack.generation {
            return;
        }
        let (is_done, has_moved) = state.end_job(&ack);
        if is_done {
            let is_held = !state.held_back.is_empty() || state.is_paused;
            if is_held && has_moved {
                self.hand_out_held_back(partition, now);
            }
            self.note_progress(partition, now);
        }
        self.release_if_drained(partition);
    }
}

/// Ends all pushes when the dispatcher ends, also by a panic. Without a dispatcher an acknowledgement would be lost,
/// and another instance may soon push the same partition.
impl Drop for Dispatcher {
    fn drop(&mut self) {
        for state in self.partitions.values() {
            state.assignment.end();
        }
        self.channels.operator.status.clear();
        self.context.http_client.close();
        self.outbox.end_workers();
    }
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
