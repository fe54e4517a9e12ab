//! Consumer groups: committed offsets, commits, lists and descriptions, by coordinator.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use super::error::{OffsetError, OffsetErrorKind, group_error, shown};
use super::reader::OffsetReader;
use super::rounds::{Attempt, Route, Router, run, unique};
use crate::kafka::broker_pool::PooledBroker;
use crate::kafka::connection::ConnectionError;
use crate::kafka::error_code;
use crate::kafka::metadata::{BrokerId, MetadataTopics};
use crate::kafka::metadata_client::{MAX_STRING_BYTES, MAX_TOPIC_NAME_BYTES, MetadataClient};
use crate::kafka::protocol::consumer_group_describe::{ConsumerGroupDescribeRequest, DescribedConsumerGroup};
use crate::kafka::protocol::describe_groups::{DescribeGroupsRequest, DescribedGroup};
use crate::kafka::protocol::list_groups::{ListGroupsRequest, ListedGroup};
use crate::kafka::protocol::offset_commit::{GroupMemberId, OffsetCommitRequest, PartitionCommit};
use crate::kafka::protocol::offset_fetch::{FetchedGroup, GroupOffsets, OffsetFetchRequest, TopicOffsets};

/// The topic of the committed offsets; the leader of one of its partitions coordinates the groups in the partition.
const OFFSETS_TOPIC: &str = "__consumer_offsets";
/// Upper bound of the groups of a request: with 10,000 partitions each, the response has some 20 MB.
const MAX_GROUPS: usize = 50;
/// Upper bound of the offsets of a commit.
const MAX_COMMITS: usize = 2_000;

/// The partitions of a group whose committed offsets are requested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRequest {
    /// The group id.
    pub group: Arc<str>,
    /// Partitions by topic; `None` requests all partitions with a committed offset.
    pub topics: Option<Vec<(Arc<str>, Vec<i32>)>>,
}

/// An offset to commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetToCommit {
    /// The topic.
    pub topic: Arc<str>,
    /// Number of the partition.
    pub partition: i32,
    /// The next offset to consume.
    pub offset: i64,
    /// Leader epoch of the last consumed message; -1 if unknown.
    pub leader_epoch: i32,
    /// Text that is kept with the offset; brokers accept 4,096 bytes by default (`offset.metadata.max.bytes`).
    pub metadata: Option<String>,
}

/// The groups of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupList {
    /// The groups of the brokers that answered, each once.
    pub groups: Vec<ListedGroup>,
    /// Why groups are missing: the other brokers, and partitions of `__consumer_offsets` without a leader.
    pub failures: Vec<OffsetError>,
    /// The brokers that were not reached or did not answer before the deadline.
    pub silent: Vec<BrokerId>,
}

/// What one broker says of groups: each with its name and its error code.
type Described<T> = Result<Vec<(String, i16, T)>, ConnectionError>;

impl OffsetReader {
    /// Returns the committed offsets of each group, in the order of `groups`. With `require_stable` a partition with an
    /// offset in an open transaction is retried, and has the error code UNSTABLE_OFFSET_COMMIT if the transaction is
    /// still open at the deadline (brokers since Kafka 2.5). A group that does not exist has no committed offsets.
    pub fn committed(
        &mut self,
        groups: &[GroupRequest],
        require_stable: bool,
        deadline: Instant,
    ) -> Vec<Result<Vec<TopicOffsets>, OffsetError>> {
        let names: Vec<_> = groups.iter().map(|request| Arc::clone(&request.group)).collect();
        let mut router = self.coordinators.router(&mut self.metadata, &names);
        run(&mut self.pool, groups.len(), deadline, &mut router, |broker, items, until| {
            let mut attempts = Vec::new();
            let (valid, invalid): (Vec<_>, Vec<_>) =
                items.into_iter().map(|(index, ())| index).partition(|index| has_valid_topics(&groups[*index]));
            attempts.extend(
                invalid
                    .into_iter()
                    .map(|index| (index, group_failed(&names[index], error_code::INVALID_TOPIC_EXCEPTION))),
            );
            match broker.version::<OffsetFetchRequest>(until) {
                Ok(version) => {
                    let max_groups = if version < OffsetFetchRequest::FIRST_BATCH { 1 } else { MAX_GROUPS };
                    for items in chunks_without_duplicates(&valid, &names, max_groups) {
                        attempts.extend(fetch_committed(broker, groups, &items, require_stable, until));
                    }
                }
                Err(failure) => attempts.extend(all_failed(&valid, failure.into())),
            }
            attempts
        })
    }

