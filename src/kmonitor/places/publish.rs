//! Computes the verdicts of all places of a cluster, and the view from which answers are made.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::broker::{PartitionId, TopicPartition};
use crate::kmonitor::facts::{self, Facts, Limits, LogState, Moment, Source, Stored, UnknownReason, Verdict};
use crate::kmonitor::readings::ModuleKey;
use crate::kmonitor::sentence;
use crate::kmonitor::sparkline;
use crate::kmonitor::summary::Summary;
use crate::kmonitor::verdict::judge;
use crate::kmonitor::view::{ClusterView, ModuleView, PartitionView, ReasonCode, Trouble, module_id};

use super::collect::{Context, facts_of, unknown_code};
use super::log::Log;
use super::place::Place;
use super::{Module, ModuleTopic, Places};

/// What the poller knows of the cluster as a whole.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClusterState {
    /// Whether it was ever read, and recently enough.
    pub is_known: bool,
    /// What keeps it from being read.
    pub trouble: Option<Trouble>,
    /// Duration of the last cycle.
    pub cycle: Option<Duration>,
    /// Numbers stay fresh for this time, even if that is longer than their limits say: a cycle may take longer.
    pub fresh_for: Duration,
    /// See [`ClusterView::valid_for`].
    pub valid_for: Duration,
    /// See [`ClusterView::is_partial`].
    pub is_partial: bool,
}

impl Places {
    /// Judges all places and returns the view. `limits_of`: the limits of a module.
    pub(crate) fn publish(
        &mut self,
        state: ClusterState,
        limits_of: impl Fn(&str) -> Limits,
        now: Moment,
    ) -> ClusterView {
        self.count(now);
        let elapsed = self.elapsed(now);
        let mut modules = std::mem::take(&mut self.modules);
        let mut views = Vec::new();
        for (key, module) in &mut modules {
            let mut limits = limits_of(&key.name);
            limits.fresh_for = limits.fresh_for.max(state.fresh_for);
            self.publish_module(key, module, &limits, (now, elapsed), &mut views);
        }
        self.modules = modules;
        views.sort_by(|one, other| (&one.name, one.source, &one.topic).cmp(&(&other.name, other.source, &other.topic)));
        self.view_number += 1;
        let mut view = ClusterView {
            name: Arc::clone(&self.cluster),
            number: self.view_number,
            sources: self.sources.clone(),
            published: now.at,
            oldest_read: None,
            cycle: state.cycle,
            trouble: state.trouble,
            known: state.is_known,
            is_partial: state.is_partial,
            late_after: state.fresh_for,
            valid_for: state.valid_for,
            modules: views,
            counts: [0; 6],
            gone: 0,
            left_behind: 0,
            history_end: sparkline::last_minute(elapsed, now.wall),
        };
        count_partitions(&mut view);
        view
    }

    fn publish_module(
        &self,
        key: &ModuleKey,
        module: &mut Module,
        limits: &Limits,
        (now, elapsed): (Moment, Duration),
        views: &mut Vec<ModuleView>,
    ) {
        let mut topics = std::mem::take(&mut module.topics);
        let (first, mut is_active) = (views.len(), false);
        for (name, topic) in &mut topics {
            if self.is_forgotten(module, topic, now) {
                continue;
            }
            let is_left_behind = topic.is_left_behind || !self.counts(key, name);
            let refused = module.refused.clone().or_else(|| topic.refused.clone());
            let pauses = Arc::clone(&topic.pauses);
            let context = Context { key, module, limits, now, elapsed, is_left_behind, refused, pauses };
            let view = self.publish_topic(&context, name, topic);
            is_active |= view.verdict != Verdict::Ok || view.delay != Some(0) || view.delay_is_partial;
            views.push(view);
        }
        if views.len() == first && topics.is_empty() && (module.read.is_some() || module.failure.is_some()) {
            views.push(self.module_without_topics(key, module, limits, now));
        }
        module.topics = topics;
        module.is_active |= is_active;
    }

