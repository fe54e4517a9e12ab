//! The answers of kproxy, and the only table of its failures: status, error code and header field of each.
//!
//! Every failure has a named constructor here; no other file builds one. Every answer but 200 says whether the message
//! may be in the topic (`stored`) and whether the same request may succeed later (`retriable`).

use std::fmt::{self, Display};

use serde_json::Value;

use crate::broker::{AppendError, AppendFailure, Appended, Offset, Stored, TOPIC_NAME_RULE};
use crate::decimal::push_signed;
use crate::http::{Response, SHUTTING_DOWN, UNANSWERED};

/// `Retry-After` of a 503, in seconds.
const RETRY_AFTER: &str = "1";

/// A failure of a request or of one message of a batch, with all that its answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) status: u16,
    /// `error` in the JSON: a fixed word for programs.
    pub(super) code: &'static str,
    /// `message` in the JSON: a sentence for people.
    pub(super) message: String,
    pub(super) retriable: bool,
    pub(super) stored: Stored,
    /// A header field of this failure, for instance `WWW-Authenticate`. It replaces the default one of the status,
    /// which is `Retry-After` for 503 and `Allow` for 405.
    pub(super) header: Option<(&'static str, String)>,
}

impl Failure {
    /// A request that is refused before anything is sent to Kafka.
    fn new(status: u16, code: &'static str, message: impl Into<String>, retriable: bool) -> Self {
        Failure { status, code, message: message.into(), retriable, stored: Stored::No, header: None }
    }

