//! Reads the head of a response as far as the outcome of a push needs it: the final status and `Retry-After`.
//!
//! This is more tolerant than the parser of the HTTP client, because a status decides whether a message is delivered,
//! whatever is wrong with the rest of the head. Pure functions over the bytes received so far.

/// Longest part of an invalid response that is quoted, in bytes.
const MAX_QUOTED_BYTES: usize = 64;

/// The interpretation of the bytes received so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// The beginning of a status line, or nothing yet.
    Nothing,
    /// An interim response (1xx). `len` is the length of its complete head; `None` if the head is not complete.
    Interim { len: Option<usize> },
    /// A final response.
    Final { status: u16, is_complete: bool },
    /// No HTTP response.
    Invalid,
}

/// Interprets the bytes received so far. 101 counts as final, because no other response follows it.
pub(super) fn read_head(input: &[u8]) -> Head {
    let blank = input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let status = match read_status(&input[blank..]) {
        Ok(Some(status)) => status,
        Ok(None) => return Head::Nothing,
        Err(Invalid) => return Head::Invalid,
    };
    let len = end_of_head(&input[blank..]).map(|len| blank + len);
    match status {
        100 | 102..=199 => Head::Interim { len },
        _ => Head::Final { status, is_complete: len.is_some() },
    }
}

struct Invalid;

/// Returns the status of the line that `input` begins with; `None` if more bytes are needed.
fn read_status(input: &[u8]) -> Result<Option<u16>, Invalid> {
    const PROTOCOL: &[u8] = b"HTTP/";
    let known = input.len().min(PROTOCOL.len());
    if input[..known] != PROTOCOL[..known] {
        return Err(Invalid);
    }
    let version_len = input[known..].iter().take_while(|byte| byte.is_ascii_digit() || **byte == b'.').count();
    let mut code = match &input[known + version_len..] {
        [] => return Ok(None),
        [b' ', rest @ ..] if input[known].is_ascii_digit() => rest,
        _ => return Err(Invalid),
    };
    while let [b' ', rest @ ..] = code {
        code = rest;
    }
    let code = &code[..code.len().min(4)];
    let n_digits = code.iter().take(3).take_while(|byte| byte.is_ascii_digit()).count();
    match *code {
        // The byte behind the third digit proves that the code has no further digit.
        [a, b, c, b' ' | b'\r' | b'\n'] if n_digits == 3 => {
            Ok(Some([a, b, c].iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'))))
        }
        [] | [_] | [_, _] | [_, _, _] if n_digits == code.len() => Ok(None),
        _ => Err(Invalid),
    }
}

/// Returns the length of a head with its blank line; `None` if it has no blank line yet. A line may end without CR.
pub(super) fn end_of_head(input: &[u8]) -> Option<usize> {
    let is_end = |at: usize| match &input[at + 1..] {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    };
    (0..input.len()).filter(|at| input[*at] == b'\n').find_map(is_end)
}

/// Returns the value of the first complete field with this name, given in lower case; `None` if the head has none.
pub(super) fn field<'head>(head: &'head [u8], name: &str) -> Option<&'head [u8]> {
    let mut lines = head.split_inclusive(|byte| *byte == b'\n').skip_while(|line| line.trim_ascii().is_empty()).skip(1);
    lines.by_ref().take_while(|line| line.ends_with(b"\n") && !line.trim_ascii().is_empty()).find_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        line[..colon].eq_ignore_ascii_case(name.as_bytes()).then(|| line[colon + 1..].trim_ascii())
    })
}

