//! Reads modules from Kafka: consumer groups, their committed offsets and their members.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::broker::{CommittedOffset, GroupDescription, GroupReader, GroupState, MetadataError, PartitionId};

use super::client::{Client, Connect};
use super::facts::{Owner, Stored};
use super::names::NameInterner;
use super::pauses::Pauses;
use super::readings::{ModuleReading, PlaceReading, TopicReading};

/// Longest wait for the brokers that coordinate the groups.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Reads the consumer groups of one cluster.
pub(super) struct KafkaSource {
    client: Client<dyn GroupReader>,
    /// Number of requests sent so far, as far as they can be counted here.
    pub request_count: u64,
}

/// The groups of a cluster.
#[derive(Debug, Default)]
pub(super) struct KafkaGroups {
    /// Whether each group has members; `None` if the brokers do not say so in a list.
    pub has_members: BTreeMap<Arc<str>, Option<bool>>,
    /// Why groups may be missing; `None` if the list is complete.
    pub failure: Option<String>,
}

impl KafkaSource {
    /// Makes a source without a Kafka client; the first request calls `connect`.
    pub(super) fn new(connect: Connect<dyn GroupReader>) -> Self {
        KafkaSource { client: Client::new(connect), request_count: 0 }
    }

    /// Lists the groups for which `is_wanted`.
    pub(super) fn groups(&mut self, hosts: &[String], is_wanted: impl Fn(&str) -> bool) -> Result<KafkaGroups, String> {
        let list = self.client.get(hosts)?.list(Instant::now() + TIMEOUT);
        self.request_count += 1;
        let failure = (!list.failures.is_empty()).then(|| list.failures.join("; "));
        if let Some(failure) = failure.as_ref().filter(|_| list.groups.is_empty()) {
            // The next list is requested by a new client, perhaps from other addresses.
            self.client.forget();
            return Err(failure.clone());
        }
        let has_members = |state| match state {
            GroupState::Active => Some(true),
            GroupState::Empty => Some(false),
            GroupState::Unknown => None,
        };
        let wanted = list.groups.into_iter().filter(|group| is_wanted(&group.name));
        Ok(KafkaGroups { has_members: wanted.map(|group| (group.name, has_members(group.state))).collect(), failure })
    }

    /// Reads the committed offsets of groups, in the order of `groups`. A group that never committed has no topics.
    pub(super) fn modules(
        &mut self,
        groups: &[Arc<str>],
        names: &mut NameInterner,
    ) -> Vec<Result<Option<ModuleReading>, String>> {
        let Some(reader) = self.client.known() else {
            return groups.iter().map(|_| Err("no broker responds".to_owned())).collect();
        };
        self.request_count += groups.len().div_ceil(50) as u64;
        let found = reader.committed(groups, Instant::now() + TIMEOUT);
        found.into_iter().map(|offsets| module_of(offsets, names)).collect()
    }

    /// Reads the members of groups, in the order of `groups`.
    pub(super) fn describe(&mut self, groups: &[Arc<str>]) -> Vec<Option<GroupDescription>> {
        let Some(reader) = self.client.known() else { return groups.iter().map(|_| None).collect() };
        self.request_count += groups.len().div_ceil(50) as u64;
        reader.describe(groups, Instant::now() + TIMEOUT).into_iter().map(Result::ok).collect()
    }
}

