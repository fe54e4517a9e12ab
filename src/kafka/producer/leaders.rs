//! Which broker leads which partition, and the thread that requests metadata when that is doubtful.
//!
//! A topic is doubted after a broker answered that it is not the leader, after a connection failed, and while a
//! partition with messages has no leader. One request names all doubted topics; metadata requests never create a topic.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use log::debug;

use super::client::Shared;
use super::level::leaders_of;
use super::message::ProducerMessage;
use crate::kafka::config::BrokerAddress;
use crate::kafka::connection::Connector;
use crate::kafka::error_code;
use crate::kafka::metadata::{BrokerId, MetadataResponse, MetadataTopics, TopicId, TopicMetadata};
use crate::kafka::metadata_client::MetadataClient;
use crate::kafka::produce::NodeAddress;
use crate::locks::lock;

/// Least time from one metadata request to the next. A controller that has elected a new leader is noticed this soon.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// Longest time of a request. It is short because it delays the end of the producer.
const MAX_REQUEST_TIME: Duration = Duration::from_secs(1);
/// Interval of the requests while partitions with messages have no leader.
const UNRESOLVED_INTERVAL: Duration = Duration::from_millis(250);
/// A topic in use counts as deleted when brokers report for this long that it does not exist: a broker that has just
/// started has no topics yet.
const MISSING_TIME: Duration = Duration::from_secs(4);

/// The brokers, and the leaders of all topics in use.
#[derive(Default)]
pub(super) struct ClusterView {
    brokers: HashMap<BrokerId, BrokerAddress>,
    topics: HashMap<Arc<str>, TopicLeaders>,
}

#[derive(Default)]
struct TopicLeaders {
    id: Option<TopicId>,
    /// Leader and leader epoch (-1: unknown) of the partitions from 0.
    partitions: Vec<(Option<BrokerId>, i32)>,
}

/// New leaders of topics, by the name of the topic.
type ChangedLeaders = HashMap<Arc<str>, Vec<Option<BrokerId>>>;

impl ClusterView {
    pub(super) fn address_of(&self, broker: BrokerId) -> Option<BrokerAddress> {
        self.brokers.get(&broker).cloned()
    }

    /// Returns the leaders of the partitions of a topic, from 0; `None` for a topic without metadata.
    pub(super) fn leaders(&self, topic: &str) -> Option<Vec<Option<BrokerId>>> {
        self.topics.get(topic).map(TopicLeaders::leaders)
    }

    pub(super) fn lacks_leader(&self, topic: &str) -> bool {
        self.topics.get(topic).is_some_and(|topic| topic.partitions.iter().any(|(leader, _)| leader.is_none()))
    }

    pub(super) fn topics_of(&self, broker: BrokerId) -> Vec<Arc<str>> {
        let has_leader =
            |topic: &TopicLeaders| topic.partitions.iter().any(|(leader, _)| leader.is_none_or(|id| id == broker));
        self.topics.iter().filter(|(_, topic)| has_leader(topic)).map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Takes over a response; returns the leaders of the topics in it.
    pub(super) fn update(&mut self, metadata: &MetadataResponse) -> ChangedLeaders {
        // A broker that has just started may know no other broker; the addresses known so far stay valid.
        for broker in &metadata.brokers {
            self.brokers.insert(broker.id, broker.address.clone());
        }
        let mut changed = HashMap::new();
        for topic in metadata.topics.iter().filter(|topic| topic.error_code == error_code::NONE) {
            let known = self.topics.entry(Arc::clone(&topic.name)).or_default();
            known.update(topic);
            changed.insert(Arc::clone(&topic.name), known.leaders());
        }
        changed
    }

    /// Takes over the leaders that a Produce response names (KIP-951), with their addresses.
    pub(super) fn apply_hints(
        &mut self,
        partitions: &[(Arc<str>, i32, Option<(BrokerId, i32)>)],
        nodes: &[NodeAddress],
    ) -> ChangedLeaders {
        for node in nodes {
            if let Ok(port) = u16::try_from(node.port) {
                self.brokers.insert(node.id, BrokerAddress { host: Arc::from(&*node.host), port });
            }
        }
        let mut changed = HashMap::new();
        for (topic, partition, hint) in partitions {
            let (Some((leader, epoch)), Some(known)) = (hint, self.topics.get_mut(topic)) else { continue };
            let known_partition = usize::try_from(*partition).ok().and_then(|index| known.partitions.get_mut(index));
            if let Some((known_leader, known_epoch)) = known_partition
                && *epoch > *known_epoch
                && self.brokers.contains_key(leader)
            {
                (*known_leader, *known_epoch) = (Some(*leader), *epoch);
                changed.insert(Arc::clone(topic), known.leaders());
            }
        }
        changed
    }
}

impl TopicLeaders {
    fn leaders(&self) -> Vec<Option<BrokerId>> {
        self.partitions.iter().map(|(leader, _)| *leader).collect()
    }

