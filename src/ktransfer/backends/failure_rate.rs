//! The rule by failure rate: ejects a backend if a large share of its pushes fails, even if never enough of them in a
//! row. A pure state machine; the caller passes the time and the counts.
//!
//! Only a backend that fails much more often than the others is ejected. If the others fail nearly as often, the cause
//! is in the messages or in something that all backends need, and an ejection would only move the failures. So the rule
//! never ejects the last backend in use.
//!
//! The counts of a backend only grow. A sample of all of them is taken at a failure, at most every tenth of the window;
//! the counts of the window are those since the oldest sample in it. So a push that succeeds costs one atomic addition,
//! and the memory is that of [`MAX_SAMPLES`] samples.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

/// Number of samples in a window.
const SAMPLES_A_WINDOW: u32 = 10;
/// Largest number of samples that are kept.
const MAX_SAMPLES: usize = SAMPLES_A_WINDOW as usize + 1;
/// How many times as often as the others a backend must fail.
const MIN_RATIO: u128 = 2;

/// When a backend is ejected because of its failure rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RateConfig {
    /// `failure_percent`: the part of the pushes that fail, in percent; at least 1.
    pub(crate) percent: u32,
    /// `min_requests`: pushes in the window below which the rate says nothing.
    pub(crate) min_requests: u32,
    /// `window_ms`: the time over which the rate is taken.
    pub(crate) window: Duration,
}

/// The first attempts at one backend that ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Pushes that say that the backend works.
    pub(super) good: u64,
    /// Pushes that are failures of the backend.
    pub(super) bad: u64,
}

impl Counts {
    fn n(self) -> u64 {
        self.good + self.bad
    }

    fn since(self, earlier: Counts) -> Counts {
        Counts { good: self.good.saturating_sub(earlier.good), bad: self.bad.saturating_sub(earlier.bad) }
    }

    fn plus(self, other: Counts) -> Counts {
        Counts { good: self.good + other.good, bad: self.bad + other.bad }
    }
}

/// The failure rate for which a backend is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FailureRate {
    counts: Counts,
    window: Duration,
}

impl fmt::Display for FailureRate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} of {} pushes within {}ms", self.counts.bad, self.counts.n(), self.window.as_millis())
    }
}

/// The failure rates of the backends of one module.
#[derive(Clone, Debug)]
pub(super) struct FailureRates {
    config: RateConfig,
    /// The oldest first.
    samples: VecDeque<(Instant, Vec<Counts>)>,
}

impl FailureRates {
    /// Creates the rates of backends without a failure.
    pub(super) fn new(config: RateConfig) -> FailureRates {
        FailureRates { config, samples: VecDeque::with_capacity(MAX_SAMPLES) }
    }

    /// Creates the rates after a change of the backends. `former` has, for each of them, its index before the change;
    /// `None` for one that was added.
    pub(super) fn changed(&self, config: RateConfig, former: &[Option<usize>]) -> FailureRates {
        if self.config != config {
            return FailureRates::new(config);
        }
        let sample = |(at, counts): &(Instant, Vec<Counts>)| {
            let counts_of = |index: &Option<usize>| index.map_or(Counts::default(), |index| counts[index]);
            (*at, former.iter().map(counts_of).collect())
        };
        FailureRates { config, samples: self.samples.iter().map(sample).collect() }
    }

    /// Called when a failure of the backend at `index` has been counted. Returns its rate if the backend is to be
    /// ejected because of it. `is_in_use` says which backends are.
    pub(super) fn note_failure(
        &mut self,
        index: usize,
        counts: &[Counts],
        is_in_use: impl Fn(usize) -> bool,
        now: Instant,
    ) -> Option<FailureRate> {
        self.sample(counts, now);
        let (_, start) = self.samples.front()?;
        let in_window = |index: usize| counts[index].since(start[index]);
        let of_this = in_window(index);
        let others = (0..counts.len()).filter(|other| *other != index && is_in_use(*other));
        let of_others = others.map(in_window).fold(Counts::default(), Counts::plus);
        let RateConfig { percent, min_requests, window } = self.config;
        let has_enough = |counts: Counts| u64::from(min_requests) <= counts.n();
        let product = |left: u64, right: u64| u128::from(left) * u128::from(right);
        let is_outlier = has_enough(of_this)
            && has_enough(of_others)
            && product(of_this.n(), u64::from(percent)) <= product(of_this.bad, 100)
            && product(of_others.bad, of_this.n()) * MIN_RATIO <= product(of_this.bad, of_others.n());
        is_outlier.then_some(FailureRate { counts: of_this, window })
    }

    fn sample(&mut self, counts: &[Counts], now: Instant) {
        let age = |at: Instant| now.saturating_duration_since(at);
        while self.samples.front().is_some_and(|(at, _)| self.config.window < age(*at)) {
            self.samples.pop_front();
        }
        let interval = self.config.window / SAMPLES_A_WINDOW;
        if self.samples.back().is_none_or(|(at, _)| interval <= age(*at)) && self.samples.len() < MAX_SAMPLES {
            self.samples.push_back((now, counts.to_vec()));
        }
    }

