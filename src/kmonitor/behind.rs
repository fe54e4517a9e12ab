//! How many seconds a place is behind: the age of its first waiting message. Pure.
//!
//! The age comes from the history of the log's end. For a message from before the first reading, the brokers can say at
//! which offset a time began ([`TimedOffset`]); that gives a bound at once, where the history needs as long as the
//! message is old. Message times are set by producers, so answers that cannot be right are not used.

use std::time::{Duration, SystemTime};

use crate::broker::Offset;

use super::ends_history::Arrival;
use super::facts::Behind;

/// The times to ask the brokers for, as ages.
pub(super) const SEED_AGES: [Duration; 5] = [
    Duration::from_secs(60),
    Duration::from_secs(300),
    Duration::from_secs(900),
    Duration::from_secs(3_600),
    Duration::from_secs(21_600),
];

/// Message times before 2010 are no times of messages: Kafka is younger.
const EARLIEST: Duration = Duration::from_secs(1_262_304_000);

/// How far the clocks of producers may be ahead.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// A broker's answer: the first offset whose message time is not before a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TimedOffset {
    /// How long ago that time was.
    pub age: Duration,
    /// The offset; `None` if all messages are older.
    pub offset: Option<Offset>,
    /// The time of the message at the offset; `None` if the broker did not return it.
    pub timestamp_ms: Option<i64>,
}

/// Returns a lower bound for the age of the message at `stored`, or `None` if the answers give none or cannot be right:
/// offsets must rise with time and lie in the log, and message times must not be in the future or before 2010.
pub(super) fn seed(
    answers: &[TimedOffset],
    stored: Offset,
    (oldest, newest): (Offset, Offset),
    wall: SystemTime,
) -> Option<Duration> {
    let mut answers = answers.to_vec();
    answers.sort_unstable_by_key(|answer| answer.age);
    let offset = |answer: &TimedOffset| answer.offset.unwrap_or(newest);
    let is_falling = answers.windows(2).all(|pair| offset(&pair[1]) <= offset(&pair[0]));
    let is_plausible =
        |answer: &TimedOffset| (oldest..=newest).contains(&offset(answer)) && is_plausible(answer.timestamp_ms, wall);
    if newest <= stored || !is_falling || !answers.iter().all(is_plausible) {
        return None;
    }
    // If the messages since T begin beyond `stored`, the message at `stored` is older than T.
    answers.iter().rev().find(|answer| stored < offset(answer)).map(|answer| answer.age)
}

fn is_plausible(timestamp_ms: Option<i64>, wall: SystemTime) -> bool {
    let Some(timestamp) = timestamp_ms else { return true };
    let latest = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().saturating_add(CLOCK_SKEW);
    u64::try_from(timestamp).is_ok_and(|millis| (EARLIEST..=latest).contains(&Duration::from_millis(millis)))
}

/// Joins what is known: the delay, the arrival by the history, and a seed with the time that has passed since.
pub(super) fn behind(delay: Option<u64>, arrival: Option<Arrival>, seed: Option<Duration>) -> Option<Behind> {
    if delay? == 0 {
        return Some(Behind { seconds: 0.0, at_least: false, from: "history" });
    }
    let arrival = arrival?;
    let seconds = arrival.estimate().as_secs_f64();
    let at_least = arrival.at_most.is_none();
    match seed {
        Some(seed) if at_least && arrival.at_least < seed => {
            Some(Behind { seconds: seed.as_secs_f64(), at_least, from: "timestamps" })
        }
        _ => Some(Behind { seconds, at_least, from: "history" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn wall() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_764_093_790)
    }

    fn answers(offsets: [Option<Offset>; 5]) -> Vec<TimedOffset> {
        let answer = |(age, offset)| TimedOffset { age, offset, timestamp_ms: Some(1_764_000_000_000) };
        SEED_AGES.into_iter().zip(offsets).map(answer).collect()
    }

    #[test]
    fn a_seed_is_the_largest_age_that_is_certain() {
        // Messages 90 to 99 are of the last minute, 50 to 89 of the last 5, 20 to 49 of the last 15, the rest is older
        // than an hour, but not than 6.
        let answers = answers([Some(90), Some(50), Some(20), Some(20), Some(0)]);
        for (stored, age) in [
            (95, None),
            (90, None),
            (89, Some(MINUTE)),
            (49, Some(MINUTE * 5)),
            (20, Some(MINUTE * 5)),
            (19, Some(MINUTE * 60)),
            (0, Some(MINUTE * 60)),
            (100, None),
        ] {
            assert_eq!(seed(&answers, stored, (0, 100), wall()), age, "{stored}");
        }
        let all_older = self::answers([None; 5]);
        assert_eq!(seed(&all_older, 99, (0, 100), wall()), Some(MINUTE * 360));
        assert_eq!(seed(&[], 3, (0, 100), wall()), None);
    }

    #[test]
    fn answers_that_cannot_be_right_give_no_seed() {
        let good = answers([Some(90), Some(50), Some(20), Some(20), Some(0)]);
        assert!(seed(&good, 10, (0, 100), wall()).is_some());
        for offsets in [
            [Some(50), Some(90), Some(20), Some(20), Some(0)],
            [Some(101), Some(50), Some(20), Some(20), Some(0)],
            [Some(90), Some(50), Some(20), Some(20), Some(-1)],
            [Some(90), None, Some(20), Some(20), Some(0)],
        ] {
            assert_eq!(seed(&answers(offsets), 10, (0, 100), wall()), None, "{offsets:?}");
        }
        for timestamp in [0, -1, 1_262_303_999_999, 1_764_093_851_000, i64::MAX] {
            let mut bad = good.clone();
            bad[2].timestamp_ms = Some(timestamp);
            assert_eq!(seed(&bad, 10, (0, 100), wall()), None, "{timestamp}");
        }
    }

    #[test]
    fn the_history_prevails_where_it_reaches() {
        let known = Arrival { at_least: MINUTE, at_most: Some(MINUTE + Duration::from_secs(10)) };
        let before = Arrival { at_least: MINUTE, at_most: None };
        let shown = |behind: Option<Behind>| behind.map(|b| (b.seconds, b.at_least, b.from));
        for (delay, arrival, seed, expected) in [
            (None, Some(known), None, None),
            (Some(0), None, None, Some((0.0, false, "history"))),
            (Some(3), None, None, None),
            (Some(3), Some(known), Some(MINUTE * 60), Some((65.0, false, "history"))),
            (Some(3), Some(before), None, Some((60.0, true, "history"))),
            (Some(3), Some(before), Some(MINUTE / 2), Some((60.0, true, "history"))),
            (Some(3), Some(before), Some(MINUTE * 5), Some((300.0, true, "timestamps"))),
        ] {
            assert_eq!(shown(behind(delay, arrival, seed)), expected, "{delay:?} {arrival:?} {seed:?}");
        }
    }
}
