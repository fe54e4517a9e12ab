//! Logs and counts a message that is given up: no further push of it is attempted, and the caller marks it done.
//!
//! Dispatcher and workers decide that a message is given up; only [`give_up`] logs and counts it. Invariant: each
//! message given up is counted exactly once. A message with a failed attempt is always logged, with topic, partition,
//! offset and key. The log lines of undecodable messages are rate limited and leave the key out.

use std::fmt;
use std::time::Duration;

use log::{Level, warn};

use super::job::Job;
use super::method::NoMethod;
use super::policy::AttemptOutcome;
use super::worker_context::WorkerContext;
use crate::broker::Message;
use crate::log_limited;

/// Why a message is given up.
#[derive(Clone, Copy, Debug)]
pub(super) enum GiveUpReason<'a> {
    /// `methods` is configured, but the message has no readable method.
    Undecodable(NoMethod),
    /// The last attempt failed, and `max_retry_times` allows no further attempt.
    AttemptsUsedUp(LastAttempt<'a>),
    /// No request can carry the message (for instance, its url is too long), so every further attempt would fail too.
    Impossible(LastAttempt<'a>),
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

impl<'a> GiveUpReason<'a> {
    /// Returns why the retry policy gives the message up after the attempt `last`.
    pub(super) fn after_attempt(last: LastAttempt<'a>) -> GiveUpReason<'a> {
        match last.outcome {
            AttemptOutcome::Impossible { .. } => GiveUpReason::Impossible(last),
            AttemptOutcome::Answered { .. } | AttemptOutcome::Failed { .. } => GiveUpReason::AttemptsUsedUp(last),
        }
    }
}

impl fmt::Display for GiveUpReason<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GiveUpReason::Undecodable(cause) => write!(formatter, "methods is configured, but {cause}"),
            GiveUpReason::AttemptsUsedUp(last) => write!(formatter, "max_retry_times is used up, {last}"),
            GiveUpReason::Impossible(last) => write!(formatter, "no request can carry it, {last}"),
        }
    }
}

/// Logs and counts `message` as given up. `method` is the message's method, or `None` if it is unknown or not needed.
pub(super) fn give_up(context: &WorkerContext, message: &Message, method: Option<&str>, reason: GiveUpReason<'_>) {
    let line = GiveUpLine { module: &context.config.name, message, method: method.unwrap_or("*"), reason };
    match reason {
        GiveUpReason::Undecodable(_) => {
            context.metrics.undecodable.inc();
            // Rate limited: a topic may contain only such messages, and no push slows them down.
            log_limited!(Level::Warn, "{line}");
        }
        GiveUpReason::AttemptsUsedUp(_) | GiveUpReason::Impossible(_) => {
            context.metrics.given_up.inc();
            // Not rate limited: this line is the only record of the message.
            warn!("{line}");
        }
    }
}

/// Logs and counts a message that the operator `by` passes over; the caller marks it done.
pub(super) fn skip(context: &WorkerContext, job: &Job, attempts: u32, by: &str) {
    context.metrics.skipped.inc();
    let message = &job.message;
    // Not rate limited: this line is the only record of the message.
    warn!(
        "module [{}]: skipped topic={}, partition={}, transid={}, method={}, datalen={}, attempts={attempts}, by={by}, \
         key={}",
        context.config.name,
        message.from.topic,
        message.from.partition,
        message.offset,
        job.method.as_deref().unwrap_or("*"),
        message.value.as_ref().map_or(0, Vec::len),
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
        if matches!(self.reason, GiveUpReason::Undecodable(_)) {
            return Ok(());
        }
        write!(formatter, ", key={}", message.key.as_deref().unwrap_or_default().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ktransfer::test_fixtures::{job, module_config, worker_context};
    use crate::metrics::Registry;
    use std::time::Duration;

    #[test]
    fn each_reason_has_its_own_log_line_and_metric() {
        let answered = AttemptOutcome::Answered { status: 503, retry_after: Some(Duration::from_secs(1)) };
        let failed = AttemptOutcome::Failed { reason: "connection refused".to_owned() };
        let impossible = AttemptOutcome::Impossible { reason: "the uri is too long".to_owned() };
        let (url, took) = ("http://a/p", Duration::from_millis(5));
        let after = |number, outcome| GiveUpReason::after_attempt(LastAttempt { number, outcome, url, took });
        for (reason, text, outcome) in [
            (
                GiveUpReason::Undecodable(NoMethod::NotMap),
                "methods is configured, but the message is not a msgpack map",
                "undecodable",
            ),
            (
                after(3, &answered),
                "max_retry_times is used up, attempt=3, http_status_code=503, proctime=5ms, url=http://a/p",
                "given_up",
            ),
            (
                after(1, &failed),
                "max_retry_times is used up, attempt=1, err=connection refused, proctime=5ms, url=http://a/p",
                "given_up",
            ),
            (
                after(1, &impossible),
                "no request can carry it, attempt=1, err=the uri is too long, proctime=5ms, url=http://a/p",
                "given_up",
            ),
        ] {
            let job = job(Some(b"k\n\xff"), Some(b"body"), &[]);
            let line = GiveUpLine { module: "m", message: &job.message, method: "*", reason }.to_string();
            let key = if outcome == "given_up" { ", key=k\\n\\xff" } else { "" };
            let fields = "topic=t, partition=3, transid=42, method=*, datalen=4";
            let expected = format!("module [m]: gave up {fields}, reason={text}{key}");
            assert_eq!(line, expected);

            let registry = Registry::new();
            let context = worker_context(module_config(&["a"]), &registry);
            give_up(&context, &job.message, None, reason);
            let metrics = String::from_utf8(registry.render()).unwrap();
            for known in ["delivered", "filtered", "undecodable", "given_up"] {
                let count = u8::from(known == outcome);
                let line = format!("ktransfer_messages_total{{module=\"m\",outcome=\"{known}\"}} {count}\n");
                assert!(metrics.contains(&line), "{text}: {line} in {metrics}");
            }
        }
    }

    #[test]
    fn a_message_without_key_and_value_is_logged_too() {
        let job = job(None, None, &[]);
        let reason = GiveUpReason::Undecodable(NoMethod::Empty);
        let line = GiveUpLine { module: "m", message: &job.message, method: "*", reason }.to_string();
        assert!(line.ends_with("datalen=0, reason=methods is configured, but the message is empty"), "{line}");
    }
}