    /// Forgets the pushes of a backend so far, which is back in use. `counts` are its counts now.
    pub(super) fn forget(&mut self, index: usize, counts: Counts) {
        for (_, sample) in &mut self.samples {
            sample[index] = counts;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: RateConfig = RateConfig { percent: 50, min_requests: 20, window: Duration::from_millis(10_000) };

    /// Backends whose pushes end one after the other.
    struct Rig {
        rates: FailureRates,
        counts: Vec<Counts>,
        now: Instant,
    }

    impl Rig {
        fn new(n_backends: usize) -> Rig {
            let counts = vec![Counts::default(); n_backends];
            Rig { rates: FailureRates::new(CONFIG), counts, now: Instant::now() }
        }

        fn good(&mut self, index: usize, n: u64) {
            self.counts[index].good += n;
        }

        /// Returns the failure rate if the backend is to be ejected.
        fn bad(&mut self, index: usize) -> Option<FailureRate> {
            self.bad_among(index, |_| true)
        }

        fn bad_among(&mut self, index: usize, is_in_use: impl Fn(usize) -> bool) -> Option<FailureRate> {
            self.counts[index].bad += 1;
            self.rates.note_failure(index, &self.counts, is_in_use, self.now)
        }

        /// Lets `n` rounds pass in which each backend fails the given part of its pushes, in percent, evenly. Returns
        /// the round in which `index` was to be ejected.
        fn rounds(&mut self, percents: &[u64], n: u64, pause: Duration, index: usize) -> Option<u64> {
            for round in 1..=n {
                self.now += pause;
                for (backend, percent) in percents.iter().enumerate() {
                    if round * percent / 100 == (round - 1) * percent / 100 {
                        self.good(backend, 1);
                    } else if self.bad(backend).is_some() && backend == index {
                        return Some(round);
                    }
                }
            }
            None
        }
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_backend_that_fails_half_of_its_pushes_is_found_when_there_are_enough_of_them() {
        let found = Rig::new(4).rounds(&[50, 0, 0, 0], 1000, MS, 0);
        assert!(found.is_some_and(|round| (20..=22).contains(&round)), "{found:?}");
        assert_eq!(Rig::new(4).rounds(&[40, 0, 0, 0], 10_000, MS, 0), None, "below the limit");
        assert_eq!(Rig::new(4).rounds(&[50, 0, 0, 0], 1000, MS * 1000, 0), None, "10 requests in a window");
        assert!(Rig::new(4).rounds(&[50, 50, 0, 0], 1000, MS, 1).is_some(), "two that fail");
    }

    #[test]
    fn where_the_others_fail_nearly_as_often_nobody_stands_out() {
        for percents in [[50, 50, 50, 50], [90, 90, 90, 90], [60, 40, 40, 40], [100, 60, 60, 60]] {
            assert_eq!(Rig::new(4).rounds(&percents, 5_000, MS, 0), None, "{percents:?}");
        }
        assert!(Rig::new(4).rounds(&[60, 20, 20, 20], 5_000, MS, 0).is_some());
        // The last backend in use.
        let mut rig = Rig::new(3);
        for _ in 0..100 {
            rig.bad(0);
            rig.good(1, 1);
        }
        assert!(rig.bad_among(0, |index| index < 2).is_some());
        assert!(rig.bad_among(0, |index| index != 1).is_none(), "backend 2 has no pushes");
        assert!(rig.bad_among(0, |index| index == 0).is_none());
    }

    #[test]
    fn what_is_older_than_the_window_does_not_count() {
        let mut rig = Rig::new(2);
        // An hour without failures does not hide what comes after it.
        assert!(rig.bad(0).is_none());
        rig.now += Duration::from_secs(3600);
        rig.good(0, 100_000);
        rig.good(1, 100_000);
        assert!(rig.rounds(&[60, 0], 100, MS, 0).is_some());
        // Nor do failures long ago count now.
        let mut rig = Rig::new(2);
        assert!((0..19).all(|_| rig.bad(0).is_none()));
        rig.now += CONFIG.window + MS;
        assert_eq!(rig.rounds(&[20, 0], 1000, MS, 0), None);
        assert!(rig.rates.samples.len() <= MAX_SAMPLES);
    }

    #[test]
    fn the_window_moves_on_with_at_most_a_fixed_number_of_samples() {
        let mut rig = Rig::new(2);
        assert_eq!(rig.rounds(&[40, 0], 5_000, MS * 7, 0), None);
        assert!(rig.rates.samples.len() <= MAX_SAMPLES);
        let oldest = rig.now.duration_since(rig.rates.samples[0].0);
        assert!(CONFIG.window * 8 / 10 <= oldest && oldest <= CONFIG.window + MS * 100, "{oldest:?}");
        // Within a window of its first failures a backend that gets worse is found.
        let found = rig.rounds(&[100, 0], 1_400, MS * 7, 0);
        assert!(found.is_some_and(|round| round < 500), "{found:?}");
    }

    #[test]
    fn a_backend_that_is_back_begins_without_its_failures() {
        let mut rig = Rig::new(2);
        assert!(rig.rounds(&[50, 0], 100, MS, 0).is_some());
        rig.rates.forget(0, rig.counts[0]);
        rig.good(1, 100);
        assert!((0..19).all(|_| rig.bad(0).is_none()), "too few pushes since then");
        let rate = rig.bad(0).expect("twenty failures");
        assert_eq!(rate.to_string(), "20 of 20 pushes within 10000ms");
    }
}
