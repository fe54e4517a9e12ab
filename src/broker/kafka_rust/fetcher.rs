//! Reads through the `kafka` crate.
//!
//! Each leader has one connection: a client on a thread of its own, with one fetch request in flight. Fetched messages
//! are kept by partition ([`super::partition_reader`]) until they are polled. Two limits bound the bytes that are kept,
//! one for each partition and one for all partitions together.
//!
//! One message that cannot be decoded makes the whole response unreadable, for all its partitions. Each of these
//! partitions is then fetched alone, until the one with the unreadable message is found.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use kafka::client::FetchOffset;
use kafka::error::{Error, KafkaCode};
use log::error;

use super::fetch_request::{
    FetchResponse, MAX_BROKER_WAIT, PartitionError, PartitionRequest, PartitionResponse, fetch,
};
use super::guarded_client::{CallError, GuardedClient};
use super::partition_reader::{PartitionReader, into_batches, take_in_turn};
use crate::broker::{
    BrokerConfig, FetchEvent, Fetcher, FetcherConfig, LogIdentity, Message, Offset, PartitionId, TopicPartition,
};
use crate::supervise::Supervisor;

/// Pause before a failed request is retried.
const RETRY_PAUSE: Duration = Duration::from_millis(300);
/// Pause before a partition is fetched again at a message that cannot be decoded.
const UNREADABLE_PAUSE: Duration = Duration::from_secs(5);
/// Bytes requested of one partition at first: its share of the prefetch limit, within these bounds.
const MIN_FIRST_BYTES: usize = 64 << 10;
const MAX_FIRST_BYTES: usize = 1 << 20;
/// Largest number of errors kept for the next polls. Further errors are dropped; an error that lasts is reported again.
const MAX_PENDING_ERRORS: usize = 64;

/// Reads messages with the `kafka` crate.
pub(in crate::broker) struct KafkaRustFetcher {
    broker: BrokerConfig,
    config: FetcherConfig,
    supervisor: Supervisor,
    readers: HashMap<TopicPartition, PartitionReader>,
    /// The connections, by the `host:port` of the leader.
    connections: HashMap<String, BrokerConnection>,
    /// Looks up leaders, and the oldest and newest offsets.
    metadata: GuardedClient,
    /// Channel of responses. It needs no bound of its own: each connection has one request in flight, and a bounded
    /// number of abandoned requests.
    responses: (Sender<FetchResponse>, Receiver<FetchResponse>),
    pending_errors: VecDeque<FetchEvent>,
    /// Number of the last fetch request or assignment; both are counted together.
    number: u64,
    /// Number of the last poll.
    poll_number: u64,
}

/// The client for the partitions of one leader.
struct BrokerConnection {
    client: GuardedClient,
    /// Number and deadline of the request in flight.
    in_flight: Option<(u64, Instant)>,
    /// The partitions in the request in flight.
    requests: Vec<PartitionRequest>,
    /// The next request looks the leaders up first.
    reload: bool,
    /// The last request had a response.
    is_working: bool,
}

impl KafkaRustFetcher {
    /// Makes the fetcher; no broker need be reachable.
    pub(in crate::broker) fn new(broker: &BrokerConfig, config: FetcherConfig, supervisor: &Supervisor) -> Self {
        KafkaRustFetcher {
            broker: broker.clone(),
            config,
            supervisor: supervisor.clone(),
            readers: HashMap::new(),
            connections: HashMap::new(),
            metadata: GuardedClient::new(broker, "kafka-leaders", supervisor.stop().clone()),
            responses: unbounded(),
            pending_errors: VecDeque::new(),
            number: 0,
            poll_number: 0,
        }
    }

    /// Keeps an error for the next poll.
    fn report(&mut self, error: FetchEvent) {
        if self.pending_errors.len() < MAX_PENDING_ERRORS {
            self.pending_errors.push_back(error);
        }
    }

    /// Returns the number of bytes to request of a partition, unless its reader needs more.
    fn first_bytes(&self) -> usize {
        let share = self.config.prefetch_bytes / self.readers.len().max(1);
        share.clamp(MIN_FIRST_BYTES, MAX_FIRST_BYTES)
    }

    fn report_partition(&mut self, partition: TopicPartition, reason: String) {
        self.readers.get_mut(&partition).into_iter().for_each(|reader| reader.has_failed = true);
        self.report(FetchEvent::PartitionError { partition, reason });
    }

    /// Reports that a partition is read again, if an error of it was reported.
    fn report_success(&mut self, partition: &TopicPartition) {
        if self.readers.get_mut(partition).is_some_and(|reader| std::mem::take(&mut reader.has_failed)) {
            // Not limited: at most one for each error that was reported.
            self.pending_errors.push_back(FetchEvent::Recovered { partition: partition.clone() });
        }
    }

