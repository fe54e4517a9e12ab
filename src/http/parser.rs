//! Parses the bytes of one connection into requests: first the head, and after the request is admitted its body.
//!
//! Pure: the same bytes result in the same requests and refusals, independent of how the bytes are split into reads.
//! The parser holds the bytes of one request; bytes after the end of the request stay with the caller.

use super::body::BodyDecoder;
use super::head::{ParsedHead, parse};
use super::refusal::Refusal;
use super::scan::{HeadLimits, HeadScan};

/// How far the parser is with the current request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The whole input was consumed, and the request needs further bytes.
    NeedsMore,
    /// The head is complete: [`Parser::head`] returns it; call [`Parser::read_body`] or [`Parser::skip_body`].
    Head,
    /// The request is complete: call [`Parser::take`].
    Complete,
}

/// Parses one request after the other. A `T` says what the caller does with a request: the caller passes it in when it
/// admits the body, and [`Parser::take`] returns it with the complete request.
#[derive(Debug)]
pub(super) struct Parser<T> {
    limits: HeadLimits,
    stage: Stage<T>,
    /// Whether the refused request is a HEAD request, whose response has no body.
    refused_head: bool,
}

#[derive(Debug)]
enum Stage<T> {
    /// `arrived` has the bytes of earlier reads; it stays empty if the first read contains the complete head.
    Head {
        scan: HeadScan,
        arrived: Vec<u8>,
    },
    Body(Box<BodyStage<T>>),
}

#[derive(Debug)]
struct BodyStage<T> {
    head: ParsedHead,
    /// `None` until the body is admitted.
    admitted: Option<(BodyDecoder, T)>,
    bytes: Vec<u8>,
}

impl<T> Default for Stage<T> {
    fn default() -> Self {
        Stage::Head { scan: HeadScan::default(), arrived: Vec::new() }
    }
}

impl<T> Parser<T> {
    /// Creates a parser that refuses heads larger than `limits`.
    pub(super) fn new(limits: HeadLimits) -> Self {
        Parser { limits, stage: Stage::default(), refused_head: false }
    }

    /// Parses bytes from the front of `input`. Returns the number of bytes parsed, and how far the request is. After a
    /// refusal no further bytes of the connection can be parsed.
    pub(super) fn advance(&mut self, input: &[u8]) -> Result<(usize, Progress), Refusal> {
        self.step(input).inspect_err(|_| {
            self.refused_head = match &self.stage {
                Stage::Head { scan, arrived } => {
                    let scanned = arrived.iter().chain(input).take(scan.scanned());
                    let mut bytes = scanned.skip_while(|byte| matches!(byte, b'\r' | b'\n'));
                    b"HEAD ".iter().all(|expected| bytes.next() == Some(expected))
                }
                Stage::Body(body) => body.head.head.method == "HEAD",
            }
        })
    }

    fn step(&mut self, input: &[u8]) -> Result<(usize, Progress), Refusal> {
        match &mut self.stage {
            Stage::Head { scan, arrived } => match scan.advance(input, self.limits)? {
                None => {
                    arrived.extend_from_slice(input);
                    Ok((input.len(), Progress::NeedsMore))
                }
                Some(end) => {
                    let head = if arrived.is_empty() {
                        parse(&input[..end])?
                    } else {
                        arrived.extend_from_slice(&input[..end]);
                        parse(arrived)?
                    };
                    self.stage = Stage::Body(Box::new(BodyStage { head, admitted: None, bytes: Vec::new() }));
                    Ok((end, Progress::Head))
                }
            },
            Stage::Body(body) => {
                let Some((decoder, _)) = &mut body.admitted else { return Ok((0, Progress::Head)) };
                let (taken, complete) = decoder.advance(input, &mut body.bytes)?;
                Ok((taken, if complete { Progress::Complete } else { Progress::NeedsMore }))
            }
        }
    }

