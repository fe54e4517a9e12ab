//! `application/x-ndjson`: one JSON object a line into messages.
//!
//! Members: exactly one of `value` (a string: its UTF-8), `value_json` (any JSON: its text as it stands in the line) and
//! `value_base64`; at most one of `key` and `key_base64`; `headers` (an object of strings), `partition`, `timestamp`.
//! Whatever could be read in two ways is refused: other members, one given twice, `null`, empty lines.

use std::fmt;
use std::marker::PhantomData;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Unexpected, Visitor};
use serde_json::value::RawValue;

use super::{Bounds, Entry, MAX_HEADERS, malformed};
use crate::broker::Header;
use crate::kproxy::answer::Failure;

/// Longest part of a complaint, which may hold something of the line.
const SHOWN: usize = 160;

/// The messages of a body that is not empty. A line end after the last line may be there or not.
pub(super) fn parse(body: &[u8], bounds: &Bounds) -> Result<Vec<Entry>, Failure> {
    let body = body.strip_suffix(b"\n").unwrap_or(body);
    let mut entries = Vec::new();
    for (number, line) in (1..).zip(body.split(|&byte| byte == b'\n')) {
        bounds.check_count(entries.len())?;
        if line.trim_ascii().is_empty() {
            return Err(malformed(format_args!("line {number}"), "it is empty"));
        }
        let entry = entry(line).map_err(|error| {
            // The byte that was looked at when it was noticed.
            let (column, words) = (error.column().max(1), error.to_string());
            // The place is told in our own words.
            let words = words.rsplit_once(" at line ").map_or(&*words, |(words, _)| words);
            let words = &words[..words.floor_char_boundary(SHOWN)];
            malformed(format_args!("line {number}, byte {column}"), words)
        })?;
        bounds.check(&entry, format_args!("line {number}"))?;
        entries.push(entry);
    }
    Ok(entries)
}

fn entry(line: &[u8]) -> serde_json::Result<Entry> {
    let mut reader = serde_json::Deserializer::from_slice(line);
    let entry = reader.deserialize_map(Line)?;
    reader.end()?;
    Ok(entry)
}

#[derive(serde::Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Member {
    Key,
    KeyBase64,
    Value,
    ValueJson,
    ValueBase64,
    Headers,
    Partition,
    Timestamp,
    Other(String),
}

/// An object into an [`Entry`].
struct Line;

impl<'de> Visitor<'de> for Line {
    type Value = Entry;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
        let (mut key, mut value, mut headers, mut partition, mut timestamp_ms) = (None, None, None, None, None);
        while let Some(member) = map.next_key()? {
            match member {
                Member::Key => once("the key", &mut key, map.next_value_seed(Text)?)?,
                Member::KeyBase64 => once("the key", &mut key, map.next_value_seed(Base64)?)?,
                Member::Value => once("the value", &mut value, map.next_value_seed(Text)?)?,
                Member::ValueJson => once("the value", &mut value, map.next_value::<&RawValue>()?.get().into())?,
                Member::ValueBase64 => once("the value", &mut value, map.next_value_seed(Base64)?)?,
                Member::Headers => once("headers", &mut headers, map.next_value_seed(HeaderMap)?)?,
                Member::Partition => once("partition", &mut partition, map.next_value_seed(Whole::new())?)?,
                Member::Timestamp => once("timestamp", &mut timestamp_ms, map.next_value_seed(Whole::new())?)?,
                Member::Other(name) => {
                    let name = &name[..name.floor_char_boundary(40)];
                    return Err(A::Error::custom(format_args!("there is no member {name:?}")));
                }
            }
        }
        // Kafka's clients read 0 as no timestamp.
        if timestamp_ms == Some(0) {
            return Err(A::Error::custom("timestamp must be from 1"));
        }
        let value = value.ok_or_else(|| A::Error::custom("one of value, value_json and value_base64 is needed"))?;
        Ok(Entry { key, value, headers: headers.unwrap_or_default(), partition, timestamp_ms })
    }
}

fn once<T, E: Error>(what: &str, slot: &mut Option<T>, value: T) -> Result<(), E> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(E::custom(format_args!("{what} is given twice"))),
    }
}

/// A string into its bytes.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Vec<u8>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<u8>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Text {
    type Value = Vec<u8>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<u8>, E> {
        Ok(text.into())
    }
}

/// A string in base64 into the bytes it stands for.
struct Base64;

impl<'de> DeserializeSeed<'de> for Base64 {
    type Value = Vec<u8>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<u8>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Base64 {
    type Value = Vec<u8>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string in base64, with padding")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<u8>, E> {
        STANDARD.decode(text).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// A number that is not negative.
struct Whole<T>(PhantomData<T>);

impl<T> Whole<T> {
    fn new() -> Self {
        Whole(PhantomData)
    }
}

impl<'de, T: TryFrom<i64>> DeserializeSeed<'de> for Whole<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_i64(self)
    }
}

impl<T: TryFrom<i64>> Visitor<'_> for Whole<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = if size_of::<T>() == 4 { i64::from(i32::MAX) } else { i64::MAX };
        write!(formatter, "a whole number from 0 to {most}")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        let fitting = i64::try_from(number).ok().and_then(|number| T::try_from(number).ok());
        fitting.ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
    }
}

/// An object of strings into headers, in its order.
struct HeaderMap;

impl<'de> DeserializeSeed<'de> for HeaderMap {
    type Value = Vec<Header>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Header>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderMap {
    type Value = Vec<Header>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Header>, A::Error> {
        let mut headers: Vec<Header> = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if headers.iter().any(|header| header.name == name) {
                let name = &name[..name.floor_char_boundary(40)];
                return Err(A::Error::custom(format_args!("the header {name:?} is given twice")));
            }
            // One more than may be is kept, so that the caller complains; the others would only cost.
            if headers.len() > MAX_HEADERS {
                return Err(A::Error::custom(format_args!("there are more than {MAX_HEADERS} headers")));
            }
            let value = Some(map.next_value_seed(Text)?);
            headers.push(Header { name, value });
        }
        Ok(headers)
    }
}
