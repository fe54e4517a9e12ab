//! The phases of the backends: in use, ejected, probed, in slow start. A pure state machine; the caller passes the
//! time.
//!
//! ```text
//!                failures                    due                 a good probe          slow_start_ms
//!   in use ─────────────────▶ ejected ─────────────────▶ probed ───────────▶ slow start ──────────▶ in use
//!                                 ▲      one push           │                     │
//!                                 └─────────────────────────┴─────────────────────┘
//!                                     a failed probe, or failures: for twice as long
//! ```
//!
//! While no backend is in use, an ejected one is probed again after `interval_ms`, however long it is ejected for: a
//! longer pause would only delay the waiting messages.

use std::time::{Duration, Instant};

use super::failure_rate::RateConfig;

/// When a backend is ejected, and for how long (`ejection`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EjectionConfig {
    /// `failures`: number of failures in a row after which a backend is ejected; `None`, written 0, for no such rule.
    pub(crate) failures: Option<u32>,
    /// `failure_percent`, `min_requests`, `window_ms`: the failure rate at which a backend is ejected; `None`, with
    /// `failure_percent` written 0, for no such rule.
    pub(crate) rate: Option<RateConfig>,
    /// `interval_ms`: time from the ejection to the first probe.
    pub(crate) interval: Duration,
    /// `max_interval_ms`: longest time between two probes, and the time after which a probe without an answer is no
    /// reason to wait with the next one.
    pub(crate) max_interval: Duration,
    /// `slow_start_ms`: time in which the share of a backend that is back grows to that of the others.
    pub(crate) slow_start: Duration,
    /// `count_5xx`: whether a status from 500 to 599 is a failure of the backend.
    pub(crate) count_5xx: bool,
}

/// Smallest share of its turns that a backend in slow start takes.
const MIN_WEIGHT: f64 = 0.1;

/// The phase of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    InUse,
    /// No push goes to the backend before `until`. `since`: the ejection, or the end of the latest probe.
    Ejected {
        since: Instant,
        until: Instant,
        interval: Duration,
    },
    /// One push is on its way to the backend.
    Probed {
        since: Instant,
        interval: Duration,
    },
    SlowStart {
        since: Instant,
        interval: Duration,
    },
}

/// The phases of all backends.
#[derive(Clone, Debug)]
pub(super) struct Phases {
    config: EjectionConfig,
    phases: Vec<Phase>,
}

impl Phases {
    /// Creates the phases of `count` backends in use.
    pub(super) fn new(config: EjectionConfig, count: usize) -> Phases {
        Phases { config, phases: vec![Phase::InUse; count] }
    }

    /// Creates the phases of the backends after a change of the configuration. `former` has, for each of them, its
    /// index before the change; `None` for one that was added. Where no backend is ejected any more, all are in use.
    pub(super) fn changed(&self, config: EjectionConfig, former: &[Option<usize>]) -> Phases {
        let phase = |index: &Option<usize>| index.map_or(Phase::InUse, |index| self.phases[index]);
        let may_eject = config.failures.is_some() || config.rate.is_some();
        let phases = match may_eject {
            true => former.iter().map(phase).collect(),
            false => vec![Phase::InUse; former.len()],
        };
        Phases { config, phases }
    }

    /// Returns the phase of the backend.
    pub(super) fn phase(&self, index: usize) -> Phase {
        self.phases[index]
    }

    /// Whether any push may go to the backend.
    pub(super) fn is_usable(&self, index: usize) -> bool {
        matches!(self.phases[index], Phase::InUse | Phase::SlowStart { .. })
    }

    pub(super) fn n_usable(&self) -> usize {
        (0..self.phases.len()).filter(|index| self.is_usable(*index)).count()
    }

    /// Ends slow starts that are over. Returns whether every backend is in use.
    pub(super) fn settle(&mut self, now: Instant) -> bool {
        for phase in &mut self.phases {
            if matches!(phase, Phase::SlowStart { since, .. } if *since + self.config.slow_start <= now) {
                *phase = Phase::InUse;
            }
        }
        self.phases.iter().all(|phase| *phase == Phase::InUse)
    }

