//! The thread that reads the topic: it receives start offsets, and sends batches of messages to the dispatcher.
//!
//! The dispatcher decides where to continue when an offset belongs to another log or is not kept, and drops stale
//! batches. While the channel of batches is full, or the memory is used up, the fetch loop reads nothing more, but
//! still receives commands, start offsets that were found, and errors. Start offsets that are not stored are looked up
//! by another thread ([`start_offsets`]): a look-up that takes seconds delays neither the reading nor a command.

mod events;
mod start_offsets;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, at, select};
use log::{Level, info};

pub(super) use events::{FetchCommand, Fetched, FetchedBatch, LogChange, StartPosition};
pub(super) use start_offsets::{FOUND_STARTS, FoundStart, StartOffsets, StartRequests};

use super::config::ModuleConfig;
use super::job::{WindowId, message_size_bytes};
use super::memory_budget::MemoryBudget;
use super::metrics::ModuleMetrics;
use super::read_errors::ReadErrors;
use crate::admin::Component;
use crate::broker::{FetchEvent, Fetcher, LogIdentity, MessageBatch, Offset, PartitionId, TopicPartition};
use crate::log_limited;
use crate::shutdown::Stop;

/// Limit on the batches in the channel to the dispatcher. Together they hold at most `waiting_queue_size` messages.
pub(super) const QUEUED_BATCHES: usize = 8;
/// A batch ends with the message that reaches this size. So a batch is smaller than 1 MiB plus one message, and the
/// channel holds at most eight such batches.
const BATCH_BYTES: usize = 1 << 20;
/// How long one poll waits for messages, and so the time for which a command may stay in its channel.
const POLL_WAIT: Duration = Duration::from_millis(100);
/// Interval at which errors are taken while messages are not.
const ERROR_LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Pause after an error that concerns all partitions. Without it, a client that fails at once would use a whole CPU.
const ERROR_PAUSE: Duration = Duration::from_millis(200);
/// Pause after an error of one partition. It is short because it delays the other partitions too.
const PARTITION_ERROR_PAUSE: Duration = Duration::from_millis(10);

/// The channels of the fetch loop.
pub(super) struct FetchChannels {
    /// Commands of the dispatcher.
    pub(super) commands: Receiver<FetchCommand>,
    /// Reports to the dispatcher.
    pub(super) batches: Sender<Fetched>,
    /// Start offsets to look up.
    pub(super) start_requests: StartRequests,
    /// Start offsets that were looked up.
    pub(super) found_starts: Receiver<FoundStart>,
    /// The memory of the messages that were read and are not done.
    pub(super) memory: MemoryBudget,
    /// Which partitions cannot be read.
    pub(super) read_errors: ReadErrors,
}

/// The fetch loop of a module, which reads its topic.
pub(super) struct FetchLoop {
    fetcher: Box<dyn Fetcher>,
    module: Arc<str>,
    topic: Arc<str>,
    waiting_queue_size: usize,
    metrics: ModuleMetrics,
    /// Reports to `/readyz` whether the topic can be read from the brokers.
    health: Component,
    /// The partitions being read, with their windows.
    assigned: HashMap<PartitionId, WindowId>,
    /// Those of them that are not to be read at present.
    paused: HashSet<PartitionId>,
    /// Partitions assigned without a position whose start offset is being looked up.
    awaiting_start: HashMap<PartitionId, WindowId>,
    /// Why start offsets cannot be looked up at present.
    lookup_failure: Option<String>,
    /// Bytes of the messages in the last report of the poll that is being taken.
    report_bytes: usize,
    /// When errors are taken next, while messages are not.
    next_error_look: Instant,
    channels: FetchChannels,
}

impl FetchLoop {
    /// Creates a loop that reads no partition yet.
    pub(super) fn new(
        fetcher: Box<dyn Fetcher>,
        config: &ModuleConfig,
        metrics: ModuleMetrics,
        health: Component,
        channels: FetchChannels,
    ) -> FetchLoop {
        // Those of a loop that has failed.
        channels.read_errors.clear_all();
        FetchLoop {
            fetcher,
            module: Arc::clone(&config.name),
            topic: Arc::clone(&config.topic),
            waiting_queue_size: config.waiting_queue_size.get(),
            metrics,
            health,
            assigned: HashMap::new(),
            paused: HashSet::new(),
            awaiting_start: HashMap::new(),
            lookup_failure: None,
            report_bytes: 0,
            next_error_look: Instant::now(),
            channels,
        }
    }

