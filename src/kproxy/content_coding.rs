//! The coding of a request's body (`Content-Encoding`, RFC 9110 8.4), and its decoding within bounds.
//!
//! Pure functions. Bounds: the decoded body has at most the bytes that its caller allows, and each growth of its buffer
//! is leased first. The time is linear in the input and the output, because a body has at most [`MAX_PARTS`] gzip
//! members or zstd frames: starting one takes much longer than decoding a byte.

use std::io::{self, ErrorKind, Read};

use flate2::bufread::GzDecoder;
use flate2::{Decompress, FlushDecompress, Status};
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::answer::Failure;
use crate::http::{ByteLease, Headers};

const CONTENT_ENCODING: &str = "content-encoding";
/// Largest number of gzip members or zstd frames of a body. Programs that append to a compressed file write several.
const MAX_PARTS: usize = 10_000;
/// Bytes that are decoded before the bounds are checked again.
const CHUNK_BYTES: usize = 64 * 1024;
/// First two bytes of a gzip member (RFC 1952 2.3.1).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// Largest window of a zstd frame, which the decoder keeps in memory: the limit of the content coding (RFC 9659 3).
const MAX_ZSTD_WINDOW_BYTES: u64 = 8 << 20;

/// What happens with the body of a `/commit` that has a content coding: `content_encoding` in the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CommitCoding {
    /// `keep`: the message is the body as it is, and the coding becomes a record header.
    #[default]
    Keep,
    /// `decode`: the message is the decoded body.
    Decode,
    /// `refuse`: the request is answered with 415.
    Refuse,
}

/// A content coding that kproxy can decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// `gzip`, or by its old name `x-gzip`.
    Gzip,
    /// `deflate`: the zlib format, or raw DEFLATE data, which some clients send by mistake.
    Deflate,
    /// `zstd`.
    Zstd,
}

/// The bound of a decoded body.
#[derive(Clone, Copy)]
pub(super) struct DecodedLimit {
    pub(super) max_bytes: usize,
    /// The key of the configuration with this bound.
    pub(super) setting: &'static str,
}

