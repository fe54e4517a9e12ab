//! Determines which of its topics and sources a module pushes now. The others are left behind: they are shown, but
//! their delays are not part of the sums.
//!
//! A topic is left behind if another one took its place: the module began with that one when it ended with this one, as
//! was seen, or as the times of the nodes in ZooKeeper say. Without such evidence no topic is left behind: if the
//! consumer of one of several topics has died, its delay counts, and the verdict is STOPPED.
//!
//! A module that changed its topic leaves the stored offsets of the former topic behind, whose delay would grow for as
//! long as others write to it. A module that moves its offsets from ZooKeeper to Kafka, or back, has them in both.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::kmonitor::facts::{Moment, Owner, Source};
use crate::kmonitor::readings::ModuleKey;

use super::{Module, ModuleTopic, Places};

/// A topic of a module, by the names of both.
type ModuleAndTopic = (Arc<str>, Arc<str>);

impl Places {
    /// Decides for all modules.
    pub(super) fn count(&mut self, now: Moment) {
        let after = self.left_behind_after;
        self.modules.values_mut().for_each(|module| module.leave_topics_behind(after, now));
        self.choose_sources();
    }

    /// Whether the delays of a topic of a module are part of the sums.
    pub(super) fn counts(&self, key: &ModuleKey, topic: &Arc<str>) -> bool {
        let source = self.counted.get(&(Arc::clone(&key.name), Arc::clone(topic)));
        source.is_none_or(|source| *source == key.source)
    }

    /// Chooses the source that counts, for each topic of a module that has both: the one that is pushed. While none or
    /// both are, the choice stays.
    fn choose_sources(&mut self) {
        let mut both: BTreeMap<ModuleAndTopic, Vec<(Source, Claim)>> = BTreeMap::new();
        for (key, module) in &self.modules {
            for (name, topic) in &module.topics {
                let at = (Arc::clone(&key.name), Arc::clone(name));
                both.entry(at).or_default().push((key.source, Claim::of(key.source, module, topic)));
            }
        }
        both.retain(|_, claims| 1 < claims.len());
        let before = std::mem::take(&mut self.counted);
        self.counted = both.into_iter().map(|(at, claims)| choice(at, &claims, &before)).collect();
    }
}

/// How good the claim of a source is to be the one that counts.
struct Claim {
    is_pushed: bool,
    has_offsets: bool,
    /// When a stored offset moved last.
    moved: Option<Instant>,
    /// Sum of the stored offsets.
    sum: i128,
}

impl Claim {
    fn of(source: Source, module: &Module, topic: &ModuleTopic) -> Claim {
        let offsets = topic.places.values().filter_map(|place| place.offset());
        let has_offsets = offsets.clone().next().is_some();
        let is_pushed = topic.has_owner() || (module.has_members == Some(true) && !module.knows_owners());
        Claim {
            // A consumer that has committed nothing may be about to take over: all messages of the log would wait.
            is_pushed: is_pushed && (has_offsets || source == Source::Zookeeper),
            has_offsets,
            moved: topic.places.values().filter_map(|place| place.moved).max(),
            sum: offsets.map(i128::from).sum(),
        }
    }
}

fn choice(
    at: ModuleAndTopic,
    claims: &[(Source, Claim)],
    before: &HashMap<ModuleAndTopic, Source>,
) -> (ModuleAndTopic, Source) {
    let pushed: Vec<_> = claims.iter().filter(|(_, claim)| claim.is_pushed && claim.has_offsets).collect();
    let best = || {
        let rank = |(_, claim): &&(Source, Claim)| (claim.is_pushed, claim.has_offsets, claim.moved, claim.sum);
        claims.iter().max_by_key(rank).map_or(Source::Zookeeper, |(source, _)| *source)
    };
    let source = match (pushed[..].first(), before.get(&at)) {
        (Some((source, _)), _) if pushed.len() == 1 => *source,
        (_, Some(before)) => *before,
        _ => best(),
    };
    (at, source)
}