    /// Commits offsets of a group, each partition at most once; returns the results in the order of `offsets`. `member`
    /// is the member that commits; without one the group must not have members.
    pub fn commit(
        &mut self,
        group: &Arc<str>,
        member: Option<&GroupMemberId>,
        offsets: &[OffsetToCommit],
        deadline: Instant,
    ) -> Vec<Result<(), OffsetError>> {
        // All offsets have the same coordinator.
        let names = vec![Arc::clone(group); offsets.len()];
        let mut router = self.coordinators.router(&mut self.metadata, &names);
        run(&mut self.pool, offsets.len(), deadline, &mut router, |broker, items, until| {
            let mut attempts = Vec::new();
            let mut valid = Vec::new();
            for (index, ()) in items {
                match invalid_commit(&offsets[index], member) {
                    Some(code) => attempts.push((index, Attempt::failed(commit_error(&offsets[index], code)))),
                    None => valid.push(index),
                }
            }
            for items in valid.chunks(MAX_COMMITS) {
                attempts.extend(commit_once(broker, group, member, offsets, items, until));
            }
            attempts
        })
    }

    /// Returns the groups that all brokers coordinate, but those in `except`. A broker that does not answer is retried
    /// until `deadline`. Groups whose partition of `__consumer_offsets` has no leader have no coordinator: each such
    /// partition is a failure.
    pub fn list_groups(&mut self, except: &BTreeSet<BrokerId>, deadline: Instant) -> GroupList {
        // Half of the time is left for the lists.
        let now = Instant::now();
        let until = now + deadline.saturating_duration_since(now) / 2;
        let offsets_topic = MetadataTopics::Names(vec![OFFSETS_TOPIC.into()]);
        let response = match self.metadata.request(offsets_topic, until) {
            Ok(response) => response,
            Err(failure) => return GroupList { failures: vec![failure.into()], ..GroupList::default() },
        };
        let (all, _) = unique(&response.brokers.iter().map(|broker| broker.id).collect::<Vec<_>>());
        let (left_out, brokers): (Vec<_>, Vec<_>) = all.into_iter().partition(|broker| except.contains(broker));
        let mut router = BrokerRouter { metadata: &mut self.metadata, brokers: &brokers };
        let results = run(&mut self.pool, brokers.len(), deadline, &mut router, |broker, items, until| {
            items.into_iter().map(|(index, ())| (index, list_groups_once(broker, until))).collect()
        });
        let (mut list, mut names) = (GroupList::default(), HashSet::new());
        let partitions = response.topics.iter().flat_map(|topic| &topic.partitions);
        list.failures.extend(partitions.filter(|partition| partition.leader.is_none()).map(|partition| {
            let reason = format!("groups are missing: {OFFSETS_TOPIC}-{} has no leader", partition.partition);
            OffsetError::new(OffsetErrorKind::NoLeader, reason)
        }));
        list.failures.extend(left_out.into_iter().map(|broker| {
            OffsetError::new(OffsetErrorKind::Unreachable, format!("broker {broker} did not answer the last requests"))
        }));
        for (broker, result) in brokers.iter().zip(results) {
            match result {
                // A group that moves to another coordinator meanwhile may be in two lists.
                Ok(groups) => list.groups.extend(groups.into_iter().filter(|group| names.insert(group.group.clone()))),
                Err(failure) => {
                    list.silent.extend((failure.kind == OffsetErrorKind::Unreachable).then_some(*broker));
                    list.failures.push(failure);
                }
            }
        }
        list
    }

