//! Tests of the log reader with a broker in memory.

use super::*;
use crate::broker::Offset;
use crate::broker::in_memory::MemoryBroker;
use crate::locks::lock;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

fn at(topic: &str, partition: PartitionId) -> TopicPartition {
    TopicPartition { topic: topic.into(), partition }
}

fn hosts(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn counted(broker: &MemoryBroker) -> (LogReader, Arc<AtomicUsize>) {
    let (broker, count) = (broker.clone(), Arc::new(AtomicUsize::new(0)));
    let counter = Arc::clone(&count);
    let connect = move |_: &[String]| {
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(broker.log_ends()) as Box<dyn LogEnds>)
    };
    (LogReader::new(Box::new(connect)), count)
}

fn topics(names: &[&str]) -> BTreeSet<Arc<str>> {
    names.iter().map(|name| Arc::from(*name)).collect()
}

fn read(reader: &mut LogReader, wanted: &[TopicPartition], now: Instant) -> Vec<LogReading> {
    let names: BTreeSet<_> = wanted.iter().map(|at| Arc::clone(&at.topic)).collect();
    reader.look_up(&hosts(&["b:1"]), &names, now).unwrap();
    reader.ranges(wanted, now)
}

fn range(oldest: Offset, newest: Offset) -> LogReading {
    LogReading::Range(LogRange { oldest, newest, stable: newest })
}

#[test]
fn an_absence_counts_after_two_answers_ten_seconds_apart() {
    let broker = MemoryBroker::new();
    broker.create_topic("t", 2);
    broker.put("t", 0, None, b"x");
    broker.set_broken(&at("t", 1), Some("no leader"));
    let (mut reader, _) = counted(&broker);
    let wanted = [at("t", 0), at("t", 1), at("t", 2), at("old", 0)];
    let start = Instant::now();
    let unknown = |text: &str| LogReading::Unknown(UnknownReason::Failed(text.into()));
    let broken = unknown("t/1: no leader");
    for second in [0, 1, 9] {
        let readings = read(&mut reader, &wanted, start + Duration::from_secs(second));
        let expected = [
            range(0, 1),
            broken.clone(),
            unknown("partition t/2 does not exist, by one answer so far"),
            unknown("topic old does not exist, by one answer so far"),
        ];
        assert_eq!(readings, expected, "after {second} s");
    }
    // A broker that does not know the topic for a moment makes no topic gone.
    let readings = read(&mut reader, &wanted, start + Duration::from_secs(11));
    assert_eq!(readings, [range(0, 1), broken, LogReading::Gone, LogReading::Gone]);
    broker.create_topic("old", 1);
    let readings = read(&mut reader, &wanted, start + Duration::from_secs(22));
    assert_eq!(readings[3], range(0, 0));
    assert_eq!(reader.partitions("old").collect::<Vec<_>>(), [0]);
}

#[test]
fn another_answer_in_between_begins_the_count_of_an_absence_again() {
    let broker = MemoryBroker::new();
    let (mut reader, _) = counted(&broker);
    let start = Instant::now();
    let is_gone = |reader: &mut LogReader, second| {
        read(reader, &[at("t", 0)], start + Duration::from_secs(second)) == [LogReading::Gone]
    };
    assert!(!is_gone(&mut reader, 0));
    broker.create_topic("t", 1);
    assert!(!is_gone(&mut reader, 5));
    broker.recreate_topic("other", 1);
    let (mut emptied, _) = counted(&MemoryBroker::new());
    std::mem::swap(&mut reader.client, &mut emptied.client);
    assert!(!is_gone(&mut reader, 16), "the first answer after the topic was seen");
    assert!(!is_gone(&mut reader, 20));
    assert!(is_gone(&mut reader, 27));
}

#[test]
fn a_client_is_kept_until_no_broker_responds_or_all_addresses_change() {
    let broker = MemoryBroker::new();
    broker.create_topic("t", 1);
    let (mut reader, connections) = counted(&broker);
    let (start, wanted) = (Instant::now(), topics(&["t"]));
    let mut look_up = |addresses: &[&str], second: u64| {
        let outcome = reader.look_up(&hosts(addresses), &wanted, start + Duration::from_secs(second));
        (outcome.is_ok(), connections.load(Ordering::Relaxed))
    };
    assert_eq!(look_up(&[], 0), (false, 0), "no broker is registered");
    assert_eq!(look_up(&["b:1", "a:1"], 1), (true, 1));
    assert_eq!(look_up(&["a:1"], 20), (true, 1));
    broker.set_reachable(false);
    assert_eq!(look_up(&["a:1"], 40), (false, 1));
    broker.set_reachable(true);
    assert_eq!(look_up(&["a:1"], 41), (true, 2));
    assert_eq!(look_up(&["c:1"], 60), (true, 3));
    let mut refused = LogReader::new(Box::new(|_| Err("no route".into())));
    assert_eq!(refused.look_up(&hosts(&["b:1"]), &wanted, start), Err("no route".into()));
    assert_eq!(refused.look_up(&hosts(&["b:1"]), &BTreeSet::new(), start), Ok(()));
}

