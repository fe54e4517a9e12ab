//! The one place where a message is given up: no further attempt is made, and the commit point moves past it.
//!
//! Dispatcher and workers find such messages; [`give_up`] alone logs and counts them and returns how the message ended.
//! Invariant: each message given up is counted exactly once, and logged with topic, partition, offset and key.

use std::fmt;

use log::{Level, warn};

use super::job::JobEnd;
use super::method::NoMethod;
use super::policy::AttemptOutcome;
use super::worker_context::WorkerContext;
use crate::broker::Message;
use crate::log_limited;

/// Why a message is given up.
#[derive(Clone, Copy, Debug)]
pub(super) enum GiveUpReason<'a> {
    /// `methods` is configured and the message has no method to compare.
    Undecodable(NoMethod),
    /// The last attempt failed, and `max_retry_times` allows no further one.
    AttemptsUsedUp {
        /// Attempts made.
        attempts: u32,
        /// How the last one ended.
        last: &'a AttemptOutcome,
        /// The url of the last one.
        url: &'a str,
    },
    /// No request can carry the message (for instance, its url is too long), so every further attempt would fail too.
    Impossible {
        /// Attempts made, this one included.
        attempts: u32,
        /// Why no request can carry it.
        cause: &'a str,
        /// The url of the request.
        url: &'a str,
    },
}

impl<'a> GiveUpReason<'a> {
    /// The reason when the retry policy gives up after attempt number `attempts`.
    pub(super) fn after_attempt(attempts: u32, outcome: &'a AttemptOutcome, url: &'a str) -> GiveUpReason<'a> {
        match outcome {
            AttemptOutcome::Impossible { reason } => GiveUpReason::Impossible { attempts, cause: reason, url },
            last => GiveUpReason::AttemptsUsedUp { attempts, last, url },
        }
    }
}

impl fmt::Display for GiveUpReason<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GiveUpReason::Undecodable(cause) => {
                write!(formatter, "methods is configured, but {cause}, attempts=0")
            }
            GiveUpReason::AttemptsUsedUp { attempts, last, url } => {
                write!(formatter, "max_retry_times is used up, attempts={attempts}, {last}, url={url}")
            }
            GiveUpReason::Impossible { attempts, cause, url } => {
                write!(formatter, "no request can carry it, attempts={attempts}, err={cause}, url={url}")
            }
        }
    }
}

/// Gives `message` up: logs it, counts it, and returns how it ended, which is what its window needs.
pub(super) fn give_up(context: &WorkerContext, message: &Message, reason: GiveUpReason<'_>) -> JobEnd {
    let line = GiveUpLine { module: &context.config.name, message, reason };
    match reason {
        GiveUpReason::Undecodable(_) => {
            context.metrics.undecodable.inc();
            // Limited: a topic may hold nothing but such messages, and no push slows them down.
            log_limited!(Level::Warn, "{line}");
        }
        GiveUpReason::AttemptsUsedUp { .. } | GiveUpReason::Impossible { .. } => {
            context.metrics.given_up.inc();
            // Not limited: this line is the only record of the message.
            warn!("{line}");
        }
    }
    JobEnd::Done
}

/// The log line of one message. The key comes last, since a long line is cut at its end.
struct GiveUpLine<'a> {
    module: &'a str,
    message: &'a Message,
    reason: GiveUpReason<'a>,
}

impl fmt::Display for GiveUpLine<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = self.message;
        write!(
            formatter,
            "module [{}]: gave up topic={}, partition={}, transid={}, datalen={}: {}, key={}",
            self.module,
            message.from.topic,
            message.from.partition,
            message.offset,
            message.value.as_ref().map_or(0, Vec::len),
            self.reason,
            message.key.as_deref().unwrap_or_default().escape_ascii()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ktransfer::test_fixtures::{job, module_config, worker_context};
    use crate::metrics::Registry;
    use std::time::Duration;

    #[test]
    fn each_reason_has_its_line_and_its_metric() {
        let answered = AttemptOutcome::Answered { status: 503, retry_after: Some(Duration::from_secs(1)) };
        let failed = AttemptOutcome::Failed { reason: "connection refused".to_owned() };
        let impossible = AttemptOutcome::Impossible { reason: "the uri is too long".to_owned() };
        let url = "http://a/p";
        for (reason, text, outcome) in [
            (
                GiveUpReason::Undecodable(NoMethod::NotMap),
                "methods is configured, but the message is not a msgpack map, attempts=0",
                "undecodable",
            ),
            (
                GiveUpReason::after_attempt(3, &answered, url),
                "max_retry_times is used up, attempts=3, http_status_code=503, url=http://a/p",
                "given_up",
            ),
            (
                GiveUpReason::after_attempt(1, &failed, url),
                "max_retry_times is used up, attempts=1, err=connection refused, url=http://a/p",
                "given_up",
            ),
            (
                GiveUpReason::after_attempt(1, &impossible, url),
                "no request can carry it, attempts=1, err=the uri is too long, url=http://a/p",
                "given_up",
            ),
        ] {
            let job = job(Some(b"k\n\xff"), Some(b"body"), &[]);
            let line = GiveUpLine { module: "m", message: &job.message, reason }.to_string();
            let expected =
                format!("module [m]: gave up topic=t, partition=3, transid=42, datalen=4: {text}, key=k\\n\\xff");
            assert_eq!(line, expected);

            let registry = Registry::new();
            let context = worker_context(module_config(&["a"]), &registry);
            assert_eq!(give_up(&context, &job.message, reason), JobEnd::Done, "{text}");
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
        let line = GiveUpLine { module: "m", message: &job.message, reason }.to_string();
        assert!(
            line.ends_with("datalen=0: methods is configured, but the message is empty, attempts=0, key="),
            "{line}"
        );
    }
}
