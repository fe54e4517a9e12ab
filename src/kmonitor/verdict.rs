//! Computes the verdict of a place from its facts. Pure.
//!
//! [`finding`] is the table of rules for the facts of one reading. [`judge`] adds the hysteresis: a change of the
//! verdict needs several readings in a row, so that a single odd reading neither raises nor ends an alarm.
//!
//! The times for STOPPED and STALLED start when the first waiting message arrived, not at the last store: on a topic
//! with one message an hour, the stored offset is old although nothing is wrong. They end at the last reading. An alarm
//! is never based on an estimate, only on lower bounds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::facts::{self, Facts, Limits, LogState, Moment, Owner, Stored, UnknownReason, Verdict, is_beyond_end};
use super::sentence;
use super::view::ReasonCode;

/// A place where nothing waits may be read this much less often than others, so its stored offset may be older.
const IDLE_REREAD: Duration = Duration::from_secs(60);

/// The verdict of a place, and what `judge` must remember for the next reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// The verdict in force.
    pub verdict: Verdict,
    /// Why.
    pub code: ReasonCode,
    /// Since when the verdict is in force.
    pub since: Moment,
    /// Readings in a row that say another verdict.
    candidate: Option<Candidate>,
}

/// Readings in a row that were all better, or all worse, than the verdict in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    is_worse: bool,
    readings: u8,
    /// When the last of them was made. The same reading judged twice counts once.
    read_at: Instant,
}

/// Why a place has its verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reason {
    /// The code.
    pub code: ReasonCode,
    /// A sentence with the numbers of the facts.
    pub text: Arc<str>,
}

/// What the rules say of one reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Finding {
    verdict: Verdict,
    code: ReasonCode,
}

impl Standing {
    /// The standing of a place that was never read.
    pub(super) fn unread(now: Moment) -> Self {
        Standing { verdict: Verdict::Unknown, code: ReasonCode::NotReadYet, since: now, candidate: None }
    }
}

/// Judges a place at `now`; `before` is what the last call returned. The reason belongs to the verdict in force.
pub(super) fn judge(facts: &Facts, limits: &Limits, before: &Standing, now: Moment) -> (Standing, Reason) {
    let calm_is_over = limits.calm <= now.at.saturating_duration_since(before.since.at);
    let found = finding(facts, limits, before.verdict == Verdict::Lagging, calm_is_over);
    let standing = settle(facts, limits, before, found, now);
    let reason = Reason { code: standing.code, text: sentence::of(standing.code, facts) };
    (standing, reason)
}

/// Applies the hysteresis.
fn settle(facts: &Facts, limits: &Limits, before: &Standing, found: Finding, now: Moment) -> Standing {
    if found.verdict == before.verdict {
        return Standing { code: found.code, candidate: None, ..before.clone() };
    }
    let is_worse = before.verdict < found.verdict;
    let read_at = read_at(facts, now.at);
    let readings = match before.candidate {
        Some(candidate) if candidate.is_worse == is_worse => {
            candidate.readings.saturating_add(u8::from(candidate.read_at < read_at))
        }
        _ => 1,
    };
    if is_immediate(facts, limits, before, found) || limits.confirm <= readings {
        return Standing { verdict: found.verdict, code: found.code, since: now, candidate: None };
    }
    Standing { candidate: Some(Candidate { is_worse, readings, read_at }), ..before.clone() }
}

/// Returns whether one reading is enough for a change.
fn is_immediate(facts: &Facts, limits: &Limits, before: &Standing, found: Finding) -> bool {
    let nothing_waits = matches!(
        found.code,
        ReasonCode::NothingWaits | ReasonCode::NothingDeliverable | ReasonCode::Gone | ReasonCode::LeftBehind
    );
    // A number that is wrong is not shown for a second reading.
    let is_wrong = found.code == ReasonCode::BeyondEnd && before.verdict < found.verdict;
    // Numbers become too old by themselves, and new numbers after a silence are no odd reading.
    before.verdict == Verdict::Unknown || nothing_waits || is_wrong || outdated(facts, limits).is_some()
}

/// When the numbers of the facts were read: a pair once, however often one of the two was read since.
fn read_at(facts: &Facts, now: Instant) -> Instant {
    let newest = [facts.stored_age, facts.log_age].into_iter().flatten().min();
    let age = facts.pair_age.or(newest).unwrap_or_default();
    now.checked_sub(age).unwrap_or(now)
}

