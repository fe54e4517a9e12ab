//! Finds the end of a request head in bytes that arrive in any pieces, and stops early at bytes that cannot be one.
//!
//! Every byte is looked at once and the verdict depends on the bytes alone, not on how they were cut.

/// Longest request line, without its end.
pub(super) const MAX_REQUEST_LINE: usize = 8 * 1024;
/// Largest request line and headers together.
pub(super) const MAX_HEAD: usize = 16 * 1024;

/// Why a request is answered by the server itself, and its connection closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: u16,
    pub(super) reason: &'static str,
}

impl Refused {
    pub(super) const fn new(status: u16, reason: &'static str) -> Self {
        Refused { status, reason }
    }

    pub(super) const fn bad(reason: &'static str) -> Self {
        Self::new(400, reason)
    }
}

/// Where the scan of one head stands.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    /// Bytes looked at, empty lines before the request line included.
    seen: usize,
    /// Bytes of the current line so far.
    line: usize,
    /// Whether the request line is complete.
    in_headers: bool,
    /// Whether the byte before was a CR.
    carriage: bool,
}

impl HeadScan {
    /// Looks at the next bytes. `Some(n)`: the head ends with the first n of them.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refused> {
        for (index, byte) in bytes.iter().enumerate() {
            match byte {
                b'\n' if self.carriage => {
                    self.carriage = false;
                    if self.line == 0 && self.in_headers {
                        return Ok(Some(index + 1));
                    }
                    // RFC 9112 2.2: empty lines before the request line are passed over.
                    self.in_headers |= self.line > 0;
                    self.line = 0;
                }
                _ if self.carriage => return Err(Refused::bad("a CR that no LF follows")),
                b'\n' => return Err(Refused::bad("a line that ends without CR")),
                b'\r' => self.carriage = true,
                _ => {
                    if self.line == 0 && !self.in_headers && !byte.is_ascii_uppercase() && !is_token(*byte) {
                        return Err(Refused::bad("not an HTTP request"));
                    }
                    self.line += 1;
                    if !self.in_headers && self.line > MAX_REQUEST_LINE {
                        return Err(Refused::new(414, "the request line is longer than 8192 bytes"));
                    }
                }
            }
            self.seen += 1;
            if self.seen > MAX_HEAD {
                return Err(Refused::new(431, "the request line and headers are larger than 16384 bytes"));
            }
        }
        Ok(None)
    }

    /// Whether no byte has been seen yet.
    pub(super) fn is_untouched(&self) -> bool {
        self.seen == 0
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
        let long_line = format!("GET /{} HTTP/1.1\r\n", "a".repeat(9000));
        let long_head = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(17_000));
        let empty_lines = "\r\n".repeat(9000);
        let rows: &[(&str, Result<Option<usize>, u16>)] = &[
            ("GET / HTTP/1.1\r\n\r\nrest", Ok(Some(18))),
            ("\r\n\r\nGET / HTTP/1.1\r\nA: b\r\n\r\n", Ok(Some(28))),
            ("GET / HTTP/1.1\r\nA: b\r\n", Ok(None)),
            ("", Ok(None)),
            ("GET / HTTP/1.1\n\n", Err(400)),
            ("GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", Err(400)),
            ("\u{16}\u{3}\u{1}", Err(400)),
            (" GET", Err(400)),
            (&long_line, Err(414)),
            (&long_head, Err(431)),
            (&empty_lines, Err(431)),
        ];
        for (bytes, expected) in rows {
            let whole = HeadScan::default().advance(bytes.as_bytes()).map_err(|refused| refused.status);
            assert_eq!(whole, *expected, "{:.40}", bytes);
            let mut scan = HeadScan::default();
            let mut piecewise = Ok(None);
            for (index, byte) in bytes.as_bytes().iter().enumerate() {
                match scan.advance(&[*byte]) {
                    Ok(None) => continue,
                    Ok(Some(_)) => piecewise = Ok(Some(index + 1)),
                    Err(refused) => piecewise = Err(refused.status),
                }
                break;
            }
            assert_eq!(piecewise, *expected, "byte by byte: {:.40}", bytes);
        }
    }
}
