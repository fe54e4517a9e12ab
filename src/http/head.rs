//! Parses a complete request head, and determines the framing of its body.
//!
//! The crate `httparse` splits the head into the request line and the fields. This file checks their combination,
//! strictly by RFC 9110 and RFC 9112: a head whose framing two implementations could determine differently is refused,
//! since that difference makes request smuggling possible.

use std::borrow::Cow;

use super::message::{Head, Headers};
use super::refusal::Refusal;
use super::scan::is_token;
use super::target;

/// Limit on the header fields of a request.
const MAX_FIELDS: usize = 100;

/// How the body of a request is delimited (RFC 9112 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// No body.
    None,
    /// A body of this number of bytes.
    Length(u64),
    /// A body with `Transfer-Encoding: chunked`.
    Chunked,
}

/// A valid request head.
#[derive(Debug)]
pub(super) struct ParsedHead {
    pub(super) head: Head,
    pub(super) framing: Framing,
    /// Whether the client allows another request on the connection.
    pub(super) keep_alive: bool,
    /// Whether the client waits for 100 Continue before it sends the body.
    pub(super) expects_continue: bool,
    /// Whether the request is HTTP/1.0, whose persistent connections need `Connection: keep-alive` in the response.
    pub(super) is_http10: bool,
}

/// Parses one head, from the request line to the empty line that ends the head.
pub(super) fn parse(bytes: &[u8]) -> Result<ParsedHead, Refusal> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(Refusal::bad_request("incomplete request head")),
        Err(httparse::Error::Version) => return parse_other_version(bytes),
        // The crate accepts UTF-8 in a target, but no other bytes outside ASCII.
        Err(httparse::Error::Token) if !request_line(bytes).0.is_ascii() => return parse_raw_target(bytes),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Refusal::over_limit("header_fields", 431, "more than 100 header fields"));
        }
        Err(httparse::Error::HeaderName) => return Err(Refusal::bad_request("malformed header name")),
        Err(httparse::Error::HeaderValue) => return Err(Refusal::bad_request("malformed header value")),
        Err(_) => return Err(Refusal::bad_request("malformed request line")),
    }
    let raw_target = request.path.unwrap_or_default();
    if !raw_target.is_ascii() {
        return parse_raw_target(bytes);
    }
    let is_http10 = request.version == Some(0);
    let method = method(request.method.unwrap_or_default())?;
    let (path, query) = target::split(&method, raw_target)?;

    let size = request.headers.iter().map(|field| field.name.len() + field.value.len()).sum();
    let mut headers = Headers::with_capacity(request.headers.len(), size);
    let mut known = KnownFields::default();
    for field in request.headers.iter() {
        known.record(field.name, field.value)?;
        headers.push(field.name, field.value);
    }
    let framing = known.framing(is_http10)?;
    if known.expects_unknown && !is_http10 {
        return Err(Refusal::new(417, "unsupported Expect header: only 100-continue is supported"));
    }
    if known.hosts > 1 {
        return Err(Refusal::bad_request("more than one Host header"));
    }
    if known.hosts == 0 && !is_http10 {
        return Err(Refusal::bad_request("missing Host header"));
    }
    let keep_alive = if is_http10 { known.keep_alive && !known.close } else { !known.close };
    let head = Head { method, path, query, headers, peer: None };
    let expects_continue = known.expects_continue && !is_http10 && framing != Framing::None;
    Ok(ParsedHead { head, framing, keep_alive, expects_continue, is_http10 })
}

/// Parses a head whose version is neither 1.0 nor 1.1.
fn parse_other_version(bytes: &[u8]) -> Result<ParsedHead, Refusal> {
    if let Some(digit) = later_minor_version(bytes) {
        // RFC 9110 2.5: a request of a later minor version is processed as HTTP/1.1, the highest version implemented
        // here.
        let mut bytes = bytes.to_vec();
        bytes[digit] = b'1';
        return parse(&bytes);
    }
    Err(if has_other_version(bytes) {
        Refusal::new(505, "unsupported HTTP version: use HTTP/1.1")
    } else {
        Refusal::bad_request("malformed request line")
    })
}