    /// 400: the same request would always fail.
    fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(400, code, message, false)
    }

    fn with_header(self, name: &'static str, value: impl Into<String>) -> Self {
        Failure { header: Some((name, value.into())), ..self }
    }

    /// 400: `topic` is absent or empty.
    pub(super) fn missing_topic() -> Self {
        Self::bad_request("no_topic", "missing parameter topic")
    }

    /// 400: not a legal topic name.
    pub(super) fn bad_topic() -> Self {
        Self::bad_request("bad_topic", format!("topic must be {TOPIC_NAME_RULE}"))
    }

    /// 400: unknown acks level.
    pub(super) fn bad_acks() -> Self {
        Self::bad_request("bad_acks", "acks must be 0, 1 or -1")
    }

    /// 400: not a partition number.
    pub(super) fn bad_partition() -> Self {
        Self::bad_request("bad_partition", "partition must be an integer from 0 to 2147483647")
    }

    /// 400: not a timestamp in milliseconds.
    pub(super) fn bad_timestamp() -> Self {
        Self::bad_request("bad_timestamp", "timestamp must be milliseconds since 1970, an integer from 1")
    }

    /// 400: a `tombstone` parameter that is not 0 or 1, or that contradicts the rest of the request.
    pub(super) fn bad_tombstone(message: impl Into<String>) -> Self {
        Self::bad_request("bad_tombstone", message)
    }

    /// 400: invalid percent-encoding in a value; `parameter` is its name as the client sent it.
    pub(super) fn bad_encoding(parameter: &str) -> Self {
        Self::bad_request("bad_encoding", format!("invalid percent-encoding in the value of {parameter}"))
    }

    /// 400: a parameter that is given more than once; `parameter` is its name as the client sent it.
    pub(super) fn repeated_parameter(parameter: &str) -> Self {
        Self::bad_request("repeated_parameter", format!("parameter {parameter} is given more than once"))
    }

    /// 400: an `X-Kafka-Header-` field that cannot become a record header.
    pub(super) fn bad_header(message: &'static str) -> Self {
        Self::bad_request("bad_header", message)
    }

    /// 400: a record header or a timestamp, which the configured engine cannot write; `kafka_client: native` can.
    pub(super) fn unsupported() -> Self {
        Self::bad_request("unsupported", "record headers and timestamps need kafka_client: native")
    }

    /// 400: a body without a message.
    pub(super) fn empty_body(message: &'static str) -> Self {
        Self::bad_request("empty_body", message)
    }

    /// 400: a body that cannot be decoded as its `Content-Encoding` says.
    pub(super) fn bad_coding(message: String) -> Self {
        Self::bad_request("bad_coding", message)
    }

    /// 400: `place` is the line, record or byte of a batch's body that cannot be parsed.
    pub(super) fn bad_batch(place: impl Display, problem: impl Display) -> Self {
        Self::bad_request("bad_batch", format!("{place}: {problem}"))
    }

    /// 401: `challenges` is the value of `WWW-Authenticate`.
    pub(super) fn unauthorized(message: &'static str, challenges: String) -> Self {
        Self::new(401, "unauthorized", message, false).with_header("WWW-Authenticate", challenges)
    }

    /// 403: the topic is not in `allowed_topics`, or not in `topics` of the client's credential.
    pub(super) fn topic_not_allowed(message: String) -> Self {
        Self::new(403, "topic_not_allowed", message, false)
    }

    /// 404: no such endpoint.
    pub(super) fn unknown_path() -> Self {
        let message = "unknown path: use /commit, /commit_batch, /metrics, /healthz or /readyz";
        Self::new(404, "unknown_path", message, false)
    }

    /// 405: the endpoint takes POST only.
    pub(super) fn method_not_allowed() -> Self {
        Self::new(405, "not_post", "method not allowed: use POST", false)
    }

    /// 413: a message of a batch is too large. (The HTTP server itself refuses a body that is too large.)
    pub(super) fn too_large(message: String) -> Self {
        Self::new(413, "too_large", message, false)
    }

    /// 413: a batch has more than `max` messages; `setting` is the key of the configuration with this bound.
    pub(super) fn too_many_messages(max: usize, setting: &str) -> Self {
        Self::new(413, "too_many_messages", format!("the batch has more than {max} messages ({setting})"), false)
    }

    /// 415: the `Content-Type` of a batch is not one of the supported formats.
    pub(super) fn unsupported_media_type() -> Self {
        let message = "the Content-Type of a batch must be application/x-ndjson or application/octet-stream";
        Self::new(415, "unsupported_media_type", message, false)
            .with_header("Accept", "application/x-ndjson, application/octet-stream")
    }

    /// 415: a `Content-Encoding` that is not accepted; `accepted` lists the codings that are (RFC 9110 12.5.3).
    pub(super) fn unsupported_coding(message: impl Into<String>, accepted: &'static str) -> Self {
        Self::new(415, "unsupported_coding", message, false).with_header("Accept-Encoding", accepted)
    }

    /// 429: a request over the rate limit of its credential or its topic.
    pub(super) fn rate_limited(message: String, retry_after_seconds: u64) -> Self {
        Self::new(429, "rate_limited", message, true).with_header("Retry-After", retry_after_seconds.to_string())
    }

    /// 503: a bound is reached; `message` names its key of the configuration.
    pub(super) fn overloaded(message: impl Into<String>) -> Self {
        Self::new(503, "overloaded", message, true)
    }

    /// 500: a message whose delivery report never arrived. A safeguard only: every engine completes every message.
    pub(super) fn no_delivery_report() -> Self {
        let message = "no delivery report: the message may have been stored";
        Failure { stored: Stored::Unknown, ..Self::from_server(500, message) }
    }

    /// A request that the HTTP server refused by itself.
    pub(super) fn from_server(status: u16, reason: &str) -> Self {
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
        // A request that the handler took and never answered may have reached Kafka.
        let stored = if reason == UNANSWERED { Stored::Unknown } else { Stored::No };
        Failure { stored, ..Self::new(status, code, reason, retriable) }
    }

    /// A message that the broker seam did not append.
    pub(super) fn from_append(error: &AppendError) -> Self {
        let (status, code) = match error.kind {
            AppendFailure::UnknownTopic => (404, "unknown_topic"),
            AppendFailure::UnknownPartition => (404, "unknown_partition"),
            AppendFailure::TooLarge => (413, "too_large"),
            AppendFailure::Unsupported => (400, "unsupported"),
            AppendFailure::Invalid => (422, "invalid_message"),
            AppendFailure::NotAuthorized => (403, "not_authorized"),
            AppendFailure::Throttled { .. } => (429, "throttled"),
            AppendFailure::Refused => (502, "refused"),
            AppendFailure::Full => (503, "overloaded"),
            AppendFailure::Unreachable => (503, "no_broker"),
            AppendFailure::Closed => (503, "shutting_down"),
            AppendFailure::TimedOut => (503, "no_broker"),
        };
        // 503 promises that nothing was stored, so an unknown outcome is 504.
        let (status, code) = match (status, error.stored) {
            (503, Stored::Unknown) => (504, "no_confirmation"),
            _ => (status, code),
        };
        let header = match error.kind {
            AppendFailure::Throttled { seconds } => Some(("Retry-After", seconds.to_string())),
            _ => None,
        };
        let (message, retriable) = (error.reason.clone(), error.kind.is_retriable());
        Failure { status, code, message, retriable, stored: error.stored, header }
    }

    /// Returns the value of `Retry-After`, for the statuses that have one.
    pub(super) fn retry_after_seconds(&self) -> Option<u64> {
        match (&self.header, self.status) {
            (Some(("Retry-After", seconds)), _) => seconds.parse().ok(),
            (None, 503) => RETRY_AFTER.parse().ok(),
            _ => None,
        }
    }

    /// Returns the JSON object of the answer.
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

    /// Returns the whole answer.
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

