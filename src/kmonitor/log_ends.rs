//! Reads which topics and partitions exist, and their log start and log end offsets.
//!
//! A leader that does not respond affects only its own partitions, and costs one wait: until it responds again it gets
//! short requests every [`SILENT_PAUSE`], after all other leaders. After a doubtful response the leaders are looked up
//! again, so that a new leader is found. A topic or partition counts as deleted only after two responses, because a
//! broker that has just started does not know its topics for a while. What is not read in time comes first the next
//! time, so that a slow line starves nothing.
//!
//! Invariant: nothing here creates a topic.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::broker::{
    LogEnds, LogRange, MetadataError, Offset, PartitionId, PartitionInfo, TopicId, TopicInfo, TopicPartition,
};

use super::client::{Client, Connect};
use super::facts::UnknownReason;

/// Longest wait for the topics, and for the leaders that are thought to respond.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for leaders that did not respond the last time.
const SILENT_TIMEOUT: Duration = Duration::from_secs(1);
/// Time after which a leader that did not respond is asked again.
const SILENT_PAUSE: Duration = Duration::from_secs(5);
/// Age at which a topic is looked up again, to find new partitions and another id. A few topics are looked up in every
/// cycle: until then a recreated topic looks like the one before.
const MAX_TOPIC_AGE: Duration = Duration::from_secs(10);
/// Largest number of topics that are a few.
const FEW_TOPICS: usize = 500;
/// Largest number of topics that are looked up together: a response takes about 150 bytes for each partition.
const MAX_TOPICS: usize = 250;
/// Shortest time between two look-ups of a topic that is in doubt.
const DOUBT_PAUSE: Duration = Duration::from_millis(500);
/// Time between the first and the last of the answers that make an absence certain.
const GONE_AFTER: Duration = Duration::from_secs(10);

/// The ends of a log as read, or why there are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LogReading {
    /// The log has these ends.
    Range(LogRange),
    /// The topic or partition does not exist; confirmed.
    Gone,
    /// It could not be read.
    Unknown(UnknownReason),
}

/// Reads topics and log ends from the brokers of one cluster.
pub(super) struct LogReader {
    client: Client<dyn LogEnds>,
    topics: HashMap<Arc<str>, KnownTopic>,
    /// The leaders that did not respond, and when the next request may be sent to them.
    silent: BTreeMap<i32, Instant>,
    /// The logs that could not be read in time although their leader responds, and since when. They are the first of
    /// the next request.
    late: HashMap<TopicPartition, Instant>,
    /// Number of topics that are looked up together now; less than [`MAX_TOPICS`] after a part got no response.
    part_size: usize,
    /// Number of requests sent so far, as far as they can be counted here.
    pub request_count: u64,
}

/// What the brokers said about a topic.
struct KnownTopic {
    answer: Answer,
    /// When this answer came first, of those that followed each other.
    first: Instant,
    /// When it came last.
    last: Instant,
    /// When its turn in the look-ups came last, with a response or without.
    tried: Instant,
    /// Something has happened that may have changed it.
    is_doubtful: bool,
    /// The partitions that were wanted and do not exist by this answer, and since when they are wanted.
    missing: BTreeMap<PartitionId, Instant>,
}

#[derive(Clone, Debug)]
enum Answer {
    Exists(TopicInfo),
    Absent,
    Failed(UnknownReason),
}

impl LogReader {
    /// Makes a reader without a Kafka client; the first request calls `connect`.
    pub(super) fn new(connect: Connect<dyn LogEnds>) -> Self {
        LogReader {
            client: Client::new(connect),
            topics: HashMap::new(),
            silent: BTreeMap::new(),
            late: HashMap::new(),
            part_size: MAX_TOPICS,
            request_count: 0,
        }
    }

