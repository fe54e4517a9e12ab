//! The clock of leases, which counts on while the machine is suspended, the wall clock in Kafka's unit, and both usual
//! clocks at one time.

use std::ops::{Add, Sub};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// A point in time of Linux's `CLOCK_BOOTTIME`. Unlike `std::time::Instant` (`CLOCK_MONOTONIC`), this clock counts the
/// time that a suspended machine sleeps, so a lease does not outlive a suspend.
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

/// A point in time by both usual clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    /// For durations.
    pub(crate) at: Instant,
    /// For display.
    pub(crate) wall: SystemTime,
}

impl Moment {
    /// Returns the present moment.
    pub(crate) fn now() -> Self {
        Moment { at: Instant::now(), wall: SystemTime::now() }
    }
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
}
