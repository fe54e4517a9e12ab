use std::sync::atomic::{AtomicUsize, Ordering};

use super::cluster::{APIS, Apis, Cluster, OLD_APIS};
use super::*;
use crate::kafka::protocol::list_offsets::ListOffsetsRequest;
use crate::kafka::protocol::metadata::MetadataRequest;
use crate::kafka::scripted_broker::{Received, RefusingPort, Reply, connector};
use crate::locks::lock;
use kafka_protocol::messages::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use kafka_protocol::messages::{ListOffsetsRequest as CrateRequest, ListOffsetsResponse};

type List = ListOffsetsRequest<'static>;

/// Answers each partition with what `offset` returns for broker, topic, partition and timestamp: code and offset.
fn offsets(received: &Received, mut offset: impl FnMut(&str, i32, i64, i8) -> (i16, i64)) -> Reply {
    let request: CrateRequest = received.decode();
    let isolation = request.isolation_level;
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            let (code, end) = offset(&topic.name, partition.partition_index, partition.timestamp, isolation);
            let response = ListOffsetsPartitionResponse::default().with_partition_index(partition.partition_index);
            response.with_error_code(code).with_offset(end)
        });
        let partitions = partitions.collect();
        ListOffsetsTopicResponse::default().with_name(topic.name).with_partitions(partitions)
    });
    received.reply(&ListOffsetsResponse::default().with_topics(topics.collect()))
}

/// Each partition ends at 100 times its leader plus its number plus 10; the last stable offset is one less.
fn cluster(count: usize, apis: Apis, leaders: &[(&str, &[i32])]) -> Cluster {
    let cluster = Cluster::start(count, apis, |id, received, _| {
        offsets(received, |_, partition, timestamp, isolation| {
            let end = i64::from(100 * id + partition + 10);
            match timestamp {
                -1 => (0, end - i64::from(isolation)),
                -2 => (0, 0),
                timestamp if timestamp < 1_000 => (0, timestamp),
                _ => (0, -1),
            }
        })
    });
    lock(&cluster.state).leaders =
        leaders.iter().map(|(topic, leaders)| ((*topic).to_owned(), leaders.to_vec())).collect();
    cluster
}

fn partition(topic: &str, partition: i32) -> (Arc<str>, i32) {
    (topic.into(), partition)
}

#[test]
fn each_partition_has_the_offset_that_its_leader_returns() {
    for apis in [APIS, OLD_APIS] {
        let cluster = cluster(3, apis, &[("a", &[1, 2]), ("b", &[0])]);
        let mut reader = cluster.reader();
        let partitions = [partition("b", 0), partition("a", 1), partition("a", 0), partition("a", 1)];
        let mut ends = |at| {
            let ends = reader.log_ends(&partitions, at, after(LONG)).into_iter();
            ends.map(|end| end.map_err(|failure| failure.kind)).collect::<Vec<_>>()
        };
        let no_message = Err(OffsetErrorKind::NoMessage);
        assert_eq!(ends(OffsetSpec::Latest), [Ok(10), Ok(211), Ok(110), Ok(211)]);
        assert_eq!(ends(OffsetSpec::LatestCommitted), [Ok(9), Ok(210), Ok(109), Ok(210)]);
        assert_eq!(ends(OffsetSpec::Earliest), [Ok(0); 4]);
        assert_eq!(ends(OffsetSpec::Timestamp(7)), [Ok(7); 4]);
        assert_eq!(ends(OffsetSpec::Timestamp(5_000)), [no_message; 4]);
        // A time before 1970 is not taken for a special timestamp.
        assert_eq!(ends(OffsetSpec::Timestamp(-1)), [Ok(0); 4]);
    }
}

#[test]
fn leaders_are_cached_and_requests_are_bounded() {
    let leaders: Vec<i32> = vec![0; 4_500];
    let cluster = cluster(1, APIS, &[("a", &leaders)]);
    let mut reader = cluster.reader();
    let partitions: Vec<_> = (0..4_500).map(|number| partition("a", number)).collect();
    for round in 1..=2 {
        let ends = reader.log_ends(&partitions, OffsetSpec::Latest, after(LONG));
        assert!(ends.into_iter().zip(0..).all(|(end, number)| end == Ok(number + 10)));
        assert_eq!(cluster.brokers[0].count::<List>(), 3 * round);
        assert_eq!(cluster.brokers[0].count::<MetadataRequest>(), 1);
    }
}

