//! Reads messages, through [`kafka::fetch::Fetcher`](Client).
//!
//! Invariants: an event of a partition comes after the messages before it; none of a revoked partition is reported;
//! while no broker can be reached, each poll without messages says so.

use std::time::{Duration, Instant};

use super::config;
use crate::broker::{
    BrokerConfig, FetchEvent, Fetcher, FetcherConfig, Header, HeaderLimits, LogIdentity, Message, MessageBatch, Offset,
    TopicPartition,
};
use crate::kafka::fetch::{self, Fetcher as Client, MessageView};
use crate::supervise::Supervisor;

/// For this long after the client has reported that no broker can be reached, polls without messages report it again.
/// The client itself reports it at the end of each attempt to get metadata, which takes up to 5 s and is followed by a
/// pause of up to 1 s.
const UNREACHABLE_FOR: Duration = Duration::from_secs(7);

/// Reads messages with the client in `src/kafka`.
pub(in crate::broker) struct NativeFetcher {
    client: Client,
    headers: HeaderLimits,
    /// Why no broker can be reached, and until when polls without messages report it.
    unreachable: Option<(String, Instant)>,
}

impl NativeFetcher {
    /// Makes the fetcher; no broker need be reachable. Fails if a file of the settings cannot be read.
    pub(in crate::broker) fn new(
        broker: &BrokerConfig,
        config: &FetcherConfig,
        supervisor: &Supervisor,
    ) -> Result<Self, String> {
        let client_config = config::fetcher(&broker.settings, config);
        let connector = config::connector(broker, config::max_fetch_response_bytes(config))?;
        let bootstrap = config::bootstrap(&broker.hosts)?;
        let client = Client::new(connector, bootstrap, client_config, supervisor);
        Ok(NativeFetcher { client, headers: config.headers, unreachable: None })
    }

    /// Converts the events of a poll at the time `now`.
    fn take(&mut self, events: Vec<fetch::FetchEvent>, now: Instant) -> Vec<FetchEvent> {
        let limits = self.headers;
        let mut events: Vec<FetchEvent> = events.into_iter().map(|event| seam_event(event, limits)).collect();
        for event in &events {
            match event {
                // A position that moves proves that a broker responds.
                FetchEvent::Messages(_) | FetchEvent::Position { .. } => self.unreachable = None,
                FetchEvent::Unreachable { reason } => self.unreachable = Some((reason.clone(), now + UNREACHABLE_FOR)),
                _ => {}
            }
        }
        if let Some((reason, until)) = &self.unreachable
            && now < *until
            && !events.iter().any(|event| matches!(event, FetchEvent::Unreachable { .. }))
        {
            events.push(FetchEvent::Unreachable { reason: reason.clone() });
        }
        events
    }
}

impl Fetcher for NativeFetcher {
    fn assign_known(&mut self, partition: &TopicPartition, offset: Offset, log: LogIdentity) {
        let TopicPartition { topic, partition } = partition;
        match log.topic_id {
            Some(topic_id) => self.client.assign_known(topic, *partition, offset, log.leader_epoch, topic_id),
            None => self.client.assign(topic, *partition, offset, log.leader_epoch),
        }
    }

    fn revoke(&mut self, partition: &TopicPartition) {
        self.client.revoke(&partition.topic, partition.partition);
    }

    fn set_paused(&mut self, partition: &TopicPartition, paused: bool) {
        self.client.set_paused(&partition.topic, partition.partition, paused);
    }

    fn poll(&mut self, wait: Duration, max: usize) -> Vec<FetchEvent> {
        let events = self.client.poll(wait, max);
        self.take(events, Instant::now())
    }

    fn poll_errors(&mut self) -> Vec<FetchEvent> {
        let events = self.client.poll_errors();
        self.take(events, Instant::now())
    }
}

