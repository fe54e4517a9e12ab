//! Verdicts, numbers and ages as they stand in the rows and above them.

use std::fmt::{self, Display, Formatter};
use std::time::{Duration, Instant, SystemTime};

use crate::html::{Span, Utc};
use crate::kmonitor::facts::{Moment, Verdict};

/// A verdict as a word, which the style sheet gives a shape and a colour.
pub(super) struct VerdictWord(pub(super) Verdict);

impl Display for VerdictWord {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "<span class=\"verdict\" data-verdict=\"{0}\">{0}</span>", self.0.word())
    }
}

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

/// Returns the time since `at` as an element that the script keeps current.
pub(super) fn ago(at: Instant, now: Moment) -> String {
    let age = now.at.saturating_duration_since(at);
    since(now.wall.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH), now)
}

/// Returns the time since `at` as an element that the script keeps current.
pub(super) fn since(at: SystemTime, now: Moment) -> String {
    let age = now.wall.duration_since(at).unwrap_or_default();
    format!("<time datetime=\"{}\">{}</time>", Utc(at), Span(age))
}
