//! Framing of requests and responses on a connection: length, header, body.
//!
//! The correlation id assigns a response to its request. The buffer of a response grows with the bytes received, never
//! by the length field alone.

use std::io::IoSlice;
use std::ops::Range;

use super::wire::{Malformed, WireReader, put_string};

/// Header of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestHeader<'a> {
    /// API key: the type of the request.
    pub api_key: i16,
    /// Version of request and response.
    pub version: i16,
    /// Number that the broker copies into the response.
    pub correlation_id: i32,
    /// `client.id`: the broker uses it in its log and for quotas.
    pub client_id: &'a str,
    /// Whether the header has tagged fields (request header version 2), as in flexible versions of an API.
    pub flexible: bool,
}

/// A request as it is encoded: bytes, and large data that stays where it is instead of being copied.
#[derive(Debug)]
pub struct RequestBuffer<'a> {
    /// Everything but the large data.
    pub bytes: Vec<u8>,
    /// The large data, each with the number of `bytes` before it.
    large: Vec<(usize, &'a [u8])>,
    /// Data of at least this size is not copied.
    min_large_bytes: usize,
}

impl<'a> RequestBuffer<'a> {
    /// Returns a request that uses the memory of `bytes`. Data of at least `min_large_bytes` will not be copied.
    pub fn new(mut bytes: Vec<u8>, min_large_bytes: usize) -> Self {
        bytes.clear();
        RequestBuffer { bytes, large: Vec::new(), min_large_bytes }
    }

    /// Appends data.
    pub fn put(&mut self, data: &'a [u8]) {
        if data.len() >= self.min_large_bytes {
            self.large.push((self.bytes.len(), data));
        } else {
            self.bytes.extend_from_slice(data);
        }
    }

    /// Returns the size in bytes, large data included.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.large.iter().map(|(_, data)| data.len()).sum::<usize>()
    }

    /// Whether nothing was appended.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the slices whose concatenation is the request; none of them is empty.
    pub fn slices(&self) -> Vec<IoSlice<'_>> {
        let (mut slices, mut start) = (Vec::with_capacity(2 * self.large.len() + 1), 0);
        for (end, data) in &self.large {
            slices.push(IoSlice::new(&self.bytes[start..*end]));
            slices.push(IoSlice::new(data));
            start = *end;
        }
        slices.push(IoSlice::new(&self.bytes[start..]));
        slices.retain(|slice| !slice.is_empty());
        slices
    }
}

/// Encodes a request with its length into an empty buffer; `body` appends the body of the request.
pub fn put_request<'a>(
    request: &mut RequestBuffer<'a>,
    header: &RequestHeader,
    body: impl FnOnce(&mut RequestBuffer<'a>),
) {
    let buffer = &mut request.bytes;
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&header.api_key.to_be_bytes());
    buffer.extend_from_slice(&header.version.to_be_bytes());
    buffer.extend_from_slice(&header.correlation_id.to_be_bytes());
    // The client id has a length of 16 bits in flexible headers, too, not a compact length (KIP-482).
    put_string(buffer, false, header.client_id);
    if header.flexible {
        buffer.push(0);
    }
    body(request);
    let size = (request.len() - 4) as i32;
    request.bytes[..4].copy_from_slice(&size.to_be_bytes());
}

/// Size of the buffer of a connection without large responses, and the least space for a read.
const MIN_BUFFER_BYTES: usize = 64 * 1024;
/// A large buffer is released after this number of responses that needed less than a quarter of it.
const MAX_SMALL_FRAMES: u32 = 100;
/// A buffer larger than this is released with its response.
const MAX_KEPT_BYTES: usize = 16 << 20;

/// Splits the byte stream of a connection into responses. Bytes are read into its buffer and responses are slices of
/// the buffer, so a response is copied only if it begins in the middle of the buffer and does not end there.
#[derive(Debug)]
pub struct FrameReader {
    /// Initialized memory; `arrived` are the bytes in it that have been received and not returned.
    buffer: Vec<u8>,
    arrived: Range<usize>,
    max_frame_bytes: usize,
    small_frames: u32,
}

impl FrameReader {
    /// Creates a reader that rejects responses larger than `max_frame_bytes`.
    pub fn new(max_frame_bytes: usize) -> Self {
        FrameReader { buffer: Vec::new(), arrived: 0..0, max_frame_bytes, small_frames: 0 }
    }

