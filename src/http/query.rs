//! The parts of query strings, and their percent-decoding.

use std::borrow::Cow;

/// One parameter of a query string, still percent-encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryPair<'a> {
    /// The part before the first `=`.
    pub name: &'a str,
    /// The part after the first `=`; `None` without a `=`.
    pub value: Option<&'a str>,
}

/// Returns the parts of a query string between the `&`. The bytes are searched one by one: parameters are so short that
/// the search of `str::split` takes longer.
pub fn query_pairs(query: &str) -> impl Iterator<Item = QueryPair<'_>> {
    let mut rest = Some(query);
    std::iter::from_fn(move || {
        let text = rest?;
        let (pair, after) = split_at_byte(text, b'&');
        rest = after;
        let (name, value) = split_at_byte(pair, b'=');
        Some(QueryPair { name, value })
    })
}

/// Returns the parts before and after the first `separator`, an ASCII character.
fn split_at_byte(text: &str, separator: u8) -> (&str, Option<&str>) {
    match text.bytes().position(|byte| byte == separator) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

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
    fn a_query_is_split_as_std_splits_it() {
        for query in ["", "a", "a=b", "a=b=c&&=&d&e=\u{e4}&", "&a", "=", "a&b=1&c="] {
            let expected: Vec<_> = query
                .split('&')
                .map(|pair| pair.split_once('=').map_or((pair, None), |(name, value)| (name, Some(value))))
                .collect();
            let pairs: Vec<_> = query_pairs(query).map(|pair| (pair.name, pair.value)).collect();
            assert_eq!(pairs, expected, "{query}");
        }
    }

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
