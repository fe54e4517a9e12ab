//! Error responses that the server itself sends, without the handler, to a request or a refused connection.

/// Reason in the 503 response to a new request while the server drains.
pub const SHUTTING_DOWN: &str = "shutting down";
/// Reason in the 500 response to a request whose [`super::Reply`] was dropped unsent, which is a bug. Whether the
/// handler processed the request is unknown.
pub const UNANSWERED: &str = "the request was not answered";

/// Status and reason of an error response of the server itself. The connection is closed after the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) reason: &'static str,
    /// The exceeded limit, as a value of the label `limit` of `http_limits_total`; `None` if the reason is not a limit.
    pub(super) limit: Option<&'static str>,
}

impl Refusal {
    pub(super) const fn new(status: u16, reason: &'static str) -> Self {
        Refusal { status, reason, limit: None }
    }

    pub(super) const fn bad_request(reason: &'static str) -> Self {
        Self::new(400, reason)
    }

    pub(super) const fn over_limit(limit: &'static str, status: u16, reason: &'static str) -> Self {
        Refusal { status, reason, limit: Some(limit) }
    }
}
