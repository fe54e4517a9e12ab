//! Reads through the `kafka` crate.
//!
//! A lane for each leader: a client on a thread of its own, with one fetch under way. What came is kept by partition
//! until it is polled, and no more is fetched of a partition, or in all, than the bounds allow.
//!
//! The old protocol hides trouble in good answers, so each is looked at: a message larger than asked for, and what
//! the crate drops of a compacted or compressed log, show as an answer without messages below the log's end. Then
//! more bytes are asked for, then of this partition alone (a full answer has no room for the last ones), and at last the
//! offset is passed over, with a line in the log. One unreadable message
//! spoils the answer for all partitions in it; they are then fetched alone until the bad one is found.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use kafka::client::{FetchOffset, FetchPartition, KafkaClient};
use kafka::error::{Error, KafkaCode};
use log::{error, warn};

use super::guarded_client::{CallError, GuardedClient};
use crate::broker::{
    BrokerConfig, FetchError, Fetcher, FetcherConfig, LogRange, Message, Offset, PartitionId, TopicPartition,
};
use crate::supervise::Supervisor;

/// How long a broker may wait for messages; a partition assigned meanwhile is fetched that late.
const BROKER_WAITS: Duration = Duration::from_millis(100);
/// Pause before what failed is tried again.
const PAUSE: Duration = Duration::from_millis(300);
/// Pause of a partition that cannot be read.
const LONG_PAUSE: Duration = Duration::from_secs(5);
/// Answers without messages below the log's end until something is done about it.
const STUCK_AFTER: u32 = 3;
/// Bytes asked for of one partition at first.
const FIRST_BYTES: (usize, usize) = (64 << 10, 1 << 20);
/// Troubles kept for the next polls; further ones are left out, since each comes again while it lasts.
const MAX_TROUBLES: usize = 64;

/// The fetcher of this engine.
pub(in crate::broker) struct KafkaRustFetcher {
    broker: BrokerConfig,
    config: FetcherConfig,
    supervisor: Supervisor,
    reading: HashMap<TopicPartition, Reading>,
    lanes: HashMap<String, Lane>,
    /// Asks for leaders and log ends.
    metadata: GuardedClient,
    // Bounded by one answer for each lane.
    answers: (Sender<Answer>, Receiver<Answer>),
    troubles: VecDeque<FetchError>,
    number: u64,
    /// Counts the polls.
    turn: u64,
}

struct Reading {
    /// Tells this assignment of the partition from earlier ones.
    epoch: u64,
    next: Offset,
    is_paused: bool,
    ready: VecDeque<Message>,
    ready_bytes: usize,
    /// The poll that took from it last.
    taken_in: u64,
    leader: Option<String>,
    is_fetching: bool,
    /// It is fetched alone, because an answer that had it could not be read, or had nothing of it.
    alone: bool,
    not_before: Instant,
    most_bytes: usize,
    empty_answers: u32,
}

impl Reading {
    fn new(epoch: u64, next: Offset) -> Self {
        Reading {
            epoch,
            next,
            is_paused: false,
            ready: VecDeque::new(),
            ready_bytes: 0,
            taken_in: 0,
            leader: None,
            is_fetching: false,
            alone: false,
            not_before: Instant::now(),
            most_bytes: 0,
            empty_answers: 0,
        }
    }
}

struct Lane {
    caller: GuardedClient,
    /// Number of the fetch under way and when it is given up.
    under_way: Option<(u64, Instant)>,
    asked: Vec<Asked>,
    reload: bool,
}

#[derive(Clone)]
struct Asked {
    partition: TopicPartition,
    epoch: u64,
    offset: Offset,
    most_bytes: usize,
}

struct Answer {
    leader: String,
    number: u64,
    outcome: Result<Vec<Part>, CallError>,
}

/// What an answer has of one partition.
struct Part {
    topic: String,
    partition: PartitionId,
    /// The log's end and the messages, or why there are none.
    outcome: Result<(Offset, Vec<RawMessage>), Trouble>,
}

struct RawMessage {
    offset: Offset,
    key: Vec<u8>,
    value: Vec<u8>,
}

enum Trouble {
    Code(KafkaCode),
    Other(String),
}