/// Parses a head whose request line has bytes outside ASCII.
fn parse_raw_target(bytes: &[u8]) -> Result<ParsedHead, Refusal> {
    let (line, end) = request_line(bytes);
    parse(&[&bytes[..end - line.len()], &target::percent_encoded(line)?, &bytes[end..]].concat())
}

/// The fields on which the framing and the state of the connection depend.
#[derive(Default)]
struct KnownFields {
    length: Option<u64>,
    codings: Option<TransferCodings>,
    hosts: usize,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
    expects_unknown: bool,
}

/// The value of `Transfer-Encoding`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TransferCodings {
    Chunked,
    /// Unsupported codings, followed by chunked.
    UnknownThenChunked,
    /// Chunked is not the last coding, so the end of the body cannot be determined.
    NotChunkedLast,
}

impl KnownFields {
    fn record(&mut self, name: &str, value: &[u8]) -> Result<(), Refusal> {
        // Comparing the length of the name first avoids a string comparison for nearly every other field.
        match name.len() {
            4 if name.eq_ignore_ascii_case("host") => {
                self.hosts += 1;
                if !target::is_host(value) {
                    return Err(Refusal::bad_request("malformed Host header"));
                }
            }
            6 if name.eq_ignore_ascii_case("expect") => {
                let is_known = value.eq_ignore_ascii_case(b"100-continue");
                self.expects_continue |= is_known;
                self.expects_unknown |= !is_known;
            }
            10 if name.eq_ignore_ascii_case("connection") => {
                for option in list(value) {
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            14 if name.eq_ignore_ascii_case("content-length") => {
                if self.length.is_some() {
                    return Err(Refusal::bad_request("more than one Content-Length header"));
                }
                self.length = Some(length(value)?);
            }
            17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                if self.codings.is_some() {
                    return Err(Refusal::bad_request("more than one Transfer-Encoding header"));
                }
                self.codings = Some(codings(value));
            }
            _ => {}
        }
        Ok(())
    }

    fn framing(&self, is_http10: bool) -> Result<Framing, Refusal> {
        match (self.codings, self.length) {
            (Some(_), Some(_)) => Err(Refusal::bad_request("both Content-Length and Transfer-Encoding headers")),
            (Some(_), None) if is_http10 => Err(Refusal::bad_request("Transfer-Encoding is not allowed in HTTP/1.0")),
            (Some(TransferCodings::Chunked), None) => Ok(Framing::Chunked),
            (Some(TransferCodings::UnknownThenChunked), None) => {
                Err(Refusal::new(501, "unsupported transfer coding: only chunked is supported"))
            }
            (Some(TransferCodings::NotChunkedLast), None) => {
                Err(Refusal::bad_request("the last transfer coding must be chunked"))
            }
            (None, Some(0)) | (None, None) => Ok(Framing::None),
            (None, Some(length)) => Ok(Framing::Length(length)),
        }
    }
}

/// Returns the request line, and the index in `bytes` where it ends.
fn request_line(bytes: &[u8]) -> (&[u8], usize) {
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len());
    let length = bytes[start..].iter().position(|byte| *byte == b'\r').unwrap_or(bytes.len() - start);
    (&bytes[start..start + length], start + length)
}

/// Returns the index of the minor version's digit if the request line is of HTTP/1.2 to 1.9.
fn later_minor_version(bytes: &[u8]) -> Option<usize> {
    let (line, end) = request_line(bytes);
    matches!(line, [.., b' ', b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'2'..=b'9']).then(|| end - 1)
}