    fn take_responses(&mut self) {
        while let Ok(response) = self.responses.1.try_recv() {
            self.take_response(response);
        }
        self.time_out_requests();
    }

    fn take_ready(&mut self, max: usize) -> Vec<Message> {
        self.poll_number += 1;
        take_in_turn(self.readers.values_mut(), self.poll_number, max)
    }

    /// Sends a fetch request on each connection that has none in flight and has partitions to fetch.
    fn start_fetches(&mut self) {
        let now = Instant::now();
        let total: usize = self.readers.values().map(|reader| reader.ready_bytes).sum();
        let (is_full, first_bytes) = (self.config.prefetch_bytes <= total, self.first_bytes());
        let is_due = |reader: &PartitionReader| {
            // The next response shows whether an error that was reported is over.
            let has_room = reader.ready_bytes < reader.max_bytes.max(first_bytes) && (!is_full || reader.has_failed);
            !reader.is_paused && !reader.is_fetching && reader.not_before <= now && has_room
        };
        let topics_without_leader: BTreeSet<Arc<str>> = self
            .readers
            .iter()
            .filter(|(_, reader)| is_due(reader) && reader.leader.is_none())
            .map(|(partition, _)| Arc::clone(&partition.topic))
            .collect();
        if !topics_without_leader.is_empty() {
            self.find_leaders(topics_without_leader);
        }
        let mut by_leader: HashMap<String, Vec<PartitionRequest>> = HashMap::new();
        for (partition, reader) in &self.readers {
            let Some(leader) = reader.leader.as_ref().filter(|_| is_due(reader)) else { continue };
            if self.connections.get(leader).is_some_and(|connection| connection.in_flight.is_some()) {
                continue;
            }
            let (epoch, offset, max_bytes) = (reader.epoch, reader.next, reader.max_bytes.max(first_bytes));
            let request = PartitionRequest { partition: partition.clone(), epoch, offset, max_bytes };
            by_leader.entry(leader.clone()).or_default().push(request);
        }
        for (leader, requests) in by_leader {
            let is_isolated = |request: &PartitionRequest| {
                self.readers.get(&request.partition).is_some_and(|reader| reader.is_isolated)
            };
            let (isolated, together): (Vec<_>, Vec<_>) = requests.into_iter().partition(is_isolated);
            // Requests for one isolated partition and requests for all other partitions alternate.
            let is_turn_of_isolated = together.is_empty() || self.number.is_multiple_of(2);
            let chosen = match isolated.into_iter().next().filter(|_| is_turn_of_isolated) {
                Some(one) => vec![one],
                None => together,
            };
            if !chosen.is_empty() {
                self.fetch(leader, chosen);
            }
        }
    }

    fn fetch(&mut self, leader: String, requests: Vec<PartitionRequest>) {
        self.number += 1;
        let number = self.number;
        let connection = self.connections.entry(leader.clone()).or_insert_with(|| BrokerConnection {
            client: GuardedClient::new(&self.broker, "kafka-fetch", self.supervisor.stop().clone()),
            in_flight: None,
            requests: Vec::new(),
            reload: false,
            is_working: false,
        });
        let (sent, reload) = (requests.clone(), std::mem::take(&mut connection.reload));
        let responses = self.responses.0.clone();
        let (name, leader) = (leader.clone(), leader);
        let started = connection.client.start(
            move |client| fetch(client, &sent, reload),
            // The channel is closed if the fetcher was dropped during the request.
            move |outcome| drop(responses.send(FetchResponse { leader: name, number, outcome })),
        );
        match started {
            Ok(()) => {
                for request in &requests {
                    if let Some(reader) = self.readers.get_mut(&request.partition) {
                        reader.is_fetching = true;
                    }
                }
                connection.in_flight = Some((number, Instant::now() + self.broker.request_timeout + MAX_BROKER_WAIT));
                connection.requests = requests;
            }
            Err(error) => self.connection_failed(&leader, requests, &error),
        }
    }

