//! Record batches of message format 2: the bytes that a broker stores, and the records in them.
//!
//! A [`Batch`] is valid: its length, CRC and record count were checked when it was made. The decoder is independent of
//! the client's own.

use bytes::{Bytes, BytesMut};

use super::codes;
use super::decompress::decompress;

/// Size of the header, from the base offset to the record count.
const HEADER_BYTES: usize = 61;
/// Base offset and batch length, which the batch length does not count.
pub(super) const UNCOUNTED_BYTES: usize = 12;
/// Position of the attributes; the CRC covers the bytes from there on.
const CRC_START: usize = 21;
pub(super) const LOG_APPEND_TIME: i16 = 1 << 3;
pub(super) const TRANSACTIONAL: i16 = 1 << 4;
pub(super) const CONTROL: i16 = 1 << 5;

/// A record as the log holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// Offset in the partition.
    pub offset: i64,
    /// Key.
    pub key: Option<Bytes>,
    /// Value.
    pub value: Option<Bytes>,
    /// Names and values of the headers, in order.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// Timestamp in milliseconds since 1970; the append time in topics with LogAppendTime.
    pub timestamp_ms: i64,
    /// Producer id; -1 without idempotence.
    pub producer_id: i64,
    /// Epoch of the producer id; -1 without idempotence.
    pub producer_epoch: i16,
    /// Sequence number of the record; -1 without idempotence.
    pub sequence: i32,
    /// Leader epoch at the append.
    pub leader_epoch: i32,
    /// Whether the record belongs to a transaction.
    pub is_transactional: bool,
    /// Whether the record is a transaction marker, which consumers do not return.
    pub is_control: bool,
}

impl StoredRecord {
    /// Returns the key as text; the empty string without a key.
    pub fn key_text(&self) -> String {
        String::from_utf8_lossy(self.key.as_deref().unwrap_or_default()).into_owned()
    }

    /// Returns the value as text; the empty string without a value.
    pub fn value_text(&self) -> String {
        String::from_utf8_lossy(self.value.as_deref().unwrap_or_default()).into_owned()
    }
}

/// Why a broker rejects record data: error code of the protocol and text.
pub type Rejection = (i16, String);

/// A valid batch with its header fields.
#[derive(Clone, Debug)]
pub struct Batch {
    bytes: Bytes,
    /// Offset of the first record.
    pub base_offset: i64,
    /// Offset of the last record minus the base offset. Compaction keeps it, so it may exceed `count - 1`.
    pub last_offset_delta: i32,
    /// Leader epoch at the append.
    pub leader_epoch: i32,
    pub(super) attributes: i16,
    base_timestamp_ms: i64,
    /// Largest timestamp, or the append time.
    pub max_timestamp_ms: i64,
    /// Producer id; -1 without idempotence.
    pub producer_id: i64,
    /// Epoch of the producer id.
    pub producer_epoch: i16,
    /// Sequence number of the first record.
    pub base_sequence: i32,
    /// Number of records; 0 if compaction removed all.
    pub count: i32,
}

impl Batch {
    /// Decodes and checks the batch at the start of `data`; returns the bytes after it, too.
    pub fn parse(data: &[u8]) -> Result<(Batch, &[u8]), Rejection> {
        let corrupt = |what: &str| (codes::CORRUPT_MESSAGE, what.to_owned());
        if data.len() < HEADER_BYTES {
            return Err(corrupt("record data shorter than a batch header"));
        }
        let mut fields = Fields { rest: data };
        let base_offset = fields.i64();
        let length = fields.i32();
        let leader_epoch = fields.i32();
        let magic = fields.i8();
        if magic != 2 {
            return Err((codes::INVALID_RECORD, format!("message format {magic}, not 2")));
        }
        let size = usize::try_from(length).unwrap_or(0) + UNCOUNTED_BYTES;
        if size < HEADER_BYTES || size > data.len() {
            return Err(corrupt("batch length out of range"));
        }
        let crc = fields.i32() as u32;
        if crc != crc32c::crc32c(&data[CRC_START..size]) {
            return Err(corrupt("wrong CRC"));
        }
        let batch = Batch {
            bytes: Bytes::copy_from_slice(&data[..size]),
            base_offset,
            leader_epoch,
            attributes: fields.i16(),
            last_offset_delta: fields.i32(),
            base_timestamp_ms: fields.i64(),
            max_timestamp_ms: fields.i64(),
            producer_id: fields.i64(),
            producer_epoch: fields.i16(),
            base_sequence: fields.i32(),
            count: fields.i32(),
        };
        Ok((batch, &data[size..]))
    }

    /// Returns the encoded batch.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns the offset of the last record.
    pub fn last_offset(&self) -> i64 {
        self.base_offset + i64::from(self.last_offset_delta)
    }

    /// Returns the sequence number of the last record; numbers continue at 0 after the largest `i32`.
    pub fn last_sequence(&self) -> i32 {
        add_sequence(self.base_sequence, self.last_offset_delta)
    }

