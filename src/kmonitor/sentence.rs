//! Puts the reason of a verdict into a sentence for people, with the numbers of the facts. Pure.
//!
//! A sentence names the observation, its duration, and where to look. Programs do not parse it: they use the code.

use std::fmt::Write;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::facts::{self, Facts, LogState, Owner, Paused, Stored, UnknownReason};
use super::view::ReasonCode;

/// Most places have this reason, so they share its text.
static NOTHING_WAITS: LazyLock<Arc<str>> = LazyLock::new(|| "nothing waits".into());

/// Longest name, address or text of a peer in a sentence, in characters.
const MAX_QUOTED: usize = 200;

/// Returns the sentence for a code and the facts that led to it.
pub(super) fn of(code: ReasonCode, facts: &Facts) -> Arc<str> {
    let lost = facts::lost(facts);
    if code == ReasonCode::NothingWaits && lost == 0 {
        return Arc::clone(&NOTHING_WAITS);
    }
    let mut text = main_clause(code, facts);
    if matches!(code, ReasonCode::NoMember | ReasonCode::NoOwner | ReasonCode::NotMoving) {
        match (facts.recreated, facts.went_back) {
            (true, _) => text.push_str("; the topic was created again"),
            (_, Some(back)) => append(&mut text, format_args!("; it went back {} ago", time(back.ago))),
            _ => {}
        }
    }
    if facts.paused.is_some() && matches!(code, ReasonCode::NoMember | ReasonCode::NoOwner) {
        append(&mut text, format_args!("; {}", paused(facts)));
    }
    if counts_messages(code)
        && let Some(open) = open_transaction(facts)
    {
        append(&mut text, format_args!("; {open}"));
    }
    if 0 < lost && code != ReasonCode::Gone {
        let were = if lost == 1 { "was" } else { "were" };
        let what = messages(lost);
        append(&mut text, format_args!("; {what} {were} deleted by retention before being pushed"));
    }
    text.into()
}

/// Whether the sentence for a code counts the waiting messages.
fn counts_messages(code: ReasonCode) -> bool {
    matches!(
        code,
        ReasonCode::Waiting
            | ReasonCode::Paused
            | ReasonCode::SecondsBehind
            | ReasonCode::MessagesBehind
            | ReasonCode::NotMoving
            | ReasonCode::NeverStored
            | ReasonCode::NoMember
            | ReasonCode::NoOwner
    )
}

/// "12 wait for a transaction to end"; `None` if no message does.
fn open_transaction(facts: &Facts) -> Option<String> {
    let open = facts::in_transaction(facts);
    match (open, facts::readable(facts)) {
        (0, _) => None,
        (1, 0) => Some("it waits for a transaction to end".to_owned()),
        (_, 0) => Some("all of them wait for a transaction to end".to_owned()),
        (1, _) => Some("1 of them waits for a transaction to end".to_owned()),
        (open, _) => Some(format!("{} of them wait for a transaction to end", grouped(open))),
    }
}

fn main_clause(code: ReasonCode, facts: &Facts) -> String {
    match code {
        ReasonCode::NothingWaits => NOTHING_WAITS.to_string(),
        ReasonCode::NothingDeliverable => match facts::waiting(facts) {
            Some(1) => "nothing waits (1 offset is a transaction marker or an aborted message)".to_owned(),
            count => {
                let count = grouped(count.unwrap_or(0));
                format!("nothing waits ({count} offsets are transaction markers or aborted messages)")
            }
        },
        ReasonCode::Waiting => waiting(facts),
        ReasonCode::Paused => format!("{}; {}", paused(facts), wait(facts)),
        ReasonCode::Gone => {
            let from = facts.written_ago.map(|ago| format!(" from {} ago", time(ago))).unwrap_or_default();
            format!("the topic or partition does not exist any more; its stored offset{from} is left over")
        }
        ReasonCode::LeftBehind => {
            let last = facts.written_ago.or(facts.moved_ago);
            let last = last.map(|ago| format!("; this offset was last stored {} ago", time(ago))).unwrap_or_default();
            format!("the module pushes another topic now{last}")
        }
        ReasonCode::SecondsBehind | ReasonCode::MessagesBehind => behind(facts),
        ReasonCode::NotReadYet => "not read yet".to_owned(),
        ReasonCode::SourceSilent
        | ReasonCode::LeaderSilent
        | ReasonCode::NoLeader
        | ReasonCode::InvalidTopic
        | ReasonCode::NoBroker
        | ReasonCode::ReadFailed => unknown(facts),
        ReasonCode::NotAuthorized => match &facts.stored {
            Stored::Refused(what) => format!("reading is denied: {}", quoted(what)),
            _ => unknown(facts),
        },
        ReasonCode::NotAnOffset => match &facts.stored {
            Stored::Unreadable(stored) => format!("the stored text {:?} is not an offset", quoted(stored)),
            _ => "the stored text is not an offset".to_owned(),
        },
        ReasonCode::BeyondEnd => beyond_end(facts),
        ReasonCode::Recreated => recreated(facts),
        ReasonCode::WentBack => went_back(facts),
        ReasonCode::NotMoving => not_moving(facts),
        // A node that was deleted may have had one.
        ReasonCode::NeverStored if !facts.moved_at_least => format!("no offset is stored any more; {}", wait(facts)),
        ReasonCode::NeverStored => format!("no offset was ever stored; {}", wait(facts)),
        ReasonCode::NoMember => {
            let time = facts.nobody_there_for.map_or_else(|| "a while".to_owned(), time);
            format!("nobody pushes it: the module has had no live member for {time}; {}", wait(facts))
        }
        ReasonCode::NoOwner => no_owner(facts),
        ReasonCode::NothingStored => {
            let came_in = messages(facts.came_in);
            let members = match (&facts.owner, facts.members) {
                (Owner::Unknown, None) => "; its members are not known",
                (Owner::Unknown, Some(_)) => "; which of its members owns it is not known",
                _ => "",
            };
            format!("nothing was stored for {} while {came_in} came in{members}", since_moved(facts))
        }
    }
}