    /// Reads the assigned partitions until the stop.
    pub(super) fn run(mut self, stop: &Stop) {
        let batch_messages = (self.waiting_queue_size / QUEUED_BATCHES).max(1);
        while !stop.is_triggered() {
            if self.assigned.is_empty() && !self.wait_for_partitions(stop) {
                return stop.wait();
            }
            while let Ok(command) = self.channels.commands.try_recv() {
                self.apply(command);
            }
            let mut fetched = Vec::new();
            while let Ok(found) = self.channels.found_starts.try_recv() {
                fetched.extend(self.on_found_start(found));
            }
            let mut pause = Duration::ZERO;
            if !self.assigned.is_empty() {
                let events = self.fetcher.poll(POLL_WAIT, batch_messages);
                pause = self.take(events, &mut fetched);
            }
            for fetched in fetched {
                if !self.hand_over(fetched, stop) {
                    return stop.wait();
                }
            }
            if !pause.is_zero() && !stop.sleep(pause) {
                return;
            }
        }
    }

    /// Waits until there may be a partition to read. Returns false when the loop must end.
    fn wait_for_partitions(&mut self, stop: &Stop) -> bool {
        // No poll would clear an earlier error.
        self.report_health();
        let (commands, found_starts) = (self.channels.commands.clone(), self.channels.found_starts.clone());
        select! {
            recv(commands) -> command => match command {
                Ok(command) => self.apply(command),
                // The dispatcher ended early; the supervisor is about to stop this thread.
                Err(_) => return false,
            },
            recv(found_starts) -> found => match found {
                Ok(found) => if let Some(fetched) = self.on_found_start(found) {
                    return self.hand_over(fetched, stop);
                },
                Err(_) => return false,
            },
            recv(stop.closed()) -> _ => return false,
        }
        true
    }

    fn apply(&mut self, command: FetchCommand) {
        match command {
            FetchCommand::Assign { partition, window, generation, start } => {
                self.forget(partition);
                match start {
                    Some(StartPosition { offset, log }) => self.assign(partition, window, offset, log),
                    None => {
                        self.fetcher.revoke(&self.topic_partition(partition));
                        self.awaiting_start.insert(partition, window);
                        self.channels.start_requests.add(partition, window, generation);
                    }
                }
            }
            FetchCommand::Revoke(partition) => {
                self.forget(partition);
                self.fetcher.revoke(&self.topic_partition(partition));
            }
            FetchCommand::Pause(partition) => {
                // It is not to be read. An error that lasts is reported again after the pause.
                self.channels.read_errors.clear(partition);
                self.paused.insert(partition);
                self.fetcher.set_paused(&self.topic_partition(partition), true);
            }
            FetchCommand::Resume(partition) => {
                self.paused.remove(&partition);
                self.fetcher.set_paused(&self.topic_partition(partition), false);
            }
        }
    }

    fn topic_partition(&self, partition: PartitionId) -> TopicPartition {
        TopicPartition { topic: self.topic.clone(), partition }
    }

    fn forget(&mut self, partition: PartitionId) {
        self.assigned.remove(&partition);
        self.paused.remove(&partition);
        self.channels.read_errors.clear(partition);
        if self.awaiting_start.remove(&partition).is_some() {
            self.channels.start_requests.cancel(partition);
        }
        if self.awaiting_start.is_empty() {
            self.lookup_failure = None;
        }
    }

    fn assign(&mut self, partition: PartitionId, window: WindowId, offset: Offset, log: LogIdentity) {
        self.fetcher.assign_known(&self.topic_partition(partition), offset, log);
        self.assigned.insert(partition, window);
        info!("module [{}]: reads {}/{partition} from offset {offset}", self.module, self.topic);
    }

    /// Starts to read a partition whose start offset was found; returns the report for the dispatcher.
    fn on_found_start(&mut self, found: FoundStart) -> Option<Fetched> {
        let FoundStart { partition, window, outcome } = found;
        if self.awaiting_start.get(&partition) != Some(&window) {
            return None;
        }
        match outcome {
            Ok(offset) => {
                self.forget(partition);
                self.assign(partition, window, offset, LogIdentity::default());
                Some(Fetched::StartsAt { window, partition, offset })
            }
            Err(cause) => {
                let (module, topic) = (&self.module, &self.topic);
                log_limited!(
                    Level::Warn,
                    "module [{module}]: cannot get the start offset of {topic}/{partition}: {cause}"
                );
                self.metrics.fetch_errors.inc();
                self.lookup_failure = Some(format!("cannot get the start offset of partition {partition}: {cause}"));
                self.report_health();
                None
            }
        }
    }