impl Module {
    /// Marks the topics that the module does not push any more: without an owner for `after`, while another has one
    /// that took its place. A group of several topics of which one has lost its consumers has left nothing behind.
    fn leave_topics_behind(&mut self, after: Duration, now: Moment) {
        let owned: Vec<Tenure> =
            self.topics.values().filter(|topic| topic.has_owner()).map(|topic| topic.tenure()).collect();
        for topic in self.topics.values_mut() {
            let is_at_rest = after <= topic.unowned_for(now) && after <= topic.unmoved_for(now);
            if topic.has_owner() || !is_at_rest {
                topic.is_left_behind = false;
            } else if !topic.is_left_behind {
                let tenure = topic.tenure();
                topic.is_left_behind = owned.iter().any(|other| other.follows(&tenure, after));
            }
        }
    }

    /// Whether it is known which partitions have an owner.
    fn knows_owners(&self) -> bool {
        let mut places = self.topics.values().flat_map(|topic| topic.places.values());
        places.any(|place| place.owner_name().is_some())
    }
}

/// From when to when a module pushed a topic, as far as it is known.
struct Tenure {
    /// When it was seen to begin, and when it was seen last.
    seen: (Option<Instant>, Option<Instant>),
    /// By the clock of ZooKeeper: when the first offset node was created, and when the last one was written.
    nodes: (Option<SystemTime>, Option<SystemTime>),
}

impl Tenure {
    /// Whether this one followed the other one: they have at most `overlap` in common, the time of a rolling restart.
    fn follows(&self, other: &Tenure, overlap: Duration) -> bool {
        let is_seen = self.seen.0.zip(other.seen.1).is_some_and(|(began, ended)| ended <= began + overlap);
        let nodes = self.nodes.0.zip(other.nodes.1);
        is_seen || nodes.is_some_and(|(began, ended)| ended.checked_sub(overlap).is_none_or(|ended| ended <= began))
    }
}

impl ModuleTopic {
    /// Notes whether the topic has an owner now. An owner that was away for less than `gap` has not begun again.
    pub(super) fn note_owner(&mut self, gap: Duration, now: Instant) {
        if self.has_owner() {
            let was_away = self.owned.is_none_or(|owned| gap <= now.saturating_duration_since(owned));
            if self.was_unowned && was_away {
                self.began = Some(now);
            }
            (self.owned, self.was_unowned) = (Some(now), false);
        } else if self.places.values().any(|place| matches!(place.owner(), Owner::Nobody { .. })) {
            self.was_unowned = true;
        }
    }

    fn tenure(&self) -> Tenure {
        let times = self.places.values().filter_map(|place| place.created_and_written());
        let created = times.clone().map(|(created, _)| created).min();
        let moved = self.places.values().filter_map(|place| place.moved).max();
        Tenure { seen: (self.began, self.owned.max(moved)), nodes: (created, times.map(|(_, written)| written).max()) }
    }

    pub(super) fn has_owner(&self) -> bool {
        self.places.values().any(|place| place.owner_name().is_some())
    }

    /// How long no partition has had an owner. Where none was ever seen, the last write says how long at least.
    fn unowned_for(&self, now: Moment) -> Duration {
        match self.owned {
            Some(owned) => now.at.saturating_duration_since(owned),
            None => now.at.saturating_duration_since(self.first_read).max(self.unwritten_for(now)),
        }
    }

    fn unmoved_for(&self, now: Moment) -> Duration {
        self.places.values().map(|place| place.moved_ago(now).0).min().unwrap_or_default()
    }

    /// Time since a stored offset was written last; zero if unknown.
    pub(super) fn unwritten_for(&self, now: Moment) -> Duration {
        self.places.values().filter_map(|place| place.written_ago(now.wall)).min().unwrap_or_default()
    }

    /// The number of different owners; `None` if the module does not register owners, or they are unknown.
    pub(super) fn owner_count(&self) -> Option<u32> {
        let owners: Vec<Owner> = self.places.values().map(|place| place.owner()).collect();
        if owners.iter().any(|owner| matches!(owner, Owner::Unknown | Owner::Unsupported)) {
            return None;
        }
        let mut names: Vec<_> = self.places.values().filter_map(|place| place.owner_name()).collect();
        names.sort_unstable();
        names.dedup();
        u32::try_from(names.len()).ok()
    }
}