fn waiting(facts: &Facts) -> String {
    let mut text = match facts::counted(facts) {
        Some(1) => "1 message waits".to_owned(),
        count => format!("{} messages wait", grouped(count.unwrap_or(0))),
    };
    if let Some(behind) = facts.behind {
        let at_least = if behind.at_least { "at least " } else { "" };
        append(&mut text, format_args!(", {at_least}{} behind", seconds(behind.seconds)));
    }
    text
}

/// "paused by ann 12 min ago".
fn paused(facts: &Facts) -> String {
    match &facts.paused {
        Some(Paused { by, ago: Some(ago) }) => format!("paused by {} {} ago", quoted(by), time(*ago)),
        Some(Paused { by, ago: None }) => format!("paused by {}", quoted(by)),
        None => "paused".to_owned(),
    }
}

/// "1,204 messages wait, the first for 90 s".
fn wait(facts: &Facts) -> String {
    let count = facts::counted(facts).unwrap_or(0);
    let at_least = if facts.waiting_at_least { "at least " } else { "" };
    let time = facts.waiting_for.map(|time_waited| format!("for {at_least}{}", time(time_waited)));
    match (count, time) {
        (1, Some(time)) => format!("1 message waits, {time}"),
        (1, None) => "1 message waits".to_owned(),
        (count, Some(time)) => format!("{} messages wait, the first {time}", grouped(count)),
        (count, None) => format!("{} messages wait", grouped(count)),
    }
}

/// "4 min behind, 12,400 messages; falls by 80/s, caught up in about 3 min".
fn behind(facts: &Facts) -> String {
    let delay = facts::counted(facts).unwrap_or(0);
    let mut text = match facts.behind {
        Some(behind) => {
            let at_least = if behind.at_least { "at least " } else { "" };
            format!("{at_least}{} behind, {}", seconds(behind.seconds), messages(delay))
        }
        None => format!("{} behind", messages(delay)),
    };
    // Less than one message a second, over the minute, is neither.
    if let Some(before) = facts.delay_1m_ago {
        let (growth, fall) = (delay.saturating_sub(before) / 60, before.saturating_sub(delay) / 60);
        if 0 < growth {
            append(&mut text, format_args!("; grows by {}/s", grouped(growth)));
        } else if let Some(left) = delay.checked_div(fall) {
            let left = time(Duration::from_secs(left));
            append(&mut text, format_args!("; falls by {}/s, caught up in about {left}", grouped(fall)));
        } else {
            text.push_str("; neither grows nor falls");
        }
    }
    text
}