    /// Returns the share of its turns that a backend takes, 0 to 1.
    pub(super) fn weight(&self, index: usize, now: Instant) -> f64 {
        let Phase::SlowStart { since, .. } = self.phases[index] else { return 1.0 };
        let part = now.saturating_duration_since(since).as_secs_f64() / self.config.slow_start.as_secs_f64();
        part.clamp(MIN_WEIGHT, 1.0)
    }

    /// Returns from when a probe of the backend may begin; `None` while it is in use.
    pub(super) fn due(&self, index: usize) -> Option<Instant> {
        match self.phases[index] {
            Phase::InUse | Phase::SlowStart { .. } => None,
            Phase::Ejected { since, until, .. } if self.n_usable() == 0 => {
                Some(until.min(since + self.config.interval))
            }
            Phase::Ejected { until, .. } => Some(until),
            // A probe may hang for as long as the timeouts of the module permit, which may be for ever.
            Phase::Probed { since, .. } => Some(since + self.config.max_interval),
        }
    }

    /// Returns when a push that waits for a backend should look again: not later than the next probe may begin.
    pub(super) fn next_look(&self, now: Instant) -> Option<Instant> {
        let look = |index: usize| match self.phases[index] {
            // If the probe fails from now on, the next one is not before this.
            Phase::Probed { .. } => self.due(index).map(|due| due.min(now + self.config.interval)),
            _ => self.due(index),
        };
        (0..self.phases.len()).filter_map(look).min()
    }

    /// Ejects a backend in use.
    pub(super) fn eject(&mut self, index: usize, now: Instant) -> Duration {
        let interval = match self.phases[index] {
            // It failed again soon after its return.
            Phase::SlowStart { interval, .. } => self.doubled(interval),
            _ => self.config.interval,
        };
        self.phases[index] = Phase::Ejected { since: now, until: now + interval, interval };
        interval
    }

    /// Begins a probe.
    pub(super) fn begin_probe(&mut self, index: usize, now: Instant) {
        let interval = match self.phases[index] {
            Phase::Ejected { interval, .. } | Phase::Probed { interval, .. } => interval,
            Phase::InUse | Phase::SlowStart { .. } => self.config.interval,
        };
        self.phases[index] = Phase::Probed { since: now, interval };
    }

    /// Ends a probe. `is_good`: whether the backend answered; `None` if the push was not made, so that another one may
    /// be the probe at once.
    pub(super) fn end_probe(&mut self, index: usize, is_good: Option<bool>, now: Instant) {
        let Phase::Probed { interval, .. } = self.phases[index] else { return };
        self.phases[index] = match is_good {
            Some(true) if self.config.slow_start.is_zero() => Phase::InUse,
            Some(true) => Phase::SlowStart { since: now, interval },
            Some(false) => {
                let interval = self.doubled(interval);
                Phase::Ejected { since: now, until: now + interval, interval }
            }
            None => Phase::Ejected { since: now, until: now, interval },
        };
    }