    /// Takes over metadata of the topic, except leaders that are older than the known ones: a broker that lags behind
    /// the controller still names them.
    fn update(&mut self, topic: &TopicMetadata) {
        let is_same_topic = topic.id.is_none() || self.id.is_none() || topic.id == self.id;
        let leaders = leaders_of(topic);
        if !is_same_topic {
            // Created anew: its epochs begin again.
            self.partitions.clear();
        }
        self.id = topic.id.or(self.id);
        // More partitions, or fewer after the topic was created anew.
        self.partitions.resize(leaders.len(), (None, -1));
        for partition in &topic.partitions {
            let known = usize::try_from(partition.partition).ok().and_then(|index| self.partitions.get_mut(index));
            let Some((leader, epoch)) = known else { continue };
            if partition.leader_epoch < 0 || partition.leader_epoch >= *epoch {
                (*leader, *epoch) = (partition.leader, partition.leader_epoch);
            }
        }
    }
}

/// The topics whose metadata is needed.
#[derive(Default)]
pub(super) struct DoubtedTopics {
    topics: Mutex<HashSet<Arc<str>>>,
    thread: Mutex<Option<Thread>>,
}

impl DoubtedTopics {
    pub(super) fn add(&self, topics: impl IntoIterator<Item = Arc<str>>) {
        lock(&self.topics).extend(topics);
        self.wake();
    }

    pub(super) fn wake(&self) {
        lock(&self.thread).iter().for_each(Thread::unpark);
    }

    fn take(&self) -> Vec<Arc<str>> {
        lock(&self.topics).drain().collect()
    }
}

/// The thread that requests metadata of doubted topics.
pub(super) struct LeaderRefresh<M> {
    shared: Arc<Shared<M>>,
    client: MetadataClient,
    /// Topics to request again although nothing new made them doubtful.
    unresolved: HashSet<Arc<str>>,
    /// Since when topics with messages do not exist.
    missing_since: HashMap<Arc<str>, Instant>,
}

impl<M: ProducerMessage> LeaderRefresh<M> {
    pub(super) fn new(shared: Arc<Shared<M>>, connector: Connector, bootstrap: Vec<BrokerAddress>) -> Self {
        let client = MetadataClient::new(connector, bootstrap);
        LeaderRefresh { shared, client, unresolved: HashSet::new(), missing_since: HashMap::new() }
    }

    /// Requests metadata when topics are doubted, until the producer is closed.
    pub(super) fn run(mut self) {
        *lock(&self.shared.doubted().thread) = Some(thread::current());
        let mut next_request = Instant::now();
        while !self.shared.is_closed() {
            let now = Instant::now();
            if now < next_request {
                thread::park_timeout(next_request - now);
                continue;
            }
            let mut topics = self.shared.doubted().take();
            topics.extend(self.unresolved.drain());
            topics.sort_unstable();
            topics.dedup();
            if topics.is_empty() {
                thread::park();
                continue;
            }
            next_request = now + MIN_INTERVAL;
            let deadline = now + MAX_REQUEST_TIME;
            match self.client.request(MetadataTopics::Names(topics.clone()), deadline) {
                Ok(response) => self.handle(topics, &response),
                Err(error) => {
                    debug!("metadata of the topics in use: {error}");
                    self.unresolved.extend(topics);
                }
            }
            if !self.unresolved.is_empty() {
                next_request = now + UNRESOLVED_INTERVAL;
            }
        }
    }

    fn handle(&mut self, topics: Vec<Arc<str>>, response: &MetadataResponse) {
        self.shared.update(response);
        let is_missing = |name: &str| {
            let topic = response.topics.iter().find(|topic| *topic.name == *name);
            topic.is_none_or(|topic| topic.error_code == error_code::UNKNOWN_TOPIC_OR_PARTITION)
        };
        for topic in topics {
            if is_missing(&topic) {
                self.handle_missing(topic);
                continue;
            }
            self.missing_since.remove(&topic);
            // A partition without a leader has no sender whose failures would cause a request.
            if self.shared.waits_for_leader(&topic) {
                self.unresolved.insert(topic);
            }
        }
    }

    fn handle_missing(&mut self, topic: Arc<str>) {
        if !self.shared.has_messages(&topic) {
            self.missing_since.remove(&topic);
            return;
        }
        let since = *self.missing_since.entry(Arc::clone(&topic)).or_insert_with(Instant::now);
        if since.elapsed() >= MISSING_TIME {
            self.missing_since.remove(&topic);
            self.shared.end_topic(&topic);
        } else {
            self.unresolved.insert(topic);
        }
    }
}
