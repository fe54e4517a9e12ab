//! What fuzzing asks of kproxy's parsers; built for it only.
//!
//! Each function takes any bytes and panics where an invariant does not hold.

use super::batch::{self, Format};
use super::query::parse;
use crate::broker::is_topic_name;

/// A query that is taken has a legal topic and a key that is not empty; one that is refused says why.
pub fn query(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match parse(text) {
        Ok(query) => {
            assert!(is_topic_name(query.topic.as_bytes()));
            assert!(query.key.is_none_or(|key| !key.is_empty() && key.len() <= text.len()));
        }
        Err(failure) => assert!(!failure.response().body.is_empty()),
    }
}

/// The body of a batch. The first byte chooses its format.
pub fn batch(data: &[u8]) {
    let [format, body @ ..] = data else { return };
    batch::fuzz(if format % 2 == 0 { Format::Ndjson } else { Format::Binary }, body);
}
