//! The committed offsets of a group, through [`OffsetReader`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::config;
use crate::broker::membership::{CommitError, CommittedOffset, GroupMembers, GroupOffsets};
use crate::broker::{BrokerConfig, PartitionId};
use crate::kafka::error_code;
use crate::kafka::group::subscription::decode_assignment;
use crate::kafka::offsets::{
    FetchedOffset, GroupMember, GroupMemberId, GroupRequest, OffsetError, OffsetErrorKind, OffsetReader, OffsetToCommit,
};

/// Reads and commits the offsets of one topic for one group.
pub(in crate::broker) struct NativeGroupOffsets {
    reader: OffsetReader,
    group: Arc<str>,
    topic: Arc<str>,
}

impl NativeGroupOffsets {
    /// Makes the reader; no broker need be reachable. Fails if a file of the settings cannot be read.
    pub(in crate::broker) fn new(broker: &BrokerConfig, group: Arc<str>, topic: Arc<str>) -> Result<Self, String> {
        let connector = config::connector(broker, config::MAX_METADATA_RESPONSE_BYTES)?;
        let reader = OffsetReader::new(connector, config::bootstrap(&broker.hosts)?);
        Ok(NativeGroupOffsets { reader, group, topic })
    }

    /// Commits as `member`, or from outside of the group; returns error codes beside the errors of the seam.
    pub(super) fn commit_as(
        &mut self,
        member: Option<&GroupMemberId>,
        offsets: &[CommittedOffset],
        deadline: Instant,
    ) -> Vec<Result<(), (CommitError, Option<i16>)>> {
        let offset = |committed: &CommittedOffset| OffsetToCommit {
            topic: Arc::clone(&self.topic),
            partition: committed.partition,
            offset: committed.offset,
            leader_epoch: committed.leader_epoch.unwrap_or(-1),
            metadata: Some(committed.metadata.clone()),
        };
        let offsets: Vec<_> = offsets.iter().map(offset).collect();
        let results = self.reader.commit(&self.group, member, &offsets, deadline);
        results.into_iter().map(|result| result.map_err(|error| commit_error(&error))).collect()
    }

    fn committed_offset(&self, fetched: FetchedOffset) -> Result<Option<CommittedOffset>, String> {
        let FetchedOffset { partition, offset, leader_epoch, metadata, error_code } = fetched;
        if error_code != error_code::NONE {
            let name = error_code::name(error_code);
            return Err(format!("committed offset of {}/{partition}: {name}", self.topic));
        }
        let leader_epoch = Some(leader_epoch).filter(|epoch| *epoch >= 0);
        let metadata = metadata.unwrap_or_default();
        // -1 is the absence of an offset.
        Ok((offset >= 0).then_some(CommittedOffset { partition, offset, leader_epoch, metadata }))
    }
}

impl GroupOffsets for NativeGroupOffsets {
    fn committed(&mut self, deadline: Instant) -> Result<Vec<CommittedOffset>, String> {
        let request = GroupRequest { group: Arc::clone(&self.group), topics: None };
        let mut found = self.reader.committed(&[request], true, deadline);
        let topics = found.pop().unwrap_or_else(|| Ok(Vec::new())).map_err(|error| error.to_string())?;
        let of_topic = topics.into_iter().filter(|(topic, _)| *topic == self.topic).flat_map(|(_, offsets)| offsets);
        of_topic.filter_map(|fetched| self.committed_offset(fetched).transpose()).collect()
    }

    fn members(&mut self, deadline: Instant) -> Result<GroupMembers, String> {
        let mut found = self.reader.describe_groups(std::slice::from_ref(&self.group), deadline);
        let none = GroupMembers { names: Vec::new(), assigned: Some(BTreeSet::new()) };
        let described = match found.pop() {
            None => return Ok(none),
            Some(Err(error)) if error.kind == OffsetErrorKind::Refused(error_code::GROUP_ID_NOT_FOUND) => {
                return Ok(none);
            }
            Some(described) => described.map_err(|error| error.to_string())?,
        };
        let name = |member: &GroupMember| {
            let instance = member.instance_id.as_ref().map(|id| format!(" (instance_id {id})")).unwrap_or_default();
            format!("{} at {}{instance}", member.member_id, member.client_host)
        };
        let names = described.members.iter().map(name).collect();
        let assigned = match &*described.state {
            "Stable" => Some(assigned(&described.members, &self.topic)?),
            "Empty" | "Dead" => Some(BTreeSet::new()),
            _ => None,
        };
        Ok(GroupMembers { names, assigned })
    }

    fn n_partitions(&mut self, deadline: Instant) -> Result<Option<PartitionId>, String> {
        match self.reader.partitions(&self.topic, deadline) {
            Ok(topic) => Ok(Some(PartitionId::try_from(topic.partitions.len()).unwrap_or(PartitionId::MAX))),
            Err(error) if error.kind == OffsetErrorKind::UnknownTopic => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    fn commit(&mut self, offsets: &[CommittedOffset], deadline: Instant) -> Vec<Result<(), CommitError>> {
        let results = self.commit_as(None, offsets, deadline);
        results.into_iter().map(|result| result.map_err(|(error, _)| error)).collect()
    }
}

/// Returns the partitions of `topic` in the assignments.
fn assigned(members: &[GroupMember], topic: &str) -> Result<BTreeSet<PartitionId>, String> {
    let mut found = BTreeSet::new();
    for member in members {
        let partitions = decode_assignment(&member.assignment)
            .map_err(|cause| format!("the assignment of member {} is malformed: {cause}", member.member_id))?;
        found.extend(partitions.iter().filter(|of| *of.topic == *topic).map(|of| of.partition));
    }
    Ok(found)
}

fn commit_error(error: &OffsetError) -> (CommitError, Option<i16>) {
    let reason = error.reason.to_string();
    let OffsetErrorKind::Refused(code) = error.kind else { return (CommitError::Failed(reason), None) };
    let kind = match code {
        error_code::OFFSET_METADATA_TOO_LARGE => CommitError::MetadataTooLong,
        error_code::UNKNOWN_MEMBER_ID | error_code::ILLEGAL_GENERATION | error_code::FENCED_INSTANCE_ID => {
            CommitError::Ended(reason)
        }
        _ => CommitError::Failed(reason),
    };
    (kind, Some(code))
}
