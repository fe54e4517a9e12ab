//! The target of a request (RFC 9112 3.2): its forms, and bytes that a client should have percent-encoded.

use std::net::Ipv6Addr;

use super::refusal::Refusal;

const MALFORMED_TARGET: Refusal = Refusal::bad_request("malformed request target");

/// Returns a request line with the bytes outside ASCII of its query percent-encoded. A client must encode them (RFC
/// 3986 2.1), but many programs do not, and other servers accept that. Elsewhere in the line they are refused.
pub(super) fn percent_encoded(line: &[u8]) -> Result<Vec<u8>, Refusal> {
    let query = line.iter().position(|byte| *byte == b'?').unwrap_or(line.len());
    let (before, query) = line.split_at(query);
    if !before.is_ascii() {
        return Err(MALFORMED_TARGET);
    }
    let mut encoded = before.to_vec();
    for byte in query {
        match byte {
            0x80.. => encoded.extend_from_slice(format!("%{byte:02X}").as_bytes()),
            _ => encoded.push(*byte),
        }
    }
    Ok(encoded)
}

/// Splits an ASCII request target into path and query (RFC 9112 3.2): origin-form, absolute-form, or `*` for OPTIONS.
pub(super) fn split(method: &str, target: &str) -> Result<(String, Option<String>), Refusal> {
    // All bytes are looked at, without an early end: the compiler then makes it vector instructions.
    if target.bytes().fold(false, |is_bad, byte| is_bad | (byte == b'#')) {
        return Err(MALFORMED_TARGET);
    }
    if target == "*" && method == "OPTIONS" {
        return Ok(("*".to_owned(), None));
    }
    if method == "CONNECT" {
        return Err(Refusal::new(501, "method CONNECT is not supported"));
    }
    let origin = if target.starts_with('/') { target } else { after_authority(target)? };
    let (path, query) = match origin.bytes().position(|byte| byte == b'?') {
        Some(at) => (&origin[..at], Some(origin[at + 1..].to_owned())),
        None => (origin, None),
    };
    let path = if path.is_empty() { "/" } else { path };
    Ok((path.to_owned(), query))
}

/// Returns the part of an absolute-form target after its authority, or refuses the target.
fn after_authority(target: &str) -> Result<&str, Refusal> {
    let (scheme, rest) = target.split_once("://").ok_or(MALFORMED_TARGET)?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(MALFORMED_TARGET);
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    if end == 0 || !is_host(&rest.as_bytes()[..end]) {
        return Err(MALFORMED_TARGET);
    }
    Ok(&rest[end..])
}

/// Returns whether `value` is `uri-host [":" port]` (RFC 9110 7.2). An empty value is valid: a client sends an empty
/// Host header if its target has no authority.
pub(super) fn is_host(value: &[u8]) -> bool {
    if let [b'[', rest @ ..] = value {
        let Some(end) = rest.iter().position(|byte| *byte == b']') else { return false };
        let is_address = std::str::from_utf8(&rest[..end]).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok());
        return is_address && is_port(&rest[end + 1..]);
    }
    let end = value.iter().position(|byte| *byte == b':').unwrap_or(value.len());
    value[..end].iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(byte))
        && is_port(&value[end..])
}

fn is_port(text: &[u8]) -> bool {
    match text {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_bytes_outside_ascii_of_a_query_are_percent_encoded() {
        for (line, expected) in [
            (&b"GET /a?k=\xe7\x94\xa8+%20&b HTTP/1.1"[..], Some(&b"GET /a?k=%E7%94%A8+%20&b HTTP/1.1"[..])),
            (b"GET http://h/a?\xd3\xc3?\xff\x80#c HTTP/1.1", Some(b"GET http://h/a?%D3%C3?%FF%80#c HTTP/1.1")),
            (b"GET /a?\xff HTTP/\xff", Some(b"GET /a?%FF HTTP/%FF")),
            (b"GET /\xc3\xa4?k HTTP/1.1", None),
            (b"G\xff /a?k HTTP/1.1", None),
            (b"GET /\xff", None),
        ] {
            assert_eq!(percent_encoded(line).ok().as_deref(), expected, "{}", line.escape_ascii());
        }
    }
}
