//! The time and the reason of a backend's ejection, for operators.

use std::time::Instant;

/// Number of characters of a reason that are kept.
const MAX_REASON_CHARS: usize = 200;

/// The latest ejection of a backend.
pub(super) struct Ejection {
    pub(super) at: Instant,
    pub(super) reason: String,
}

impl Ejection {
    pub(super) fn new(at: Instant, reason: String) -> Ejection {
        Ejection { at, reason: reason.chars().take(MAX_REASON_CHARS).collect() }
    }
}