/// The rules: the first that holds.
fn finding(facts: &Facts, limits: &Limits, is_lagging: bool, calm_is_over: bool) -> Finding {
    let ok = |code| Finding { verdict: Verdict::Ok, code };
    // The module pushes another topic, which is the one to alarm while the source cannot be read.
    if facts.left_behind && facts.stored_age.is_some() {
        return ok(if facts.log == LogState::Gone { ReasonCode::Gone } else { ReasonCode::LeftBehind });
    }
    if let Some(code) = unknown(facts, limits) {
        return Finding { verdict: Verdict::Unknown, code };
    }
    if facts.log == LogState::Gone {
        return ok(ReasonCode::Gone);
    }
    // Before REWOUND: messages that would be pushed a second time may wait for a module that is dead.
    if let Some(found) = standstill(facts, limits) {
        return found;
    }
    if let Some(code) = rewound(facts, limits) {
        return Finding { verdict: Verdict::Rewound, code };
    }
    if facts::counted(facts) == Some(0) {
        let seems_to_wait = facts::waiting(facts) != Some(0);
        return ok(if seems_to_wait { ReasonCode::NothingDeliverable } else { ReasonCode::NothingWaits });
    }
    let found = lagging(facts, limits, is_lagging, calm_is_over)
        .map_or(ok(ReasonCode::Waiting), |code| Finding { verdict: Verdict::Lagging, code });
    if facts.paused.is_some() { Finding { code: ReasonCode::Paused, ..found } } else { found }
}

/// Returns why the delay is not known, or `None` if it is, or if the partition is gone.
pub(super) fn unknown(facts: &Facts, limits: &Limits) -> Option<ReasonCode> {
    if let Some(code) = outdated(facts, limits) {
        return Some(code);
    }
    match (&facts.stored, &facts.log) {
        (Stored::Unreadable(_), _) => Some(ReasonCode::NotAnOffset),
        (Stored::Refused(_), _) => Some(ReasonCode::NotAuthorized),
        _ => is_beyond_end(facts).then_some(ReasonCode::BeyondEnd),
    }
}

/// Returns why a number is too old to be judged, or `None` if both are recent enough.
fn outdated(facts: &Facts, limits: &Limits) -> Option<ReasonCode> {
    let is_outdated = |age: Option<Duration>, failing: bool| {
        let limit = if failing { limits.fresh_for } else { limits.fresh_for.saturating_add(IDLE_REREAD) };
        age.is_none_or(|age| limit < age)
    };
    if is_outdated(facts.stored_age, facts.stored_unknown.is_some()) {
        return Some(code_of(facts.stored_unknown.as_ref(), facts.stored_age));
    }
    if facts.log == LogState::Gone {
        return None;
    }
    if let LogState::Unknown(reason) = &facts.log {
        return Some(code_of(facts.log_unknown.as_ref().or(Some(reason)), facts.log_age));
    }
    if is_outdated(facts.log_age, facts.log_unknown.is_some()) {
        return Some(code_of(facts.log_unknown.as_ref(), facts.log_age));
    }
    None
}

fn code_of(reason: Option<&UnknownReason>, age: Option<Duration>) -> ReasonCode {
    match reason {
        Some(UnknownReason::NotReadYet) => ReasonCode::NotReadYet,
        Some(UnknownReason::SourceSilent { .. }) => ReasonCode::SourceSilent,
        Some(UnknownReason::LeaderSilent { .. }) => ReasonCode::LeaderSilent,
        Some(UnknownReason::NoLeader) => ReasonCode::NoLeader,
        Some(UnknownReason::NotAuthorized) => ReasonCode::NotAuthorized,
        Some(UnknownReason::InvalidTopic) => ReasonCode::InvalidTopic,
        Some(UnknownReason::NoBroker) => ReasonCode::NoBroker,
        Some(UnknownReason::Failed(_)) => ReasonCode::ReadFailed,
        None if age.is_none() => ReasonCode::NotReadYet,
        None => ReasonCode::ReadFailed,
    }
}

/// Returns the code if there is evidence that messages are pushed a second time.
fn rewound(facts: &Facts, limits: &Limits) -> Option<ReasonCode> {
    // Of an empty topic no message is pushed a second time.
    if facts.recreated && facts::counted(facts) != Some(0) {
        return Some(ReasonCode::Recreated);
    }
    facts.went_back.filter(|back| back.to < back.from && back.ago < limits.rewound_for).map(|_| ReasonCode::WentBack)
}