    fn publish_topic(&self, context: &Context<'_>, name: &Arc<str>, topic: &mut ModuleTopic) -> ModuleView {
        let elapsed = context.elapsed;
        let (mut came_in, mut went_out) = (0, 0);
        let mut partitions = Vec::with_capacity(topic.places.len());
        let mut summary = Summary::default();
        for (partition, place) in &mut topic.places {
            let at = TopicPartition { topic: Arc::clone(name), partition: *partition };
            let log = self.logs.get(&at).map(Box::as_ref);
            let (into, out) = place.take_counts(log.and_then(|log| log.ends).map(|(_, newest)| newest));
            (came_in, went_out) = (came_in + into, went_out + out);
            let (mut view, facts) = publish_place(context, *partition, place, log);
            // Partitions with the same sentence, or the same history, share it: most are at rest.
            if let Some(last) = partitions.last() {
                let last: &PartitionView = last;
                share(&mut view.reason, &last.reason);
                share(&mut view.history, &last.history);
            }
            summary.add(&facts, &view);
            partitions.push(view);
        }
        topic.rates.record(elapsed, [came_in, went_out]);
        let mut view = module_view(&self.cluster, context, name, partitions, summary);
        let shown = view.delay.filter(|_| !view.delay_is_partial);
        topic.line.record(elapsed, shown);
        view.history = topic.line.hour(elapsed);
        if let Some([in_per_second, out_per_second]) = topic.rates.per_second().filter(|_| view.delay.is_some()) {
            (view.in_per_second, view.out_per_second) = (Some(in_per_second), Some(out_per_second));
        }
        view.owners = topic.owner_count();
        if let Some(denied) = &topic.refused {
            mark_unknown(&mut view, ReasonCode::NotAuthorized, denied);
        }
        view
    }

    fn is_forgotten(&self, module: &Module, topic: &ModuleTopic, now: Moment) -> bool {
        let Some(after) = self.forget_after else { return false };
        let rests = topic.places.values().all(|place| after <= place.moved_ago(now).0);
        rests && !topic.has_owner() && module.has_members != Some(true)
    }

    /// A module of which no topic is known: with nobody in it, nothing can wait.
    fn module_without_topics(&self, key: &ModuleKey, module: &mut Module, limits: &Limits, now: Moment) -> ModuleView {
        let (topic, elapsed): (Arc<str>, _) = ("".into(), Duration::ZERO);
        let (refused, pauses) = (None, Arc::default());
        let context = Context { key, module, limits, now, elapsed, is_left_behind: false, refused, pauses };
        let mut view = module_view(&self.cluster, &context, &topic, Vec::new(), Summary::default());
        if let Some((code, reason)) = why_without_topics(key.source, module, limits, now.at) {
            mark_unknown(&mut view, code, &reason);
        }
        let before = module.without_topics.filter(|(verdict, _)| *verdict == view.verdict);
        view.since = before.map_or(now.wall, |(_, since)| since);
        module.without_topics = Some((view.verdict, view.since));
        view
    }
}

/// Why it is not known whether something waits for a module without topics; `None` if nothing does.
fn why_without_topics(
    source: Source,
    module: &Module,
    limits: &Limits,
    now: Instant,
) -> Option<(ReasonCode, Arc<str>)> {
    let since = |then: Instant| now.saturating_duration_since(then);
    let is_fresh = module.valid_at.is_some_and(|then| since(then) <= limits.fresh_for);
    if let Some(cause) = module.failure.as_ref().filter(|_| !is_fresh) {
        let since = module.valid_at.or(module.failing_since).map(since).unwrap_or_default();
        let silent = UnknownReason::SourceSilent { since, cause: Arc::clone(cause) };
        let facts = Facts { stored_unknown: Some(silent), ..Facts::unread() };
        return Some((ReasonCode::SourceSilent, sentence::of(ReasonCode::SourceSilent, &facts)));
    }
    if let Some(denied) = &module.refused {
        return Some((ReasonCode::NotAuthorized, Arc::clone(denied)));
    }
    let text = match (source, module.members) {
        (_, Some(0)) => return None,
        (Source::Zookeeper, Some(1)) => "nothing is stored; 1 member is alive, but owns no partition".into(),
        (Source::Zookeeper, Some(count)) => {
            format!("nothing is stored; {count} members are alive, but own no partition")
        }
        (Source::Zookeeper, None) => return None,
        // A group that never committed: its members say what it consumes.
        (Source::Kafka, _) if module.has_members == Some(false) => return None,
        (Source::Kafka, Some(1)) if module.described.is_some() => {
            "nothing is committed; 1 member is alive, but has no partition".into()
        }
        (Source::Kafka, Some(count)) if module.described.is_some() => {
            format!("nothing is committed; {count} members are alive, but have no partition")
        }
        (Source::Kafka, _) => "nothing is committed, and it is not known yet which partitions the members have".into(),
    };
    Some((ReasonCode::NotReadYet, text.into()))
}

