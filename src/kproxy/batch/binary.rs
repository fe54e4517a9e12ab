//! Parses `application/octet-stream`: length-prefixed records.
//!
//! Records follow one another without separators; numbers are unsigned and big-endian:
//!
//! ```text
//! u32 key length, or 0xffffffff for the default key │ key
//! u16 header count │ for each: u16 name length │ name, UTF-8 │ u32 value length │ value
//! u32 value length, or 0xffffffff for null │ value
//! ```

use std::fmt::Display;

use super::limits::{BatchLimits, MAX_HEADERS};
use super::message::ParsedMessage;
use crate::broker::Header;
use crate::kproxy::answer::Failure;

/// Key length of a record that takes the default key.
const NO_KEY: u32 = u32::MAX;
/// Value length of a tombstone, whose value is null.
const NULL_VALUE: u32 = u32::MAX;

/// Parses a body that is not empty into its messages.
pub(super) fn parse(body: &[u8], limits: &BatchLimits) -> Result<Vec<ParsedMessage>, Failure> {
    let mut reader = RecordReader { left: body, total: body.len(), record: 0 };
    let mut messages = Vec::new();
    while !reader.left.is_empty() {
        limits.check_count(messages.len())?;
        reader.record += 1;
        let message = reader.message()?;
        limits.check(&message, format_args!("record {}", reader.record))?;
        messages.push(message);
    }
    Ok(messages)
}

/// Reads fields from the front of a body.
struct RecordReader<'a> {
    /// Bytes that are not read yet.
    left: &'a [u8],
    /// Bytes of the whole body.
    total: usize,
    /// Number of the current record, from 1.
    record: usize,
}

impl<'a> RecordReader<'a> {
    fn message(&mut self) -> Result<ParsedMessage, Failure> {
        let key = match self.u32("the key length")? {
            NO_KEY => None,
            length => Some(self.bytes(length, "the key")?.to_vec()),
        };
        let header_count = usize::from(self.u16("the header count")?);
        // Checked before the headers are read, so that a false count costs neither time nor memory.
        if header_count > MAX_HEADERS {
            return Err(self.malformed(format!("{header_count} headers, the maximum is {MAX_HEADERS}")));
        }
        let headers = (0..header_count).map(|_| self.header()).collect::<Result<_, _>>()?;
        let value = match self.u32("the value length")? {
            NULL_VALUE => None,
            length => Some(self.bytes(length, "the value")?.to_vec()),
        };
        Ok(ParsedMessage { key, value, headers, partition: None, timestamp_ms: None })
    }

    fn header(&mut self) -> Result<Header, Failure> {
        let length = self.u16("a header name length")?;
        let name = self.bytes(length.into(), "a header name")?;
        let Ok(name) = str::from_utf8(name) else { return Err(self.malformed("a header name is not UTF-8")) };
        let length = self.u32("a header value length")?;
        let value = self.bytes(length, "a header value")?;
        Ok(Header { name: name.to_owned(), value: Some(value.to_vec()) })
    }

    fn u16(&mut self, field: &str) -> Result<u16, Failure> {
        self.array(field).map(u16::from_be_bytes)
    }

    fn u32(&mut self, field: &str) -> Result<u32, Failure> {
        self.array(field).map(u32::from_be_bytes)
    }

    fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N], Failure> {
        let Some((array, left)) = self.left.split_first_chunk() else { return Err(self.too_short(N, field)) };
        self.left = left;
        Ok(*array)
    }

    fn bytes(&mut self, length: u32, field: &str) -> Result<&'a [u8], Failure> {
        let length = length as usize;
        let Some((bytes, left)) = self.left.split_at_checked(length) else { return Err(self.too_short(length, field)) };
        self.left = left;
        Ok(bytes)
    }

    fn too_short(&self, length: usize, field: &str) -> Failure {
        self.malformed(format!("{field} needs {length} bytes, the body has {} left", self.left.len()))
    }

    fn malformed(&self, problem: impl Display) -> Failure {
        let place = format_args!("record {}, byte {}", self.record, self.total - self.left.len() + 1);
        Failure::bad_batch(place, problem)
    }
}
