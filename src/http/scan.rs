//! Finds the end of a request head while its bytes arrive, and refuses bytes that cannot be a head before the head is
//! complete.
//!
//! Every byte is scanned once. The result does not depend on how the bytes are split into reads.

use super::refusal::Refusal;

/// Longest method in bytes; the longest registered method (UPDATEREDIRECTREF) has 17.
const MAX_METHOD_BYTES: usize = 32;

/// Limits on the size of a request head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Longest request target in bytes; a longer target is answered with 414.
    pub uri: usize,
    /// Largest request line and headers together in bytes; a larger head is answered with 431.
    pub head: usize,
}

impl Default for HeadLimits {
    fn default() -> Self {
        HeadLimits { uri: 8 * 1024, head: 16 * 1024 }
    }
}

/// State of the scan of one head.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    /// Number of bytes scanned, including empty lines before the request line.
    scanned: usize,
    /// Number of bytes of the current line so far.
    line: usize,
    /// Part of the head to which the next byte belongs.
    part: HeadPart,
    /// Number of bytes of the request line before its target.
    before_target: usize,
    /// Whether the previous byte was a CR.
    after_cr: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum HeadPart {
    #[default]
    Method,
    Target,
    Version,
    Headers,
}

impl HeadScan {
    /// Scans the next bytes. Returns `Some(n)` if the head ends with the first n of these bytes, and `None` if it needs
    /// further bytes.
    pub(super) fn advance(&mut self, bytes: &[u8], limits: HeadLimits) -> Result<Option<usize>, Refusal> {
        let mut index = 0;
        while let Some(byte) = bytes.get(index) {
            let plain_count = self.plain_count(&bytes[index..], limits);
            if plain_count > 0 {
                self.scanned += plain_count;
                self.line += plain_count;
                index += plain_count;
                continue;
            }
            self.scanned += 1;
            if self.scanned > limits.head {
                return Err(Refusal::over_limit(
                    "headers",
                    431,
                    "the request line and headers are larger than allowed",
                ));
            }
            match byte {
                b'\n' if self.after_cr => {
                    self.after_cr = false;
                    if self.line > 0 {
                        self.part = HeadPart::Headers;
                    } else if self.part == HeadPart::Headers {
                        return Ok(Some(index + 1));
                    }
                    // RFC 9112 2.2: empty lines before the request line are ignored.
                    self.line = 0;
                }
                _ if self.after_cr => return Err(Refusal::bad_request("CR without LF in the request head")),
                b'\n' => return Err(Refusal::bad_request("LF without CR in the request head")),
                b'\r' => self.after_cr = true,
                _ => {
                    self.line += 1;
                    if self.part != HeadPart::Headers {
                        self.scan_request_line(*byte, limits)?;
                    }
                }
            }
            index += 1;
        }
        Ok(None)
    }

    /// Returns the number of bytes at the beginning of `bytes` that are within the target or a header line, and within
    /// the limits: they are counted together. This takes a fraction of the time of a step for each.
    fn plain_count(&self, bytes: &[u8], limits: HeadLimits) -> usize {
        let (max, end) = match self.part {
            _ if self.after_cr => return 0,
            HeadPart::Target => ((limits.uri + self.before_target).saturating_sub(self.line), b' '),
            HeadPart::Headers => (usize::MAX, b'\r'),
            HeadPart::Method | HeadPart::Version => return 0,
        };
        let max = max.min(limits.head.saturating_sub(self.scanned)).min(bytes.len());
        position_of_any(&bytes[..max], [end, b'\r', b'\n']).unwrap_or(max)
    }

    /// Scans one byte of the request line. Refuses a malformed or too long method or target before it is complete.
    fn scan_request_line(&mut self, byte: u8, limits: HeadLimits) -> Result<(), Refusal> {
        match self.part {
            HeadPart::Method if byte == b' ' && self.line > 1 => {
                self.part = HeadPart::Target;
                self.before_target = self.line;
            }
            HeadPart::Method if !is_token(byte) => return Err(Refusal::bad_request("not an HTTP request")),
            HeadPart::Method if self.line > MAX_METHOD_BYTES => return Err(Refusal::new(501, "unknown method")),
            HeadPart::Target if byte == b' ' => self.part = HeadPart::Version,
            HeadPart::Target if self.line - self.before_target > limits.uri => {
                return Err(Refusal::over_limit("uri", 414, "the request target is longer than allowed"));
            }
            _ => {}
        }
        Ok(())
    }

    /// Returns the number of bytes scanned, including the byte that was refused.
    pub(super) fn scanned(&self) -> usize {
        self.scanned
    }

    /// Returns whether nothing but empty lines has been scanned.
    pub(super) fn is_blank(&self) -> bool {
        self.line == 0 && self.part == HeadPart::Method
    }
}

/// Returns the position of the first byte that is one of `wanted`. Eight bytes are looked at in one step, as the bytes
/// of a number: a byte of `differences` is 0 where a wanted byte is. Subtracting 1 from each byte then sets the highest
/// bit of the first such byte (and maybe of bytes behind it, through the borrow).
fn position_of_any(bytes: &[u8], wanted: [u8; 3]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 255;
    const HIGH_BITS: u64 = ONES * 128;
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let found = wanted.iter().fold(0, |found, byte| {
            let differences = word ^ (ONES * u64::from(*byte));
            found | differences.wrapping_sub(ONES) & !differences & HIGH_BITS
        });
        if found != 0 {
            return Some(index * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    let in_rest = rest.iter().position(|byte| wanted.contains(byte))?;
    Some(words.len() * 8 + in_rest)
}

/// Returns whether `byte` may occur in a method or a header name (`tchar`, RFC 9110 5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_head_is_found_or_the_bytes_are_refused() {
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
            let whole = HeadScan::default().advance(bytes.as_bytes(), limits).map_err(|refusal| refusal.status);
            assert_eq!(whole, *expected, "{:.40}", bytes);
            let mut scan = HeadScan::default();
            let mut piecewise = Ok(None);
            for (index, byte) in bytes.as_bytes().iter().enumerate() {
                match scan.advance(&[*byte], limits) {
                    Ok(None) => continue,
                    Ok(Some(_)) => piecewise = Ok(Some(index + 1)),
                    Err(refusal) => piecewise = Err(refusal.status),
                }
                break;
            }
            assert_eq!(piecewise, *expected, "byte by byte: {:.40}", bytes);
        }
    }

    #[test]
    fn the_first_of_some_bytes_is_found_at_each_position() {
        let wanted = [b' ', b'\r', b'\n'];
        for length in 0..40 {
            let mut bytes: Vec<u8> = (0..length).map(|number| b"\x0b\x0c\x0e!\x00\xff\x8d\x20"[number % 7]).collect();
            assert_eq!(position_of_any(&bytes, wanted), None, "{length}");
            for at in (0..length).rev() {
                bytes[at] = wanted[at % 3];
                assert_eq!(position_of_any(&bytes, wanted), Some(at), "{at} of {length}");
            }
        }
    }

    #[test]
    fn empty_lines_do_not_start_a_request() {
        for (bytes, blank) in [("", true), ("\r", true), ("\r\n\r\n", true), ("\r\nG", false), ("G\r\n", false)] {
            let mut scan = HeadScan::default();
            assert_eq!(scan.advance(bytes.as_bytes(), HeadLimits::default()), Ok(None));
            assert_eq!(scan.is_blank(), blank, "{bytes:?}");
        }
    }
}
