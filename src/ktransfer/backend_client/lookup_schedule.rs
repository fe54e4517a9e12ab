//! When each name is looked up. Pure.
//!
//! The look-ups of all names are in flight together, so that a name whose look-up hangs delays no other one. A look-up
//! that takes too long counts as failed, and is repeated while it still runs: its result counts if it comes after all.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Pause between two look-ups of a name.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);
/// Pause before the next look-up of a name after one that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Time after which a look-up counts as failed.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit on the look-ups of one name that run at the same time; more than one hang. Without it, one name would use up
/// the look-ups of the process.
const MAX_RUNNING: usize = 2;

/// When the names of a module are looked up.
#[derive(Default)]
pub(super) struct LookupSchedule(HashMap<String, Name>);

struct Name {
    /// The next look-up, or while one is waited for, its time limit.
    due: Instant,
    is_waited_for: bool,
    n_running: usize,
}

/// What is due for a name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// A look-up; [`LookupSchedule::started`] follows.
    LookUp(String),
    /// Its look-up has taken too long.
    TimedOut(String),
}

impl LookupSchedule {
    /// Takes the names that are to be looked up, and forgets the others.
    pub(super) fn set_names(&mut self, names: &[String], now: Instant) {
        self.0.retain(|name, _| names.contains(name));
        for name in names {
            self.0.entry(name.clone()).or_insert(Name { due: now, is_waited_for: false, n_running: 0 });
        }
    }

    /// Returns what is due.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Due> {
        let mut due = Vec::new();
        for (name, state) in self.0.iter_mut().filter(|(_, state)| state.due <= now) {
            if std::mem::take(&mut state.is_waited_for) {
                state.due = now + RETRY_INTERVAL;
                due.push(Due::TimedOut(name.clone()));
            } else if state.n_running < MAX_RUNNING {
                (state.due, state.is_waited_for) = (now + LOOKUP_TIMEOUT, true);
                state.n_running += 1;
                due.push(Due::LookUp(name.clone()));
            } else {
                state.due = now + RETRY_INTERVAL;
            }
        }
        due
    }

    /// A look-up has ended, or could not be started.
    pub(super) fn ended(&mut self, name: &str, is_found: bool, now: Instant) {
        if let Some(state) = self.0.get_mut(name) {
            state.n_running = state.n_running.saturating_sub(1);
            if is_found || state.is_waited_for {
                let pause = if is_found { RESOLVE_INTERVAL } else { RETRY_INTERVAL };
                (state.due, state.is_waited_for) = (now + pause, false);
            }
        }
    }

    /// Returns when something is due next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.0.values().map(|state| state.due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_hangs_delays_no_other_and_has_at_most_two_look_ups() {
        let (mut schedule, start) = (LookupSchedule::default(), Instant::now());
        let names = ["good".to_owned(), "hangs".to_owned()];
        schedule.set_names(&names, start);
        let (mut n_good, mut n_hanging, mut n_timeouts) = (0, 0, 0);
        for second in 0..600 {
            let now = start + Duration::from_secs(second);
            for due in schedule.take_due(now) {
                match due {
                    Due::LookUp(name) if name == "good" => {
                        n_good += 1;
                        schedule.ended(&name, true, now);
                    }
                    Due::LookUp(_) => n_hanging += 1,
                    Due::TimedOut(name) => {
                        assert_eq!(name, "hangs");
                        n_timeouts += 1;
                    }
                }
            }
        }
        assert_eq!((n_good, n_hanging, n_timeouts), (20, 2, 2));
        // A late answer makes room for the next look-up.
        let end = start + Duration::from_secs(600);
        schedule.ended("hangs", false, end);
        let later = end + Duration::from_secs(3);
        assert!(schedule.take_due(later).contains(&Due::LookUp("hangs".to_owned())));
        // One that succeeds is the newest.
        schedule.ended("hangs", true, later);
        schedule.set_names(&names[1..], later);
        assert_eq!(schedule.next_due(), Some(later + RESOLVE_INTERVAL));
    }
}