/// Returns whether the request line has three words and the last one is a well-formed HTTP version (RFC 9112 2.3).
fn has_other_version(bytes: &[u8]) -> bool {
    let words: Vec<_> = request_line(bytes).0.split(|byte| *byte == b' ').collect();
    let [_, _, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]] = words[..] else { return false };
    major.is_ascii_digit() && minor.is_ascii_digit()
}

/// Returns the method, or refuses an unrecognized one with 501 (RFC 9110 9.1). Whether a recognized method is allowed
/// for the path is decided by the handler, which answers 405.
fn method(name: &str) -> Result<Cow<'static, str>, Refusal> {
    const KNOWN: [&str; 9] = ["POST", "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT"];
    let known = KNOWN.into_iter().find(|known| *known == name);
    known.map(Cow::Borrowed).ok_or(Refusal::new(501, "unknown method"))
}

/// Returns the elements of a comma-separated list (RFC 9110 5.6.1), empty elements left out.
fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// Parses a Content-Length: digits only (RFC 9110 8.6), without a sign, a list or white space between digits.
fn length(value: &[u8]) -> Result<u64, Refusal> {
    let digits = std::str::from_utf8(value)
        .ok()
        .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
    let digits = digits.ok_or(Refusal::bad_request("Content-Length must be a decimal number"))?;
    digits.parse().map_err(|_| Refusal::over_limit("request_size", 413, "Content-Length is too large"))
}

fn codings(value: &[u8]) -> TransferCodings {
    let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let codings: Vec<_> = list(value).collect();
    match codings.split_last() {
        Some((last, [])) if is_chunked(last) => TransferCodings::Chunked,
        Some((last, before))
            if is_chunked(last) && before.iter().all(|coding| is_coding(coding) && !is_chunked(coding)) =>
        {
            TransferCodings::UnknownThenChunked
        }
        _ => TransferCodings::NotChunkedLast,
    }
}

