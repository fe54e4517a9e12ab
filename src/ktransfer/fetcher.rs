//! The thread that reads: positions in, batches of messages out.
//!
//! Decides nothing: where to go on after an offset that is gone, and what is stale, is the dispatcher's. While the
//! queue of batches is full it reads no further, yet goes on taking commands.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};
use log::{Level, info};

use super::config::StartFrom;
use super::job::{WindowId, size_of_message};
use super::metrics::ModuleMetrics;
use crate::admin::Component;
use crate::broker::{FetchError, Fetcher, LogEnds, MetadataError, Offset, PartitionId, TopicPartition};
use crate::log_limited;
use crate::shutdown::Stop;

/// Batches in the queue to the dispatcher. Together they hold `waiting_queue_size` messages at most.
pub const QUEUED_BATCHES: usize = 8;
/// A batch ends once it has so many bytes, so the queue is bounded in bytes too: by eight of these, or by eight messages that are
/// larger.
const BATCH_BYTES: usize = 1 << 20;
/// How long a command may have to wait while there is nothing to read.
const POLL_WAIT: Duration = Duration::from_millis(100);
/// Pause after an error that stops everything, so that an engine that fails at once does not spin.
const ERROR_PAUSE: Duration = Duration::from_millis(200);

/// What the dispatcher wants read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchCommand {
    /// Read the partition, and mark its messages with this window.
    Assign {
        /// Which.
        partition: PartitionId,
        /// The mark.
        window: WindowId,
        /// From here; `None` asks the broker where `start_from` is.
        position: Option<Offset>,
    },
    /// Read it no more.
    Revoke(PartitionId),
    /// Hold it back, or go on with it.
    Hold(PartitionId, bool),
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// Messages, of each partition by rising offset.
    Messages(Vec<(WindowId, crate::broker::Message)>),
    /// There was no position, so reading begins here.
    Begins {
        /// Which partition, under its mark.
        window: WindowId,
        /// Number of the partition.
        partition: PartitionId,
        /// The first offset that is read.
        offset: Offset,
    },
    /// The offset asked for is not kept. The partition is not read until it is assigned anew.
    Gone {
        /// Which partition, under its mark.
        window: WindowId,
        /// Number of the partition.
        partition: PartitionId,
        /// The offset asked for.
        offset: Offset,
        /// Oldest offset kept.
        oldest: Offset,
        /// The offset after the newest message.
        newest: Offset,
    },
}

/// The reading side of a module.
pub struct Reader {
    /// The engine.
    pub fetcher: Box<dyn Fetcher>,
    /// Knows where logs begin and end.
    pub log_ends: Box<dyn LogEnds>,
    /// Name of the module, for log lines.
    pub module: std::sync::Arc<str>,
    /// The topic that is read.
    pub topic: std::sync::Arc<str>,
    /// Where to begin without a position.
    pub start_from: StartFrom,
    /// `waiting_queue_size`.
    pub waiting_queue_size: usize,
    /// What is counted.
    pub metrics: ModuleMetrics,
    /// Whether the broker can be read, for `/readyz`.
    pub health: Component,
    /// The partitions being read, with their marks; a handful, so a list. Empty at the start.
    pub assigned: Vec<(PartitionId, WindowId)>,
    /// Partitions whose beginning is not known yet. Empty at the start.
    pub unplaced: Vec<(PartitionId, WindowId)>,
    /// Until then the broker is not asked where partitions begin. Any time in the past at the start.
    pub place_after: Instant,
}

impl Reader {
    /// Reads until the stop.
    pub fn run(mut self, commands: &Receiver<FetchCommand>, queue: &Sender<Fetched>, stop: &Stop) {
        let batch_messages = (self.waiting_queue_size / QUEUED_BATCHES).max(1);
        while !stop.is_triggered() {
            if self.assigned.is_empty() && self.unplaced.is_empty() {
                // A trouble of before is nobody's any more, and nothing here would learn of its end.
                self.health.set(Ok(()));
                select! {
                    recv(commands) -> command => match command {
                        Ok(command) => self.obey(command),
                        Err(_) => return stop.wait(),
                    },
                    recv(stop.closed()) -> _ => return,
                }
            }
            while let Ok(command) = commands.try_recv() {
                self.obey(command);
            }
            let mut found: Vec<_> = self.place().into_iter().map(Ok).collect();
            if !self.assigned.is_empty() {
                found.extend(self.poll(batch_messages));
            } else if found.is_empty() {
                found.push(Err(POLL_WAIT));
            }
            let mut pause = Duration::ZERO;
            for outcome in found {
                match outcome {
                    Ok(fetched) => {
                        if !self.hand_over(fetched, commands, queue, stop) {
                            return stop.wait();
                        }
                    }
                    Err(asked) => pause = pause.max(asked),
                }
            }
            if !pause.is_zero() && !stop.sleep(pause) {
                return;
            }
        }
    }

