//! The answers of kproxy: one table from what happened to status and body.
//!
//! Every answer but 200 says whether the message may be in the topic (`stored`) and whether the same request may
//! succeed later (`retriable`).

use crate::broker::{AppendError, AppendFailure, Appended, Stored};
use crate::http::{Response, SHUTTING_DOWN, UNANSWERED};

/// Seconds after which a client that was told 503 may try again.
const RETRY_AFTER: &str = "1";

/// Everything but success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) status: u16,
    /// A word for programs.
    pub(super) code: &'static str,
    /// Words for people.
    pub(super) message: String,
    pub(super) retriable: bool,
    pub(super) stored: Stored,
}

impl Failure {
    fn new(status: u16, code: &'static str, message: impl Into<String>, retriable: bool) -> Self {
        Failure { status, code, message: message.into(), retriable, stored: Stored::No }
    }

    /// 400: the request has to be changed.
    pub(super) fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(400, code, message, false)
    }

    /// 404: another path.
    pub(super) fn unknown_path() -> Self {
        Self::new(404, "unknown_path", "only /commit, /metrics, /healthz and /readyz are here", false)
    }

    /// 405: another method.
    pub(super) fn not_post() -> Self {
        Self::new(405, "not_post", "messages are posted", false)
    }

    /// 503: a bound is reached; `message` names the setting.
    pub(super) fn overloaded(message: impl Into<String>) -> Self {
        Self::new(503, "overloaded", message, true)
    }

    /// What the HTTP server refused on its own.
    pub(super) fn of_server(status: u16, reason: &str) -> Self {
        let (code, retriable) = match status {
            503 if reason == SHUTTING_DOWN => ("shutting_down", true),
            408 => ("request_timeout", true),
            413 => ("too_large", false),
            414 => ("uri_too_long", false),
            417 => ("bad_expectation", false),
            431 => ("headers_too_large", false),
            500 => ("internal", true),
            501 => ("not_implemented", false),
            503 => ("overloaded", true),
            505 => ("bad_version", false),
            _ => ("bad_request", false),
        };
        // A request that was handed over and never answered may have reached Kafka.
        let stored = if reason == UNANSWERED { Stored::Unknown } else { Stored::No };
        Failure { stored, ..Self::new(status, code, reason, retriable) }
    }

    /// What became of a message that was given to the broker.
    pub(super) fn of_append(error: &AppendError) -> Self {
        let (status, code) = match error.kind {
            AppendFailure::UnknownTopic => (404, "unknown_topic"),
            AppendFailure::UnknownPartition => (404, "unknown_partition"),
            AppendFailure::TooLarge => (413, "too_large"),
            AppendFailure::Unsupported => (400, "unsupported"),
            AppendFailure::Refused => (502, "refused"),
            AppendFailure::Full => (503, "overloaded"),
            AppendFailure::Unreachable => (503, "no_broker"),
            AppendFailure::Closed => (503, "shutting_down"),
            AppendFailure::TimedOut => (503, "no_broker"),
        };
        // 503 promises that nothing was stored.
        let (status, code) = match (status, error.stored) {
            (503, Stored::Unknown) => (504, "no_confirmation"),
            _ => (status, code),
        };
        Failure {
            status,
            code,
            message: error.reason.clone(),
            retriable: error.kind.is_retriable(),
            stored: error.stored,
        }
    }

    /// The answer itself.
    pub(super) fn response(&self) -> Response {
        let stored = match self.stored {
            Stored::No => "no",
            Stored::Unknown => "unknown",
        };
        let body = serde_json::json!({
            "error": self.code,
            "message": self.message,
            "retriable": self.retriable,
            "stored": stored,
        });
        let response = Response::json(self.status, body.to_string());
        match self.status {
            503 => response.with_header("Retry-After", RETRY_AFTER),
            405 => response.with_header("Allow", "POST, OPTIONS"),
            _ => response,
        }
    }
}

/// 200: stored at the level asked for. A legal topic name needs no escaping.
pub(super) fn stored(topic: &str, appended: Appended) -> Response {
    let partition = appended.partition;
    let body = match appended.offset {
        Some(offset) => format!(r#"{{"topic":"{topic}","partition":{partition},"offset":{offset}}}"#),
        None => format!(r#"{{"topic":"{topic}","partition":{partition},"offset":null}}"#),
    };
    Response::json(200, body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn every_outcome_has_its_status_and_says_what_became_of_the_message() {
        use AppendFailure::*;
        let (no, unknown) = (Stored::No, Stored::Unknown);
        // Outcome; status, code, retriable.
        for (kind, stored, status, code, retriable) in [
            (UnknownTopic, no, 404, "unknown_topic", false),
            (UnknownPartition, no, 404, "unknown_partition", false),
            (TooLarge, no, 413, "too_large", false),
            (Unsupported, no, 400, "unsupported", false),
            (Refused, no, 502, "refused", false),
            (Refused, unknown, 502, "refused", false),
            (Full, no, 503, "overloaded", true),
            (Unreachable, no, 503, "no_broker", true),
            (TimedOut, no, 503, "no_broker", true),
            (TimedOut, unknown, 504, "no_confirmation", true),
            (Closed, no, 503, "shutting_down", true),
            (Closed, unknown, 504, "no_confirmation", true),
        ] {
            let error = AppendError { kind, stored, reason: "say \"why\"".to_owned() };
            let response = Failure::of_append(&error).response();
            let expected = json!({
                "error": code, "message": "say \"why\"", "retriable": retriable,
                "stored": if stored == no { "no" } else { "unknown" },
            });
            assert_eq!(response.status, status, "{error:?}");
            assert_eq!(serde_json::from_slice::<Value>(&response.body).unwrap(), expected);
            assert_eq!(response.headers.iter().any(|(name, _)| *name == "Retry-After"), status == 503, "{error:?}");
        }
        assert_eq!(Failure::not_post().response().headers, [("Allow", "POST, OPTIONS".to_owned())]);
        assert!(Failure::of_server(408, "").retriable && !Failure::of_server(400, "").retriable);
        assert_eq!(Failure::of_server(503, "too many connections").code, "overloaded");
        assert_eq!(Failure::of_server(503, SHUTTING_DOWN).code, "shutting_down");
        assert_eq!(Failure::of_server(500, "an internal error").stored, no);
        assert_eq!(Failure::of_server(500, UNANSWERED).stored, unknown);
    }

    #[test]
    fn success_tells_where_the_message_is() {
        for (offset, text) in [
            (Some(42), r#"{"topic":"t","partition":3,"offset":42}"#),
            (None, r#"{"topic":"t","partition":3,"offset":null}"#),
        ] {
            let response = stored("t", Appended { partition: 3, offset });
            assert_eq!((response.status, response.body), (200, text.as_bytes().to_vec()));
        }
    }
}