/// Two leaders, of which one may be silent; notes which partitions are asked for.
#[derive(Clone, Default)]
struct TwoLeaders {
    is_silent: Arc<Mutex<bool>>,
    asked: Arc<Mutex<Vec<Vec<PartitionId>>>>,
}

impl LogEnds for TwoLeaders {
    fn partitions(&mut self, _: &str) -> Result<Vec<PartitionInfo>, MetadataError> {
        Ok((0..4).map(|partition| PartitionInfo { partition, leader: Some(partition % 2) }).collect())
    }

    fn newest(&mut self, _: &[TopicPartition]) -> Vec<Result<Offset, MetadataError>> {
        Vec::new()
    }

    fn range(&mut self, at: &TopicPartition) -> Result<LogRange, MetadataError> {
        let is_silent = *lock(&self.is_silent);
        match at.partition % 2 == 1 && is_silent {
            true => Err(MetadataError::Unreachable("no response".into())),
            false => Ok(LogRange { oldest: 0, newest: 7, stable: 7 }),
        }
    }

    fn range_of_all(&mut self, wanted: &[TopicPartition], _: Instant) -> Vec<Result<LogRange, MetadataError>> {
        let numbers = wanted.iter().map(|at| at.partition).collect();
        lock(&self.asked).push(numbers);
        wanted.iter().map(|at| self.range(at)).collect()
    }
}

#[test]
fn a_silent_leader_costs_its_own_partitions_and_is_asked_rarely_and_last() {
    let leaders = TwoLeaders::default();
    let source = leaders.clone();
    let mut reader = LogReader::new(Box::new(move |_| Ok(Box::new(source.clone()))));
    let wanted: Vec<_> = (0..4).map(|partition| at("t", partition)).collect();
    let start = Instant::now();
    let mut read_at = |second: u64| {
        let readings = read(&mut reader, &wanted, start + Duration::from_secs(second));
        let asked = std::mem::take(&mut *lock(&leaders.asked));
        let silent = LogReading::Unknown(UnknownReason::LeaderSilent { broker: 1 });
        let is_silent: Vec<_> = readings.iter().map(|reading| *reading == silent).collect();
        assert!(readings.iter().zip(&is_silent).all(|(reading, silent)| *silent || *reading == range(0, 7)));
        (is_silent, asked)
    };
    let set_silent = |is_silent| *lock(&leaders.is_silent) = is_silent;
    set_silent(true);
    let half = vec![false, true, false, true];
    assert_eq!(read_at(0), (half.clone(), vec![vec![0, 1, 2, 3]]));
    assert_eq!(read_at(1), (half.clone(), vec![vec![0, 2]]));
    assert_eq!(read_at(6), (half.clone(), vec![vec![0, 2], vec![1, 3]]));
    set_silent(false);
    assert_eq!(read_at(7), (half, vec![vec![0, 2]]));
    assert_eq!(read_at(12), (vec![false; 4], vec![vec![0, 2], vec![1, 3]]));
    assert_eq!(read_at(13), (vec![false; 4], vec![vec![0, 1, 2, 3]]));
}

/// Notes how many topics are looked up together; after `responses` look-ups it is silent.
struct CountedTopics {
    counts: Arc<Mutex<Vec<usize>>>,
    responses: usize,
}

impl LogEnds for CountedTopics {
    fn partitions(&mut self, _: &str) -> Result<Vec<PartitionInfo>, MetadataError> {
        Ok(vec![PartitionInfo { partition: 0, leader: Some(1) }])
    }

    fn newest(&mut self, _: &[TopicPartition]) -> Vec<Result<Offset, MetadataError>> {
        Vec::new()
    }

    fn range(&mut self, _: &TopicPartition) -> Result<LogRange, MetadataError> {
        Ok(LogRange { oldest: 0, newest: 7, stable: 7 })
    }

    fn topics(&mut self, topics: &[Arc<str>], _: Instant) -> Vec<Result<TopicInfo, MetadataError>> {
        let mut counts = lock(&self.counts);
        counts.push(topics.len());
        let is_silent = self.responses < counts.len();
        let silence = || Err(MetadataError::Unreachable("no response".into()));
        let info = || Ok(TopicInfo { id: None, partitions: vec![PartitionInfo { partition: 0, leader: Some(1) }] });
        topics.iter().map(|_| if is_silent { silence() } else { info() }).collect()
    }
}

