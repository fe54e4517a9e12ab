//! The format of a dead letter in Kafka: the key, value and headers of the message, followed by header fields that say
//! why it was given up and where it came from. Pure functions.
//!
//! The fields come after the headers of the message, and [`REASON`] is the first of them. So a message that itself has
//! headers with these names, such as one that was a dead letter before, is restored with its own headers.

use std::fmt;
use std::sync::Arc;

use crate::broker::{Header, Message, Offset, PartitionId, Record};

/// Prefix of the names of all fields.
const PREFIX: &str = "X-Dead-Letter-";

const REASON: &str = "X-Dead-Letter-Reason";
const STATUS: &str = "X-Dead-Letter-Status";
const ERROR: &str = "X-Dead-Letter-Error";
const DETAIL: &str = "X-Dead-Letter-Detail";
const ATTEMPTS: &str = "X-Dead-Letter-Attempts";
const MODULE: &str = "X-Dead-Letter-Module";
const TOPIC: &str = "X-Dead-Letter-Topic";
const PARTITION: &str = "X-Dead-Letter-Partition";
const OFFSET: &str = "X-Dead-Letter-Offset";
const TIMESTAMP: &str = "X-Dead-Letter-Timestamp";
const TIME: &str = "X-Dead-Letter-Time";

/// Longest text of [`DETAIL`], in bytes.
const MAX_DETAIL_BYTES: usize = 500;

/// Why and when a message was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeadLetterCause {
    /// The reason: a word for programs.
    pub(crate) reason: &'static str,
    /// Status of the last answer, if the last attempt was answered.
    pub(crate) status: Option<u16>,
    /// Kind of the error of the last attempt, if it was not answered.
    pub(crate) error: Option<&'static str>,
    /// The reason as text for people.
    pub(crate) detail: String,
    /// Number of attempts.
    pub(crate) attempts: u32,
    /// When the message was given up, in milliseconds since 1970.
    pub(crate) time_ms: i64,
}

impl fmt::Display for DeadLetterCause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeadLetterCause { reason, detail, attempts, .. } = self;
        write!(formatter, "reason={reason}, attempts={attempts}, {detail}")
    }
}

/// Returns the dead letter of a message, to be appended to `topic`. It has no timestamp of its own: Kafka deletes
/// messages by their timestamp, and would delete the letter of an old message at once.
pub(super) fn record(topic: &Arc<str>, module: &str, message: &Message, cause: &DeadLetterCause) -> Record {
    let mut headers = message.headers.clone();
    let mut add = |name: &str, value: String| {
        headers.push(Header { name: name.to_owned(), value: Some(value.into_bytes()) });
    };
    add(REASON, cause.reason.to_owned());
    if let Some(status) = cause.status {
        add(STATUS, status.to_string());
    }
    if let Some(error) = cause.error {
        add(ERROR, error.to_owned());
    }
    let end = cause.detail.floor_char_boundary(MAX_DETAIL_BYTES);
    add(DETAIL, cause.detail[..end].to_owned());
    add(ATTEMPTS, cause.attempts.to_string());
    add(MODULE, module.to_owned());
    add(TOPIC, message.from.topic.to_string());
    add(PARTITION, message.from.partition.to_string());
    add(OFFSET, message.offset.to_string());
    if let Some(timestamp_ms) = message.timestamp_ms {
        add(TIMESTAMP, timestamp_ms.to_string());
    }
    add(TIME, cause.time_ms.to_string());
    Record {
        topic: Arc::clone(topic),
        partition: None,
        key: message.key.clone(),
        value: message.value.clone(),
        headers,
        timestamp_ms: None,
    }
}

/// A dead letter that was read.
#[derive(Clone, Debug)]
pub(crate) struct DeadLetter {
    /// The module that gave the message up.
    pub(crate) module: String,
    /// The offset that the message had.
    pub(crate) offset: Offset,
    /// The fields of the letter: their names without the prefix, and their values.
    pub(crate) fields: Vec<(String, String)>,
    /// The message, for the topic and the partition that it came from.
    pub(crate) message: Record,
}

impl DeadLetter {
    /// Restores the message of a dead letter. Fails with the reason if `letter` is none.
    pub(crate) fn read(mut letter: Message) -> Result<DeadLetter, String> {
        let begin = letter.headers.iter().rposition(|header| header.name == REASON);
        let begin = begin.ok_or_else(|| format!("it has no header {REASON}, so it is no dead letter"))?;
        let fields: Vec<(String, String)> = letter
            .headers
            .drain(begin..)
            .filter_map(|header| {
                let name = header.name.strip_prefix(PREFIX)?.to_owned();
                Some((name, String::from_utf8_lossy(&header.value.unwrap_or_default()).into_owned()))
            })
            .collect();
        let field = |name: &str| {
            let named = fields.iter().find(|(known, _)| Some(&**known) == name.strip_prefix(PREFIX));
            named.map(|(_, value)| value.as_str()).ok_or_else(|| format!("it has no header {name}"))
        };
        let number = |name: &str| {
            let value = field(name)?;
            value.parse::<i64>().map_err(|_| format!("its header {name} is {value:?}, which is no number"))
        };
        let partition =
            PartitionId::try_from(number(PARTITION)?).map_err(|_| format!("its {PARTITION} is too large"))?;
        let (module, topic, offset) = (field(MODULE)?.to_owned(), Arc::from(field(TOPIC)?), number(OFFSET)?);
        let message = Record {
            topic,
            partition: Some(partition),
            key: letter.key,
            value: letter.value,
            headers: letter.headers,
            timestamp_ms: None,
        };
        Ok(DeadLetter { module, offset, fields, message })
    }