    /// Returns the broker that coordinates each group, in the order of `groups`; `None` if the look-up failed. What was
    /// found lately is used, unless the broker is in `doubtful`.
    pub fn coordinators(
        &mut self,
        groups: &[Arc<str>],
        doubtful: &BTreeSet<BrokerId>,
        deadline: Instant,
    ) -> Vec<Option<BrokerId>> {
        self.coordinators.of(&mut self.metadata, groups, doubtful, deadline)
    }

    /// Returns state and members of groups, in the order of `groups`. A group that does not exist is in state `Dead`,
    /// or has the error GROUP_ID_NOT_FOUND (brokers since Kafka 4.0).
    pub fn describe_groups(
        &mut self,
        groups: &[Arc<str>],
        deadline: Instant,
    ) -> Vec<Result<DescribedGroup, OffsetError>> {
        self.describe(groups, deadline, |broker, groups, until| {
            let response = broker.call(&DescribeGroupsRequest { groups }, until)?;
            broker.throttle(response.throttle_time_ms);
            Ok(response.groups.into_iter().map(|group| (group.group.clone(), group.error_code, group)).collect())
        })
    }

    /// Returns state and members of groups of the consumer protocol (KIP-848), in the order of `groups`. A group that
    /// does not exist, or is of another kind, has the error GROUP_ID_NOT_FOUND.
    pub fn describe_consumer_groups(
        &mut self,
        groups: &[Arc<str>],
        deadline: Instant,
    ) -> Vec<Result<DescribedConsumerGroup, OffsetError>> {
        self.describe(groups, deadline, |broker, groups, until| {
            let response = broker.call(&ConsumerGroupDescribeRequest { groups }, until)?;
            broker.throttle(response.throttle_time_ms);
            Ok(response.groups.into_iter().map(|group| (group.group.clone(), group.error_code, group)).collect())
        })
    }

    /// Describes groups; `request` returns what one broker says of some of them, each with its name and error code.
    fn describe<T: Clone + Send>(
        &mut self,
        groups: &[Arc<str>],
        deadline: Instant,
        request: impl Fn(&mut PooledBroker, &[Arc<str>], Instant) -> Described<T> + Sync,
    ) -> Vec<Result<T, OffsetError>> {
        let (names, order) = unique(groups);
        let mut router = self.coordinators.router(&mut self.metadata, &names);
        let results = run(&mut self.pool, names.len(), deadline, &mut router, |broker, items, until| {
            let items: Vec<_> = items.into_iter().map(|(index, ())| index).collect();
            let describe = |items: &[usize]| {
                let groups: Vec<_> = items.iter().map(|index| Arc::clone(&names[*index])).collect();
                let found = request(broker, &groups, until);
                described(broker, &names, items, found)
            };
            items.chunks(MAX_GROUPS).flat_map(describe).collect()
        });
        order.into_iter().map(|index| results[index].clone()).collect()
    }
}

/// The same failure for all items.
fn all_failed<T>(items: &[usize], failure: OffsetError) -> impl Iterator<Item = (usize, Attempt<T>)> {
    items.iter().map(move |index| (*index, Attempt::failed(failure.clone())))
}

/// Whether each topic name fits into a request.
fn has_valid_topics(request: &GroupRequest) -> bool {
    request.topics.iter().flatten().all(|(topic, _)| topic.len() <= MAX_TOPIC_NAME_BYTES)
}