fn is_coding(coding: &[u8]) -> bool {
    let name = coding.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    !name.is_empty() && name.iter().all(|byte| is_token(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses `head`; returns method, path, query and framing, or the status of the refusal.
    fn outcome(head: &str) -> Result<(String, String, Option<String>, Framing), u16> {
        let parsed = parse(head.as_bytes()).map_err(|refusal| refusal.status)?;
        Ok((parsed.head.method.into_owned(), parsed.head.path, parsed.head.query, parsed.framing))
    }

    /// Path and query, or the status of the refusal.
    type Target<'a> = Result<(&'a str, Option<&'a str>), u16>;

    #[test]
    fn a_request_line_is_parsed_or_refused() {
        // RFC and section, request line, path and query or status.
        let rows: &[(&str, &str, Target<'_>)] = &[
            ("9112 3.2.1", "GET /a/b?c=d HTTP/1.1", Ok(("/a/b", Some("c=d")))),
            ("9112 3.2.1", "GET /a? HTTP/1.1", Ok(("/a", Some("")))),
            ("9112 3.2.1", "GET / HTTP/1.0", Ok(("/", None))),
            ("9112 3.2.2", "GET http://h:80/a?b HTTP/1.1", Ok(("/a", Some("b")))),
            ("9112 3.2.2", "GET HTTP://[::1]?b HTTP/1.1", Ok(("/", Some("b")))),
            ("9112 3.2.2", "GET ftp://h/ HTTP/1.1", Err(400)),
            ("9112 3.2.2", "GET http:///a HTTP/1.1", Err(400)),
            ("9110 4.2.4", "GET http://user@h/a HTTP/1.1", Err(400)),
            ("9112 3.2.3", "CONNECT h:80 HTTP/1.1", Err(501)),
            ("9112 3.2.3", "GET h:80 HTTP/1.1", Err(400)),
            ("9112 3.2.4", "OPTIONS * HTTP/1.1", Ok(("*", None))),
            ("9112 3.2.4", "GET * HTTP/1.1", Err(400)),
            ("9112 3.2", "GET /a#b HTTP/1.1", Err(400)),
            ("9112 3.2", "GET /\u{e4} HTTP/1.1", Err(400)),
            ("9112 3.2", "GET /a b HTTP/1.1", Err(400)),
            ("9112 3", "GET  / HTTP/1.1", Err(400)),
            ("9112 3", "GET /", Err(400)),
            ("9112 3", "GET / HTTP/1.1 ", Err(400)),
            ("9112 3.1", "G@T / HTTP/1.1", Err(400)),
            ("9112 2.3", "GET / HTTP/2.0", Err(505)),
            ("9112 2.3", "PRI * HTTP/2.0", Err(505)),
            ("9112 2.3", "GET / HTTP/0.9", Err(505)),
            ("9110 2.5", "GET /a HTTP/1.2", Ok(("/a", None))),
            ("9110 2.5", "GET /a HTTP/1.9", Ok(("/a", None))),
            ("9110 9.1", "FOO / HTTP/1.1", Err(501)),
            ("9110 9.1", "post / HTTP/1.1", Err(501)),
            ("9110 9.3.8", "TRACE /a HTTP/1.1", Ok(("/a", None))),
            ("9112 2.3", "GET / http/1.1", Err(400)),
            ("9112 2.3", "GET / HTTP/1.10", Err(400)),
            ("9112 2.3", "GET / XTTP/1.1", Err(400)),
        ];
        for (section, line, expected) in rows {
            let outcome = outcome(&format!("{line}\r\nHost: h\r\n\r\n")).map(|(_, path, query, _)| (path, query));
            let expected = expected.map(|(path, query)| (path.to_owned(), query.map(str::to_owned)));
            assert_eq!(outcome, expected, "RFC {section}: {line}");
        }
    }

    #[test]
    fn a_query_may_have_bytes_outside_ascii() {
        for (line, expected) in [
            (&b"GET /a?k=\xe7\x94\xa8"[..], Ok("k=%E7%94%A8")),
            (b"GET /a?\xd3\xc3", Ok("%D3%C3")),
            (b"GET /\xe7\x94\xa8?k", Err(400)),
            (b"GET /a?\xe7\x94\xa8 \xff", Err(400)),
            (b"GET /a?\xff#b", Err(400)),
            (b"FOO /a?\xff", Err(501)),
        ] {
            for version in ["1.0", "1.1", "1.2"] {
                let fields = b"\r\nHost: h\r\nContent-Length: 5\r\n\r\n";
                let parsed = parse(&[line, b" HTTP/", version.as_bytes(), fields].concat());
                let outcome = parsed.map(|parsed| (parsed.head.query.unwrap(), parsed.framing));
                let expected = expected.map(|query| (query.to_owned(), Framing::Length(5)));
                assert_eq!(outcome.map_err(|refusal| refusal.status), expected, "{} {version}", line.escape_ascii());
            }
        }
    }

    #[test]
    fn headers_decide_the_framing_or_are_refused() {
        use Framing::{Chunked, Length, None};
        let many = "X: y\r\n".repeat(101);
        // RFC and section, fields (without Host), framing or status.
        let rows: &[(&str, &str, Result<Framing, u16>)] = &[
            ("9112 6.3", "", Ok(None)),
            ("9112 6.3", "Content-Length: 0\r\n", Ok(None)),
            ("9112 6.3", "content-LENGTH:5\r\n", Ok(Length(5))),
            ("9112 6.3", "Content-Length: \t 5 \t\r\n", Ok(Length(5))),
            ("9112 6.3", "Content-Length: 5\r\nContent-Length: 6\r\n", Err(400)),
            ("9110 8.6", "Content-Length: 5\r\nContent-Length: 5\r\n", Err(400)),
            ("9110 8.6", "Content-Length: 5, 5\r\n", Err(400)),
            ("9110 8.6", "Content-Length: +5\r\n", Err(400)),
            ("9110 8.6", "Content-Length: -5\r\n", Err(400)),
            ("9110 8.6", "Content-Length: 0x5\r\n", Err(400)),
            ("9110 8.6", "Content-Length: 5 5\r\n", Err(400)),
            ("9110 8.6", "Content-Length:\r\n", Err(400)),
            ("9110 8.6", "Content-Length: abc\r\n", Err(400)),
            ("9110 8.6", "Content-Length: 18446744073709551615\r\n", Ok(Length(u64::MAX))),
            ("9110 8.6", "Content-Length: 18446744073709551616\r\n", Err(413)),
            ("9112 6.1", "Transfer-Encoding: chunked\r\n", Ok(Chunked)),
            ("9112 6.1", "Transfer-Encoding: CHUNKED\r\n", Ok(Chunked)),
            ("9112 6.1", "Transfer-Encoding: , chunked\r\n", Ok(Chunked)),
            ("9112 6.1", "Transfer-Encoding: gzip, chunked\r\n", Err(501)),
            ("9112 6.3", "Transfer-Encoding: gzip\r\n", Err(400)),
            ("9112 6.3", "Transfer-Encoding: identity\r\n", Err(400)),
            ("9112 6.3", "Transfer-Encoding: chunked, gzip\r\n", Err(400)),
            ("9112 6.1", "Transfer-Encoding: chunked, chunked\r\n", Err(400)),
            ("9112 6.1", "Transfer-Encoding: xchunked\r\n", Err(400)),
            ("9112 6.1", "Transfer-Encoding: \u{b}chunked\r\n", Err(400)),
            ("9112 6.1", "Transfer-Encoding: chunked;a=b\r\n", Err(400)),
            ("9112 6.1", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Err(400)),
            ("9112 6.3", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", Err(400)),
            ("9112 6.3", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Err(400)),
            ("9112 5.1", "Content-Length : 5\r\n", Err(400)),
            ("9112 5.1", "X Y: 5\r\n", Err(400)),
            ("9112 5", ": 5\r\n", Err(400)),
            ("9112 5", "X\r\n", Err(400)),
            ("9112 5.2", "X: a\r\n b\r\n", Err(400)),
            ("9112 5.2", " X: a\r\n", Err(400)),
            ("9110 5.5", "X: a\u{0}b\r\n", Err(400)),
            ("9110 5.5", "X: \u{e4}\r\n", Ok(None)),
            ("9112 3.2", "Host: other\r\n", Err(400)),
            ("9110 10.1.1", "Expect: 100-continue\r\n", Ok(None)),
            ("9110 10.1.1", "Expect: 200-ok\r\n", Err(417)),
            ("9112 3", &many, Err(431)),
        ];
        for (section, fields, expected) in rows {
            let outcome = outcome(&format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n")).map(|outcome| outcome.3);
            assert_eq!(outcome, *expected, "RFC {section}: {fields:?}");
        }
        assert!(outcome("POST / HTTP/1.0\r\nExpect: 200-ok\r\n\r\n").is_ok(), "RFC 9110 10.1.1");
        assert_eq!(outcome("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap_err(), 400, "RFC 9112 6.1");
    }

    #[test]
    fn a_host_header_is_required_once_and_valid() {
        for (head, good) in [
            ("GET / HTTP/1.1\r\n\r\n", false),
            ("GET / HTTP/1.0\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nHost: a.b:80\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nHost: [::g]:80\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", false),
        ] {
            assert_eq!(outcome(head).is_ok(), good, "RFC 9112 3.2: {head:?}");
        }
    }

    #[test]
    fn version_and_connection_options_decide_whether_a_connection_is_kept() {
        for (version, connection, kept) in [
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "Connection: x, Close\r\n", false),
            ("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: keep-alive, close\r\n", false),
        ] {
            let head = format!("GET / HTTP/{version}\r\nHost: h\r\n{connection}\r\n");
            assert_eq!(parse(head.as_bytes()).unwrap().keep_alive, kept, "RFC 9112 9.3: {head:?}");
        }
    }
}
