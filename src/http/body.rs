//! The body of a request out of the bytes after its head: by length, or from chunks (RFC 9112 6 and 7.1).
//!
//! Memory is taken as bytes arrive, never for what a length or a chunk size announces.

use super::head::Framing;
use super::scan::{Refused, is_token};

/// Longest chunk-size line with its extensions.
const MAX_CHUNK_LINE: usize = 256;
/// Largest sum of everything that is not data: size lines, extensions and trailers. A body in chunks of one byte
/// costs five bytes each of it and must pass, hence so many for each byte of data besides.
const MAX_OVERHEAD: u64 = 16 * 1024;
const MAX_OVERHEAD_PER_BYTE: u64 = 8;
/// Memory for a body is made ready in steps of at most this beyond what has arrived.
const MAX_STEP: usize = 1 << 20;

/// Takes a body out of its framing.
#[derive(Debug)]
pub(super) struct BodyDecoder {
    framing: Progress,
    sink: Sink,
}

/// Where the bytes of a body go.
#[derive(Debug)]
struct Sink {
    /// Largest body.
    most: usize,
    /// Bytes of the body so far.
    length: usize,
    /// Whether they are wanted.
    keeps: bool,
}

#[derive(Debug)]
enum Progress {
    Length { missing: u64 },
    Chunked(Chunks),
}

#[derive(Debug, Default)]
struct Chunks {
    state: ChunkState,
    /// Size of the current chunk as read so far, then what is missing of it.
    size: u64,
    /// Bytes of the current size or trailer line so far.
    line: usize,
    overhead: u64,
}

/// Which byte is expected next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ChunkState {
    #[default]
    FirstDigit,
    Size,
    /// White space before an extension ("bad" white space, which must be understood).
    BeforeExtension,
    Extension,
    /// Within quotes, where a semicolon means nothing; the flag is set after a backslash.
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
    /// Begins a body of at most `most` bytes; a length beyond it is refused at once. Without `keeps` it is only passed over.
    pub(super) fn new(framing: Framing, most: usize, keeps: bool) -> Result<Self, Refused> {
        let framing = match framing {
            Framing::None => Progress::Length { missing: 0 },
            Framing::Length(length) if length > most as u64 => return Err(too_large()),
            Framing::Length(length) => Progress::Length { missing: length },
            Framing::Chunked => Progress::Chunked(Chunks::default()),
        };
        Ok(BodyDecoder { framing, sink: Sink { most, length: 0, keeps } })
    }

    /// Takes bytes from the front of `input` and appends what is body; the number taken, and whether the body is complete.
    pub(super) fn advance(&mut self, input: &[u8], body: &mut Vec<u8>) -> Result<(usize, bool), Refused> {
        match &mut self.framing {
            Progress::Length { missing } => {
                let taken = usize::try_from(*missing).unwrap_or(usize::MAX).min(input.len());
                self.sink.append(body, &input[..taken], *missing);
                *missing -= taken as u64;
                Ok((taken, *missing == 0))
            }
            Progress::Chunked(chunks) => chunks.advance(input, body, &mut self.sink),
        }
    }

    /// Bytes of the body that are certainly still to come.
    pub(super) fn missing(&self) -> u64 {
        match &self.framing {
            Progress::Length { missing } => *missing,
            Progress::Chunked(chunks) if chunks.state == ChunkState::Data => chunks.size,
            Progress::Chunked(_) => 0,
        }
    }
}

fn too_large() -> Refused {
    Refused::beyond("request_size", 413, "the body is larger than allowed")
}

impl Sink {
    /// Appends without making ready more memory than has arrived and one step, nor more than is missing of what is
    /// `announced`.
    fn append(&mut self, body: &mut Vec<u8>, bytes: &[u8], announced: u64) {
        self.length += bytes.len();
        if !self.keeps {
            return;
        }
        if body.capacity() - body.len() < bytes.len() {
            let announced = usize::try_from(announced).unwrap_or(usize::MAX);
            let step = body.len().clamp(1024, MAX_STEP);
            body.reserve_exact(announced.min(bytes.len() + step).max(bytes.len()));
        }
        body.extend_from_slice(bytes);
    }
}

impl Chunks {
    fn advance(&mut self, input: &[u8], body: &mut Vec<u8>, sink: &mut Sink) -> Result<(usize, bool), Refused> {
        let mut at = 0;
        while let Some(byte) = input.get(at) {
            if self.state == ChunkState::Data {
                let taken = usize::try_from(self.size).unwrap_or(usize::MAX).min(input.len() - at);
                // More chunks may come, up to the most there can be: small ones must not each allocate.
                let room = (sink.most - sink.length) as u64;
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
            if self.overhead > MAX_OVERHEAD + MAX_OVERHEAD_PER_BYTE * sink.length as u64 {
                return Err(Refused::beyond("chunks", 400, "chunk extensions or trailers that are too large"));
            }
            if self.step(*byte, sink.length, sink.most)? {
                return Ok((at, true));
            }
        }
        Ok((at, false))
    }

    /// Takes one byte that is not data; true at the end of the body.
    fn step(&mut self, byte: u8, length: usize, most: usize) -> Result<bool, Refused> {
        use ChunkState::*;
        self.line += 1;
        let in_size_line = matches!(self.state, Size | BeforeExtension | Extension | Quoted(_));
        if in_size_line && self.line > MAX_CHUNK_LINE {
            return Err(Refused::beyond("chunks", 400, "a chunk-size line that is too long"));
        }
        self.state = match (self.state, byte) {
            (FirstDigit | Size, digit) if digit.is_ascii_hexdigit() => {
                if self.state == FirstDigit {
                    (self.size, self.line) = (0, 1);
                }
                let value = char::from(digit).to_digit(16).unwrap_or_default();
                // Checked at each digit, so that the number cannot overflow.
                self.size = self.size * 16 + u64::from(value);
                if self.size > (most - length) as u64 {
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
            _ => return Err(Refused::bad("malformed chunks")),
        };
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Body and bytes left over, or the status of the refusal; `None` while it is incomplete.
    type Outcome = Result<Option<(Vec<u8>, usize)>, u16>;

    fn decode(framing: Framing, most: usize, pieces: &[&[u8]]) -> Outcome {
        let mut decoder = BodyDecoder::new(framing, most, true).map_err(|refused| refused.status)?;
        let mut body = Vec::new();
        let total: usize = pieces.iter().map(|piece| piece.len()).sum();
        let mut used = 0;
        for piece in pieces {
            let (taken, complete) = decoder.advance(piece, &mut body).map_err(|refused| refused.status)?;
            used += taken;
            if complete {
                return Ok(Some((body, total - used)));
            }
            assert_eq!(taken, piece.len(), "an incomplete body takes everything");
        }
        Ok(None)
    }

    #[test]
    fn chunks_are_joined_or_refused() {
        let long_extension = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(300));
        let long_trailers = format!("0\r\n{}\r\n", "X: yyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(1000));
        let small_chunks = format!("{}0\r\n\r\n", "1\r\na\r\n".repeat(10_000));
        let whole = |body: &str| Ok(Some((body.as_bytes().to_vec(), 0)));
        // Section, bytes, outcome.
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
    fn a_length_is_kept_to_and_never_allocated() {
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
    fn a_body_never_takes_more_memory_than_the_largest_and_one_that_is_passed_over_none() {
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