impl KafkaRustFetcher {
    /// Makes the fetcher; no broker need be reachable.
    pub(in crate::broker) fn new(broker: &BrokerConfig, config: FetcherConfig, supervisor: &Supervisor) -> Self {
        KafkaRustFetcher {
            broker: broker.clone(),
            config,
            supervisor: supervisor.clone(),
            reading: HashMap::new(),
            lanes: HashMap::new(),
            metadata: GuardedClient::new(broker, "kafka-leaders", supervisor.stop().clone()),
            answers: unbounded(),
            troubles: VecDeque::new(),
            number: 0,
            turn: 0,
        }
    }

    fn trouble(&mut self, trouble: FetchError) {
        if self.troubles.len() < MAX_TROUBLES {
            self.troubles.push_back(trouble);
        }
    }

    fn first_bytes(&self) -> usize {
        let share = self.config.prefetch_bytes / self.reading.len().max(1);
        share.clamp(FIRST_BYTES.0, FIRST_BYTES.1)
    }

    fn take_ready(&mut self, most: usize) -> Vec<Message> {
        self.turn += 1;
        take_in_turn(self.reading.values_mut(), self.turn, most)
    }

    /// Starts a fetch on each lane that has none and has something to fetch.
    fn start_fetches(&mut self) {
        let now = Instant::now();
        let total: usize = self.reading.values().map(|reading| reading.ready_bytes).sum();
        if total >= self.config.prefetch_bytes {
            return;
        }
        let first_bytes = self.first_bytes();
        let wants = |reading: &Reading| {
            let has_room = reading.ready_bytes < reading.most_bytes.max(first_bytes);
            !reading.is_paused && !reading.is_fetching && reading.not_before <= now && has_room
        };
        let homeless: BTreeSet<Arc<str>> = self
            .reading
            .iter()
            .filter(|(_, reading)| wants(reading) && reading.leader.is_none())
            .map(|(partition, _)| Arc::clone(&partition.topic))
            .collect();
        if !homeless.is_empty() {
            self.find_leaders(homeless);
        }
        let mut by_leader: HashMap<String, Vec<Asked>> = HashMap::new();
        for (partition, reading) in &self.reading {
            let Some(leader) = reading.leader.as_ref().filter(|_| wants(reading)) else { continue };
            if self.lanes.get(leader).is_some_and(|lane| lane.under_way.is_some()) {
                continue;
            }
            let (epoch, offset, most_bytes) = (reading.epoch, reading.next, reading.most_bytes.max(first_bytes));
            let asked = Asked { partition: partition.clone(), epoch, offset, most_bytes };
            by_leader.entry(leader.clone()).or_default().push(asked);
        }
        for (leader, mut asked) in by_leader {
            // Those that go alone take turns with all the others together.
            let alone = |asked: &Asked| self.reading.get(&asked.partition).is_some_and(|reading| reading.alone);
            let (lonely, together): (Vec<_>, Vec<_>) = asked.drain(..).partition(alone);
            let take_lonely = together.is_empty() || self.number.is_multiple_of(2);
            let chosen = match lonely.into_iter().next().filter(|_| take_lonely) {
                Some(one) => vec![one],
                None => together,
            };
            if !chosen.is_empty() {
                self.fetch(leader, chosen);
            }
        }
    }

    fn fetch(&mut self, leader: String, asked: Vec<Asked>) {
        self.number += 1;
        let number = self.number;
        let lane = self.lanes.entry(leader.clone()).or_insert_with(|| Lane {
            caller: GuardedClient::new(&self.broker, "kafka-fetch", self.supervisor.stop().clone()),
            under_way: None,
            asked: Vec::new(),
            reload: false,
        });
        let (wanted, reload) = (asked.clone(), std::mem::take(&mut lane.reload));
        let answers = self.answers.0.clone();
        let name = leader.clone();
        let started = lane.caller.start(
            move |client| fetch(client, &wanted, reload),
            // The fetcher may be gone by then.
            move |outcome| drop(answers.send(Answer { leader: name, number, outcome })),
        );
        match started {
            Ok(()) => {
                for asked in &asked {
                    if let Some(reading) = self.reading.get_mut(&asked.partition) {
                        reading.is_fetching = true;
                    }
                }
                lane.under_way = Some((number, Instant::now() + self.broker.request_timeout + BROKER_WAITS));
                lane.asked = asked;
            }
            Err(error) => self.lane_failed(asked, &error),
        }
    }

