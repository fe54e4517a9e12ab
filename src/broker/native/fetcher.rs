//! Reads messages, through [`kafka::fetch::Fetcher`](Client).
//!
//! The client reports more than the seam has: a truncated log, and a topic that was deleted and created again. Both are
//! reported as [`FetchError::OffsetGone`] with the offset at which reading has to go on: the owner then assigns the
//! partition there, and does not mix up the messages of the two logs.
//!
//! Invariants: an error of a partition comes after the messages before it; none of a revoked partition is reported;
//! while no broker can be reached, each poll without messages says so.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use log::warn;

use super::config;
use super::log_ends::NativeLogEnds;
use crate::broker::{
    BrokerConfig, FetchError, Fetcher, FetcherConfig, Header, LogEnds, LogRange, Message, Offset, TopicPartition,
};
use crate::kafka::fetch::{self, FetchEvent, Fetcher as Client, MessageView};
use crate::supervise::Supervisor;

/// For this long after the client has reported that no broker can be reached, polls without messages report it again.
/// The client itself reports it once a second.
const UNREACHABLE_FOR: Duration = Duration::from_millis(1_500);
/// Largest number of errors kept for the next polls. Further errors are dropped, since the client reports an error that
/// lasts again. [`FetchError::OffsetGone`] is reported once only, so it is never dropped.
const MAX_PENDING_ERRORS: usize = 64;

/// Number of headers of a message that are kept. A header of two bytes in Kafka takes 80 bytes here, so without a limit
/// a batch of small messages could take gigabytes.
const MAX_HEADERS: usize = 256;

/// Reads messages with the client in `src/kafka`.
pub(in crate::broker) struct NativeFetcher {
    client: Client,
    /// Reads the range of offsets of a partition whose log is another one than before.
    log_ends: NativeLogEnds,
    /// The offset to read next, of each assigned partition.
    next: HashMap<TopicPartition, Offset>,
    pending_errors: VecDeque<FetchError>,
    /// Why brokers cannot be reached, and until when polls without messages report it.
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
        Ok(NativeFetcher {
            client: Client::new(connector, bootstrap, client_config, supervisor),
            log_ends: NativeLogEnds::new(broker)?,
            next: HashMap::new(),
            pending_errors: VecDeque::new(),
            unreachable: None,
        })
    }

    /// Adds the messages of an event to `messages`, or keeps its error for a poll without messages.
    fn take(&mut self, event: FetchEvent, messages: &mut Vec<Message>) {
        match event {
            FetchEvent::Messages(found) => {
                let from = seam_partition(found.partition());
                messages.extend(found.iter().map(|message| seam_message(&from, message)));
                self.moved(from, found.next_offset());
            }
            FetchEvent::Position { partition, next_offset, .. } => self.moved(seam_partition(&partition), next_offset),
            FetchEvent::OffsetOutOfRange { partition, offset, oldest, newest } => {
                let partition = seam_partition(&partition);
                self.pending_errors.push_back(FetchError::OffsetGone { partition, offset, oldest, newest });
            }
            FetchEvent::Truncated { partition, position, divergence } => {
                let (partition, end) = (seam_partition(&partition), divergence.end_offset);
                warn!(
                    "{partition}: the leader lost the messages from offset {end} to {position}, which were read \
                     before; reading again from {end}"
                );
                let newest = self.log_ends.range(&partition).map_or(end, |range| range.newest.max(end));
                let gone = FetchError::OffsetGone { partition, offset: position, oldest: end, newest };
                self.pending_errors.push_back(gone);
            }
            FetchEvent::Recreated { partition, .. } => {
                let partition = seam_partition(&partition);
                let offset = self.next.get(&partition).copied().unwrap_or_default();
                warn!("{partition}: the topic was deleted and created again; reading the new one from its beginning");
                // If the range is not known now, an offset that is gone is reported after the next assignment.
                let unknown = LogRange { oldest: 0, newest: 0 };
                let LogRange { oldest, newest } = self.log_ends.range(&partition).unwrap_or(unknown);
                self.pending_errors.push_back(FetchError::OffsetGone { partition, offset, oldest, newest });
            }
            FetchEvent::PartitionError { partition, offset, reason } => {
                let reason = format!("{reason} (at offset {offset})");
                self.report(FetchError::Partition { partition: seam_partition(&partition), reason });
            }
            FetchEvent::Unreachable { reason } => {
                self.unreachable = Some((reason.clone(), Instant::now() + UNREACHABLE_FOR));
                self.report(FetchError::Unreachable(reason));
            }
        }
    }

    /// The position of a partition has moved, so its leader can be reached.
    fn moved(&mut self, partition: TopicPartition, next_offset: Offset) {
        self.unreachable = None;
        self.next.insert(partition, next_offset);
    }

    /// Keeps an error for the next poll.
    fn report(&mut self, error: FetchError) {
        if self.pending_errors.len() < MAX_PENDING_ERRORS {
            self.pending_errors.push_back(error);
        }
    }
}

impl Fetcher for NativeFetcher {
    fn assign(&mut self, partition: &TopicPartition, offset: Offset) {
        self.revoke(partition);
        self.next.insert(partition.clone(), offset);
        self.client.assign(&partition.topic, partition.partition, offset, None);
    }

    fn revoke(&mut self, partition: &TopicPartition) {
        self.next.remove(partition);
        self.client.revoke(&partition.topic, partition.partition);
        self.pending_errors.retain(|error| match error {
            FetchError::OffsetGone { partition: of, .. } | FetchError::Partition { partition: of, .. } => {
                of != partition
            }
            FetchError::Unreachable(_) => true,
        });
    }

