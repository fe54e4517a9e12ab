//! Collects the facts about a place at one moment.
//!
//! The offsets are a pair, of which the end of the log was read last. Times that may lead to an alarm end at the last
//! reading that they are about, see `facts`.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::broker::{Offset, PartitionId};
use crate::kmonitor::behind::behind;
use crate::kmonitor::facts::{self, Facts, Limits, LogState, Moment, Paused, Stored, UnknownReason};
use crate::kmonitor::pauses::{Pause, Pauses};
use crate::kmonitor::readings::ModuleKey;
use crate::kmonitor::verdict;
use crate::kmonitor::view::ReasonCode;

use super::Module;
use super::log::Log;
use super::place::Place;

/// What is the same for all places of a module.
pub(super) struct Context<'a> {
    pub(super) key: &'a ModuleKey,
    pub(super) module: &'a Module,
    pub(super) limits: &'a Limits,
    pub(super) now: Moment,
    pub(super) elapsed: Duration,
    pub(super) is_left_behind: bool,
    /// What is denied, if the stored offsets cannot be listed.
    pub(super) refused: Option<Arc<str>>,
    /// What operators have paused of the topic.
    pub(super) pauses: Arc<Pauses>,
}

impl Context<'_> {
    /// When the stored offsets and the owners were read last.
    fn read(&self) -> Moment {
        let at = self.module.read.unwrap_or(self.now.at).min(self.now.at);
        let wall = self.now.wall.checked_sub(self.now.at.saturating_duration_since(at));
        Moment { at, wall: wall.unwrap_or(self.now.wall) }
    }
}

/// Collects what is known of a place.
pub(super) fn facts_of(context: &Context<'_>, partition: PartitionId, place: &Place, log: Option<&Log>) -> Facts {
    let Context { module, now, elapsed, .. } = *context;
    let read = context.read();
    let age = |then: Option<Instant>| then.map(|then| now.at.saturating_duration_since(then));
    let stored_age = age(module.valid_at);
    let silent = |cause: &Arc<str>| UnknownReason::SourceSilent {
        since: stored_age.unwrap_or_default(),
        cause: Arc::clone(cause),
    };
    let (moved_ago, moved_at_least) = place.moved_ago(read);
    let pair = log.and_then(|log| place.pair(log));
    let of_pair_before = pair.filter(|pair| pair.stored != place.stored);
    let mut facts = Facts {
        stored: pair.map_or_else(|| place.stored.clone(), |pair| pair.stored.clone()),
        stored_age,
        stored_unknown: module.failure.as_ref().map(silent),
        log: match (log_state(log), pair) {
            (LogState::Known { .. }, Some(pair)) => LogState::Known { oldest: pair.oldest, newest: pair.newest },
            (state, _) => state,
        },
        oldest_before: pair.map(|pair| pair.oldest_before),
        pair_age: age(pair.map(|pair| pair.at)),
        log_age: age(log.and_then(|log| log.read)),
        log_unknown: log.map_or(Some(UnknownReason::NotReadYet), |log| log.unknown.as_deref().cloned()),
        recreated: of_pair_before.map_or(place.is_recreated, |pair| pair.is_recreated),
        paused: context.pauses.of(partition).map(|pause| paused(pause, now)),
        unpaused_for: place.unpaused_for(read.at),
        stable: pair.map_or_else(|| log.and_then(|log| log.stable), |pair| pair.stable),
        went_back: place.went_back(now.at),
        moved_ago: Some(moved_ago),
        moved_at_least,
        written_ago: place.written_ago(now.wall),
        unwritten_for: place.unwritten_for(read.at),
        owner: place.owner(),
        members: module.members,
        nobody_there_for: module.nobody_there_for(),
        delay_1m_ago: place.delays.before(elapsed, 1),
        delay_5m_ago: place.delays.before(elapsed, 5),
        left_behind: context.is_left_behind,
        ..Facts::unread()
    };
    if let (Some(refused), Stored::Nothing | Stored::Offset(_)) = (&context.refused, &facts.stored) {
        facts.stored = Stored::Refused(Arc::clone(refused));
    }
    if facts::is_beyond_end(&facts) && !log.is_some_and(|log| log.is_read_after(module.read)) {
        // The end that was read before the stored offset has moved since, and is not known.
        facts.log = LogState::Unknown(facts.log_unknown.clone().unwrap_or(UnknownReason::NotReadYet));
    }
    if let (Some(log), LogState::Known { newest, .. }) = (log, &facts.log) {
        facts.came_in = place.came_in(*newest);
        let (first, end) = (first_waiting(&facts), facts.stable.unwrap_or(*newest));
        let passed = first.and_then(|first| place.passed(first, end));
        facts.undeliverable = passed == Some(end);
        facts.skipped = passed.zip(first).map_or(0, |(passed, first)| passed.abs_diff(first));
        let from = passed.or(first);
        // Where the stored offset is that of a pair before, so is the time for which its first message has waited.
        let then = of_pair_before.map_or(read.at, |pair| pair.at.min(read.at));
        let elapsed_then = elapsed.saturating_sub(now.at.saturating_duration_since(then));
        let arrival = from.and_then(|from| log.history.arrival(elapsed_then, from));
        facts.waiting_for = arrival.map(|arrival| arrival.at_least);
        facts.readable_for = facts.waiting_for.map(|time| place.free_for(read.at).map_or(time, |free| free.min(time)));
        let shown = from.and_then(|from| log.arrival(elapsed_then, from));
        facts.behind = behind(facts::counted(&facts), shown);
        facts.waiting_at_least = facts.behind.is_some_and(|behind| behind.at_least);
    }
    facts
}

fn paused(pause: &Pause, now: Moment) -> Paused {
    let then = (0 < pause.at_ms).then(|| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(pause.at_ms)));
    let ago = then.flatten().map(|then| now.wall.duration_since(then).unwrap_or_default());
    Paused { by: Arc::clone(&pause.by), ago }
}

pub(super) fn log_state(log: Option<&Log>) -> LogState {
    match log {
        Some(log) if log.is_gone => LogState::Gone,
        Some(Log { ends: Some((oldest, newest)), .. }) => LogState::Known { oldest: *oldest, newest: *newest },
        Some(Log { unknown: Some(reason), .. }) => LogState::Unknown((**reason).clone()),
        _ => LogState::Unknown(UnknownReason::NotReadYet),
    }
}

/// The offset of the first message that waits, or the newest offset.
pub(super) fn first_waiting(facts: &Facts) -> Option<Offset> {
    let LogState::Known { newest, .. } = facts.log else { return None };
    Some(newest - i64::try_from(facts::waiting(facts)?).ok()?)
}

/// Why the delay of a place is unknown; `None` if it is known, or the partition is gone.
pub(super) fn unknown_code(facts: &Facts, limits: &Limits) -> Option<&'static str> {
    match verdict::unknown(facts, limits)? {
        ReasonCode::ReadFailed => Some("failed"),
        code => Some(code.word()),
    }
}
