//! Percent-decoding of query strings.

use std::borrow::Cow;

/// Decodes percent-encoding as in HTML forms, where `+` is a space. Returns `None` if a `%` is not followed by two
/// hexadecimal digits.
pub fn percent_decode(text: &str) -> Option<Cow<'_, [u8]>> {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Some(Cow::Borrowed(bytes));
    }
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        rest = match (first, tail) {
            (b'%', [high, low, after @ ..]) => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                decoded.push(digit(high)? << 4 | digit(low)?);
                after
            }
            (b'%', _) => return None,
            (b'+', _) => {
                decoded.push(b' ');
                tail
            }
            _ => {
                decoded.push(*first);
                tail
            }
        };
    }
    Some(Cow::Owned(decoded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_encoding_is_decoded_or_refused() {
        for (text, decoded) in [
            ("", Some(&b""[..])),
            ("a-b", Some(b"a-b")),
            ("a+b%2B%20", Some(b"a b+ ")),
            ("%00%fF%C3%a4", Some(b"\0\xff\xc3\xa4")),
            ("%25%32", Some(b"%2")),
            ("\u{e4}", Some(b"\xc3\xa4")),
            ("%", None),
            ("a%4", None),
            ("%4g", None),
            ("%+1", None),
        ] {
            assert_eq!(percent_decode(text).as_deref(), decoded, "{text}");
        }
    }
}