fn unknown(facts: &Facts) -> String {
    let stored_is_older = facts.stored_age.is_none_or(|stored| facts.log_age.is_some_and(|log| log < stored));
    let log_reason = || match (&facts.log_unknown, &facts.log) {
        (None, LogState::Unknown(reason)) => Some(reason),
        (reason, _) => reason.as_ref(),
    };
    let (reason, age) = match &facts.stored_unknown {
        Some(reason) if stored_is_older || log_reason().is_none() => (Some(reason), facts.stored_age),
        _ => (log_reason(), facts.log_age),
    };
    let mut text = match reason {
        None | Some(UnknownReason::NotReadYet) => "not read yet".to_owned(),
        Some(UnknownReason::SourceSilent { since, cause }) => {
            return format!("the stored offset could not be read for {} ({})", time(*since), quoted(cause));
        }
        Some(UnknownReason::LeaderSilent { broker }) => {
            format!("broker {broker}, which leads the partition, does not answer")
        }
        Some(UnknownReason::NoLeader) => "the partition has no leader".to_owned(),
        Some(UnknownReason::NotAuthorized) => "reading is denied to kmonitor".to_owned(),
        Some(UnknownReason::InvalidTopic) => "Kafka accepts no topic of this name".to_owned(),
        Some(UnknownReason::NoBroker) => "no broker answers".to_owned(),
        Some(UnknownReason::Failed(cause)) => format!("it could not be read ({})", quoted(cause)),
    };
    match age {
        Some(age) if reason.is_some() => append(&mut text, format_args!("; last read {} ago", time(age))),
        Some(age) => text = format!("not read for {}", time(age)),
        None => {}
    }
    text
}

fn beyond_end(facts: &Facts) -> String {
    let (Stored::Offset(stored), LogState::Known { newest, .. }) = (&facts.stored, &facts.log) else {
        return "the stored offset is beyond the end of the log".to_owned();
    };
    let (stored, newest) = (offset(*stored), offset(*newest));
    format!("stored {stored} is beyond the end {newest}: it is not known yet whether the topic was created again")
}

fn recreated(facts: &Facts) -> String {
    let left = messages(facts::counted(facts).unwrap_or(0));
    match (&facts.stored, &facts.log) {
        (Stored::Offset(stored), LogState::Known { newest, .. }) if newest < stored => {
            let (stored, newest) = (offset(*stored), offset(*newest));
            format!(
                "stored {stored} is beyond the end {newest}: the topic was created again or truncated; {left} to push"
            )
        }
        _ => format!("the topic was created again; {left} to push"),
    }
}

fn went_back(facts: &Facts) -> String {
    let Some(back) = facts.went_back else { return "the stored offset went back".to_owned() };
    let again = messages(u64::try_from(back.from.saturating_sub(back.to)).unwrap_or(0));
    let (from, to) = (offset(back.from), offset(back.to));
    format!("the stored offset went back {} ago, from {from} to {to}: {again} pushed again", time(back.ago))
}

fn not_moving(facts: &Facts) -> String {
    let owner = match &facts.owner {
        Owner::Named(name) => format!("{} owns it", quoted(name)),
        _ => "it has an owner".to_owned(),
    };
    let (moved, wait) = (since_moved(facts), wait(facts));
    format!("{owner}, but the stored offset has not moved for {moved}; {wait}: see ktransfer.log.wf and the backend")
}

fn no_owner(facts: &Facts) -> String {
    let time = match facts.owner {
        Owner::Nobody { since: Some(since) } => format!(" for {}", time(since)),
        _ => String::new(),
    };
    let members = match facts.members {
        Some(1) => "1 member is alive, but does not own it".to_owned(),
        Some(count) => format!("{count} members are alive, but none owns it"),
        None => "it has had no owner".to_owned(),
    };
    format!("nobody pushes it: {members}{time}; {}", wait(facts))
}

fn since_moved(facts: &Facts) -> String {
    let at_least = if facts.moved_at_least { "at least " } else { "" };
    facts.moved_ago.map_or_else(|| "a while".to_owned(), |ago| format!("{at_least}{}", time(ago)))
}

/// "1 message", "1,204 messages".
pub(super) fn messages(count: u64) -> String {
    if count == 1 { "1 message".to_owned() } else { format!("{} messages", grouped(count)) }
}

/// A time in the largest unit of which there are at least two: 95 s, 3 min, 5 h, 2 d.
pub(super) fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", grouped(seconds / 86_400)),
    }
}

fn seconds(seconds: f64) -> String {
    time(Duration::try_from_secs_f64(seconds.round()).unwrap_or_default())
}

fn offset(offset: i64) -> String {
    let sign = if offset < 0 { "-" } else { "" };
    format!("{sign}{}", grouped(offset.unsigned_abs()))
}

/// Writes a number with a comma between each three digits.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if 0 < index && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Cuts a text of a peer, so that a sentence stays readable.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn append(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("writing into memory does not fail");
}

#[cfg(test)]
mod tests;