/// 200: stored at the acks level of the request. A legal topic name needs no escaping in JSON.
pub(super) fn stored(topic: &str, appended: Appended) -> Response {
    // Not by `format!`, which takes several times as long.
    let mut body = Vec::with_capacity(topic.len() + 64);
    body.extend_from_slice(br#"{"topic":""#);
    body.extend_from_slice(topic.as_bytes());
    body.extend_from_slice(br#"","partition":"#);
    push_signed(&mut body, appended.partition.into());
    body.extend_from_slice(br#","offset":"#);
    match appended.offset {
        Some(offset) => push_signed(&mut body, offset),
        None => body.extend_from_slice(b"null"),
    }
    body.push(b'}');
    Response::json(200, body)
}

/// An offset as JSON: `null` with `acks=0`, for which a broker returns no offset.
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

    /// Asserts the whole answer; `header` is its only header field.
    fn assert_answer(failure: &Failure, expected: (u16, &str, bool, Stored), header: Option<(&str, &str)>) {
        let (status, code, retriable, stored) = expected;
        let response = failure.response();
        let body = json!({
            "error": code, "message": failure.message, "retriable": retriable,
            "stored": if stored == Stored::No { "no" } else { "unknown" },
        });
        assert_eq!(response.status, status, "{failure:?}");
        assert_eq!(serde_json::from_slice::<Value>(&response.body.to_vec()).unwrap(), body);
        let headers: Vec<_> = response.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(headers, header.into_iter().collect::<Vec<_>>(), "{failure:?}");
        assert!(!failure.message.is_empty());
    }

    const RETRY: Option<(&str, &str)> = Some(("Retry-After", "1"));

    #[test]
    fn every_constructor_has_its_status_code_and_header() {
        let accept = Some(("Accept", "application/x-ndjson, application/octet-stream"));
        let text = || "why".to_owned();
        // Failure; status, code, retriable; header.
        for (failure, status, code, retriable, header) in [
            (Failure::missing_topic(), 400, "no_topic", false, None),
            (Failure::bad_topic(), 400, "bad_topic", false, None),
            (Failure::bad_acks(), 400, "bad_acks", false, None),
            (Failure::bad_partition(), 400, "bad_partition", false, None),
            (Failure::bad_timestamp(), 400, "bad_timestamp", false, None),
            (Failure::bad_tombstone("why"), 400, "bad_tombstone", false, None),
            (Failure::bad_encoding("key"), 400, "bad_encoding", false, None),
            (Failure::repeated_parameter("key"), 400, "repeated_parameter", false, None),
            (Failure::bad_header("why"), 400, "bad_header", false, None),
            (Failure::unsupported(), 400, "unsupported", false, None),
            (Failure::empty_body("why"), 400, "empty_body", false, None),
            (Failure::bad_coding(text()), 400, "bad_coding", false, None),
            (
                Failure::unsupported_coding("why", "gzip"),
                415,
                "unsupported_coding",
                false,
                Some(("Accept-Encoding", "gzip")),
            ),
            (Failure::bad_batch("line 1", "why"), 400, "bad_batch", false, None),
            (
                Failure::unauthorized("why", "Bearer".into()),
                401,
                "unauthorized",
                false,
                Some(("WWW-Authenticate", "Bearer")),
            ),
            (Failure::topic_not_allowed(text()), 403, "topic_not_allowed", false, None),
            (Failure::unknown_path(), 404, "unknown_path", false, None),
            (Failure::method_not_allowed(), 405, "not_post", false, Some(("Allow", "POST, OPTIONS"))),
            (Failure::too_large(text()), 413, "too_large", false, None),
            (Failure::too_many_messages(7, "req_pool_size"), 413, "too_many_messages", false, None),
            (Failure::unsupported_media_type(), 415, "unsupported_media_type", false, accept),
            (Failure::rate_limited(text(), 7), 429, "rate_limited", true, Some(("Retry-After", "7"))),
            (Failure::overloaded("why"), 503, "overloaded", true, RETRY),
        ] {
            assert_answer(&failure, (status, code, retriable, Stored::No), header);
        }
        assert_answer(&Failure::no_delivery_report(), (500, "internal", true, Stored::Unknown), None);
    }

    #[test]
    fn every_refusal_of_the_server_has_its_code() {
        for (status, reason, code, retriable, stored) in [
            (400, "invalid header", "bad_request", false, Stored::No),
            (408, "timeout", "request_timeout", true, Stored::No),
            (413, "too large", "too_large", false, Stored::No),
            (414, "too long", "uri_too_long", false, Stored::No),
            (417, "expectation", "bad_expectation", false, Stored::No),
            (431, "too large", "headers_too_large", false, Stored::No),
            (500, "an internal error", "internal", true, Stored::No),
            (500, UNANSWERED, "internal", true, Stored::Unknown),
            (501, "not implemented", "not_implemented", false, Stored::No),
            (503, "too many connections", "overloaded", true, Stored::No),
            (503, SHUTTING_DOWN, "shutting_down", true, Stored::No),
            (505, "version", "bad_version", false, Stored::No),
        ] {
            let header = if status == 503 { RETRY } else { None };
            assert_answer(&Failure::from_server(status, reason), (status, code, retriable, stored), header);
        }
    }

    #[test]
    fn every_append_failure_has_its_status_and_says_whether_the_message_is_stored() {
        use AppendFailure::*;
        let (no, unknown) = (Stored::No, Stored::Unknown);
        // Append failure; status, code, retriable.
        for (kind, stored, status, code, retriable) in [
            (UnknownTopic, no, 404, "unknown_topic", false),
            (UnknownPartition, no, 404, "unknown_partition", false),
            (TooLarge, no, 413, "too_large", false),
            (Unsupported, no, 400, "unsupported", false),
            (Invalid, no, 422, "invalid_message", false),
            (NotAuthorized, no, 403, "not_authorized", false),
            (Throttled { seconds: 1 }, no, 429, "throttled", true),
            (Refused, no, 502, "refused", false),
            (Refused, unknown, 502, "refused", false),
            (Full, no, 503, "overloaded", true),
            (Unreachable, no, 503, "no_broker", true),
            (TimedOut, no, 503, "no_broker", true),
            (TimedOut, unknown, 504, "no_confirmation", true),
            (Closed, no, 503, "shutting_down", true),
            (Closed, unknown, 504, "no_confirmation", true),
        ] {
            let failure = Failure::from_append(&AppendError { kind, stored, reason: "say \"why\"".to_owned() });
            let header = if [429, 503].contains(&status) { RETRY } else { None };
            assert_answer(&failure, (status, code, retriable, stored), header);
        }
    }

    #[test]
    fn a_success_has_partition_and_offset() {
        for (offset, text) in [
            (Some(42), r#"{"topic":"t","partition":3,"offset":42}"#),
            (None, r#"{"topic":"t","partition":3,"offset":null}"#),
        ] {
            let response = stored("t", Appended { partition: 3, offset });
            assert_eq!((response.status, response.body.to_vec()), (200, text.as_bytes().to_vec()));
        }
    }
}
