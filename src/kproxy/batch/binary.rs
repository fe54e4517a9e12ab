//! `application/octet-stream`: lengths and bytes into messages.
//!
//! One record after the other, without anything between them; numbers are big-endian and not negative:
//!
//! ```text
//! u32 length of the key, or 0xffffffff where there is none │ key
//! u16 number of headers │ for each: u16 length of the name │ name, UTF-8 │ u32 length of the value │ value
//! u32 length of the value │ value
//! ```

use super::{Bounds, Entry, MAX_HEADERS, malformed};
use crate::broker::Header;
use crate::kproxy::answer::Failure;

/// In the place of a key's length: the record says nothing of a key.
const NO_KEY: u32 = u32::MAX;

/// The messages of a body that is not empty.
pub(super) fn parse(body: &[u8], bounds: &Bounds) -> Result<Vec<Entry>, Failure> {
    let mut rest = Rest { left: body, total: body.len(), record: 0 };
    let mut entries = Vec::new();
    while !rest.left.is_empty() {
        bounds.check_count(entries.len())?;
        rest.record += 1;
        let entry = rest.entry()?;
        bounds.check(&entry, format_args!("record {}", rest.record))?;
        entries.push(entry);
    }
    Ok(entries)
}

/// What of a body has not been read yet.
struct Rest<'a> {
    left: &'a [u8],
    total: usize,
    /// Number of the record that is being read, from 1.
    record: usize,
}

impl<'a> Rest<'a> {
    fn entry(&mut self) -> Result<Entry, Failure> {
        let key = match self.u32("the length of the key")? {
            NO_KEY => None,
            length => Some(self.bytes(length, "the key")?.to_vec()),
        };
        let header_count = usize::from(self.u16("the number of headers")?);
        if header_count > MAX_HEADERS {
            return Err(self.malformed(format!("there are {header_count} headers, at most {MAX_HEADERS} can be")));
        }
        let headers = (0..header_count).map(|_| self.header()).collect::<Result<_, _>>()?;
        let length = self.u32("the length of the value")?;
        let value = self.bytes(length, "the value")?.to_vec();
        Ok(Entry { key, value, headers, partition: None, timestamp_ms: None })
    }

    fn header(&mut self) -> Result<Header, Failure> {
        let length = self.u16("the length of a header's name")?;
        let name = self.bytes(length.into(), "a header's name")?;
        let Ok(name) = str::from_utf8(name) else { return Err(self.malformed("a header's name is not UTF-8")) };
        let length = self.u32("the length of a header's value")?;
        let value = self.bytes(length, "a header's value")?;
        Ok(Header { name: name.to_owned(), value: Some(value.to_vec()) })
    }

    fn u16(&mut self, what: &str) -> Result<u16, Failure> {
        self.array(what).map(u16::from_be_bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32, Failure> {
        self.array(what).map(u32::from_be_bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Failure> {
        let Some((array, left)) = self.left.split_first_chunk() else { return Err(self.too_short(N, what)) };
        self.left = left;
        Ok(*array)
    }

    fn bytes(&mut self, length: u32, what: &str) -> Result<&'a [u8], Failure> {
        let length = length as usize;
        let Some((bytes, left)) = self.left.split_at_checked(length) else { return Err(self.too_short(length, what)) };
        self.left = left;
        Ok(bytes)
    }

    fn too_short(&self, length: usize, what: &str) -> Failure {
        self.malformed(format!("{what} has {length} bytes, but the body has only {} more", self.left.len()))
    }

    fn malformed(&self, what: impl std::fmt::Display) -> Failure {
        malformed(format_args!("record {}, byte {}", self.record, self.total - self.left.len() + 1), what)
    }
}
