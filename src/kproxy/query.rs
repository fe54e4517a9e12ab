//! Parses the query of `/commit` and `/commit_batch`: topic, key, acks, partition, timestamp and tombstone.

use std::borrow::Cow;
use std::str::FromStr;

use super::answer::Failure;
use crate::broker::{Acks, PartitionId, is_topic_name};
use crate::http::{QueryPair, percent_decode, query_pairs};

/// The checked parameters of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Query<'a> {
    /// A legal topic name.
    pub(super) topic: Cow<'a, str>,
    /// `None` if the parameter is absent or empty.
    pub(super) key: Option<Cow<'a, [u8]>>,
    pub(super) acks: Acks,
    /// Not negative.
    pub(super) partition: Option<PartitionId>,
    /// At least 1.
    pub(super) timestamp_ms: Option<i64>,
    /// The message is a tombstone: its value is null. It then has a key.
    pub(super) is_tombstone: bool,
}

/// Parses a query, still percent-encoded. Unknown parameters are ignored, as in the original.
pub(super) fn parse(query: &str) -> Result<Query<'_>, Failure> {
    let (mut topic, mut key, mut acks, mut partition, mut timestamp, mut tombstone) =
        (None, None, None, None, None, None);
    for QueryPair { name, value } in query_pairs(query) {
        let value = value.unwrap_or_default();
        let parameter = match percent_decode(name).as_deref() {
            Some(b"topic") => &mut topic,
            Some(b"key") => &mut key,
            Some(b"acks") => &mut acks,
            Some(b"partition") => &mut partition,
            Some(b"timestamp") => &mut timestamp,
            Some(b"tombstone") => &mut tombstone,
            _ => continue,
        };
        let value = percent_decode(value).ok_or_else(|| Failure::bad_encoding(name))?;
        if parameter.replace(value).is_some() {
            return Err(Failure::repeated_parameter(name));
        }
    }
    let acks = match acks.as_deref() {
        None | Some(b"" | b"1") => Acks::Leader,
        Some(b"0") => Acks::None,
        Some(b"-1") => Acks::All,
        Some(_) => return Err(Failure::bad_acks()),
    };
    let partition = number(partition.as_deref()).map_err(|_| Failure::bad_partition())?;
    let timestamp_ms = number(timestamp.as_deref())
        .ok()
        // Kafka clients treat the timestamp 0 as absent.
        .filter(|timestamp| *timestamp != Some(0))
        .ok_or_else(Failure::bad_timestamp)?;
    let topic = topic.filter(|topic| !topic.is_empty()).ok_or_else(Failure::missing_topic)?;
    let key = key.filter(|key| !key.is_empty());
    let is_tombstone = match tombstone.as_deref() {
        None | Some(b"0") => false,
        Some(b"1") if key.is_none() => return Err(Failure::bad_tombstone("tombstone=1 needs a key, which it deletes")),
        Some(b"1") => true,
        Some(_) => return Err(Failure::bad_tombstone("tombstone must be 0 or 1")),
    };
    Ok(Query { topic: legal(topic)?, key, acks, partition, timestamp_ms, is_tombstone })
}

/// Parses a number of decimal digits only. An empty value is an error, unlike an empty key: the message would get a
/// partition or a timestamp that the client did not choose.
fn number<T: FromStr>(value: Option<&[u8]>) -> Result<Option<T>, ()> {
    let Some(value) = value else { return Ok(None) };
    let digits = str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|digits| digits.parse().ok()).map(Some).ok_or(())
}

