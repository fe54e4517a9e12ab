//! Tests of a run over a broker and a ZooKeeper in memory.

use super::position::KeeperPositions;
use super::*;
use crate::broker::in_memory::MemoryBroker;
use crate::broker::{AppendFailure, Header, Record, Stored};
use crate::keeper::in_memory::{InMemoryEnsemble, InMemoryKeeper};

struct Rig {
    broker: MemoryBroker,
    keeper: Arc<InMemoryKeeper>,
}

impl Rig {
    fn new() -> Rig {
        let broker = MemoryBroker::new();
        broker.create_topic("t", 3);
        broker.create_topic("dead", 2);
        Rig { broker, keeper: InMemoryEnsemble::new().connect(Duration::from_secs(9)) }
    }

    /// Appends a dead letter of `module` to the dead-letter topic.
    fn put_letter(&self, partition: i32, module: &str, original: i32, key: Option<&[u8]>, value: Option<&[u8]>) {
        let fields = [
            ("mine", b"\0\xff".to_vec()),
            ("X-Dead-Letter-Reason", b"outcome".to_vec()),
            ("X-Dead-Letter-Status", b"404".to_vec()),
            ("X-Dead-Letter-Module", module.into()),
            ("X-Dead-Letter-Topic", b"t".to_vec()),
            ("X-Dead-Letter-Partition", original.to_string().into()),
            ("X-Dead-Letter-Offset", b"7".to_vec()),
        ];
        let headers = fields.map(|(name, value)| Header { name: name.to_owned(), value: Some(value) }).to_vec();
        let record = Record {
            topic: "dead".into(),
            partition: Some(partition),
            key: key.map(Into::into),
            value: value.map(Into::into),
            headers,
            timestamp_ms: None,
        };
        let producer = self.broker.producer::<Appended>();
        producer.append(record, Acks::All, Box::new(|result| assert!(result.is_ok())));
    }

