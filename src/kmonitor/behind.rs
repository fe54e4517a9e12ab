//! How many seconds a place is behind: the age of its first waiting message, by the history of the log's end. Pure.

use super::ends_history::Arrival;
use super::facts::Behind;

/// Returns the seconds for a delay and the arrival of the first waiting message; `None` if one of them is unknown.
pub(super) fn behind(delay: Option<u64>, arrival: Option<Arrival>) -> Option<Behind> {
    if delay? == 0 {
        return Some(Behind { seconds: 0.0, at_least: false, from: "history" });
    }
    let arrival = arrival?;
    Some(Behind {
        seconds: arrival.estimate().as_secs_f64(),
        // A message from before the first reading may be of any age.
        at_least: arrival.at_most.is_none(),
        from: "history",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn seconds_are_those_of_the_history_or_a_lower_bound() {
        let minute = Duration::from_secs(60);
        let known = Arrival { at_least: minute, at_most: Some(minute + Duration::from_secs(10)) };
        let before = Arrival { at_least: minute, at_most: None };
        for (delay, arrival, expected) in [
            (None, Some(known), None),
            (Some(0), None, Some((0.0, false))),
            (Some(0), Some(before), Some((0.0, false))),
            (Some(3), None, None),
            (Some(3), Some(known), Some((65.0, false))),
            (Some(3), Some(before), Some((60.0, true))),
        ] {
            let found = behind(delay, arrival).map(|behind| (behind.seconds, behind.at_least));
            assert_eq!(found, expected, "{delay:?} {arrival:?}");
        }
    }
}
