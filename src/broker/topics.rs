//! Which topics exist: a bounded table that lets an unknown topic be answered soon.
//!
//! librdkafka itself lets a message for an unknown topic wait for tens of seconds, and keeps every name it was
//! ever asked about. So a topic is asked for first, once for all who wait for it; what waits is kept in order and
//! handed over before anything newer. Pure: time comes in, decisions go out.
//!
//! A name that does not exist costs the brokers a few questions within a second (some make a topic when it is asked
//! for) and none in the three seconds after that; a topic made meanwhile is found within four seconds. Made-up names
//! neither push known topics out nor hold up a new one: they give way.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long "does not exist" is believed.
const UNKNOWN_FOR: Duration = Duration::from_secs(3);
/// A topic is called unknown when it was so for this long: a broker that creates it says so at first.
const UNKNOWN_AFTER: Duration = Duration::from_secs(1);
/// First pause before a topic is asked for again; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Known and unknown topics kept; when full, some that nobody waits for are forgotten, unknown ones first.
const MAX_TOPICS: usize = 10_000;
/// Topics that no broker has said anything about yet; when full, appends to further ones are refused as `Full`.
const MAX_LOOKUPS: usize = 256;
/// Topics of which brokers said that they do not exist, asked for again for a while; when full, that word counts at
/// once.
const MAX_MISSED: usize = 256;

/// The table; `W` is what waits for a topic.
pub(super) struct TopicTable<W> {
    topics: HashMap<Arc<str>, Topic<W>>,
    asked_count: usize,
    /// Those of them that a broker did not know.
    missed_count: usize,
    waiting_count: usize,
    most_waiting: usize,
    ask_for: Duration,
}

/// What waits for a topic has to be answered at some time.
pub(super) trait HasDeadline {
    /// When.
    fn deadline(&self) -> Instant;
}

enum Topic<W> {
    Known { partition_count: i32, since: Instant },
    Unknown { until: Instant },
    Pending(PendingLookup<W>),
}

struct PendingLookup<W> {
    first: Instant,
    next: Instant,
    pause: Duration,
    /// It existed before; perhaps it has grown.
    known_before: bool,
    /// A broker did not know it.
    missed: bool,
    waiting: Vec<W>,
}

/// What is known of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It exists with so many partitions.
    Yes(i32),
    /// It did not a moment ago.
    No,
    /// It must be asked for.
    NeedsLookup,
}

/// What a broker said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LookupAnswer {
    /// It exists with so many partitions.
    Exists(i32),
    /// It does not.
    DoesNotExist,
    /// It is being made, or has no leader yet.
    #[cfg_attr(not(feature = "librdkafka"), allow(dead_code, reason = "the pure-Rust engine cannot tell it"))]
    NotYet,
    /// No broker could be asked.
    Unreachable(String),
    /// It may not be asked for, or the name is not legal.
    Refused(String),
}

/// How the waiting for a topic ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LookupResult {
    /// It exists with so many partitions.
    Exists(i32),
    /// It does not exist.
    Unknown,
    /// No broker told, and why.
    Unreachable(String),
    /// The broker refused the question.
    Refused(String),
}

impl<W> PendingLookup<W> {
    fn new(known_before: bool, waiting: Vec<W>, now: Instant) -> Self {
        PendingLookup { first: now, next: now, pause: FIRST_PAUSE, known_before, missed: false, waiting }
    }
}

impl<W> TopicTable<W> {
    /// An empty table; at most `most_waiting` may wait in all, each for `ask_for` at most.
    pub(super) fn new(most_waiting: usize, ask_for: Duration) -> Self {
        TopicTable { topics: HashMap::new(), asked_count: 0, missed_count: 0, waiting_count: 0, most_waiting, ask_for }
    }

    /// What is known of `topic` for an append to `partition`. A partition that the topic did not have a moment ago
    /// is worth a question, since topics grow.
    pub(super) fn known(&self, topic: &str, partition: Option<i32>, now: Instant) -> Known {
        match self.topics.get(topic) {
            Some(Topic::Known { partition_count, since }) => {
                let missing = partition.is_some_and(|partition| partition >= *partition_count);
                match missing && now.duration_since(*since) > UNKNOWN_FOR {
                    true => Known::NeedsLookup,
                    false => Known::Yes(*partition_count),
                }
            }
            Some(Topic::Unknown { until }) if now < *until => Known::No,
            Some(Topic::Unknown { .. } | Topic::Pending(_)) | None => Known::NeedsLookup,
        }
    }

