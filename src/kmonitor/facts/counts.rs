//! How many messages wait, as the facts of a place say. Pure.

use super::{Facts, LogState, Stored};
use crate::broker::Offset;

/// Returns the number of messages that are still to be pushed: from the stored offset, or from the oldest message if
/// retention deleted what follows the stored offset or if the topic was created again, to the newest. `None` if a
/// number is missing, nothing was ever stored, or the stored offset is beyond the end.
pub(in crate::kmonitor) fn delay(facts: &Facts) -> Option<u64> {
    let (Stored::Offset(stored), LogState::Known { oldest, newest }) = (&facts.stored, &facts.log) else { return None };
    if is_beyond_end(facts) {
        return None;
    }
    let from = if facts.recreated { *oldest } else { *oldest.max(stored) };
    Some(distance(from, *newest))
}

/// Whether the stored offset is beyond the end of the log, which was read after it, and it is not known why: how many
/// messages wait is not known then.
pub(in crate::kmonitor) fn is_beyond_end(facts: &Facts) -> bool {
    match (&facts.stored, &facts.log) {
        (Stored::Offset(stored), LogState::Known { newest, .. }) => newest < stored && !facts.recreated,
        _ => false,
    }
}

/// Returns the number of messages that retention deleted before they were pushed: they were gone before the stored
/// offset was read.
pub(in crate::kmonitor) fn lost(facts: &Facts) -> u64 {
    match (&facts.stored, &facts.log) {
        (Stored::Offset(stored), LogState::Known { oldest, .. }) if !facts.recreated => {
            distance(*stored, facts.oldest_before.map_or(*oldest, |before| before.min(*oldest)))
        }
        _ => 0,
    }
}

/// Returns the messages that seem to wait: the delay, or, if nothing was ever stored, all messages of the log.
pub(in crate::kmonitor) fn waiting(facts: &Facts) -> Option<u64> {
    match (&facts.stored, &facts.log) {
        (Stored::Nothing, LogState::Known { oldest, newest }) => Some(distance(*oldest, *newest)),
        _ => delay(facts),
    }
}

/// Returns the messages that wait, as far as it is known: none of those that nobody can deliver. This is the number
/// that is shown and judged.
pub(in crate::kmonitor) fn counted(facts: &Facts) -> Option<u64> {
    if facts.undeliverable {
        return Some(in_transaction(facts));
    }
    Some(waiting(facts)?.saturating_sub(facts.skipped))
}

/// Returns how many of the waiting messages nobody can read yet, because a transaction is open.
pub(in crate::kmonitor) fn in_transaction(facts: &Facts) -> u64 {
    let (Some(stable), LogState::Known { newest, .. }) = (facts.stable, &facts.log) else { return 0 };
    distance(stable, *newest).min(waiting(facts).unwrap_or(0))
}

/// Returns how many of the waiting messages can be read.
pub(in crate::kmonitor) fn readable(facts: &Facts) -> u64 {
    counted(facts).unwrap_or(0).saturating_sub(in_transaction(facts))
}

fn distance(from: Offset, to: Offset) -> u64 {
    u64::try_from(to.saturating_sub(from)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmonitor::facts::UnknownReason;

    fn facts(stored: Offset, oldest: Offset, newest: Offset) -> Facts {
        Facts { stored: Stored::Offset(stored), log: LogState::Known { oldest, newest }, ..Facts::unread() }
    }

    #[test]
    fn a_delay_counts_only_messages_that_can_still_be_pushed() {
        for (stored, oldest, newest, waits, deleted) in [
            (3, 0, 15, 12, 0),
            (15, 0, 15, 0, 0),
            (3, 10, 15, 5, 7),
            (3, 15, 15, 0, 12),
            (0, 0, Offset::MAX, Offset::MAX as u64, 0),
            (Offset::MIN, Offset::MAX, Offset::MAX, 0, Offset::MAX as u64),
        ] {
            let facts = facts(stored, oldest, newest);
            assert_eq!((delay(&facts), lost(&facts)), (Some(waits), deleted), "{stored} {oldest} {newest}");
        }
        let beyond = facts(20, 0, 15);
        assert_eq!((delay(&beyond), waiting(&beyond), lost(&beyond)), (None, None, 0), "it is not known, and not 0");
        let recreated = Facts { recreated: true, ..facts(5000, 2, 120) };
        assert_eq!((delay(&recreated), lost(&recreated)), (Some(118), 0), "all of the new topic is pushed");
        let recreated = Facts { recreated: true, ..facts(1, 2, 120) };
        assert_eq!((delay(&recreated), lost(&recreated)), (Some(118), 0), "also where the old offset is in it");
    }

    #[test]
    fn messages_of_an_open_transaction_wait_but_cannot_be_read() {
        for (stored, stable, open, free) in
            [(3, None, 0, 12), (3, Some(5), 10, 2), (3, Some(3), 12, 0), (7, Some(5), 8, 0), (15, Some(5), 0, 0)]
        {
            let facts = Facts { stable, ..facts(stored, 0, 15) };
            assert_eq!((in_transaction(&facts), readable(&facts)), (open, free), "{stored} {stable:?}");
            assert_eq!(delay(&facts), Some(open + free), "both are a delay");
        }
    }

    #[test]
    fn without_both_numbers_there_is_no_delay() {
        let known = LogState::Known { oldest: 5, newest: 15 };
        for stored in [Stored::Nothing, Stored::Unreadable("abc".into()), Stored::Refused("/consumers/m".into())] {
            let facts = Facts { stored: stored.clone(), log: known.clone(), ..Facts::unread() };
            assert_eq!((delay(&facts), lost(&facts)), (None, 0));
            let all = if stored == Stored::Nothing { Some(10) } else { None };
            assert_eq!(waiting(&facts), all, "a module that never stored has the whole log before it");
        }
        for log in [LogState::Gone, LogState::Unknown(UnknownReason::NoLeader)] {
            let facts = Facts { stored: Stored::Offset(3), log, ..Facts::unread() };
            assert_eq!((delay(&facts), lost(&facts), waiting(&facts)), (None, 0, None));
        }
    }
}