    fn obey(&mut self, command: FetchCommand) {
        match command {
            FetchCommand::Assign { partition, window, position } => {
                self.forget(partition);
                match position {
                    Some(offset) => self.assign(partition, window, offset),
                    None => self.unplaced.push((partition, window)),
                }
            }
            FetchCommand::Revoke(partition) => {
                self.forget(partition);
                self.fetcher.revoke(&self.named(partition));
            }
            FetchCommand::Hold(partition, held) => self.fetcher.set_paused(&self.named(partition), held),
        }
    }

    fn named(&self, partition: PartitionId) -> TopicPartition {
        TopicPartition { topic: self.topic.clone(), partition }
    }

    fn forget(&mut self, partition: PartitionId) {
        self.assigned.retain(|(known, _)| *known != partition);
        self.unplaced.retain(|(known, _)| *known != partition);
    }

    fn assign(&mut self, partition: PartitionId, window: WindowId, offset: Offset) {
        self.fetcher.assign(&self.named(partition), offset);
        self.assigned.push((partition, window));
        info!("module [{}]: reads {}/{partition} from offset {offset}", self.module, self.topic);
    }

    /// Asks where the partitions without a position begin. A question without an answer takes long, and as long no command is obeyed and
    /// nothing is read: it ends this turn, and most of the time goes to everything else.
    fn place(&mut self) -> Vec<Fetched> {
        let mut found = Vec::new();
        while !self.unplaced.is_empty() && self.place_after <= Instant::now() {
            let (partition, window) = self.unplaced.remove(0);
            let asked = Instant::now();
            match self.log_ends.range(&self.named(partition)) {
                Ok(range) => {
                    let offset = match self.start_from {
                        StartFrom::Earliest => range.oldest,
                        StartFrom::Latest => range.newest,
                    };
                    self.assign(partition, window, offset);
                    found.push(Fetched::Begins { window, partition, offset });
                }
                Err(cause) => {
                    let module = &self.module;
                    log_limited!(
                        Level::Warn,
                        "module [{module}]: does not know where partition {partition} begins: {cause}"
                    );
                    if matches!(cause, MetadataError::Unreachable(_)) {
                        self.health.set(Err(cause.to_string()));
                    }
                    self.metrics.fetch_errors.inc();
                    // The others have their turn first.
                    self.unplaced.push((partition, window));
                    self.place_after = Instant::now() + ERROR_PAUSE.max(asked.elapsed() * 4);
                }
            }
        }
        found
    }

