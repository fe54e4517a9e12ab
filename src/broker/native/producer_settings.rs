//! The settings of the `kafka` map that apply to a producer.

use std::time::Duration;

use super::config;
use super::values::{boolean, millis};
use crate::broker::KafkaSettings;
use crate::kafka::backoff::Backoff;
use crate::kafka::compression::Codec;

/// Default of `request.timeout.ms`, that of the Java client and of librdkafka.
const DEFAULT_ACK_TIMEOUT: Duration = Duration::from_secs(30);

/// The settings of a producer.
#[derive(Clone, Debug)]
pub(super) struct ProducerSettings {
    /// `compression.type`.
    pub(super) codec: Codec,
    /// `linger.ms`: longest time that a message may wait for others although it could be sent; 0 by default.
    pub(super) linger: Duration,
    /// `request.timeout.ms`: longest time that a broker may wait for its replicas, which a produce request announces.
    /// The response can come that much later.
    pub(super) ack_timeout: Duration,
    /// `retry.backoff.ms` and `retry.backoff.max.ms`: the pauses between attempts to send a message; clone it for each
    /// use.
    pub(super) retry_backoff: Backoff,
    /// `allow.auto.create.topics`: a lookup may create a topic, if the broker has `auto.create.topics.enable`.
    pub(super) auto_create_topics: bool,
}

impl ProducerSettings {
    /// Takes the settings out of a map that was checked.
    pub(super) fn new(settings: &KafkaSettings) -> Self {
        let codec = match settings.get("compression.type").map(str::to_ascii_lowercase).as_deref() {
            Some("gzip") => Codec::Gzip,
            Some("snappy") => Codec::Snappy,
            Some("lz4") => Codec::Lz4,
            Some("zstd") => Codec::Zstd,
            _ => Codec::None,
        };
        ProducerSettings {
            codec,
            linger: millis(settings, "linger.ms").unwrap_or_default(),
            ack_timeout: millis(settings, "request.timeout.ms").unwrap_or(DEFAULT_ACK_TIMEOUT),
            retry_backoff: config::backoff(settings, "retry.backoff"),
            auto_create_topics: boolean(settings, "allow.auto.create.topics").unwrap_or(true),
        }
    }
}
