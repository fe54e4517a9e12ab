//! Reads through librdkafka, from positions its owner chooses.
//!
//! A consumer that belongs to no group's protocol: partitions are assigned by hand, nothing is committed. The
//! events of librdkafka are read one by one, because the crate's own poll does not tell which partition an error
//! belongs to. Invariant: a partition's place (`next`) is ours; whatever librdkafka hands out twice, late or for
//! a partition that was revoked does not pass it.
//!
//! Prefetching is bounded by librdkafka's queue limits. A partition that is held keeps what was prefetched in a
//! queue of its own (up to the same limit); held for longer, it is let go and fetched again when it goes on.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use log::warn;
use rdkafka::TopicPartitionList;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaResult, RDKafkaErrorCode};

use super::native::{Event, Queue, RawMessage, Said};
use super::{Voice, common_settings, in_words, set_the_users};
use crate::broker::{BrokerConfig, FetchError, Fetcher, FetcherConfig, Message, Offset, PartitionId, TopicPartition};

/// A partition held for longer than this gives back what was prefetched of it.
const HELD_WITH_PREFETCHED: Duration = Duration::from_secs(5);
/// Troubles kept for the next polls; further ones are left out, since each comes again while it lasts.
const MAX_TROUBLES: usize = 64;
/// Messages that still arrive for a held partition until it is cut off once more.
const CUT_OFF_EVERY: usize = 64;

/// The fetcher of this engine.
pub(in crate::broker) struct LibrdkafkaFetcher {
    broker: BrokerConfig,
    config: FetcherConfig,
    reading: HashMap<TopicPartition, Reading>,
    /// Which partition a message is of, by the address of its topic and its number; saves making the name anew.
    names: HashMap<(usize, PartitionId), TopicPartition>,
    troubles: VecDeque<FetchError>,
    // The queues (in `reading` and here) go before the client they belong to; fields are dropped in this order.
    queue: Queue,
    native: BaseConsumer<Voice>,
}

struct Reading {
    next: Offset,
    held: Option<Held>,
    /// What arrived while it was held; given out first.
    stash: VecDeque<Message>,
}

struct Held {
    since: Instant,
    /// The partition's own queue; `None` once it is not fetched any more.
    queue: Option<Queue>,
}

impl LibrdkafkaFetcher {
    /// Makes the fetcher; no broker need be reachable.
    pub(in crate::broker) fn new(broker: &BrokerConfig, config: FetcherConfig) -> Result<Self, String> {
        let (native, queue) = client(broker, &config)?;
        let (broker, reading, names) = (broker.clone(), HashMap::new(), HashMap::new());
        Ok(LibrdkafkaFetcher { broker, config, reading, names, troubles: VecDeque::new(), queue, native })
    }

    fn start(&mut self, partition: &TopicPartition, offset: Offset) {
        let outcome = one(partition, Some(offset)).and_then(|list| self.native.incremental_assign(&list));
        if let Err(error) = outcome {
            let reason = format!("cannot assign the partition to the consumer: {}", in_words(&error));
            self.trouble(FetchError::Partition { partition: partition.clone(), reason });
        }
    }

    fn stop(&mut self, partition: &TopicPartition) {
        let outcome = one(partition, None).and_then(|list| self.native.incremental_unassign(&list));
        if let Err(error) = outcome {
            warn!("cannot unassign {partition} from the consumer: {}", in_words(&error));
        }
    }

    fn trouble(&mut self, trouble: FetchError) {
        if self.troubles.len() < MAX_TROUBLES {
            self.troubles.push_back(trouble);
        }
    }

    /// What was held back of partitions that go on again.
    fn take_stashed(&mut self, messages: &mut Vec<Message>, most: usize) {
        let going = |reading: &&mut Reading| reading.held.is_none() && !reading.stash.is_empty();
        for reading in self.reading.values_mut().filter(going) {
            let count = reading.stash.len().min(most - messages.len());
            messages.extend(reading.stash.drain(..count));
        }
    }

    fn let_go_of_long_held(&mut self) {
        let is_long = |reading: &Reading| {
            let held = reading.held.as_ref();
            held.is_some_and(|held| held.queue.is_some() && held.since.elapsed() > HELD_WITH_PREFETCHED)
        };
        let long: Vec<_> =
            self.reading.iter().filter(|(_, reading)| is_long(reading)).map(|(name, _)| name.clone()).collect();
        for partition in long {
            self.stop(&partition);
            if let Some(held) = self.reading.get_mut(&partition).and_then(|reading| reading.held.as_mut()) {
                held.queue = None;
            }
        }
    }