    fn set_paused(&mut self, partition: &TopicPartition, paused: bool) {
        self.client.set_paused(&partition.topic, partition.partition, paused);
    }

    fn poll(&mut self, wait: Duration, max: usize) -> Result<Vec<Message>, FetchError> {
        let deadline = Instant::now() + wait;
        let mut messages = Vec::new();
        loop {
            if let Some(error) = self.pending_errors.pop_front() {
                return Err(error);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            for event in self.client.poll(left, max) {
                self.take(event, &mut messages);
            }
            if !messages.is_empty() {
                return Ok(messages);
            }
            if self.pending_errors.is_empty() && Instant::now() >= deadline {
                break;
            }
        }
        match &self.unreachable {
            Some((reason, until)) if Instant::now() < *until => Err(FetchError::Unreachable(reason.clone())),
            _ => Ok(messages),
        }
    }
}

fn seam_partition(partition: &fetch::TopicPartition) -> TopicPartition {
    TopicPartition { topic: partition.topic.clone(), partition: partition.partition }
}

fn seam_message(from: &TopicPartition, message: MessageView<'_>) -> Message {
    let header = |(name, value): (&[u8], Option<&[u8]>)| Header {
        name: String::from_utf8_lossy(name).into_owned(),
        value: value.map(<[u8]>::to_vec),
    };
    Message {
        from: from.clone(),
        offset: message.offset,
        key: message.key.map(<[u8]>::to_vec),
        value: message.value.map(<[u8]>::to_vec),
        headers: message.headers.iter().take(MAX_HEADERS).map(header).collect(),
        timestamp_ms: message.timestamp_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::fetch::Divergence;
    use crate::shutdown::Stop;

    /// Returns a fetcher whose broker does not listen, and its two partitions: assigned at offsets 7 and 0.
    fn fetcher(supervisor: &Supervisor) -> (NativeFetcher, [TopicPartition; 2]) {
        let broker = BrokerConfig {
            hosts: vec!["127.0.0.1:1".to_owned()],
            engine: Default::default(),
            client_id: "test".to_owned(),
            request_timeout: Duration::from_millis(50),
            settings: Default::default(),
        };
        let config = FetcherConfig { prefetch_bytes: 1 << 20, max_message_bytes: 1 << 10 };
        let mut fetcher = NativeFetcher::new(&broker, &config, supervisor).unwrap();
        let partitions = [0, 1].map(|partition| TopicPartition { topic: "t".into(), partition });
        fetcher.assign(&partitions[0], 7);
        fetcher.assign(&partitions[1], 0);
        (fetcher, partitions)
    }

    fn client_partition(partition: i32) -> fetch::TopicPartition {
        fetch::TopicPartition { topic: "t".into(), partition }
    }

    #[test]
    fn another_log_is_reported_as_a_gap_with_the_offset_to_go_on_at() {
        let supervisor = Supervisor::new("test", Stop::new());
        let (mut fetcher, partitions) = fetcher(&supervisor);
        fetcher.moved(partitions[1].clone(), 9);
        let events = [
            FetchEvent::OffsetOutOfRange { partition: client_partition(0), offset: 7, oldest: 8, newest: 20 },
            FetchEvent::Truncated {
                partition: client_partition(0),
                position: 7,
                divergence: Divergence { epoch: 3, end_offset: 5 },
            },
            FetchEvent::Recreated { partition: client_partition(1), old_id: [1; 16], new_id: [2; 16] },
        ];
        let mut messages = Vec::new();
        events.into_iter().for_each(|event| fetcher.take(event, &mut messages));
        assert!(messages.is_empty());
        let gaps: Vec<_> = std::mem::take(&mut fetcher.pending_errors)
            .into_iter()
            .map(|error| match error {
                FetchError::OffsetGone { partition, offset, oldest, newest } => {
                    (partition.partition, offset, oldest, newest)
                }
                other => panic!("{other}"),
            })
            .collect();
        // The range of a partition whose brokers cannot be reached is unknown.
        assert_eq!(gaps, [(0, 7, 8, 20), (0, 7, 5, 5), (1, 9, 0, 0)]);
        supervisor.stop().trigger();
    }

    #[test]
    fn a_revoked_partition_has_no_errors_and_unreachable_brokers_are_reported_by_each_empty_poll() {
        let supervisor = Supervisor::new("test", Stop::new());
        let (mut fetcher, partitions) = fetcher(&supervisor);
        let mut messages = Vec::new();
        for partition in [0, 1] {
            let (partition, reason) = (client_partition(partition), "NOT_LEADER_OR_FOLLOWER".to_owned());
            fetcher.take(FetchEvent::PartitionError { partition, offset: 7, reason }, &mut messages);
        }
        fetcher.revoke(&partitions[0]);
        let reported = fetcher.poll(Duration::ZERO, 10).unwrap_err().to_string();
        assert_eq!(reported, "t/1 cannot be read: NOT_LEADER_OR_FOLLOWER (at offset 7)");
        fetcher.take(FetchEvent::Unreachable { reason: "broker a:1: refused".to_owned() }, &mut messages);
        for _ in 0..3 {
            let error = fetcher.poll(Duration::ZERO, 10).unwrap_err();
            assert!(matches!(error, FetchError::Unreachable(_)), "{error}");
        }
        supervisor.stop().trigger();
    }
}
