//! What fuzzing and the property tests ask of the parsers; built for them only.
//!
//! Each function takes any bytes and panics where an invariant does not hold.

use super::body::BodyDecoder;
use super::head::Framing;
use super::parser::{Parser, Progress};
use super::percent_decode;
use super::scan::{HeadLimits, Refused};

/// Largest body; small, so that the limit is met.
const MOST: usize = 10_000;

/// How the reading of a connection ended: with a refusal, and whether that of a HEAD, or at the end of the bytes.
pub(super) type End = Option<(Refused, bool)>;

/// Every request of a connection as text, and how it ended.
pub(super) fn read(limits: HeadLimits, pieces: &[&[u8]]) -> (Vec<String>, End) {
    let mut parser = Parser::new(limits);
    let mut requests = Vec::new();
    for piece in pieces {
        let mut input = *piece;
        loop {
            let (taken, progress) = match parser.advance(input) {
                Ok(step) => step,
                Err(refused) => return (requests, Some((refused, parser.is_head_method()))),
            };
            input = &input[taken..];
            assert!(parser.allocated() <= MOST + 8 * limits.head, "{} bytes", parser.allocated());
            match progress {
                Progress::NeedsMore => {
                    assert!(input.is_empty(), "what is not complete takes everything");
                    break;
                }
                Progress::Head => {
                    let skips = parser.head().is_some_and(|head| head.head.path == "/skip");
                    let begun = if skips { parser.skip_body(MOST, ()) } else { parser.read_body(MOST, ()) };
                    if let Err(refused) = begun {
                        return (requests, Some((refused, parser.is_head_method())));
                    }
                }
                Progress::Complete => {
                    let (head, body, ()) = parser.take().expect("it is complete");
                    assert!(body.len() <= MOST);
                    requests.push(format!("{head:?} {body:?}"));
                }
            }
        }
    }
    (requests, None)
}

/// The bytes of a connection, cut in any way, are the same requests. The first two bytes choose the limits and the cuts.
pub fn http_parser(data: &[u8]) {
    let [limits, cut, bytes @ ..] = data else { return };
    let limits = if limits % 4 == 0 { HeadLimits { uri: 40, head: 120 } } else { HeadLimits::default() };
    let whole = read(limits, &[bytes]);
    let pieces: Vec<&[u8]> = bytes.chunks(usize::from(*cut).max(1)).collect();
    assert_eq!(read(limits, &pieces), whole);
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(read(limits, &single), whole);
}

/// A chunked body, cut in any way, is the same body, and one that is passed over ends at the same place. The first byte
/// chooses the cuts.
pub fn chunked_body(data: &[u8]) {
    let [cut, bytes @ ..] = data else { return };
    let decode = |size: usize, keeps: bool| {
        let mut decoder = BodyDecoder::new(Framing::Chunked, MOST, keeps).expect("nothing is announced");
        let (mut body, mut taken) = (Vec::new(), 0);
        for piece in bytes.chunks(size) {
            match decoder.advance(piece, &mut body) {
                Err(refused) => return (Some(refused), 0, Vec::new()),
                Ok((count, complete)) => {
                    assert!(body.capacity() <= MOST && (complete || count == piece.len()));
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
    let passed_over = decode(usize::from(*cut).max(1), false);
    assert_eq!((passed_over.0, passed_over.1, passed_over.2), (whole.0, whole.1, Vec::new()));
}

/// Decoding never makes anything longer, and what it makes, encoded anew, decodes to the same.
pub fn decode_percent(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(decoded) = percent_decode(text) else { return };
    assert!(decoded.len() <= text.len());
    let encoded: String = decoded.iter().map(|byte| format!("%{byte:02x}")).collect();
    assert_eq!(percent_decode(&encoded).as_deref(), Some(&*decoded));
}