/// Returns the codings of a request's body in the order in which they were applied, without `identity`.
fn codings(fields: &Headers) -> impl Iterator<Item = &[u8]> {
    let values = fields.fields().filter(|(name, _)| *name == CONTENT_ENCODING.as_bytes()).map(|(_, value)| value);
    let codings = values.flat_map(|value| value.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii);
    codings.filter(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"))
}

/// Returns the value of the record header for a body that is stored with its codings; `None` if it has none.
pub(super) fn record_header_value(fields: &Headers) -> Option<Vec<u8>> {
    let codings: Vec<_> = codings(fields).collect();
    (!codings.is_empty()).then(|| codings.join(&b", "[..]))
}

/// Grows the lease of a request to `bytes`, which `what` needs. Fails with 413 if it exceeds the whole budget, so that
/// the request could never succeed; with 503 if the memory is in use by other requests.
pub(super) fn lease_memory(lease: &mut ByteLease, bytes: usize, what: &str) -> Result<(), Failure> {
    if lease.grow_to(bytes) {
        return Ok(());
    }
    let max = lease.max();
    Err(if bytes > max {
        Failure::too_large(format!("{what} needs {bytes} bytes of memory, max_in_flight_bytes is {max}"))
    } else {
        Failure::overloaded(format!("max_in_flight_bytes is reached: no memory for {what}"))
    })
}

/// Fails with 415 if the body has any coding.
pub(super) fn refuse_any(fields: &Headers) -> Result<(), Failure> {
    match codings(fields).next() {
        None => Ok(()),
        Some(_) => {
            let message = "a body with Content-Encoding is refused (content_encoding: refuse): send it as it is";
            Err(Failure::unsupported_coding(message, "identity"))
        }
    }
}

impl Coding {
    /// Returns the coding of a request's body; `None` if it has none, and 415 if it cannot be decoded.
    pub(super) fn of(fields: &Headers) -> Result<Option<Coding>, Failure> {
        let mut codings = codings(fields);
        let Some(name) = codings.next() else { return Ok(None) };
        let unsupported = |what: &str| {
            let message = format!("{what}: one of gzip, deflate, zstd and identity is supported");
            Err(Failure::unsupported_coding(message, "gzip, deflate, zstd"))
        };
        if codings.next().is_some() {
            return unsupported("several codings in Content-Encoding");
        }
        let known: [(&[u8], Coding); 4] = [
            (b"gzip", Coding::Gzip),
            (b"x-gzip", Coding::Gzip),
            (b"deflate", Coding::Deflate),
            (b"zstd", Coding::Zstd),
        ];
        match known.iter().find(|(known, _)| name.eq_ignore_ascii_case(known)) {
            Some((_, coding)) => Ok(Some(*coding)),
            None => unsupported("unsupported Content-Encoding"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Deflate => "deflate",
            Coding::Zstd => "zstd",
        }
    }

    /// Decodes a whole body. `lease` grows by the memory of the result. Fails with 413 above the limit, with 503 if the
    /// lease cannot grow, and with 400 for a body that is truncated or corrupt. An empty body stays empty: nothing was
    /// encoded.
    pub(super) fn decode(self, body: &[u8], limit: DecodedLimit, lease: &mut ByteLease) -> Result<Vec<u8>, Failure> {
        if body.is_empty() {
            return Ok(Vec::new());
        }
        let mut input = body;
        let mut output = Output { plain: Vec::new(), limit, base_bytes: lease.bytes(), lease };
        let decoded = match self {
            Coding::Gzip => gzip_members(&mut input, &mut output),
            Coding::Deflate => deflate_stream(&mut input, &mut output),
            Coding::Zstd => zstd_frames(&mut input, &mut output),
        };
        decoded.map(|()| output.plain).map_err(|problem| match problem {
            DecodeError::Refused(failure) => failure,
            DecodeError::Input(problem) => {
                let (at, of) = (body.len() - input.len(), body.len());
                Failure::bad_coding(format!("the {} body is {problem}, at byte {at} of {of}", self.name()))
            }
        })
    }
}

enum DecodeError {
    /// A bound is exceeded.
    Refused(Failure),
    /// The input cannot be decoded; the text continues "the body is".
    Input(String),
}

impl From<io::Error> for DecodeError {
    fn from(error: io::Error) -> Self {
        DecodeError::Input(match error.kind() {
            ErrorKind::UnexpectedEof => "truncated".to_owned(),
            _ => format!("corrupt ({error})"),
        })
    }
}

/// The decoded bytes so far, and their bounds.
struct Output<'a> {
    plain: Vec<u8>,
    limit: DecodedLimit,
    /// Size of the lease before decoding.
    base_bytes: usize,
    lease: &'a mut ByteLease,
}

impl Output<'_> {
    /// Appends all that `reader` decodes.
    fn append(&mut self, reader: &mut dyn Read) -> Result<(), DecodeError> {
        loop {
            let before = self.plain.len();
            // One byte more than the limit shows that the limit is exceeded.
            let room = CHUNK_BYTES.min(self.limit.max_bytes + 1 - before);
            self.reserve(room)?;
            let read = reader.take(room as u64).read_to_end(&mut self.plain)?;
            if self.plain.len() > self.limit.max_bytes {
                let DecodedLimit { max_bytes, setting } = self.limit;
                let message = format!("the decoded body has more than {max_bytes} bytes ({setting})");
                return Err(DecodeError::Refused(Failure::too_large(message)));
            }
            if read < room {
                return Ok(());
            }
        }
    }

    fn reserve(&mut self, room: usize) -> Result<(), DecodeError> {
        let wanted = self.plain.len() + room;
        if wanted <= self.plain.capacity() {
            return Ok(());
        }
        let doubled = wanted.max(2 * self.plain.capacity()).min(self.limit.max_bytes + 1);
        // Where double the room would exceed the whole budget, what is needed may still fit.
        let fits = self.base_bytes + doubled <= self.lease.max();
        let capacity = if fits { doubled } else { wanted };
        lease_memory(self.lease, self.base_bytes + capacity, "the request with its decoded body")
            .map_err(DecodeError::Refused)?;
        self.plain.reserve_exact(capacity - self.plain.len());
        Ok(())
    }
}

