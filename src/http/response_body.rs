//! The body of a response: bytes of its own, or bytes that many responses share, between a start and an end.
//!
//! Shared bytes are never copied: a connection whose client reads slowly keeps a reference and a position. So any
//! number of slow clients of one large page costs the memory of one page.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

/// The body of a [`super::Response`].
#[derive(Clone, Debug)]
pub enum Body {
    /// Bytes of this response alone.
    Owned(Vec<u8>),
    /// Bytes that other responses have as well, between a start and an end.
    Shared {
        /// The start, of this response alone; often empty.
        start: Vec<u8>,
        /// The shared part.
        bytes: SharedBytes,
        /// The end; often empty.
        end: &'static [u8],
    },
    /// Not rendered, because the request is HEAD: the response has neither body nor Content-Length.
    Omitted,
}

/// A range of bytes that are shared. Clones refer to the same bytes.
#[derive(Clone)]
pub struct SharedBytes {
    page: Arc<SharedPage>,
    range: Range<usize>,
}

struct SharedPage {
    bytes: Vec<u8>,
    is_withdrawn: AtomicBool,
}

/// Refers to shared bytes without keeping them in memory.
#[derive(Debug)]
pub struct PageWatch(Weak<SharedPage>);

impl Body {
    /// Returns the parts whose concatenation is the body.
    pub fn parts(&self) -> [&[u8]; 3] {
        match self {
            Body::Owned(bytes) => [bytes, &[], &[]],
            Body::Shared { start, bytes, end } => [start, bytes, end],
            Body::Omitted => [&[]; 3],
        }
    }

    /// Returns the number of bytes.
    pub fn len(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }

    /// Returns whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns a copy of the bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        self.parts().concat()
    }

    /// Returns whether the rest of the body is not sent, see [`PageWatch::withdraw`].
    pub fn is_withdrawn(&self) -> bool {
        matches!(self, Body::Shared { bytes, .. } if bytes.page.is_withdrawn.load(Ordering::Relaxed))
    }

    /// Returns the heap memory that only this body holds, in bytes.
    pub(super) fn allocated(&self) -> usize {
        match self {
            Body::Owned(bytes) => bytes.capacity(),
            Body::Shared { start, .. } => start.capacity(),
            Body::Omitted => 0,
        }
    }
}

impl SharedBytes {
    /// Returns the part in `range`, which counts from the beginning of this part; it ends where this part ends.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        let end = self.range.end.min(self.range.start.saturating_add(range.end));
        let start = end.min(self.range.start.saturating_add(range.start));
        SharedBytes { page: Arc::clone(&self.page), range: start..end }
    }

    /// Returns how many parts refer to the same bytes.
    #[cfg(test)]
    pub(super) fn references(&self) -> usize {
        Arc::strong_count(&self.page)
    }

    /// Returns a reference that does not keep the bytes.
    pub fn watch(&self) -> PageWatch {
        PageWatch(Arc::downgrade(&self.page))
    }
}

impl PageWatch {
    /// Returns the number of bytes that are kept by somebody; 0 if nobody keeps them.
    pub fn held_bytes(&self) -> usize {
        self.0.upgrade().map_or(0, |page| page.bytes.len())
    }

    /// Ends the responses that have these bytes and are still being written, so that their memory is released: those
    /// clients read too slowly for the memory that is left.
    pub fn withdraw(&self) {
        if let Some(page) = self.0.upgrade() {
            page.is_withdrawn.store(true, Ordering::Relaxed);
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Body::Owned(Vec::new())
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.page.bytes[self.range.clone()]
    }
}

/// Bodies are equal if their bytes are.
impl PartialEq for Body {
    fn eq(&self, other: &Self) -> bool {
        self.to_vec() == other.to_vec()
    }
}

impl Eq for Body {}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SharedBytes({} bytes)", self.range.len())
    }
}

impl From<Vec<u8>> for SharedBytes {
    fn from(mut bytes: Vec<u8>) -> Self {
        // Not an `Arc<[u8]>`, into which the bytes would be copied.
        bytes.shrink_to_fit();
        let range = 0..bytes.len();
        SharedBytes { page: Arc::new(SharedPage { bytes, is_withdrawn: AtomicBool::new(false) }), range }
    }
}

impl From<SharedBytes> for Body {
    fn from(bytes: SharedBytes) -> Self {
        Body::Shared { start: Vec::new(), bytes, end: b"" }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Body::Owned(bytes)
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Body::Owned(text.into_bytes())
    }
}

impl From<&str> for Body {
    fn from(text: &str) -> Self {
        Body::Owned(text.as_bytes().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_refers_to_the_same_bytes_and_never_leaves_its_part() {
        let whole = SharedBytes::from(b"0123456789".to_vec());
        let part = whole.slice(2..8);
        assert_eq!((&*part, &*part.slice(1..3), &*part.slice(4..99)), (&b"234567"[..], &b"34"[..], &b"67"[..]));
        assert_eq!((&*part.slice(7..9), &*part.slice(usize::MAX..usize::MAX)), (&b""[..], &b""[..]));
        assert_eq!(whole.references(), 2);
        let body = Body::Shared { start: b"<".to_vec(), bytes: part, end: b">" };
        assert_eq!((&body, body.len(), body.is_empty()), (&Body::from("<234567>"), 8, false));
        assert_eq!((Body::from(whole).allocated(), Body::Omitted.len()), (0, 0));
    }

    #[test]
    fn a_watch_knows_whether_the_bytes_are_kept_and_withdraws_them() {
        let whole = SharedBytes::from(b"0123456789".to_vec());
        let (watch, part) = (whole.watch(), Body::from(whole.slice(2..4)));
        drop(whole);
        assert_eq!((watch.held_bytes(), part.is_withdrawn()), (10, false), "a part keeps all");
        watch.withdraw();
        assert!(part.is_withdrawn() && !Body::from("0").is_withdrawn());
        drop(part);
        assert_eq!(watch.held_bytes(), 0);
        watch.withdraw();
    }
}