fn module_of(
    offsets: Result<Vec<CommittedOffset>, MetadataError>,
    names: &mut NameInterner,
) -> Result<Option<ModuleReading>, String> {
    let offsets = match offsets {
        Ok(offsets) => offsets,
        Err(MetadataError::NotAuthorized(denied)) => {
            return Ok(Some(ModuleReading { refused: Some(denied.into()), ..ModuleReading::default() }));
        }
        Err(failure) => return Err(failure.to_string()),
    };
    let mut reading = ModuleReading::default();
    let mut texts: BTreeMap<Arc<str>, Vec<(PartitionId, String)>> = BTreeMap::new();
    for CommittedOffset { at, offset, metadata } in offsets {
        let name = names.intern(&at.topic);
        let topic: &mut TopicReading = reading.topics.entry(Arc::clone(&name)).or_default();
        let place = PlaceReading { stored: Stored::Offset(offset), ..PlaceReading::nothing(Owner::Unknown) };
        topic.places.insert(at.partition, place);
        texts.entry(name).or_default().push((at.partition, metadata));
    }
    for (name, topic) in &mut reading.topics {
        let texts = texts.remove(name).unwrap_or_default();
        topic.pauses = Some(Pauses::of_commits(texts.iter().map(|(partition, text)| (*partition, &**text))));
    }
    Ok(Some(reading))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{GroupListing, ListedGroup, TopicPartition};

    /// Three groups of a cluster in memory.
    struct Groups;

    impl GroupReader for Groups {
        fn list(&mut self, _: Instant) -> GroupListing {
            let group = |name: &str, state| ListedGroup { name: name.into(), state };
            let groups = vec![
                group("m", GroupState::Active),
                group("empty", GroupState::Empty),
                group("old", GroupState::Unknown),
                group("console-1", GroupState::Active),
            ];
            GroupListing { groups, failures: Vec::new() }
        }

        fn committed(&mut self, groups: &[Arc<str>], _: Instant) -> Vec<Result<Vec<CommittedOffset>, MetadataError>> {
            let at = TopicPartition { topic: "t".into(), partition: 2 };
            let metadata = "kt1;o=7;t=4;p=0,1767225600000,ann".to_owned();
            let of = |group: &Arc<str>| match &**group {
                "m" => Ok(vec![CommittedOffset { at: at.clone(), offset: 7, metadata: metadata.clone() }]),
                "denied" => Err(MetadataError::NotAuthorized("group denied".into())),
                "empty" => Ok(Vec::new()),
                _ => Err(MetadataError::Unreachable("no response".into())),
            };
            groups.iter().map(of).collect()
        }

        fn describe(&mut self, groups: &[Arc<str>], _: Instant) -> Vec<Result<GroupDescription, MetadataError>> {
            groups.iter().map(|_| Ok(GroupDescription::default())).collect()
        }
    }

    #[test]
    fn groups_that_are_wanted_are_modules_with_their_committed_offsets() {
        let mut source = KafkaSource::new(Box::new(|_| Ok(Box::new(Groups))));
        let list = source.groups(&["b:1".into()], |name| !name.starts_with("console-")).unwrap();
        let members: Vec<_> = list.has_members.iter().map(|(name, members)| (&**name, *members)).collect();
        assert_eq!(members, [("empty", Some(false)), ("m", Some(true)), ("old", None)]);
        let wanted: Vec<Arc<str>> = ["m", "empty", "denied", "silent"].map(Arc::from).to_vec();
        let mut names = NameInterner::default();
        let found = source.modules(&wanted, &mut names);
        let reading = found[0].as_ref().unwrap().as_ref().unwrap();
        assert_eq!(reading.topics["t"].places[&2].stored, Stored::Offset(7));
        let pauses = reading.topics["t"].pauses.as_ref().unwrap();
        assert_eq!(pauses.of(2).map(|pause| &*pause.by), Some("ann"));
        assert_eq!((reading.members, &found[1]), (None, &Ok(Some(ModuleReading::default()))));
        assert!(found[2].as_ref().unwrap().as_ref().unwrap().refused.is_some());
        assert!(found[3].is_err());
        let mut unreachable = KafkaSource::new(Box::new(|_| Err("no route".into())));
        assert_eq!(unreachable.groups(&["b:1".into()], |_| true).map(|_| ()), Err("no route".into()));
        assert!(unreachable.modules(&wanted, &mut names).iter().all(Result::is_err));
    }
}
