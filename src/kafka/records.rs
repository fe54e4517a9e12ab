//! Decodes the record data of a fetch response, in message formats 0, 1 and 2.
//!
//! Record data is a sequence of entries; the last entry may be truncated and is then skipped. An entry is a batch
//! (format 2) or a message (formats 0 and 1); a compressed message contains a set of messages. A broker returns
//! entries whole, so the first records may have lower offsets than the fetch requested: the caller skips these
//! records.

use super::compression::{Codec, CompressionError};
use super::record_batch::HEADER_BYTES;
use super::wire::{Malformed, WireReader};
use message::Message;
use record::{PREFIX_BYTES, header};
pub use record::{ReadHeaders, ReadRecord};

mod message;
mod record;

/// Position of the magic (message format) in an entry; the same in all formats.
const MAGIC_AT: usize = 16;
/// Nesting levels of compressed messages: the messages within a compressed message must not be compressed.
const MAX_DEPTH: usize = 1;

/// Why an entry could not be decoded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The entry contradicts its length or its counts.
    #[error("a malformed batch at offset {offset}: {cause}")]
    Malformed {
        /// Offset of the entry.
        offset: i64,
        /// What is wrong with it.
        cause: Malformed,
    },
    /// The CRC does not match: the data was damaged on the network or on a disk.
    #[error(
        "the batch at offset {offset} is damaged: its CRC is {computed:#010x}, its header states {announced:#010x}"
    )]
    Crc {
        /// Offset of the entry.
        offset: i64,
        /// CRC of the received bytes.
        computed: u32,
        /// CRC in the header of the entry.
        announced: u32,
    },
    /// This client does not support the message format of the entry.
    #[error("the batch at offset {offset} has message format {magic}, supported are 0 to 2")]
    UnknownFormat {
        /// Offset of the entry.
        offset: i64,
        /// Magic of the entry.
        magic: i8,
    },
    /// Kafka defines no codec with this number.
    #[error("the batch at offset {offset} has compression codec {number}, supported are 0 to 4")]
    UnknownCodec {
        /// Offset of the entry.
        offset: i64,
        /// Number of the codec.
        number: i16,
    },
    /// The data cannot be decompressed, or the decompressed data is larger than the limit.
    #[error("the batch at offset {offset}: {cause}")]
    Compression {
        /// Offset of the entry.
        offset: i64,
        /// Error of the decompression.
        cause: CompressionError,
    },
}

/// One entry of record data.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Offset of the first record of a batch; offset of a message, for a compressed message that of its last inner
    /// message.
    offset: i64,
    /// All bytes of the entry, offset and length included.
    bytes: &'a [u8],
    magic: i8,
}

/// Properties of an entry from its batch header; fixed values for formats 0 and 1, except `next_offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchInfo {
    /// The offset to fetch after this entry. Compaction may have removed the last records of the entry.
    pub next_offset: i64,
    /// Leader epoch in which the batch was appended; -1 if unknown.
    pub leader_epoch: i32,
    /// Producer id; -1 without idempotence.
    pub producer_id: i64,
    /// Whether the batch is part of a transaction.
    pub is_transactional: bool,
    /// Whether the batch contains a control record (a transaction marker), which is not passed to consumers.
    pub is_control: bool,
}

/// Iterator over the entries of record data, in order.
#[derive(Clone, Copy, Debug)]
pub struct Entries<'a> {
    rest: &'a [u8],
}

impl<'a> Entries<'a> {
    /// Iterates over the entries of `data`, the record data of one partition in a fetch response.
    pub fn of(data: &'a [u8]) -> Self {
        Entries { rest: data }
    }

    fn split(&mut self) -> Result<Option<Entry<'a>>, RecordError> {
        let mut reader = WireReader::new(self.rest);
        let (Ok(offset), Ok(size)) = (reader.i64(), reader.i32()) else { return Ok(None) };
        let malformed = |cause| RecordError::Malformed { offset, cause };
        let size = usize::try_from(size).map_err(|_| malformed(Malformed("a negative length")))?;
        if size + PREFIX_BYTES <= MAGIC_AT {
            return Err(malformed(Malformed("a length that is too small")));
        }
        // The last entry may be truncated: the broker cuts the record data at the size limit of the fetch request.
        let Some((bytes, rest)) = self.rest.split_at_checked(PREFIX_BYTES + size) else { return Ok(None) };
        self.rest = rest;
        Ok(Some(Entry { offset, bytes, magic: bytes[MAGIC_AT].cast_signed() }))
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, RecordError>;

    /// Returns the next entry. Returns `None` after an error, because the start of the next entry is unknown.
    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.split();
        if !matches!(entry, Ok(Some(_))) {
            self.rest = &[];
        }
        entry.transpose()
    }
}

