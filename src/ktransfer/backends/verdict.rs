//! Classifies the outcome of a push as a success or a failure of its backend.

use crate::ktransfer::policy::{AttemptOutcome, GiveUpCause, NextStep};

/// What a push says about its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PushVerdict<'a> {
    /// The backend works: it answered, and what it refused is the message.
    Good,
    /// The backend failed: no answer, an answer that is not HTTP, or a status 5xx.
    Bad(&'a AttemptOutcome),
    /// A status 5xx to a message that another attempt failed before: the fault may be the message's. It ejects no
    /// backend, but as a probe it is not enough.
    Repeated(&'a AttemptOutcome),
    /// The push says nothing about the backend: it was not made, its claim ended it, or this machine failed.
    NotMade,
}

impl<'a> PushVerdict<'a> {
    /// Returns the verdict after attempt number `attempt`, counted from 1. `next`: what follows for the message. A 5xx
    /// counts only with `count_5xx`, and only if the message is retried or given up because of it; a status that is
    /// configured to end the message is an answer.
    pub(crate) fn new(outcome: &'a AttemptOutcome, next: NextStep, attempt: u32, count_5xx: bool) -> PushVerdict<'a> {
        match (outcome, next) {
            (AttemptOutcome::Impossible { .. } | AttemptOutcome::Failed { error: None, .. }, _) => PushVerdict::NotMade,
            (AttemptOutcome::Failed { .. }, _) => PushVerdict::Bad(outcome),
            (
                AttemptOutcome::Answered { status: 500..=599, .. },
                NextStep::Retry(_) | NextStep::GiveUp(GiveUpCause::RetriesUsedUp),
            ) if count_5xx => {
                if attempt == 1 {
                    PushVerdict::Bad(outcome)
                } else {
                    PushVerdict::Repeated(outcome)
                }
            }
            (AttemptOutcome::Answered { .. }, _) => PushVerdict::Good,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ktransfer::outcomes::TransportError;
    use std::time::Duration;

    #[test]
    fn only_silence_and_the_first_5xx_of_a_message_are_failures_of_the_backend() {
        let answered = |status| AttemptOutcome::Answered { status, retry_after: None };
        let failed = |error| AttemptOutcome::Failed { error, reason: "reset".to_owned() };
        let closed = || failed(Some(TransportError::Closed));
        let used_up = NextStep::GiveUp(GiveUpCause::RetriesUsedUp);
        let impossible = AttemptOutcome::Impossible { reason: "too long".to_owned() };
        let retry = NextStep::Retry(Duration::ZERO);
        for (outcome, next, attempt, count_5xx, expected) in [
            (answered(200), NextStep::Delivered, 1, true, "Good"),
            (answered(301), retry, 1, true, "Good"),
            (answered(404), retry, 1, true, "Good"),
            (answered(429), retry, 1, true, "Good"),
            (answered(500), retry, 1, true, "Bad"),
            (answered(599), used_up, 1, true, "Bad"),
            (answered(503), NextStep::GiveUp(GiveUpCause::Drop), 1, true, "Good"),
            (answered(503), NextStep::GiveUp(GiveUpCause::DeadLetter), 1, true, "Good"),
            (answered(503), NextStep::Delivered, 1, true, "Good"),
            (answered(503), retry, 2, true, "Repeated"),
            (answered(503), retry, 1, false, "Good"),
            (closed(), retry, 1, false, "Bad"),
            (closed(), used_up, 9, true, "Bad"),
            (closed(), NextStep::GiveUp(GiveUpCause::Drop), 1, true, "Bad"),
            (failed(None), retry, 1, true, "NotMade"),
            (impossible, NextStep::GiveUp(GiveUpCause::Impossible), 1, true, "NotMade"),
        ] {
            let verdict = PushVerdict::new(&outcome, next, attempt, count_5xx);
            assert!(format!("{verdict:?}").starts_with(expected), "{outcome:?}, {next:?}, {attempt}: {verdict:?}");
        }
    }
}