    /// Looks up the leaders of those partitions of these topics whose leader is unknown.
    fn find_leaders(&mut self, topics: BTreeSet<Arc<str>>) {
        let names: Vec<String> = topics.iter().map(ToString::to_string).collect();
        let found = self.metadata.call(self.broker.request_timeout, move |client| {
            client.load_metadata(&names)?;
            let mut leaders = HashMap::new();
            for name in names {
                for partition in client.topics().partitions(&name).iter().flat_map(|found| found.iter()) {
                    if let Some(leader) = partition.leader() {
                        leaders.insert((name.clone(), partition.id()), leader.host().to_owned());
                    }
                }
            }
            Ok(leaders)
        });
        let lacks_leader = |partition: &TopicPartition, reader: &PartitionReader| {
            reader.leader.is_none() && topics.contains(&partition.topic)
        };
        let not_before = Instant::now() + RETRY_PAUSE;
        let mut leaderless = Vec::new();
        match found {
            Ok(leaders) => {
                for (partition, reader) in self.readers.iter_mut() {
                    if lacks_leader(partition, reader) {
                        reader.leader = leaders.get(&(partition.topic.to_string(), partition.partition)).cloned();
                        if reader.leader.is_none() {
                            reader.not_before = not_before;
                            leaderless.push(partition.clone());
                        }
                    }
                }
            }
            Err(error) => {
                for (partition, reader) in self.readers.iter_mut() {
                    if lacks_leader(partition, reader) {
                        reader.not_before = not_before;
                    }
                }
                self.report_unreachable(None, error.in_words());
            }
        }
        for partition in leaderless {
            let reason = "it does not exist or has no leader".to_owned();
            self.report_partition(partition, reason);
        }
    }

    /// Keeps the error of the broker `failed`, or of all brokers that were tried, for the next poll.
    fn report_unreachable(&mut self, failed: Option<&str>, reason: String) {
        let mut others = self.connections.iter().filter(|(leader, _)| failed != Some(leader));
        let is_total = others.all(|(_, connection)| !connection.is_working);
        self.report(match is_total {
            true => FetchEvent::Unreachable { reason },
            false => FetchEvent::BrokerUnreachable { reason },
        });
    }

    /// Marks the partitions of a request to `leader` to be fetched again after a pause, with a new lookup of their
    /// leaders.
    fn connection_failed(&mut self, leader: &str, requests: Vec<PartitionRequest>, error: &CallError) {
        if let Some(connection) = self.connections.get_mut(leader) {
            connection.is_working = false;
        }
        for request in requests {
            let Some(reader) = self.reader_of(&request) else { continue };
            reader.is_fetching = false;
            reader.leader = None;
            reader.not_before = Instant::now() + RETRY_PAUSE;
        }
        self.report_unreachable(Some(leader), error.in_words());
    }

    /// Returns the reader that a request was made for; `None` if its partition was revoked or assigned again since.
    fn reader_of(&mut self, request: &PartitionRequest) -> Option<&mut PartitionReader> {
        self.readers.get_mut(&request.partition).filter(|reader| reader.epoch == request.epoch)
    }

    fn take_response(&mut self, response: FetchResponse) {
        let Some(connection) = self.connections.get_mut(&response.leader) else { return };
        // A response to a request that has timed out is ignored.
        if connection.in_flight.is_none_or(|(number, _)| number != response.number) {
            return;
        }
        connection.in_flight = None;
        connection.is_working = true;
        let requests = std::mem::take(&mut connection.requests);
        match response.outcome {
            Ok(partitions) => self.take_partitions(&response.leader, &requests, partitions),
            Err(CallError::Unreadable(reason)) => self.isolate(requests, &reason),
            Err(error) => {
                connection.reload = true;
                self.connection_failed(&response.leader, requests, &error);
            }
        }
    }

    fn take_partitions(&mut self, leader: &str, requests: &[PartitionRequest], responses: Vec<PartitionResponse>) {
        let (max_message_bytes, was_alone) = (self.config.max_message_bytes, requests.len() == 1);
        let mut by_name: HashMap<(String, PartitionId), _> =
            responses.into_iter().map(|response| ((response.topic, response.partition), response.outcome)).collect();
        for request in requests {
            let outcome = by_name.remove(&(request.partition.topic.to_string(), request.partition.partition));
            let Some(reader) = self.reader_of(request) else { continue };
            reader.is_fetching = false;
            match outcome {
                Some(Ok((log_end, messages))) => {
                    reader.take_messages(request, was_alone, log_end, messages, max_message_bytes);
                    self.report_success(&request.partition);
                }
                Some(Err(PartitionError::Code(KafkaCode::OffsetOutOfRange))) => self.offset_out_of_range(request),
                Some(Err(error)) => {
                    reader.leader = None;
                    reader.not_before = Instant::now() + RETRY_PAUSE;
                    if let Some(connection) = self.connections.get_mut(leader) {
                        connection.reload = true;
                    }
                    let reason = match error {
                        PartitionError::Code(code) => format!("{code:?}"),
                        PartitionError::Other(reason) => reason,
                    };
                    self.report_partition(request.partition.clone(), reason);
                }
                // The crate leaves out a partition that has no leader in the crate's metadata.
                None => {
                    reader.leader = None;
                    reader.not_before = Instant::now() + RETRY_PAUSE;
                }
            }
        }
    }

