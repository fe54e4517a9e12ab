use std::sync::atomic::{AtomicUsize, Ordering};

use super::cluster::{APIS, Cluster, OLD_APIS, text};
use super::*;
use crate::kafka::protocol::describe_groups::DescribeGroupsRequest;
use crate::kafka::protocol::list_groups::ListGroupsRequest;
use crate::kafka::protocol::offset_commit::OffsetCommitRequest;
use crate::kafka::protocol::offset_fetch::OffsetFetchRequest;
use crate::kafka::scripted_broker::{Received, Reply};
use crate::locks::lock;
use kafka_protocol::messages::describe_groups_response::DescribedGroup as CrateDescription;
use kafka_protocol::messages::list_groups_response::ListedGroup as CrateGroup;
use kafka_protocol::messages::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions, OffsetFetchResponseTopic,
    OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{
    DescribeGroupsResponse, GroupId, ListGroupsResponse, OffsetCommitRequest as CrateCommit, OffsetCommitResponse,
    OffsetFetchRequest as CrateFetch, OffsetFetchResponse, TopicName,
};

type Fetch = OffsetFetchRequest<'static>;

fn topic(name: &str) -> TopicName {
    TopicName(text(name))
}

/// Answers each group with partition 0 of `topic-ID` at offset 10 * ID, or the error code that `code` returns for group
/// and partition.
fn committed(id: i32, received: &Received, code: impl Fn(&str) -> (i16, i16)) -> Reply {
    let request: CrateFetch = received.decode();
    let (name, offset) = (topic(&format!("topic-{id}")), i64::from(10 * id));
    if received.version < 8 {
        let (group_code, partition_code) = code(&request.group_id);
        let partition = OffsetFetchResponsePartition::default().with_committed_offset(offset);
        let partitions = vec![partition.with_error_code(partition_code)];
        let topic = OffsetFetchResponseTopic::default().with_name(name).with_partitions(partitions);
        let response = OffsetFetchResponse::default().with_error_code(group_code);
        return received.reply(&response.with_topics(vec![topic]));
    }
    let groups = request.groups.into_iter().map(|group| {
        let (group_code, partition_code) = code(&group.group_id);
        let partition = OffsetFetchResponsePartitions::default().with_committed_offset(offset);
        let partitions = vec![partition.with_error_code(partition_code)];
        let topic = OffsetFetchResponseTopics::default().with_name(name.clone()).with_partitions(partitions);
        let group = OffsetFetchResponseGroup::default().with_group_id(group.group_id).with_error_code(group_code);
        group.with_topics(vec![topic])
    });
    received.reply(&OffsetFetchResponse::default().with_groups(groups.collect()))
}

fn all_of(group: &str) -> GroupRequest {
    GroupRequest { group: group.into(), topics: None }
}

fn set_coordinators(cluster: &Cluster, coordinators: &[(&str, i32)]) {
    lock(&cluster.state).coordinators = coordinators.iter().map(|(group, id)| ((*group).to_owned(), *id)).collect();
}

/// The offset of partition 0 of the only topic, or the kind of the failure.
fn first_offset(result: &Result<Vec<TopicOffsets>, OffsetError>) -> Result<i64, OffsetErrorKind> {
    result.as_ref().map(|topics| topics[0].1[0].offset).map_err(|failure| failure.kind)
}

#[test]
fn committed_offsets_of_many_groups_come_from_their_coordinators() {
    for (apis, requests) in [(APIS, 2), (OLD_APIS, 61)] {
        let cluster = Cluster::start(3, apis, |id, received, _| {
            committed(id, received, |group| (if group == "denied" { 30 } else { 0 }, 0))
        });
        let names: Vec<_> = (0..60).map(|number| format!("g{number}")).collect();
        let coordinators: Vec<_> = names.iter().map(|name| (&**name, 1)).chain([("h", 2), ("denied", 1)]).collect();
        set_coordinators(&cluster, &coordinators);
        let mut groups: Vec<_> = names.iter().map(|name| all_of(name)).collect();
        groups.extend([all_of("h"), all_of("denied")]);
        let mut reader = cluster.reader();
        let start = Instant::now();
        let results = reader.committed(&groups, false, after(LONG));
        assert!(start.elapsed() < LONG / 2);
        assert!(results[..60].iter().all(|result| first_offset(result) == Ok(10)));
        assert_eq!(first_offset(&results[60]), Ok(20));
        assert_eq!(first_offset(&results[61]), Err(OffsetErrorKind::Refused(30)));
        assert_eq!(results[61].as_ref().unwrap_err().to_string(), "group \"denied\": GROUP_AUTHORIZATION_FAILED");
        assert_eq!(cluster.brokers[1].count::<Fetch>(), requests);
    }
}