    /// What is there, in batches; or how long to pause after an error.
    fn poll(&mut self, most: usize) -> Vec<Result<Fetched, Duration>> {
        let messages = match self.fetcher.poll(POLL_WAIT, most) {
            Ok(messages) => messages,
            Err(cause) => return vec![self.explain(cause)],
        };
        self.health.set(Ok(()));
        let mut batches = Vec::new();
        let mut batch = Vec::with_capacity(messages.len());
        let mut bytes = 0;
        for message in messages {
            let Some(window) = self.window_of(message.from.partition) else { continue };
            bytes += size_of_message(&message);
            batch.push((window, message));
            if BATCH_BYTES <= bytes {
                batches.push(Ok(Fetched::Messages(std::mem::take(&mut batch))));
                bytes = 0;
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

    fn explain(&mut self, cause: FetchError) -> Result<Fetched, Duration> {
        self.metrics.fetch_errors.inc();
        let module = &self.module;
        match cause {
            FetchError::OffsetGone { partition, offset, oldest, newest } => {
                let window = self.window_of(partition.partition).ok_or(Duration::ZERO)?;
                Ok(Fetched::Gone { window, partition: partition.partition, offset, oldest, newest })
            }
            FetchError::Partition { .. } => {
                log_limited!(Level::Warn, "module [{module}]: {cause}");
                // The other partitions go on.
                Err(Duration::from_millis(10))
            }
            FetchError::Unreachable(_) => {
                log_limited!(Level::Warn, "module [{module}]: {cause}");
                self.health.set(Err(cause.to_string()));
                Err(ERROR_PAUSE)
            }
        }
    }

    /// Waits for room in the queue, obeying meanwhile: what a command made stale is recognised by its mark. False at the end.
    fn hand_over(
        &mut self,
        fetched: Fetched,
        commands: &Receiver<FetchCommand>,
        queue: &Sender<Fetched>,
        stop: &Stop,
    ) -> bool {
        loop {
            select! {
                send(queue, fetched) -> sent => return sent.is_ok(),
                recv(commands) -> command => match command {
                    Ok(command) => self.obey(command),
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
    use crate::ktransfer::backend_for_tests::wait_until;
    use crate::ktransfer::metrics::Metrics;
    use crate::metrics::Registry;
    use crossbeam_channel::bounded;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Answers for all partitions but those below a number.
    struct Partly {
        silent: Arc<AtomicUsize>,
        asked: Arc<AtomicUsize>,
    }

    impl LogEnds for Partly {
        fn partitions(&mut self, _: &str) -> Result<Vec<PartitionInfo>, MetadataError> {
            Ok(Vec::new())
        }

        fn newest(&mut self, _: &[TopicPartition]) -> Vec<Result<Offset, MetadataError>> {
            Vec::new()
        }

        fn range(&mut self, partition: &TopicPartition) -> Result<LogRange, MetadataError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            match usize::try_from(partition.partition).unwrap() < self.silent.load(Ordering::SeqCst) {
                true => Err(MetadataError::Unreachable("no answer".into())),
                false => Ok(LogRange { oldest: 3, newest: 9 }),
            }
        }
    }

    #[test]
    fn brokers_that_do_not_answer_are_asked_once_a_turn_and_then_left_alone_for_a_while() {
        let (silent, asked) = (Arc::new(AtomicUsize::new(50)), Arc::new(AtomicUsize::new(0)));
        let broker = MemoryBroker::new();
        broker.create_topic("t", 50);
        let mut reader = Reader {
            fetcher: Box::new(broker.fetcher()),
            log_ends: Box::new(Partly { silent: Arc::clone(&silent), asked: Arc::clone(&asked) }),
            module: "m".into(),
            topic: "t".into(),
            start_from: StartFrom::Latest,
            waiting_queue_size: 8,
            metrics: Metrics::new(&Registry::new()).of_module("m", "t"),
            health: Health::new().component("broker of m"),
            assigned: Vec::new(),
            unplaced: Vec::new(),
            place_after: Instant::now(),
        };
        for partition in 0..50 {
            reader.obey(FetchCommand::Assign { partition, window: WindowId(1), position: None });
        }
        // Each question may take seconds in which no command is obeyed.
        assert!(reader.place().is_empty());
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert!(reader.place().is_empty());
        assert_eq!(asked.load(Ordering::SeqCst), 1, "at once again");
        // One that stays silent does not keep the others waiting.
        silent.store(1, Ordering::SeqCst);
        reader.place_after = Instant::now();
        let placed = reader.place().len();
        reader.place_after = Instant::now();
        assert_eq!(placed + reader.place().len(), 49);
        assert_eq!(reader.unplaced, [(0, WindowId(1))]);
        silent.store(0, Ordering::SeqCst);
        reader.place_after = Instant::now();
        let begins = Fetched::Begins { window: WindowId(1), partition: 0, offset: 9 };
        assert_eq!(reader.place(), [begins]);
    }

    #[test]
    fn who_reads_nothing_has_no_trouble() {
        let (broker, health, stop) = (MemoryBroker::new(), Health::new(), Stop::new());
        broker.create_topic("t", 1);
        broker.set_reachable(false);
        let reader = Reader {
            fetcher: Box::new(broker.fetcher()),
            log_ends: Box::new(broker.log_ends()),
            module: "m".into(),
            topic: "t".into(),
            start_from: StartFrom::Latest,
            waiting_queue_size: 8,
            metrics: Metrics::new(&Registry::new()).of_module("m", "t"),
            health: health.component("broker of m"),
            assigned: Vec::new(),
            unplaced: Vec::new(),
            place_after: Instant::now(),
        };
        let (commands, obeyed) = bounded(1);
        let (queue, _fetched) = bounded(1);
        let reader_stop = stop.clone();
        let thread = std::thread::spawn(move || reader.run(&obeyed, &queue, &reader_stop));
        commands.send(FetchCommand::Assign { partition: 0, window: WindowId(1), position: Some(0) }).unwrap();
        wait_until("it is told", || health.troubles().iter().any(|(_, reason)| reason.contains("no broker")));
        commands.send(FetchCommand::Revoke(0)).unwrap();
        wait_until("it is over", || health.troubles().is_empty());
        stop.trigger();
        thread.join().unwrap();
    }
}