fn legal(topic: Cow<'_, [u8]>) -> Result<Cow<'_, str>, Failure> {
    let is_legal = is_topic_name(&topic);
    let text = match topic {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
    };
    text.filter(|_| is_legal).ok_or_else(Failure::bad_topic)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Topic, key and acks, or the code of the failure.
    type Outcome<'a> = Result<(&'a str, Option<&'a [u8]>, Acks), &'a str>;

    #[test]
    fn a_query_is_parsed_or_refused_with_a_code() {
        let longest = format!("topic={}", "a".repeat(249));
        let too_long = format!("topic={}", "a".repeat(250));
        let rows: &[(&str, Outcome<'_>)] = &[
            ("topic=t", Ok(("t", None, Acks::Leader))),
            ("topic=t&key=k&acks=1", Ok(("t", Some(b"k"), Acks::Leader))),
            ("acks=0&key=&topic=a.b_c-D9", Ok(("a.b_c-D9", None, Acks::None))),
            ("topic=t&acks=-1", Ok(("t", None, Acks::All))),
            ("topic=t&acks=", Ok(("t", None, Acks::Leader))),
            ("topic=t&acks=%2d1", Ok(("t", None, Acks::All))),
            ("t%6Fpic=%74&key=%00%ff%2B+", Ok(("t", Some(b"\0\xff+ "), Acks::Leader))),
            ("topic=t&key=a=b", Ok(("t", Some(b"a=b"), Acks::Leader))),
            ("topic=t&other=1&other=2&bad=%z&&x", Ok(("t", None, Acks::Leader))),
            (&longest, Ok((&longest[6..], None, Acks::Leader))),
            ("", Err("no_topic")),
            ("key=k", Err("no_topic")),
            ("topic=", Err("no_topic")),
            ("topic", Err("no_topic")),
            ("topic=.", Err("bad_topic")),
            ("topic=..", Err("bad_topic")),
            ("topic=a/b", Err("bad_topic")),
            ("topic=a+b", Err("bad_topic")),
            ("topic=%C3%A4", Err("bad_topic")),
            ("topic=%ff", Err("bad_topic")),
            (&too_long, Err("bad_topic")),
            ("topic=t&acks=2", Err("bad_acks")),
            ("topic=t&acks=all", Err("bad_acks")),
            ("topic=t&acks=01", Err("bad_acks")),
            ("topic=t&topic=t", Err("repeated_parameter")),
            ("topic=t&key=a&key=b", Err("repeated_parameter")),
            ("topic=t&key=&key=", Err("repeated_parameter")),
            ("topic=t&acks=1&acks=1", Err("repeated_parameter")),
            ("topic=t&key=%", Err("bad_encoding")),
            ("topic=t&key=%4", Err("bad_encoding")),
            ("topic=t&key=%4g", Err("bad_encoding")),
            ("topic=%+1", Err("bad_encoding")),
            ("topic=t&partition=-1", Err("bad_partition")),
            ("topic=t&partition=", Err("bad_partition")),
            ("topic=t&partition=%2B1", Err("bad_partition")),
            ("topic=t&partition=1.0", Err("bad_partition")),
            ("topic=t&partition=2147483648", Err("bad_partition")),
            ("topic=t&partition=1&partition=1", Err("repeated_parameter")),
            ("topic=t&timestamp=", Err("bad_timestamp")),
            ("topic=t&timestamp=-1", Err("bad_timestamp")),
            ("topic=t&timestamp=0", Err("bad_timestamp")),
            ("topic=t&timestamp=now", Err("bad_timestamp")),
            ("topic=t&timestamp=9223372036854775808", Err("bad_timestamp")),
            ("topic=t&timestamp=1&timestamp=2", Err("repeated_parameter")),
            ("topic=t&key=k&tombstone=0", Ok(("t", Some(b"k"), Acks::Leader))),
            ("tombstone=%31&topic=t&key=k", Ok(("t", Some(b"k"), Acks::Leader))),
            ("topic=t&tombstone=1", Err("bad_tombstone")),
            ("topic=t&key=&tombstone=1", Err("bad_tombstone")),
            ("topic=t&key=k&tombstone", Err("bad_tombstone")),
            ("topic=t&key=k&tombstone=", Err("bad_tombstone")),
            ("topic=t&key=k&tombstone=true", Err("bad_tombstone")),
            ("topic=t&key=k&tombstone=01", Err("bad_tombstone")),
            ("topic=t&key=k&tombstone=1&tombstone=1", Err("repeated_parameter")),
        ];
        for (text, expected) in rows {
            let query = parse(text);
            let outcome = match &query {
                Ok(query) => Ok((query.topic.as_ref(), query.key.as_deref(), query.acks)),
                Err(failure) => Err(failure.code),
            };
            assert_eq!(outcome, *expected, "{text}");
        }
    }

    #[test]
    fn partition_and_timestamp_are_integers() {
        for (text, partition, timestamp_ms) in [
            ("topic=t", None, None),
            ("topic=t&partition=0&timestamp=1", Some(0), Some(1)),
            ("topic=t&partition=2147483647", Some(i32::MAX), None),
            ("topic=t&timestamp=%39223372036854775807", None, Some(i64::MAX)),
        ] {
            let query = parse(text).expect("it is well formed");
            assert_eq!((query.partition, query.timestamp_ms), (partition, timestamp_ms), "{text}");
        }
    }
}
