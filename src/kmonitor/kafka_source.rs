//! Reads modules from Kafka: consumer groups, their committed offsets and their members.
//!
//! A broker that does not respond costs its own groups only, and one wait: for [`SILENT_PAUSE`] it is not asked again,
//! whatever for. One that only describes its groups too slowly is still asked for lists and offsets.

use std::collections::{BTreeMap, BTreeSet};
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
/// Time after which a broker that did not respond is asked again.
const SILENT_PAUSE: Duration = Duration::from_secs(5);

/// Reads the consumer groups of one cluster.
pub(super) struct KafkaSource {
    client: Client<dyn GroupReader>,
    /// The brokers that did not respond, and when the next request may be sent to them.
    silent: BTreeMap<i32, Instant>,
    /// The same for the brokers that did not describe their groups.
    silent_about_members: BTreeMap<i32, Instant>,
    /// Number of requests sent so far, as far as they can be counted here.
    pub request_count: u64,
}

/// What coordinators are asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Offsets,
    Members,
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
        KafkaSource {
            client: Client::new(connect),
            silent: BTreeMap::new(),
            silent_about_members: BTreeMap::new(),
            request_count: 0,
        }
    }

    /// Lists the groups for which `is_wanted`.
    pub(super) fn groups(&mut self, hosts: &[String], is_wanted: impl Fn(&str) -> bool) -> Result<KafkaGroups, String> {
        let began = Instant::now();
        let list = self.client.get(hosts)?.list(&resting(&self.silent, began), began + TIMEOUT);
        self.request_count += 1;
        let failure = (!list.failures.is_empty()).then(|| list.failures.join("; "));
        if let Some(failure) = failure.as_ref().filter(|_| list.groups.is_empty()) {
            // The next list is requested by a new client, perhaps from other addresses.
            self.client.forget();
            self.silent.clear();
            self.silent_about_members.clear();
            return Err(failure.clone());
        }
        let retry_at = Instant::now() + SILENT_PAUSE;
        self.silent.extend(list.silent.iter().map(|broker| (*broker, retry_at)));
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
        let found = self.ask(Asked::Offsets, groups, |reader, groups, deadline| reader.committed(groups, deadline));
        found.into_iter().map(|offsets| module_of(offsets, names)).collect()
    }

    /// Reads the members of groups, in the order of `groups`.
    pub(super) fn describe(&mut self, groups: &[Arc<str>]) -> Vec<Option<GroupDescription>> {
        let found = self.ask(Asked::Members, groups, |reader, groups, deadline| reader.describe(groups, deadline));
        found.into_iter().map(Result::ok).collect()
    }

    /// Calls `request` for the groups whose coordinators respond, and returns a result for each group, in the order of
    /// `groups`.
    fn ask<T>(
        &mut self,
        asked_for: Asked,
        groups: &[Arc<str>],
        request: impl FnOnce(&mut dyn GroupReader, &[Arc<str>], Instant) -> Vec<Result<T, MetadataError>>,
    ) -> Vec<Result<T, MetadataError>> {
        let does_not_respond = |broker| {
            let reason = format!("broker {broker}, which coordinates the group, does not respond");
            Err(MetadataError::Unreachable(reason))
        };
        let Some(reader) = self.client.known() else {
            return groups.iter().map(|_| Err(MetadataError::Unreachable("no broker responds".to_owned()))).collect();
        };
        let began = Instant::now();
        let mut resting = resting(&self.silent, began);
        if asked_for == Asked::Members {
            resting.extend(self::resting(&self.silent_about_members, began));
        }
        // After the pause the groups may have another coordinator.
        let doubtful = self.silent.keys().filter(|broker| !resting.contains(broker)).copied().collect();
        // The rest of the time is left for the request.
        let coordinators = reader.coordinators(groups, &doubtful, began + TIMEOUT / 2);
        let resting_of = |index: usize| coordinators[index].filter(|broker| resting.contains(broker));
        let asked: Vec<usize> = (0..groups.len()).filter(|index| resting_of(*index).is_none()).collect();
        let names: Vec<Arc<str>> = asked.iter().map(|index| Arc::clone(&groups[*index])).collect();
        self.request_count += names.len().div_ceil(50) as u64;
        let found = if names.is_empty() { Vec::new() } else { request(reader, &names, began + TIMEOUT) };
        let retry_at = Instant::now() + SILENT_PAUSE;
        let (mut responding, mut unreachable) = (BTreeSet::new(), BTreeSet::new());
        let mut results: Vec<_> = (0..groups.len()).map(|index| resting_of(index).map(does_not_respond)).collect();
        for (index, result) in asked.into_iter().zip(found) {
            let list =
                if matches!(result, Err(MetadataError::Unreachable(_))) { &mut unreachable } else { &mut responding };
            list.extend(coordinators[index]);
            results[index] = Some(result);
        }
        let silent = match asked_for {
            Asked::Offsets => &mut self.silent,
            Asked::Members => &mut self.silent_about_members,
        };
        silent.extend(unreachable.into_iter().map(|broker| (broker, retry_at)));
        silent.retain(|broker, _| !responding.contains(broker));
        let missing = || Err(MetadataError::Unreachable("no response".to_owned()));
        results.into_iter().map(|result| result.unwrap_or_else(missing)).collect()
    }
}

