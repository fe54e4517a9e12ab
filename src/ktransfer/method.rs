//! Finds the value of the key `method` in a msgpack message without decoding the whole message.
//!
//! The reader skips the entries of the top-level map up to the key `method`. It neither recurses nor allocates, so deep
//! nesting cannot overflow the stack and a huge declared length cannot exhaust memory: a declared length is only
//! compared with the number of bytes left. Time is linear in the size of the message, since each value has at least a
//! byte.

use rmp::Marker;

/// Why a message has no method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoMethod {
    /// The message is null (a tombstone) or has no bytes.
    #[error("the message is empty")]
    Empty,
    /// The first value of the message is not a map.
    #[error("the message is not a msgpack map")]
    NotMap,
    /// The message ends within a value, or declares more values than it has bytes.
    #[error("the msgpack map is truncated")]
    Truncated,
    /// A value has the type byte 0xc1, which msgpack never uses.
    #[error("the message is not msgpack")]
    Malformed,
    /// The map has no key `method`.
    #[error("the msgpack map has no key \"method\"")]
    Absent,
    /// The value of `method` is not a string, or not UTF-8.
    #[error("the value of \"method\" is not a UTF-8 string")]
    NotString,
}

/// Returns the string under the first key `method` of the message, or why there is none.
pub(super) fn method_of(message: &[u8]) -> Result<&str, NoMethod> {
    let mut reader = MsgpackReader { rest: message };
    let marker = reader.marker().map_err(|_| NoMethod::Empty)?;
    let entries = match marker {
        Marker::FixMap(entries) => u64::from(entries),
        Marker::Map16 => reader.number(2)?,
        Marker::Map32 => reader.number(4)?,
        _ => return Err(NoMethod::NotMap),
    };
    for _ in 0..entries {
        // Each iteration reads at least a byte, so a map that declares too many entries returns `Truncated`.
        let key = reader.value()?;
        if key.is_text_or_bytes && key.content == b"method" {
            let value = reader.value()?;
            let text = if value.is_text_or_bytes { std::str::from_utf8(value.content).ok() } else { None };
            return text.ok_or(NoMethod::NotString);
        }
        reader.value()?;
    }
    Err(NoMethod::Absent)
}

/// A value that was skipped. `content` is empty unless the value is a string or bytes.
struct SkippedValue<'message> {
    is_text_or_bytes: bool,
    content: &'message [u8],
}

struct MsgpackReader<'message> {
    rest: &'message [u8],
}

