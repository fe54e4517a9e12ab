//! A message of a batch: as parsed from the body, and as a record with the defaults of the request.

use std::sync::Arc;

use crate::broker::{Header, PartitionId, Record};
use crate::kproxy::headers;

/// Memory of a header besides the bytes of its name and value: two heap allocations and an entry of the `Vec`.
const HEADER_OVERHEAD_BYTES: usize = 96;

/// One message as the body has it. [`BatchDefaults`] fills in the fields that it leaves out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ParsedMessage {
    /// `None` takes the default key. An empty key means no key, even if there is a default.
    pub(crate) key: Option<Vec<u8>>,
    /// `None` is a tombstone: Kafka's null.
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<Header>,
    pub(crate) partition: Option<PartitionId>,
    pub(crate) timestamp_ms: Option<i64>,
}

impl ParsedMessage {
    pub(crate) fn has_headers_or_timestamp(&self) -> bool {
        !self.headers.is_empty() || self.timestamp_ms.is_some()
    }

    pub(crate) fn value_bytes(&self) -> usize {
        self.value.as_ref().map_or(0, Vec::len)
    }

    pub(crate) fn key_and_headers_bytes(&self) -> usize {
        self.key.as_ref().map_or(0, Vec::len) + self.headers.iter().map(header_bytes).sum::<usize>()
    }
}

/// The topic of all messages of a batch, and the values in the request's head for fields that a message leaves out.
pub(crate) struct BatchDefaults {
    pub(crate) topic: Arc<str>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) partition: Option<PartitionId>,
    pub(crate) timestamp_ms: Option<i64>,
    /// Trace context for messages without their own.
    pub(crate) trace: Vec<Header>,
}

impl BatchDefaults {
    /// Returns the memory, in bytes, of the records that `messages` become.
    pub(crate) fn bytes_of_records(&self, messages: &[ParsedMessage]) -> usize {
        let in_memory = |headers: &[Header]| -> usize {
            headers.iter().map(|header| header_bytes(header) + HEADER_OVERHEAD_BYTES).sum()
        };
        let trace_bytes = in_memory(&self.trace);
        let default_key_bytes = self.key.as_ref().map_or(0, Vec::len);
        let record_bytes = |message: &ParsedMessage| {
            let key_bytes = message.key.as_ref().map_or(default_key_bytes, Vec::len);
            message.value_bytes() + key_bytes + in_memory(&message.headers) + trace_bytes
        };
        messages.iter().map(record_bytes).sum()
    }

    /// Returns whether a message has a null value and no key. Such a record deletes nothing, so it is a mistake.
    pub(crate) fn is_tombstone_without_key(&self, message: &ParsedMessage) -> bool {
        message.value.is_none() && message.key.as_ref().or(self.key.as_ref()).is_none_or(Vec::is_empty)
    }

    /// Makes the record of a message.
    pub(crate) fn record(&self, message: ParsedMessage) -> Record {
        let mut headers = message.headers;
        headers::add_trace(&mut headers, &self.trace);
        Record {
            topic: Arc::clone(&self.topic),
            partition: message.partition.or(self.partition),
            key: message.key.or_else(|| self.key.clone()).filter(|key| !key.is_empty()),
            value: message.value,
            headers,
            timestamp_ms: message.timestamp_ms.or(self.timestamp_ms),
        }
    }
}

fn header_bytes(header: &Header) -> usize {
    header.name.len() + header.value.as_ref().map_or(0, Vec::len)
}
