//! Framing of requests and responses on a connection: length, header, body.
//!
//! The correlation id assigns a response to its request. The buffer of a response grows with the bytes received, never
//! by the length field alone.

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

/// Appends a request with its length; `body` appends the body of the request.
pub fn put_request(buffer: &mut Vec<u8>, header: &RequestHeader, body: impl FnOnce(&mut Vec<u8>)) {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&header.api_key.to_be_bytes());
    buffer.extend_from_slice(&header.version.to_be_bytes());
    buffer.extend_from_slice(&header.correlation_id.to_be_bytes());
    // The client id has a length of 16 bits in flexible headers, too, not a compact length (KIP-482).
    put_string(buffer, false, header.client_id);
    if header.flexible {
        buffer.push(0);
    }
    body(buffer);
    let size = (buffer.len() - start - 4) as i32;
    buffer[start..start + 4].copy_from_slice(&size.to_be_bytes());
}

/// Splits the byte stream of a connection into responses.
#[derive(Debug)]
pub struct FrameReader {
    arrived: Vec<u8>,
    /// Bytes at the front of `arrived` that `next_frame` has returned.
    taken: usize,
    max_frame_bytes: usize,
}

impl FrameReader {
    /// Creates a reader that rejects responses larger than `max_frame_bytes`.
    pub fn new(max_frame_bytes: usize) -> Self {
        FrameReader { arrived: Vec::new(), taken: 0, max_frame_bytes }
    }

    /// Adds bytes received from the connection.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.arrived.drain(..self.taken);
            self.taken = 0;
        }
        self.arrived.extend_from_slice(bytes);
    }

    /// Returns the next complete response with its header and without its length; `None` if more bytes are needed.
    /// After an error the connection must be closed, because the start of the next response is unknown.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, Malformed> {
        let rest = &self.arrived[self.taken..];
        let Some((size, _)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let size =
            usize::try_from(i32::from_be_bytes(*size)).map_err(|_| Malformed("a response with a negative length"))?;
        if size > self.max_frame_bytes {
            // The text "HTTP" of a web server, read as a length, is more than 1 GB.
            return Err(Malformed("a response that is too large, or not from a Kafka broker"));
        }
        let Some(frame) = rest.get(4..4 + size) else { return Ok(None) };
        self.taken += 4 + size;
        Ok(Some(frame))
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
            let mut buffer = b"x".to_vec();
            let header = RequestHeader { api_key: 3, version: 12, correlation_id: 77, client_id: "kproxy", flexible };
            put_request(&mut buffer, &header, |buffer| buffer.extend(b"body"));
            let size = i32::from_be_bytes(buffer[1..5].try_into().unwrap()) as usize;
            assert_eq!(size, buffer.len() - 5);
            let mut rest = &buffer[5..];
            let seen = CrateHeader::decode(&mut rest, if flexible { 2 } else { 1 }).unwrap();
            assert_eq!((seen.request_api_key, seen.request_api_version, seen.correlation_id), (3, 12, 77));
            assert_eq!((seen.client_id.as_deref(), rest), (Some("kproxy"), &b"body"[..]));
        }
    }

    #[test]
    fn data_that_is_not_a_response_is_malformed() {
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