#[test]
fn many_topics_are_looked_up_in_parts_and_what_is_known_stays_if_a_part_is_lost() {
    let names: BTreeSet<Arc<str>> = (0..600).map(|number| Arc::from(format!("t{number:03}"))).collect();
    for (responses, known) in [(9, 600), (2, 500), (1, 250)] {
        let parts = &[250, 250, 100][..(responses + 1).min(3)];
        let counts = Arc::<Mutex<Vec<usize>>>::default();
        let counter = Arc::clone(&counts);
        let mut reader = LogReader::new(Box::new(move |_| {
            Ok(Box::new(CountedTopics { counts: Arc::clone(&counter), responses }) as Box<dyn LogEnds>)
        }));
        assert_eq!(reader.look_up(&hosts(&["b:1"]), &names, Instant::now()), Ok(()));
        assert_eq!((&**lock(&counts), reader.request_count), (parts, parts.len() as u64));
        assert_eq!(names.iter().filter(|name| reader.partitions(name).count() == 1).count(), known, "{responses}");
    }
    let mut silent = LogReader::new(Box::new(|_| {
        Ok(Box::new(CountedTopics { counts: Arc::default(), responses: 0 }) as Box<dyn LogEnds>)
    }));
    assert_eq!(silent.look_up(&hosts(&["b:1"]), &names, Instant::now()), Err("no response".into()));
    assert_eq!(silent.request_count, 1, "the other parts are not waited for");
}

/// A line that carries one response in the time of a look-up, and the ends of two logs in that of a request.
struct SlowLine(Option<Instant>);

impl LogEnds for SlowLine {
    fn partitions(&mut self, _: &str) -> Result<Vec<PartitionInfo>, MetadataError> {
        Ok((0..6).map(|partition| PartitionInfo { partition, leader: Some(1) }).collect())
    }

    fn newest(&mut self, _: &[TopicPartition]) -> Vec<Result<Offset, MetadataError>> {
        Vec::new()
    }

    fn range(&mut self, _: &TopicPartition) -> Result<LogRange, MetadataError> {
        Ok(LogRange { oldest: 0, newest: 7, stable: 7 })
    }

    fn topics(&mut self, topics: &[Arc<str>], deadline: Instant) -> Vec<Result<TopicInfo, MetadataError>> {
        let is_late = self.0.replace(deadline) == Some(deadline);
        let mut info = |topic: &Arc<str>| Ok(TopicInfo { id: None, partitions: self.partitions(topic)? });
        topics.iter().map(|topic| if is_late { Err(late()) } else { info(topic) }).collect()
    }

    fn range_of_all(&mut self, wanted: &[TopicPartition], _: Instant) -> Vec<Result<LogRange, MetadataError>> {
        wanted.iter().enumerate().map(|(index, at)| if index < 2 { self.range(at) } else { Err(late()) }).collect()
    }
}

fn late() -> MetadataError {
    MetadataError::Unreachable("no response".into())
}

#[test]
fn a_slow_line_starves_neither_a_topic_nor_a_log() {
    for count in [400, 600] {
        let names: BTreeSet<Arc<str>> = (0..count).map(|number| Arc::from(format!("t{number:03}"))).collect();
        let mut reader = LogReader::new(Box::new(|_| Ok(Box::new(SlowLine(None)))));
        let start = Instant::now();
        for poll in 0..12 {
            let now = start + Duration::from_secs(5 * poll);
            assert_eq!(reader.look_up(&hosts(&["b:1"]), &names, now), Ok(()));
        }
        let unknown: Vec<_> = names.iter().filter(|name| reader.partitions(name).count() == 0).collect();
        assert!(unknown.is_empty(), "{count}: {unknown:?}");
    }
    let mut reader = LogReader::new(Box::new(|_| Ok(Box::new(SlowLine(None)))));
    let wanted: Vec<_> = (0..6).map(|partition| at("t", partition)).collect();
    let mut times = vec![0; 6];
    for second in 0..9 {
        let readings = read(&mut reader, &wanted, Instant::now() + Duration::from_secs(second));
        for (times, reading) in times.iter_mut().zip(readings) {
            *times += u32::from(reading == range(0, 7));
        }
    }
    assert_eq!(times, [3; 6], "each in its turn");
    assert!(reader.silent.is_empty(), "the leader responds");
}

#[test]
fn a_partition_that_was_added_is_not_gone_because_an_older_answer_lacks_it() {
    let broker = MemoryBroker::new();
    broker.create_topic("t", 2);
    let (mut reader, _) = counted(&broker);
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    for second in [0, 30, 60] {
        assert_eq!(read(&mut reader, &[at("t", 1)], after(second)), [range(0, 0)]);
    }
    broker.create_topic("t", 3);
    let readings = reader.ranges(&[at("t", 2)], after(60));
    assert!(matches!(&readings[..], [LogReading::Unknown(UnknownReason::Failed(_))]), "{readings:?}");
    assert_eq!(read(&mut reader, &[at("t", 2)], after(61)), [range(0, 0)], "it is looked up at once");
    for (second, is_gone) in [(65, false), (74, false), (76, true)] {
        let readings = read(&mut reader, &[at("t", 3)], after(second));
        assert_eq!(readings == [LogReading::Gone], is_gone, "after {second} s");
    }
}
