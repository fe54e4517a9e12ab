//! Consumer groups and their committed offsets, through [`OffsetReader`].

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use super::config;
use super::log_ends::metadata_error;
use crate::broker::{
    BrokerConfig, CommittedOffset, GroupDescription, GroupListing, GroupReader, GroupState, ListedGroup, MetadataError,
    PartitionId, TopicPartition,
};
use crate::kafka::error_code;
use crate::kafka::group::subscription::decode_assignment;
use crate::kafka::offsets::{
    self, DescribedConsumerGroup, DescribedGroup, GroupRequest, OffsetError, OffsetErrorKind, OffsetReader,
};

/// The state of a group whose members have their partitions. Otherwise a member's assignment is empty, or that of the
/// rebalance before.
const STABLE: &str = "Stable";
/// The states of a group without members.
const WITHOUT_MEMBERS: [&str; 2] = ["Empty", "Dead"];

/// Protocol type of the groups of consumers.
const CONSUMER_PROTOCOL: &str = "consumer";

/// Reads consumer groups with the client in `src/kafka`.
pub(in crate::broker) struct NativeGroups {
    reader: OffsetReader,
    /// The groups of the consumer protocol (KIP-848) in the last list. Another request describes them.
    of_new_protocol: HashSet<Arc<str>>,
}

impl NativeGroups {
    /// Makes the reader; no broker need be reachable. Fails if a file of the settings cannot be read.
    pub(in crate::broker) fn new(broker: &BrokerConfig) -> Result<Self, String> {
        let connector = config::connector(broker, config::MAX_METADATA_RESPONSE_BYTES)?;
        let reader = OffsetReader::new(connector, config::bootstrap(&broker.hosts)?);
        Ok(NativeGroups { reader, of_new_protocol: HashSet::new() })
    }
}

impl GroupReader for NativeGroups {
    fn list(&mut self, except: &BTreeSet<i32>, deadline: Instant) -> GroupListing {
        let list = self.reader.list_groups(except, deadline);
        let of_new_protocol = list.groups.iter().filter(|group| is_of_new_protocol(group));
        self.of_new_protocol = of_new_protocol.map(|group| group.group.as_str().into()).collect();
        GroupListing {
            groups: list.groups.iter().filter(|group| is_of_consumers(group)).map(seam_group).collect(),
            failures: list.failures.iter().map(ToString::to_string).collect(),
            silent: list.silent,
        }
    }

    fn coordinators(&mut self, groups: &[Arc<str>], doubtful: &BTreeSet<i32>, deadline: Instant) -> Vec<Option<i32>> {
        self.reader.coordinators(groups, doubtful, deadline)
    }

    fn committed(
        &mut self,
        groups: &[Arc<str>],
        deadline: Instant,
    ) -> Vec<Result<Vec<CommittedOffset>, MetadataError>> {
        let requests: Vec<_> =
            groups.iter().map(|group| GroupRequest { group: Arc::clone(group), topics: None }).collect();
        let found = self.reader.committed(&requests, false, deadline);
        let offsets = |(group, topics): (&Arc<str>, Result<Vec<offsets::TopicOffsets>, OffsetError>)| {
            seam_offsets(topics.map_err(|error| metadata_error(group, &error))?)
        };
        groups.iter().zip(found).map(offsets).collect()
    }

    fn describe(&mut self, groups: &[Arc<str>], deadline: Instant) -> Vec<Result<GroupDescription, MetadataError>> {
        let is_new = |group: &&Arc<str>| self.of_new_protocol.contains(*group);
        let (new, classic): (Vec<Arc<str>>, Vec<Arc<str>>) = groups.iter().cloned().partition(|group| is_new(&group));
        let mut found: HashMap<&Arc<str>, Result<GroupDescription, OffsetError>> = HashMap::new();
        if !classic.is_empty() {
            let described = self.reader.describe_groups(&classic, deadline);
            found.extend(classic.iter().zip(described.into_iter().map(|group| Ok(classic_description(&group?)))));
        }
        if !new.is_empty() {
            let described = self.reader.describe_consumer_groups(&new, deadline);
            found.extend(new.iter().zip(described.into_iter().map(|group| Ok(consumer_description(&group?)))));
        }
        let description = |group: &Arc<str>| match found.remove(group) {
            Some(Err(error)) if error.kind != OffsetErrorKind::Refused(error_code::GROUP_ID_NOT_FOUND) => {
                Err(metadata_error(group, &error))
            }
            Some(Ok(found)) => Ok(found),
            _ => Ok(GroupDescription { member_count: 0, owners: Some(Vec::new()) }),
        };
        groups.iter().map(description).collect()
    }
}

