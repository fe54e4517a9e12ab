//! Messages of formats 0 and 1, the formats before Kafka 0.11.

use super::record::{PREFIX_BYTES, ReadHeaders, ReadRecord};
use crate::kafka::wire::{Malformed, WireReader};

/// A message of format 0 or 1.
pub(super) struct Message<'a> {
    pub(super) crc: u32,
    pub(super) attributes: i16,
    pub(super) timestamp_ms: Option<i64>,
    key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
}

impl<'a> Message<'a> {
    pub(super) fn read(bytes: &'a [u8], magic: i8) -> Result<Message<'a>, Malformed> {
        let mut reader = WireReader::new(bytes);
        reader.take(PREFIX_BYTES)?;
        let crc = reader.u32()?;
        reader.i8()?;
        let attributes = i16::from(reader.i8()?);
        let timestamp = if magic == 1 { reader.i64()? } else { -1 };
        let (key, value) = (reader.nullable_bytes()?, reader.nullable_bytes()?);
        if !reader.is_empty() {
            return Err(Malformed("bytes after the value of a message"));
        }
        Ok(Message { crc, attributes, timestamp_ms: (timestamp >= 0).then_some(timestamp), key, value })
    }

    pub(super) fn record(&self, offset: i64) -> ReadRecord<'a> {
        let Message { timestamp_ms, key, value, .. } = *self;
        ReadRecord { offset, timestamp_ms, key, value, headers: ReadHeaders::NONE }
    }
}