/// An entry whose header was validated; in format 2 with its CRC.
#[derive(Clone, Copy, Debug)]
pub struct OpenedEntry<'a> {
    entry: Entry<'a>,
    /// `None` in formats 0 and 1.
    header: Option<BatchHeader>,
}

impl OpenedEntry<'_> {
    /// Returns the properties of the entry.
    pub fn info(&self) -> BatchInfo {
        let offset = self.entry.offset;
        match &self.header {
            Some(header) => BatchInfo {
                next_offset: offset.saturating_add(i64::from(header.last_offset_delta)).saturating_add(1),
                leader_epoch: header.leader_epoch,
                producer_id: header.producer_id,
                is_transactional: header.attributes & 0x10 != 0,
                is_control: header.is_control(),
            },
            None => BatchInfo {
                next_offset: offset.saturating_add(1),
                leader_epoch: -1,
                producer_id: -1,
                is_transactional: false,
                is_control: false,
            },
        }
    }

    /// Passes the records to `take`, in order, without control records. Fails if the decompressed data is larger than
    /// `max_bytes`. Some records may have been passed to `take` before an error is returned.
    pub fn read(&self, max_bytes: usize, mut take: impl FnMut(ReadRecord)) -> Result<(), RecordError> {
        match &self.header {
            Some(header) => self.entry.read_batch(header, max_bytes, &mut take),
            None => self.entry.read_message(max_bytes, MAX_DEPTH, &mut take),
        }
    }

    /// Whether the entry is the marker of an aborted transaction.
    pub fn is_abort_marker(&self) -> bool {
        let Some(header) = self.header.filter(BatchHeader::is_control) else { return false };
        let record = header.record(self.entry.offset, &mut WireReader::new(&self.entry.bytes[HEADER_BYTES..]));
        // The key of a control record: its version, then the type of the marker, 0 for ABORT and 1 for COMMIT.
        let Ok(Some(mut key)) = record.map(|record| record.key.map(WireReader::new)) else { return false };
        key.i16().is_ok() && key.i16() == Ok(0)
    }
}

impl<'a> Entry<'a> {
    /// Returns the offset of the first record of a batch, or of a message.
    pub fn offset(&self) -> i64 {
        self.offset
    }

    /// Returns the size of the entry in bytes.
    #[allow(clippy::len_without_is_empty, reason = "an entry is never empty")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Validates the header and, in format 2, the CRC.
    pub fn open(&self) -> Result<OpenedEntry<'a>, RecordError> {
        let header = match self.magic {
            0 | 1 => None,
            2 if self.bytes.len() < HEADER_BYTES => {
                return Err(self.malformed(Malformed("a length that is too small")));
            }
            2 => {
                let header = BatchHeader::read(&mut WireReader::new(&self.bytes[PREFIX_BYTES..]))
                    .map_err(|cause| self.malformed(cause))?;
                self.check_crc(crc32c::crc32c(&self.bytes[MAGIC_AT + 5..]), header.crc)?;
                Some(header)
            }
            magic => return Err(RecordError::UnknownFormat { offset: self.offset, magic }),
        };
        Ok(OpenedEntry { entry: *self, header })
    }

    /// Opens the entry and reads its records, see [`OpenedEntry::read`].
    pub fn read(&self, max_bytes: usize, take: impl FnMut(ReadRecord)) -> Result<BatchInfo, RecordError> {
        let opened = self.open()?;
        opened.read(max_bytes, take)?;
        Ok(opened.info())
    }

    fn malformed(&self, cause: Malformed) -> RecordError {
        RecordError::Malformed { offset: self.offset, cause }
    }

    fn codec(&self, number: i16) -> Result<Codec, RecordError> {
        Codec::from_number(number).ok_or(RecordError::UnknownCodec { offset: self.offset, number })
    }

    fn decompress(&self, codec: Codec, data: &[u8], max_bytes: usize) -> Result<Vec<u8>, RecordError> {
        codec.decompress(data, max_bytes).map_err(|cause| RecordError::Compression { offset: self.offset, cause })
    }

    fn check_crc(&self, computed: u32, announced: u32) -> Result<(), RecordError> {
        if computed == announced {
            return Ok(());
        }
        Err(RecordError::Crc { offset: self.offset, computed, announced })
    }

    fn read_batch(
        &self,
        header: &BatchHeader,
        max_bytes: usize,
        take: &mut dyn FnMut(ReadRecord),
    ) -> Result<(), RecordError> {
        let codec = self.codec(header.attributes & 7)?;
        let records = &self.bytes[HEADER_BYTES..];
        let decompressed;
        let records = if codec == Codec::None {
            records
        } else {
            decompressed = self.decompress(codec, records, max_bytes)?;
            &decompressed
        };
        let mut reader = WireReader::new(records);
        for _ in 0..header.count {
            let record = header.record(self.offset, &mut reader).map_err(|cause| self.malformed(cause))?;
            if !header.is_control() {
                take(record);
            }
        }
        if !reader.is_empty() {
            return Err(self.malformed(Malformed("bytes after the last record")));
        }
        Ok(())
    }

    fn read_message(
        &self,
        max_bytes: usize,
        depth: usize,
        take: &mut dyn FnMut(ReadRecord),
    ) -> Result<(), RecordError> {
        let message = Message::read(self.bytes, self.magic).map_err(|cause| self.malformed(cause))?;
        self.check_crc(crc32fast::hash(&self.bytes[MAGIC_AT..]), message.crc)?;
        let codec = self.codec(message.attributes & 7)?;
        if codec == Codec::None {
            take(message.record(self.offset));
            return Ok(());
        }
        let data = message.value.ok_or_else(|| self.malformed(Malformed("a compressed message without a value")))?;
        if depth == 0 {
            return Err(self.malformed(Malformed("a compressed message within a compressed message")));
        }
        let decompress = if self.magic == 0 { Codec::decompress_format_0 } else { Codec::decompress };
        let set = decompress(codec, data, max_bytes)
            .map_err(|cause| RecordError::Compression { offset: self.offset, cause })?;
        // Inner offsets are relative to the first inner message in format 1, absolute in format 0.
        let last = Entries::of(&set).last().transpose()?.map_or(0, |last| last.offset);
        let base = if self.magic == 1 { self.offset.saturating_sub(last) } else { 0 };
        for inner in Entries::of(&set) {
            let inner = inner?;
            let inner = Entry { offset: inner.offset.saturating_add(base), ..inner };
            if inner.magic != self.magic {
                return Err(self.malformed(Malformed("a message of another format within a compressed message")));
            }
            // Bit 3 (LogAppendTime): the timestamp of the outer message is the append time of all inner messages.
            let log_append_time = (message.attributes & 8 != 0).then_some(message.timestamp_ms).flatten();
            inner.read_message(max_bytes, depth - 1, &mut |record| {
                take(ReadRecord { timestamp_ms: log_append_time.or(record.timestamp_ms), ..record });
            })?;
        }
        Ok(())
    }
}