    fn find_leaders(&mut self, topics: BTreeSet<Arc<str>>) {
        let names: Vec<String> = topics.iter().map(ToString::to_string).collect();
        let found = self.metadata.call(self.broker.request_timeout, move |client| {
            client.load_metadata(&names)?;
            let mut leaders = HashMap::new();
            for name in names {
                for partition in client.topics().partitions(&name).iter().flat_map(|found| found.iter()) {
                    if let Some(leader) = partition.leader() {
                        leaders.insert((name.clone(), partition.id()), leader.host().to_owned());
                    }
                }
            }
            Ok(leaders)
        });
        let homeless = |partition: &TopicPartition, reading: &Reading| {
            reading.leader.is_none() && topics.contains(&partition.topic)
        };
        let not_before = Instant::now() + PAUSE;
        let mut without = Vec::new();
        match found {
            Ok(leaders) => {
                for (partition, reading) in self.reading.iter_mut() {
                    if homeless(partition, reading) {
                        reading.leader = leaders.get(&(partition.topic.to_string(), partition.partition)).cloned();
                        if reading.leader.is_none() {
                            reading.not_before = not_before;
                            without.push(partition.clone());
                        }
                    }
                }
            }
            Err(error) => {
                for (partition, reading) in self.reading.iter_mut() {
                    if homeless(partition, reading) {
                        reading.not_before = not_before;
                    }
                }
                self.trouble(FetchError::Unreachable(error.in_words()));
            }
        }
        for partition in without {
            let reason = "it does not exist or has no leader".to_owned();
            self.trouble(FetchError::Partition { partition, reason });
        }
    }

    fn lane_failed(&mut self, asked: Vec<Asked>, error: &CallError) {
        for asked in asked {
            let Some(reading) = self.of(&asked) else { continue };
            reading.is_fetching = false;
            reading.leader = None;
            reading.not_before = Instant::now() + PAUSE;
        }
        self.trouble(FetchError::Unreachable(error.in_words()));
    }

    /// The assignment that was asked for, if it is still the same.
    fn of(&mut self, asked: &Asked) -> Option<&mut Reading> {
        self.reading.get_mut(&asked.partition).filter(|reading| reading.epoch == asked.epoch)
    }

    fn take(&mut self, answer: Answer) {
        let Some(lane) = self.lanes.get_mut(&answer.leader) else { return };
        if lane.under_way.is_none_or(|(number, _)| number != answer.number) {
            return;
        }
        lane.under_way = None;
        let asked = std::mem::take(&mut lane.asked);
        match answer.outcome {
            Ok(parts) => self.take_parts(&answer.leader, &asked, parts),
            Err(CallError::Unreadable(reason)) => self.isolate(asked, &reason),
            Err(error) => {
                lane.reload = true;
                self.lane_failed(asked, &error);
            }
        }
    }

    fn take_parts(&mut self, leader: &str, asked: &[Asked], parts: Vec<Part>) {
        let (largest, was_alone) = (self.config.max_message_bytes, asked.len() == 1);
        let mut by_name: HashMap<(String, PartitionId), _> =
            parts.into_iter().map(|part| ((part.topic, part.partition), part.outcome)).collect();
        for asked in asked {
            let part = by_name.remove(&(asked.partition.topic.to_string(), asked.partition.partition));
            let Some(reading) = self.of(asked) else { continue };
            reading.is_fetching = false;
            match part {
                Some(Ok((log_end, messages))) => {
                    take_messages(asked, was_alone, reading, log_end, messages, largest);
                }
                Some(Err(Trouble::Code(KafkaCode::OffsetOutOfRange))) => self.out_of_range(asked),
                Some(Err(trouble)) => {
                    reading.leader = None;
                    reading.not_before = Instant::now() + PAUSE;
                    if let Some(lane) = self.lanes.get_mut(leader) {
                        lane.reload = true;
                    }
                    let reason = match trouble {
                        Trouble::Code(code) => format!("{code:?}"),
                        Trouble::Other(reason) => reason,
                    };
                    self.trouble(FetchError::Partition { partition: asked.partition.clone(), reason });
                }
                // The crate leaves out what has no leader in its eyes.
                None => {
                    reading.leader = None;
                    reading.not_before = Instant::now() + PAUSE;
                }
            }
        }
    }

