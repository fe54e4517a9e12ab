use super::*;
use crate::kafka::producer::accumulator::Sending;
use crate::kafka::producer::outcome::{BatchResult, QueuedMessage, Stored};
use crate::kafka::producer::quota::Quota;
use crate::kafka::record_batch::RecordView;

struct Message {
    topic: Arc<str>,
    partition: i32,
    deadline: Instant,
}

impl QueuedMessage for Message {
    fn cost_bytes(&self) -> usize {
        1
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl ProducerMessage for Message {
    fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    fn partition(&self) -> i32 {
        self.partition
    }

    fn with_record(&self, _encode: &mut dyn FnMut(&RecordView)) {}

    fn end(self, _outcome: Outcome, _reason: &str) {}
}

/// A level with a topic of one partition, led by broker 1.
fn level(acks: AcksLevel) -> Level<Message> {
    let limits = Limits {
        max_batch_bytes: 100,
        max_request_bytes: 1000,
        retry_backoff: Duration::from_millis(10),
        max_retry_backoff: 8 * Duration::from_millis(10),
        is_idempotent: false,
    };
    let level = Level::new(acks, limits, 10);
    assert!(level.lock().set_leaders(&"t".into(), &[Some(1)]).is_empty());
    level
}

fn append(level: &mut LevelState<Message>, deadline: Instant) -> AfterAppend<Message> {
    let index = level.index_of("t", 0).unwrap();
    level.append(index, Message { topic: "t".into(), partition: 0, deadline })
}

/// Takes a request; returns its sendings with the bytes of retries.
fn take(level: &mut LevelState<Message>, broker: BrokerId, now: Instant) -> Vec<(Sending, Option<Vec<u8>>)> {
    let mut batches = Vec::new();
    level.take(broker, now, |batch, topic, partition, bytes| {
        assert_eq!((&**topic, partition), ("t", 0));
        batches.push((batch.sending, bytes));
    });
    batches
}

/// Takes a batch and reports that it may be stored.
fn lose_response(level: &mut LevelState<Message>, now: Instant) -> Option<Vec<u8>> {
    let (sending, bytes) = take(level, 1, now).pop().unwrap();
    level.accumulator.complete(sending, BatchResult::MaybeStored, now, &mut |_| panic!("no message ends"));
    assert_eq!(level.retain(sending.partition, vec![7]), None);
    bytes
}

#[test]
fn the_bytes_of_a_retry_are_kept_until_its_messages_have_ended() {
    let now = Instant::now();
    let later = now + Duration::from_secs(60);
    for case in 0..4 {
        let level = level(AcksLevel::Leader);
        let mut level = level.lock();
        append(&mut level, later);
        assert_eq!(lose_response(&mut level, now), None);
        assert_eq!(lose_response(&mut level, now + Duration::from_secs(1)), Some(vec![7]));
        match case {
            0 => {
                let (sending, bytes) = take(&mut level, 1, later - Duration::from_secs(1)).pop().unwrap();
                level.accumulator.complete(sending, BatchResult::Stored(Some(0)), later, &mut |_| {});
                let bytes = bytes.unwrap();
                assert_eq!(level.retain(sending.partition, bytes), Some(vec![7]));
            }
            1 => assert_eq!(level.expire(later).len(), 1),
            2 => assert_eq!(level.drain_topic("t", 0).len(), 1),
            _ => assert_eq!(level.drain_all().len(), 1),
        }
        assert!(level.retained.is_empty(), "{case}");
    }
}

#[test]
fn a_partition_that_waits_for_a_producer_id_wakes_the_sender_to_its_leader() {
    let now = Instant::now();
    let level = level(AcksLevel::All);
    let mut level = level.lock();
    assert!(matches!(append(&mut level, now), AfterAppend::Start(1)));
    assert!(take(&mut level, 1, now).is_empty());
    assert!(level.awaits_producer_id(1));
    // The leader changes before there is an id.
    assert_eq!(level.set_leaders(&"t".into(), &[Some(2)]), [2]);
    assert!(level.awaits_producer_id(2) && !level.awaits_producer_id(1));
    // The cluster refuses an id: later messages are not forgotten either.
    assert!(level.end_refused(now).is_none());
    assert!(level.refuse_producer_id(31, "denied", now) && !level.refuse_producer_id(31, "denied", now));
    let ended = level.end_refused(now).unwrap();
    assert!(matches!(&ended[..], [(_, Outcome::Rejected(31, Stored::No), Some(reason))] if **reason == *"denied"));
    assert!(!level.awaits_producer_id(2));
    assert!(matches!(append(&mut level, now), AfterAppend::Start(2)));
    assert!(level.awaits_producer_id(2));
    assert!(level.end_refused(now + MIN_REFUSAL_TIME).is_none());
    assert_eq!(level.set_producer_id(5, 0), [2]);
    assert_eq!(take(&mut level, 2, now).len(), 1);
}

#[test]
fn of_two_producer_ids_the_first_counts() {
    let now = Instant::now();
    let level = level(AcksLevel::All);
    let mut level = level.lock();
    append(&mut level, now);
    assert!(take(&mut level, 1, now).is_empty());
    assert_eq!(level.set_producer_id(5, 0), [1]);
    assert!(level.set_producer_id(6, 0).is_empty());
    level.take(1, now, |batch, _, _, _| assert_eq!((batch.producer.producer_id, batch.producer.epoch), (5, 0)));
}

#[test]
fn a_request_to_a_former_leader_is_limited_also_after_a_time_without_a_leader() {
    let now = Instant::now();
    let level = level(AcksLevel::Leader);
    let mut level = level.lock();
    append(&mut level, now + Duration::from_secs(60));
    let (sending, _) = take(&mut level, 1, now).pop().unwrap();
    level.begin(1, Activity::Producing, now);
    level.next_look = now + Duration::from_secs(60);
    level.set_leaders(&"t".into(), &[None]);
    assert_eq!(level.next_look, now + Duration::from_secs(60), "no broker is waiting for the partition");
    level.set_leaders(&"t".into(), &[Some(2)]);
    assert!(level.next_look <= now + Duration::from_secs(1), "the request has a limit");
    // A third leader: the limit concerns the broker that has the request.
    level.senders.insert(2, SenderHandle::default());
    level.begin(2, Activity::Producing, now + Duration::from_secs(5));
    level.next_look = now + Duration::from_secs(60);
    level.set_leaders(&"t".into(), &[Some(3)]);
    assert!(level.next_look <= now + Duration::from_secs(1));
    level.accumulator.complete(sending, BatchResult::NotStored, now, &mut |_| {});
    assert_eq!(take(&mut level, 3, now + Duration::from_secs(1)).len(), 1);
}

#[test]
fn a_refused_producer_id_is_requested_again_after_a_pause_that_doubles_to_30_seconds() {
    let (start, mut now) = (Instant::now(), Instant::now());
    let level = level(AcksLevel::All);
    let mut level = level.lock();
    let mut pauses = Vec::new();
    for number in 0..7 {
        assert_eq!(level.refuse_producer_id(31, "denied", now), number == 0);
        let refused_at = now;
        // A second sender is refused at the same time.
        assert!(!level.refuse_producer_id(31, "denied", now));
        while level.end_refused(now).is_some() {
            now += Duration::from_millis(500);
        }
        pauses.push((now - refused_at).as_secs());
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    assert!(level.refuse_producer_id(35, "too old", now), "another reason");
    level.set_producer_id(1, 0);
    assert!(level.end_refused(start).is_none());
    assert!(level.refuse_producer_id(31, "denied", now));
    assert!(level.end_refused(now + Duration::from_secs(1)).is_none(), "the pause begins again");
}

#[test]
fn messages_without_a_key_stay_together_while_no_broker_can_take_them() {
    let now = Instant::now();
    let level = level(AcksLevel::Leader);
    let mut level = level.lock();
    let leaders: Vec<_> = (0..100).map(|number| Some(1 + number % 2)).collect();
    level.set_leaders(&"keyless".into(), &leaders);
    for broker in [1, 2] {
        let sender = level.senders.entry(broker).or_default();
        sender.quota = Some(Quota::throttled(now, Duration::from_secs(60), 1_000, 0));
    }
    let deadline = |micros| now + Duration::from_secs(30) + Duration::from_micros(micros);
    let mut partitions: Vec<_> =
        (0..100).map(|step| level.sticky_partition("keyless", 100, deadline(step * 40))).collect();
    partitions.dedup();
    assert_eq!(partitions.len(), 1, "{partitions:?}");
    // A broker that works is found with the next choice.
    level.senders.remove(&2);
    for step in 0..20 {
        assert_eq!(level.sticky_partition("keyless", 100, deadline(10_000 + step * 6_000)) % 2, 1);
    }
}

#[test]
fn topics_count_as_used_for_a_while_and_are_requested_for_their_brokers() {
    let now = Instant::now();
    let level = level(AcksLevel::Leader);
    let mut level = level.lock();
    level.set_leaders(&"other".into(), &[Some(2)]);
    level.set_leaders(&"leaderless".into(), &[None]);
    assert_eq!(level.topics_of(1, now), [], "no message was sent");
    let topics = ["t", "other", "leaderless"];
    for topic in topics {
        let message = Message { topic: topic.into(), partition: 0, deadline: now + Duration::from_secs(10) };
        assert!(level.use_partition(&message).is_some());
    }
    let of = |level: &LevelState<Message>, broker, now| {
        let mut topics: Vec<String> = level.topics_of(broker, now).iter().map(|topic| topic.to_string()).collect();
        topics.sort();
        topics
    };
    // A broker that fails may have been elected.
    assert_eq!((of(&level, 1, now), of(&level, 2, now)), (names(["leaderless", "t"]), names(["leaderless", "other"])));
    assert!(topics.iter().all(|topic| !level.is_removable(topic, now)));
    let later = now + Duration::from_secs(311);
    assert_eq!(level.topics_of(1, later), []);
    assert!(topics.iter().all(|topic| level.is_removable(topic, later)));
    append(&mut level, later);
    assert!(!level.is_removable("t", later), "it has a message");
    // The place of a removed partition is used again.
    let index = level.index_of("other", 0).unwrap();
    level.remove(&"other".into());
    assert_eq!((level.has_topic("other"), level.index_of("other", 0)), (false, None));
    level.set_leaders(&"new".into(), &[Some(5)]);
    assert_eq!((level.index_of("new", 0), level.accumulator.leader(index)), (Some(index), Some(5)));
    assert_eq!((&*level.partitions[index.0].topic, level.partitions.len()), ("new", 3));
}

fn names<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}