    /// Looks up the topics of `wanted` that are unknown, in doubt or long not looked up, and forgets all others. If the
    /// time does not suffice for all, the next call begins with the others. `hosts` are addresses of brokers. Fails if
    /// no broker responds.
    pub(super) fn look_up(
        &mut self,
        hosts: &[String],
        wanted: &BTreeSet<Arc<str>>,
        now: Instant,
    ) -> Result<(), String> {
        self.topics.retain(|name, _| wanted.contains(name));
        self.late.retain(|at, _| wanted.contains(&at.topic));
        let due = self.due(wanted, now);
        let deadline = Instant::now() + TIMEOUT;
        let (mut rest, mut responded) = (&due[..], false);
        while !rest.is_empty() && (!responded || Instant::now() < deadline) {
            let (part, later) = rest.split_at(self.part_size.min(rest.len()));
            let found = self.client.get(hosts)?.topics(part, deadline);
            self.request_count += 1;
            let silence = found.iter().find_map(|result| match result {
                Err(MetadataError::Unreachable(reason)) => Some(reason.clone()),
                _ => None,
            });
            let is_silent = found.iter().all(is_unreachable);
            // The response may have been too large for the time.
            self.part_size = if is_silent { self.part_size / 2 } else { self.part_size * 2 }.clamp(1, MAX_TOPICS);
            if is_silent && responded {
                // The time was used up before: the next look-up begins with these.
                part.iter().for_each(|name| self.doubt(name));
                return Ok(());
            }
            if let Some(reason) = silence.filter(|_| is_silent) {
                part.iter().for_each(|name| self.note_silence(name, now));
                // The next look-up makes a new client, perhaps for other addresses.
                self.client.forget();
                return Err(reason);
            }
            for (name, result) in part.iter().zip(found) {
                self.note(Arc::clone(name), result, now);
            }
            (rest, responded) = (later, true);
        }
        Ok(())
    }

    /// Returns the topics to look up: first those that are unknown, then those that were tried longest ago.
    fn due(&self, wanted: &BTreeSet<Arc<str>>, now: Instant) -> Vec<Arc<str>> {
        let max_age = if wanted.len() <= FEW_TOPICS { DOUBT_PAUSE } else { MAX_TOPIC_AGE };
        let is_due = |name: &&Arc<str>| self.topics.get(*name).is_none_or(|topic| topic.is_due(max_age, now));
        let mut due: Vec<Arc<str>> = wanted.iter().filter(is_due).cloned().collect();
        due.sort_by_key(|name| self.topics.get(name).map(|topic| topic.tried));
        due
    }

    /// Returns the id of a topic, as far as it is known.
    pub(super) fn topic_id(&self, topic: &str) -> Option<TopicId> {
        self.info(topic)?.id
    }