#[test]
fn what_does_not_exist_fails_at_once_and_alone() {
    let cluster = cluster(1, APIS, &[("a", &[0, 0])]);
    lock(&cluster.state).errors = HashMap::from([("denied".into(), 29), ("invalid".into(), 17)]);
    let mut reader = cluster.reader();
    let long = "x".repeat(40_000);
    let names = [("a", 1), ("gone", 0), ("a", 9), ("denied", 0), ("invalid", 0), (&*long, 0), ("a", -1)];
    let partitions = names.map(|(topic, number)| partition(topic, number));
    let start = Instant::now();
    let ends = reader.log_ends(&partitions, OffsetSpec::Latest, after(LONG));
    assert!(start.elapsed() < LONG / 2);
    let kinds: Vec<_> = ends.iter().map(|end| end.as_ref().map_err(|failure| failure.kind)).collect();
    let (refused, gone) = (OffsetErrorKind::Refused, OffsetErrorKind::UnknownPartition);
    let unknown = Err(OffsetErrorKind::UnknownTopic);
    assert_eq!(kinds, [Ok(&11), unknown, Err(gone), Err(refused(29)), Err(refused(17)), Err(refused(17)), Err(gone)]);
    let texts: Vec<_> = ends.iter().filter_map(|end| end.as_ref().err()).map(ToString::to_string).collect();
    assert_eq!(texts[0], "topic \"gone\" does not exist");
    assert_eq!(texts[1], "a-9 does not exist");
    assert_eq!(texts[2], "topic \"denied\": TOPIC_AUTHORIZATION_FAILED");
    assert!(texts[4].len() < 300, "{}", texts[4]);
}

#[test]
fn a_partition_that_has_moved_is_found_and_a_partition_that_gets_a_leader_is_waited_for() {
    let calls = AtomicUsize::new(0);
    let cluster = Cluster::start(2, APIS, move |id, received, state| {
        if id == 1 {
            return offsets(received, |_, _, _, _| (0, 7));
        }
        // The metadata name the new leaders only after the second answer.
        if calls.fetch_add(1, Ordering::Relaxed) == 1 {
            lock(state).leaders.insert("a".into(), vec![1, 1]);
        }
        offsets(received, |_, _, _, _| (6, -1))
    });
    lock(&cluster.state).leaders.insert("a".into(), vec![0, -1]);
    let partitions = [partition("a", 0), partition("a", 1)];
    let ends = cluster.reader().log_ends(&partitions, OffsetSpec::Latest, after(LONG));
    assert_eq!(ends, [Ok(7), Ok(7)]);
    assert_eq!(cluster.brokers[0].count::<List>(), 2);
}

#[test]
fn brokers_that_hang_or_refuse_cost_only_their_partitions() {
    let cluster = Cluster::start(3, APIS, |id, received, _| match id {
        0 => offsets(received, |_, _, _, _| (0, 5)),
        1 => Reply::Silence,
        _ => Reply::Close,
    });
    // Broker 7 is not in the metadata.
    lock(&cluster.state).leaders.insert("a".into(), vec![0, 1, 2, -1, 7]);
    let mut reader = cluster.reader();
    let partitions: Vec<_> = (0..5).map(|number| partition("a", number)).collect();
    let start = Instant::now();
    let ends = reader.log_ends(&partitions, OffsetSpec::Latest, after(Duration::from_secs(2)));
    assert!(start.elapsed() < LONG / 2);
    assert_eq!(ends[0], Ok(5));
    let failures: Vec<_> = ends[1..].iter().map(|end| end.as_ref().unwrap_err()).collect();
    let kinds: Vec<_> = failures.iter().map(|failure| failure.kind).collect();
    let (unreachable, no_leader) = (OffsetErrorKind::Unreachable, OffsetErrorKind::NoLeader);
    assert_eq!(kinds, [unreachable, unreachable, no_leader, no_leader]);
    assert!(failures[0].reason.contains(&cluster.address(1).to_string()), "{}", failures[0]);
    assert!(failures[1].reason.contains(&cluster.address(2).to_string()), "{}", failures[1]);
    assert_eq!(&*failures[2].reason, "a-3 has no leader");
    assert_eq!(&*failures[3].reason, "a-4 is led by broker 7, which is not up");
    // The leader that answers is not sent the request again.
    assert_eq!(cluster.brokers[0].count::<List>(), 1);

    // A leader that moved away from the broker that hangs is found within the deadline.
    lock(&cluster.state).leaders.insert("a".into(), vec![0; 5]);
    let ends = reader.log_ends(&partitions, OffsetSpec::Latest, after(Duration::from_secs(20)));
    assert_eq!(ends, [const { Ok(5) }; 5]);
}