fn publish_place(
    context: &Context<'_>,
    partition: PartitionId,
    place: &mut Place,
    log: Option<&Log>,
) -> (PartitionView, Facts) {
    let (now, elapsed) = (context.now, context.elapsed);
    let facts = facts_of(context, partition, place, log);
    let (standing, reason) = judge(&facts, context.limits, &place.standing, now);
    place.standing = standing;
    // Whether somebody owns it is found out before it would be STALLED or STOPPED.
    let is_still = facts.moved_ago.is_some_and(|ago| context.limits.stalled_after / 2 <= ago);
    place.stands_still = is_still && 0 < facts::readable(&facts);
    let unknown = unknown_code(&facts, context.limits);
    place.was_unknown = unknown.is_some();
    let delay = facts::counted(&facts).filter(|_| unknown.is_none());
    // What waited when it was read last may be pushed by now.
    let behind = facts.behind.filter(|_| unknown.is_none());
    place.delays.keep(elapsed, delay);
    place.line.record(elapsed, delay);
    let ends = match facts.log {
        LogState::Known { oldest, newest } => Some((oldest, newest)),
        LogState::Unknown(_) => log.and_then(|log| log.ends),
        LogState::Gone => None,
    };
    // A pair of before is older than what was read alone since.
    let pair_read = log.and_then(|log| place.older_pair(log)).map(|pair| pair.at);
    let read_at = context.module.valid_at.into_iter().chain(log.and_then(|log| log.read)).chain(pair_read).min();
    let view = PartitionView {
        partition,
        verdict: place.standing.verdict,
        since: place.standing.since.wall,
        reason: reason.text,
        reason_code: reason.code,
        delay,
        stored: if let Stored::Offset(stored) = facts.stored { Some(stored) } else { None },
        oldest: ends.map(|(oldest, _)| oldest),
        newest: ends.map(|(_, newest)| newest),
        lost: facts::lost(&facts),
        seconds_behind: behind.map(|behind| behind.seconds),
        seconds_from: behind.map(|behind| behind.from),
        seconds_at_least: behind.is_some_and(|behind| behind.at_least),
        stored_moved: place.moved,
        owner: place.owner_name(),
        read_at,
        unknown,
        history: Arc::new(place.line.hour(elapsed)),
    };
    (view, facts)
}

/// Makes `one` the same as `other` if they are equal.
fn share<T: PartialEq + ?Sized>(one: &mut Arc<T>, other: &Arc<T>) {
    if *one == *other {
        *one = Arc::clone(other);
    }
}

/// Makes the view of a topic of a module of those of its partitions.
fn module_view(
    cluster: &str,
    context: &Context<'_>,
    topic: &Arc<str>,
    partitions: Vec<PartitionView>,
    summary: Summary,
) -> ModuleView {
    let Context { key, module, now, .. } = context;
    let is_counted = |view: &&PartitionView| view.reason_code != ReasonCode::Gone;
    let (verdict, reason_code, reason) = summary.finish();
    let same = partitions.iter().filter(|view| view.verdict == verdict).map(|view| view.since);
    let since = if verdict == Verdict::Ok { same.max() } else { same.min() };
    let delays: Vec<Option<u64>> = partitions.iter().filter(is_counted).map(|view| view.delay).collect();
    let late = partitions.iter().filter_map(|view| Some((view.seconds_behind?, view.seconds_at_least)));
    let late = late.max_by(|one, other| one.0.total_cmp(&other.0));
    let known: Vec<u64> = delays.iter().copied().flatten().collect();
    ModuleView {
        id: module_id(cluster, &key.name, topic, key.source),
        name: Arc::clone(&key.name),
        topic: Arc::clone(topic),
        source: key.source,
        verdict,
        since: since.unwrap_or(now.wall),
        reason,
        reason_code,
        delay: (delays.is_empty() || !known.is_empty()).then(|| known.iter().copied().fold(0, u64::saturating_add)),
        delay_is_partial: known.len() < delays.len(),
        seconds_behind: late.map(|(seconds, _)| seconds),
        seconds_at_least: late.is_some_and(|(_, at_least)| at_least),
        lost: partitions.iter().map(|view| view.lost).fold(0, u64::saturating_add),
        in_per_second: None,
        out_per_second: None,
        owners: None,
        members: module.members,
        partitions,
        history: [0; 60],
        in_legacy: !context.is_left_behind,
    }
}

fn mark_unknown(view: &mut ModuleView, code: ReasonCode, reason: &Arc<str>) {
    (view.verdict, view.reason_code) = (Verdict::Unknown, code);
    view.reason = Arc::clone(reason);
    (view.delay, view.delay_is_partial) = (None, true);
}

fn count_partitions(view: &mut ClusterView) {
    let partitions = view.modules.iter().flat_map(|module| module.partitions.iter().map(move |of| (module, of)));
    for (module, partition) in partitions {
        match (partition.reason_code, module.in_legacy) {
            (ReasonCode::Gone, _) => view.gone += 1,
            (_, false) => view.left_behind += 1,
            _ => {
                view.counts[usize::from(partition.verdict.severity())] += 1;
                if partition.delay.is_some() {
                    view.oldest_read = match (view.oldest_read, partition.read_at) {
                        (Some(one), Some(other)) => Some(one.min(other)),
                        (one, other) => one.or(other),
                    };
                }
            }
        }
    }
}
