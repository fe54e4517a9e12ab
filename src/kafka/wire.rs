//! The primitive types of the Kafka protocol: big-endian integers, variable-length integers (zig-zag in
//! records), strings, arrays and tagged fields.

/// Data that violates the protocol: it ends too early, or a value is invalid. The text names the violation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// Size of the longest encoding of a 64-bit variable-length integer.
const MAX_VARLONG_BYTES: usize = 10;
/// Size of the longest encoding of a 32-bit variable-length integer.
const MAX_VARINT_BYTES: usize = 5;

/// Reads values from the front of a slice.
#[derive(Clone, Copy, Debug)]
pub struct WireReader<'a> {
    rest: &'a [u8],
}

macro_rules! integers {
    ($($name:ident: $type:ty),*) => {
        $(
            #[doc = concat!("Reads a big-endian `", stringify!($type), "`.")]
            pub fn $name(&mut self) -> Result<$type, Malformed> {
                let (head, rest) = self.rest.split_first_chunk().ok_or(Malformed("the data ends in a number"))?;
                self.rest = rest;
                Ok(<$type>::from_be_bytes(*head))
            }
        )*
    };
}

impl<'a> WireReader<'a> {
    /// Creates a reader at the first byte of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        WireReader { rest: bytes }
    }

    /// Returns the unread bytes.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether all bytes have been read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    integers!(i8: i8, i16: i16, i32: i32, i64: i64, u32: u32);

    /// Reads `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or(Malformed("the data ends in a field"))?;
        self.rest = rest;
        Ok(head)
    }

    /// Reads a zig-zag `VARINT`.
    pub fn varint(&mut self) -> Result<i32, Malformed> {
        let value = self.unsigned(MAX_VARINT_BYTES)?;
        let value = u32::try_from(value).map_err(|_| Malformed("a variable-length number that is too large"))?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// Reads a zig-zag `VARLONG`.
    pub fn varlong(&mut self) -> Result<i64, Malformed> {
        let value = self.unsigned(MAX_VARLONG_BYTES)?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// Reads a `VARINT` length and that many bytes; returns `None` for the length -1 (null).
    pub fn varint_bytes(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        match self.varint()? {
            -1 => Ok(None),
            length => Ok(Some(self.take(usize::try_from(length).map_err(|_| Malformed("a negative length"))?)?)),
        }
    }

    /// Reads an `i32` length and that many bytes; returns `None` for the length -1 (null).
    pub fn nullable_bytes(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        match self.i32()? {
            -1 => Ok(None),
            length => Ok(Some(self.take(usize::try_from(length).map_err(|_| Malformed("a negative length"))?)?)),
        }
    }

    /// Reads bytes, with a compact length if `flexible`; null is empty.
    pub fn bytes(&mut self, flexible: bool) -> Result<&'a [u8], Malformed> {
        if !flexible {
            return Ok(self.nullable_bytes()?.unwrap_or_default());
        }
        match self.unsigned_varint()? {
            0 => Ok(&[]),
            length => self.take(length as usize - 1),
        }
    }

    /// Reads an `UNSIGNED_VARINT`.
    pub fn unsigned_varint(&mut self) -> Result<u32, Malformed> {
        let value = self.unsigned(MAX_VARINT_BYTES)?;
        u32::try_from(value).map_err(|_| Malformed("a variable-length number that is too large"))
    }

    /// Reads a string like [`string`](Self::string), null as an empty one.
    pub fn text(&mut self, flexible: bool) -> Result<String, Malformed> {
        Ok(self.string(flexible)?.unwrap_or_default().to_owned())
    }

    /// Reads a string, a compact string if `flexible`; returns `None` for null.
    pub fn string(&mut self, flexible: bool) -> Result<Option<&'a str>, Malformed> {
        let length = if flexible { i64::from(self.unsigned_varint()?) - 1 } else { i64::from(self.i16()?) };
        if length == -1 {
            return Ok(None);
        }
        let bytes = self.take(usize::try_from(length).map_err(|_| Malformed("a negative length"))?)?;
        std::str::from_utf8(bytes).map(Some).map_err(|_| Malformed("a string that is not UTF-8"))
    }

    /// Reads the element count of an array; returns 0 for a null array. Fails if the unread bytes cannot hold that
    /// many elements of at least `min_bytes` each.
    pub fn array(&mut self, flexible: bool, min_bytes: usize) -> Result<usize, Malformed> {
        let count = if flexible { i64::from(self.unsigned_varint()?) - 1 } else { i64::from(self.i32()?) };
        let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
        if count.saturating_mul(min_bytes.max(1)) > self.rest.len() {
            return Err(Malformed("an array with more elements than there are bytes"));
        }
        Ok(count)
    }

    /// Reads the tagged fields at the end of a structure of a flexible version; passes tag and data of each field to
    /// `take`.
    pub fn tagged_fields(
        &mut self,
        mut take: impl FnMut(u32, &mut WireReader<'a>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        for _ in 0..self.unsigned_varint()? {
            let (tag, size) = (self.unsigned_varint()?, self.unsigned_varint()?);
            take(tag, &mut WireReader::new(self.take(size as usize)?))?;
        }
        Ok(())
    }

    /// Skips the tagged fields at the end of a structure, which only a flexible version has.
    pub fn skip_tagged_fields(&mut self, flexible: bool) -> Result<(), Malformed> {
        if flexible { self.tagged_fields(|_, _| Ok(())) } else { Ok(()) }
    }

    fn unsigned(&mut self, max_bytes: usize) -> Result<u64, Malformed> {
        let mut value = 0_u64;
        for index in 0..max_bytes {
            let (byte, rest) = self.rest.split_first().ok_or(Malformed("the data ends in a number"))?;
            self.rest = rest;
            let bits = u64::from(byte & 0x7f);
            // Nine bytes hold 63 bits, so only one bit of the tenth byte is valid.
            if index == MAX_VARLONG_BYTES - 1 && bits > 1 {
                return Err(Malformed("a variable-length number that is too large"));
            }
            value |= bits << (7 * index);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed("a variable-length number that does not end"))
    }
}

