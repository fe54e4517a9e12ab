//! Computes how many seconds a place is behind: the age of its first waiting message, from the history of the log end
//! or from timestamps. Pure.

use std::time::Duration;

use super::ends_history::Arrival;
use super::facts::Behind;

/// An estimate is shown if it is off by at most this time, or by [`MAX_ERROR_PERCENT`]; otherwise a lower bound.
const MAX_ERROR: Duration = Duration::from_secs(10);

/// See [`MAX_ERROR`].
const MAX_ERROR_PERCENT: u32 = 15;

/// Returns the seconds for a delay and the arrival of the first waiting message, with where that is from; `None` if one
/// of them is unknown.
pub(super) fn behind(delay: Option<u64>, arrival: Option<(Arrival, &'static str)>) -> Option<Behind> {
    if delay? == 0 {
        return Some(Behind { seconds: 0.0, at_least: false, from: "history" });
    }
    let (arrival, from) = arrival?;
    let estimate = arrival.estimate().filter(|(age, error)| *error <= MAX_ERROR.max(*age * MAX_ERROR_PERCENT / 100));
    Some(Behind {
        seconds: estimate.map_or(arrival.at_least, |(age, _)| age).as_secs_f64(),
        at_least: estimate.is_none(),
        from,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_those_of_the_history_or_a_lower_bound() {
        let minute = Duration::from_secs(60);
        let known = Arrival { at_least: minute, at_most: Some(minute + Duration::from_secs(10)) };
        let before = Arrival { at_least: minute, at_most: None };
        // The log could not be read for a while, in which the message arrived.
        let gap = Arrival { at_least: minute, at_most: Some(minute * 2) };
        let long = Arrival { at_least: minute * 60, at_most: Some(minute * 70) };
        for (delay, arrival, expected) in [
            (None, Some(known), None),
            (Some(0), None, Some((0.0, false))),
            (Some(0), Some(before), Some((0.0, false))),
            (Some(3), None, None),
            (Some(3), Some(known), Some((65.0, false))),
            (Some(3), Some(before), Some((60.0, true))),
            (Some(3), Some(gap), Some((60.0, true))),
            (Some(3), Some(long), Some((3_900.0, false))),
        ] {
            let found = behind(delay, arrival.map(|arrival| (arrival, "history")))
                .map(|behind| (behind.seconds, behind.at_least));
            assert_eq!(found, expected, "{delay:?} {arrival:?}");
        }
    }
}