    fn doubled(&self, interval: Duration) -> Duration {
        (interval * 2).min(self.config.max_interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONFIG: EjectionConfig = EjectionConfig {
        failures: Some(3),
        rate: None,
        interval: Duration::from_millis(1000),
        max_interval: Duration::from_millis(3000),
        slow_start: Duration::from_millis(2000),
        count_5xx: true,
    };

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn probes_are_made_at_growing_intervals_up_to_the_maximum() {
        let (mut phases, mut now) = (Phases::new(CONFIG, 2), Instant::now());
        assert_eq!((phases.eject(0, now), phases.due(0)), (ms(1000), Some(now + ms(1000))));
        for interval in [2000, 3000, 3000] {
            now += ms(5000);
            phases.begin_probe(0, now);
            assert!(!phases.is_usable(0));
            assert_eq!(phases.due(0), Some(now + ms(3000)), "a probe that hangs");
            phases.end_probe(0, Some(false), now + ms(10));
            assert_eq!(phases.due(0), Some(now + ms(10 + interval)));
        }
        phases.begin_probe(0, now);
        phases.end_probe(0, None, now);
        assert_eq!(phases.due(0), Some(now), "the push was not made");
        phases.begin_probe(0, now);
        phases.end_probe(0, Some(true), now);
        assert!(phases.is_usable(0) && phases.due(0).is_none());
        assert_eq!(phases.eject(0, now), ms(3000), "it failed again in its slow start");
    }

    #[test]
    fn without_a_backend_in_use_each_is_probed_after_the_first_interval() {
        let (mut phases, now) = (Phases::new(CONFIG, 2), Instant::now());
        phases.eject(0, now);
        phases.begin_probe(0, now);
        phases.end_probe(0, Some(false), now);
        assert_eq!(phases.due(0), Some(now + ms(2000)));
        phases.eject(1, now + ms(500));
        assert_eq!((phases.due(0), phases.due(1)), (Some(now + ms(1000)), Some(now + ms(1500))));
        assert_eq!(phases.next_look(now), Some(now + ms(1000)));
        phases.begin_probe(0, now + ms(1000));
        assert_eq!(phases.next_look(now + ms(1000)), Some(now + ms(1500)));
        phases.begin_probe(1, now + ms(1500));
        assert_eq!(phases.next_look(now + ms(1600)), Some(now + ms(2600)), "when a failed probe could be repeated");
        assert_eq!(phases.next_look(now + ms(3900)), Some(now + ms(4000)), "when a probe that hangs has a successor");
    }

    #[test]
    fn a_share_grows_in_slow_start() {
        let (mut phases, now) = (Phases::new(CONFIG, 1), Instant::now());
        phases.eject(0, now);
        phases.begin_probe(0, now);
        phases.end_probe(0, Some(true), now);
        for (elapsed, weight, is_over) in
            [(0, 0.1, false), (1000, 0.5, false), (1999, 0.9995, false), (2000, 1.0, true)]
        {
            assert!((phases.weight(0, now + ms(elapsed)) - weight).abs() < 1e-9, "{elapsed}");
            assert_eq!(phases.settle(now + ms(elapsed)), is_over, "{elapsed}");
        }
        let mut at_once = Phases::new(EjectionConfig { slow_start: Duration::ZERO, ..CONFIG }, 1);
        at_once.eject(0, now);
        at_once.begin_probe(0, now);
        at_once.end_probe(0, Some(true), now);
        assert!(at_once.settle(now));
    }

    proptest! {
        /// Whatever happens, there is a backend to use or a time to look again, and that is not before a probe that
        /// ended just now may be repeated.
        #[test]
        fn there_is_always_a_backend_or_a_time_to_look_again(
            steps in prop::collection::vec((0..3_usize, 0..4_u8, 0..4000_u64), 1..60)
        ) {
            let (mut phases, mut now) = (Phases::new(CONFIG, 3), Instant::now());
            for (index, step, pause) in steps {
                now += ms(pause);
                match (step, phases.is_usable(index)) {
                    (0, true) => drop(phases.eject(index, now)),
                    (1, false) if phases.due(index).is_some_and(|due| due <= now) => phases.begin_probe(index, now),
                    (2, _) => phases.end_probe(index, Some(true), now),
                    (3, _) => phases.end_probe(index, Some(false), now),
                    _ => {}
                }
                phases.settle(now);
                if phases.n_usable() == 0 {
                    let look = phases.next_look(now).unwrap();
                    prop_assert!(look <= now + CONFIG.interval, "it would wait longer than the first interval");
                    let due = (0..3).filter_map(|index| phases.due(index)).min().unwrap();
                    prop_assert!(due <= now + CONFIG.max_interval);
                } else {
                    prop_assert!((0..3).any(|index| phases.is_usable(index)));
                }
            }
        }
    }
}