#[test]
fn a_group_that_is_requested_twice_is_in_two_requests_and_invalid_names_fail_alone() {
    let cluster = Cluster::start(1, APIS, |id, received, _| committed(id, received, |_| (0, 0)));
    set_coordinators(&cluster, &[("g", 0), ("h", 0)]);
    let with_topic = |topic: &str| GroupRequest { group: "g".into(), topics: Some(vec![(topic.into(), vec![0, 1])]) };
    let groups =
        [with_topic("a"), all_of("h"), with_topic("b"), with_topic(&"x".repeat(70_000)), all_of(&"g".repeat(70_000))];
    let results = cluster.reader().committed(&groups, true, after(LONG));
    assert_eq!(results[..3].iter().map(first_offset).collect::<Vec<_>>(), [Ok(0); 3]);
    assert_eq!(first_offset(&results[3]), Err(OffsetErrorKind::Refused(error_code::INVALID_TOPIC_EXCEPTION)));
    assert_eq!(first_offset(&results[4]), Err(OffsetErrorKind::Refused(error_code::INVALID_GROUP_ID)));
    assert_eq!(cluster.brokers[0].count::<Fetch>(), 2);
}

#[test]
fn a_group_that_moved_is_found_and_a_group_without_a_coordinator_does_not_delay_the_others() {
    let cluster = Cluster::start(2, APIS, |id, received, state| {
        // Broker 0 does not coordinate `moves` any more; the lookup returns the other broker from then on.
        committed(id, received, |group| match (id, group) {
            (0, "moves") => {
                lock(state).coordinators.insert("moves".into(), 1);
                (16, 0)
            }
            (1, "moves") if received.index == 0 => (14, 0),
            _ => (0, 0),
        })
    });
    set_coordinators(&cluster, &[("moves", 0), ("stays", 1)]);
    let mut reader = cluster.reader();
    let groups = [all_of("moves"), all_of("stays")];
    let results = reader.committed(&groups, false, after(LONG));
    assert_eq!(results.iter().map(first_offset).collect::<Vec<_>>(), [Ok(10), Ok(10)]);

    let groups = [all_of("stays"), all_of("nowhere")];
    let requests = cluster.brokers[1].count::<Fetch>();
    let results = reader.committed(&groups, false, after(Duration::from_millis(500)));
    let unavailable = Err(OffsetErrorKind::Refused(error_code::COORDINATOR_NOT_AVAILABLE));
    assert_eq!(results.iter().map(first_offset).collect::<Vec<_>>(), [Ok(10), unavailable]);
    assert_eq!(cluster.brokers[1].count::<Fetch>(), requests + 1);
}

#[test]
fn an_offset_in_an_open_transaction_is_waited_for_and_named_at_the_deadline() {
    let cluster = Cluster::start(1, APIS, |id, received, _| {
        let request: CrateFetch = received.decode();
        assert!(request.require_stable);
        committed(id, received, |group| (0, if group == "open" || received.index < 2 { 88 } else { 0 }))
    });
    set_coordinators(&cluster, &[("g", 0), ("open", 0)]);
    let mut reader = cluster.reader();
    let results = reader.committed(&[all_of("g")], true, after(LONG));
    assert_eq!(results[0].as_ref().unwrap()[0].1[0].error_code, 0);
    assert_eq!(cluster.brokers[0].count::<Fetch>(), 3);
    let results = reader.committed(&[all_of("open")], true, after(Duration::from_millis(300)));
    assert_eq!(results[0].as_ref().unwrap()[0].1[0].error_code, error_code::UNSTABLE_OFFSET_COMMIT);
}