/// Splits items into requests of at most `max` groups, in which no group is twice.
fn chunks_without_duplicates(items: &[usize], names: &[Arc<str>], max: usize) -> Vec<Vec<usize>> {
    let mut chunks: Vec<Vec<usize>> = Vec::new();
    let mut seen: HashSet<&str> = HashSet::new();
    for &index in items {
        let is_new = seen.insert(&names[index]);
        match chunks.last_mut() {
            Some(chunk) if is_new && chunk.len() < max => chunk.push(index),
            _ => {
                seen = HashSet::from([&*names[index]]);
                chunks.push(vec![index]);
            }
        }
    }
    chunks
}

fn fetch_committed(
    broker: &mut PooledBroker,
    groups: &[GroupRequest],
    items: &[usize],
    require_stable: bool,
    until: Instant,
) -> Vec<(usize, Attempt<Vec<TopicOffsets>>)> {
    let request =
        |index: &usize| GroupOffsets { group: &groups[*index].group, topics: groups[*index].topics.as_deref() };
    let requests: Vec<_> = items.iter().map(request).collect();
    let response = match broker.call(&OffsetFetchRequest { groups: &requests, require_stable }, until) {
        Ok(response) => response,
        Err(failure) => return all_failed(items, failure.into()).collect(),
    };
    broker.throttle(response.throttle_time_ms);
    let mut by_group: HashMap<String, FetchedGroup> = HashMap::new();
    for group in response.groups {
        // Versions below 8 have one group and do not repeat its id.
        let name = group.group.clone().unwrap_or_else(|| requests[0].group.to_owned());
        by_group.insert(name, group);
    }
    let result = |&index: &usize| {
        let name = &groups[index].group;
        let attempt = match by_group.remove(&**name) {
            Some(group) if group.error_code != error_code::NONE => group_failed(name, group.error_code),
            Some(group) => {
                let mut offsets = group.topics.iter().flat_map(|(_, offsets)| offsets);
                match offsets.any(|offset| offset.error_code == error_code::UNSTABLE_OFFSET_COMMIT) {
                    true => Attempt::Retry(Ok(group.topics)),
                    false => Attempt::Final(Ok(group.topics)),
                }
            }
            None => missing_group(broker, name),
        };
        (index, attempt)
    };
    items.iter().map(result).collect()
}

fn group_failed<T>(name: &str, code: i16) -> Attempt<T> {
    Attempt::failed(group_error(name, code))
}

fn missing_group<T>(broker: &PooledBroker, name: &str) -> Attempt<T> {
    let reason = format!("broker {}: the response lacks group \"{}\"", broker.address(), shown(name));
    Attempt::failed(OffsetError::new(OffsetErrorKind::Unreachable, reason))
}

/// Returns the error code for a commit that does not fit into a request.
fn invalid_commit(offset: &OffsetToCommit, member: Option<&GroupMemberId>) -> Option<i16> {
    let ids = member.into_iter().flat_map(|member| [Some(&member.member_id), member.instance_id.as_ref()]).flatten();
    if offset.topic.len() > MAX_TOPIC_NAME_BYTES {
        Some(error_code::INVALID_TOPIC_EXCEPTION)
    } else if offset.metadata.as_ref().is_some_and(|metadata| metadata.len() > MAX_STRING_BYTES) {
        Some(error_code::OFFSET_METADATA_TOO_LARGE)
    } else if ids.into_iter().any(|id| id.len() > MAX_STRING_BYTES) {
        Some(error_code::UNKNOWN_MEMBER_ID)
    } else {
        None
    }
}

fn commit_error(offset: &OffsetToCommit, code: i16) -> OffsetError {
    OffsetError::refused(&format!("commit of {}-{}", shown(&offset.topic), offset.partition), code)
}

