//! Helpers for stories that use an engine of the library directly, without a daemon.

use std::time::{Duration, Instant};

use kafka_http_wrapper::broker::{BrokerConfig, Engine, FetchError, Fetcher, KafkaSettings, Message};

const READ_DEADLINE: Duration = Duration::from_secs(30);

/// Returns a configuration for `engine` with these bootstrap brokers (`host:port`, separated by commas).
pub(crate) fn broker_config(brokers: &str, engine: Engine) -> BrokerConfig {
    BrokerConfig {
        hosts: brokers.split(',').filter(|host| !host.is_empty()).map(str::to_owned).collect(),
        engine,
        client_id: "harness".to_owned(),
        request_timeout: Duration::from_secs(5),
        settings: KafkaSettings::default(),
    }
}

/// Polls until `count` messages are read; returns them. Panics after [`READ_DEADLINE`], or if an offset is gone.
#[track_caller]
pub(crate) fn read_messages(fetcher: &mut dyn Fetcher, count: usize) -> Vec<Message> {
    let mut messages = Vec::new();
    let deadline = Instant::now() + READ_DEADLINE;
    while messages.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} messages in {READ_DEADLINE:?}", messages.len());
        match fetcher.poll(Duration::from_millis(200), 1_000) {
            Ok(found) => messages.extend(found),
            Err(error @ FetchError::OffsetGone { .. }) => panic!("{error}"),
            // The fetcher itself retries after these errors.
            Err(FetchError::Partition { .. } | FetchError::Unreachable(_)) => {}
        }
    }
    messages
}