    fn report_health(&self) {
        let unread = || self.channels.read_errors.trouble(&self.topic, Instant::now());
        self.health.set(self.lookup_failure.clone().or_else(unread).map_or(Ok(()), Err));
    }

    /// Converts the events of a poll to reports for the dispatcher. Counts and logs errors; returns the pause before
    /// the next poll.
    fn take(&mut self, events: Vec<FetchEvent>, fetched: &mut Vec<Fetched>) -> Duration {
        let (mut pause, mut is_reachable) = (Duration::ZERO, true);
        let module = Arc::clone(&self.module);
        self.report_bytes = 0;
        for event in events {
            match event {
                FetchEvent::Messages(batch) => self.take_batch(batch, fetched),
                FetchEvent::Position { partition, next, leader_epoch } => {
                    self.report(fetched, &partition, |window, partition| {
                        let messages = Vec::new();
                        Fetched::Messages(vec![FetchedBatch { window, partition, messages, next, leader_epoch }])
                    });
                }
                FetchEvent::TopicId { partition, topic_id } => self
                    .report(fetched, &partition, |window, partition| Fetched::TopicId { window, partition, topic_id }),
                FetchEvent::OffsetGone { partition, offset, oldest, newest } => {
                    self.report_change(fetched, &partition, LogChange::OffsetGone { offset, oldest, newest });
                }
                FetchEvent::Truncated { partition, position, divergence, leader_epoch } => {
                    let change = LogChange::Truncated { position, divergence, leader_epoch };
                    self.report_change(fetched, &partition, change);
                }
                FetchEvent::Recreated { partition, topic_id } => {
                    self.report_change(fetched, &partition, LogChange::Recreated { topic_id });
                }
                FetchEvent::PartitionError { partition, reason } => {
                    self.metrics.fetch_errors.inc();
                    log_limited!(Level::Warn, "module [{module}]: {partition} cannot be read: {reason}");
                    // A paused partition sends no request, whose success would end the error.
                    let partition = partition.partition;
                    if self.assigned.contains_key(&partition) && !self.paused.contains(&partition) {
                        self.channels.read_errors.note(partition, reason, Instant::now());
                    }
                    pause = pause.max(PARTITION_ERROR_PAUSE);
                }
                FetchEvent::Recovered { partition } => self.channels.read_errors.clear(partition.partition),
                FetchEvent::BrokerUnreachable { reason } => {
                    self.metrics.fetch_errors.inc();
                    log_limited!(
                        Level::Warn,
                        "module [{module}]: a broker cannot be reached for reading, partitions of the others are \
                         still read: {reason}"
                    );
                }
                FetchEvent::Unreachable { reason } => {
                    self.metrics.fetch_errors.inc();
                    let cause = format!("no broker can be reached for reading: {reason}");
                    log_limited!(Level::Warn, "module [{module}]: {cause}");
                    self.health.set(Err(cause));
                    (pause, is_reachable) = (ERROR_PAUSE, false);
                }
            }
        }
        if is_reachable {
            self.report_health();
        }
        pause
    }

    /// Reports the messages of a batch, cut so that no report has many more bytes than [`BATCH_BYTES`].
    fn take_batch(&mut self, batch: MessageBatch, fetched: &mut Vec<Fetched>) {
        let MessageBatch { partition: from, messages, next: batch_next, leader_epoch } = batch;
        let partition = from.partition;
        let Some(&window) = self.assigned.get(&partition) else { return };
        self.channels.read_errors.clear(partition);
        let mut part = Vec::with_capacity(messages.len());
        let (mut part_bytes, count) = (0, messages.len());
        for (index, message) in messages.into_iter().enumerate() {
            let is_last = index + 1 == count;
            let next = if is_last { batch_next } else { message.offset.saturating_add(1) };
            part_bytes += message_size_bytes(&message);
            part.push(message);
            if BATCH_BYTES <= part_bytes || is_last {
                let messages = std::mem::take(&mut part);
                let part = FetchedBatch { window, partition, messages, next, leader_epoch };
                self.add_batch(fetched, part, part_bytes);
                part_bytes = 0;
            }
        }
    }