    /// An answer could not be read: find out whose fault it is.
    fn isolate(&mut self, asked: Vec<Asked>, reason: &str) {
        if let [one] = &asked[..] {
            let Some(reading) = self.of(one) else { return };
            reading.is_fetching = false;
            reading.alone = true;
            reading.not_before = Instant::now() + LONG_PAUSE;
            error!("{} at offset {} cannot be read: {reason}", one.partition, one.offset);
            let reason = format!("it cannot be read at offset {} (lz4, zstd?): {reason}", one.offset);
            return self.trouble(FetchError::Partition { partition: one.partition.clone(), reason });
        }
        for asked in &asked {
            if let Some(reading) = self.of(asked) {
                reading.is_fetching = false;
                reading.alone = true;
            }
        }
    }

    fn out_of_range(&mut self, asked: &Asked) {
        let (topic, number) = (asked.partition.topic.to_string(), asked.partition.partition);
        let range = self.metadata.call(self.broker.request_timeout, move |client| {
            client.load_metadata(&[&topic])?;
            let mut end = |end| {
                let found = client.fetch_topic_offsets(&topic, end)?;
                let found = found.into_iter().find(|found| found.partition == number);
                found.map(|found| found.offset).ok_or(Error::Kafka(KafkaCode::LeaderNotAvailable))
            };
            Ok(LogRange { oldest: end(FetchOffset::Earliest)?, newest: end(FetchOffset::Latest)? })
        });
        let partition = asked.partition.clone();
        match range {
            Ok(LogRange { oldest, newest }) if asked.offset < oldest || newest < asked.offset => {
                self.reading.remove(&partition);
                self.trouble(FetchError::OffsetGone { partition, offset: asked.offset, oldest, newest });
            }
            outcome => {
                if let Some(reading) = self.of(asked) {
                    reading.not_before = Instant::now() + PAUSE;
                }
                if let Err(error) = outcome {
                    let reason = format!("its kept offsets could not be asked for: {}", error.in_words());
                    self.trouble(FetchError::Partition { partition, reason });
                }
            }
        }
    }

    fn give_up_late_fetches(&mut self) {
        let now = Instant::now();
        let late = |lane: &Lane| lane.under_way.is_some_and(|(_, until)| until <= now);
        let leaders: Vec<String> =
            self.lanes.iter().filter(|(_, lane)| late(lane)).map(|(leader, _)| leader.clone()).collect();
        for leader in leaders {
            let Some(lane) = self.lanes.get_mut(&leader) else { continue };
            lane.caller.abandon();
            lane.under_way = None;
            let asked = std::mem::take(&mut lane.asked);
            self.lane_failed(asked, &CallError::Unclear(format!("{leader} does not answer")));
        }
    }
}

impl Fetcher for KafkaRustFetcher {
    fn assign(&mut self, partition: &TopicPartition, offset: Offset) {
        self.revoke(partition);
        self.number += 1;
        self.reading.insert(partition.clone(), Reading::new(self.number, offset));
    }

    fn revoke(&mut self, partition: &TopicPartition) {
        self.reading.remove(partition);
        self.troubles.retain(|trouble| match trouble {
            FetchError::OffsetGone { partition: of, .. } | FetchError::Partition { partition: of, .. } => {
                of != partition
            }
            FetchError::Unreachable(_) => true,
        });
    }

    fn set_paused(&mut self, partition: &TopicPartition, paused: bool) {
        if let Some(reading) = self.reading.get_mut(partition) {
            reading.is_paused = paused;
        }
    }

