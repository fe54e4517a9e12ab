//! The end of the lease, from the time at which an answered heartbeat was sent.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::clock::BootTime;

/// Upper bound of the samples of both clocks.
const MAX_SAMPLES: usize = 16;

/// Returns how long before the end of the session timeout a lease ends: for clocks and threads. The coordinator counts
/// from the arrival of a heartbeat, which is later than its sending.
fn margin(session_timeout: Duration) -> Duration {
    session_timeout / 6
}

/// Counts the lease in [`BootTime`]. The client reports the sending in [`Instant`], a clock that stands still while the
/// machine is suspended; the difference of the two clocks only grows. So a sample of both that was taken before the
/// sending never dates it too late.
#[derive(Debug)]
pub(super) struct LeaseClock {
    session_timeout: Duration,
    /// Samples in the order of time, at least one.
    samples: VecDeque<(Instant, BootTime)>,
    /// The end of the lease by the latest proof.
    until: Option<BootTime>,
}

impl LeaseClock {
    pub(super) fn new(session_timeout: Duration) -> LeaseClock {
        let samples = VecDeque::from([sample()]);
        LeaseClock { session_timeout, samples, until: None }
    }

    /// Takes the sending time of an answered heartbeat; returns the end of the lease.
    pub(super) fn prove(&mut self, sent: Instant) -> Option<BootTime> {
        let until = self.boot_time(sent).map(|sent| sent + (self.session_timeout - margin(self.session_timeout)));
        self.until = self.until.max(until);
        if self.samples.len() < MAX_SAMPLES {
            self.samples.push_back(sample());
        }
        self.until
    }

    /// The membership was lost: the proofs so far are void.
    pub(super) fn end(&mut self) {
        self.until = None;
    }

    /// Returns the end of the lease by the latest proof; the present time without one.
    pub(super) fn until(&self) -> BootTime {
        self.until.unwrap_or_else(BootTime::now)
    }

    /// Returns `sent` by the other clock, or an earlier time; `None` if all samples are later.
    fn boot_time(&mut self, sent: Instant) -> Option<BootTime> {
        while self.samples.get(1).is_some_and(|(at, _)| *at <= sent) {
            self.samples.pop_front();
        }
        let (at, boot) = *self.samples.front()?;
        Some(boot + sent.checked_duration_since(at)?)
    }
}

/// Reads both clocks, [`BootTime`] first: it must not be the later one.
fn sample() -> (Instant, BootTime) {
    let boot = BootTime::now();
    (Instant::now(), boot)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: Duration = Duration::from_secs(6);

    #[test]
    fn the_lease_counts_from_the_sending_and_ends_before_the_session() {
        let mut clock = LeaseClock::new(SESSION);
        let (sent, boot) = (Instant::now(), BootTime::now());
        let until = clock.prove(sent).expect("a sample before the sending");
        assert!(until <= boot + SESSION - SESSION / 6, "{until:?} after {boot:?}");
        assert!(until + Duration::from_secs(1) > boot + SESSION - SESSION / 6, "{until:?} after {boot:?}");
        assert_eq!(clock.until(), until);
        clock.end();
        assert!(clock.until() <= BootTime::now());
    }

    #[test]
    fn a_suspend_between_sending_and_answer_does_not_lengthen_the_lease() {
        let mut clock = LeaseClock::new(SESSION);
        let (sent, boot) = (Instant::now(), BootTime::now());
        // A sample that was taken after the machine slept for an hour.
        clock.samples.push_back((sent + Duration::from_millis(5), boot + Duration::from_secs(3600)));
        assert!(clock.boot_time(sent).unwrap() <= boot);
        // The next heartbeat is sent after the sample.
        let later = clock.boot_time(sent + Duration::from_millis(10)).unwrap();
        assert!(later > boot + Duration::from_secs(3600), "{later:?}");
    }

    #[test]
    fn a_heartbeat_before_the_first_sample_proves_nothing_and_the_samples_are_bounded() {
        let early = Instant::now();
        let mut clock = LeaseClock::new(SESSION);
        clock.samples[0].0 += Duration::from_secs(1);
        assert_eq!(clock.prove(early), None);
        for _ in 0..100 {
            clock.prove(early);
        }
        assert_eq!(clock.samples.len(), MAX_SAMPLES);
        assert!(clock.prove(Instant::now() + Duration::from_secs(2)).is_some());
        assert!(clock.samples.len() < MAX_SAMPLES);
    }
}