fn seam_event(event: fetch::FetchEvent, limits: HeaderLimits) -> FetchEvent {
    match event {
        fetch::FetchEvent::Messages(mut found) => {
            let partition = seam_partition(found.partition());
            let (next, leader_epoch) = (found.next_offset(), found.leader_epoch());
            let only_value = found.take_only_value();
            let mut messages: Vec<Message> =
                found.iter().map(|message| seam_message(&partition, message, limits)).collect();
            if let (Some(value), [only]) = (only_value, messages.as_mut_slice()) {
                only.value = Some(value);
            }
            FetchEvent::Messages(MessageBatch { partition, messages, next, leader_epoch })
        }
        fetch::FetchEvent::Position { partition, next_offset, leader_epoch } => {
            FetchEvent::Position { partition: seam_partition(&partition), next: next_offset, leader_epoch }
        }
        fetch::FetchEvent::TopicId { partition, topic_id } => {
            FetchEvent::TopicId { partition: seam_partition(&partition), topic_id }
        }
        fetch::FetchEvent::OffsetOutOfRange { partition, offset, oldest, newest } => {
            FetchEvent::OffsetGone { partition: seam_partition(&partition), offset, oldest, newest }
        }
        fetch::FetchEvent::Truncated { partition, position, divergence } => FetchEvent::Truncated {
            partition: seam_partition(&partition),
            position,
            divergence: divergence.end_offset,
            leader_epoch: Some(divergence.epoch).filter(|epoch| *epoch >= 0),
        },
        fetch::FetchEvent::Recreated { partition, new_id, .. } => {
            FetchEvent::Recreated { partition: seam_partition(&partition), topic_id: new_id }
        }
        fetch::FetchEvent::PartitionError { partition, offset, reason } => {
            let reason = format!("{reason} (at offset {offset})");
            FetchEvent::PartitionError { partition: seam_partition(&partition), reason }
        }
        fetch::FetchEvent::Recovered { partition } => FetchEvent::Recovered { partition: seam_partition(&partition) },
        fetch::FetchEvent::Unreachable { reason, is_total: true } => FetchEvent::Unreachable { reason },
        fetch::FetchEvent::Unreachable { reason, is_total: false } => FetchEvent::BrokerUnreachable { reason },
    }
}

fn seam_partition(partition: &fetch::TopicPartition) -> TopicPartition {
    TopicPartition { topic: partition.topic.clone(), partition: partition.partition }
}

fn seam_message(from: &TopicPartition, message: MessageView<'_>, limits: HeaderLimits) -> Message {
    Message {
        from: from.clone(),
        offset: message.offset,
        key: message.key.map(<[u8]>::to_vec),
        value: message.value.map(<[u8]>::to_vec),
        headers: bounded_headers(message.headers.iter(), limits),
        timestamp_ms: message.timestamp_ms,
    }
}

/// Returns the headers that fit into the limits.
fn bounded_headers<'a>(
    headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    limits: HeaderLimits,
) -> Vec<Header> {
    let mut room_bytes = limits.max_bytes;
    let mut kept = Vec::new();
    for (name, value) in headers {
        let size_bytes = name.len() + value.map_or(0, <[u8]>::len);
        if kept.len() < limits.max_count && size_bytes <= room_bytes {
            room_bytes -= size_bytes;
            let name = String::from_utf8_lossy(name).into_owned();
            kept.push(Header { name, value: value.map(<[u8]>::to_vec) });
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shutdown::Stop;

    /// Returns a fetcher whose broker does not listen.
    fn fetcher(supervisor: &Supervisor) -> NativeFetcher {
        let broker = BrokerConfig {
            hosts: vec!["127.0.0.1:1".to_owned()],
            engine: Default::default(),
            client_id: "test".to_owned(),
            request_timeout: Duration::from_millis(50),
            settings: Default::default(),
            requests: Default::default(),
        };
        let config =
            FetcherConfig { prefetch_bytes: 1 << 20, max_message_bytes: 1 << 10, headers: HeaderLimits::default() };
        NativeFetcher::new(&broker, &config, supervisor).unwrap()
    }

    #[test]
    fn unreachable_brokers_are_reported_by_each_empty_poll_and_one_of_several_only_once() {
        let supervisor = Supervisor::new("test", Stop::new());
        let (mut fetcher, now) = (fetcher(&supervisor), Instant::now());
        let failed = |is_total| vec![fetch::FetchEvent::Unreachable { reason: "a:1: refused".to_owned(), is_total }];
        let one = FetchEvent::BrokerUnreachable { reason: "a:1: refused".to_owned() };
        assert_eq!(fetcher.take(failed(false), now), [one]);
        assert_eq!(fetcher.take(Vec::new(), now), []);
        let all = FetchEvent::Unreachable { reason: "a:1: refused".to_owned() };
        assert_eq!(fetcher.take(failed(true), now), std::slice::from_ref(&all));
        assert_eq!(fetcher.take(Vec::new(), now), [all]);
        let partition = fetch::TopicPartition { topic: "t".into(), partition: 0 };
        let moved = fetch::FetchEvent::Position { partition, next_offset: 3, leader_epoch: None };
        assert_eq!(fetcher.take(vec![moved], now).len(), 1);
        assert_eq!(fetcher.take(Vec::new(), now), []);
        supervisor.stop().trigger();
    }

    #[test]
    fn the_headers_of_a_message_are_bounded_by_number_and_bytes() {
        let none: Option<&[u8]> = None;
        let limits = HeaderLimits::default();
        assert_eq!(bounded_headers((0..100_000).map(|_| (&b"a"[..], none)), limits).len(), limits.max_count);
        let long = vec![7; limits.max_bytes];
        let headers = [(&b"long"[..], Some(&long[..])), (b"a", Some(b"1")), (b"", none)];
        let kept = bounded_headers(headers.into_iter(), limits);
        assert_eq!(kept.iter().map(|header| header.name.as_str()).collect::<Vec<_>>(), ["a", ""]);
    }
}