    /// Whether the records belong to a transaction.
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether the batch is a transaction marker.
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// Whether the timestamps are append times.
    pub fn has_log_append_time(&self) -> bool {
        self.attributes & LOG_APPEND_TIME != 0
    }

    /// Returns the batch with the fields that a leader sets: offset and leader epoch, and the append time if given.
    pub fn stored_at(&self, base_offset: i64, leader_epoch: i32, append_time_ms: Option<i64>) -> Batch {
        let mut batch = self.clone();
        let mut bytes = BytesMut::from(&self.bytes[..]);
        batch.base_offset = base_offset;
        batch.leader_epoch = leader_epoch;
        bytes[..8].copy_from_slice(&base_offset.to_be_bytes());
        bytes[12..16].copy_from_slice(&leader_epoch.to_be_bytes());
        if let Some(time) = append_time_ms {
            batch.attributes |= LOG_APPEND_TIME;
            batch.max_timestamp_ms = time;
            bytes[21..23].copy_from_slice(&batch.attributes.to_be_bytes());
            bytes[35..43].copy_from_slice(&time.to_be_bytes());
            put_crc(&mut bytes);
        }
        batch.bytes = bytes.freeze();
        batch
    }

    /// Decodes the records. The error says what is malformed.
    pub fn records(&self) -> Result<Vec<StoredRecord>, String> {
        let data = decompress(self.attributes & 7, &self.bytes[HEADER_BYTES..])?;
        let mut fields = Records { data: data.clone(), position: 0 };
        // The count is not trusted for the allocation.
        let mut records = Vec::new();
        for _ in 0..self.count {
            records.push(self.record(&mut fields)?);
        }
        if fields.position != data.len() {
            return Err("bytes after the last record".into());
        }
        Ok(records)
    }

    fn record(&self, fields: &mut Records) -> Result<StoredRecord, String> {
        let length = fields.length()?.ok_or("a record without a length")?;
        let end = fields.position + length;
        fields.take(1)?;
        let timestamp_delta = fields.varlong()?;
        let offset_delta = fields.varlong()?;
        let key = fields.bytes()?;
        let value = fields.bytes()?;
        let mut headers = Vec::new();
        for _ in 0..fields.varlong()? {
            let name = fields.bytes()?.ok_or("a header without a name")?;
            let name = String::from_utf8(name.to_vec()).map_err(|_| "a header name that is not UTF-8")?;
            headers.push((name, fields.bytes()?));
        }
        if fields.position != end {
            return Err("a record whose length is wrong".into());
        }
        let delta = i32::try_from(offset_delta).map_err(|_| "an offset delta out of range")?;
        Ok(StoredRecord {
            offset: self.base_offset + offset_delta,
            key,
            value,
            headers,
            timestamp_ms: match self.has_log_append_time() {
                true => self.max_timestamp_ms,
                false => self.base_timestamp_ms.wrapping_add(timestamp_delta),
            },
            producer_id: self.producer_id,
            producer_epoch: self.producer_epoch,
            sequence: if self.base_sequence < 0 { -1 } else { add_sequence(self.base_sequence, delta) },
            leader_epoch: self.leader_epoch,
            is_transactional: self.is_transactional(),
            is_control: self.is_control(),
        })
    }
}

/// Adds to a sequence number; numbers continue at 0 after the largest `i32`.
pub fn add_sequence(sequence: i32, count: i32) -> i32 {
    ((i64::from(sequence) + i64::from(count)) % (i64::from(i32::MAX) + 1)) as i32
}

pub(super) fn put_crc(bytes: &mut BytesMut) {
    let crc = crc32c::crc32c(&bytes[CRC_START..]);
    bytes[CRC_START - 4..CRC_START].copy_from_slice(&crc.to_be_bytes());
}

/// Reads the fixed fields of a header whose size was checked.
struct Fields<'a> {
    rest: &'a [u8],
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.rest.split_first_chunk().expect("the caller checked the size");
        self.rest = rest;
        *head
    }

    fn i8(&mut self) -> i8 {
        i8::from_be_bytes(self.take())
    }

    fn i16(&mut self) -> i16 {
        i16::from_be_bytes(self.take())
    }

    fn i32(&mut self) -> i32 {
        i32::from_be_bytes(self.take())
    }

    fn i64(&mut self) -> i64 {
        i64::from_be_bytes(self.take())
    }
}

/// Reads the variable fields of records.
struct Records {
    data: Bytes,
    position: usize,
}

impl Records {
    fn take(&mut self, count: usize) -> Result<Bytes, String> {
        let end = self.position.saturating_add(count);
        if end > self.data.len() {
            return Err("a record that is cut off".into());
        }
        let taken = self.data.slice(self.position..end);
        self.position = end;
        Ok(taken)
    }

    fn varlong(&mut self) -> Result<i64, String> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        Err("a number of more than ten bytes".into())
    }

    fn length(&mut self) -> Result<Option<usize>, String> {
        Ok(usize::try_from(self.varlong()?).ok())
    }

    fn bytes(&mut self) -> Result<Option<Bytes>, String> {
        match self.length()? {
            Some(length) => Ok(Some(self.take(length)?)),
            None => Ok(None),
        }
    }
}
