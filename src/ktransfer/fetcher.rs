//! The thread that reads the topic: it receives start offsets, and sends batches of messages to the dispatcher.
//!
//! The dispatcher decides where to continue when Kafka no longer keeps an offset, and drops stale batches. While the
//! channel of batches is full the fetch loop reads nothing more, but still receives commands.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};
use log::{Level, info};

use super::config::{ModuleConfig, StartFrom};
use super::job::{WindowId, message_size_bytes};
use super::memory_budget::MemoryBudget;
use super::metrics::ModuleMetrics;
use crate::admin::Component;
use crate::broker::{FetchError, Fetcher, LogEnds, Message, MetadataError, Offset, PartitionId, TopicPartition};
use crate::log_limited;
use crate::shutdown::Stop;

/// Limit on the batches in the channel to the dispatcher. Together they hold at most `waiting_queue_size` messages.
pub(super) const QUEUED_BATCHES: usize = 8;
/// A batch ends with the message that reaches this size. So a batch is smaller than 1 MiB plus one message, and the
/// channel holds at most eight such batches.
const BATCH_BYTES: usize = 1 << 20;
/// How long one poll waits for messages, and so the time for which a command may stay in its channel.
const POLL_WAIT: Duration = Duration::from_millis(100);
/// Pause after an error that concerns all partitions. Without it, a client that fails at once would use a whole CPU.
const ERROR_PAUSE: Duration = Duration::from_millis(200);
/// Pause after an error of one partition. It is short because it delays the other partitions too.
const PARTITION_ERROR_PAUSE: Duration = Duration::from_millis(10);

/// A command of the dispatcher to the fetch loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FetchCommand {
    /// Read the partition, and return its messages with this window. Ends a pause of the partition.
    Assign {
        /// Number of the partition.
        partition: PartitionId,
        /// The window that its messages belong to.
        window: WindowId,
        /// The first offset to read; `None` starts at the oldest or newest offset, as `start_from` says.
        position: Option<Offset>,
    },
    /// Stop reading the partition.
    Revoke(PartitionId),
    /// Read nothing of the partition until `Resume`. Its position and its prefetched messages are kept.
    Pause(PartitionId),
    /// Continue reading a paused partition.
    Resume(PartitionId),
}

/// A report of the fetch loop to the dispatcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fetched {
    /// Messages with their windows. Those of one partition are in the order of their offsets.
    Messages(Vec<(WindowId, Message)>),
    /// The start offset was found for a partition that was assigned without a position.
    StartsAt {
        /// The window of the assignment.
        window: WindowId,
        /// Number of the partition.
        partition: PartitionId,
        /// The first offset that is read.
        offset: Offset,
    },
    /// Kafka does not keep the requested offset (offset out of range). The partition is not read until the next
    /// `Assign`.
    OffsetGone(OffsetGap),
}

/// An offset that Kafka does not keep, and the range of offsets that it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OffsetGap {
    /// The window of the assignment.
    pub(super) window: WindowId,
    /// Number of the partition.
    pub(super) partition: PartitionId,
    /// The requested offset.
    pub(super) offset: Offset,
    /// The oldest offset that Kafka keeps.
    pub(super) oldest: Offset,
    /// The offset after the newest message.
    pub(super) newest: Offset,
}

/// The fetch loop of a module, which reads its topic.
pub(super) struct FetchLoop {
    fetcher: Box<dyn Fetcher>,
    log_ends: Box<dyn LogEnds>,
    module: Arc<str>,
    topic: Arc<str>,
    start_from: StartFrom,
    waiting_queue_size: usize,
    metrics: ModuleMetrics,
    /// Reports to `/readyz` whether the topic can be read from the brokers.
    health: Component,
    /// The memory of the messages that were read and are not done.
    memory: MemoryBudget,
    /// The partitions being read, with their windows. A list is enough for a small number of partitions.
    assigned: Vec<(PartitionId, WindowId)>,
    /// Partitions assigned without a position whose start offset is not known yet.
    unpositioned: Vec<(PartitionId, WindowId)>,
    /// Time of the next look-up of a start offset; none is made earlier.
    next_lookup_at: Instant,
}