#[test]
fn without_a_broker_all_partitions_fail_with_the_address() {
    let port = RefusingPort::bind();
    let mut reader = OffsetReader::new(connector(), vec![port.address.clone()]);
    let partitions = [partition("a", 0), partition("b", 0)];
    for end in reader.log_ends(&partitions, OffsetSpec::Latest, after(Duration::from_millis(500))) {
        let failure = end.unwrap_err();
        assert_eq!(failure.kind, OffsetErrorKind::Unreachable);
        assert!(failure.reason.contains(&port.address.to_string()), "{failure}");
    }
    assert!(reader.log_ends(&[], OffsetSpec::Latest, after(LONG)).is_empty());
    let past = Instant::now();
    assert!(reader.log_ends(&partitions, OffsetSpec::Latest, past)[1].is_err());
}

#[test]
fn a_broker_that_throttles_gets_the_next_request_later() {
    let cluster = Cluster::start(1, APIS, |_, received, _| {
        let Reply::Body(mut body) = offsets(received, |_, _, _, _| (0, 5)) else { unreachable!() };
        // The response begins with the throttle time.
        body[..4].copy_from_slice(&400_i32.to_be_bytes());
        Reply::Body(body)
    });
    lock(&cluster.state).leaders.insert("a".into(), vec![0]);
    let mut reader = cluster.reader();
    let partitions = [partition("a", 0)];
    assert_eq!(reader.log_ends(&partitions, OffsetSpec::Latest, after(LONG)), [Ok(5)]);
    let start = Instant::now();
    assert_eq!(reader.log_ends(&partitions, OffsetSpec::Latest, after(LONG)), [Ok(5)]);
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    let failure = reader.log_ends(&partitions, OffsetSpec::Latest, after(Duration::from_millis(50))).remove(0);
    assert!(failure.unwrap_err().reason.contains("a quota of the broker"));
}

#[test]
fn partitions_are_sorted_and_a_topic_that_is_being_created_is_waited_for() {
    let cluster = cluster(1, APIS, &[("a", &[0, 0, 0])]);
    let mut reader = cluster.reader();
    let topic = reader.partitions(&"a".into(), after(LONG)).unwrap();
    assert_eq!(topic.partitions.iter().map(|partition| partition.partition).collect::<Vec<_>>(), [0, 1, 2]);
    let failure = reader.partitions(&"gone".into(), after(LONG)).unwrap_err();
    assert_eq!(failure.kind, OffsetErrorKind::UnknownTopic);
    let failure = reader.partitions(&"x".repeat(300).into(), after(LONG)).unwrap_err();
    assert_eq!(failure.kind, OffsetErrorKind::Refused(error_code::INVALID_TOPIC_EXCEPTION));

    lock(&cluster.state).errors.insert("a".into(), 5);
    let failure = reader.partitions(&"a".into(), after(Duration::from_millis(300))).unwrap_err();
    assert_eq!(failure.to_string(), "topic \"a\": LEADER_NOT_AVAILABLE");
    let state = Arc::clone(&cluster.state);
    let requests = cluster.brokers[0].count::<MetadataRequest>();
    std::thread::scope(|scope| {
        let cluster = &cluster;
        scope.spawn(move || {
            while cluster.brokers[0].count::<MetadataRequest>() < requests + 2 {
                std::thread::yield_now();
            }
            lock(&state).errors.clear();
        });
        assert_eq!(reader.partitions(&"a".into(), after(LONG)).unwrap().partitions.len(), 3);
    });
}

#[test]
fn ranges_are_returned_as_they_come_although_a_broker_is_silent() {
    let cluster = Cluster::start(2, APIS, |id, received, _| {
        if id == 1 {
            return Reply::Silence;
        }
        offsets(received, |_, partition, timestamp, isolation| match timestamp {
            -2 => (0, 3),
            _ => (0, i64::from(10 * partition + 20) - i64::from(isolation)),
        })
    });
    lock(&cluster.state).leaders = [("a".to_owned(), vec![0, 1, 0])].into();
    let mut reader = cluster.reader();
    let wanted = [partition("a", 2), partition("a", 1), partition("a", 0), partition("a", 2)];
    let time = Duration::from_secs(3);
    let (start, mut found) = (Instant::now(), Vec::new());
    reader.ranges(&wanted, start + time, &mut |index, range| found.push((index, range, start.elapsed())));
    found.sort_by_key(|(index, _, _)| *index);
    let ranges: Vec<_> = found.iter().map(|(_, range, _)| range.as_ref().ok().copied()).collect();
    let range = |latest| Some(OffsetRange { earliest: 3, latest, latest_committed: latest - 1 });
    assert_eq!(ranges, [range(40), None, range(20), range(40)]);
    assert!(found[1].2 > time / 2, "the partition of the silent broker is retried: {:?}", found[1].2);
    let others = found.iter().filter(|(index, _, _)| *index != 1).map(|(_, _, at)| *at).max().unwrap();
    assert!(others < found[1].2 / 2, "the others waited for the silent broker: {others:?}");
}
