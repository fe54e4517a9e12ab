//! The types of a decoded record, in all message formats.

use crate::kafka::wire::{Malformed, WireReader};

/// Size of the offset and length fields of an entry; the length does not count these bytes.
pub(super) const PREFIX_BYTES: usize = 12;

/// A decoded record; it borrows from the record data or from the decompressed data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRecord<'a> {
    /// Offset in its partition.
    pub offset: i64,
    /// Timestamp in milliseconds since 1970; `None` in format 0 and if the producer set none.
    pub timestamp_ms: Option<i64>,
    /// Key.
    pub key: Option<&'a [u8]>,
    /// Value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Headers.
    pub headers: ReadHeaders<'a>,
}

/// The headers of a record, validated when the record was decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadHeaders<'a> {
    count: usize,
    bytes: &'a [u8],
}

impl<'a> ReadHeaders<'a> {
    pub(super) const NONE: ReadHeaders<'static> = ReadHeaders { count: 0, bytes: &[] };

    /// Returns the number of headers.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether the record has no headers.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the encoded headers, which [`from_encoded`](Self::from_encoded) takes.
    pub(in crate::kafka) fn encoded(&self) -> &'a [u8] {
        self.bytes
    }

    /// Returns headers from the bytes of [`encoded`](Self::encoded) and their number.
    pub(in crate::kafka) fn from_encoded(count: usize, bytes: &'a [u8]) -> Self {
        ReadHeaders { count, bytes }
    }

    /// Iterates over name (UTF-8 by convention) and value of each header, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> {
        let mut reader = WireReader::new(self.bytes);
        (0..self.count).map_while(move |_| header(&mut reader).ok())
    }
}

/// Decodes a header: its name and its value.
pub(super) fn header<'a>(reader: &mut WireReader<'a>) -> Result<(&'a [u8], Option<&'a [u8]>), Malformed> {
    let name = reader.varint_bytes()?.ok_or(Malformed("a header without a name"))?;
    Ok((name, reader.varint_bytes()?))
}
