//! What the end of an attempt means, and how long to wait before the next one.
//!
//! Values in, values out: randomness and time come from the caller.

use std::fmt;
use std::time::Duration;

/// How one attempt to push a message ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The backend answered.
    Answered {
        /// Its status code.
        status: u16,
        /// How long it asks to be left alone (`Retry-After` in seconds).
        retry_after: Option<Duration>,
    },
    /// No answer came. Whether the backend got the message is unknown.
    Failed {
        /// In words.
        reason: String,
    },
    /// No request can be made of this message, so that no attempt will ever do better.
    Impossible {
        /// In words.
        reason: String,
    },
}

impl fmt::Display for Attempt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Attempt::Answered { status, .. } => write!(formatter, "http_status_code={status}"),
            Attempt::Failed { reason } | Attempt::Impossible { reason } => write!(formatter, "err={reason}"),
        }
    }
}

/// What is to be done after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: the message is delivered.
    Delivered,
    /// Wait so long, then try again.
    Retry(Duration),
    /// Nothing more: the attempts are used up.
    GiveUp,
}

/// When to try again, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Pause after the first failure (`fail_retry_interval_ms`).
    pub first_pause: Duration,
    /// Longest pause (`max_retry_interval_ms`); at least the first one.
    pub longest_pause: Duration,
    /// Attempts after the first (`max_retry_times`); `None` goes on for ever.
    pub max_retry_times: Option<u32>,
}

impl RetryPolicy {
    /// Decides after attempt number `attempt`, counted from 1. `random` is uniform in 0..1.
    pub fn next(&self, attempt: u32, outcome: &Attempt, random: f64) -> Next {
        if is_delivered(outcome) {
            return Next::Delivered;
        }
        if self.max_retry_times.is_some_and(|most| most < attempt) {
            return Next::GiveUp;
        }
        let asked = match outcome {
            Attempt::Answered { retry_after, .. } => retry_after.unwrap_or_default(),
            Attempt::Failed { .. } => Duration::ZERO,
            Attempt::Impossible { .. } => return Next::GiveUp,
        };
        Next::Retry(self.pause(attempt, random).max(asked.min(self.longest_pause)))
    }

    /// The first pause doubled with each attempt, up to the longest. Up to a fifth less by chance, so that workers that
    /// failed together do not come back together; the first one is as configured.
    fn pause(&self, attempt: u32, random: f64) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        let pause = self.first_pause.saturating_mul(1 << doublings).min(self.longest_pause);
        if doublings == 0 { pause } else { pause.mul_f64(1.0 - 0.2 * random.clamp(0.0, 1.0)) }
    }
}

/// Statuses from 200 to 299 are a delivery, nothing else is.
fn is_delivered(outcome: &Attempt) -> bool {
    matches!(outcome, Attempt::Answered { status: 200..=299, .. })
}

/// The pause that a `Retry-After` header asks for. Only the form in seconds is understood; a date is left out.
pub fn retry_after(value: &[u8]) -> Option<Duration> {
    std::str::from_utf8(value).ok()?.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(max_retry_times: Option<u32>) -> RetryPolicy {
        RetryPolicy {
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_millis(1500),
            max_retry_times,
        }
    }

    fn answered(status: u16) -> Attempt {
        Attempt::Answered { status, retry_after: None }
    }

    fn failed() -> Attempt {
        Attempt::Failed { reason: "connection refused".to_owned() }
    }

    #[test]
    fn only_2xx_is_a_delivery() {
        for (status, delivered) in [
            (100, false),
            (199, false),
            (200, true),
            (204, true),
            (299, true),
            (301, false),
            (404, false),
            (503, false),
        ] {
            assert_eq!(policy(None).next(1, &answered(status), 0.0) == Next::Delivered, delivered, "{status}");
        }
        assert_ne!(policy(None).next(1, &failed(), 0.0), Next::Delivered);
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_shrink_by_chance() {
        for (attempt, random, pause) in [
            (1, 0.0, 200),
            (1, 1.0, 200),
            (2, 0.0, 400),
            (2, 0.5, 360),
            (3, 1.0, 640),
            (4, 0.0, 1500),
            (5, 1.0, 1200),
            (u32::MAX, 0.0, 1500),
        ] {
            let next = Next::Retry(Duration::from_millis(pause));
            assert_eq!(policy(None).next(attempt, &failed(), random), next, "attempt {attempt}, {random}");
        }
    }

    #[test]
    fn retries_end_after_the_configured_number() {
        for (max_retry_times, attempt, gives_up) in [
            (Some(0), 1, true),
            (Some(2), 1, false),
            (Some(2), 2, false),
            (Some(2), 3, true),
            (None, 1, false),
            (None, u32::MAX, false),
        ] {
            let next = policy(max_retry_times).next(attempt, &answered(500), 0.0);
            assert_eq!(next == Next::GiveUp, gives_up, "{max_retry_times:?}, attempt {attempt}");
        }
        assert_eq!(policy(Some(0)).next(1, &answered(204), 0.0), Next::Delivered);
        let impossible = Attempt::Impossible { reason: "the uri is too long".to_owned() };
        assert_eq!(policy(None).next(1, &impossible, 0.0), Next::GiveUp, "else it would hold its key up for ever");
    }

    #[test]
    fn retry_after_lengthens_a_pause_within_the_bounds() {
        for (asked_s, pause) in [(0, 200), (1, 1000), (3600, 1500)] {
            let outcome = Attempt::Answered { status: 503, retry_after: Some(Duration::from_secs(asked_s)) };
            assert_eq!(policy(None).next(1, &outcome, 0.0), Next::Retry(Duration::from_millis(pause)), "{asked_s}");
        }
        for (value, seconds) in [
            (b"3".as_slice(), Some(3)),
            (b" 3 ", Some(3)),
            (b"-1", None),
            (b"3.5", None),
            (b"Fri, 31 Dec 1999 23:59:59 GMT", None),
            (b"\xff", None),
            (b"99999999999999999999999", None),
        ] {
            assert_eq!(retry_after(value), seconds.map(Duration::from_secs), "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn a_pause_is_never_outside_its_bounds(
            first in 0u64..100_000, more in 0u64..100_000, attempt in 1u32.., random in 0.0f64..1.0
        ) {
            let first_pause = Duration::from_millis(first);
            let longest_pause = Duration::from_millis(first + more);
            let policy = RetryPolicy { first_pause, longest_pause, max_retry_times: None };
            let Next::Retry(pause) = policy.next(attempt, &failed(), random) else { panic!("it retries for ever") };
            prop_assert!(first_pause.mul_f64(0.8) <= pause && pause <= longest_pause, "{pause:?}");
        }
    }
}