/// Whether the members are consumers. A group that had only commits from outside has no protocol.
fn is_of_consumers(group: &offsets::ListedGroup) -> bool {
    matches!(&*group.protocol_type, CONSUMER_PROTOCOL | "")
        && matches!(&*group.group_type.to_ascii_lowercase(), "" | "classic" | CONSUMER_PROTOCOL)
}

fn is_of_new_protocol(group: &offsets::ListedGroup) -> bool {
    group.group_type.eq_ignore_ascii_case(CONSUMER_PROTOCOL)
}

fn seam_group(group: &offsets::ListedGroup) -> ListedGroup {
    let state = match &*group.state {
        "" => GroupState::Unknown,
        state if WITHOUT_MEMBERS.contains(&state) => GroupState::Empty,
        _ => GroupState::Active,
    };
    ListedGroup { name: group.group.as_str().into(), state }
}

fn seam_offsets(topics: Vec<offsets::TopicOffsets>) -> Result<Vec<CommittedOffset>, MetadataError> {
    let mut offsets = Vec::new();
    for (topic, found) in topics {
        for of in found {
            let at = TopicPartition { topic: Arc::clone(&topic), partition: of.partition };
            if of.error_code != error_code::NONE {
                let code = error_code::name(of.error_code);
                return Err(MetadataError::Partition(format!("the committed offset of {at}: {code}")));
            }
            if of.offset >= 0 {
                offsets.push(CommittedOffset { at, offset: of.offset, metadata: of.metadata.unwrap_or_default() });
            }
        }
    }
    Ok(offsets)
}

fn classic_description(group: &DescribedGroup) -> GroupDescription {
    let members = group.members.iter().map(|member| {
        let assigned = decode_assignment(&member.assignment).ok();
        let assigned =
            assigned.map(|assigned| assigned.into_iter().map(|at| (at.topic, vec![at.partition])).collect::<Vec<_>>());
        (owner_name(&member.client_id, &member.client_host), assigned)
    });
    description(&group.state, members.collect())
}

fn consumer_description(group: &DescribedConsumerGroup) -> GroupDescription {
    let members = group
        .members
        .iter()
        .map(|member| (owner_name(&member.client_id, &member.client_host), Some(member.assignment.clone())));
    description(&group.state, members.collect())
}

/// A member, with its partitions by topic; `None` if they cannot be decoded: it may be any partition.
type MemberPartitions = (Arc<str>, Option<Vec<(Arc<str>, Vec<PartitionId>)>>);

fn description(state: &str, members: Vec<MemberPartitions>) -> GroupDescription {
    let member_count = members.len();
    let owned = |(name, assigned): MemberPartitions| {
        let owned_of = |(topic, partitions): (Arc<str>, Vec<PartitionId>)| {
            let name = Arc::clone(&name);
            partitions
                .into_iter()
                .map(move |partition| (TopicPartition { topic: Arc::clone(&topic), partition }, Arc::clone(&name)))
        };
        Some(assigned?.into_iter().flat_map(owned_of).collect::<Vec<_>>())
    };
    let owners = match state {
        STABLE => members.into_iter().map(owned).collect::<Option<Vec<_>>>().map(|owners| owners.concat()),
        state if WITHOUT_MEMBERS.contains(&state) => Some(Vec::new()),
        _ => None,
    };
    GroupDescription { member_count, owners }
}

