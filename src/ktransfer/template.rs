//! The uri of a push: a text with places for what a message brings.
//!
//! Parsed once. Every value is percent-encoded: whatever a key holds, it can end neither the path nor a parameter.

use std::fmt::Write;

/// A part of the uri that a message fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Topic,
    Key,
    Transid,
    Partition,
    Method,
}

const PLACES: [(&str, Place); 5] = [
    ("{#TOPIC}", Place::Topic),
    ("{#KEY}", Place::Key),
    ("{#TRANSID}", Place::Transid),
    ("{#PARTITION}", Place::Partition),
    ("{#METHOD}", Place::Method),
];

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Place(Place),
}

/// A parsed uri.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

/// What a message puts into the places.
#[derive(Clone, Copy, Debug)]
pub struct Values<'message> {
    /// `{#TOPIC}`
    pub topic: &'message str,
    /// `{#KEY}`; empty for a message without one.
    pub key: &'message [u8],
    /// `{#TRANSID}`: the offset.
    pub transid: i64,
    /// `{#PARTITION}`
    pub partition: i32,
    /// `{#METHOD}`; `*` where no methods are configured.
    pub method: &'message str,
}

impl Template {
    /// Parses a uri, or says what is wrong with it.
    pub fn parse(uri: &str) -> Result<Template, String> {
        if !uri.starts_with('/') {
            return Err("must begin with a slash".to_owned());
        }
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = uri;
        while let Some(character) = rest.chars().next() {
            if rest.starts_with("{#") {
                let (name, place) = PLACES.into_iter().find(|(name, _)| rest.starts_with(name)).ok_or_else(|| {
                    let end = rest.find('}').map_or(rest.len(), |end| end + 1);
                    let known: Vec<_> = PLACES.iter().map(|(name, _)| *name).collect();
                    format!("has {:?}, but the places are {}", &rest[..end], known.join(" "))
                })?;
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                }
                parts.push(Part::Place(place));
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
            parts.push(Part::Literal(literal));
        }
        Ok(Template { parts })
    }

    /// Appends the uri of a message to `uri`.
    pub fn fill_into(&self, uri: &mut String, values: &Values<'_>) {
        for part in &self.parts {
            match part {
                Part::Literal(text) => uri.push_str(text),
                Part::Place(Place::Topic) => encode_into(uri, values.topic.as_bytes()),
                Part::Place(Place::Key) => encode_into(uri, values.key),
                Part::Place(Place::Method) => encode_into(uri, values.method.as_bytes()),
                Part::Place(Place::Transid) => number_into(uri, values.transid),
                Part::Place(Place::Partition) => number_into(uri, values.partition.into()),
            }
        }
    }
}

/// What the uri of the file may hold as it is; the rest is percent-encoded once, at the parse.
fn is_literal(character: char) -> bool {
    character.is_ascii_graphic() && !matches!(character, '"' | '<' | '>' | '\\' | '^' | '`' | '{' | '|' | '}')
}

fn number_into(text: &mut String, number: i64) {
    write!(text, "{number}").expect("writing to memory does not fail");
}

/// Appends bytes percent-encoded: letters, digits and `-._~` stay (the unreserved characters of RFC 3986).
pub fn encode_into(text: &mut String, bytes: &[u8]) {
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
        let values = Values { topic: "t-1", key, transid: 42, partition: 3, method: "*" };
        Template::parse(uri).unwrap().fill_into(&mut text, &values);
        text
    }

    #[test]
    fn places_are_filled_and_encoded() {
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
    fn a_bad_uri_says_why() {
        for (uri, reason) in [
            ("", "must begin with a slash"),
            ("push", "must begin with a slash"),
            ("/{#TOPICS}", "has \"{#TOPICS}\", but the places are {#TOPIC} {#KEY} {#TRANSID} {#PARTITION} {#METHOD}"),
            ("/{#key", "has \"{#key\", but the places are {#TOPIC} {#KEY} {#TRANSID} {#PARTITION} {#METHOD}"),
            ("/a b", "has ' ', which a uri cannot carry (write it as %20)"),
            ("/a\r\nHost: b", "has '\\r', which a uri cannot carry (write it as %0D)"),
            ("/a#b", "has '#', which a uri cannot carry (write it as %23)"),
        ] {
            assert_eq!(Template::parse(uri).unwrap_err(), reason, "{uri:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_can_be_decoded_and_is_unreserved(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut text = String::new();
            encode_into(&mut text, &bytes);
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte)));
            let decoded = percent_decode(&text);
            prop_assert_eq!(decoded.as_deref(), Some(&*bytes));
        }

        #[test]
        fn no_key_changes_the_shape_of_the_uri(key in prop::collection::vec(any::<u8>(), 0..64)) {
            let uri = filled("/a?key={#KEY}&b=c", &key);
            prop_assert_eq!(uri.matches('?').count(), 1);
            prop_assert_eq!(uri.matches('&').count(), 1);
            prop_assert!(uri.is_ascii());
        }
    }
}