impl<'message> MsgpackReader<'message> {
    fn take(&mut self, n_bytes: u64) -> Result<&'message [u8], NoMethod> {
        let n_bytes = usize::try_from(n_bytes).map_err(|_| NoMethod::Truncated)?;
        let (taken, rest) = self.rest.split_at_checked(n_bytes).ok_or(NoMethod::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn marker(&mut self) -> Result<Marker, NoMethod> {
        self.take(1).map(|byte| Marker::from_u8(byte[0]))
    }

    /// Reads a big-endian length of `n_bytes` bytes.
    fn number(&mut self, n_bytes: u64) -> Result<u64, NoMethod> {
        Ok(self.take(n_bytes)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// Skips one value with all values nested inside it.
    fn value(&mut self) -> Result<SkippedValue<'message>, NoMethod> {
        let mut skipped = SkippedValue { is_text_or_bytes: false, content: &[] };
        // Number of values left to skip. A count is enough, without a stack, because it does not matter which container
        // a value belongs to.
        let mut left: u64 = 1;
        let mut is_outermost = true;
        while 0 < left {
            left -= 1;
            let marker = self.marker()?;
            let (n_bytes, inside, is_text_or_bytes) = self.shape(marker)?;
            let content = self.take(n_bytes)?;
            left = left.saturating_add(inside);
            // Each value takes at least a byte, so the bytes left cannot hold the declared values.
            if (self.rest.len() as u64) < left {
                return Err(NoMethod::Truncated);
            }
            if is_outermost && is_text_or_bytes {
                skipped = SkippedValue { is_text_or_bytes, content };
            }
            is_outermost = false;
        }
        Ok(skipped)
    }

    /// Returns for the value behind `marker`: the number of bytes after marker and length, the number of values nested
    /// in it, and whether it is a string or a byte array (old msgpack writers use the same type for both).
    fn shape(&mut self, marker: Marker) -> Result<(u64, u64, bool), NoMethod> {
        Ok(match marker {
            Marker::Reserved => return Err(NoMethod::Malformed),
            Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::False | Marker::True => (0, 0, false),
            Marker::U8 | Marker::I8 => (1, 0, false),
            Marker::U16 | Marker::I16 => (2, 0, false),
            Marker::U32 | Marker::I32 | Marker::F32 => (4, 0, false),
            Marker::U64 | Marker::I64 | Marker::F64 => (8, 0, false),
            Marker::FixStr(length) => (u64::from(length), 0, true),
            Marker::Str8 | Marker::Bin8 => (self.number(1)?, 0, true),
            Marker::Str16 | Marker::Bin16 => (self.number(2)?, 0, true),
            Marker::Str32 | Marker::Bin32 => (self.number(4)?, 0, true),
            // One byte more than the length, for the type of the extension.
            Marker::FixExt1 => (2, 0, false),
            Marker::FixExt2 => (3, 0, false),
            Marker::FixExt4 => (5, 0, false),
            Marker::FixExt8 => (9, 0, false),
            Marker::FixExt16 => (17, 0, false),
            Marker::Ext8 => (self.number(1)? + 1, 0, false),
            Marker::Ext16 => (self.number(2)? + 1, 0, false),
            Marker::Ext32 => (self.number(4)? + 1, 0, false),
            Marker::FixArray(length) => (0, u64::from(length), false),
            Marker::Array16 => (0, self.number(2)?, false),
            Marker::Array32 => (0, self.number(4)?, false),
            Marker::FixMap(entries) => (0, u64::from(entries) * 2, false),
            Marker::Map16 => (0, self.number(2)? * 2, false),
            Marker::Map32 => (0, self.number(4)? * 2, false),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Encodes a map with these keys and values, which are encoded already.
    fn map(entries: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0x80 | u8::try_from(entries.len()).unwrap()];
        for (key, value) in entries {
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(value);
        }
        bytes
    }

    const METHOD: &[u8] = b"\xa6method";
    const REPLY: &[u8] = b"\xa9TestReply";

    #[test]
    fn the_method_is_found_after_values_of_every_type() {
        let long = [b"\xd9\x30".as_slice(), &[b'x'; 48]].concat();
        let nested = [vec![0x91; 100_000], vec![0xc0]].concat();
        let values: &[&[u8]] = &[
            b"\x07",
            b"\xff",
            b"\xc0",
            b"\xc2",
            b"\xc3",
            b"\xcc\x01",
            b"\xcd\x01\x02",
            b"\xce\x01\x02\x03\x04",
            b"\xcf\x01\x02\x03\x04\x05\x06\x07\x08",
            b"\xd3\x01\x02\x03\x04\x05\x06\x07\x08",
            b"\xca\x01\x02\x03\x04",
            b"\xcb\x01\x02\x03\x04\x05\x06\x07\x08",
            b"\xa3abc",
            &long,
            b"\xda\x00\x01a",
            b"\xdb\x00\x00\x00\x01a",
            b"\xc4\x02ab",
            b"\xc5\x00\x02ab",
            b"\xc6\x00\x00\x00\x02ab",
            b"\xd4\x01a",
            b"\xd8\x01abcdefghijklmnop",
            b"\xc7\x02\x01ab",
            b"\xc8\x00\x02\x01ab",
            b"\xc9\x00\x00\x00\x02\x01ab",
            b"\x92\x01\x02",
            b"\xdc\x00\x02\x01\x02",
            b"\xdd\x00\x00\x00\x01\x80",
            b"\x81\xa6method\xa5wrong",
            b"\xde\x00\x01\x01\x02",
            b"\xdf\x00\x00\x00\x01\x01\x02",
            &nested,
        ];
        for value in values {
            assert_eq!(method_of(&map(&[(b"\xa4data", value), (METHOD, REPLY)])), Ok("TestReply"), "{value:?}");
            assert_eq!(method_of(&map(&[(value, b"\x01"), (METHOD, REPLY)])), Ok("TestReply"), "key {value:?}");
        }
        assert_eq!(
            method_of(&map(&[(b"\xc4\x06method", b"\xc4\x02ab")])),
            Ok("ab"),
            "a byte array is accepted as a string"
        );
        assert_eq!(method_of(b"\xde\x00\x01\xa6method\xa1m"), Ok("m"));
        assert_eq!(method_of(b"\xdf\x00\x00\x00\x01\xa6method\xa1m"), Ok("m"));
        assert_eq!(method_of(&map(&[(METHOD, b"\xa1a"), (METHOD, b"\xa1b")])), Ok("a"), "the first key counts");
    }

    #[test]
    fn a_message_without_a_method_returns_the_reason() {
        for (message, reason) in [
            (b"".as_slice(), NoMethod::Empty),
            (b"{\"method\":\"TestReply\"}", NoMethod::NotMap),
            (b"\x91\xa6method", NoMethod::NotMap),
            (b"\xc1", NoMethod::NotMap),
            (b"\x80", NoMethod::Absent),
            (b"\x81\xa4data\x01", NoMethod::Absent),
            (b"\x81\xa6method\x01", NoMethod::NotString),
            (b"\x81\xa6method\xa1\xff", NoMethod::NotString),
            (b"\x81\xa6method\x81\xa6method\xa1a", NoMethod::NotString),
            (b"\x81", NoMethod::Truncated),
            (b"\x81\xa6meth", NoMethod::Truncated),
            (b"\x81\xa6method", NoMethod::Truncated),
            (b"\x81\xa6method\xa9Test", NoMethod::Truncated),
            (b"\x82\xc1", NoMethod::Malformed),
            (b"\xde\x00", NoMethod::Truncated),
            (b"\xdf\xff\xff\xff\xff\x01\x02", NoMethod::Truncated),
            (b"\x81\x01\xdd\xff\xff\xff\xff", NoMethod::Truncated),
            (b"\x81\x01\xdb\xff\xff\xff\xff", NoMethod::Truncated),
            (b"\x81\x01\xc9\xff\xff\xff\xff", NoMethod::Truncated),
            (b"\x81\x01\xdf\xff\xff\xff\xff", NoMethod::Truncated),
        ] {
            assert_eq!(method_of(message), Err(reason), "{message:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn no_bytes_cause_a_panic_or_a_method_that_is_not_in_them(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(method) = method_of(&bytes) {
                prop_assert!(method.is_empty() || bytes.windows(method.len()).any(|part| part == method.as_bytes()));
            }
        }

        #[test]
        fn every_proper_prefix_of_a_valid_message_is_truncated(
            cut in 0usize..40, junk in prop::collection::vec(any::<u8>(), 0..20)
        ) {
            let mut value = vec![0xc4, u8::try_from(junk.len()).unwrap()];
            value.extend_from_slice(&junk);
            let message = map(&[(b"\xa4data", &value), (METHOD, REPLY)]);
            let cut = cut.min(message.len() - 1);
            let expected = if cut == 0 { NoMethod::Empty } else { NoMethod::Truncated };
            prop_assert_eq!(method_of(&message[..cut]), Err(expected));
            prop_assert_eq!(method_of(&message), Ok("TestReply"));
        }
    }
}