fn offset(topic: &str, partition: i32) -> OffsetToCommit {
    OffsetToCommit { topic: topic.into(), partition, offset: 5, leader_epoch: 2, metadata: Some("m".into()) }
}

#[test]
fn each_offset_is_committed_or_refused_by_itself() {
    for apis in [APIS, OLD_APIS] {
        let cluster = Cluster::start(1, apis, |_, received, _| {
            let request: CrateCommit = received.decode();
            assert_eq!((&*request.member_id, request.generation_id_or_member_epoch), ("member", 3));
            let topics = request.topics.into_iter().map(|topic| {
                let partitions = topic.partitions.iter().map(|partition| {
                    let code = match (partition.partition_index, received.index) {
                        (_, 0) => 16,
                        (1, _) => 29,
                        _ => 0,
                    };
                    let response = OffsetCommitResponsePartition::default();
                    response.with_partition_index(partition.partition_index).with_error_code(code)
                });
                let partitions = partitions.collect();
                OffsetCommitResponseTopic::default().with_name(topic.name).with_partitions(partitions)
            });
            received.reply(&OffsetCommitResponse::default().with_topics(topics.collect()))
        });
        set_coordinators(&cluster, &[("g", 0)]);
        let member = GroupMemberId { member_id: "member".into(), generation: 3, instance_id: Some("instance".into()) };
        let mut offsets = vec![offset("b", 0), offset("a", 0), offset("a", 1), offset(&"x".repeat(40_000), 0)];
        offsets.push(OffsetToCommit { metadata: Some("m".repeat(40_000)), ..offset("a", 2) });
        let results = cluster.reader().commit(&"g".into(), Some(&member), &offsets, after(LONG));
        let kinds: Vec<_> = results.iter().map(|result| result.as_ref().map_err(|failure| failure.kind)).collect();
        let refused = |code| Err(OffsetErrorKind::Refused(code));
        assert_eq!(kinds, [Ok(&()), Ok(&()), refused(29), refused(17), refused(12)]);
        let text = results[2].as_ref().unwrap_err().to_string();
        assert_eq!(text, "commit of a-1: TOPIC_AUTHORIZATION_FAILED");
        assert_eq!(cluster.brokers[0].count::<OffsetCommitRequest>(), 2);
    }
}

#[test]
fn an_offset_that_the_response_lacks_is_not_committed() {
    let cluster = Cluster::start(1, APIS, |_, received, _| {
        let partitions = vec![OffsetCommitResponsePartition::default().with_partition_index(0)];
        let topics = vec![OffsetCommitResponseTopic::default().with_name(topic("a")).with_partitions(partitions)];
        received.reply(&OffsetCommitResponse::default().with_topics(topics))
    });
    set_coordinators(&cluster, &[("g", 0)]);
    let offsets = [offset("a", 0), offset("a", 1), offset("b", 0)];
    let results = cluster.reader().commit(&"g".into(), None, &offsets, after(Duration::from_millis(300)));
    assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, false]);
    assert!(results[1].as_ref().unwrap_err().to_string().contains("the response lacks"), "{results:?}");
}