fn commit_once(
    broker: &mut PooledBroker,
    group: &str,
    member: Option<&GroupMemberId>,
    offsets: &[OffsetToCommit],
    items: &[usize],
    until: Instant,
) -> Vec<(usize, Attempt<()>)> {
    let mut topics: BTreeMap<&Arc<str>, Vec<PartitionCommit>> = BTreeMap::new();
    for offset in items.iter().map(|index| &offsets[*index]) {
        let OffsetToCommit { partition, offset: next, leader_epoch, metadata, .. } = offset;
        let commit = PartitionCommit {
            partition: *partition,
            offset: *next,
            leader_epoch: *leader_epoch,
            metadata: metadata.as_deref(),
        };
        topics.entry(&offset.topic).or_default().push(commit);
    }
    let topics: Vec<_> = topics.into_iter().map(|(topic, commits)| (Arc::clone(topic), commits)).collect();
    let response = match broker.call(&OffsetCommitRequest { group, member, topics: &topics }, until) {
        Ok(response) => response,
        Err(failure) => return all_failed(items, failure.into()).collect(),
    };
    broker.throttle(response.throttle_time_ms);
    let codes = response.topics.iter().flat_map(|(topic, codes)| codes.iter().map(move |code| (topic, code)));
    let codes: HashMap<(&str, i32), i16> =
        codes.map(|(topic, (partition, code))| ((&**topic, *partition), *code)).collect();
    let result = |&index: &usize| {
        let offset = &offsets[index];
        let attempt = match codes.get(&(&*offset.topic, offset.partition)) {
            Some(&error_code::NONE) => Attempt::Final(Ok(())),
            Some(&code) => Attempt::failed(commit_error(offset, code)),
            None => missing_group(broker, group),
        };
        (index, attempt)
    };
    items.iter().map(result).collect()
}

fn list_groups_once(broker: &mut PooledBroker, until: Instant) -> Attempt<Vec<ListedGroup>> {
    match broker.call(&ListGroupsRequest, until) {
        Ok(response) => {
            broker.throttle(response.throttle_time_ms);
            match response.error_code {
                error_code::NONE => Attempt::Final(Ok(response.groups)),
                code => {
                    let what = format!("groups of broker {}", broker.address());
                    Attempt::failed(OffsetError::refused(&what, code))
                }
            }
        }
        Err(failure) => Attempt::failed(failure.into()),
    }
}

fn described<T>(
    broker: &PooledBroker,
    names: &[Arc<str>],
    items: &[usize],
    found: Described<T>,
) -> Vec<(usize, Attempt<T>)> {
    let found = match found {
        Ok(found) => found,
        Err(failure) => return all_failed(items, failure.into()).collect(),
    };
    let mut by_group: HashMap<String, (i16, T)> =
        found.into_iter().map(|(name, code, group)| (name, (code, group))).collect();
    let result = |&index: &usize| {
        let attempt = match by_group.remove(&*names[index]) {
            Some((code, _)) if code != error_code::NONE => group_failed(&names[index], code),
            Some((_, group)) => Attempt::Final(Ok(group)),
            None => missing_group(broker, &names[index]),
        };
        (index, attempt)
    };
    items.iter().map(result).collect()
}

/// Routes items to the brokers with these ids.
struct BrokerRouter<'a> {
    metadata: &'a mut MetadataClient,
    brokers: &'a [BrokerId],
}

impl<T> Router<(), T> for BrokerRouter<'_> {
    fn route(&mut self, items: &[usize], is_retry: bool, until: Instant) -> Vec<(usize, Route<(), T>)> {
        if is_retry {
            // The address of a broker may have changed. If this fails, the old addresses are used.
            let _ = self.metadata.request(MetadataTopics::None, until);
        }
        let route = |&index: &usize| {
            let id = self.brokers[index];
            let route = match self.metadata.brokers().get(&id) {
                Some(broker) => Route::Broker(broker.id, broker.address.clone(), ()),
                None => {
                    let reason = format!("broker {id} is not up any more");
                    Route::Failed(Attempt::Retry(Err(OffsetError::new(OffsetErrorKind::Unreachable, reason))))
                }
            };
            (index, route)
        };
        items.iter().map(route).collect()
    }
}
