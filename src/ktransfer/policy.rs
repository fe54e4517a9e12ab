//! Decides after an attempt whether the message is delivered, retried or given up, and computes the back-off. The table
//! of [`outcomes`](super::outcomes) defines the meaning of a result.
//!
//! All functions are pure: the caller passes the random number and measures the time.

use std::fmt;
use std::time::Duration;

use super::outcomes::{Outcome, OutcomeTable, TransportError};

/// How one attempt to push a message ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AttemptOutcome {
    /// The backend answered.
    Answered {
        /// Status code of the answer.
        status: u16,
        /// The pause that the `Retry-After` header of the answer requests; [`RetryPolicy`] limits it.
        retry_after: Option<Duration>,
    },
    /// No answer was received. Whether the backend received the message is unknown.
    Failed {
        /// The kind of error; `None` for a failure of this machine, such as no free file descriptor.
        error: Option<TransportError>,
        /// The error, as text for the log.
        reason: String,
    },
    /// No request can carry this message, so every further attempt would fail too.
    Impossible {
        /// The error, as text for the log.
        reason: String,
    },
}

impl fmt::Display for AttemptOutcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttemptOutcome::Answered { status, .. } => write!(formatter, "http_status_code={status}"),
            AttemptOutcome::Failed { reason, .. } | AttemptOutcome::Impossible { reason } => {
                write!(formatter, "err={reason}")
            }
        }
    }
}

/// The next step after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextStep {
    /// No further step: the message is delivered.
    Delivered,
    /// Wait for this time, then make another attempt.
    Retry(Duration),
    /// Make no further attempt.
    GiveUp(GiveUpCause),
}

/// Why no further attempt follows an attempt that was no delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GiveUpCause {
    /// The table `outcomes` says `drop`.
    Drop,
    /// The table `outcomes` says `dead_letter`.
    DeadLetter,
    /// `max_retry_times` permits no further attempt.
    RetriesUsedUp,
    /// No request can carry the message, so every further attempt would fail too.
    Impossible,
}

/// The number of retries and the pauses between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RetryPolicy {
    /// Pause after the first failure (`fail_retry_interval_ms`).
    pub(super) first_pause: Duration,
    /// Longest pause (`max_retry_interval_ms`); not below `first_pause`.
    pub(super) max_pause: Duration,
    /// Maximum number of attempts after the first (`max_retry_times`); `None` retries without limit.
    pub(super) max_retry_times: Option<u32>,
}

impl RetryPolicy {
    /// Returns the next step after attempt number `attempt`, counted from 1. `random` is uniformly distributed in 0..1.
    pub(super) fn next(
        &self,
        outcomes: &OutcomeTable,
        attempt: u32,
        outcome: &AttemptOutcome,
        random: f64,
    ) -> NextStep {
        let (meaning, requested) = match outcome {
            AttemptOutcome::Answered { status, retry_after } => (outcomes.of_status(*status), *retry_after),
            AttemptOutcome::Failed { error: Some(error), .. } => (outcomes.of_error(*error), None),
            // Another attempt may find this machine in a better state, whatever the table says about backends.
            AttemptOutcome::Failed { error: None, .. } => (Outcome::Retry, None),
            AttemptOutcome::Impossible { .. } => return NextStep::GiveUp(GiveUpCause::Impossible),
        };
        match meaning {
            Outcome::Ok => NextStep::Delivered,
            Outcome::Drop => NextStep::GiveUp(GiveUpCause::Drop),
            Outcome::DeadLetter => NextStep::GiveUp(GiveUpCause::DeadLetter),
            Outcome::Retry if !self.may_retry_after(attempt) => NextStep::GiveUp(GiveUpCause::RetriesUsedUp),
            Outcome::Retry => {
                let requested = requested.unwrap_or_default().min(self.max_pause);
                NextStep::Retry(self.pause(attempt, random).max(requested))
            }
        }
    }

    /// Whether an attempt may follow attempt number `attempt`, counted from 1.
    pub(super) fn may_retry_after(&self, attempt: u32) -> bool {
        self.max_retry_times.is_none_or(|max_retries| attempt <= max_retries)
    }

