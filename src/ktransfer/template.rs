//! The uri template of a push: literal text with placeholders for values of the message.
//!
//! A template is parsed once, when the configuration is loaded. Every value is percent-encoded, so a value can neither
//! end the path nor add a query parameter.

use std::fmt::Write;

/// A value of the message that a uri can contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placeholder {
    Topic,
    Key,
    Transid,
    Partition,
    Method,
}

const PLACEHOLDERS: [(&str, Placeholder); 5] = [
    ("{#TOPIC}", Placeholder::Topic),
    ("{#KEY}", Placeholder::Key),
    ("{#TRANSID}", Placeholder::Transid),
    ("{#PARTITION}", Placeholder::Partition),
    ("{#METHOD}", Placeholder::Method),
];

/// A part of a parsed uri.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Placeholder(Placeholder),
}

/// A parsed uri with placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UriTemplate {
    segments: Vec<Segment>,
}

/// The values of a message for the placeholders.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlaceholderValues<'message> {
    /// For `{#TOPIC}`.
    pub(super) topic: &'message str,
    /// For `{#KEY}`; empty if the message has no key.
    pub(super) key: &'message [u8],
    /// For `{#TRANSID}`: the offset.
    pub(super) transid: i64,
    /// For `{#PARTITION}`.
    pub(super) partition: i32,
    /// For `{#METHOD}`; `*` if the module configures no `methods`.
    pub(super) method: &'message str,
}

impl UriTemplate {
    /// Parses a configured uri. Fails if it does not begin with a slash, contains a character that a uri cannot carry,
    /// or has an unknown placeholder. The error is a clause whose subject is the uri, such as "must begin with a
    /// slash".
    pub(super) fn parse(uri: &str) -> Result<UriTemplate, String> {
        if !uri.starts_with('/') {
            return Err("must begin with a slash".to_owned());
        }
        let mut segments = Vec::new();
        let mut literal = String::new();
        let mut rest = uri;
        while let Some(character) = rest.chars().next() {
            if rest.starts_with("{#") {
                let (name, placeholder) =
                    PLACEHOLDERS.into_iter().find(|(name, _)| rest.starts_with(name)).ok_or_else(|| {
                        let end = rest.find('}').map_or(rest.len(), |end| end + 1);
                        let known: Vec<_> = PLACEHOLDERS.iter().map(|(name, _)| *name).collect();
                        format!("has {:?}, but the placeholders are {}", &rest[..end], known.join(" "))
                    })?;
                if !literal.is_empty() {
                    segments.push(Segment::Literal(std::mem::take(&mut literal)));
                }
                segments.push(Segment::Placeholder(placeholder));
                rest = &rest[name.len()..];
                continue;
            }
            if character.is_ascii_control() || character == ' ' || character == '#' {
                return Err(format!(
                    "has {character:?}, which a uri cannot carry (write it as %{:02X})",
                    character as u32
                ));
            }
            if is_literal(character) {
                literal.push(character);
            } else {
                let mut buffer = [0; 4];
                encode_into(&mut literal, character.encode_utf8(&mut buffer).as_bytes());
            }
            rest = &rest[character.len_utf8()..];
        }
        if !literal.is_empty() {
            segments.push(Segment::Literal(literal));
        }
        Ok(UriTemplate { segments })
    }

    /// Fills the placeholders with `values` and appends the result to `uri`.
    pub(super) fn fill_into(&self, uri: &mut String, values: &PlaceholderValues<'_>) {
        for segment in &self.segments {
            match segment {
                Segment::Literal(text) => uri.push_str(text),
                Segment::Placeholder(Placeholder::Topic) => encode_into(uri, values.topic.as_bytes()),
                Segment::Placeholder(Placeholder::Key) => encode_into(uri, values.key),
                Segment::Placeholder(Placeholder::Method) => encode_into(uri, values.method.as_bytes()),
                Segment::Placeholder(Placeholder::Transid) => number_into(uri, values.transid),
                Segment::Placeholder(Placeholder::Partition) => number_into(uri, values.partition.into()),
            }
        }
    }
}

