//! The delay of the last hour, one byte a minute: small enough to keep for 100,000 partitions. Pure.
//!
//! A byte is 0 if the delay was unknown, 1 if it was 0, else 2 + 8·log2 of the largest delay of the minute, which is
//! exact to 4.4 % and ends at 3·10⁹ messages.

use std::time::{Duration, SystemTime};

use super::view::History;

const MINUTE: u64 = 60;

/// The history of one place or module. A new one knows nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sparkline {
    /// Ring: the minute `m` since the start of the poller is at `m % 60`.
    codes: History,
    /// The newest minute.
    minute: u32,
}

impl Default for Sparkline {
    fn default() -> Self {
        Sparkline { codes: [0; 60], minute: 0 }
    }
}

impl Sparkline {
    /// Records a delay, `elapsed` after the start of the poller. Of several in one minute the largest stays.
    pub(super) fn record(&mut self, elapsed: Duration, delay: Option<u64>) {
        let minute = self.advance(elapsed);
        let slot = &mut self.codes[minute as usize % 60];
        *slot = (*slot).max(delay.map_or(0, code));
    }

    /// Returns the hour that ends with the present minute, the newest last.
    pub(super) fn hour(&self, elapsed: Duration) -> History {
        let mut copy = *self;
        let minute = copy.advance(elapsed) as usize;
        std::array::from_fn(|index| copy.codes[(minute + 1 + index) % 60])
    }

    /// Moves on to the present minute; the minutes between are unknown.
    fn advance(&mut self, elapsed: Duration) -> u32 {
        let now = u32::try_from(elapsed.as_secs() / MINUTE).unwrap_or(u32::MAX);
        for minute in self.minute.saturating_add(1).max(now.saturating_sub(59))..=now {
            self.codes[minute as usize % 60] = 0;
        }
        self.minute = self.minute.max(now);
        self.minute
    }
}

/// Returns the wall-clock time at which the last minute of `hour(elapsed)` began.
pub(super) fn last_minute(elapsed: Duration, wall: SystemTime) -> SystemTime {
    wall.checked_sub(Duration::from_secs(elapsed.as_secs() % MINUTE)).unwrap_or(wall)
}

/// Returns the byte for a delay.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "2 to 255 after the clamp")]
#[expect(clippy::cast_precision_loss, reason = "the byte is not that exact")]
pub(super) fn code(delay: u64) -> u8 {
    match delay {
        0 => 1,
        _ => (2.0 + (8.0 * (delay as f64).log2()).round()).clamp(2.0, 255.0) as u8,
    }
}

/// Returns the delay of a byte, exact to 4.4 %; `None` if it was unknown.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 2^31.7")]
pub(super) fn decode(code: u8) -> Option<u64> {
    match code {
        0 => None,
        1 => Some(0),
        _ => Some((f64::from(code - 2) / 8.0).exp2().round() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(minutes * 60)
    }

    #[test]
    fn the_largest_delay_of_a_minute_stays_and_a_gap_is_unknown() {
        let mut line = Sparkline::default();
        let second = Duration::from_secs(1);
        for (at, delay) in [
            (minutes(0), Some(0)),
            (minutes(0) + second, Some(9)),
            (minutes(0) + second * 2, None),
            (minutes(3), Some(0)),
        ] {
            line.record(at, delay);
        }
        let hour = line.hour(minutes(4));
        assert_eq!(hour[..55], [0; 55]);
        assert_eq!(hour[55..], [code(9), 0, 0, 1, 0]);
        assert_eq!(line.hour(minutes(62))[..3], [1, 0, 0], "the first minute is older than an hour");
        line.record(minutes(500), Some(1));
        assert_eq!(line.hour(minutes(500))[58..], [0, 2]);
        line.record(minutes(499), Some(4));
        assert_eq!(
            line.hour(minutes(500))[58..],
            [0, code(4)],
            "a clock that steps back writes into the newest minute"
        );
    }

    proptest! {
        #[test]
        fn a_code_is_exact_to_4_4_percent(delay in 1..3_000_000_000_u64) {
            let decoded = decode(code(delay)).unwrap();
            let error = decoded.abs_diff(delay) as f64 / delay as f64;
            prop_assert!(error <= 0.0443 || decoded.abs_diff(delay) <= 1, "{delay}: {decoded}");
        }

        #[test]
        fn codes_rise_with_the_delay(a in any::<u64>(), b in any::<u64>()) {
            prop_assert_eq!(code(a.min(b)).max(code(a.max(b))), code(a.max(b)));
        }
    }

    #[test]
    fn unknown_and_zero_have_codes_of_their_own() {
        assert_eq!((code(0), decode(0), decode(1), decode(2)), (1, None, Some(0), Some(1)));
        assert_eq!(code(u64::MAX), 255);
    }
}
