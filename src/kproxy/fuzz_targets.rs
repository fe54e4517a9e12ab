//! Entry points of the fuzz targets in `fuzz/targets`; built for fuzzing only.
//!
//! Each function takes arbitrary bytes and panics if a parser breaks an invariant.

use super::batch::{BatchFormat, BatchLimits, ParsedMessage};
use super::query::parse;
use crate::broker::is_topic_name;

/// Checks that an accepted query has a legal topic and no empty key, and that the answer to a refused query has a body.
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

/// Checks that the messages of an accepted batch are within the limits and together no larger than the body, and that
/// any other batch is refused with a 4xx and a message. The first byte of `data` chooses the format.
pub fn batch(data: &[u8]) {
    let [format, body @ ..] = data else { return };
    let format = BatchFormat::ALL[usize::from(*format) % BatchFormat::ALL.len()];
    let limits = BatchLimits { max_messages: 5, max_body_bytes: 1 << 20, max_value_bytes: 100, max_slots: 1000 };
    match format.parse(body, &limits) {
        Ok(messages) => {
            assert!(!messages.is_empty() && messages.len() <= limits.max_messages);
            assert!(messages.iter().all(|message| message.value_bytes() <= limits.max_value_bytes));
            let bytes = |message: &ParsedMessage| message.value_bytes() + message.key_and_headers_bytes();
            assert!(messages.iter().map(bytes).sum::<usize>() <= body.len());
        }
        Err(failure) => assert!((400..500).contains(&failure.status) && !failure.message.is_empty()),
    }
}