/// Returns the brokers that are not to be asked yet.
fn resting(silent: &BTreeMap<i32, Instant>, now: Instant) -> BTreeSet<i32> {
    silent.iter().filter(|(_, retry_at)| now < **retry_at).map(|(broker, _)| *broker).collect()
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Three groups of a cluster in memory.
    struct Groups;

    impl GroupReader for Groups {
        fn list(&mut self, _: &BTreeSet<i32>, _: Instant) -> GroupListing {
            let group = |name: &str, state| ListedGroup { name: name.into(), state };
            let groups = vec![
                group("m", GroupState::Active),
                group("empty", GroupState::Empty),
                group("old", GroupState::Unknown),
                group("console-1", GroupState::Active),
            ];
            GroupListing { groups, ..GroupListing::default() }
        }

        fn coordinators(&mut self, groups: &[Arc<str>], _: &BTreeSet<i32>, _: Instant) -> Vec<Option<i32>> {
            groups.iter().map(|group| Some(if &**group == "silent" { 2 } else { 1 })).collect()
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

    /// Groups of two coordinators, of which the second one may be silent; counts the waits for it.
    #[derive(Clone, Default)]
    struct TwoCoordinators {
        waits: Arc<AtomicUsize>,
        /// It is silent to these requests.
        to_lists: bool,
        to_others: bool,
        doubted: Arc<AtomicUsize>,
    }

    impl TwoCoordinators {
        fn broker(group: &str) -> i32 {
            if group.starts_with('a') { 1 } else { 2 }
        }

        fn all<T: Default>(&self, groups: &[Arc<str>]) -> Vec<Result<T, MetadataError>> {
            let is_silent = |group: &Arc<str>| self.to_others && Self::broker(group) == 2;
            self.waits.fetch_add(usize::from(groups.iter().any(is_silent)), Ordering::Relaxed);
            let result = |group: &Arc<str>| match is_silent(group) {
                true => Err(MetadataError::Unreachable("no response".into())),
                false => Ok(T::default()),
            };
            groups.iter().map(result).collect()
        }
    }

    impl GroupReader for TwoCoordinators {
        fn list(&mut self, except: &BTreeSet<i32>, _: Instant) -> GroupListing {
            let groups = vec![ListedGroup { name: "a0".into(), state: GroupState::Active }];
            if !self.to_lists || except.contains(&2) {
                let failures = except.iter().map(|broker| format!("broker {broker} is left out")).collect();
                return GroupListing { groups, failures, ..GroupListing::default() };
            }
            self.waits.fetch_add(1, Ordering::Relaxed);
            GroupListing { groups, failures: vec!["no response".to_owned()], silent: vec![2] }
        }

        fn coordinators(&mut self, groups: &[Arc<str>], doubtful: &BTreeSet<i32>, _: Instant) -> Vec<Option<i32>> {
            self.doubted.fetch_add(doubtful.len(), Ordering::Relaxed);
            groups.iter().map(|group| Some(Self::broker(group))).collect()
        }

        fn committed(&mut self, groups: &[Arc<str>], _: Instant) -> Vec<Result<Vec<CommittedOffset>, MetadataError>> {
            self.all(groups)
        }

        fn describe(&mut self, groups: &[Arc<str>], _: Instant) -> Vec<Result<GroupDescription, MetadataError>> {
            self.all(groups)
        }
    }

    #[test]
    fn a_coordinator_that_is_silent_costs_one_wait_a_poll_and_its_own_groups() {
        let names = |number: u32| ["a", "b", "c"].map(|name| Arc::from(format!("{name}{number}")));
        for (to_lists, to_others) in [(true, true), (false, true), (true, false)] {
            let groups = TwoCoordinators { to_lists, to_others, ..TwoCoordinators::default() };
            let reader = groups.clone();
            let mut source = KafkaSource::new(Box::new(move |_| Ok(Box::new(reader.clone()))));
            let waits = || groups.waits.swap(0, Ordering::Relaxed);
            // The second poll follows at once.
            for poll in 0..2 {
                let list = source.groups(&["b:1".into()], |_| true).unwrap();
                assert_eq!(list.failure.is_some(), to_lists || poll == 1, "{to_lists} {to_others} {poll}");
                for slice in 0..5 {
                    let found = source.modules(&names(slice), &mut NameInterner::default());
                    assert_eq!(found.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, false]);
                }
                let described = source.describe(&names(9));
                assert_eq!(described.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, false]);
                assert_eq!(waits(), usize::from(poll == 0), "{to_lists} {to_others} {poll}");
            }
            assert_eq!(groups.doubted.load(Ordering::Relaxed), 0);
            // The pause has passed: it is asked, after a look-up of who it is now.
            source.silent.insert(2, Instant::now());
            let found = source.modules(&names(0), &mut NameInterner::default());
            assert_eq!((found[1].is_ok(), source.silent.is_empty()), (!to_others, !to_others));
            assert_eq!((waits(), groups.doubted.load(Ordering::Relaxed)), (usize::from(to_others), 1));
        }
    }
}
