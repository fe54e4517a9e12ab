//! The answers to operations that are refused.

use serde_json::json;

use super::operation::Refusal;
use crate::http::Response;

/// The module is not known to this process.
pub(super) fn unknown_module(name: &str) -> Refusal {
    Refusal::new(404, "unknown_module", format!("module {name:.100?} does not run in this process"))
}

/// Returns the answer to a refused operation.
pub(super) fn answer_of(refusal: &Refusal) -> Response {
    let Refusal { status, code, message } = refusal;
    Response::json(*status, json!({"result": "refused", "code": code, "error": message}).to_string())
}