    /// Lets `waiting` wait for the answer about `topic`; gives it back when too many wait.
    pub(super) fn wait(&mut self, topic: &Arc<str>, waiting: W, now: Instant) -> Result<(), W> {
        if self.waiting_count >= self.most_waiting {
            return Err(waiting);
        }
        if let Some(Topic::Pending(asked)) = self.topics.get_mut(topic) {
            asked.waiting.push(waiting);
        } else {
            if self.asked_count - self.missed_count >= MAX_LOOKUPS {
                return Err(waiting);
            }
            self.make_room(now);
            let known_before = matches!(self.topics.get(topic), Some(Topic::Known { .. }));
            self.topics.insert(Arc::clone(topic), Topic::Pending(PendingLookup::new(known_before, vec![waiting], now)));
            self.asked_count += 1;
        }
        self.waiting_count += 1;
        Ok(())
    }

    /// The topics to ask for now, each with whether it existed before.
    pub(super) fn due(&self, now: Instant) -> Vec<(Arc<str>, bool)> {
        if self.asked_count == 0 {
            return Vec::new();
        }
        let due = |(name, topic): (&Arc<str>, &Topic<W>)| match topic {
            Topic::Pending(asked) if asked.next <= now => Some((Arc::clone(name), asked.known_before)),
            Topic::Pending(_) | Topic::Known { .. } | Topic::Unknown { .. } => None,
        };
        self.topics.iter().filter_map(due).collect()
    }

    /// When the next question is due, if any is.
    pub(super) fn next_due(&self) -> Option<Instant> {
        if self.asked_count == 0 {
            return None;
        }
        let next = |topic: &Topic<W>| match topic {
            Topic::Pending(asked) => Some(asked.next),
            Topic::Known { .. } | Topic::Unknown { .. } => None,
        };
        self.topics.values().filter_map(next).min()
    }

    /// Whether those who wait for `topic` have waited for longer than its own questions take, so that nothing more is
    /// to be asked for them.
    pub(super) fn is_overdue(&self, topic: &str, now: Instant) -> bool {
        // The last question that can matter comes before twice the time and a first pause, since pauses at most double.
        let most = self.ask_for * 2 + FIRST_PAUSE * 2;
        matches!(self.topics.get(topic), Some(Topic::Pending(asked)) if now.duration_since(asked.first) > most)
    }

    /// Takes an answer in; gives all who waited once it is a verdict.
    pub(super) fn answer(&mut self, topic: &str, answer: LookupAnswer, now: Instant) -> Option<(LookupResult, Vec<W>)> {
        let Some((name, Topic::Pending(asked))) = self.topics.get_key_value(topic) else { return None };
        let waited = now.duration_since(asked.first);
        // A broker that has just started does not know its topics for a while.
        let unknown_after = if asked.known_before { self.ask_for } else { UNKNOWN_AFTER.min(self.ask_for) };
        let name = Arc::clone(name);
        let verdict = match answer {
            LookupAnswer::Exists(partition_count) => LookupResult::Exists(partition_count),
            LookupAnswer::DoesNotExist if waited >= unknown_after => LookupResult::Unknown,
            LookupAnswer::DoesNotExist if !asked.known_before && !asked.missed && self.missed_count >= MAX_MISSED => {
                LookupResult::Unknown
            }
            LookupAnswer::NotYet if waited >= self.ask_for => {
                LookupResult::Unreachable("the topic is being created or has no leader yet".to_owned())
            }
            LookupAnswer::Unreachable(reason) => LookupResult::Unreachable(reason),
            LookupAnswer::Refused(reason) => LookupResult::Refused(reason),
            LookupAnswer::DoesNotExist | LookupAnswer::NotYet => {
                if let Some(Topic::Pending(asked)) = self.topics.get_mut(topic) {
                    asked.next = now + asked.pause;
                    asked.pause = (asked.pause * 2).min(MAX_PAUSE);
                    if !std::mem::replace(&mut asked.missed, true) {
                        self.missed_count += 1;
                    }
                }
                return None;
            }
        };
        let now_known = match &verdict {
            LookupResult::Exists(partition_count) => {
                Some(Topic::Known { partition_count: *partition_count, since: now })
            }
            LookupResult::Unknown => Some(Topic::Unknown { until: now + UNKNOWN_FOR }),
            LookupResult::Unreachable(_) | LookupResult::Refused(_) => None,
        };
        let before = match now_known {
            Some(known) => self.topics.insert(name, known),
            None => self.topics.remove(topic),
        };
        let Some(Topic::Pending(asked)) = before else { return None };
        self.asked_count -= 1;
        self.missed_count -= usize::from(asked.missed);
        self.waiting_count -= asked.waiting.len();
        Some((verdict, asked.waiting))
    }