impl FetchLoop {
    /// Creates a loop that reads no partition yet.
    pub(super) fn new(
        fetcher: Box<dyn Fetcher>,
        log_ends: Box<dyn LogEnds>,
        config: &ModuleConfig,
        metrics: ModuleMetrics,
        health: Component,
        memory: MemoryBudget,
    ) -> FetchLoop {
        FetchLoop {
            fetcher,
            log_ends,
            module: Arc::clone(&config.name),
            topic: Arc::clone(&config.topic),
            start_from: config.start_from,
            waiting_queue_size: config.waiting_queue_size.get(),
            metrics,
            health,
            memory,
            assigned: Vec::new(),
            unpositioned: Vec::new(),
            next_lookup_at: Instant::now(),
        }
    }

    /// Reads the assigned partitions until the stop.
    pub(super) fn run(mut self, commands: &Receiver<FetchCommand>, batches: &Sender<Fetched>, stop: &Stop) {
        let batch_messages = (self.waiting_queue_size / QUEUED_BATCHES).max(1);
        while !stop.is_triggered() {
            if self.assigned.is_empty() && self.unpositioned.is_empty() {
                // No partition is read, so no later poll would clear an earlier error: report the broker as healthy.
                self.health.set(Ok(()));
                select! {
                    recv(commands) -> command => match command {
                        Ok(command) => self.apply(command),
                        // The dispatcher ended early; the supervisor is about to stop this thread.
                        Err(_) => return stop.wait(),
                    },
                    recv(stop.closed()) -> _ => return,
                }
            }
            while let Ok(command) = commands.try_recv() {
                self.apply(command);
            }
            let mut outcomes: Vec<_> = self.look_up_start_offsets().into_iter().map(Ok).collect();
            if !self.assigned.is_empty() {
                outcomes.extend(self.poll(batch_messages));
            } else if outcomes.is_empty() {
                outcomes.push(Err(POLL_WAIT));
            }
            let mut pause = Duration::ZERO;
            for outcome in outcomes {
                match outcome {
                    Ok(fetched) => {
                        if !self.hand_over(fetched, commands, batches, stop) {
                            return stop.wait();
                        }
                    }
                    Err(wanted_pause) => pause = pause.max(wanted_pause),
                }
            }
            if !pause.is_zero() && !stop.sleep(pause) {
                return;
            }
        }
    }

    fn apply(&mut self, command: FetchCommand) {
        match command {
            FetchCommand::Assign { partition, window, position } => {
                self.forget(partition);
                match position {
                    Some(offset) => self.assign(partition, window, offset),
                    None => self.unpositioned.push((partition, window)),
                }
            }
            FetchCommand::Revoke(partition) => {
                self.forget(partition);
                self.fetcher.revoke(&self.topic_partition(partition));
            }
            FetchCommand::Pause(partition) => self.fetcher.set_paused(&self.topic_partition(partition), true),
            FetchCommand::Resume(partition) => self.fetcher.set_paused(&self.topic_partition(partition), false),
        }
    }

    fn topic_partition(&self, partition: PartitionId) -> TopicPartition {
        TopicPartition { topic: self.topic.clone(), partition }
    }

    fn forget(&mut self, partition: PartitionId) {
        self.assigned.retain(|(known, _)| *known != partition);
        self.unpositioned.retain(|(known, _)| *known != partition);
    }

    fn assign(&mut self, partition: PartitionId, window: WindowId, offset: Offset) {
        self.fetcher.assign(&self.topic_partition(partition), offset);
        self.assigned.push((partition, window));
        info!("module [{}]: reads {}/{partition} from offset {offset}", self.module, self.topic);
    }

    /// Looks up the start offsets of the partitions without a position, and starts to read these. A look-up that times
    /// out takes seconds, in which no command is received and nothing is read. So a failed look-up is the last one of
    /// its turn, and the pause before the next look-up is at least four times its duration.
    fn look_up_start_offsets(&mut self) -> Vec<Fetched> {
        let mut found = Vec::new();
        while !self.unpositioned.is_empty() && self.next_lookup_at <= Instant::now() {
            let (partition, window) = self.unpositioned.remove(0);
            let began = Instant::now();
            match self.log_ends.range(&self.topic_partition(partition)) {
                Ok(range) => {
                    let offset = match self.start_from {
                        StartFrom::Earliest => range.oldest,
                        StartFrom::Latest => range.newest,
                    };
                    self.assign(partition, window, offset);
                    found.push(Fetched::StartsAt { window, partition, offset });
                }
                Err(cause) => {
                    let (module, topic) = (&self.module, &self.topic);
                    log_limited!(
                        Level::Warn,
                        "module [{module}]: cannot get the start offset of {topic}/{partition}: {cause}"
                    );
                    if matches!(cause, MetadataError::Unreachable(_)) {
                        self.health.set(Err(cause.to_string()));
                    }
                    self.metrics.fetch_errors.inc();
                    // To the end of the list, so that the other partitions are looked up first.
                    self.unpositioned.push((partition, window));
                    self.next_lookup_at = Instant::now() + ERROR_PAUSE.max(began.elapsed() * 4);
                }
            }
        }
        found
    }