    /// Returns space for bytes from the connection, at least 16 KiB. Call [`received`](Self::received) afterwards.
    pub fn space(&mut self) -> &mut [u8] {
        if self.arrived.is_empty() {
            self.arrived = 0..0;
            if self.small_frames > MAX_SMALL_FRAMES {
                self.small_frames = 0;
                self.buffer = Vec::new();
            }
        } else if self.arrived.start > 0 {
            self.buffer.copy_within(self.arrived.clone(), 0);
            self.arrived = 0..self.arrived.len();
        }
        if self.buffer.len() - self.arrived.end < MIN_BUFFER_BYTES / 4 {
            // At most twice the bytes received, whatever the length of the response is said to be; and no more than the
            // response needs.
            let needed = self.announced_bytes().unwrap_or(0).saturating_add(MIN_BUFFER_BYTES / 4);
            let size = (2 * self.arrived.len()).min(needed).max(self.arrived.len() + MIN_BUFFER_BYTES / 4);
            let size = size.max(MIN_BUFFER_BYTES);
            self.buffer.reserve_exact(size - self.buffer.len());
            self.buffer.resize(size, 0);
        }
        &mut self.buffer[self.arrived.end..]
    }

    /// Returns the size of the response that has begun to arrive, with its length.
    fn announced_bytes(&self) -> Option<usize> {
        let (prefix, _) = self.buffer[self.arrived.clone()].split_first_chunk::<4>()?;
        usize::try_from(i32::from_be_bytes(*prefix)).ok()?.checked_add(4)
    }

    /// Returns the size of the response that has begun to arrive, if it is too large.
    pub fn oversize_bytes(&self) -> Option<usize> {
        self.announced_bytes().map(|size| size - 4).filter(|size| self.max_frame_bytes < *size)
    }

    /// Releases the buffer if it is large and holds no bytes: nothing may arrive for long.
    pub fn release_large(&mut self) {
        if self.arrived.is_empty() && self.buffer.len() > MAX_KEPT_BYTES {
            (self.buffer, self.arrived) = (Vec::new(), 0..0);
        }
    }

    /// Adds the first `count` bytes of [`space`](Self::space), which have been received.
    pub fn received(&mut self, count: usize) {
        self.arrived.end = (self.arrived.end + count).min(self.buffer.len());
    }

    /// Adds bytes that were received elsewhere.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let space = self.space();
            let count = bytes.len().min(space.len());
            space[..count].copy_from_slice(&bytes[..count]);
            self.received(count);
            bytes = &bytes[count..];
        }
    }

    /// Whether there are bytes that [`next_frame`](Self::next_frame) has not returned.
    pub fn has_bytes(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// Returns the next complete response with its header and without its length; `None` if more bytes are needed.
    /// After an error the connection must be closed, because the start of the next response is unknown.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, Malformed> {
        let rest = &self.buffer[self.arrived.clone()];
        let Some((prefix, _)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let size = usize::try_from(i32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
        if size > self.max_frame_bytes {
            return Err(Malformed(not_a_response(*prefix)));
        }
        if rest.len() < 4 + size {
            return Ok(None);
        }
        let start = self.arrived.start + 4;
        self.arrived.start = start + size;
        let is_small = self.buffer.len() > MIN_BUFFER_BYTES && size < self.buffer.len() / 4;
        self.small_frames = if is_small { self.small_frames + 1 } else { 0 };
        Ok(Some(&self.buffer[start..start + size]))
    }
}

/// Explains the first four bytes of something that cannot be a response.
fn not_a_response(prefix: [u8; 4]) -> &'static str {
    match prefix {
        // Content type, then major version of a TLS record.
        [0x15, 3, ..] => "a TLS alert: the listener expects TLS (security.protocol ssl or sasl_ssl)",
        [b'H', b'T', b'T', b'P'] => "HTTP: the peer is a web server, not a Kafka broker",
        [0x80..=0xff, ..] => "a negative length, so the peer is not a Kafka broker",
        _ => "a response larger than the maximum (receive.message.max.bytes), or the peer is not a Kafka broker",
    }
}

