//! The reasons to give up a message, and the log line and counter of a dropped one: no further attempt is made, and the
//! caller marks it done.
//!
//! Dispatcher and workers decide that a message is given up; with a dead-letter topic a worker then stores a dead
//! letter (`worker/letters.rs`), otherwise [`drop_message`] logs and counts it. Invariant: each message given up is
//! counted exactly once. A dropped message with a failed attempt is always logged, with topic, partition, offset and
//! key. The log lines of undecodable messages are rate limited and leave the key out.

use std::fmt;
use std::time::Duration;

use log::{Level, warn};

use super::dead_letters::DeadLetterCause;
use super::job::{Job, SkipOrder, Unpushable};
use super::method::NoMethod;
use super::policy::{AttemptOutcome, GiveUpCause};
use super::worker_context::WorkerContext;
use crate::broker::Message;
use crate::clock::unix_ms;
use crate::log_limited;

/// Why a message is given up.
#[derive(Clone, Copy, Debug)]
pub(super) enum GiveUpReason<'a> {
    /// `methods` is configured, but the message has no readable method.
    Undecodable(NoMethod),
    /// The method of the message is not configured, and the module has `filtered: dead_letter`.
    Filtered,
    /// No further attempt follows the last one.
    AfterAttempt(GiveUpCause, LastAttempt<'a>),
}

/// The attempt after which a message is given up.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastAttempt<'a> {
    /// Number of the attempt, from 1.
    pub(super) number: u32,
    /// How the attempt ended.
    pub(super) outcome: &'a AttemptOutcome,
    /// The url of the request.
    pub(super) url: &'a str,
    /// Duration of the attempt.
    pub(super) took: Duration,
}

impl fmt::Display for LastAttempt<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LastAttempt { number, outcome, url, took } = self;
        write!(formatter, "attempt={number}, {outcome}, proctime={}ms, url={url}", took.as_millis())
    }
}

impl From<Unpushable> for GiveUpReason<'_> {
    fn from(reason: Unpushable) -> Self {
        match reason {
            Unpushable::Undecodable(cause) => GiveUpReason::Undecodable(cause),
            Unpushable::Filtered => GiveUpReason::Filtered,
        }
    }
}

impl GiveUpReason<'_> {
    /// Whether the message ends with a dead letter if the module has a dead-letter topic.
    pub(super) fn wants_dead_letter(&self) -> bool {
        !matches!(self, GiveUpReason::AfterAttempt(GiveUpCause::Drop, _))
    }

    /// Returns what the dead letter says about the reason. The time is now.
    pub(super) fn dead_letter_cause(&self) -> DeadLetterCause {
        let (attempts, status, error, detail) = match self {
            GiveUpReason::Undecodable(cause) => (0, None, None, cause.to_string()),
            GiveUpReason::Filtered => (0, None, None, "its method is not in methods".to_owned()),
            GiveUpReason::AfterAttempt(_, LastAttempt { number, outcome, .. }) => {
                let (status, error) = match outcome {
                    AttemptOutcome::Answered { status, .. } => (Some(*status), None),
                    AttemptOutcome::Failed { error, .. } => (None, error.map(|error| error.name())),
                    AttemptOutcome::Impossible { .. } => (None, None),
                };
                (*number, status, error, outcome.to_string())
            }
        };
        DeadLetterCause { reason: self.name(), status, error, detail, attempts, time_ms: unix_ms() }
    }

    fn name(&self) -> &'static str {
        match self {
            GiveUpReason::Undecodable(_) => "undecodable",
            GiveUpReason::Filtered => "filtered",
            GiveUpReason::AfterAttempt(GiveUpCause::Drop | GiveUpCause::DeadLetter, _) => "outcome",
            GiveUpReason::AfterAttempt(GiveUpCause::RetriesUsedUp, _) => "retries_used_up",
            GiveUpReason::AfterAttempt(GiveUpCause::Impossible, _) => "impossible",
        }
    }
}

