//! The thread that requests metadata of topics whose leaders may have changed.
//!
//! The metadata of a topic is stale after a broker answered that it is not the leader, after a connection failed, while
//! a broker does not answer, and while a partition with messages has no leader. One request names all stale topics, up
//! to a bound; metadata requests never create a topic.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::debug;

use super::message::ProducerMessage;
use super::shared::Shared;
use crate::kafka::config::BrokerAddress;
use crate::kafka::connection::Connector;
use crate::kafka::error_code;
use crate::kafka::metadata::{MetadataResponse, MetadataTopics, TopicMetadata};
use crate::kafka::metadata_client::{MAX_NAMES, MetadataClient};

/// Shortest time between two metadata requests, and so the time in which a newly elected leader is found.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// Longest time of a request: the end of the producer may have to wait for it. After a failure it doubles up to the
/// maximum, for clusters to which a connection takes long.
const MIN_REQUEST_TIME: Duration = Duration::from_secs(1);
const MAX_REQUEST_TIME: Duration = Duration::from_secs(4);
/// Interval of the requests while partitions with messages have no leader.
const UNRESOLVED_INTERVAL: Duration = Duration::from_millis(250);
/// A topic in use counts as deleted when brokers report for this long that it does not exist: a broker that has just
/// started has no topics yet. The same holds for a partition.
const MISSING_TIME: Duration = Duration::from_secs(4);

/// The thread that requests the metadata of stale topics.
pub(super) struct LeaderRefresh<M> {
    shared: Arc<Shared<M>>,
    client: MetadataClient,
    request_time: Duration,
    /// Topics to request again although nothing new made them stale.
    unresolved: HashSet<Arc<str>>,
    /// Since when topics have had messages for partitions that do not exist.
    missing_since: HashMap<Arc<str>, Instant>,
}

impl<M: ProducerMessage> LeaderRefresh<M> {
    pub(super) fn new(shared: Arc<Shared<M>>, connector: Connector, bootstrap: Vec<BrokerAddress>) -> Self {
        LeaderRefresh {
            shared,
            client: MetadataClient::new(connector, bootstrap),
            request_time: MIN_REQUEST_TIME,
            unresolved: HashSet::new(),
            missing_since: HashMap::new(),
        }
    }

    /// Requests metadata when topics are stale, until the producer is closed.
    pub(super) fn run(mut self) {
        self.shared.stale_topics().become_woken_thread();
        let mut next_request = Instant::now();
        while !self.shared.is_closed() {
            let now = Instant::now();
            if now < next_request {
                thread::park_timeout(next_request - now);
                continue;
            }
            let mut topics = self.shared.stale_topics().take();
            topics.extend(self.unresolved.drain());
            if topics.is_empty() {
                thread::park();
                continue;
            }
            self.request(&topics.into_iter().collect::<Vec<_>>());
            let interval = if self.unresolved.is_empty() { MIN_INTERVAL } else { UNRESOLVED_INTERVAL };
            next_request = now + interval;
        }
    }

    /// Requests metadata of these topics, some at a time; each response counts, whatever becomes of the others.
    fn request(&mut self, topics: &[Arc<str>]) {
        for chunk in topics.chunks(MAX_NAMES) {
            if self.shared.is_closed() {
                return;
            }
            let deadline = Instant::now() + self.request_time;
            match self.client.request(MetadataTopics::Names(chunk.to_vec()), deadline) {
                Ok(response) => {
                    self.request_time = MIN_REQUEST_TIME;
                    self.handle(chunk, &response);
                }
                Err(error) => {
                    debug!("metadata of the topics in use: {error}");
                    self.request_time = (self.request_time * 2).min(MAX_REQUEST_TIME);
                    self.unresolved.extend(chunk.iter().cloned());
                }
            }
        }
    }

    fn handle(&mut self, topics: &[Arc<str>], response: &MetadataResponse) {
        self.shared.update(response);
        let found: HashMap<&str, &TopicMetadata> = response.topics.iter().map(|topic| (&*topic.name, topic)).collect();
        for topic in topics {
            let partition_count = match found.get(&**topic) {
                None => Some(0),
                Some(topic) if topic.error_code == error_code::UNKNOWN_TOPIC_OR_PARTITION => Some(0),
                Some(topic) if topic.error_code == error_code::NONE => Some(topic.partitions.len()),
                // The response does not say whether the topic exists.
                Some(_) => None,
            };
            let is_missing = partition_count.is_some_and(|count| self.handle_missing(topic, count));
            // A partition without a leader has no sender whose failures would cause a request.
            if is_missing || self.shared.waits_for_leader(topic) {
                self.unresolved.insert(Arc::clone(topic));
            }
        }
    }

    /// Ends messages for partitions beyond `count`, which do not exist, if that has been so for long enough. Returns
    /// whether there are such messages and their end is not due yet.
    fn handle_missing(&mut self, topic: &Arc<str>, count: usize) -> bool {
        if !self.shared.has_messages(topic, count) {
            self.missing_since.remove(topic);
            return false;
        }
        let since = *self.missing_since.entry(Arc::clone(topic)).or_insert_with(Instant::now);
        if since.elapsed() < MISSING_TIME {
            return true;
        }
        self.missing_since.remove(topic);
        self.shared.end_missing(topic, count);
        false
    }
}