    /// Returns the head, if it is complete.
    pub(super) fn head(&self) -> Option<&ParsedHead> {
        match &self.stage {
            Stage::Head { .. } => None,
            Stage::Body(body) => Some(&body.head),
        }
    }

    /// Returns the head, if it is complete, so that the caller can set its `peer`.
    pub(super) fn head_mut(&mut self) -> Option<&mut ParsedHead> {
        match &mut self.stage {
            Stage::Head { .. } => None,
            Stage::Body(body) => Some(&mut body.head),
        }
    }

    /// Admits a body of at most `max` bytes; refuses a larger Content-Length at once.
    pub(super) fn read_body(&mut self, max: usize, then: T) -> Result<(), Refusal> {
        self.begin_body(max, true, then)
    }

    /// Discards a body of at most `max` bytes; the complete request then has an empty body. Refuses a larger
    /// Content-Length at once.
    pub(super) fn skip_body(&mut self, max: usize, then: T) -> Result<(), Refusal> {
        self.begin_body(max, false, then)
    }

    fn begin_body(&mut self, max: usize, keeps: bool, then: T) -> Result<(), Refusal> {
        if let Stage::Body(body) = &mut self.stage {
            body.admitted = Some((BodyDecoder::new(body.head.framing, max, keeps)?, then));
        }
        Ok(())
    }

    /// Returns the `T` of the current request; `None` if its body is not admitted yet.
    pub(super) fn admitted(&self) -> Option<&T> {
        match &self.stage {
            Stage::Body(body) => body.admitted.as_ref().map(|(_, then)| then),
            Stage::Head { .. } => None,
        }
    }

    /// Takes the complete request and its `T`, after which the next request can be parsed. Call this before the request
    /// is complete only if no further bytes of the connection are parsed.
    pub(super) fn take(&mut self) -> Option<(ParsedHead, Vec<u8>, T)> {
        match std::mem::take(&mut self.stage) {
            Stage::Head { .. } => None,
            Stage::Body(body) => {
                let BodyStage { head, admitted, bytes } = *body;
                admitted.map(|(_, then)| (head, bytes, then))
            }
        }
    }

    /// Returns whether no byte of a request has arrived; empty lines do not count.
    pub(super) fn is_idle(&self) -> bool {
        matches!(&self.stage, Stage::Head { scan, .. } if scan.is_blank())
    }

    /// Returns whether the current or refused request is a HEAD request.
    pub(super) fn is_head_method(&self) -> bool {
        self.refused_head || self.head().is_some_and(|head| head.head.method == "HEAD")
    }

    /// Returns the heap memory of the current request in bytes.
    pub(super) fn allocated(&self) -> usize {
        match &self.stage {
            Stage::Head { arrived, .. } => arrived.capacity(),
            Stage::Body(body) => size_of::<BodyStage<T>>() + body.head.head.allocated() + body.bytes.capacity(),
        }
    }