    /// Some of the known topics that were not looked at for so long.
    pub(super) fn not_seen_for(&self, long: Duration, most: usize, now: Instant) -> Vec<Arc<str>> {
        let is_old = |(name, topic): (&Arc<str>, &Topic<W>)| match topic {
            Topic::Known { since, .. } if now.duration_since(*since) >= long => Some(Arc::clone(name)),
            Topic::Known { .. } | Topic::Unknown { .. } | Topic::Pending(_) => None,
        };
        self.topics.iter().filter_map(is_old).take(most).collect()
    }

    /// A known topic was looked at while its messages went on; perhaps it has other partitions now. Without a count
    /// nothing is learned but that it was tried.
    pub(super) fn seen(&mut self, topic: &str, count: Option<i32>, now: Instant) {
        if let Some(Topic::Known { partition_count, since }) = self.topics.get_mut(topic) {
            (*partition_count, *since) = (count.unwrap_or(*partition_count), now);
        }
    }

    /// An engine does not know `topic`, which was known to exist: it is asked for again, and what arrives meanwhile
    /// waits.
    pub(super) fn doubt(&mut self, topic: &str, now: Instant) {
        if let Some(known @ Topic::Known { .. }) = self.topics.get_mut(topic) {
            *known = Topic::Pending(PendingLookup::new(true, Vec::new(), now));
            self.asked_count += 1;
        }
    }

    /// Everything that waits, at the close.
    pub(super) fn drain(&mut self) -> Vec<W> {
        let waiting = self.topics.values_mut().flat_map(|topic| match topic {
            Topic::Pending(asked) => std::mem::take(&mut asked.waiting),
            Topic::Known { .. } | Topic::Unknown { .. } => Vec::new(),
        });
        let waiting = waiting.collect();
        self.waiting_count = 0;
        waiting
    }

    fn make_room(&mut self, now: Instant) {
        if self.topics.len() < MAX_TOPICS {
            return;
        }
        self.topics.retain(|_, topic| !matches!(topic, Topic::Unknown { until } if *until <= now));
        if self.topics.len() < MAX_TOPICS {
            return;
        }
        // What does not exist gives way to what does; many at once, since each look through the table takes a while.
        let mut left = MAX_TOPICS / 10;
        self.topics.retain(|_, topic| {
            let goes = left > 0 && matches!(topic, Topic::Unknown { .. });
            left -= usize::from(goes);
            !goes
        });
        if self.topics.len() >= MAX_TOPICS {
            let known = self.topics.iter().find(|(_, topic)| matches!(topic, Topic::Known { .. }));
            if let Some(name) = known.map(|(name, _)| Arc::clone(name)) {
                self.topics.remove(&name);
            }
        }
    }
}