    /// Returns the partitions of a topic that exists; none of another one.
    pub(super) fn partitions(&self, topic: &str) -> impl Iterator<Item = PartitionId> + '_ {
        self.info(topic).into_iter().flat_map(|info| &info.partitions).map(|info| info.partition)
    }

    /// Reads the ends of logs of topics that were looked up. The results have the order of `wanted`.
    pub(super) fn ranges(&mut self, wanted: &[TopicPartition], now: Instant) -> Vec<LogReading> {
        let mut readings: Vec<Option<LogReading>> = wanted.iter().map(|at| self.without_asking(at, now)).collect();
        let (mut healthy, mut silent) = (Vec::new(), Vec::new());
        for (index, at) in wanted.iter().enumerate() {
            if readings[index].is_some() {
                continue;
            }
            let leader = self.leader(at);
            match leader.and_then(|leader| self.silent.get(&leader).map(|retry_at| (leader, *retry_at))) {
                None => healthy.push(index),
                Some((_, retry_at)) if retry_at <= now => silent.push(index),
                Some((leader, _)) => {
                    self.doubt(&at.topic);
                    readings[index] = Some(LogReading::Unknown(UnknownReason::LeaderSilent { broker: leader }));
                }
            }
        }
        let late_since = |index: &usize| self.late.get(&wanted[*index]);
        healthy.sort_by_key(|index| (late_since(index).is_none(), late_since(index)));
        self.ask(wanted, &healthy, TIMEOUT, now, &mut readings);
        self.ask(wanted, &silent, SILENT_TIMEOUT, now, &mut readings);
        let missing = || LogReading::Unknown(UnknownReason::NotReadYet);
        readings.into_iter().map(|reading| reading.unwrap_or_else(missing)).collect()
    }

    /// Returns for each of these logs the first message that is not older than each of `ages`, by the timestamps of the
    /// messages; `None` for a log of which that cannot be looked up.
    pub(super) fn firsts_by_age(
        &mut self,
        wanted: &[TopicPartition],
        ages: impl Iterator<Item = Duration>,
        now_ms: i64,
    ) -> Vec<Option<Vec<Option<Offset>>>> {
        let leaders: BTreeSet<_> = wanted.iter().filter_map(|at| self.leader(at)).collect();
        let mut firsts: Vec<_> = wanted.iter().map(|_| Some(Vec::new())).collect();
        let Some(log_ends) = self.client.known() else { return wanted.iter().map(|_| None).collect() };
        let deadline = Instant::now() + TIMEOUT;
        for age in ages {
            let time_ms = now_ms.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
            self.request_count += leaders.len() as u64;
            for (firsts, found) in firsts.iter_mut().zip(log_ends.at_time(wanted, time_ms, deadline)) {
                let pushed = found.map(|first| firsts.as_mut().map(|firsts: &mut Vec<_>| firsts.push(first)));
                if pushed.is_err() {
                    *firsts = None;
                }
            }
            if firsts.iter().all(Option::is_none) {
                break;
            }
        }
        firsts
    }

    /// Returns what is known of a log without a request for its ends; `None` if they can be requested.
    fn without_asking(&mut self, at: &TopicPartition, now: Instant) -> Option<LogReading> {
        let unknown = |reason| Some(LogReading::Unknown(reason));
        let Some(topic) = self.topics.get_mut(&at.topic) else { return unknown(UnknownReason::NotReadYet) };
        let absent = |is_certain, text: String| match is_certain {
            true => Some(LogReading::Gone),
            false => unknown(UnknownReason::Failed(format!("{text}, by one answer so far").into())),
        };
        match &topic.answer {
            Answer::Failed(reason) => unknown(reason.clone()),
            Answer::Absent => absent(topic.is_confirmed(), format!("topic {} does not exist", at.topic)),
            Answer::Exists(info) => match find(info, at.partition) {
                None => {
                    // It may be a new one, which the answer is too old to have, or the broker that gave it.
                    let since = *topic.missing.entry(at.partition).or_insert(now);
                    let is_certain = GONE_AFTER <= topic.last.saturating_duration_since(since);
                    topic.is_doubtful |= !is_certain;
                    absent(is_certain, format!("partition {at} does not exist"))
                }
                Some(PartitionInfo { leader: None, .. }) => {
                    topic.is_doubtful = true;
                    unknown(UnknownReason::NoLeader)
                }
                Some(_) => None,
            },
        }
    }

    fn ask(
        &mut self,
        wanted: &[TopicPartition],
        indices: &[usize],
        timeout: Duration,
        now: Instant,
        readings: &mut [Option<LogReading>],
    ) {
        if indices.is_empty() {
            return;
        }
        let partitions: Vec<TopicPartition> = indices.iter().map(|index| wanted[*index].clone()).collect();
        let leaders: BTreeSet<_> = partitions.iter().filter_map(|at| self.leader(at)).collect();
        self.request_count += 3 * leaders.len() as u64;
        let began = Instant::now();
        let Some(log_ends) = self.client.known() else {
            indices.iter().for_each(|index| readings[*index] = Some(LogReading::Unknown(UnknownReason::NoBroker)));
            return;
        };
        let found = log_ends.range_of_all(&partitions, began + timeout);
        // The pause begins after the wait, or it would have passed already.
        let retry_at = now + began.elapsed() + SILENT_PAUSE;
        let (mut responding, mut late) = (BTreeSet::new(), Vec::new());
        for ((index, at), result) in indices.iter().zip(&partitions).zip(found) {
            let leader = self.leader(at);
            let late_since = self.late.remove(at).unwrap_or(now);
            readings[*index] = Some(match result {
                Ok(range) => {
                    responding.extend(leader);
                    LogReading::Range(range)
                }
                Err(error) => {
                    self.doubt(&at.topic);
                    if let (MetadataError::Unreachable(_), Some(leader)) = (&error, leader) {
                        self.silent.insert(leader, retry_at);
                        late.push((leader, at, late_since));
                    }
                    LogReading::Unknown(reason_of(error, leader))
                }
            });
        }
        self.silent.retain(|leader, _| !responding.contains(leader));
        let late = late.into_iter().filter(|(leader, ..)| responding.contains(leader));
        self.late.extend(late.map(|(_, at, since)| (at.clone(), since)));
    }

    fn note(&mut self, name: Arc<str>, result: Result<TopicInfo, MetadataError>, now: Instant) {
        let answer = match result {
            Ok(info) => Answer::Exists(info),
            Err(MetadataError::UnknownTopic(_)) => Answer::Absent,
            Err(error @ (MetadataError::NotAuthorized(_) | MetadataError::InvalidTopic(_))) => {
                Answer::Failed(reason_of(error, None))
            }
            // A transient error says nothing about what was known before.
            Err(_) if self.info(&name).is_some() => return self.note_silence(&name, now),
            Err(error) => Answer::Failed(reason_of(error, None)),
        };
        let before = self.topics.remove(&name).filter(|topic| topic.answer.says_the_same(&answer));
        let (first, missing) = before.map_or((now, BTreeMap::new()), |topic| (topic.first, topic.missing));
        let topic = KnownTopic { answer, first, last: now, tried: now, is_doubtful: false, missing };
        self.topics.insert(name, topic);
    }

    /// Notes that a look-up of a topic said nothing.
    fn note_silence(&mut self, name: &str, now: Instant) {
        if let Some(topic) = self.topics.get_mut(name) {
            (topic.tried, topic.is_doubtful) = (now, true);
        }
    }

    /// Notes that what is known of a topic may have changed.
    pub(super) fn doubt(&mut self, topic: &str) {
        if let Some(topic) = self.topics.get_mut(topic) {
            topic.is_doubtful = true;
        }
    }

    fn info(&self, topic: &str) -> Option<&TopicInfo> {
        match &self.topics.get(topic)?.answer {
            Answer::Exists(info) => Some(info),
            Answer::Absent | Answer::Failed(_) => None,
        }
    }

    fn leader(&self, at: &TopicPartition) -> Option<i32> {
        find(self.info(&at.topic)?, at.partition)?.leader
    }
}