/// Calls `decode_part` for one part after the other, until the input is used up.
fn parts(
    input: &mut &[u8],
    mut decode_part: impl FnMut(&mut &[u8]) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    for _ in 0..MAX_PARTS {
        if input.is_empty() {
            return Ok(());
        }
        decode_part(input)?;
    }
    if input.is_empty() { Ok(()) } else { Err(DecodeError::Input(format!("in more than {MAX_PARTS} parts"))) }
}

fn gzip_members(input: &mut &[u8], output: &mut Output<'_>) -> Result<(), DecodeError> {
    parts(input, |input| match input {
        // The decoder would read ten bytes before it looks at the first two.
        [first, second, ..] if [*first, *second] != GZIP_MAGIC => {
            Err(DecodeError::Input("corrupt (invalid gzip header)".to_owned()))
        }
        _ => output.append(&mut GzDecoder::new(input)),
    })
}

fn deflate_stream(input: &mut &[u8], output: &mut Output<'_>) -> Result<(), DecodeError> {
    // The two bytes of a zlib header are a multiple of 31, and the low half of the first is 8 (RFC 1950 2.2). Raw data
    // that begins so would be a stored block with padding other than zero, which no encoder writes.
    let is_zlib = matches!(input, [first, second, ..]
        if first & 0x0f == 8 && u16::from_be_bytes([*first, *second]).is_multiple_of(31));
    output.append(&mut Inflate { input, state: Decompress::new(is_zlib), has_ended: false })?;
    match input.len() {
        0 => Ok(()),
        more => Err(DecodeError::Input(format!("followed by {more} bytes"))),
    }
}

/// Reads one DEFLATE stream. (The readers of `flate2` take the end of the input for the end of the stream.)
struct Inflate<'a, 'b> {
    input: &'a mut &'b [u8],
    state: Decompress,
    has_ended: bool,
}

impl Read for Inflate<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !self.has_ended && !buffer.is_empty() {
            let (read, written) = (self.state.total_in(), self.state.total_out());
            let status = self.state.decompress(self.input, buffer, FlushDecompress::None);
            let status = status.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
            let (read, written) = (self.state.total_in() - read, self.state.total_out() - written);
            *self.input = &self.input[read as usize..];
            self.has_ended = status == Status::StreamEnd;
            if written > 0 {
                return Ok(written as usize);
            }
            if !self.has_ended && read == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(0)
    }
}

fn zstd_frames(input: &mut &[u8], output: &mut Output<'_>) -> Result<(), DecodeError> {
    // One decoder for all frames, so that its buffers are allocated once.
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(MAX_ZSTD_WINDOW_BYTES);
    parts(input, |input| zstd_frame(&mut decoder, input, output))
}

fn zstd_frame(decoder: &mut FrameDecoder, input: &mut &[u8], output: &mut Output<'_>) -> Result<(), DecodeError> {
    let truncated = || DecodeError::Input("truncated".to_owned());
    match decoder.reset(&mut *input) {
        Ok(()) => {}
        Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
            return input.split_off(..length as usize).map(drop).ok_or_else(truncated);
        }
        Err(_) if input.is_empty() => return Err(truncated()),
        Err(error) => return Err(DecodeError::Input(format!("corrupt ({error})"))),
    }
    output.append(&mut ZstdFrame { decoder, input }).map_err(|error| match error {
        // The decoder does not say whether bytes are missing or wrong.
        DecodeError::Input(_) if input.is_empty() => DecodeError::Input("truncated or corrupt".to_owned()),
        error => error,
    })?;
    let expected = decoder.get_checksum_from_data();
    if expected.is_some() && decoder.get_calculated_checksum() != expected {
        return Err(DecodeError::Input("corrupt (wrong checksum)".to_owned()));
    }
    Ok(())
}

/// Reads one zstd frame, whose header the decoder has read.
struct ZstdFrame<'a, 'b> {
    decoder: &'a mut FrameDecoder,
    input: &'a mut &'b [u8],
}

impl Read for ZstdFrame<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.decoder.can_collect() < buffer.len() && !self.decoder.is_finished() {
            let missing = buffer.len() - self.decoder.can_collect();
            let decoded = self.decoder.decode_blocks(&mut *self.input, BlockDecodingStrategy::UptoBytes(missing));
            decoded.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
        self.decoder.read(buffer)
    }
}

#[cfg(test)]
mod tests;
