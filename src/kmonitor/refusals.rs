//! The error answers of kmonitor's pages: a JSON object with a code and a text.

use crate::http::Response;

/// An error answer.
pub(super) fn refusal(status: u16, error: &str, message: &str) -> Response {
    Response::json(status, serde_json::json!({"error": error, "message": message}).to_string())
}

/// The answer to a request for a cluster that is not configured.
pub(super) fn unknown_cluster(cluster: &str) -> Response {
    refusal(404, "unknown_cluster", &format!("no cluster {cluster:?} is configured"))
}

/// The answer to a request with wrong parameters.
pub(super) fn bad_query(reason: &str) -> Response {
    refusal(400, "bad_query", reason)
}
