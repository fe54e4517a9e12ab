//! Limits lines that clients, messages and peers can cause, so that they cannot fill a disk.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Largest number of lines a second that [`log_limited!`](crate::log_limited) writes, for each place in the code that
/// uses the macro.
pub const LIMITED_LINES_PER_SECOND: u32 = 10;

/// Admits `per_second` lines in each second and counts the suppressed ones. Each limited log call has its own limit.
///
/// The first line of a later second has the count of suppressed lines. So the count of the last second of a flood is
/// logged with the next line of the same log call, which may come much later.
#[derive(Debug)]
pub struct RateLimit {
    per_second: u32,
    /// Upper half: the current second. Lower half: the number of lines in it, admitted or not.
    window: AtomicU64,
}

impl RateLimit {
    /// Makes a limit of `per_second` lines a second.
    pub const fn new(per_second: u32) -> Self {
        RateLimit { per_second, window: AtomicU64::new(0) }
    }

    /// Counts a line. Returns `None` if the line must be suppressed, otherwise the number of lines suppressed since the
    /// last admitted one.
    pub fn admit(&self) -> Option<u32> {
        static START: OnceLock<Instant> = OnceLock::new();
        // Seconds since the first use, counted from 1: the initial value of the window stands for second 0.
        self.admit_at(START.get_or_init(Instant::now).elapsed().as_secs() + 1)
    }

    fn admit_at(&self, second: u64) -> Option<u32> {
        let mut seen = self.window.load(Ordering::Relaxed);
        loop {
            // A thread that was paused after reading the clock must not set the window to an earlier second.
            let second = (second & u64::from(u32::MAX)).max(seen >> 32);
            let n_lines = u32::try_from(seen & u64::from(u32::MAX)).unwrap_or(u32::MAX);
            let is_new_second = second != seen >> 32;
            let (next, admission) = if is_new_second {
                (1, Some(n_lines.saturating_sub(self.per_second)))
            } else {
                (n_lines.saturating_add(1), (n_lines < self.per_second).then_some(0))
            };
            let packed = second << 32 | u64::from(next);
            match self.window.compare_exchange_weak(seen, packed, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return admission,
                Err(now) => seen = now,
            }
        }
    }
}

/// Logs like `log::log!`, but at most [`LIMITED_LINES_PER_SECOND`] lines a second from each place in the code; the
/// first line of a later second has the number of suppressed lines. Used for every line that a client, a message or a
/// peer can cause.
///
/// ```
/// kafka_http_wrapper::log_limited!(log::Level::Warn, "the key of {} is not UTF-8", "t/3");
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
                Some(suppressed) => {
                    ::log::log!(level, "{} ({suppressed} similar lines suppressed)", ::std::format_args!($($text)+));
                }
            }
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_admitted_each_second_and_the_rest_is_counted() {
        let limit = RateLimit::new(2);
        let admitted: Vec<_> = [1, 1, 1, 1, 2, 2, 2, 1, 9, 9].iter().map(|second| limit.admit_at(*second)).collect();
        // The 1 after the twos counts for second 2: a limit never returns to an earlier second.
        assert_eq!(admitted, [Some(0), Some(0), None, None, Some(2), Some(0), None, None, Some(2), Some(0)]);
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
