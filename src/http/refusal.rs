//! Why the server itself answers a request or refuses a connection.

/// The reason of the 503 while the server drains.
pub const SHUTTING_DOWN: &str = "shutting down";
/// The reason of the 500 for a request whose [`super::Reply`] was dropped unsent: a bug. How much of the request was
/// processed is unknown.
pub const UNANSWERED: &str = "the request was not answered";

/// Status and reason of an error response of the server itself; the connection is closed after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) reason: &'static str,
    /// The limit that was exceeded: a value of the label `limit` of `http_limits_total`.
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