    fn poll(&mut self, wait: Duration, most: usize) -> Result<Vec<Message>, FetchError> {
        let deadline = Instant::now() + wait;
        loop {
            while let Ok(answer) = self.answers.1.try_recv() {
                self.take(answer);
            }
            self.give_up_late_fetches();
            let messages = self.take_ready(most);
            self.start_fetches();
            if !messages.is_empty() {
                return Ok(messages);
            }
            if let Some(trouble) = self.troubles.pop_front() {
                return Err(trouble);
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(Vec::new());
            }
            // Looked at again at the latest when a pause may have ended.
            let left = (deadline - now).min(PAUSE);
            if let Ok(answer) = self.answers.1.recv_timeout(left) {
                self.take(answer);
            }
        }
    }
}

fn size_of_message(message: &Message) -> usize {
    message.value.as_ref().map_or(0, Vec::len) + message.key.as_ref().map_or(0, Vec::len) + size_of::<Message>()
}

/// Takes what an answer has of one partition; `was_alone` where nothing else was asked for with it.
fn take_messages(
    asked: &Asked,
    was_alone: bool,
    reading: &mut Reading,
    log_end: Offset,
    messages: Vec<RawMessage>,
    largest: usize,
) {
    let before = reading.next;
    for message in messages.into_iter() {
        if message.offset < reading.next {
            continue;
        }
        reading.next = message.offset + 1;
        let message = Message {
            from: asked.partition.clone(),
            offset: message.offset,
            key: Some(message.key).filter(|key| !key.is_empty()),
            value: Some(message.value),
            headers: Vec::new(),
            timestamp_ms: None,
        };
        reading.ready_bytes += size_of_message(&message);
        reading.ready.push_back(message);
    }
    if reading.next > before {
        (reading.most_bytes, reading.empty_answers, reading.alone) = (0, 0, false);
        return;
    }
    if log_end <= reading.next {
        reading.alone = false;
        return;
    }
    reading.empty_answers += 1;
    if reading.empty_answers < STUCK_AFTER {
        return;
    }
    reading.empty_answers = 0;
    let most = largest.saturating_add(1 << 20).min(i32::MAX as usize);
    if asked.most_bytes < most {
        reading.most_bytes = asked.most_bytes.saturating_mul(4).min(most);
        return;
    }
    if !was_alone {
        reading.alone = true;
        return;
    }
    let skipped = reading.next;
    reading.next += 1;
    warn!(
        "{} has nothing readable at offset {skipped} although its log ends at {log_end}; passed over",
        asked.partition
    );
}

fn fetch(client: &mut KafkaClient, asked: &[Asked], reload: bool) -> kafka::Result<Vec<Part>> {
    let topics: BTreeSet<&str> = asked.iter().map(|asked| &*asked.partition.topic).collect();
    let unknown: Vec<&str> = topics.into_iter().filter(|topic| reload || !client.topics().contains(topic)).collect();
    if !unknown.is_empty() {
        client.load_metadata(&unknown)?;
    }
    client.set_fetch_max_wait_time(BROKER_WAITS)?;
    client.set_fetch_min_bytes(1);
    client.set_fetch_crc_validation(true);
    let partitions = asked.iter().map(|asked| {
        FetchPartition::new(&asked.partition.topic, asked.partition.partition, asked.offset)
            .with_max_bytes(i32::try_from(asked.most_bytes).unwrap_or(i32::MAX))
    });
    let mut parts = Vec::new();
    for answer in client.fetch_messages(partitions)? {
        for topic in answer.topics() {
            for partition in topic.partitions() {
                let outcome = match partition.data() {
                    Ok(data) => {
                        let copied = data.messages().iter().map(|message| RawMessage {
                            offset: message.offset,
                            key: message.key.to_vec(),
                            value: message.value.to_vec(),
                        });
                        Ok((data.highwatermark_offset(), copied.collect()))
                    }
                    Err(error) => Err(match &*error {
                        Error::Kafka(code) => Trouble::Code(*code),
                        error => Trouble::Other(error.to_string()),
                    }),
                };
                parts.push(Part { topic: topic.topic().to_owned(), partition: partition.partition(), outcome });
            }
        }
    }
    Ok(parts)
}

