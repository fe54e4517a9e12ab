//! The members of Kafka groups and the partitions that they have.
//!
//! The list of all groups says in every cycle which have members. Who has which partition is only in the description of
//! a group: those of groups of which something is wrong, or of which nothing is committed, are read often, those of all
//! others in turn, because a topic that a group consumes and has never committed is in no reading of its offsets.
//!
//! Invariant: a description proves something only if the group has assigned its partitions. While it rebalances, nobody
//! has a partition for a moment, and what was known before stays. Of many groups each is described rarely: what the
//! last description said holds until the next one is tried, and the clock of a partition without an owner runs on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::broker::{GroupDescription, TopicPartition};
use crate::kmonitor::facts::{Moment, Owner, Source, Verdict};
use crate::kmonitor::readings::ModuleKey;

use super::place::Place;
use super::{Module, ModuleTopic, Places};

/// Shortest time between two descriptions of a group of which something is wrong.
const DESCRIBE_PAUSE: Duration = Duration::from_secs(30);
/// Shortest time between two descriptions of another group.
const IDLE_DESCRIBE_PAUSE: Duration = Duration::from_secs(60);
/// Shortest time after an attempt that did not return the owners.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// Age at which the owners and the number of members are unknown again, if reading them was tried since and failed.
const DESCRIPTION_AGE: Duration = Duration::from_secs(90);
/// One of this many descriptions is kept for groups of which nothing is known to be wrong.
const OTHERS_SHARE: usize = 5;

impl Places {
    /// Enters whether a Kafka group has members, as the list of groups says.
    pub(crate) fn record_members(&mut self, key: &ModuleKey, has_members: Option<bool>, now: Instant) {
        // The list comes before the first reading.
        let module = self.modules.entry(key.clone()).or_default();
        match has_members {
            Some(false) => {
                module.set_members(Some(0), now);
                module.set_owners(&Owner::Nobody { since: None }, now);
                module.topics.values_mut().for_each(|topic| topic.released = topic.released.or(Some(now)));
            }
            Some(true) if module.members == Some(0) => {
                module.set_members(None, now);
                module.set_owners(&Owner::Unknown, now);
                module.described = None;
                module.topics.values_mut().for_each(|topic| topic.released = None);
            }
            _ => {}
        }
        module.has_members = has_members;
    }

    /// Enters the members of a Kafka group and what is assigned to them. Returns whether a partition is new, so that
    /// its log has to be read.
    pub(crate) fn record_description(&mut self, key: &ModuleKey, group: &GroupDescription, now: Moment) -> bool {
        let Some(module) = self.modules.get_mut(key) else { return false };
        if group.member_count == 0 && module.has_members == Some(true) {
            // The list of groups was read just before: the next one decides.
            return false;
        }
        module.set_members(Some(u32::try_from(group.member_count).unwrap_or(u32::MAX)), now.at);
        let Some(owners) = &group.owners else { return false };
        module.described = Some(now.at);
        let is_first = !std::mem::replace(&mut module.was_described, true);
        module.topics.values_mut().for_each(|topic| topic.is_assigned = false);
        let mut has_new = false;
        for (at, _) in owners {
            let topic = module
                .topics
                .entry(Arc::clone(&at.topic))
                .or_insert_with(|| ModuleTopic { was_unowned: !is_first, ..ModuleTopic::new(now.at) });
            (topic.is_assigned, topic.released) = (true, None);
            topic.places.entry(at.partition).or_insert_with(|| {
                has_new = true;
                Box::new(Place::without_offset(Owner::Unknown, now))
            });
        }
        let owners: HashMap<&TopicPartition, &Arc<str>> = owners.iter().map(|(at, name)| (at, name)).collect();
        for (topic, found) in &mut module.topics {
            for (partition, place) in &mut found.places {
                let at = TopicPartition { topic: Arc::clone(topic), partition: *partition };
                let owner = owners.get(&at).map(|name| Owner::Named(Arc::clone(name)));
                place.set_owner(owner.unwrap_or(Owner::Nobody { since: None }), now.at);
            }
            found.note_owner(self.left_behind_after, now.at);
        }
        has_new
    }