/// Whether a character of the configured uri is kept; other characters are percent-encoded when the uri is parsed.
fn is_literal(character: char) -> bool {
    character.is_ascii_graphic() && !matches!(character, '"' | '<' | '>' | '\\' | '^' | '`' | '{' | '|' | '}')
}

fn number_into(text: &mut String, number: i64) {
    write!(text, "{number}").expect("writing to memory does not fail");
}

/// Appends `bytes` percent-encoded, except letters, digits and `-._~` (the unreserved characters of RFC 3986).
pub(super) fn encode_into(text: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(*byte)),
            _ => {
                text.push('%');
                text.push(char::from(DIGITS[usize::from(byte >> 4)]));
                text.push(char::from(DIGITS[usize::from(byte & 15)]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::percent_decode;
    use proptest::prelude::*;

    fn filled(uri: &str, key: &[u8]) -> String {
        let mut text = String::new();
        let values = PlaceholderValues { topic: "t-1", key, transid: 42, partition: 3, method: "*" };
        UriTemplate::parse(uri).unwrap().fill_into(&mut text, &values);
        text
    }

    #[test]
    fn placeholders_are_filled_and_encoded() {
        for (uri, key, expected) in [
            ("/", b"k".as_slice(), "/"),
            (
                "/XXX/{#TOPIC}?key={#KEY}&transid={#TRANSID}&format=msgpack",
                b"a b",
                "/XXX/t-1?key=a%20b&transid=42&format=msgpack",
            ),
            ("/{#PARTITION}{#METHOD}{#PARTITION}", b"", "/3%2A3"),
            ("/{#KEY}", b"\x00/?#&=%\xff~-._Az9", "/%00%2F%3F%23%26%3D%25%FF~-._Az9"),
            ("/{#KEY}x", b"{#TOPIC}", "/%7B%23TOPIC%7Dx"),
            ("/a{b}%41\u{e9}", b"", "/a%7Bb%7D%41%C3%A9"),
        ] {
            assert_eq!(filled(uri, key), expected, "{uri}");
        }
    }

    #[test]
    fn a_bad_uri_is_refused_with_the_reason() {
        for (uri, reason) in [
            ("", "must begin with a slash"),
            ("push", "must begin with a slash"),
            (
                "/{#TOPICS}",
                "has \"{#TOPICS}\", but the placeholders are {#TOPIC} {#KEY} {#TRANSID} {#PARTITION} {#METHOD}",
            ),
            ("/{#key", "has \"{#key\", but the placeholders are {#TOPIC} {#KEY} {#TRANSID} {#PARTITION} {#METHOD}"),
            ("/a b", "has ' ', which a uri cannot carry (write it as %20)"),
            ("/a\r\nHost: b", "has '\\r', which a uri cannot carry (write it as %0D)"),
            ("/a#b", "has '#', which a uri cannot carry (write it as %23)"),
        ] {
            assert_eq!(UriTemplate::parse(uri).unwrap_err(), reason, "{uri:?}");
        }
    }

    proptest! {
        #[test]
        fn encoded_bytes_are_unreserved_and_decode_to_the_input(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut text = String::new();
            encode_into(&mut text, &bytes);
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte)));
            let decoded = percent_decode(&text);
            prop_assert_eq!(decoded.as_deref(), Some(&*bytes));
        }

        #[test]
        fn no_key_adds_a_query_parameter_to_the_uri(key in prop::collection::vec(any::<u8>(), 0..64)) {
            let uri = filled("/a?key={#KEY}&b=c", &key);
            prop_assert_eq!(uri.matches('?').count(), 1);
            prop_assert_eq!(uri.matches('&').count(), 1);
            prop_assert!(uri.is_ascii());
        }
    }
}
