//! The rules of a topic that are known before a message is sent: its configuration, and whether the daemon may write to
//! it. Without IO and without a clock.
//!
//! A message that breaks a rule is refused without a request. At `acks=0` no response could report the refusal, and a
//! broker that receives such a message closes the connection, which loses the messages of other clients.
//!
//! If a rule is not known, the broker decides.

use std::collections::HashMap;

use super::{Acks, AppendError, AppendFailure, Record, Stored};

/// The configs of a topic that [`TopicRules::from_configs`] takes.
pub(super) const CONFIG_NAMES: [&str; 7] = [
    "max.message.bytes",
    "segment.bytes",
    "cleanup.policy",
    "message.timestamp.type",
    "message.timestamp.difference.max.ms",
    "message.timestamp.before.max.ms",
    "message.timestamp.after.max.ms",
];

/// The known rules for the messages that a topic accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TopicRules {
    /// Largest batch in bytes, as it is sent; `usize::MAX` if unknown.
    pub(super) max_batch_bytes: usize,
    /// Whether messages need a key: the topic is compacted.
    pub(super) needs_key: bool,
    /// How far the timestamp of a message may lie in the past and in the future, in milliseconds.
    max_age_ms: i64,
    max_ahead_ms: i64,
    /// Whether the daemon may write to the topic, so far as known.
    pub(super) may_write: bool,
}

impl TopicRules {
    /// Nothing is known.
    pub(super) const UNKNOWN: TopicRules = TopicRules {
        max_batch_bytes: usize::MAX,
        needs_key: false,
        max_age_ms: i64::MAX,
        max_ahead_ms: i64::MAX,
        may_write: true,
    };

    /// Takes the rules out of the configs of a topic. A config that is absent or not understood is no rule.
    pub(super) fn from_configs(configs: &HashMap<String, String>) -> TopicRules {
        let text = |name: &str| configs.get(name).map(|value| value.trim());
        let number = |name: &str| text(name)?.parse::<i64>().ok().filter(|number| *number >= 0);
        let bytes = |name: &str| number(name).and_then(|number| usize::try_from(number).ok()).unwrap_or(usize::MAX);
        let is_compacted =
            text("cleanup.policy").is_some_and(|value| value.split(',').any(|policy| policy.trim() == "compact"));
        // With the time of the append, the timestamp of the client does not matter. Up to Kafka 3.9 one config was for
        // both directions; where the newer ones differ from their defaults, they replace it (KIP-937).
        let has_create_time = text("message.timestamp.type").is_none_or(|value| value != "LogAppendTime");
        let difference = number("message.timestamp.difference.max.ms").unwrap_or(i64::MAX);
        let range = |name: &str| match number(name).filter(|limit| *limit != i64::MAX) {
            _ if !has_create_time => i64::MAX,
            Some(limit) => limit,
            None => difference,
        };
        TopicRules {
            max_batch_bytes: bytes("max.message.bytes").min(bytes("segment.bytes")),
            needs_key: is_compacted,
            max_age_ms: range("message.timestamp.before.max.ms"),
            max_ahead_ms: range("message.timestamp.after.max.ms"),
            may_write: true,
        }
    }

