//! Keeps a flood of lines that strangers can cause from filling a disk.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Lines a second that [`log_limited!`](crate::log_limited) lets through at each place it is written.
pub const LIMITED_LINES_PER_SECOND: u32 = 10;

/// Lets `per_second` through in each second and counts the rest. One for each place in the code that logs.
///
/// The count of what was held back is told with the first line of a later second, so a flood that ends is reported
/// with the next line of the same place, whenever that is.
#[derive(Debug)]
pub struct RateLimit {
    per_second: u32,
    /// The current second in the upper half, how many were asked for in it in the lower half.
    window: AtomicU64,
}

impl RateLimit {
    /// Lets `per_second` through.
    pub const fn new(per_second: u32) -> Self {
        RateLimit { per_second, window: AtomicU64::new(0) }
    }

    /// `None`: hold this one back. Otherwise how many were held back since the last one that was let through.
    pub fn admit(&self) -> Option<u32> {
        static START: OnceLock<Instant> = OnceLock::new();
        // Seconds since the first use, from 1, so that the initial window is over.
        self.admit_at(START.get_or_init(Instant::now).elapsed().as_secs() + 1)
    }

    fn admit_at(&self, second: u64) -> Option<u32> {
        let mut seen = self.window.load(Ordering::Relaxed);
        loop {
            // A thread that was paused between reading the clock and here must not turn the window back.
            let second = (second & u64::from(u32::MAX)).max(seen >> 32);
            let asked = u32::try_from(seen & u64::from(u32::MAX)).unwrap_or(u32::MAX);
            let is_new_second = second != seen >> 32;
            let (next, answer) = if is_new_second {
                (1, Some(asked.saturating_sub(self.per_second)))
            } else {
                (asked.saturating_add(1), (asked < self.per_second).then_some(0))
            };
            let packed = second << 32 | u64::from(next);
            match self.window.compare_exchange_weak(seen, packed, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return answer,
                Err(now) => seen = now,
            }
        }
    }
}

/// Logs like `log::log!`, but at most [`LIMITED_LINES_PER_SECOND`] lines a second
/// from each place it is written; the line after a pause says how many were left out. For everything that a
/// client, a message or a peer can cause.
///
/// ```
/// kafka_http_wrapper::log_limited!(log::Level::Warn, "the key of {} is no text", "t/3");
/// ```
#[macro_export]
macro_rules! log_limited {
    ($level:expr, $($text:tt)+) => {{
        static LIMIT: $crate::logging::RateLimit =
            $crate::logging::RateLimit::new($crate::logging::LIMITED_LINES_PER_SECOND);
        let level = $level;
        if ::log::log_enabled!(level) {
            match LIMIT.admit() {
                None => {}
                Some(0) => ::log::log!(level, $($text)+),
                Some(held_back) => {
                    ::log::log!(level, "{} ({held_back} more lines like this were left out)", ::std::format_args!($($text)+));
                }
            }
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_a_second_pass_and_the_rest_is_counted() {
        let limit = RateLimit::new(2);
        let answers: Vec<_> = [1, 1, 1, 1, 2, 2, 2, 1, 9, 9].iter().map(|second| limit.admit_at(*second)).collect();
        // The 1 among the twos belongs to the second that has begun: time does not go back.
        assert_eq!(answers, [Some(0), Some(0), None, None, Some(2), Some(0), None, None, Some(2), Some(0)]);
    }

    #[test]
    fn threads_share_one_limit() {
        let limit = RateLimit::new(100);
        let passed: usize = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..1000).filter(|_| limit.admit_at(5).is_some()).count())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(passed, 100);
        assert_eq!(limit.admit_at(6), Some(3900));
    }
}
