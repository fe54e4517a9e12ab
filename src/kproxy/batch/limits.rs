//! Bounds of a batch and of each message in it, the same for both formats.

use std::fmt::Display;

use super::message::ParsedMessage;
use crate::kproxy::answer::Failure;

/// Largest number of headers of one message, as many as a `/commit` may have header fields.
pub(super) const MAX_HEADERS: usize = 100;
/// Largest size of the key and headers of one message together, in bytes: the default of `max_header_bytes`, which
/// bounds the same of a `/commit`.
pub(super) const MAX_KEY_AND_HEADERS_BYTES: usize = 16 * 1024;

/// Configured bounds of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchLimits {
    /// `max_batch_messages`.
    pub(crate) max_messages: usize,
    /// `max_batch_bytes`.
    pub(crate) max_body_bytes: usize,
    /// `max_request_size_bytes`.
    pub(crate) max_value_bytes: usize,
    /// `req_pool_size`: a larger batch would never find enough free slots.
    pub(crate) max_slots: usize,
}

impl BatchLimits {
    /// Fails with 413 if a batch with `count` messages is full; called before the next message is parsed.
    pub(super) fn check_count(&self, count: usize) -> Result<(), Failure> {
        if count >= self.max_messages {
            Err(Failure::too_many_messages(self.max_messages, "max_batch_messages"))
        } else if count >= self.max_slots {
            Err(Failure::too_many_messages(self.max_slots, "req_pool_size"))
        } else {
            Ok(())
        }
    }

    /// Fails if a parsed message is too large, or has an empty value or an invalid header name. `place` is its line or
    /// record.
    pub(super) fn check(&self, message: &ParsedMessage, place: impl Display) -> Result<(), Failure> {
        let too_large = |problem: String| Err(Failure::too_large(format!("{place}: {problem}")));
        let value_bytes = message.value_bytes();
        let key_and_headers_bytes = message.key_and_headers_bytes();
        if message.value.as_ref().is_some_and(Vec::is_empty) {
            return Err(Failure::bad_batch(place, "the value is empty"));
        }
        if value_bytes > self.max_value_bytes {
            let max = self.max_value_bytes;
            return too_large(format!("the value has {value_bytes} bytes, max_request_size_bytes is {max}"));
        }
        if key_and_headers_bytes > MAX_KEY_AND_HEADERS_BYTES {
            return too_large(format!(
                "key and headers have {key_and_headers_bytes} bytes, the maximum is {MAX_KEY_AND_HEADERS_BYTES}"
            ));
        }
        if message.headers.len() > MAX_HEADERS {
            return too_large(format!("more than {MAX_HEADERS} headers"));
        }
        if message.headers.iter().any(|header| header.name.is_empty() || header.name.contains('\0')) {
            return Err(Failure::bad_batch(place, "a header name is empty or contains a zero byte"));
        }
        Ok(())
    }
}
