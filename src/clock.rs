//! Clocks: the clock of leases, which keeps running while the machine is suspended; the wall clock in milliseconds,
//! Kafka's unit; and a moment by both clocks, for ages and for display.

use std::ops::{Add, Sub};
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// A point in time of Linux's `CLOCK_BOOTTIME`. Unlike `std::time::Instant` (`CLOCK_MONOTONIC`), this clock includes
/// the time for which a machine is suspended, so a lease does not outlive a suspend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    /// Returns the present time.
    pub fn now() -> BootTime {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
        BootTime(Duration::new(seconds, nanos))
    }

    /// Returns the nanoseconds since the machine was started: enough for 584 years.
    pub fn as_nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Returns the time from `earlier` to `self`; zero if `earlier` is later.
    pub fn saturating_since(self, earlier: BootTime) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// A point in time by two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    /// For durations, from [`boot_instant`].
    pub(crate) at: Instant,
    /// For display.
    pub(crate) wall: SystemTime,
}

impl Moment {
    /// Returns the present moment.
    pub(crate) fn now() -> Self {
        Moment { at: boot_instant(), wall: SystemTime::now() }
    }

    /// Returns the time of this clock for a time of `Instant::now()`, which must not be compared with it.
    pub(crate) fn of_monotonic(self, time: Instant) -> Instant {
        let now = Instant::now();
        match time.checked_duration_since(now) {
            Some(ahead) => self.at.checked_add(ahead).unwrap_or(self.at),
            None => self.at.checked_sub(now.saturating_duration_since(time)).unwrap_or(self.at),
        }
    }
}

/// When this clock was used first, by both clocks.
static FIRST_USE: LazyLock<(Instant, BootTime)> = LazyLock::new(|| (Instant::now(), BootTime::now()));

/// Returns the present moment as an `Instant` that includes the time for which the machine was suspended. It is for
/// ages only: after a suspend it is ahead of `Instant::now()`, so the two must never be compared or mixed.
pub fn boot_instant() -> Instant {
    instant_at(*FIRST_USE, BootTime::now())
}

fn instant_at((instant, boot): (Instant, BootTime), now: BootTime) -> Instant {
    instant.checked_add(now.saturating_since(boot)).unwrap_or(instant)
}

/// Returns the present time in milliseconds since 1970, as Kafka writes timestamps.
pub fn unix_ms() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)
}

impl Add<Duration> for BootTime {
    type Output = BootTime;

    fn add(self, duration: Duration) -> BootTime {
        BootTime(self.0.saturating_add(duration))
    }
}

impl Sub<Duration> for BootTime {
    type Output = BootTime;

    fn sub(self, duration: Duration) -> BootTime {
        BootTime(self.0.saturating_sub(duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_moves_forward_and_its_arithmetic_never_wraps() {
        let before = BootTime::now();
        let later = BootTime::now();
        assert!(before <= later && before.as_nanos() > 0);
        assert_eq!((before + Duration::from_secs(2)).saturating_since(before), Duration::from_secs(2));
        assert_eq!(before.saturating_since(before + Duration::from_secs(1)), Duration::ZERO);
        assert_eq!((before - Duration::MAX).as_nanos(), 0);
        assert_eq!((before + Duration::MAX).as_nanos(), u64::MAX);
    }

    #[test]
    fn a_suspend_is_part_of_an_age() {
        let (instant, boot) = (Instant::now(), BootTime::now());
        let hour = Duration::from_hours(1);
        // The machine slept for an hour: CLOCK_MONOTONIC stood still, CLOCK_BOOTTIME did not.
        assert_eq!(instant_at((instant, boot), boot + hour), instant + hour);
        assert_eq!(instant_at((instant, boot), boot - hour), instant);
        let first = boot_instant();
        assert!(first <= boot_instant() && first.elapsed() < hour);
    }
}