/// Returns STOPPED or STALLED if messages wait and nothing is pushed.
fn standstill(facts: &Facts, limits: &Limits) -> Option<Finding> {
    // Nobody can push what is part of an open transaction.
    if facts::readable(facts) == 0 {
        return None;
    }
    let waiting_for = facts.readable_for.unwrap_or_default();
    let at_least = |time: Option<Duration>, limit: Duration| time.is_some_and(|time| limit <= time);
    let stopped = |code| Some(Finding { verdict: Verdict::Stopped, code });
    let stalled = |code| Some(Finding { verdict: Verdict::Stalled, code });
    let never_stored = facts.stored == Stored::Nothing;
    let code = |code| if never_stored { ReasonCode::NeverStored } else { code };

    // An owner is a member, whatever the list of members says.
    let has_member = matches!(facts.owner, Owner::Named(_)) || facts.members.is_some_and(|members| 0 < members);
    // Flink and others that choose their partitions themselves commit to a group without members: what has moved since
    // nobody is there moves without them, as long as it does not stand still.
    let has_moved = facts.nobody_there_for.zip(facts.moved_ago).is_some_and(|(nobody_for, moved_ago)| {
        moved_ago < limits.stalled_after && moved_ago.saturating_add(limits.stopped_after) < nobody_for
    });
    let moves_without_members = has_moved && !facts.moved_at_least;
    if !has_member
        && !moves_without_members
        && at_least(facts.nobody_there_for, limits.stopped_after)
        && limits.stopped_after <= waiting_for
    {
        return stopped(code(ReasonCode::NoMember));
    }
    if let Owner::Nobody { since } = facts.owner
        && facts.members != Some(0)
        && at_least(since, limits.unowned_after)
        && limits.stopped_after <= waiting_for
    {
        return stopped(code(ReasonCode::NoOwner));
    }
    // What an operator has paused stands still on purpose. After the pause, its clock begins again.
    let is_paused = facts.paused.is_some() || facts.unpaused_for.is_some_and(|time| time < limits.stalled_after);
    if waiting_for < limits.stalled_after || is_paused {
        return None;
    }
    let is_still = at_least(facts.moved_ago, limits.stalled_after);
    match facts.owner {
        Owner::Named(_) if never_stored => stalled(ReasonCode::NeverStored),
        Owner::Named(_) if is_still => stalled(ReasonCode::NotMoving),
        Owner::Unsupported | Owner::Unknown if never_stored => stalled(ReasonCode::NeverStored),
        // A consumer that does not register owners: it is alive if it stores anything. What was left over when it last
        // stored may be transaction markers, so only later messages count.
        Owner::Unsupported | Owner::Unknown
            if is_still && 0 < facts.came_in && facts.unwritten_for.is_none_or(|time| limits.stalled_after <= time) =>
        {
            // Members that are not known may be alive.
            let is_alive = facts.owner == Owner::Unknown && facts.members != Some(0);
            if is_alive { stalled(ReasonCode::NothingStored) } else { stopped(ReasonCode::NothingStored) }
        }
        _ => None,
    }
}

/// Returns the code if the place is too far behind. LAGGING ends below half of the limit, and not before it was calm.
fn lagging(facts: &Facts, limits: &Limits, is_lagging: bool, calm_is_over: bool) -> Option<ReasonCode> {
    let seconds = facts.waiting_for.unwrap_or_default().as_secs_f64();
    let messages = facts::counted(facts).unwrap_or(0);
    let share = if is_lagging { 0.5 } else { 1.0 };
    if limits.lagging_seconds.is_some_and(|limit| limit * share <= seconds) {
        return Some(ReasonCode::SecondsBehind);
    }
    let is_many = |limit: u64| if is_lagging { limit / 2 < messages } else { limit <= messages };
    // While the stored offset cannot be read, more and more messages seem to wait.
    let is_estimate = facts.stored_unknown.is_some() && !is_lagging;
    if !is_estimate && limits.lagging_messages.is_some_and(is_many) {
        return Some(ReasonCode::MessagesBehind);
    }
    (is_lagging && !calm_is_over).then_some(if limits.lagging_seconds.is_some() {
        ReasonCode::SecondsBehind
    } else {
        ReasonCode::MessagesBehind
    })
}

#[cfg(test)]
mod tests;