    /// Returns the Kafka groups to describe now, at most `max`. What was read too long ago and could not be read since
    /// becomes unknown.
    pub(crate) fn take_undescribed(&mut self, max: usize, now: Instant) -> Vec<ModuleKey> {
        let (mut urgent, mut others) = (Vec::new(), Vec::new());
        let groups = self.modules.iter_mut().filter(|(key, _)| key.source == Source::Kafka);
        for (key, module) in groups.filter(|(_, module)| module.has_members != Some(false)) {
            module.forget_description(now);
            let is_urgent = module.is_bad() || module.has_no_offset();
            let pause = if is_urgent { DESCRIBE_PAUSE } else { IDLE_DESCRIBE_PAUSE };
            if module.is_description_due(pause, now) {
                // `None` is the smallest: a group that was never described comes first.
                let list = if is_urgent { &mut urgent } else { &mut others };
                list.push((module.describe_tried, key.clone()));
            }
        }
        urgent.sort();
        others.sort();
        let other_count = others.len().min(max.saturating_sub(urgent.len()).max(max / OTHERS_SHARE));
        urgent.truncate(max - other_count);
        others.truncate(other_count);
        let keys: Vec<ModuleKey> = urgent.into_iter().chain(others).map(|(_, key)| key).collect();
        for key in &keys {
            if let Some(module) = self.modules.get_mut(key) {
                module.describe_tried = Some(now);
            }
        }
        keys
    }
}

impl Module {
    /// How long there had been no member when the members were last read.
    pub(super) fn nobody_there_for(&self) -> Option<Duration> {
        let since = self.nobody_since.filter(|_| self.members == Some(0))?;
        Some(self.members_read?.saturating_duration_since(since))
    }

    pub(super) fn set_members(&mut self, members: Option<u32>, now: Instant) {
        // While the members were not known, there may have been some: then an offset has moved.
        let was_pushed = self.members.is_none() && self.members_read < self.last_moved();
        let nobody_since = self.nobody_since.filter(|_| !was_pushed);
        (self.members, self.has_members) = (members, members.map(|count| 0 < count));
        self.members_read = Some(now);
        self.nobody_since = if members == Some(0) { nobody_since.or(Some(now)) } else { None };
    }

    /// When a stored offset moved last.
    fn last_moved(&self) -> Option<Instant> {
        let places = self.topics.values().flat_map(|topic| topic.places.values());
        places.filter_map(|place| place.last_moved()).max()
    }

    fn set_owners(&mut self, owner: &Owner, now: Instant) {
        let places = self.topics.values_mut().flat_map(|topic| topic.places.values_mut());
        places.for_each(|place| place.set_owner(owner.clone(), now));
    }

    fn forget_description(&mut self, now: Instant) {
        let is_old = self.described.is_some_and(|then| DESCRIPTION_AGE <= now.saturating_duration_since(then));
        if is_old && self.described < self.describe_tried {
            // Since when there is nobody is kept: the next description may say that there still is nobody.
            (self.described, self.members) = (None, None);
            let places = self.topics.values_mut().flat_map(|topic| topic.places.values_mut());
            places.for_each(|place| place.forget_owner());
        }
    }

    fn is_description_due(&self, pause: Duration, now: Instant) -> bool {
        let rests = |then: Option<Instant>, pause: Duration| {
            then.is_none_or(|then| pause <= now.saturating_duration_since(then))
        };
        rests(self.described, pause) && rests(self.describe_tried, RETRY_PAUSE)
    }

    /// Whether nothing was ever stored.
    fn has_no_offset(&self) -> bool {
        let mut places = self.topics.values().flat_map(|topic| topic.places.values());
        self.read.is_some() && places.all(|place| place.offset().is_none())
    }

    /// Whether messages wait that may be somebody's fault, or soon will be.
    fn is_bad(&self) -> bool {
        let is_fine = |verdict| matches!(verdict, Verdict::Ok | Verdict::Unknown);
        let mut places = self.topics.values().flat_map(|topic| topic.places.values());
        places.any(|place| place.stands_still || !is_fine(place.standing.verdict))
    }
}

impl ModuleTopic {
    /// Whether it is shown without a committed offset: members have partitions of it, or had when the group had
    /// members, less than `after` ago. A group that restarts has none for a moment, and what waits for one that died is
    /// seen.
    pub(super) fn is_shown_uncommitted(&self, after: Duration, now: Instant) -> bool {
        self.is_assigned && self.released.is_none_or(|then| now.saturating_duration_since(then) < after)
    }
}