    /// Handles a response that cannot be decoded: marks each of its partitions to be fetched alone, to find the one
    /// with the unreadable message.
    fn isolate(&mut self, requests: Vec<PartitionRequest>, reason: &str) {
        if let [one] = &requests[..] {
            let Some(reader) = self.reader_of(one) else { return };
            reader.is_fetching = false;
            reader.is_isolated = true;
            reader.not_before = Instant::now() + UNREADABLE_PAUSE;
            error!("{} offset {}: the message cannot be decoded, retrying: {reason}", one.partition, one.offset);
            let reason = format!("offset {} cannot be decoded (compressed with lz4 or zstd?): {reason}", one.offset);
            return self.report_partition(one.partition.clone(), reason);
        }
        for request in &requests {
            if let Some(reader) = self.reader_of(request) {
                reader.is_fetching = false;
                reader.is_isolated = true;
            }
        }
    }

    /// Handles OFFSET_OUT_OF_RANGE: compares the offset with the range that the partition keeps now, since the offset
    /// may have become valid.
    fn offset_out_of_range(&mut self, request: &PartitionRequest) {
        let (topic, number) = (request.partition.topic.to_string(), request.partition.partition);
        let range = self.metadata.call(self.broker.request_timeout, move |client| {
            client.load_metadata(&[&topic])?;
            let mut end = |end| {
                let found = client.fetch_topic_offsets(&topic, end)?;
                let found = found.into_iter().find(|found| found.partition == number);
                found.map(|found| found.offset).ok_or(Error::Kafka(KafkaCode::LeaderNotAvailable))
            };
            Ok((end(FetchOffset::Earliest)?, end(FetchOffset::Latest)?))
        });
        let partition = request.partition.clone();
        match range {
            Ok((oldest, newest)) if request.offset < oldest || newest < request.offset => {
                self.readers.remove(&partition);
                // Not limited: it is reported once only, and the partition is not read any further.
                let offset = request.offset;
                self.pending_errors.push_back(FetchEvent::OffsetGone { partition, offset, oldest, newest });
            }
            outcome => {
                if let Some(reader) = self.reader_of(request) {
                    reader.not_before = Instant::now() + RETRY_PAUSE;
                }
                if let Err(error) = outcome {
                    let reason = format!("cannot get the oldest and newest offsets: {}", error.in_words());
                    self.report_partition(partition, reason);
                }
            }
        }
    }

    fn time_out_requests(&mut self) {
        let now = Instant::now();
        let is_late = |connection: &BrokerConnection| connection.in_flight.is_some_and(|(_, deadline)| deadline <= now);
        let late = self.connections.iter().filter(|(_, connection)| is_late(connection));
        let leaders: Vec<String> = late.map(|(leader, _)| leader.clone()).collect();
        for leader in leaders {
            let Some(connection) = self.connections.get_mut(&leader) else { continue };
            connection.client.abandon();
            connection.in_flight = None;
            let requests = std::mem::take(&mut connection.requests);
            let silent = CallError::Unclear(format!("{leader} does not respond"));
            self.connection_failed(&leader, requests, &silent);
        }
    }
}

impl Fetcher for KafkaRustFetcher {
    fn assign_known(&mut self, partition: &TopicPartition, offset: Offset, _log: LogIdentity) {
        self.revoke(partition);
        self.number += 1;
        self.readers.insert(partition.clone(), PartitionReader::new(self.number, offset));
    }

    fn revoke(&mut self, partition: &TopicPartition) {
        self.readers.remove(partition);
        self.pending_errors.retain(|event| event.partition() != Some(partition));
    }

    fn set_paused(&mut self, partition: &TopicPartition, paused: bool) {
        if let Some(reader) = self.readers.get_mut(partition) {
            reader.is_paused = paused;
        }
    }

    fn poll(&mut self, wait: Duration, max: usize) -> Vec<FetchEvent> {
        let deadline = Instant::now() + wait;
        loop {
            self.take_responses();
            let mut events = into_batches(self.take_ready(max));
            self.start_fetches();
            // The messages of a partition come before its error.
            events.extend(self.pending_errors.drain(..));
            let now = Instant::now();
            if !events.is_empty() || now >= deadline {
                return events;
            }
            // Waits at most one retry pause, since a partition may be due again after that time.
            let left = (deadline - now).min(RETRY_PAUSE);
            if let Ok(response) = self.responses.1.recv_timeout(left) {
                self.take_response(response);
            }
        }
    }

    fn poll_errors(&mut self) -> Vec<FetchEvent> {
        self.take_responses();
        self.start_fetches();
        let (errors, others): (VecDeque<_>, _) = self.pending_errors.drain(..).partition(FetchEvent::is_error);
        self.pending_errors = others;
        errors.into()
    }
}