    /// Waits up to [`POLL_WAIT`] for messages and returns them in batches. After an error returns what
    /// [`report_error`](Self::report_error) returns.
    fn poll(&mut self, max_messages: usize) -> Vec<Result<Fetched, Duration>> {
        let messages = match self.fetcher.poll(POLL_WAIT, max_messages) {
            Ok(messages) => messages,
            Err(cause) => return vec![self.report_error(cause)],
        };
        self.health.set(Ok(()));
        let mut batches = Vec::new();
        let mut batch = Vec::with_capacity(messages.len());
        let mut batch_bytes = 0;
        for message in messages {
            let Some(window) = self.window_of(message.from.partition) else { continue };
            batch_bytes += message_size_bytes(&message);
            batch.push((window, message));
            if BATCH_BYTES <= batch_bytes {
                batches.push(Ok(Fetched::Messages(std::mem::take(&mut batch))));
                batch_bytes = 0;
            }
        }
        if !batch.is_empty() {
            batches.push(Ok(Fetched::Messages(batch)));
        }
        batches
    }

    fn window_of(&self, partition: PartitionId) -> Option<WindowId> {
        self.assigned.iter().find(|(known, _)| *known == partition).map(|(_, window)| *window)
    }

    /// Counts and reports an error. Returns an event for the dispatcher, or the pause before the next poll.
    fn report_error(&mut self, cause: FetchError) -> Result<Fetched, Duration> {
        self.metrics.fetch_errors.inc();
        let module = &self.module;
        match cause {
            FetchError::OffsetGone { partition, offset, oldest, newest } => {
                let window = self.window_of(partition.partition).ok_or(Duration::ZERO)?;
                let partition = partition.partition;
                Ok(Fetched::OffsetGone(OffsetGap { window, partition, offset, oldest, newest }))
            }
            FetchError::Partition { .. } => {
                log_limited!(Level::Warn, "module [{module}]: {cause}");
                Err(PARTITION_ERROR_PAUSE)
            }
            FetchError::Unreachable(_) => {
                log_limited!(Level::Warn, "module [{module}]: {cause}");
                self.health.set(Err(cause.to_string()));
                Err(ERROR_PAUSE)
            }
        }
    }