impl KnownTopic {
    fn is_due(&self, max_age: Duration, now: Instant) -> bool {
        let is_certain = match &self.answer {
            Answer::Exists(_) => !self.is_doubtful,
            Answer::Absent => self.is_confirmed(),
            Answer::Failed(_) => false,
        };
        let pause = if is_certain { max_age } else { DOUBT_PAUSE };
        pause <= now.saturating_duration_since(self.last)
    }

    fn is_confirmed(&self) -> bool {
        GONE_AFTER <= self.last.saturating_duration_since(self.first)
    }
}

impl Answer {
    /// Whether the partitions that do not exist by this answer do not exist by the other one either.
    fn says_the_same(&self, other: &Answer) -> bool {
        match (self, other) {
            (Answer::Exists(one), Answer::Exists(other)) => one.partitions.len() == other.partitions.len(),
            (Answer::Absent, Answer::Absent) => true,
            _ => false,
        }
    }
}

fn find(info: &TopicInfo, partition: PartitionId) -> Option<&PartitionInfo> {
    let index = info.partitions.binary_search_by_key(&partition, |info| info.partition).ok()?;
    info.partitions.get(index)
}

fn is_unreachable<T>(result: &Result<T, MetadataError>) -> bool {
    matches!(result, Err(MetadataError::Unreachable(_)))
}

fn reason_of(error: MetadataError, leader: Option<i32>) -> UnknownReason {
    match error {
        MetadataError::Unreachable(_) => {
            leader.map_or(UnknownReason::NoBroker, |broker| UnknownReason::LeaderSilent { broker })
        }
        MetadataError::NoLeader(_) => UnknownReason::NoLeader,
        MetadataError::NotAuthorized(_) => UnknownReason::NotAuthorized,
        MetadataError::InvalidTopic(_) => UnknownReason::InvalidTopic,
        MetadataError::UnknownTopic(topic) => UnknownReason::Failed(format!("topic {topic} does not exist").into()),
        MetadataError::Partition(reason) => UnknownReason::Failed(reason.into()),
    }
}

#[cfg(test)]
mod tests;