impl fmt::Display for GiveUpReason<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GiveUpReason::Undecodable(cause) => write!(formatter, "methods is configured, but {cause}"),
            GiveUpReason::Filtered => write!(formatter, "its method is not in methods"),
            GiveUpReason::AfterAttempt(GiveUpCause::RetriesUsedUp, last) => {
                write!(formatter, "max_retry_times is used up, {last}")
            }
            GiveUpReason::AfterAttempt(GiveUpCause::Impossible, last) => {
                write!(formatter, "no request can carry it, {last}")
            }
            GiveUpReason::AfterAttempt(GiveUpCause::Drop, last) => {
                write!(formatter, "outcomes has drop for it, {last}")
            }
            GiveUpReason::AfterAttempt(GiveUpCause::DeadLetter, last) => {
                write!(formatter, "outcomes has dead_letter for it, {last}")
            }
        }
    }
}

/// Logs and counts `message` as dropped. `method` is the message's method, or `None` if it is unknown or not needed.
pub(super) fn drop_message(context: &WorkerContext, message: &Message, method: Option<&str>, reason: GiveUpReason<'_>) {
    let line = GiveUpLine { module: &context.config.name, message, method: method.unwrap_or("*"), reason };
    let metrics = &context.metrics;
    match reason {
        GiveUpReason::Undecodable(_) | GiveUpReason::Filtered => {
            metrics.undecodable.inc();
            // Rate limited: a topic may contain only such messages, and no push slows them down.
            log_limited!(Level::Warn, "{line}");
        }
        GiveUpReason::AfterAttempt(cause, _) => {
            let counter = if cause == GiveUpCause::Drop { &metrics.dropped } else { &metrics.given_up };
            counter.inc();
            // Not rate limited: this line is the only record of the message.
            warn!("{line}");
        }
    }
}

/// Logs a message that an operator skips, and counts it if it gets no dead letter; the caller marks it done or stores
/// the letter.
pub(super) fn skip(context: &WorkerContext, job: &Job, attempts: u32, order: &SkipOrder) {
    let has_letter = order.stores_letter && context.dead_letters.is_some();
    if !has_letter {
        context.metrics.skipped.inc();
    }
    let (message, letter) = (&job.message, if has_letter { "yes" } else { "no" });
    // Not rate limited: this line is the only record of the message.
    warn!(
        "module [{}]: skipped topic={}, partition={}, transid={}, method={}, datalen={}, attempts={attempts}, by={}, \
         dead_letter={letter}, key={}",
        context.config.name,
        message.from.topic,
        message.from.partition,
        message.offset,
        job.method.as_deref().unwrap_or("*"),
        message.value.as_ref().map_or(0, Vec::len),
        order.by,
        message.key.as_deref().unwrap_or_default().escape_ascii()
    );
}

/// The log line of one message. The key comes last, because the logger cuts a long line at its end. The line of an
/// undecodable message has no key: rate limiting may drop that line, so it is no record of the message anyway.
struct GiveUpLine<'a> {
    module: &'a str,
    message: &'a Message,
    method: &'a str,
    reason: GiveUpReason<'a>,
}

