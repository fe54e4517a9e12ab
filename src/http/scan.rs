//! Finds the end of a request head in bytes that arrive in any pieces, and stops early at bytes that cannot be one.
//!
//! Every byte is looked at once and the verdict depends on the bytes alone, not on how they were cut.

/// Longest method that is read on; the longest one registered has 17 letters.
const MAX_METHOD: usize = 32;

/// What a request head may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Longest request target in bytes; more is 414.
    pub uri: usize,
    /// Largest request line and headers together in bytes; more is 431.
    pub head: usize,
}

impl Default for HeadLimits {
    fn default() -> Self {
        HeadLimits { uri: 8 * 1024, head: 16 * 1024 }
    }
}

/// Why a request is answered by the server itself, and its connection closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: u16,
    pub(super) reason: &'static str,
    /// The limit that was reached, as the metrics name it.
    pub(super) limit: Option<&'static str>,
}

impl Refused {
    pub(super) const fn new(status: u16, reason: &'static str) -> Self {
        Refused { status, reason, limit: None }
    }

    pub(super) const fn bad(reason: &'static str) -> Self {
        Self::new(400, reason)
    }

    pub(super) const fn beyond(limit: &'static str, status: u16, reason: &'static str) -> Self {
        Refused { status, reason, limit: Some(limit) }
    }
}

/// Where the scan of one head stands.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    /// Bytes looked at, empty lines before the request line included.
    seen: usize,
    /// Bytes of the current line so far.
    line: usize,
    /// Which word of the request line this is; beyond it, the headers.
    part: Part,
    /// Bytes of the request line before its target.
    before_target: usize,
    /// Whether the byte before was a CR.
    carriage: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Method,
    Target,
    Version,
    Headers,
}

impl HeadScan {
    /// Looks at the next bytes. `Some(n)`: the head ends with the first n of them.
    pub(super) fn advance(&mut self, bytes: &[u8], limits: HeadLimits) -> Result<Option<usize>, Refused> {
        for (index, byte) in bytes.iter().enumerate() {
            self.seen += 1;
            if self.seen > limits.head {
                return Err(Refused::beyond("headers", 431, "the request line and headers are larger than allowed"));
            }
            match byte {
                b'\n' if self.carriage => {
                    self.carriage = false;
                    if self.line > 0 {
                        self.part = Part::Headers;
                    } else if self.part == Part::Headers {
                        return Ok(Some(index + 1));
                    }
                    // RFC 9112 2.2: empty lines before the request line are passed over.
                    self.line = 0;
                }
                _ if self.carriage => return Err(Refused::bad("a CR that no LF follows")),
                b'\n' => return Err(Refused::bad("a line that ends without CR")),
                b'\r' => self.carriage = true,
                _ => {
                    self.line += 1;
                    if self.part != Part::Headers {
                        self.look_at_request_line(*byte, limits)?;
                    }
                }
            }
        }
        Ok(None)
    }

    /// Ends early what would be collected in vain.
    fn look_at_request_line(&mut self, byte: u8, limits: HeadLimits) -> Result<(), Refused> {
        match self.part {
            Part::Method if byte == b' ' && self.line > 1 => {
                self.part = Part::Target;
                self.before_target = self.line;
            }
            Part::Method if !is_token(byte) => return Err(Refused::bad("not an HTTP request")),
            Part::Method if self.line > MAX_METHOD => return Err(Refused::new(501, "an unknown method")),
            Part::Target if byte == b' ' => self.part = Part::Version,
            Part::Target if self.line - self.before_target > limits.uri => {
                return Err(Refused::beyond("uri", 414, "the request target is longer than allowed"));
            }
            _ => {}
        }
        Ok(())
    }

    /// Bytes looked at, a refused one included.
    pub(super) fn seen(&self) -> usize {
        self.seen
    }

    /// Whether nothing but empty lines has been seen yet.
    pub(super) fn is_untouched(&self) -> bool {
        self.line == 0 && self.part == Part::Method
    }
}

/// A character of a method or a header name (RFC 9110 5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_found_and_what_cannot_be_a_head_is_refused() {
        let limits = HeadLimits { uri: 100, head: 300 };
        let uri = |length: usize| format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(length - 1));
        let head = |length: usize| format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(length - 23));
        let (longest_uri, long_uri) = (uri(100), uri(101));
        let (largest_head, large_head) = (head(300), head(301));
        let (long_method, empty_lines) = ("a".repeat(33), "\r\n".repeat(151));
        let rows: &[(&str, Result<Option<usize>, u16>)] = &[
            ("GET / HTTP/1.1\r\n\r\nrest", Ok(Some(18))),
            ("\r\n\r\nGET / HTTP/1.1\r\nA: b\r\n\r\n", Ok(Some(28))),
            ("GET / HTTP/1.1\r\nA: b\r\n", Ok(None)),
            ("", Ok(None)),
            ("GET / HTTP/1.1\n\n", Err(400)),
            ("GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", Err(400)),
            ("\u{16}\u{3}\u{1}", Err(400)),
            (" GET", Err(400)),
            ("GET\t/", Err(400)),
            ("G\u{e4}T /", Err(400)),
            (&long_method[1..], Ok(None)),
            (&long_method, Err(501)),
            (&longest_uri, Ok(Some(longest_uri.len()))),
            (&long_uri, Err(414)),
            (&largest_head, Ok(Some(300))),
            (&large_head, Err(431)),
            (&empty_lines, Err(431)),
        ];
        for (bytes, expected) in rows {
            let whole = HeadScan::default().advance(bytes.as_bytes(), limits).map_err(|refused| refused.status);
            assert_eq!(whole, *expected, "{:.40}", bytes);
            let mut scan = HeadScan::default();
            let mut piecewise = Ok(None);
            for (index, byte) in bytes.as_bytes().iter().enumerate() {
                match scan.advance(&[*byte], limits) {
                    Ok(None) => continue,
                    Ok(Some(_)) => piecewise = Ok(Some(index + 1)),
                    Err(refused) => piecewise = Err(refused.status),
                }
                break;
            }
            assert_eq!(piecewise, *expected, "byte by byte: {:.40}", bytes);
        }
    }

    #[test]
    fn empty_lines_are_no_beginning() {
        for (bytes, untouched) in [("", true), ("\r", true), ("\r\n\r\n", true), ("\r\nG", false), ("G\r\n", false)] {
            let mut scan = HeadScan::default();
            assert_eq!(scan.advance(bytes.as_bytes(), HeadLimits::default()), Ok(None));
            assert_eq!(scan.is_untouched(), untouched, "{bytes:?}");
        }
    }
}
