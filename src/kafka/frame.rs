//! Requests and responses on a connection: a length, a header, a body.
//!
//! A response is matched to its request by the correlation id. Its length is never allocated because it is announced: the
//! buffer grows with the bytes that arrive.

use super::wire::{Malformed, WireReader, put_string};

/// What a request is, besides its body.
#[derive(Clone, Copy, Debug)]
pub struct RequestHeader<'a> {
    /// API key.
    pub api_key: i16,
    /// Version of request and response.
    pub version: i16,
    /// Comes back in the response.
    pub correlation_id: i32,
    /// `client.id`, for the broker's log and quotas.
    pub client_id: &'a str,
    /// Whether the header has tagged fields (request header version 2), which the flexible versions of an API have.
    pub flexible: bool,
}

/// Appends a whole request; `body` appends what follows the header.
pub fn put_request(buffer: &mut Vec<u8>, header: &RequestHeader, body: impl FnOnce(&mut Vec<u8>)) {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&header.api_key.to_be_bytes());
    buffer.extend_from_slice(&header.version.to_be_bytes());
    buffer.extend_from_slice(&header.correlation_id.to_be_bytes());
    // The client id is no compact string, not even in flexible headers (KIP-482).
    put_string(buffer, false, header.client_id);
    if header.flexible {
        buffer.push(0);
    }
    body(buffer);
    let size = (buffer.len() - start - 4) as i32;
    buffer[start..start + 4].copy_from_slice(&size.to_be_bytes());
}

/// Takes responses out of the bytes of a connection.
#[derive(Debug)]
pub struct FrameReader {
    arrived: Vec<u8>,
    /// Bytes at the front that were taken already.
    taken: usize,
    max_frame_bytes: usize,
}

impl FrameReader {
    /// Refuses frames larger than `max_frame_bytes`.
    pub fn new(max_frame_bytes: usize) -> Self {
        FrameReader { arrived: Vec::new(), taken: 0, max_frame_bytes }
    }

    /// Adds bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.arrived.drain(..self.taken);
            self.taken = 0;
        }
        self.arrived.extend_from_slice(bytes);
    }

    /// The next whole response, header included and length left out; `None` while more bytes are needed. After an error
    /// nothing of the connection can be understood any more.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, Malformed> {
        let rest = &self.arrived[self.taken..];
        let Some((size, _)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let size =
            usize::try_from(i32::from_be_bytes(*size)).map_err(|_| Malformed("a response of negative length"))?;
        if size > self.max_frame_bytes {
            // "HTTP" and the like are a length of a gigabyte, too.
            return Err(Malformed("a response that is too large, or not of Kafka"));
        }
        let Some(frame) = rest.get(4..4 + size) else { return Ok(None) };
        self.taken += 4 + size;
        Ok(Some(frame))
    }
}

/// Splits a response into correlation id and body. `flexible`: the header has tagged fields (response header version 1).
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
    use kafka_protocol::messages::RequestHeader as Theirs;
    use kafka_protocol::protocol::Decodable;
    use proptest::prelude::*;

    #[test]
    fn another_implementation_reads_the_header() {
        for flexible in [false, true] {
            let mut buffer = b"x".to_vec();
            let header = RequestHeader { api_key: 3, version: 12, correlation_id: 77, client_id: "kproxy", flexible };
            put_request(&mut buffer, &header, |buffer| buffer.extend(b"body"));
            let size = i32::from_be_bytes(buffer[1..5].try_into().unwrap()) as usize;
            assert_eq!(size, buffer.len() - 5);
            let mut rest = &buffer[5..];
            let seen = Theirs::decode(&mut rest, if flexible { 2 } else { 1 }).unwrap();
            assert_eq!((seen.request_api_key, seen.request_api_version, seen.correlation_id), (3, 12, 77));
            assert_eq!((seen.client_id.as_deref(), rest), (Some("kproxy"), &b"body"[..]));
        }
    }

    #[test]
    fn what_is_no_response_is_refused() {
        let mut reader = FrameReader::new(1 << 20);
        reader.push(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        assert!(reader.next_frame().is_err());
        let mut reader = FrameReader::new(1 << 20);
        reader.push(&[0xff; 4]);
        assert!(reader.next_frame().is_err());
        assert!(split_response(&[0, 0, 0], false).is_err());
        assert_eq!(split_response(&[0, 0, 0, 9, 1, 5, 1, 0xff, b'x'], true), Ok((9, &b"x"[..])));
        assert_eq!(split_response(&[0, 0, 0, 9, b'x'], false), Ok((9, &b"x"[..])));
    }

    proptest! {
        #[test]
        fn frames_come_out_whole_however_they_arrive(
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
