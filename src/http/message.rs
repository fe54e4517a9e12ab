//! Requests and responses in the form that handlers use.

use std::borrow::Cow;
use std::sync::Arc;

use super::budget::ByteLease;
use super::response_body::Body;

/// The request line and headers of a request.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// Method as sent, for instance `POST`.
    pub method: Cow<'static, str>,
    /// Path as sent (not decoded), beginning with `/`, or `*`.
    pub path: String,
    /// Query string after the `?`, as sent, but with bytes outside ASCII percent-encoded: visible ASCII only.
    pub query: Option<String>,
    /// Header fields in the order of the request.
    pub headers: Headers,
    /// Address and port of the client, for log lines; `None` only in tests of handlers.
    pub peer: Option<Arc<str>>,
}

impl Head {
    /// Returns the heap memory of the head in bytes.
    pub(super) fn allocated(&self) -> usize {
        let method = if let Cow::Owned(method) = &self.method { method.capacity() } else { 0 };
        let query = self.query.as_ref().map_or(0, String::capacity);
        method + self.path.capacity() + query + self.headers.allocated()
    }

    /// Returns the value of the header `name` (in lower case); `None` if the header is absent or repeated.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.only(name)
    }
}

/// Header fields in the order of the request, stored in one allocation.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    /// For each field: the sizes of its name and its value, then both.
    bytes: Vec<u8>,
}

/// Size of one of the two sizes before a field.
const SIZE_BYTES: usize = size_of::<u32>();

impl Headers {
    fn allocated(&self) -> usize {
        self.bytes.capacity()
    }

    /// Creates an empty list with room for `fields` fields, whose names and values have `bytes` bytes in all.
    pub(super) fn with_capacity(fields: usize, bytes: usize) -> Self {
        Headers { bytes: Vec::with_capacity(bytes + fields * 2 * SIZE_BYTES) }
    }

    /// Adds a field; its name is stored in lower case.
    pub fn push(&mut self, name: &str, value: &[u8]) {
        for size in [name.len(), value.len()] {
            let size = u32::try_from(size).expect("HeadLimits::head is far below 4 GiB");
            self.bytes.extend_from_slice(&size.to_ne_bytes());
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes[start..].make_ascii_lowercase();
        self.bytes.extend_from_slice(value);
    }

    /// Iterates over the fields: the name in lower case, and the value without white space around it.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let name = |name| std::str::from_utf8(name).expect("a name was pushed as a string");
        self.fields().map(move |(bytes, value)| (name(bytes), value))
    }

    /// The same with the bytes of the names, which takes less time.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = &self.bytes[..];
        std::iter::from_fn(move || {
            let mut size = || {
                let (size, after) = rest.split_first_chunk::<SIZE_BYTES>()?;
                rest = after;
                Some(u32::from_ne_bytes(*size) as usize)
            };
            let (name_size, value_size) = (size()?, size()?);
            let (name, after) = rest.split_at(name_size);
            let (value, after) = after.split_at(value_size);
            rest = after;
            Some((name, value))
        })
    }

    /// Returns the value of the field `name` (in lower case); `None` if the field is absent or repeated.
    pub fn only(&self, name: &str) -> Option<&[u8]> {
        let mut values = self.fields().filter(|(known, _)| *known == name.as_bytes());
        match (values.next(), values.next()) {
            (Some((_, value)), None) => Some(value),
            _ => None,
        }
    }
}

/// A complete request; one with a truncated body is never passed to a handler.
#[derive(Debug, Default)]
pub struct Request {
    /// Request line and headers.
    pub head: Head,
    /// Body, decoded if it was chunked.
    pub body: Vec<u8>,
    /// Lease for the memory of head and body in the server's budget. Keep the lease as long as the body.
    pub lease: ByteLease,
}

/// A response. It is always sent with a Content-Length, except 204, 304 and [`Body::Omitted`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Value of `Content-Type`; the header is left out if this is empty.
    pub content_type: &'static str,
    /// Further header fields.
    pub headers: Vec<(&'static str, String)>,
    /// Body; not sent in response to a HEAD request.
    pub body: Body,
    /// Whether the connection is closed after the response.
    pub close: bool,
}

impl Response {
    /// Returns the heap memory of the response in bytes.
    pub(super) fn allocated(&self) -> usize {
        self.body.allocated() + self.headers.iter().map(|(_, value)| value.capacity()).sum::<usize>()
    }

    /// Creates a response without further headers, after which the connection may stay open.
    pub fn new(status: u16, content_type: &'static str, body: impl Into<Body>) -> Self {
        Response { status, content_type, headers: Vec::new(), body: body.into(), close: false }
    }

    /// Creates a response of plain text.
    pub fn text(status: u16, body: impl Into<Body>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", body)
    }

    /// Creates a response of JSON; `body` is the encoded JSON.
    pub fn json(status: u16, body: impl Into<Body>) -> Self {
        Self::new(status, "application/json", body)
    }

    /// Returns the same response with one more header.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Returns the same response, but with the connection closed after it.
    #[must_use]
    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_keep_their_order_and_a_repeated_header_is_not_returned() {
        let mut headers = Headers::default();
        for (name, value) in [("Host", "a"), ("X-One", ""), ("x-two", "1"), ("X-TWO", "2")] {
            headers.push(name, value.as_bytes());
        }
        let fields: Vec<_> = headers.iter().collect();
        let expected: [(&str, &[u8]); 4] = [("host", b"a"), ("x-one", b""), ("x-two", b"1"), ("x-two", b"2")];
        assert_eq!(fields, expected);
        assert_eq!(headers.only("host"), Some(&b"a"[..]));
        assert_eq!(headers.only("x-one"), Some(&b""[..]));
        assert_eq!((headers.only("x-two"), headers.only("y")), (None, None));
    }
}