fn owner_name(client_id: &str, client_host: &str) -> Arc<str> {
    format!("{client_id}@{}", client_host.trim_start_matches('/')).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::group::{self, subscription::encode_assignment};
    use crate::kafka::offsets::{ConsumerGroupMember, FetchedOffset, GroupMember};

    #[test]
    fn groups_of_other_kinds_are_left_out() {
        for (protocol, kind, is_listed) in [
            ("consumer", "classic", true),
            ("consumer", "Consumer", true),
            ("", "", true),
            ("connect", "classic", false),
            ("share", "share", false),
            ("", "streams", false),
        ] {
            let group = offsets::ListedGroup {
                group: "g".into(),
                protocol_type: protocol.into(),
                state: "Stable".into(),
                group_type: kind.into(),
            };
            assert_eq!(is_of_consumers(&group), is_listed, "{protocol} {kind}");
        }
    }

    #[test]
    fn offsets_that_are_not_committed_are_left_out_and_one_that_cannot_be_read_is_an_error() {
        let offset = |partition, offset, error_code| FetchedOffset {
            partition,
            offset,
            leader_epoch: -1,
            metadata: (partition == 0).then(|| "kt1".to_owned()),
            error_code,
        };
        let topics = |offsets| vec![("t".into(), offsets)];
        let at = TopicPartition { topic: "t".into(), partition: 0 };
        let expected = vec![CommittedOffset { at, offset: 7, metadata: "kt1".to_owned() }];
        assert_eq!(seam_offsets(topics(vec![offset(0, 7, 0), offset(1, -1, 0)])).unwrap(), expected);
        let failed = seam_offsets(topics(vec![offset(0, 7, 0), offset(2, 7, 88)])).unwrap_err();
        assert!(failed.to_string().contains("t/2") || failed.to_string().contains("t-2"), "{failed}");
    }

    #[test]
    fn partitions_have_members_only_in_a_group_that_has_assigned_them() {
        let member = |client: &str, assignment: Vec<u8>| GroupMember {
            member_id: format!("{client}-1"),
            instance_id: None,
            client_id: client.into(),
            client_host: "/10.0.0.1".into(),
            metadata: Vec::new(),
            assignment,
        };
        let at = group::TopicPartition { topic: "t".into(), partition: 3 };
        let assigned = || member("a", encode_assignment(std::slice::from_ref(&at)));
        let owned = Some(vec![(TopicPartition { topic: "t".into(), partition: 3 }, Arc::from("a@10.0.0.1"))]);
        for (state, members, expected) in [
            ("Stable", vec![assigned(), member("b", Vec::new())], owned),
            ("Stable", vec![assigned(), member("b", b"?".to_vec())], None),
            ("PreparingRebalance", vec![member("a", Vec::new())], None),
            ("CompletingRebalance", vec![assigned()], None),
            ("Empty", vec![], Some(vec![])),
            ("Dead", vec![], Some(vec![])),
        ] {
            let group = DescribedGroup {
                group: "g".into(),
                error_code: 0,
                error_message: None,
                state: state.into(),
                protocol_type: "consumer".into(),
                protocol: "range".into(),
                members: members.clone(),
            };
            let found = classic_description(&group);
            assert_eq!((found.member_count, found.owners), (members.len(), expected), "{state} {members:?}");
        }
    }

    #[test]
    fn groups_of_the_new_protocol_have_their_partitions_by_topic() {
        let member = |client: &str, assignment| ConsumerGroupMember {
            client_id: client.into(),
            client_host: "/10.0.0.1".into(),
            assignment,
        };
        let members = vec![member("a", vec![("t".into(), vec![3, 4])]), member("b", Vec::new())];
        let group = |state: &str| DescribedConsumerGroup {
            group: "g".into(),
            error_code: 0,
            state: state.into(),
            members: members.clone(),
        };
        let at = |partition| TopicPartition { topic: "t".into(), partition };
        let owners = [3, 4].map(|partition| (at(partition), Arc::from("a@10.0.0.1"))).to_vec();
        let stable = consumer_description(&group("Stable"));
        assert_eq!((stable.member_count, stable.owners), (2, Some(owners)));
        assert_eq!(consumer_description(&group("Reconciling")).owners, None);
    }
}