impl fmt::Display for GiveUpLine<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = self.message;
        write!(
            formatter,
            "module [{}]: gave up topic={}, partition={}, transid={}, method={}, datalen={}, reason={}",
            self.module,
            message.from.topic,
            message.from.partition,
            message.offset,
            self.method,
            message.value.as_ref().map_or(0, Vec::len),
            self.reason
        )?;
        if !matches!(self.reason, GiveUpReason::AfterAttempt(..)) {
            return Ok(());
        }
        write!(formatter, ", key={}", message.key.as_deref().unwrap_or_default().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ktransfer::outcomes::TransportError;
    use crate::ktransfer::test_fixtures::{job, module_config, worker_context};
    use crate::metrics::Registry;
    use std::time::Duration;

    #[test]
    fn each_reason_has_its_own_log_line_and_metric() {
        let answered = AttemptOutcome::Answered { status: 503, retry_after: Some(Duration::from_secs(1)) };
        let failed = AttemptOutcome::Failed {
            error: Some(TransportError::ConnectRefused),
            reason: "connection refused".to_owned(),
        };
        let impossible = AttemptOutcome::Impossible { reason: "the uri is too long".to_owned() };
        let (url, took) = ("http://a/p", Duration::from_millis(5));
        let after =
            |cause, number, outcome| GiveUpReason::AfterAttempt(cause, LastAttempt { number, outcome, url, took });
        for (reason, text, outcome) in [
            (
                GiveUpReason::Undecodable(NoMethod::NotMap),
                "methods is configured, but the message is not a msgpack map",
                "undecodable",
            ),
            (
                after(GiveUpCause::RetriesUsedUp, 3, &answered),
                "max_retry_times is used up, attempt=3, http_status_code=503, proctime=5ms, url=http://a/p",
                "given_up",
            ),
            (
                after(GiveUpCause::RetriesUsedUp, 1, &failed),
                "max_retry_times is used up, attempt=1, err=connection refused, proctime=5ms, url=http://a/p",
                "given_up",
            ),
            (
                after(GiveUpCause::Impossible, 1, &impossible),
                "no request can carry it, attempt=1, err=the uri is too long, proctime=5ms, url=http://a/p",
                "given_up",
            ),
            (
                after(GiveUpCause::Drop, 1, &answered),
                "outcomes has drop for it, attempt=1, http_status_code=503, proctime=5ms, url=http://a/p",
                "dropped",
            ),
        ] {
            let job = job(Some(b"k\n\xff"), Some(b"body"), &[]);
            let line = GiveUpLine { module: "m", message: &job.message, method: "*", reason }.to_string();
            let key = if outcome != "undecodable" { ", key=k\\n\\xff" } else { "" };
            let fields = "topic=t, partition=3, transid=42, method=*, datalen=4";
            let expected = format!("module [m]: gave up {fields}, reason={text}{key}");
            assert_eq!(line, expected);

            let registry = Registry::new();
            let context = worker_context(module_config(&["a"]), &registry);
            drop_message(&context, &job.message, None, reason);
            let metrics = String::from_utf8(registry.render()).unwrap();
            for known in ["delivered", "filtered", "undecodable", "given_up", "dropped"] {
                let count = u8::from(known == outcome);
                let line = format!("ktransfer_messages_total{{module=\"m\",outcome=\"{known}\"}} {count}\n");
                assert!(metrics.contains(&line), "{text}: {line} in {metrics}");
            }
        }
    }

    #[test]
    fn a_dead_letter_names_the_reason_the_status_or_the_error_and_the_attempts() {
        let answered = AttemptOutcome::Answered { status: 404, retry_after: None };
        let failed = AttemptOutcome::Failed { error: Some(TransportError::ReadTimeout), reason: "late".to_owned() };
        let local = AttemptOutcome::Failed { error: None, reason: "no file descriptor".to_owned() };
        let impossible = AttemptOutcome::Impossible { reason: "too long".to_owned() };
        let after = |cause, number, outcome| {
            GiveUpReason::AfterAttempt(cause, LastAttempt { number, outcome, url: "", took: Duration::ZERO })
        };
        for (reason, name, attempts, status, error, detail) in [
            (GiveUpReason::Undecodable(NoMethod::Empty), "undecodable", 0, None, None, "the message is empty"),
            (GiveUpReason::Filtered, "filtered", 0, None, None, "its method is not in methods"),
            (after(GiveUpCause::DeadLetter, 1, &answered), "outcome", 1, Some(404), None, "http_status_code=404"),
            (
                after(GiveUpCause::RetriesUsedUp, 3, &failed),
                "retries_used_up",
                3,
                None,
                Some("read_timeout"),
                "err=late",
            ),
            (after(GiveUpCause::RetriesUsedUp, 2, &local), "retries_used_up", 2, None, None, "err=no file descriptor"),
            (after(GiveUpCause::Impossible, 1, &impossible), "impossible", 1, None, None, "err=too long"),
        ] {
            assert!(reason.wants_dead_letter());
            let cause = reason.dead_letter_cause();
            assert_eq!((cause.reason, cause.attempts, cause.status, cause.error), (name, attempts, status, error));
            assert_eq!(cause.detail, detail);
            assert!(cause.time_ms > 1_700_000_000_000);
        }
        assert!(!after(GiveUpCause::Drop, 1, &answered).wants_dead_letter());
    }

    #[test]
    fn a_message_without_key_and_value_is_logged_too() {
        let job = job(None, None, &[]);
        let reason = GiveUpReason::Undecodable(NoMethod::Empty);
        let line = GiveUpLine { module: "m", message: &job.message, method: "*", reason }.to_string();
        assert!(line.ends_with("datalen=0, reason=methods is configured, but the message is empty"), "{line}");
    }
}