/// Appends a zig-zag `VARLONG`; for a value within 32 bits this is also its `VARINT`.
pub fn put_varlong(buffer: &mut Vec<u8>, value: i64) {
    let mut rest = zig_zag(value);
    while rest >= 0x80 {
        buffer.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    buffer.push(rest as u8);
}

/// Appends an `UNSIGNED_VARINT`.
pub fn put_unsigned_varint(buffer: &mut Vec<u8>, value: u32) {
    let mut rest = value;
    while rest >= 0x80 {
        buffer.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    buffer.push(rest as u8);
}

/// Appends a string, a compact string if `flexible`. `text` has at most 32,767 bytes, the limit of the protocol.
pub fn put_string(buffer: &mut Vec<u8>, flexible: bool, text: &str) {
    debug_assert!(text.len() <= i16::MAX as usize, "a string must have at most 32,767 bytes");
    if flexible {
        put_unsigned_varint(buffer, text.len() as u32 + 1);
    } else {
        buffer.extend_from_slice(&(text.len() as i16).to_be_bytes());
    }
    buffer.extend_from_slice(text.as_bytes());
}

/// Appends a string like [`put_string`], or null.
pub fn put_nullable_string(buffer: &mut Vec<u8>, flexible: bool, text: Option<&str>) {
    match text {
        Some(text) => put_string(buffer, flexible, text),
        None if flexible => put_unsigned_varint(buffer, 0),
        None => buffer.extend_from_slice(&(-1_i16).to_be_bytes()),
    }
}

/// Appends the length of an array or of bytes, a compact length if `flexible`.
pub fn put_length(buffer: &mut Vec<u8>, flexible: bool, length: usize) {
    if flexible {
        put_unsigned_varint(buffer, length as u32 + 1);
    } else {
        buffer.extend_from_slice(&(length as i32).to_be_bytes());
    }
}

/// Appends bytes, with a compact length if `flexible`.
pub fn put_bytes(buffer: &mut Vec<u8>, flexible: bool, bytes: &[u8]) {
    put_length(buffer, flexible, bytes.len());
    buffer.extend_from_slice(bytes);
}

/// Ends a structure without tagged fields; only a structure of a flexible version can have some.
pub fn end_structure(buffer: &mut Vec<u8>, flexible: bool) {
    if flexible {
        put_unsigned_varint(buffer, 0);
    }
}

/// Appends the length of `bytes` as `VARINT`, then the bytes; `None` has the length -1 (null).
pub fn put_varint_bytes(buffer: &mut Vec<u8>, bytes: Option<&[u8]>) {
    put_varlong(buffer, bytes.map_or(-1, |bytes| bytes.len() as i64));
    buffer.extend_from_slice(bytes.unwrap_or_default());
}

/// Returns the number of bytes that [`put_varlong`] appends.
pub fn varlong_len(value: i64) -> usize {
    // Each byte holds seven bits; zero needs one byte.
    (64 - (zig_zag(value) | 1).leading_zeros() as usize).div_ceil(7)
}

/// Returns the number of bytes that [`put_varint_bytes`] appends.
pub fn varint_bytes_len(bytes: Option<&[u8]>) -> usize {
    let length = bytes.map_or(0, <[u8]>::len);
    varlong_len(bytes.map_or(-1, |bytes| bytes.len() as i64)) + length
}

fn zig_zag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn variable_length_numbers_have_the_zig_zag_encoding() {
        // Kafka uses the zig-zag encoding of Protocol Buffers.
        for (value, bytes) in [
            (0_i64, &[0][..]),
            (-1, &[1]),
            (1, &[2]),
            (-2, &[3]),
            (63, &[0x7e]),
            (64, &[0x80, 1]),
            (300, &[0xd8, 4]),
            (i64::from(i32::MAX), &[0xfe, 0xff, 0xff, 0xff, 0xf]),
            (i64::from(i32::MIN), &[0xff, 0xff, 0xff, 0xff, 0xf]),
        ] {
            let mut buffer = Vec::new();
            put_varlong(&mut buffer, value);
            assert_eq!((&buffer[..], varlong_len(value)), (bytes, bytes.len()), "{value}");
            assert_eq!(WireReader::new(bytes).varlong(), Ok(value));
            assert_eq!(WireReader::new(bytes).varint().map(i64::from), Ok(value));
        }
    }

    #[test]
    fn values_that_are_too_long_or_truncated_are_malformed() {
        assert!(WireReader::new(&[0x80; 20]).varlong().is_err());
        assert!(WireReader::new(&[0xff; 10]).varlong().is_err());
        assert!(WireReader::new(&[0xff, 0xff, 0xff, 0xff, 0x1f]).varint().is_err());
        assert!(WireReader::new(&[0x80]).varint().is_err());
        assert!(WireReader::new(&[0, 0, 0]).i32().is_err());
        // Length 3 with two bytes, length -2, and length `i32::MAX`.
        for bytes in [&[6, 1, 2][..], &[3], &[0xfe, 0xff, 0xff, 0xff, 0xf]] {
            assert!(WireReader::new(bytes).varint_bytes().is_err(), "{bytes:?}");
        }
        assert_eq!(WireReader::new(&[1]).varint_bytes(), Ok(None));
        assert_eq!(WireReader::new(&[0xff; 4]).nullable_bytes(), Ok(None));
        assert!(WireReader::new(&[0xff, 0xff, 0xff, 0xfe]).nullable_bytes().is_err());
    }

    proptest! {
        #[test]
        fn encoded_numbers_and_bytes_are_decoded_to_the_same_values(value: i64, bytes: Option<Vec<u8>>) {
            let mut buffer = Vec::new();
            put_varlong(&mut buffer, value);
            prop_assert_eq!(buffer.len(), varlong_len(value));
            put_varint_bytes(&mut buffer, bytes.as_deref());
            prop_assert_eq!(buffer.len(), varlong_len(value) + varint_bytes_len(bytes.as_deref()));
            let mut reader = WireReader::new(&buffer);
            prop_assert_eq!(reader.varlong(), Ok(value));
            prop_assert_eq!(reader.varint_bytes(), Ok(bytes.as_deref()));
            prop_assert!(reader.is_empty());
        }
    }
}