    /// Adds a batch to the last report if that has room, else to a new one.
    fn add_batch(&mut self, fetched: &mut Vec<Fetched>, batch: FetchedBatch, batch_bytes: usize) {
        match fetched.last_mut() {
            Some(Fetched::Messages(batches)) if self.report_bytes + batch_bytes <= BATCH_BYTES => {
                self.report_bytes += batch_bytes;
                batches.push(batch);
            }
            _ => {
                self.report_bytes = batch_bytes;
                fetched.push(Fetched::Messages(vec![batch]));
            }
        }
    }

    fn report(
        &self,
        fetched: &mut Vec<Fetched>,
        partition: &TopicPartition,
        report: impl FnOnce(WindowId, PartitionId) -> Fetched,
    ) {
        // Events of a partition that is not assigned are stale.
        if let Some(&window) = self.assigned.get(&partition.partition) {
            self.channels.read_errors.clear(partition.partition);
            fetched.push(report(window, partition.partition));
        }
    }

    fn report_change(&self, fetched: &mut Vec<Fetched>, partition: &TopicPartition, change: LogChange) {
        self.metrics.fetch_errors.inc();
        self.report(fetched, partition, |window, partition| Fetched::LogChanged { window, partition, change });
    }

    /// Takes errors and their ends while messages are not taken, so that `/readyz` does not show an error that is over.
    fn look_for_errors(&mut self) {
        let now = Instant::now();
        if self.next_error_look <= now {
            self.next_error_look = now + ERROR_LOOK_INTERVAL;
            let events = self.fetcher.poll_errors();
            self.take(events, &mut Vec::new());
        }
    }

    /// Takes the memory of `fetched` and sends it to the dispatcher. While the memory is used up it applies commands,
    /// and takes starts that were found: a thread that looks them up would wait, and so would their stores. A batch
    /// that a command makes stale is recognised by the dispatcher by its window. Returns false when the loop must end.
    fn hand_over(&mut self, fetched: Fetched, stop: &Stop) -> bool {
        let (commands, found_starts) = (self.channels.commands.clone(), self.channels.found_starts.clone());
        let memory = self.channels.memory.clone();
        let (size_bytes, largest_bytes) = fetched.size_bytes();
        // A report without messages needs no memory, and does not wait for any.
        while size_bytes > 0 && !memory.try_take(size_bytes, largest_bytes) {
            self.look_for_errors();
            select! {
                recv(memory.freed()) -> _ => {},
                recv(commands) -> command => match command {
                    Ok(command) => self.apply(command),
                    Err(_) => return false,
                },
                recv(found_starts) -> found => match found {
                    Ok(found) => if let Some(report) = self.on_found_start(found) && !self.send(report, stop) {
                        return false;
                    },
                    Err(_) => return false,
                },
                recv(at(self.next_error_look)) -> _ => {},
                recv(stop.closed()) -> _ => return false,
            }
        }
        self.send(fetched, stop)
    }

    /// Sends a report to the dispatcher. While the channel is full it applies commands, and takes starts that were
    /// found, whose reports follow. Returns false when the loop must end.
    fn send(&mut self, fetched: Fetched, stop: &Stop) -> bool {
        let (batches, commands) = (self.channels.batches.clone(), self.channels.commands.clone());
        let found_starts = self.channels.found_starts.clone();
        // Besides the first one, at most one for each partition.
        let mut reports = VecDeque::from([fetched]);
        while let Some(next) = reports.pop_front() {
            select! {
                send(batches, next) -> sent => if sent.is_err() {
                    return false;
                },
                recv(commands) -> command => match command {
                    Ok(command) => {
                        self.apply(command);
                        reports.push_front(next);
                    }
                    Err(_) => return false,
                },
                recv(found_starts) -> found => match found {
                    Ok(found) => {
                        reports.push_front(next);
                        reports.extend(self.on_found_start(found));
                    }
                    Err(_) => return false,
                },
                recv(at(self.next_error_look)) -> _ => {
                    self.look_for_errors();
                    reports.push_front(next);
                }
                recv(stop.closed()) -> _ => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests;
