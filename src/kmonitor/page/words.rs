//! Texts for numbers that may be unknown or only lower bounds, for the rows.

use std::time::Duration;

use crate::html::Span;

/// Returns a number, with a sign if it may be more; the word "unknown" for `None`.
pub(super) fn at_least(number: Option<String>, is_least: bool) -> String {
    match number {
        Some(number) if is_least => format!("≥ {number}"),
        Some(number) => number,
        None => "unknown".to_owned(),
    }
}

/// Returns how long the first message has been waiting.
pub(super) fn behind(seconds: Option<f64>, is_least: bool) -> String {
    // A conversion of f64 to u64 saturates, so no value is out of range.
    let text = seconds.map(|seconds| Span(Duration::from_secs(seconds as u64)).to_string());
    at_least(text, is_least)
}