    /// Sends `fetched` to the dispatcher, and applies commands while the memory is used up or the channel is full. A batch that such a command
    /// makes stale is recognised by the dispatcher by its window. Returns false when the loop must end.
    fn hand_over(
        &mut self,
        fetched: Fetched,
        commands: &Receiver<FetchCommand>,
        batches: &Sender<Fetched>,
        stop: &Stop,
    ) -> bool {
        if let Fetched::Messages(messages) = &fetched {
            let size_bytes = messages.iter().map(|(_, message)| message_size_bytes(message)).sum();
            while !self.memory.try_take(size_bytes) {
                select! {
                    recv(self.memory.freed()) -> _ => {},
                    recv(commands) -> command => match command {
                        Ok(command) => self.apply(command),
                        Err(_) => return false,
                    },
                    recv(stop.closed()) -> _ => return false,
                }
            }
        }
        loop {
            select! {
                send(batches, fetched) -> sent => return sent.is_ok(),
                recv(commands) -> command => match command {
                    Ok(command) => self.apply(command),
                    Err(_) => return false,
                },
                recv(stop.closed()) -> _ => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Health;
    use crate::broker::in_memory::MemoryBroker;
    use crate::broker::{LogRange, PartitionInfo};
    use crate::ktransfer::metrics::Metrics;
    use crate::ktransfer::test_backend::wait_until;
    use crate::ktransfer::test_fixtures::module_config;
    use crate::metrics::Registry;
    use crossbeam_channel::bounded;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Fails for the partitions with a number below `failing`, and counts the requests.
    struct FailingLogEnds {
        failing: Arc<AtomicUsize>,
        requests: Arc<AtomicUsize>,
    }

    impl LogEnds for FailingLogEnds {
        fn partitions(&mut self, _: &str) -> Result<Vec<PartitionInfo>, MetadataError> {
            Ok(Vec::new())
        }

        fn newest(&mut self, _: &[TopicPartition]) -> Vec<Result<Offset, MetadataError>> {
            Vec::new()
        }

        fn range(&mut self, partition: &TopicPartition) -> Result<LogRange, MetadataError> {
            self.requests.fetch_add(1, Ordering::SeqCst);
            match usize::try_from(partition.partition).unwrap() < self.failing.load(Ordering::SeqCst) {
                true => Err(MetadataError::Unreachable("no answer".into())),
                false => Ok(LogRange { oldest: 3, newest: 9 }),
            }
        }
    }

    fn fetch_loop(broker: &MemoryBroker, log_ends: Box<dyn LogEnds>, health: &Health) -> FetchLoop {
        let mut config = module_config(&[]);
        config.start_from = StartFrom::Latest;
        config.waiting_queue_size = 8.try_into().unwrap();
        let metrics = Metrics::new(&Registry::new()).of_module("m", "t");
        let (health, memory) = (health.component("broker of m"), MemoryBudget::new(1 << 20));
        FetchLoop::new(Box::new(broker.fetcher()), log_ends, &config, metrics, health, memory)
    }

    #[test]
    fn a_failed_start_offset_lookup_is_the_last_of_its_turn_and_is_retried_after_a_pause() {
        let (failing, requests) = (Arc::new(AtomicUsize::new(50)), Arc::new(AtomicUsize::new(0)));
        let broker = MemoryBroker::new();
        broker.create_topic("t", 50);
        let log_ends = FailingLogEnds { failing: Arc::clone(&failing), requests: Arc::clone(&requests) };
        let mut fetch_loop = fetch_loop(&broker, Box::new(log_ends), &Health::new());
        for partition in 0..50 {
            fetch_loop.apply(FetchCommand::Assign { partition, window: WindowId(1), position: None });
        }
        // A look-up that fails may have taken seconds without a command being received: it is the last of its turn.
        assert!(fetch_loop.look_up_start_offsets().is_empty());
        assert_eq!(requests.load(Ordering::SeqCst), 1);
        assert!(fetch_loop.look_up_start_offsets().is_empty());
        assert_eq!(requests.load(Ordering::SeqCst), 1, "retried at once");
        // A partition whose look-up fails does not block the look-ups of the others.
        failing.store(1, Ordering::SeqCst);
        fetch_loop.next_lookup_at = Instant::now();
        let found = fetch_loop.look_up_start_offsets().len();
        fetch_loop.next_lookup_at = Instant::now();
        assert_eq!(found + fetch_loop.look_up_start_offsets().len(), 49);
        assert_eq!(fetch_loop.unpositioned, [(0, WindowId(1))]);
        failing.store(0, Ordering::SeqCst);
        fetch_loop.next_lookup_at = Instant::now();
        let starts_at = Fetched::StartsAt { window: WindowId(1), partition: 0, offset: 9 };
        assert_eq!(fetch_loop.look_up_start_offsets(), [starts_at]);
    }

    #[test]
    fn without_assigned_partitions_the_broker_counts_as_healthy() {
        let (broker, health, stop) = (MemoryBroker::new(), Health::new(), Stop::new());
        broker.create_topic("t", 1);
        broker.set_reachable(false);
        let fetch_loop = fetch_loop(&broker, Box::new(broker.log_ends()), &health);
        let (commands, command_receiver) = bounded(1);
        let (batches, _batch_receiver) = bounded(1);
        let loop_stop = stop.clone();
        let thread = std::thread::spawn(move || fetch_loop.run(&command_receiver, &batches, &loop_stop));
        commands.send(FetchCommand::Assign { partition: 0, window: WindowId(1), position: Some(0) }).unwrap();
        let is_reported = || health.troubles().iter().any(|(_, reason)| reason.contains("no broker"));
        wait_until("the error is reported", is_reported);
        commands.send(FetchCommand::Revoke(0)).unwrap();
        wait_until("the error is cleared", || health.troubles().is_empty());
        stop.trigger();
        thread.join().unwrap();
    }
}
