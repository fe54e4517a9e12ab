//! Decodes the body of a request from the bytes after its head: by length, or from chunks (RFC 9112 6 and 7.1).
//!
//! Memory is allocated as bytes arrive, never for the number of bytes that a Content-Length or a chunk size announces.

use super::head::Framing;
use super::refusal::Refusal;
use super::scan::is_token;

/// Longest chunk size line in bytes, extensions included.
const MAX_CHUNK_LINE_BYTES: usize = 256;
/// Limit on the bytes of a chunked body that are not data: size lines, extensions, line ends and trailers. A body in
/// chunks of one byte is valid and has five such bytes for each byte of data. So the limit grows with the data, by
/// `MAX_OVERHEAD_PER_BYTE`.
const MAX_OVERHEAD_BYTES: u64 = 16 * 1024;
const MAX_OVERHEAD_PER_BYTE: u64 = 8;
/// Limit on the memory that one allocation reserves beyond the bytes of a body that have arrived.
const MAX_STEP_BYTES: usize = 1 << 20;

/// Decodes the body of one request.
#[derive(Debug)]
pub(super) struct BodyDecoder {
    state: DecoderState,
    sink: BodySink,
}

/// Collects or discards the decoded bytes of a body.
#[derive(Debug)]
struct BodySink {
    /// Largest body in bytes.
    max: usize,
    /// Decoded bytes so far.
    length: usize,
    /// Whether the bytes are collected; false discards them.
    keeps: bool,
}

#[derive(Debug)]
enum DecoderState {
    Length { missing: u64 },
    Chunked(ChunkDecoder),
}

#[derive(Debug, Default)]
struct ChunkDecoder {
    state: ChunkState,
    /// While the size line is read: the value of its digits so far. After the size line: the bytes of the chunk that
    /// have not arrived.
    size: u64,
    /// Bytes of the current size or trailer line so far.
    line: usize,
    /// Bytes so far that are not data.
    overhead: u64,
}

/// The part of a chunked body to which the next byte belongs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ChunkState {
    #[default]
    FirstDigit,
    Size,
    /// White space before an extension. RFC 9110 5.6.3 calls it "bad" white space, but a recipient must accept it.
    BeforeExtension,
    Extension,
    /// In a quoted string, in which a semicolon does not start an extension. The flag is true after a backslash.
    Quoted(bool),
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
}

impl BodyDecoder {
    /// Creates a decoder for a body of at most `max` bytes; refuses a larger Content-Length at once. Without `keeps`
    /// the body is discarded.
    pub(super) fn new(framing: Framing, max: usize, keeps: bool) -> Result<Self, Refusal> {
        let state = match framing {
            Framing::None => DecoderState::Length { missing: 0 },
            Framing::Length(length) if length > max as u64 => return Err(too_large()),
            Framing::Length(length) => DecoderState::Length { missing: length },
            Framing::Chunked => DecoderState::Chunked(ChunkDecoder::default()),
        };
        Ok(BodyDecoder { state, sink: BodySink { max, length: 0, keeps } })
    }

    /// Decodes bytes from the front of `input` into `body`. Returns the number of bytes taken from `input`, and whether
    /// the body is complete.
    pub(super) fn advance(&mut self, input: &[u8], body: &mut Vec<u8>) -> Result<(usize, bool), Refusal> {
        match &mut self.state {
            DecoderState::Length { missing } => {
                let taken = usize::try_from(*missing).unwrap_or(usize::MAX).min(input.len());
                self.sink.append(body, &input[..taken], *missing);
                *missing -= taken as u64;
                Ok((taken, *missing == 0))
            }
            DecoderState::Chunked(chunks) => chunks.advance(input, body, &mut self.sink),
        }
    }

    /// Returns a lower bound of the body bytes that have not arrived.
    pub(super) fn missing(&self) -> u64 {
        match &self.state {
            DecoderState::Length { missing } => *missing,
            DecoderState::Chunked(chunks) if chunks.state == ChunkState::Data => chunks.size,
            DecoderState::Chunked(_) => 0,
        }
    }
}

fn too_large() -> Refusal {
    Refusal::over_limit("request_size", 413, "the body is larger than allowed")
}

impl BodySink {
    /// Appends `bytes` to `body`. Allocates at most [`MAX_STEP_BYTES`] beyond `bytes`, and at most `announced` bytes.
    fn append(&mut self, body: &mut Vec<u8>, bytes: &[u8], announced: u64) {
        self.length += bytes.len();
        if !self.keeps {
            return;
        }
        if body.capacity() - body.len() < bytes.len() {
            let announced = usize::try_from(announced).unwrap_or(usize::MAX);
            let step = body.len().clamp(1024, MAX_STEP_BYTES);
            body.reserve_exact(announced.min(bytes.len() + step).max(bytes.len()));
        }
        body.extend_from_slice(bytes);
    }
}