    fn take(&mut self, event: &Event, messages: &mut Vec<Message>) {
        match event.said() {
            Said::Messages => {
                while let Some(message) = event.next_message() {
                    self.take_message(message, messages);
                }
            }
            Said::Error { code, at: Some((partition, _)), reason, .. } => {
                self.partition_failed(partition, code, &reason)
            }
            Said::Error { code: RDKafkaErrorCode::AllBrokersDown, reason, .. } => {
                let reason = self.native.context().with_trouble(reason.into_owned());
                self.trouble(FetchError::Unreachable(reason));
            }
            Said::Error { is_fatal: true, code, reason, .. } => self.rebuild(&format!("{code}: {reason}")),
            // One broker of several, or one attempt of many.
            Said::Error { code, reason, .. } => {
                self.native.context().note_trouble(code, &reason);
                self.native.context().say(rdkafka::config::RDKafkaLogLevel::Warning, &code.to_string(), &reason);
            }
            Said::Log { level, facility, line } => self.native.context().say(level, &facility, &line),
            Said::Other => {}
        }
    }

    fn take_message(&mut self, message: RawMessage<'_>, messages: &mut Vec<Message>) {
        let identity = (message.topic_identity().addr(), message.partition());
        let named = || TopicPartition { topic: message.topic().into(), partition: message.partition() };
        let partition = self.names.entry(identity).or_insert_with(named);
        if message.code() != RDKafkaErrorCode::NoError {
            let partition = partition.clone();
            return self.partition_failed(partition, message.code(), "unreadable message");
        }
        let Some(reading) = self.reading.get_mut(partition) else { return };
        let offset = message.offset();
        if offset < reading.next {
            return;
        }
        reading.next = offset + 1;
        let message = Message {
            from: partition.clone(),
            offset,
            key: message.key(),
            value: message.value(),
            headers: message.headers(),
            timestamp_ms: message.timestamp_ms(),
        };
        match &reading.held {
            None => messages.push(message),
            Some(held) => {
                reading.stash.push_back(message);
                // A fetch that was just starting connects the partition's queue again.
                if reading.stash.len().is_multiple_of(CUT_OFF_EVERY)
                    && let Some(queue) = &held.queue
                {
                    queue.forward(None);
                }
            }
        }
    }

    fn partition_failed(&mut self, partition: TopicPartition, code: RDKafkaErrorCode, reason: &str) {
        let Some(offset) = self.reading.get(&partition).map(|reading| reading.next) else { return };
        if !matches!(code, RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) {
            let reason = format!("{code} ({reason})");
            return self.trouble(FetchError::Partition { partition, reason });
        }
        self.stop(&partition);
        let wait = self.broker.request_timeout;
        match self.native.fetch_watermarks(&partition.topic, partition.partition, wait) {
            Ok((oldest, newest)) if offset < oldest || newest < offset => {
                self.reading.remove(&partition);
                self.trouble(FetchError::OffsetGone { partition, offset, oldest, newest });
            }
            // The offset is kept after all, or it cannot be told now: it is read again, and found out again.
            Ok(_) => self.start(&partition, offset),
            Err(error) => {
                self.start(&partition, offset);
                let reason = format!("cannot get the oldest and newest offsets of the partition: {}", in_words(&error));
                self.trouble(FetchError::Partition { partition, reason });
            }
        }
    }

    /// Begins with a new client where the old one cannot go on.
    fn rebuild(&mut self, reason: &str) {
        warn!("replacing the consumer: {reason}");
        match client(&self.broker, &self.config) {
            Ok((native, queue)) => {
                for held in self.reading.values_mut().filter_map(|reading| reading.held.as_mut()) {
                    held.queue = None;
                }
                self.names.clear();
                self.queue = queue;
                self.native = native;
                let going = self.reading.iter().filter(|(_, reading)| reading.held.is_none());
                let places: Vec<_> = going.map(|(partition, reading)| (partition.clone(), reading.next)).collect();
                for (partition, next) in places {
                    self.start(&partition, next);
                }
            }
            Err(reason) => self.trouble(FetchError::Unreachable(reason)),
        }
    }
}

impl Fetcher for LibrdkafkaFetcher {
    fn assign(&mut self, partition: &TopicPartition, offset: Offset) {
        self.revoke(partition);
        self.reading.insert(partition.clone(), Reading { next: offset, held: None, stash: VecDeque::new() });
        self.start(partition, offset);
    }