    /// Returns a lower bound of the bytes of the current request that have not arrived.
    pub(super) fn missing(&self) -> u64 {
        match &self.stage {
            Stage::Body(body) => body.admitted.as_ref().map_or(0, |(decoder, _)| decoder.missing()),
            Stage::Head { .. } => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::fuzz_targets::{ConnectionEnd, read as read_within};
    use proptest::prelude::*;

    fn read(pieces: &[&[u8]]) -> (Vec<String>, ConnectionEnd) {
        read_within(HeadLimits::default(), pieces)
    }

    #[test]
    fn pipelined_requests_are_separated() {
        let bytes =
            b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n\r\nPOST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc\
            POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\nGARBAGE\n";
        let (requests, end) = read(&[bytes]);
        assert_eq!((requests.len(), end.map(|end| end.0.status)), (3, Some(400)), "{requests:?}");
        assert!(requests[1].ends_with("[97, 98, 99]") && requests[2].ends_with(" [97]"), "{requests:?}");
    }

    /// Generates requests, many of them malformed.
    fn request() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            Just("GET / HTTP/1.1\r\n"),
            Just("POST /commit?topic=t HTTP/1.1\r\n"),
            Just("POST / HTTP/1.0\r\n"),
            Just("POST / HTTP/3.0\r\n"),
            Just("\r\nPUT /x HTTP/1.1\r\n"),
            Just("P\u{1}ST / HTTP/1.1\r\n"),
        ];
        let fields = prop::collection::vec(
            prop_oneof![
                4 => Just("Host: h\r\n".to_owned()),
                2 => (0..40u32).prop_map(|length| format!("Content-Length: {length}\r\n")),
                2 => Just("Transfer-Encoding: chunked\r\n".to_owned()),
                2 => "[a-zA-Z-]{1,8}: [ -~]{0,12}\r\n",
                1 => Just("X : y\r\n".to_owned()),
                1 => Just("X: y\n".to_owned()),
                1 => Just("Expect: 100-continue\r\n".to_owned()),
                1 => Just("Content-Length: 20000\r\n".to_owned()),
            ],
            0..4,
        );
        let body = prop_oneof![
            3 => prop::collection::vec(any::<u8>(), 0..40),
            3 => Just(b"3;x=\"y\"\r\nabc\r\n0\r\nA: b\r\n\r\n".to_vec()),
            3 => chunks(),
            1 => Just(b"3\r\nabcd\r\n0\r\n\r\n".to_vec()),
            1 => Just(b"fffff\r\n".to_vec()),
        ];
        (line, fields, body)
            .prop_map(|(line, fields, body)| [line.as_bytes(), fields.concat().as_bytes(), b"\r\n", &body].concat())
    }

    /// Generates chunked bodies with extensions and trailers, most of them valid.
    fn chunks() -> impl Strategy<Value = Vec<u8>> {
        let extension = prop_oneof![
            4 => Just(String::new()),
            2 => "( |\t)?;( )?[a-z]{1,4}(=[a-z]{1,4})?",
            2 => ";[a-z]=\"[ -~]{0,6}\"",
            1 => ";[ -~]{0,6}",
        ];
        let chunk = (prop::collection::vec(any::<u8>(), 1..20), 0..3usize, extension.clone(), 0..20u8);
        let field = prop_oneof![
            4 => "[A-Za-z-]{1,8}:[ -~]{0,8}\r\n",
            1 => Just("Content-Length: 3\r\n".to_owned()),
            1 => Just("Transfer-Encoding: chunked\r\n".to_owned()),
            1 => "[ -~]{0,8}\r\n",
        ];
        (prop::collection::vec(chunk, 0..4), extension, prop::collection::vec(field, 0..3)).prop_map(
            |(chunks, last_extension, trailers)| {
                let mut bytes = Vec::new();
                for (data, zeros, extension, flaw) in chunks {
                    let size = data.len() + usize::from(flaw == 0);
                    bytes.extend(format!("{}{size:x}{extension}\r\n", "0".repeat(zeros)).bytes());
                    bytes.extend(data);
                    bytes.extend(if flaw == 1 { "\n" } else { "\r\n" }.bytes());
                }
                bytes.extend(format!("0{last_extension}\r\n{}\r\n", trailers.concat()).bytes());
                bytes
            },
        )
    }

    proptest! {
        #[test]
        fn requests_do_not_depend_on_how_bytes_are_split_into_reads(
            requests in prop::collection::vec(request(), 1..5),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let bytes = requests.concat();
            let mut positions: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            positions.extend([0, bytes.len()]);
            positions.sort_unstable();
            let pieces: Vec<&[u8]> = positions.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect();
            let expected = read(&[&bytes]);
            prop_assert_eq!(read(&pieces), expected.clone());
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(read(&single), expected);
        }

        #[test]
        fn random_bytes_cause_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            read(&[&bytes]);
        }
    }
}