/// Returns correlation id and body of a response. `flexible`: the header has tagged fields (response header version 1).
pub fn split_response(frame: &[u8], flexible: bool) -> Result<(i32, &[u8]), Malformed> {
    let mut reader = WireReader::new(frame);
    let correlation_id = reader.i32()?;
    if flexible {
        reader.tagged_fields(|_, _| Ok(()))?;
    }
    Ok((correlation_id, reader.rest()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::messages::RequestHeader as CrateHeader;
    use kafka_protocol::protocol::Decodable;
    use proptest::prelude::*;

    #[test]
    fn kafka_protocol_decodes_the_header() {
        for flexible in [false, true] {
            let mut request = RequestBuffer::new(b"earlier".to_vec(), usize::MAX);
            let header = RequestHeader { api_key: 3, version: 12, correlation_id: 77, client_id: "kproxy", flexible };
            put_request(&mut request, &header, |request| request.put(b"body"));
            let size = i32::from_be_bytes(request.bytes[..4].try_into().unwrap()) as usize;
            assert_eq!(size, request.bytes.len() - 4);
            let mut rest = &request.bytes[4..];
            let seen = CrateHeader::decode(&mut rest, if flexible { 2 } else { 1 }).unwrap();
            assert_eq!((seen.request_api_key, seen.request_api_version, seen.correlation_id), (3, 12, 77));
            assert_eq!((seen.client_id.as_deref(), rest), (Some("kproxy"), &b"body"[..]));
        }
    }

    #[test]
    fn large_data_is_not_copied_and_stands_where_it_was_appended() {
        let header = RequestHeader { api_key: 0, version: 9, correlation_id: 1, client_id: "kproxy", flexible: true };
        let appended: [&[u8]; 6] = [b"large one", b"a", b"", b"b", b"large two", b"large three"];
        let encoded = |min_large_bytes| {
            let mut request = RequestBuffer::new(Vec::new(), min_large_bytes);
            put_request(&mut request, &header, |request| appended.iter().for_each(|data| request.put(data)));
            let slices = request.slices();
            let is_own = |slice: &&IoSlice<'_>| appended.iter().any(|data| data.as_ptr() == slice.as_ptr());
            let large_count = slices.iter().filter(is_own).count();
            (slices.iter().flat_map(|slice| slice.to_vec()).collect::<Vec<u8>>(), slices.len(), large_count)
        };
        let (copied, one, none) = encoded(usize::MAX);
        assert_eq!((one, none), (1, 0));
        assert_eq!(copied.len(), 4 + i32::from_be_bytes(copied[..4].try_into().unwrap()) as usize);
        assert!(copied.ends_with(&appended.concat()));
        // The header, one, `ab`, two, three.
        assert_eq!(encoded(9), (copied, 5, 3));
    }

    #[test]
    fn memory_grows_with_the_bytes_received_and_is_released() {
        let mut reader = FrameReader::new(1 << 30);
        reader.push(&(1_i32 << 30).to_be_bytes());
        assert_eq!(reader.buffer.len(), MIN_BUFFER_BYTES);
        let mut reader = FrameReader::new(1 << 30);
        let size = 10 << 20;
        reader.push(&(size as i32).to_be_bytes());
        reader.push(&vec![1; size]);
        assert!(reader.buffer.capacity() <= size + MIN_BUFFER_BYTES);
        assert_eq!(reader.next_frame().unwrap().map(<[u8]>::len), Some(size));
        reader.release_large();
        assert!(reader.buffer.len() >= size, "a buffer of usual size is kept for the next response");
        for _ in 0..=MAX_SMALL_FRAMES + 1 {
            reader.push(&[0, 0, 0, 1, 7]);
            assert_eq!(reader.next_frame(), Ok(Some(&[7][..])));
        }
        reader.space();
        assert_eq!(reader.buffer.len(), MIN_BUFFER_BYTES);
        let size = MAX_KEPT_BYTES + 1;
        reader.push(&(size as i32).to_be_bytes());
        reader.push(&vec![1; size]);
        reader.push(&[0, 0]);
        assert_eq!(reader.next_frame().unwrap().map(<[u8]>::len), Some(size));
        reader.release_large();
        assert!(reader.buffer.len() >= size, "the next response has begun to arrive");
        reader.push(&[0, 1, 7]);
        assert_eq!(reader.next_frame(), Ok(Some(&[7][..])));
        reader.release_large();
        assert_eq!(reader.buffer.capacity(), 0);
    }

    #[test]
    fn data_that_is_not_a_response_is_malformed() {
        for (bytes, text) in [
            (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "web server"),
            (&[0x15, 3, 3, 0, 2, 2, 80], "a TLS alert"),
            (&[0xff; 4], "negative"),
            (&[0x7f, 0xff, 0xff, 0xff], "larger than the maximum"),
        ] {
            let mut reader = FrameReader::new(1 << 20);
            reader.push(bytes);
            let error = reader.next_frame().unwrap_err();
            assert!(error.0.contains(text), "{error}");
        }
        assert!(split_response(&[0, 0, 0], false).is_err());
        assert_eq!(split_response(&[0, 0, 0, 9, 1, 5, 1, 0xff, b'x'], true), Ok((9, &b"x"[..])));
        assert_eq!(split_response(&[0, 0, 0, 9, b'x'], false), Ok((9, &b"x"[..])));
    }

    proptest! {
        #[test]
        fn frames_are_complete_for_every_size_of_received_pieces(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..6),
            step in 1..30_usize,
        ) {
            let bytes: Vec<u8> =
                frames.iter().flat_map(|frame| [&(frame.len() as i32).to_be_bytes()[..], frame].concat()).collect();
            let mut reader = FrameReader::new(50);
            let mut seen = Vec::new();
            for piece in bytes.chunks(step) {
                reader.push(piece);
                while let Some(frame) = reader.next_frame().unwrap() {
                    seen.push(frame.to_vec());
                }
            }
            prop_assert_eq!(seen, frames);
        }
    }
}