    fn revoke(&mut self, partition: &TopicPartition) {
        let Some(reading) = self.reading.remove(partition) else { return };
        let is_fetched = reading.held.as_ref().is_none_or(|held| held.queue.is_some());
        if is_fetched {
            self.stop(partition);
        }
        self.names.retain(|_, name| name != partition);
        self.troubles.retain(|trouble| match trouble {
            FetchError::OffsetGone { partition: of, .. } | FetchError::Partition { partition: of, .. } => {
                of != partition
            }
            FetchError::Unreachable(_) => true,
        });
    }

    fn set_paused(&mut self, partition: &TopicPartition, paused: bool) {
        let Some(reading) = self.reading.get_mut(partition) else { return };
        match (paused, reading.held.take()) {
            (true, Some(already)) => reading.held = Some(already),
            (true, None) => {
                // SAFETY: the client lives until `self.native` is replaced or dropped, which lets the queues go first.
                let queue = unsafe { Queue::of_partition(self.native.client().native_ptr(), partition) };
                if let Some(queue) = &queue {
                    queue.forward(None);
                }
                let is_cut_off = queue.is_some();
                reading.held = Some(Held { since: Instant::now(), queue });
                if !is_cut_off {
                    self.stop(partition);
                }
            }
            (false, None) => {}
            (false, Some(Held { queue: Some(queue), .. })) => queue.forward(Some(&self.queue)),
            (false, Some(Held { queue: None, .. })) => {
                let next = reading.next;
                self.start(partition, next);
            }
        }
    }

    fn poll(&mut self, wait: Duration, most: usize) -> Result<Vec<Message>, FetchError> {
        let deadline = Instant::now() + wait;
        let mut messages = Vec::new();
        self.take_stashed(&mut messages, most);
        self.let_go_of_long_held();
        while messages.len() < most && self.troubles.is_empty() {
            let left = match messages.is_empty() {
                true => deadline.saturating_duration_since(Instant::now()),
                false => Duration::ZERO,
            };
            let Some(event) = self.queue.poll(left) else { break };
            self.take(&event, &mut messages);
        }
        // A trouble waits until the messages before it are out.
        match self.troubles.pop_front() {
            Some(trouble) if messages.is_empty() => Err(trouble),
            Some(trouble) => {
                self.troubles.push_front(trouble);
                Ok(messages)
            }
            None => Ok(messages),
        }
    }
}

fn one(partition: &TopicPartition, offset: Option<Offset>) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(1);
    match offset {
        Some(offset) => {
            list.add_partition_offset(&partition.topic, partition.partition, rdkafka::Offset::Offset(offset))?;
        }
        None => drop(list.add_partition(&partition.topic, partition.partition)),
    }
    Ok(list)
}

pub(super) fn settings(broker: &BrokerConfig, config: &FetcherConfig) -> ClientConfig {
    let prefetch_kilobytes = (config.prefetch_bytes / 1024).clamp(1, 2_097_151);
    // A broker gives at least one message, however large, so these bound an answer, not a message.
    let most_in_answer = config.max_message_bytes.max(config.prefetch_bytes.min(50 << 20)).clamp(1_024, 1_000_000_000);
    let most_of_partition = config.prefetch_bytes.clamp(1_024, 1 << 20);
    let mut settings = common_settings(broker);
    settings
        // librdkafka wants a name for manual assignment too; no group is joined and nothing is committed.
        .set("group.id", &broker.client_id)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("allow.auto.create.topics", "false")
        .set("check.crcs", "true")
        .set("queued.min.messages", "100000")
        .set("queued.max.messages.kbytes", prefetch_kilobytes.to_string())
        .set("fetch.message.max.bytes", most_of_partition.to_string())
        .set("fetch.max.bytes", most_in_answer.to_string())
        .set("receive.message.max.bytes", (most_in_answer + config.max_message_bytes + (1 << 20)).to_string())
        // How late fetching goes on after a queue limit; the default of a second would halve the speed.
        .set("fetch.queue.backoff.ms", "10")
        .set("fetch.error.backoff.ms", "200")
        .set("fetch.wait.max.ms", "500");
    set_the_users(&mut settings, broker);
    settings
}

fn client(broker: &BrokerConfig, config: &FetcherConfig) -> Result<(BaseConsumer<Voice>, Queue), String> {
    let native: BaseConsumer<Voice> = settings(broker, config)
        .create_with_context(Voice::new("consumer", broker))
        .map_err(|error| format!("cannot create the consumer: {}", in_words(&error)))?;
    // SAFETY: the queue is kept beside its client and dropped before it.
    let queue = unsafe { Queue::of_consumer(native.client().native_ptr()) }.ok_or("the consumer has no queue")?;
    Ok((native, queue))
}