    fn run(&self, change: impl FnOnce(&mut Replay<'_>)) -> (Result<Counts, String>, String) {
        let mut output = Vec::new();
        let mut replay = Replay {
            module: "m",
            topic: "dead".into(),
            is_dry_run: false,
            is_from_oldest: false,
            fetcher: Box::new(self.broker.fetcher()),
            log_ends: Box::new(self.broker.log_ends()),
            producer: Arc::new(self.broker.producer()),
            positions: Box::new(KeeperPositions { keeper: &*self.keeper, module: "m" }),
            output: &mut output,
        };
        change(&mut replay);
        let result = replay.run();
        drop(replay);
        (result, String::from_utf8(output).unwrap())
    }

    /// Returns the values of the messages in a partition of `t`.
    fn values(&self, partition: i32) -> Vec<Option<Vec<u8>>> {
        self.broker.messages("t", partition).into_iter().map(|message| message.value).collect()
    }
}

fn counts(replayed: usize, of_others: usize, no_letters: usize) -> Result<Counts, String> {
    Ok(Counts { replayed, of_others, no_letters })
}

#[test]
fn the_letters_of_the_module_return_to_their_partitions_exactly_once() {
    let rig = Rig::new();
    rig.put_letter(0, "m", 2, Some(b"k\xff"), Some(b"\0v"));
    rig.put_letter(0, "other", 2, Some(b"o"), Some(b"o"));
    rig.broker.put("dead", 0, Some(b"k"), b"no letter");
    rig.put_letter(1, "m", 0, None, None);
    let (result, text) = rig.run(|replay| replay.is_dry_run = true);
    assert_eq!(result, counts(2, 1, 1), "{text}");
    assert!(
        text.contains("dead/0 offset 0 -> t/2, was offset 7, datalen=2, reason=outcome, status=404, key=k\\xff"),
        "{text}"
    );
    assert!(text.contains("2 dead letters of module m would be replayed; 1 of other modules and 1 messages"), "{text}");
    assert_eq!((rig.values(0).len(), rig.values(2).len()), (0, 0), "a dry run appends nothing");

    assert_eq!(rig.run(|_| {}).0, counts(2, 1, 1));
    let message = &rig.broker.messages("t", 2)[0];
    assert_eq!((message.key.as_deref(), message.value.as_deref()), (Some(&b"k\xff"[..]), Some(&b"\0v"[..])));
    assert_eq!(message.headers, [Header { name: "mine".into(), value: Some(b"\0\xff".into()) }]);
    let tombstone = &rig.broker.messages("t", 0)[0];
    assert_eq!((&tombstone.key, &tombstone.value), (&None, &None));

    assert_eq!(rig.run(|_| {}).0, counts(0, 0, 0), "a second run has nothing to do");
    rig.put_letter(1, "m", 0, None, Some(b"new"));
    assert_eq!(rig.run(|_| {}).0, counts(1, 0, 0));
    assert_eq!(rig.values(0), [None, Some(b"new".to_vec())]);
    assert_eq!(rig.run(|replay| replay.is_from_oldest = true).0, counts(3, 1, 1));
}

#[test]
fn a_run_that_fails_continues_at_the_letter_that_failed() {
    let rig = Rig::new();
    (0..5u8).for_each(|number| rig.put_letter(0, "m", 1, Some(b"k"), Some(&[number])));
    rig.broker.fail_next(AppendFailure::TimedOut, Stored::Unknown);
    let (result, _) = rig.run(|replay| replay.is_dry_run = false);
    assert_eq!(
        result.unwrap_err(),
        "dead/0: the dead letter at offset 0 cannot be replayed: TimedOut was set by the test"
    );
    // The letters behind the failed one were appended as well, so they come twice: repeated, not lost.
    assert_eq!(rig.run(|_| {}).0, counts(5, 0, 0));
    let values: Vec<u8> = rig.values(1).into_iter().map(|value| value.unwrap()[0]).collect();
    assert_eq!(values, [1, 2, 3, 4, 0, 1, 2, 3, 4]);
}

#[test]
fn a_partition_that_is_gone_is_named() {
    let rig = Rig::new();
    rig.put_letter(1, "m", 9, None, Some(b"v"));
    let error = rig.run(|_| {}).0.unwrap_err();
    assert!(
        error.starts_with("dead/1: the dead letter at offset 0 cannot be replayed: topic t has no partition 9"),
        "{error}"
    );
    rig.broker.create_topic("t", 10);
    assert_eq!(rig.run(|_| {}).0, counts(1, 0, 0));
}

#[test]
fn letters_that_kafka_deleted_and_a_recreated_topic_are_named() {
    let rig = Rig::new();
    (0..3u8).for_each(|number| rig.put_letter(0, "m", 1, None, Some(&[number])));
    assert_eq!(rig.run(|_| {}).0, counts(3, 0, 0));
    rig.broker.recreate_topic("dead", 2);
    (0..4u8).for_each(|number| rig.put_letter(0, "m", 1, None, Some(&[10 + number])));
    let (result, text) = rig.run(|_| {});
    assert_eq!(result, counts(4, 0, 0));
    assert!(text.contains("dead/0: the topic was created again, all of it is replayed"), "{text}");
    // Another topic with as many letters as were replayed.
    rig.broker.recreate_topic("dead", 2);
    (0..4u8).for_each(|number| rig.put_letter(0, "m", 1, None, Some(&[20 + number])));
    let (result, text) = rig.run(|_| {});
    assert_eq!(result, counts(4, 0, 0), "{text}");
    assert_eq!(rig.run(|_| {}).0, counts(0, 0, 0));
    rig.put_letter(0, "m", 1, None, Some(b"deleted"));
    rig.put_letter(0, "m", 1, None, Some(b"kept"));
    rig.broker.trim(&TopicPartition { topic: "dead".into(), partition: 0 }, 5);
    assert_eq!(rig.run(|_| {}).0, counts(1, 0, 0));
    assert_eq!(rig.values(1).last(), Some(&Some(b"kept".to_vec())));
}