    /// Returns why the brokers would refuse `record`; `None` if they would not, so far as known. `batch_bytes` is the
    /// size of a batch with this record alone, 0 if unknown.
    pub(super) fn violation(
        &self,
        record: &Record,
        acks: Acks,
        batch_bytes: usize,
        now_ms: i64,
    ) -> Option<AppendError> {
        let topic = &record.topic;
        let refused = |kind, reason| Some(AppendError { kind, stored: Stored::No, reason });
        // The right is read at intervals only. At other acks levels the response of the broker decides: it is newer.
        if !self.may_write && acks == Acks::None {
            let reason = format!("TOPIC_AUTHORIZATION_FAILED: no right to write to topic {topic}");
            return refused(AppendFailure::NotAuthorized, reason);
        }
        if batch_bytes > self.max_batch_bytes {
            let limit = self.max_batch_bytes;
            let reason = format!(
                "MESSAGE_TOO_LARGE: {batch_bytes} bytes with its headers and overhead, topic {topic} accepts {limit} \
                 (max.message.bytes)"
            );
            return refused(AppendFailure::TooLarge, reason);
        }
        if self.needs_key && record.key.is_none() {
            let reason =
                format!("INVALID_RECORD: topic {topic} is compacted (cleanup.policy), so a message needs a key");
            return refused(AppendFailure::Invalid, reason);
        }
        let ahead_ms = record.timestamp_ms?.saturating_sub(now_ms);
        let (is_early, is_late) = (ahead_ms.saturating_neg() > self.max_age_ms, ahead_ms > self.max_ahead_ms);
        (is_early || is_late).then(|| {
            let (limit, direction, name) = match is_late {
                true => (self.max_ahead_ms, "in the future", "message.timestamp.after.max.ms"),
                false => (self.max_age_ms, "in the past", "message.timestamp.before.max.ms"),
            };
            let distance = ahead_ms.unsigned_abs();
            let reason = format!(
                "INVALID_TIMESTAMP: the timestamp is {distance} ms {direction}, topic {topic} accepts {limit} ms \
                 ({name} or message.timestamp.difference.max.ms)"
            );
            AppendError { kind: AppendFailure::Invalid, stored: Stored::No, reason }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(configs: &[(&str, &str)]) -> TopicRules {
        let owned = configs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        TopicRules::from_configs(&owned.collect())
    }

    fn record(key: Option<&[u8]>, timestamp_ms: Option<i64>) -> Record {
        let (topic, key) = ("t".into(), key.map(<[u8]>::to_vec));
        Record { topic, partition: None, key, value: Some(b"v".to_vec()), headers: Vec::new(), timestamp_ms }
    }

    #[test]
    fn a_config_that_is_absent_or_not_understood_is_no_rule() {
        assert_eq!(rules(&[]), TopicRules::UNKNOWN);
        let odd = [("max.message.bytes", "-1"), ("segment.bytes", "x"), ("cleanup.policy", "compacted,delete")];
        assert_eq!(rules(&odd), TopicRules::UNKNOWN);
    }

    #[test]
    fn the_rules_of_a_topic_are_those_of_kafka() {
        let max = i64::MAX.to_string();
        let (before, after) = ("message.timestamp.before.max.ms", "message.timestamp.after.max.ms");
        let difference = "message.timestamp.difference.max.ms";
        let range = |configs: &[(&str, &str)]| {
            let rules = rules(configs);
            (rules.max_age_ms, rules.max_ahead_ms)
        };
        assert_eq!(range(&[(difference, "5")]), (5, 5));
        assert_eq!(range(&[(difference, "5"), (before, &max), (after, "7")]), (5, 7));
        assert_eq!(range(&[(before, "3"), (after, &max)]), (3, i64::MAX));
        assert_eq!(range(&[(difference, "5"), ("message.timestamp.type", "LogAppendTime")]), (i64::MAX, i64::MAX));
        assert_eq!(rules(&[("max.message.bytes", "10"), ("segment.bytes", "9")]).max_batch_bytes, 9);
        assert!(rules(&[("cleanup.policy", "delete, compact")]).needs_key);
        assert!(!rules(&[("cleanup.policy", "delete")]).needs_key);
    }

    #[test]
    fn a_message_is_refused_as_the_brokers_would_refuse_it() {
        use AppendFailure::{Invalid, NotAuthorized, TooLarge};
        let now = 1_000_000;
        let compacted = rules(&[("cleanup.policy", "compact")]);
        let small = rules(&[("max.message.bytes", "100")]);
        let dated = rules(&[("message.timestamp.before.max.ms", "50"), ("message.timestamp.after.max.ms", "20")]);
        let denied = TopicRules { may_write: false, ..TopicRules::UNKNOWN };
        // Rules, key, timestamp, size, acks; the kind of the refusal.
        for (rules, key, timestamp, bytes, acks, expected) in [
            (compacted, None, None, 0, Acks::All, Some(Invalid)),
            (compacted, Some(&b"k"[..]), None, 0, Acks::All, None),
            (small, None, None, 100, Acks::Leader, None),
            (small, None, None, 101, Acks::Leader, Some(TooLarge)),
            (dated, None, None, 0, Acks::None, None),
            (dated, None, Some(now - 50), 0, Acks::None, None),
            (dated, None, Some(now - 51), 0, Acks::None, Some(Invalid)),
            (dated, None, Some(now + 20), 0, Acks::None, None),
            (dated, None, Some(now + 21), 0, Acks::None, Some(Invalid)),
            (dated, None, Some(i64::MAX), 0, Acks::None, Some(Invalid)),
            (denied, None, None, 0, Acks::None, Some(NotAuthorized)),
            (denied, None, None, 0, Acks::Leader, None),
            (TopicRules::UNKNOWN, None, Some(1), usize::MAX, Acks::All, None),
        ] {
            let violation = rules.violation(&record(key, timestamp), acks, bytes, now);
            assert_eq!(violation.as_ref().map(|error| error.kind), expected, "{timestamp:?} {bytes} {violation:?}");
            assert!(violation.is_none_or(|error| error.stored == Stored::No && error.reason.contains("topic t")));
        }
    }
}
