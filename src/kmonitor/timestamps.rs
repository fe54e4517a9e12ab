//! The age of the messages of a log by their timestamps: for "seconds behind" of messages older than kmonitor's first
//! reading. Pure.
//!
//! For some ages, the brokers say which message is the first that is not older; so the age of each message lies between
//! two of them. Producers may set timestamps as they like. So they are only shown: no verdict is based on them, and
//! they give way to what kmonitor has seen itself.

use std::time::Duration;

use crate::broker::Offset;

use super::ends_history::Arrival;

/// The ages grow by a third: the middle of two is off by less than 15 %.
const GROWTH: (u32, u32) = (4, 3);

/// The shortest and the longest of the ages.
const AGES: (Duration, Duration) = (Duration::from_secs(30), Duration::from_hours(24));

/// Returns the ages that are looked up, the shortest first: 28.
pub(super) fn ages() -> impl Iterator<Item = Duration> {
    std::iter::successors(Some(AGES.0), |age| Some(*age * GROWTH.0 / GROWTH.1)).take_while(|age| *age <= AGES.1)
}

/// The ages of the messages of one log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Timestamps {
    /// When they were looked up, since the start of the poller.
    taken: Duration,
    /// For each age the first message that is not older; `Offset::MAX` if all are.
    firsts: Box<[Offset]>,
}

impl Timestamps {
    /// Makes them of what was found for each of [`ages`], `taken` after the start of the poller.
    pub(super) fn new(taken: Duration, firsts: Vec<Option<Offset>>) -> Self {
        Timestamps { taken, firsts: firsts.into_iter().map(|first| first.unwrap_or(Offset::MAX)).collect() }
    }

    /// Returns how long ago the message at `offset` arrived. `seen`: what the readings of the log show, which goes
    /// before; `None` if the timestamps contradict it or say no more.
    pub(super) fn arrival(&self, elapsed: Duration, offset: Offset, seen: Arrival) -> Option<Arrival> {
        let since = elapsed.saturating_sub(self.taken);
        let is_older = |first: &Offset| offset < *first;
        let at_least = ages().zip(&self.firsts).filter(|(_, first)| is_older(first)).map(|(age, _)| age + since).last();
        let at_most =
            ages().zip(&self.firsts).skip_while(|(_, first)| is_older(first)).map(|(age, _)| age + since).next();
        let found = Arrival { at_least: at_least.unwrap_or_default().max(seen.at_least), at_most };
        let is_better = seen.at_least < found.at_least || at_most.is_some();
        let is_possible = at_most.is_none_or(|at_most| found.at_least <= at_most);
        (seen.at_most.is_none() && is_better && is_possible).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A log of a message a second up to now: the one at `offset` is 1,000 - `offset` seconds old.
    fn steady() -> Timestamps {
        let first = |age: Duration| i64::try_from(1_000_u64.saturating_sub(age.as_secs())).unwrap();
        Timestamps::new(seconds(10), ages().map(|age| Some(first(age))).collect())
    }

    #[test]
    fn an_age_by_timestamps_is_known_to_15_percent() {
        assert_eq!((ages().count(), ages().next()), (28, Some(seconds(30))));
        let seen = Arrival { at_least: seconds(10), at_most: None };
        for offset in [1, 500, 900, 960] {
            let age = 1_000.0 - offset as f64;
            let found = steady().arrival(seconds(10), offset, seen).unwrap();
            let (middle, error) = found.estimate().unwrap();
            assert!((middle.as_secs_f64() - age).abs() <= 0.15 * age + 1.0, "{offset}: {found:?}");
            assert!(error <= middle * 15 / 100, "{offset}: {found:?}");
        }
        let later = steady().arrival(seconds(70), 900, Arrival { at_least: seconds(70), at_most: None }).unwrap();
        assert!(seconds(150) <= later.at_least && later.at_most.unwrap() <= seconds(195), "{later:?}");
        let young = steady().arrival(seconds(10), 990, seen);
        assert_eq!(young, Some(Arrival { at_least: seconds(10), at_most: Some(seconds(30)) }));
    }

    #[test]
    fn what_was_seen_goes_before() {
        let known = Arrival { at_least: seconds(10), at_most: Some(seconds(15)) };
        assert_eq!(steady().arrival(seconds(10), 500, known), None);
        // A message that lay there an hour ago says that it is a few seconds old.
        let long = Arrival { at_least: seconds(3_600), at_most: None };
        assert_eq!(steady().arrival(seconds(10), 990, long), None);
        // All messages are older than a day: a lower bound.
        let old = Timestamps::new(seconds(0), ages().map(|_| None).collect());
        let found = old.arrival(seconds(10), 5, Arrival { at_least: seconds(10), at_most: None }).unwrap();
        assert!(seconds(60_000) < found.at_least && found.at_most.is_none(), "{found:?}");
        // Nothing was found out.
        let nothing = Timestamps::new(seconds(0), Vec::new());
        assert_eq!(nothing.arrival(seconds(10), 5, long), None);
    }
}