impl<W: HasDeadline> TopicTable<W> {
    /// When somebody who waits has to be answered, if anybody waits.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        if self.waiting_count == 0 {
            return None;
        }
        let first = |topic: &Topic<W>| match topic {
            Topic::Pending(asked) => asked.waiting.iter().map(HasDeadline::deadline).min(),
            Topic::Known { .. } | Topic::Unknown { .. } => None,
        };
        self.topics.values().filter_map(first).min()
    }

    /// Takes out those whose time has come.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<W> {
        let mut expired = Vec::new();
        for topic in self.topics.values_mut() {
            if let Topic::Pending(asked) = topic {
                expired.extend(asked.waiting.extract_if(.., |waiting| waiting.deadline() <= now));
            }
        }
        self.waiting_count -= expired.len();
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl HasDeadline for (u32, Instant) {
        fn deadline(&self) -> Instant {
            self.1
        }
    }

    #[test]
    fn who_cannot_wait_longer_leaves_and_the_others_stay() {
        let start = Instant::now();
        let mut topics: TopicTable<(u32, Instant)> = TopicTable::new(3, Duration::from_secs(4));
        assert_eq!((topics.next_deadline(), topics.expire(start)), (None, vec![]));
        for (number, topic, after) in [(1, "t", 20), (2, "t", 10), (3, "u", 30)] {
            topics.wait(&topic.into(), (number, at(start, after)), start).expect("there is room");
        }
        assert_eq!(topics.next_deadline(), Some(at(start, 10)));
        assert_eq!(topics.expire(at(start, 10)), [(2, at(start, 10))]);
        topics.wait(&"v".into(), (4, at(start, 40)), start).expect("there is room again");
        let verdict = topics.answer("t", LookupAnswer::Exists(1), start);
        assert_eq!(verdict, Some((LookupResult::Exists(1), vec![(1, at(start, 20))])));
    }

    #[test]
    fn made_up_names_give_way_to_new_topics_and_known_ones() {
        let start = Instant::now();
        let mut topics = TopicTable::new(100_000, Duration::from_secs(4));
        topics.wait(&"real".into(), 0, start).expect("there is room");
        topics.answer("real", LookupAnswer::Exists(1), start).expect("a verdict");
        for number in 0..MAX_TOPICS + 50 {
            let name: Arc<str> = format!("t{number}").into();
            topics.wait(&name, 1, start).expect("who was missed takes no place of who was not asked for");
            let at_once = topics.answer(&name, LookupAnswer::DoesNotExist, start);
            assert_eq!(at_once.is_some(), number >= MAX_MISSED, "{number}");
        }
        assert!(topics.topics.len() <= MAX_TOPICS, "{}", topics.topics.len());
        assert_eq!(topics.known("real", None, start), Known::Yes(1));
        for number in 0..MAX_LOOKUPS {
            topics.wait(&format!("u{number}").into(), 2, start).expect("there is room");
        }
        assert_eq!(topics.wait(&"more".into(), 3, start), Err(3));
        for number in 0..MAX_MISSED {
            topics.answer(&format!("t{number}"), LookupAnswer::DoesNotExist, at(start, 1_000)).expect("a verdict");
        }
        assert_eq!((topics.asked_count, topics.missed_count, topics.waiting_count), (MAX_LOOKUPS, 0, MAX_LOOKUPS));
    }

    fn at(start: Instant, milliseconds: u64) -> Instant {
        start + Duration::from_millis(milliseconds)
    }

    fn table() -> (TopicTable<u32>, Arc<str>, Instant) {
        (TopicTable::new(3, Duration::from_secs(4)), Arc::from("t"), Instant::now())
    }

    #[test]
    fn a_known_topic_that_is_doubted_is_asked_for_and_called_unknown_only_after_the_whole_time() {
        let (mut topics, name, start) = table();
        topics.doubt("t", start);
        assert!(topics.due(start).is_empty(), "what is not known cannot be doubted");
        topics.wait(&name, 1, start).expect("there is room");
        topics.answer("t", LookupAnswer::Exists(4), start).expect("a verdict");

        topics.doubt("t", start);
        assert_eq!(topics.known("t", None, start), Known::NeedsLookup);
        assert_eq!(topics.due(start), [(Arc::clone(&name), true)]);
        topics.wait(&name, 2, start).expect("there is room");
        assert_eq!(
            topics.answer("t", LookupAnswer::DoesNotExist, at(start, 3_000)),
            None,
            "the broker may have started just now"
        );
        let again = topics.answer("t", LookupAnswer::Exists(4), at(start, 3_500));
        assert_eq!(again, Some((LookupResult::Exists(4), vec![2])));

        topics.doubt("t", at(start, 4_000));
        let gone = topics.answer("t", LookupAnswer::DoesNotExist, at(start, 8_000));
        assert_eq!(gone, Some((LookupResult::Unknown, vec![])));
        assert_eq!(topics.known("t", None, at(start, 8_001)), Known::No);
    }

    #[test]
    fn a_known_topic_is_looked_at_now_and_then_and_grows() {
        let (mut topics, name, start) = table();
        let long = Duration::from_secs(10);
        topics.wait(&name, 1, start).expect("there is room");
        assert!(topics.not_seen_for(Duration::ZERO, 9, start).is_empty(), "it is not known yet");
        topics.answer("t", LookupAnswer::Exists(2), start).expect("a verdict");
        assert!(topics.not_seen_for(long, 9, at(start, 9_999)).is_empty());
        assert_eq!(topics.not_seen_for(long, 9, at(start, 10_000)), [Arc::clone(&name)]);
        assert!(topics.not_seen_for(long, 0, at(start, 10_000)).is_empty());
        topics.seen("t", None, at(start, 10_000));
        assert_eq!(topics.known("t", None, at(start, 10_000)), Known::Yes(2));
        topics.seen("t", Some(5), at(start, 20_000));
        assert_eq!(topics.known("t", Some(4), at(start, 20_001)), Known::Yes(5));
        assert!(topics.not_seen_for(long, 9, at(start, 29_999)).is_empty());
    }

    #[test]
    fn who_waits_gets_the_topic_in_order_when_it_exists() {
        let (mut topics, name, start) = table();
        assert_eq!(topics.known("t", None, start), Known::NeedsLookup);
        topics.wait(&name, 1, start).expect("there is room");
        topics.wait(&name, 2, start).expect("there is room");
        assert_eq!(topics.due(start), [(Arc::clone(&name), false)]);
        assert_eq!(topics.answer("t", LookupAnswer::NotYet, start), None);
        assert_eq!(topics.due(start), []);
        assert_eq!(topics.next_due(), Some(at(start, 50)));
        let verdict = topics.answer("t", LookupAnswer::Exists(8), at(start, 60));
        assert_eq!(verdict, Some((LookupResult::Exists(8), vec![1, 2])));
        assert_eq!(topics.known("t", Some(7), at(start, 100)), Known::Yes(8));
    }

    #[test]
    fn a_topic_is_unknown_only_when_it_stays_so_and_for_a_while() {
        let (mut topics, name, start) = table();
        topics.wait(&name, 1, start).expect("there is room");
        for after in [0, 50, 150, 999] {
            assert_eq!(topics.answer("t", LookupAnswer::DoesNotExist, at(start, after)), None, "after {after} ms");
        }
        assert_eq!(
            topics.answer("t", LookupAnswer::DoesNotExist, at(start, 1_000)),
            Some((LookupResult::Unknown, vec![1]))
        );
        assert_eq!(topics.known("t", None, at(start, 3_999)), Known::No);
        assert_eq!(topics.known("t", None, at(start, 4_000)), Known::NeedsLookup);
    }

    #[test]
    fn a_partition_that_was_missing_is_asked_for_again_later() {
        let (mut topics, name, start) = table();
        topics.wait(&name, 1, start).expect("there is room");
        topics.answer("t", LookupAnswer::Exists(2), start).expect("that is a verdict");
        assert_eq!(topics.known("t", Some(2), at(start, 3_000)), Known::Yes(2));
        assert_eq!(topics.known("t", Some(2), at(start, 3_001)), Known::NeedsLookup);
        assert_eq!(topics.known("t", Some(1), at(start, 3_001)), Known::Yes(2));
    }

    #[test]
    fn no_more_wait_than_allowed_and_an_unreachable_broker_ends_the_wait() {
        let (mut topics, name, start) = table();
        for waiting in 1..=3 {
            topics.wait(&name, waiting, start).expect("there is room");
        }
        assert_eq!(topics.wait(&name, 4, start), Err(4));
        let verdict = topics.answer("t", LookupAnswer::Unreachable("down".into()), start);
        assert_eq!(verdict, Some((LookupResult::Unreachable("down".into()), vec![1, 2, 3])));
        assert_eq!(topics.known("t", None, start), Known::NeedsLookup);
        topics.wait(&name, 5, start).expect("there is room again");
        assert_eq!(topics.drain(), [5]);
    }

    #[test]
    fn the_table_does_not_grow_with_the_names_that_were_tried() {
        let (mut topics, _, start) = table();
        for number in 0..MAX_TOPICS + 50 {
            let name: Arc<str> = format!("t{number}").into();
            topics.wait(&name, 1, start).expect("there is room");
            topics.answer(&name, LookupAnswer::Exists(1), start).expect("that is a verdict");
        }
        assert_eq!(topics.topics.len(), MAX_TOPICS);
    }
}