/// Up to `most` messages that are ready: a like share of each partition, and first of those that waited longest. One that is always
/// full would else keep all others waiting.
fn take_in_turn<'a>(readings: impl Iterator<Item = &'a mut Reading>, turn: u64, most: usize) -> Vec<Message> {
    let mut ready: Vec<_> = readings.filter(|reading| !reading.is_paused && !reading.ready.is_empty()).collect();
    ready.sort_unstable_by_key(|reading| reading.taken_in);
    let mut messages = Vec::new();
    let mut left = ready.len();
    for reading in ready {
        let share = (most - messages.len()).div_ceil(left);
        left -= 1;
        let count = reading.ready.len().min(share);
        for message in reading.ready.drain(..count) {
            reading.ready_bytes -= size_of_message(&message);
            messages.push(message);
            reading.taken_in = turn;
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_hides_a_message_is_asked_for_more_and_at_last_passed_over() {
        let partition = TopicPartition { topic: Arc::from("t"), partition: 0 };
        let mut reading = Reading::new(1, 7);
        let mut asked = Asked { partition, epoch: 1, offset: 7, most_bytes: 1 << 20 };
        let mut grown = Vec::new();
        let mut answers = 0;
        // A broker whose answer is full with other partitions has nothing for this one: that proves nothing.
        for _ in 0..100 {
            take_messages(&asked, false, &mut reading, 9, Vec::new(), 4 << 20);
            asked.most_bytes = reading.most_bytes.max(1 << 20);
        }
        assert_eq!((reading.next, reading.alone), (7, true));
        (reading.most_bytes, reading.empty_answers, asked.most_bytes) = (0, 0, 1 << 20);
        while reading.next == 7 {
            take_messages(&asked, true, &mut reading, 9, Vec::new(), 4 << 20);
            asked.most_bytes = reading.most_bytes.max(1 << 20);
            grown.push(asked.most_bytes);
            answers += 1;
            assert!(answers < 100);
        }
        grown.dedup();
        assert_eq!(grown[..3], [1 << 20, 4 << 20, 5 << 20], "four times as much, up to the largest message");
        assert_eq!((answers, reading.next, reading.alone), (3 * STUCK_AFTER, 8, true), "alone until it is found");
        // At the end of the log an empty answer is just that.
        reading.next = 9;
        for _ in 0..10 {
            take_messages(&asked, true, &mut reading, 9, Vec::new(), 4 << 20);
        }
        assert_eq!((reading.next, reading.alone), (9, false));
        reading.alone = true;
        // What lies before the place is not given out again.
        let raw = |offset| RawMessage { offset, key: Vec::new(), value: vec![1] };
        take_messages(&asked, true, &mut reading, 12, vec![raw(8), raw(9), raw(11)], 4 << 20);
        assert_eq!(reading.ready.iter().map(|message| message.offset).collect::<Vec<_>>(), [9, 11]);
        assert_eq!((reading.next, reading.alone), (12, false));
    }

    #[test]
    fn partitions_that_are_always_full_keep_no_other_waiting() {
        let full = |partition: PartitionId, count: Offset| {
            let from = TopicPartition { topic: Arc::from("t"), partition };
            let message = |offset| Message {
                from: from.clone(),
                offset,
                key: None,
                value: None,
                headers: Vec::new(),
                timestamp_ms: None,
            };
            Reading {
                ready: (0..count).map(message).collect(),
                ready_bytes: (0..count).map(|offset| size_of_message(&message(offset))).sum(),
                ..Reading::new(1, 0)
            }
        };
        let mut readings: Vec<_> = (0..10).map(|partition| full(partition, 1000)).collect();
        for (most, turns) in [(20, 1), (3, 4), (1, 10)] {
            let before: Vec<_> = readings.iter().map(|reading| reading.ready.len()).collect();
            for _ in 0..turns {
                let turn = readings.iter().map(|reading| reading.taken_in).max().unwrap_or(0) + 1;
                assert_eq!(take_in_turn(readings.iter_mut(), turn, most).len(), most);
            }
            let taken = readings.iter().zip(before).map(|(reading, before)| before - reading.ready.len());
            assert!(taken.clone().all(|count| 0 < count), "most {most}: {:?}", taken.collect::<Vec<_>>());
        }
        let mut short = [full(0, 2), full(1, 100)];
        let taken = take_in_turn(short.iter_mut(), 1, 10);
        assert!((7..=10).contains(&taken.len()), "{}", taken.len());
    }
}