    /// Returns the value of the field with this name, which has no prefix.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::TopicPartition;
    use crate::ktransfer::test_fixtures::{RECORD_HEADERS, job};
    use proptest::prelude::*;

    fn cause() -> DeadLetterCause {
        DeadLetterCause {
            reason: "retries_used_up",
            status: Some(503),
            error: None,
            detail: "http_status_code=503".to_owned(),
            attempts: 3,
            time_ms: 1_700_000_000_456,
        }
    }

    /// Returns the message as it is read from the dead-letter topic.
    fn stored(record: Record) -> Message {
        Message {
            from: TopicPartition { topic: record.topic, partition: 1 },
            offset: 9,
            key: record.key,
            value: record.value,
            headers: record.headers,
            timestamp_ms: Some(5),
        }
    }

    #[test]
    fn a_letter_has_the_message_and_the_fields_behind_its_headers() {
        let message = job(Some(b"k\xff"), Some(b"\0body"), RECORD_HEADERS).message;
        let letter = record(&"dead".into(), "m", &message, &cause());
        assert_eq!((&*letter.topic, letter.partition, letter.timestamp_ms), ("dead", None, None));
        assert_eq!((&letter.key, &letter.value), (&message.key, &message.value));
        assert_eq!(letter.headers[..message.headers.len()], message.headers);
        let fields: Vec<String> = letter.headers[message.headers.len()..]
            .iter()
            .map(|header| format!("{}: {}", header.name, String::from_utf8_lossy(header.value.as_ref().unwrap())))
            .collect();
        assert_eq!(
            fields,
            [
                "X-Dead-Letter-Reason: retries_used_up",
                "X-Dead-Letter-Status: 503",
                "X-Dead-Letter-Detail: http_status_code=503",
                "X-Dead-Letter-Attempts: 3",
                "X-Dead-Letter-Module: m",
                "X-Dead-Letter-Topic: t",
                "X-Dead-Letter-Partition: 3",
                "X-Dead-Letter-Offset: 42",
                "X-Dead-Letter-Timestamp: 1700000000123",
                "X-Dead-Letter-Time: 1700000000456",
            ]
        );
    }

    #[test]
    fn a_long_detail_is_cut_between_characters() {
        let cause = DeadLetterCause { detail: "é".repeat(400), status: None, error: Some("closed"), ..cause() };
        let letter = record(&"dead".into(), "m", &job(None, None, &[]).message, &cause);
        let read = DeadLetter::read(stored(letter)).unwrap();
        assert_eq!(read.field("Detail").map(str::len), Some(500));
        assert_eq!((read.field("Error"), read.field("Status")), (Some("closed"), None));
    }

    #[test]
    fn what_is_no_dead_letter_is_named() {
        let whole = record(&"dead".into(), "m", &job(None, None, &[]).message, &cause());
        for (name, value, reason) in [
            (REASON, None, "it has no header X-Dead-Letter-Reason, so it is no dead letter"),
            (MODULE, None, "it has no header X-Dead-Letter-Module"),
            (TOPIC, None, "it has no header X-Dead-Letter-Topic"),
            (OFFSET, Some("x"), "its header X-Dead-Letter-Offset is \"x\", which is no number"),
            (PARTITION, Some("4294967296"), "its X-Dead-Letter-Partition is too large"),
        ] {
            let mut letter = stored(whole.clone());
            letter.headers.retain_mut(|header| {
                header.value = value.filter(|_| header.name == name).map(Into::into).or(header.value.take());
                header.name != name || value.is_some()
            });
            assert_eq!(DeadLetter::read(letter).unwrap_err(), reason);
        }
    }

    proptest! {
        #[test]
        fn a_message_is_restored_exactly_also_after_two_lives(
            key in prop::option::of(prop::collection::vec(any::<u8>(), 0..9)),
            value in prop::option::of(prop::collection::vec(any::<u8>(), 0..9)),
            headers in prop::collection::vec((".{0,9}", prop::option::of(prop::collection::vec(any::<u8>(), 0..9))), 0..5),
        ) {
            let headers: Vec<Header> = headers.into_iter().map(|(name, value)| Header { name, value }).collect();
            let message = Message { key, value, headers, ..job(None, None, &[]).message };
            let once = record(&"dead".into(), "m", &message, &cause());
            let first = DeadLetter::read(stored(once.clone())).unwrap();
            prop_assert_eq!((&*first.message.topic, first.message.partition), ("t", Some(3)));
            prop_assert_eq!((first.module.as_str(), first.offset), ("m", 42));
            prop_assert_eq!(&first.message.key, &message.key);
            prop_assert_eq!(&first.message.value, &message.value);
            prop_assert_eq!(&first.message.headers, &message.headers);
            // The letter itself was given up by a module that pushes the dead-letter topic.
            let twice = record(&"deader".into(), "n", &stored(once.clone()), &cause());
            let second = DeadLetter::read(stored(twice)).unwrap();
            prop_assert_eq!(&*second.message.topic, "dead");
            prop_assert_eq!(&second.message.headers, &once.headers);
        }
    }
}