    /// Returns the pause after attempt number `attempt`: the first pause is as configured, and each later one doubles
    /// up to `max_pause`. A random part of at most a fifth is subtracted from each later pause, so that workers that
    /// failed at the same time do not retry at the same time.
    pub(super) fn pause(&self, attempt: u32, random: f64) -> Duration {
        // At most 31 doublings, so that the shift does not overflow.
        let doublings = attempt.saturating_sub(1).min(31);
        let pause = self.first_pause.saturating_mul(1 << doublings).min(self.max_pause);
        if doublings == 0 { pause } else { pause.mul_f64(1.0 - 0.2 * random.clamp(0.0, 1.0)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(max_retry_times: Option<u32>) -> RetryPolicy {
        RetryPolicy { first_pause: Duration::from_millis(200), max_pause: Duration::from_millis(1500), max_retry_times }
    }

    fn answered(status: u16) -> AttemptOutcome {
        AttemptOutcome::Answered { status, retry_after: None }
    }

    fn failed() -> AttemptOutcome {
        AttemptOutcome::Failed { error: Some(TransportError::Closed), reason: "connection reset".to_owned() }
    }

    /// Returns the next step with the default table.
    fn next(policy: &RetryPolicy, attempt: u32, outcome: &AttemptOutcome, random: f64) -> NextStep {
        policy.next(&OutcomeTable::default(), attempt, outcome, random)
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
            assert_eq!(next(&policy(None), 1, &answered(status), 0.0) == NextStep::Delivered, delivered, "{status}");
        }
        assert_ne!(next(&policy(None), 1, &failed(), 0.0), NextStep::Delivered);
    }

    #[test]
    fn pauses_double_up_to_max_pause_with_random_jitter() {
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
            let expected = NextStep::Retry(Duration::from_millis(pause));
            assert_eq!(next(&policy(None), attempt, &failed(), random), expected, "attempt {attempt}, {random}");
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
            let step = next(&policy(max_retry_times), attempt, &answered(500), 0.0);
            let is_given_up = step == NextStep::GiveUp(GiveUpCause::RetriesUsedUp);
            assert_eq!(is_given_up, gives_up, "{max_retry_times:?}, attempt {attempt}");
        }
        assert_eq!(next(&policy(Some(0)), 1, &answered(204), 0.0), NextStep::Delivered);
        let impossible = AttemptOutcome::Impossible { reason: "the uri is too long".to_owned() };
        assert_eq!(
            next(&policy(None), 1, &impossible, 0.0),
            NextStep::GiveUp(GiveUpCause::Impossible),
            "an endless retry would block all messages of the same key"
        );
    }

    #[test]
    fn retry_after_lengthens_a_pause_within_the_bounds() {
        for (requested_s, pause) in [(0, 200), (1, 1000), (3600, 1500)] {
            let outcome = AttemptOutcome::Answered { status: 503, retry_after: Some(Duration::from_secs(requested_s)) };
            assert_eq!(
                next(&policy(None), 1, &outcome, 0.0),
                NextStep::Retry(Duration::from_millis(pause)),
                "{requested_s}"
            );
        }
    }

    #[test]
    fn the_table_decides_and_only_retries_are_counted() {
        let table =
            "{200-201: ok, 202: retry, 404: drop, 410: dead_letter, read_timeout: ok, tls: drop, default: retry}";
        let table = OutcomeTable::from_yaml(&serde_yaml::from_str(table).unwrap()).unwrap();
        let failed = |error| AttemptOutcome::Failed { error, reason: String::new() };
        let retry = NextStep::Retry(Duration::from_millis(200));
        for (outcome, expected) in [
            (answered(200), NextStep::Delivered),
            (answered(202), retry),
            (answered(404), NextStep::GiveUp(GiveUpCause::Drop)),
            (answered(410), NextStep::GiveUp(GiveUpCause::DeadLetter)),
            (answered(500), retry),
            (failed(Some(TransportError::ReadTimeout)), NextStep::Delivered),
            (failed(Some(TransportError::Tls)), NextStep::GiveUp(GiveUpCause::Drop)),
            (failed(Some(TransportError::Closed)), retry),
            (failed(None), retry),
        ] {
            assert_eq!(policy(None).next(&table, 1, &outcome, 0.0), expected, "{outcome:?}");
            let used_up = if expected == retry { NextStep::GiveUp(GiveUpCause::RetriesUsedUp) } else { expected };
            assert_eq!(policy(Some(0)).next(&table, 1, &outcome, 0.0), used_up, "{outcome:?}, no retry");
        }
    }

    proptest! {
        #[test]
        fn a_pause_is_never_outside_its_bounds(
            first in 0u64..100_000, more in 0u64..100_000, attempt in 1u32.., random in 0.0f64..1.0
        ) {
            let first_pause = Duration::from_millis(first);
            let max_pause = Duration::from_millis(first + more);
            let policy = RetryPolicy { first_pause, max_pause, max_retry_times: None };
            let step = next(&policy, attempt, &failed(), random);
            let NextStep::Retry(pause) = step else { panic!("{step:?} although retries are unlimited") };
            prop_assert!(first_pause.mul_f64(0.8) <= pause && pause <= max_pause, "{pause:?}");
        }
    }
}
