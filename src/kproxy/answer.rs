//! The answers of kproxy: one table from what happened to status and body.
//!
//! Every answer but 200 says whether the message may be in the topic (`stored`) and whether the same request may
//! succeed later (`retriable`).

use std::fmt::{self, Display};

use serde_json::Value;

use crate::broker::{AppendError, AppendFailure, Appended, Offset, Stored};
use crate::http::{Response, SHUTTING_DOWN, UNANSWERED};

/// Seconds after which a client that was told 503 may try again.
pub(super) const RETRY_AFTER: &str = "1";

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
    /// A header field besides those that belong to the status, for instance `WWW-Authenticate`.
    pub(super) header: Option<(&'static str, String)>,
}

impl Failure {
    /// Refused before Kafka had to do with it.
    pub(super) fn new(status: u16, code: &'static str, message: impl Into<String>, retriable: bool) -> Self {
        Failure { status, code, message: message.into(), retriable, stored: Stored::No, header: None }
    }

    /// 400: the request has to be changed.
    pub(super) fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(400, code, message, false)
    }

    /// 404: another path.
    pub(super) fn unknown_path() -> Self {
        Self::new(404, "unknown_path", "only /commit, /commit_batch, /metrics, /healthz and /readyz are here", false)
    }

    /// 405: another method.
    pub(super) fn not_post() -> Self {
        Self::new(405, "not_post", "messages are posted", false)
    }

    /// 400: the same request would do with the other engine.
    pub(super) fn unsupported() -> Self {
        Self::bad("unsupported", "record headers and timestamps need kafka_client: librdkafka")
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
            header: None,
        }
    }

    /// Of a message whose outcome was never told, which no engine leaves.
    pub(super) fn lost() -> Self {
        Failure { stored: Stored::Unknown, ..Self::of_server(500, "what became of the message is not known") }
    }

    /// The same with a header field, instead of the one that the status brings along.
    pub(super) fn with_header(self, name: &'static str, value: impl Into<String>) -> Self {
        Failure { header: Some((name, value.into())), ..self }
    }

    /// What a client is told, in JSON.
    pub(super) fn object(&self) -> serde_json::Map<String, Value> {
        let stored = match self.stored {
            Stored::No => "no",
            Stored::Unknown => "unknown",
        };
        let members: [(&str, Value); 4] = [
            ("error", self.code.into()),
            ("message", self.message.as_str().into()),
            ("retriable", self.retriable.into()),
            ("stored", stored.into()),
        ];
        members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// The answer itself.
    pub(super) fn response(&self) -> Response {
        let response = Response::json(self.status, Value::Object(self.object()).to_string());
        match (&self.header, self.status) {
            (Some((name, value)), _) => response.with_header(name, value.as_str()),
            (None, 503) => response.with_header("Retry-After", RETRY_AFTER),
            (None, 405) => response.with_header("Allow", "POST, OPTIONS"),
            (None, _) => response,
        }
    }
}

/// 200: stored at the level asked for. A legal topic name needs no escaping.
pub(super) fn stored(topic: &str, appended: Appended) -> Response {
    let (partition, offset) = (appended.partition, OffsetOrNull(appended.offset));
    Response::json(200, format!(r#"{{"topic":"{topic}","partition":{partition},"offset":{offset}}}"#))
}

/// An offset as JSON; it is not known after `acks=0`.
pub(super) struct OffsetOrNull(pub(super) Option<Offset>);

impl Display for OffsetOrNull {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(offset) => offset.fmt(formatter),
            None => formatter.write_str("null"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
        let later = Failure::new(429, "too_many", "", true).with_header("Retry-After", "7").response();
        assert_eq!(later.headers, [("Retry-After", "7".to_owned())]);
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