/// The header of a batch without offset and length.
#[derive(Clone, Copy, Debug)]
struct BatchHeader {
    leader_epoch: i32,
    crc: u32,
    attributes: i16,
    last_offset_delta: i32,
    base_timestamp: i64,
    max_timestamp: i64,
    producer_id: i64,
    count: i32,
}

impl BatchHeader {
    fn read(reader: &mut WireReader) -> Result<BatchHeader, Malformed> {
        let leader_epoch = reader.i32()?;
        reader.i8()?;
        let (crc, attributes, last_offset_delta) = (reader.u32()?, reader.i16()?, reader.i32()?);
        let (base_timestamp, max_timestamp, producer_id) = (reader.i64()?, reader.i64()?, reader.i64()?);
        // Producer epoch and base sequence number are not used by consumers.
        reader.i16()?;
        reader.i32()?;
        let count = reader.i32()?;
        if count < 0 || last_offset_delta < 0 {
            return Err(Malformed("a negative number of records"));
        }
        Ok(BatchHeader {
            leader_epoch,
            crc,
            attributes,
            last_offset_delta,
            base_timestamp,
            max_timestamp,
            producer_id,
            count,
        })
    }

    /// Whether the batch contains a control record.
    fn is_control(&self) -> bool {
        self.attributes & 0x20 != 0
    }

    fn record<'a>(&self, base_offset: i64, reader: &mut WireReader<'a>) -> Result<ReadRecord<'a>, Malformed> {
        let length = usize::try_from(reader.varint()?).map_err(|_| Malformed("a negative length"))?;
        let mut record = WireReader::new(reader.take(length)?);
        record.i8()?;
        let timestamp = self.base_timestamp.wrapping_add(record.varlong()?);
        let offset = base_offset.saturating_add(i64::from(record.varint()?));
        let (key, value) = (record.varint_bytes()?, record.varint_bytes()?);
        let count = usize::try_from(record.varint()?).map_err(|_| Malformed("a negative number of headers"))?;
        let bytes = record.rest();
        for _ in 0..count {
            header(&mut record)?;
        }
        if !record.is_empty() {
            return Err(Malformed("bytes after the headers of a record"));
        }
        // Bit 3 (LogAppendTime): the maximum timestamp of the header is the append time of all records.
        let timestamp = if self.attributes & 8 != 0 { self.max_timestamp } else { timestamp };
        let timestamp_ms = (timestamp >= 0).then_some(timestamp);
        Ok(ReadRecord { offset, timestamp_ms, key, value, headers: ReadHeaders::from_encoded(count, bytes) })
    }
}

#[cfg(test)]
mod tests;
