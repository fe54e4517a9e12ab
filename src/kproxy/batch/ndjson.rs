//! Parses `application/x-ndjson`: one JSON object per line.
//!
//! Members: exactly one of `value` (a string: its UTF-8; `null`: a tombstone), `value_json` (any JSON: its text
//! verbatim) and `value_base64`; at most one of `key` and `key_base64`; `headers` (an object of strings), `partition`,
//! `timestamp`. Anything ambiguous is refused: unknown members, repeated members, any other `null`, empty lines.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Unexpected, Visitor};
use serde_json::value::RawValue;

use super::limits::{BatchLimits, MAX_HEADERS};
use super::message::ParsedMessage;
use crate::broker::Header;
use crate::kproxy::answer::Failure;

/// Longest problem text of serde in bytes; serde may quote the whole line.
const MAX_PROBLEM_BYTES: usize = 160;
/// Longest name of a member or header in a problem text, in bytes.
const MAX_QUOTED_BYTES: usize = 40;

/// Parses a body that is not empty into its messages. The newline after the last line is optional.
pub(super) fn parse(body: &[u8], limits: &BatchLimits) -> Result<Vec<ParsedMessage>, Failure> {
    let body = body.strip_suffix(b"\n").unwrap_or(body);
    let mut messages = Vec::new();
    for (number, line) in (1..).zip(body.split(|&byte| byte == b'\n')) {
        limits.check_count(messages.len())?;
        if line.trim_ascii().is_empty() {
            return Err(Failure::bad_batch(format_args!("line {number}"), "empty line"));
        }
        let message = message(line).map_err(|error| {
            // serde_json counts columns from 1, but may report 0 for an error before the first byte.
            let (column, text) = (error.column().max(1), error.to_string());
            // The place that serde appends is cut off: serde parses a single line, so it always reports line 1.
            let problem = text.rsplit_once(" at line ").map_or(&*text, |(problem, _)| problem);
            let problem = without_content(problem);
            let problem = &problem[..problem.floor_char_boundary(MAX_PROBLEM_BYTES)];
            Failure::bad_batch(format_args!("line {number}, byte {column}"), problem)
        })?;
        limits.check(&message, format_args!("line {number}"))?;
        messages.push(message);
    }
    Ok(messages)
}

/// Removes the value that serde quotes, as in `invalid type: string "…", expected an integer`: a message may be secret,
/// and the text is logged.
fn without_content(problem: &str) -> Cow<'_, str> {
    let quoted = problem.find(['"', '`']).zip(problem.rfind(", expected "));
    match quoted.filter(|_| problem.starts_with("invalid ")) {
        Some((start, end)) if start < end => Cow::Owned(format!("{}{}", problem[..start].trim_end(), &problem[end..])),
        _ => Cow::Borrowed(problem),
    }
}

fn message(line: &[u8]) -> serde_json::Result<ParsedMessage> {
    let mut deserializer = serde_json::Deserializer::from_slice(line);
    let message = deserializer.deserialize_map(MessageVisitor)?;
    deserializer.end()?;
    Ok(message)
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

/// Deserializes a JSON object into a [`ParsedMessage`].
struct MessageVisitor;

impl<'de> Visitor<'de> for MessageVisitor {
    type Value = ParsedMessage;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ParsedMessage, A::Error> {
        let (mut key, mut value, mut headers, mut partition, mut timestamp_ms) = (None, None, None, None, None);
        while let Some(member) = map.next_key()? {
            match member {
                Member::Key => once("the key", &mut key, map.next_value_seed(Text)?)?,
                Member::KeyBase64 => once("the key", &mut key, map.next_value_seed(Base64)?)?,
                Member::Value => once("the value", &mut value, map.next_value_seed(TextOrNull)?)?,
                Member::ValueJson => {
                    once("the value", &mut value, Some(map.next_value::<&RawValue>()?.get().into()))?;
                }
                Member::ValueBase64 => once("the value", &mut value, Some(map.next_value_seed(Base64)?))?,
                Member::Headers => once("headers", &mut headers, map.next_value_seed(HeaderMap)?)?,
                Member::Partition => once("partition", &mut partition, map.next_value_seed(Integer::new())?)?,
                Member::Timestamp => once("timestamp", &mut timestamp_ms, map.next_value_seed(Integer::new())?)?,
                Member::Other(name) => {
                    let name = &name[..name.floor_char_boundary(MAX_QUOTED_BYTES)];
                    return Err(A::Error::custom(format_args!("unknown member {name:?}")));
                }
            }
        }
        // Kafka clients treat the timestamp 0 as absent.
        if timestamp_ms == Some(0) {
            return Err(A::Error::custom("timestamp must be at least 1"));
        }
        let value = value
            .ok_or_else(|| A::Error::custom("missing value: one of value, value_json and value_base64 is required"))?;
        Ok(ParsedMessage { key, value, headers: headers.unwrap_or_default(), partition, timestamp_ms })
    }
}

/// Sets a member; fails if it is already set.
fn once<T, E: Error>(name: &str, member: &mut Option<T>, value: T) -> Result<(), E> {
    match member.replace(value) {
        None => Ok(()),
        Some(_) => Err(E::custom(format_args!("{name} is given more than once"))),
    }
}

/// Deserializes a string into its UTF-8 bytes.
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

/// Deserializes a string into its UTF-8 bytes, and `null` into `None`.
struct TextOrNull;

impl<'de> DeserializeSeed<'de> for TextOrNull {
    type Value = Option<Vec<u8>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for TextOrNull {
    type Value = Option<Vec<u8>>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string or null")
    }

    fn visit_none<E: Error>(self) -> Result<Option<Vec<u8>>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
        deserializer.deserialize_str(self)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Option<Vec<u8>>, E> {
        Ok(Some(text.into()))
    }
}

/// Deserializes a base64 string into the bytes that it encodes.
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
        formatter.write_str("a base64 string with padding")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<u8>, E> {
        STANDARD.decode(text).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// Deserializes an integer that is not negative.
struct Integer<T>(PhantomData<T>);

impl<T> Integer<T> {
    fn new() -> Self {
        Integer(PhantomData)
    }
}

impl<'de, T: TryFrom<i64>> DeserializeSeed<'de> for Integer<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_i64(self)
    }
}

impl<T: TryFrom<i64>> Visitor<'_> for Integer<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let max = if size_of::<T>() == 4 { i64::from(i32::MAX) } else { i64::MAX };
        write!(formatter, "an integer from 0 to {max}")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        let fitting = i64::try_from(number).ok().and_then(|number| T::try_from(number).ok());
        fitting.ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
    }
}

/// Deserializes an object of strings into headers, in the order of its members.
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
                let name = &name[..name.floor_char_boundary(MAX_QUOTED_BYTES)];
                return Err(A::Error::custom(format_args!("header {name:?} is given more than once")));
            }
            // One header above the maximum is accepted here, so that `BatchLimits::check` refuses the message with 413.
            // This check only bounds the time: each name is compared with all names before it.
            if headers.len() > MAX_HEADERS {
                return Err(A::Error::custom(format_args!("more than {MAX_HEADERS} headers")));
            }
            let value = Some(map.next_value_seed(Text)?);
            headers.push(Header { name, value });
        }
        Ok(headers)
    }
}
