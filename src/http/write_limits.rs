//! How long a client may take to read a response.
//!
//! A response that is larger than the socket buffers takes several round trips, so one short deadline would cut off
//! clients that are far away. A deadline that every byte renews would keep a connection for ever. So a client that
//! reads slowly keeps its connection as long as it makes progress, is not too slow on average, and ends in time.

use std::time::{Duration, Instant};

/// The limits on writing one response. A connection whose client exceeds one of them is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteLimits {
    /// Longest time in which the client takes no byte.
    pub stall: Duration,
    /// The response may take this time, and beyond it as long as the average rate is at least `min_bytes_per_second`.
    pub slow_start: Duration,
    /// Lowest average rate.
    pub min_bytes_per_second: u32,
    /// Longest time for the whole response.
    pub max: Duration,
}

/// The progress of a client in reading a response.
#[derive(Clone, Copy, Debug)]
pub(super) struct WriteProgress {
    /// When the response was written for the first time.
    pub(super) since: Instant,
    /// When the client last took bytes.
    pub(super) last: Instant,
    /// Number of bytes taken since `since`.
    pub(super) bytes: usize,
}

impl WriteLimits {
    /// Returns the usual limits for a configured timeout: 10 s without progress, 8 KiB/s on average, 60 s in all. A
    /// longer timeout extends each time to it.
    pub fn with_timeout(timeout: Duration) -> Self {
        let patience = timeout.max(Duration::from_secs(10));
        WriteLimits {
            stall: patience,
            slow_start: patience,
            min_bytes_per_second: 8 << 10,
            max: timeout.max(Duration::from_secs(60)),
        }
    }

    /// Returns when the connection is closed unless the client takes more bytes.
    pub(super) fn deadline(&self, progress: WriteProgress) -> Instant {
        let paid = Duration::from_secs_f64(progress.bytes as f64 / f64::from(self.min_bytes_per_second.max(1)));
        let allowed = self.slow_start.saturating_add(paid).min(self.max);
        (progress.last + self.stall).min(progress.since + allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_time_as_long_as_it_reads_and_is_not_too_slow() {
        let since = Instant::now();
        let limits = WriteLimits::with_timeout(Duration::from_millis(100));
        let deadline = |at_second: u64, bytes: usize| {
            let last = since + Duration::from_secs(at_second);
            (limits.deadline(WriteProgress { since, last, bytes }) - since).as_secs()
        };
        for (at_second, bytes, expected) in [
            (0, 0, 10),
            // The average is at least 8 KiB/s: 10 s after the last byte.
            (5, 64 << 10, 15),
            (30, 240 << 10, 40),
            // Too slow: one byte a second.
            (9, 9, 10),
            // Some bytes a second, 10 s beyond what they pay for.
            (12, 32 << 10, 14),
            // Fast, but it never ends.
            (55, 50 << 20, 60),
        ] {
            assert_eq!(deadline(at_second, bytes), expected, "{bytes} bytes, the last after {at_second} s");
        }
        let limits = WriteLimits::with_timeout(Duration::from_secs(100));
        let progress = WriteProgress { since, last: since, bytes: 0 };
        assert_eq!(limits.deadline(progress) - since, Duration::from_secs(100));
    }
}