#[test]
fn all_groups_are_listed_and_a_broker_that_hangs_is_named() {
    let is_hanging = Arc::new(AtomicUsize::new(0));
    let script = Arc::clone(&is_hanging);
    let cluster = Cluster::start(3, APIS, move |id, received, _| {
        if id == 2 && script.load(Ordering::Relaxed) == 1 {
            return Reply::Silence;
        }
        let group = |name: &str| CrateGroup::default().with_group_id(GroupId(text(name)));
        let groups = vec![group(&format!("group-{id}")), group("moving")];
        // Broker 1 loads its groups at first.
        let code = if id == 1 && received.index == 0 { 14 } else { 0 };
        received.reply(&ListGroupsResponse::default().with_error_code(code).with_groups(groups))
    });
    let mut reader = cluster.reader();
    let list = reader.list_groups(&BTreeSet::new(), after(LONG));
    let mut names: Vec<_> = list.groups.iter().map(|group| &*group.group).collect();
    names.sort_unstable();
    assert_eq!(names, ["group-0", "group-1", "group-2", "moving"]);
    assert_eq!(list.failures, []);
    assert_eq!(cluster.brokers[0].count::<ListGroupsRequest>(), 1);

    lock(&cluster.state).leaders.insert("__consumer_offsets".into(), vec![0, -1]);
    let list = reader.list_groups(&BTreeSet::new(), after(LONG));
    assert_eq!((list.groups.len(), list.failures.len()), (4, 1));
    assert_eq!(&*list.failures[0].reason, "groups are missing: __consumer_offsets-1 has no leader");
    lock(&cluster.state).leaders.clear();

    is_hanging.store(1, Ordering::Relaxed);
    let start = Instant::now();
    let list = reader.list_groups(&BTreeSet::new(), after(Duration::from_secs(1)));
    assert!(start.elapsed() < LONG / 2);
    assert_eq!((list.groups.len(), list.failures.len(), list.silent), (3, 1, vec![2]));
    assert!(list.failures[0].reason.contains(&cluster.address(2).to_string()), "{}", list.failures[0]);
    let asked = cluster.brokers[2].count::<ListGroupsRequest>();
    let list = reader.list_groups(&BTreeSet::from([2]), after(LONG));
    assert_eq!((list.groups.len(), list.failures.len(), list.silent), (3, 1, vec![]));
    assert_eq!(&*list.failures[0].reason, "broker 2 did not answer the last requests");
    assert_eq!(cluster.brokers[2].count::<ListGroupsRequest>(), asked);
}

#[test]
fn a_coordinator_is_known_for_a_while_unless_it_is_doubtful() {
    let cluster = Cluster::start(3, APIS, |_, _, _| Reply::Silence);
    set_coordinators(&cluster, &[("g", 0), ("h", 1)]);
    let mut reader = cluster.reader();
    let names = ["h", "g", "new", "h"].map(Arc::from);
    let mut coordinators = |doubtful: &[i32]| {
        let doubtful = doubtful.iter().copied().collect();
        reader.coordinators(&names, &doubtful, after(Duration::from_secs(1)))
    };
    assert_eq!(coordinators(&[]), [Some(1), Some(0), None, Some(1)]);
    set_coordinators(&cluster, &[("g", 2), ("h", 2)]);
    assert_eq!(coordinators(&[2]), [Some(1), Some(0), None, Some(1)]);
    assert_eq!(coordinators(&[1]), [Some(2), Some(0), None, Some(2)]);
}

#[test]
fn groups_are_described_by_their_coordinators() {
    let cluster = Cluster::start(2, APIS, |id, received, _| {
        let request: kafka_protocol::messages::DescribeGroupsRequest = received.decode();
        let groups = request.groups.into_iter().map(|group| {
            let code = if *group.0 == *"gone" { 69 } else { 0 };
            let description = CrateDescription::default().with_group_id(group).with_error_code(code);
            description.with_group_state(text(&format!("state-{id}")))
        });
        received.reply(&DescribeGroupsResponse::default().with_groups(groups.collect()))
    });
    set_coordinators(&cluster, &[("g", 0), ("h", 1), ("gone", 1)]);
    let names = ["h", "g", "gone", "h"].map(Arc::from);
    let results = cluster.reader().describe_groups(&names, after(LONG));
    let states: Vec<_> = results
        .iter()
        .map(|result| result.as_ref().map(|group| &*group.state).map_err(|failure| failure.kind))
        .collect();
    let not_found = Err(OffsetErrorKind::Refused(error_code::GROUP_ID_NOT_FOUND));
    assert_eq!(states, [Ok("state-1"), Ok("state-0"), not_found, Ok("state-1")]);
    assert_eq!(cluster.brokers[1].count::<DescribeGroupsRequest>(), 1);
}
