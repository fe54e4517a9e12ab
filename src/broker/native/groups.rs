//! Consumer groups and their committed offsets, through [`OffsetReader`].

use std::sync::Arc;
use std::time::Instant;

use super::config;
use super::log_ends::metadata_error;
use crate::broker::{
    BrokerConfig, GroupDescription, GroupListing, GroupReader, GroupState, ListedGroup, MetadataError, Offset,
    TopicPartition,
};
use crate::kafka::error_code;
use crate::kafka::group::subscription::decode_assignment;
use crate::kafka::offsets::{self, DescribedGroup, GroupRequest, OffsetError, OffsetErrorKind, OffsetReader};

/// Protocol type of the groups of consumers.
const CONSUMER_PROTOCOL: &str = "consumer";

/// Reads consumer groups with the client in `src/kafka`.
pub(in crate::broker) struct NativeGroups {
    reader: OffsetReader,
}

impl NativeGroups {
    /// Makes the reader; no broker need be reachable. Fails if a file of the settings cannot be read.
    pub(in crate::broker) fn new(broker: &BrokerConfig) -> Result<Self, String> {
        let connector = config::connector(broker, config::MAX_METADATA_RESPONSE_BYTES)?;
        Ok(NativeGroups { reader: OffsetReader::new(connector, config::bootstrap(&broker.hosts)?) })
    }
}

impl GroupReader for NativeGroups {
    fn list(&mut self, deadline: Instant) -> GroupListing {
        let list = self.reader.list_groups(deadline);
        GroupListing {
            groups: list.groups.iter().filter(|group| is_of_consumers(group)).map(seam_group).collect(),
            failures: list.failures.iter().map(ToString::to_string).collect(),
        }
    }

    fn committed(
        &mut self,
        groups: &[Arc<str>],
        deadline: Instant,
    ) -> Vec<Result<Vec<(TopicPartition, Offset)>, MetadataError>> {
        let requests: Vec<_> =
            groups.iter().map(|group| GroupRequest { group: Arc::clone(group), topics: None }).collect();
        let found = self.reader.committed(&requests, false, deadline);
        let offsets = |(group, topics): (&Arc<str>, Result<Vec<offsets::TopicOffsets>, OffsetError>)| {
            Ok(topics.map_err(|error| metadata_error(group, &error))?.iter().flat_map(seam_offsets).collect())
        };
        groups.iter().zip(found).map(offsets).collect()
    }

    fn describe(&mut self, groups: &[Arc<str>], deadline: Instant) -> Vec<Result<GroupDescription, MetadataError>> {
        let found = self.reader.describe_groups(groups, deadline);
        let description = |(group, found): (&Arc<str>, Result<DescribedGroup, OffsetError>)| match found {
            Ok(found) => Ok(seam_description(&found)),
            Err(error) if error.kind == OffsetErrorKind::Refused(error_code::GROUP_ID_NOT_FOUND) => {
                Ok(GroupDescription::default())
            }
            Err(error) => Err(metadata_error(group, &error)),
        };
        groups.iter().zip(found).map(description).collect()
    }
}

/// Whether the members are consumers. A group that had only commits from outside has no protocol.
fn is_of_consumers(group: &offsets::ListedGroup) -> bool {
    matches!(&*group.protocol_type, CONSUMER_PROTOCOL | "")
        && matches!(&*group.group_type.to_ascii_lowercase(), "" | "classic" | CONSUMER_PROTOCOL)
}

fn seam_group(group: &offsets::ListedGroup) -> ListedGroup {
    let state = match &*group.state {
        "" => GroupState::Unknown,
        "Empty" | "Dead" => GroupState::Empty,
        _ => GroupState::Active,
    };
    ListedGroup { name: group.group.as_str().into(), state }
}

fn seam_offsets((topic, found): &offsets::TopicOffsets) -> impl Iterator<Item = (TopicPartition, Offset)> {
    let is_committed = |of: &&offsets::FetchedOffset| of.error_code == error_code::NONE && of.offset >= 0;
    let at =
        |of: &offsets::FetchedOffset| (TopicPartition { topic: Arc::clone(topic), partition: of.partition }, of.offset);
    found.iter().filter(is_committed).map(at)
}

fn seam_description(group: &DescribedGroup) -> GroupDescription {
    let mut owners = Vec::new();
    for member in &group.members {
        let host = member.client_host.trim_start_matches('/');
        let name: Arc<str> = format!("{}@{host}", member.client_id).into();
        // An assignment that cannot be decoded is that of another strategy.
        let assigned = decode_assignment(&member.assignment).unwrap_or_default();
        owners.extend(
            assigned
                .into_iter()
                .map(|at| (TopicPartition { topic: at.topic, partition: at.partition }, Arc::clone(&name))),
        );
    }
    GroupDescription { member_count: group.members.len(), owners }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::group::{self, subscription::encode_assignment};
    use crate::kafka::offsets::{FetchedOffset, GroupMember};

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
    fn offsets_that_are_not_committed_are_left_out() {
        let offset = |partition, offset, error_code| FetchedOffset {
            partition,
            offset,
            leader_epoch: -1,
            metadata: None,
            error_code,
        };
        let topic = ("t".into(), vec![offset(0, 7, 0), offset(1, -1, 0), offset(2, 7, 88)]);
        let found: Vec<_> = seam_offsets(&topic).collect();
        assert_eq!(found, [(TopicPartition { topic: "t".into(), partition: 0 }, 7)]);
    }

    #[test]
    fn each_assigned_partition_has_its_member() {
        let member = |client: &str, assignment: Vec<u8>| GroupMember {
            member_id: format!("{client}-1"),
            instance_id: None,
            client_id: client.into(),
            client_host: "/10.0.0.1".into(),
            metadata: Vec::new(),
            assignment,
        };
        let at = group::TopicPartition { topic: "t".into(), partition: 3 };
        let group = DescribedGroup {
            group: "g".into(),
            error_code: 0,
            error_message: None,
            state: "Stable".into(),
            protocol_type: "consumer".into(),
            protocol: "range".into(),
            members: vec![member("a", encode_assignment(&[at])), member("b", b"?".to_vec())],
        };
        let found = seam_description(&group);
        let expected = vec![(TopicPartition { topic: "t".into(), partition: 3 }, Arc::from("a@10.0.0.1"))];
        assert_eq!((found.member_count, found.owners), (2, expected));
    }
}
