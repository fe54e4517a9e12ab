//! Entry points of the fuzz targets in `fuzz/targets`; built for fuzzing only.
//!
//! Each function takes arbitrary bytes and panics where an invariant of a parser is broken.

use super::batch::{BatchFormat, BatchLimits, ParsedMessage};
use super::query::parse;
use crate::broker::is_topic_name;

/// A query that is accepted has a legal topic and a key that is not empty; the answer to another one has a body.
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

/// The messages of a batch that is accepted are within its limits and together no larger than its body; another one is
/// refused with a 4xx and a message. The first byte chooses the format.
pub fn batch(data: &[u8]) {
    let [format, body @ ..] = data else { return };
    let format = if format % 2 == 0 { BatchFormat::Ndjson } else { BatchFormat::Binary };
    let limits = BatchLimits { max_messages: 5, max_body_bytes: 1 << 20, max_value_bytes: 100, max_slots: 1000 };
    match format.parse(body, &limits) {
        Ok(messages) => {
            assert!(!messages.is_empty() && messages.len() <= limits.max_messages);
            assert!(messages.iter().all(|message| message.value.len() <= limits.max_value_bytes));
            let bytes = |message: &ParsedMessage| message.value.len() + message.key_and_headers_bytes();
            assert!(messages.iter().map(bytes).sum::<usize>() <= body.len());
        }
        Err(failure) => assert!((400..500).contains(&failure.status) && !failure.message.is_empty()),
    }
}