/// Returns the beginning of an invalid response for a log line, with escapes for bytes that are not printable.
pub(super) fn quoted(input: &[u8]) -> String {
    let shown = &input[..input.len().min(MAX_QUOTED_BYTES)];
    let more = if shown.len() < input.len() { "…" } else { "" };
    format!("\"{}{more}\"", shown.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OK: Head = Head::Final { status: 200, is_complete: true };
    const OK_PART: Head = Head::Final { status: 200, is_complete: false };

    #[test]
    fn the_status_counts_whatever_follows_it() {
        for (input, expected) in [
            ("", Head::Nothing),
            ("\r\n", Head::Nothing),
            ("HT", Head::Nothing),
            ("HTTP/1.1", Head::Nothing),
            ("HTTP/1.1 20", Head::Nothing),
            // One more digit could follow.
            ("HTTP/1.1 200", Head::Nothing),
            ("HTTP/1.1 200 ", OK_PART),
            ("HTTP/1.1 200\r\n", OK_PART),
            ("HTTP/1.1 200 OK\r\nA: b\r\n", OK_PART),
            ("HTTP/1.1 200 OK\r\n\r\n", OK),
            ("\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", OK),
            ("HTTP/1.0 200 OK\n\nbody", OK),
            ("HTTP/2 200\n\r\n", OK),
            ("HTTP/1.1  200 OK\r\nno field at all\r\n\r\n", OK),
            ("HTTP/1.1 200 OK\r\nA\u{0}: \u{1}\r\n\r\n", OK),
            ("HTTP/1.1 101 Switching\r\n\r\n", Head::Final { status: 101, is_complete: true }),
            ("HTTP/1.1 999 \r\n\r\n", Head::Final { status: 999, is_complete: true }),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200", Head::Interim { len: Some(25) }),
            ("\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n", Head::Interim { len: Some(33) }),
            ("HTTP/1.1 100 Continue\r\nServer: x\r\n", Head::Interim { len: None }),
            ("SSH-2.0-x\r\n", Head::Invalid),
            ("http/1.1 200 OK\r\n\r\n", Head::Invalid),
            ("HTTP/ 200 OK\r\n\r\n", Head::Invalid),
            ("HTTP/1.1\r\n", Head::Invalid),
            ("HTTP/1.1 2x0 OK\r\n", Head::Invalid),
            ("HTTP/1.1 2000 OK\r\n", Head::Invalid),
            ("HTTP/1.1 OK\r\n", Head::Invalid),
            ("\x15\x03\x01\x02", Head::Invalid),
        ] {
            assert_eq!(read_head(input.as_bytes()), expected, "{input:?}");
        }
    }

    #[test]
    fn a_field_is_found_in_a_head_only() {
        let head = b"HTTP/1.1 503 X\r\nA: b\r\nrETRY-After:  7 \r\nRetry-After: 8\r\n\r\nIn-Body: 9\r\nCut: 1";
        for (name, value) in [
            ("retry-after", Some(b"7".as_slice())),
            ("a", Some(b"b")),
            ("in-body", None),
            ("cut", None),
            ("http/1.1 503 x", None),
        ] {
            assert_eq!(field(head, name), value, "{name}");
        }
        assert_eq!(field(b"HTTP/1.1 503 X\nretry-after:3\nother", "retry-after"), Some(b"3".as_slice()));
        assert_eq!(field(b"HTTP/1.1 503 X\nretry-after: 3", "retry-after"), None, "the line may not be complete");
    }

    #[test]
    fn a_quote_is_short_and_printable() {
        assert_eq!(quoted(b"\x15\x03A\"\n"), r#""\x15\x03A\"\n""#);
        let long = quoted(&[b'x'; 10_000]);
        assert_eq!(long, format!("\"{}…\"", "x".repeat(MAX_QUOTED_BYTES)));
    }

    proptest! {
        /// A status that was seen once does not change when more bytes arrive.
        #[test]
        fn more_bytes_never_change_the_status(code in 200u16..1000, tail in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut response = format!("HTTP/1.1 {code} ").into_bytes();
            response.extend(tail);
            let mut seen = None;
            for len in 0..=response.len() {
                let Head::Final { status, .. } = read_head(&response[..len]) else {
                    prop_assert_eq!(seen, None);
                    continue;
                };
                prop_assert!(seen.is_none_or(|seen| seen == status));
                seen = Some(status);
            }
            prop_assert_eq!(seen, Some(code));
        }
    }
}
