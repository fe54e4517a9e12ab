//! Checks of the parsers' invariants, for the fuzz targets and the property tests; no other build contains them.
//!
//! Each public function takes arbitrary bytes and panics if an invariant does not hold.

use super::body::BodyDecoder;
use super::head::Framing;
use super::parser::{Parser, Progress};
use super::query::percent_decode;
use super::refusal::Refusal;
use super::scan::HeadLimits;

/// Largest body in bytes; small, so that fuzz inputs exceed it.
const MAX_BODY_BYTES: usize = 10_000;

/// Why parsing ended: a refusal and whether the refused request is HEAD, or `None` at the end of the bytes.
pub(super) type ConnectionEnd = Option<(Refusal, bool)>;

/// Parses the bytes of one connection, which arrive in `pieces`; returns each request as text, and why parsing ended.
pub(super) fn read(limits: HeadLimits, pieces: &[&[u8]]) -> (Vec<String>, ConnectionEnd) {
    let mut parser = Parser::new(limits);
    let mut requests = Vec::new();
    for piece in pieces {
        let mut input = *piece;
        loop {
            let (taken, progress) = match parser.advance(input) {
                Ok(step) => step,
                Err(refusal) => return (requests, Some((refusal, parser.is_head_method()))),
            };
            input = &input[taken..];
            assert!(parser.allocated() <= MAX_BODY_BYTES + 8 * limits.head, "{} bytes", parser.allocated());
            match progress {
                Progress::NeedsMore => {
                    assert!(input.is_empty(), "an incomplete request consumes the whole input");
                    break;
                }
                Progress::Head => {
                    let skips = parser.head().is_some_and(|head| head.head.path == "/skip");
                    let begun =
                        if skips { parser.skip_body(MAX_BODY_BYTES, ()) } else { parser.read_body(MAX_BODY_BYTES, ()) };
                    if let Err(refusal) = begun {
                        return (requests, Some((refusal, parser.is_head_method())));
                    }
                }
                Progress::Complete => {
                    let (head, body, ()) = parser.take().expect("the request is complete");
                    assert!(body.len() <= MAX_BODY_BYTES);
                    requests.push(format!("{head:?} {body:?}"));
                }
            }
        }
    }
    (requests, None)
}

/// Checks that the requests of a connection do not depend on how its bytes are split into reads. The first byte chooses
/// the limits, the second the size of a read.
pub fn http_parser(data: &[u8]) {
    let [limits, cut, bytes @ ..] = data else { return };
    let limits = if limits % 4 == 0 { HeadLimits { uri: 40, head: 120 } } else { HeadLimits::default() };
    let whole = read(limits, &[bytes]);
    let pieces: Vec<&[u8]> = bytes.chunks(usize::from(*cut).max(1)).collect();
    assert_eq!(read(limits, &pieces), whole);
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(read(limits, &single), whole);
}

/// Checks that a chunked body does not depend on how its bytes are split into reads, and that a discarded body ends at
/// the same byte. The first byte chooses the size of a read.
pub fn chunked_body(data: &[u8]) {
    let [cut, bytes @ ..] = data else { return };
    let decode = |size: usize, keeps: bool| {
        let mut decoder = BodyDecoder::new(Framing::Chunked, MAX_BODY_BYTES, keeps).expect("chunks announce no length");
        let (mut body, mut taken) = (Vec::new(), 0);
        for piece in bytes.chunks(size) {
            match decoder.advance(piece, &mut body) {
                Err(refusal) => return (Some(refusal), 0, Vec::new()),
                Ok((count, complete)) => {
                    assert!(body.capacity() <= MAX_BODY_BYTES && (complete || count == piece.len()));
                    taken += count;
                    if complete {
                        break;
                    }
                }
            }
        }
        (None, taken, body)
    };
    let whole = decode(bytes.len().max(1), true);
    assert_eq!(decode(usize::from(*cut).max(1), true), whole);
    assert_eq!(decode(1, true), whole);
    let discarded = decode(usize::from(*cut).max(1), false);
    assert_eq!((discarded.0, discarded.1, discarded.2), (whole.0, whole.1, Vec::new()));
}

/// Checks that a decoded text is not longer than its encoded form, and that encoding and decoding it again returns the
/// same text.
pub fn percent_decoding(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(decoded) = percent_decode(text) else { return };
    assert!(decoded.len() <= text.len());
    let encoded: String = decoded.iter().map(|byte| format!("%{byte:02x}")).collect();
    assert_eq!(percent_decode(&encoded).as_deref(), Some(&*decoded));
}