impl ChunkDecoder {
    fn advance(&mut self, input: &[u8], body: &mut Vec<u8>, sink: &mut BodySink) -> Result<(usize, bool), Refusal> {
        let mut at = 0;
        while let Some(byte) = input.get(at) {
            if self.state == ChunkState::Data {
                let taken = usize::try_from(self.size).unwrap_or(usize::MAX).min(input.len() - at);
                // Further chunks may arrive, up to the largest body. Room for those avoids an allocation for each small
                // chunk.
                let room = (sink.max - sink.length) as u64;
                sink.append(body, &input[at..at + taken], room);
                self.size -= taken as u64;
                at += taken;
                if self.size == 0 {
                    self.state = ChunkState::DataCr;
                }
                continue;
            }
            at += 1;
            self.overhead += 1;
            if self.overhead > MAX_OVERHEAD_BYTES + MAX_OVERHEAD_PER_BYTE * sink.length as u64 {
                return Err(Refusal::over_limit("chunks", 400, "chunk extensions or trailers are too large"));
            }
            if self.step(*byte, sink.length, sink.max)? {
                return Ok((at, true));
            }
        }
        Ok((at, false))
    }

    /// Decodes one byte that is not data; returns true at the end of the body.
    fn step(&mut self, byte: u8, length: usize, max: usize) -> Result<bool, Refusal> {
        use ChunkState::*;
        self.line += 1;
        let in_size_line = matches!(self.state, Size | BeforeExtension | Extension | Quoted(_));
        if in_size_line && self.line > MAX_CHUNK_LINE_BYTES {
            return Err(Refusal::over_limit("chunks", 400, "chunk size line is too long"));
        }
        self.state = match (self.state, byte) {
            (FirstDigit | Size, digit) if digit.is_ascii_hexdigit() => {
                if self.state == FirstDigit {
                    (self.size, self.line) = (0, 1);
                }
                let value = char::from(digit).to_digit(16).unwrap_or_default();
                // The limit is checked at each digit, so that the number cannot overflow.
                self.size = self.size * 16 + u64::from(value);
                if self.size > (max - length) as u64 {
                    return Err(too_large());
                }
                Size
            }
            (Size | BeforeExtension | Extension, b'\r') => SizeLf,
            (Size | BeforeExtension, b' ' | b'\t') => BeforeExtension,
            (Size | BeforeExtension | Extension, b';') => Extension,
            (Extension, b'"') | (Quoted(true), b'\t' | b' '..=b'~' | 0x80..) => Quoted(false),
            (Extension, b'=' | b' ' | b'\t') => Extension,
            (Extension, byte) if is_token(byte) => Extension,
            (Quoted(false), b'"') => Extension,
            (Quoted(false), b'\\') => Quoted(true),
            (Quoted(false), b'\t' | b' '..=b'~' | 0x80..) => Quoted(false),
            (SizeLf, b'\n') if self.size == 0 => TrailerStart,
            (SizeLf, b'\n') => Data,
            (DataCr, b'\r') => DataLf,
            (DataLf, b'\n') => FirstDigit,
            (TrailerStart, b'\r') => EndLf,
            (TrailerStart | TrailerName, byte) if is_token(byte) => TrailerName,
            (TrailerName, b':') => TrailerValue,
            (TrailerValue, b'\t' | b' '..=b'~' | 0x80..) => TrailerValue,
            (TrailerValue, b'\r') => TrailerLf,
            (TrailerLf, b'\n') => TrailerStart,
            (EndLf, b'\n') => return Ok(true),
            _ => return Err(Refusal::bad_request("malformed chunked body")),
        };
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body and the number of bytes after it, or the status of the refusal; `None` for an incomplete body.
    type Outcome = Result<Option<(Vec<u8>, usize)>, u16>;

    fn decode(framing: Framing, max: usize, pieces: &[&[u8]]) -> Outcome {
        let mut decoder = BodyDecoder::new(framing, max, true).map_err(|refusal| refusal.status)?;
        let mut body = Vec::new();
        let total: usize = pieces.iter().map(|piece| piece.len()).sum();
        let mut used = 0;
        for piece in pieces {
            let (taken, complete) = decoder.advance(piece, &mut body).map_err(|refusal| refusal.status)?;
            used += taken;
            if complete {
                return Ok(Some((body, total - used)));
            }
            assert_eq!(taken, piece.len(), "an incomplete body takes the whole piece");
        }
        Ok(None)
    }

    #[test]
    fn chunks_are_joined_or_refused() {
        let long_extension = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(300));
        let long_trailers = format!("0\r\n{}\r\n", "X: yyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(1000));
        let small_chunks = format!("{}0\r\n\r\n", "1\r\na\r\n".repeat(10_000));
        let whole = |body: &str| Ok(Some((body.as_bytes().to_vec(), 0)));
        // Section of RFC 9112, bytes, outcome.
        let rows: &[(&str, &str, Outcome)] = &[
            ("7.1", "0\r\n\r\n", whole("")),
            ("7.1", "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", whole("abcde")),
            ("7.1", "0003\r\nabc\r\n000\r\n\r\n", whole("abc")),
            ("7.1", "A\r\n0123456789\r\n0\r\n\r\nGET", Ok(Some((b"0123456789".to_vec(), 3)))),
            ("7.1.1", "3;a\r\nabc\r\n0;b=c\r\n\r\n", whole("abc")),
            ("7.1.1", "3 ; a=\"x\\\";\" ;b\r\nabc\r\n0\r\n\r\n", whole("abc")),
            ("7.1.1", "3  \r\nabc\r\n0\r\n\r\n", whole("abc")),
            ("7.1.2", "3\r\nabc\r\n0\r\nX: y\r\nZ:\r\n\r\n", whole("abc")),
            ("7.1", &small_chunks, whole(&"a".repeat(10_000))),
            ("7.1", "3\r\nab", Ok(None)),
            ("7.1", "3\r\nabc\r\n", Ok(None)),
            ("7.1", "3\r\nabc\r\n0\r\n", Ok(None)),
            ("7.1", "g\r\n", Err(400)),
            ("7.1", "\r\n", Err(400)),
            ("7.1", "-3\r\nabc\r\n", Err(400)),
            ("7.1", "+3\r\nabc\r\n", Err(400)),
            ("7.1", "0x3\r\nabc\r\n", Err(400)),
            ("7.1", " 3\r\nabc\r\n", Err(400)),
            ("7.1", "3\nabc\r\n", Err(400)),
            ("7.1", "3\rabc\r\n", Err(400)),
            ("7.1", "3\r\nabcd\r\n", Err(400)),
            ("7.1", "3\r\nabc\n0\r\n\r\n", Err(400)),
            ("7.1.1", "3;\u{1}\r\nabc\r\n", Err(400)),
            ("7.1.1", "3;a\nabc\r\n", Err(400)),
            ("7.1.1", "3 3\r\nabc\r\n", Err(400)),
            ("7.1.1", &long_extension, Err(400)),
            ("7.1.2", &long_trailers, Err(400)),
            ("7.1.2", "0\r\n X: y\r\n\r\n", Err(400)),
            ("7.1.2", "0\r\nX : y\r\n\r\n", Err(400)),
            ("7.1.2", "0\r\nX: y\n\r\n", Err(400)),
            ("7.1", "100001\r\n", Err(413)),
            ("7.1", "ffffffffffffffffff\r\n", Err(413)),
        ];
        for (section, bytes, expected) in rows {
            let outcome = decode(Framing::Chunked, 1 << 20, &[bytes.as_bytes()]);
            assert_eq!(outcome, *expected, "RFC 9112 {section}: {bytes:.60?}");
        }
    }

    #[test]
    fn a_body_is_read_to_its_length_without_allocating_the_length_in_advance() {
        assert_eq!(decode(Framing::Length(5), 5, &[b"ab", b"cdeGET"]), Ok(Some((b"abcde".to_vec(), 3))));
        assert_eq!(decode(Framing::Length(5), 5, &[b"abcd"]), Ok(None));
        assert_eq!(decode(Framing::Length(6), 5, &[]), Err(413));
        assert_eq!(decode(Framing::Length(u64::MAX), usize::MAX - 1, &[]), Err(413));
        assert_eq!(decode(Framing::None, 5, &[b"GET"]), Ok(Some((Vec::new(), 3))));

        for framing in [Framing::Length(1 << 40), Framing::Chunked] {
            let mut decoder = BodyDecoder::new(framing, 1 << 41, true).unwrap();
            let mut body = Vec::new();
            let announced: &[u8] = if framing == Framing::Chunked { b"10000000000\r\nabc" } else { b"abc" };
            decoder.advance(announced, &mut body).unwrap();
            assert_eq!(body, b"abc");
            assert!(body.capacity() < 64 * 1024, "{framing:?}: {}", body.capacity());
            assert_eq!(decoder.missing(), (1 << 40) - 3);
        }
    }

    #[test]
    fn a_body_takes_at_most_the_maximum_memory_and_a_discarded_body_none() {
        let one_chunk = format!("7d0\r\n{}\r\n0\r\n\r\n", "a".repeat(2000));
        let many_chunks = format!("{}0\r\n\r\n", "a\r\nbbbbbbbbbb\r\n".repeat(200));
        let rows =
            [(Framing::Length(2000), "a".repeat(2000)), (Framing::Chunked, one_chunk), (Framing::Chunked, many_chunks)];
        for (framing, bytes) in rows {
            for keeps in [true, false] {
                let mut decoder = BodyDecoder::new(framing, 2000, keeps).unwrap();
                let mut body = Vec::new();
                let mut is_complete = false;
                for piece in bytes.as_bytes().chunks(300) {
                    is_complete = decoder.advance(piece, &mut body).unwrap().1;
                    assert!(body.capacity() <= 2000, "{framing:?}: {}", body.capacity());
                }
                assert!(is_complete);
                assert_eq!((body.len(), body.capacity() > 0), if keeps { (2000, true) } else { (0, false) });
            }
        }
        let mut decoder = BodyDecoder::new(Framing::Chunked, 5, false).unwrap();
        assert_eq!(decoder.advance(b"3\r\nabc\r\n3\r\n", &mut Vec::new()).unwrap_err().status, 413);
    }
}
