//! Requests the newest offsets of the partitions for which some module has a stored offset.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::broker::{LogEnds, MetadataError, PartitionId, TopicPartition};

use super::delay::{LogEnd, StoredByModule};

/// Connects to the brokers at these addresses, or returns why that failed.
pub(super) type Connect = Box<dyn FnMut(&[String]) -> Result<Box<dyn LogEnds>, String> + Send>;

/// Requests log ends from the brokers of one cluster. It keeps one Kafka client until the broker addresses change or no
/// broker responds.
pub(super) struct BrokerLogEnds {
    connect: Connect,
    connected: Option<(Vec<String>, Box<dyn LogEnds>)>,
}

/// The result of one request for log ends.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct NewestOffsets {
    /// One entry for each requested partition; a partition without an entry is unknown.
    pub ends: HashMap<TopicPartition, LogEnd>,
    /// Why some or all log ends are unknown.
    pub failure: Option<String>,
    /// Whether no broker responded at all, so that a further request would time out too.
    pub is_unreachable: bool,
}

impl NewestOffsets {
    /// The result when no broker can be reached: no log end is known.
    fn unreachable(failure: String) -> Self {
        NewestOffsets { failure: Some(failure), is_unreachable: true, ..NewestOffsets::default() }
    }
}

impl BrokerLogEnds {
    /// Makes a value without a Kafka client; the first request calls `connect`.
    pub(super) fn new(connect: Connect) -> Self {
        BrokerLogEnds { connect, connected: None }
    }

    /// Requests the newest offset of every partition in `by_module` from the brokers at `hosts`. A partition that
    /// several modules have is requested once.
    pub(super) fn newest(&mut self, hosts: &[String], by_module: &StoredByModule) -> NewestOffsets {
        let wanted: BTreeSet<&TopicPartition> = by_module.values().flat_map(BTreeMap::keys).collect();
        let wanted: Vec<TopicPartition> = wanted.into_iter().cloned().collect();
        if wanted.is_empty() {
            return NewestOffsets::default();
        }
        if hosts.is_empty() {
            return NewestOffsets::unreachable("no broker found in ZooKeeper".to_owned());
        }
        let mut hosts = hosts.to_vec();
        hosts.sort_unstable();
        let log_ends = match self.connected(hosts) {
            Ok(log_ends) => log_ends,
            Err(cause) => return NewestOffsets::unreachable(cause),
        };
        let results = log_ends.newest(&wanted);
        let mut metadata = TopicMetadata { log_ends: &mut **log_ends, partitions: HashMap::new(), is_reachable: true };
        let mut newest = NewestOffsets::default();
        let mut n_unreachable = 0;
        for (partition, result) in wanted.iter().zip(results) {
            let end = match result {
                Ok(offset) => LogEnd::Newest(offset),
                Err(MetadataError::UnknownTopic(_)) => LogEnd::Gone,
                Err(MetadataError::Partition(_)) if metadata.lacks(partition) => LogEnd::Gone,
                Err(cause) => {
                    n_unreachable += usize::from(matches!(cause, MetadataError::Unreachable(_)));
                    newest.failure.get_or_insert(cause.to_string());
                    LogEnd::Unknown
                }
            };
            newest.ends.insert(partition.clone(), end);
        }
        if n_unreachable == wanted.len() {
            // No broker responded, so the next request makes a new client.
            self.connected = None;
            newest.is_unreachable = true;
        }
        newest
    }

    fn connected(&mut self, hosts: Vec<String>) -> Result<&mut Box<dyn LogEnds>, String> {
        if self.connected.as_ref().is_some_and(|(known, _)| *known != hosts) {
            self.connected = None;
        }
        let connected = match self.connected.take() {
            Some(connected) => connected,
            None => {
                let log_ends = (self.connect)(&hosts)?;
                (hosts, log_ends)
            }
        };
        Ok(&mut self.connected.insert(connected).1)
    }
}

/// Requests the partitions of topics, once for each topic with a partition whose newest offset is missing.
struct TopicMetadata<'a> {
    log_ends: &'a mut dyn LogEnds,
    /// Partition numbers by topic; `None` where the metadata request failed.
    partitions: HashMap<Arc<str>, Option<BTreeSet<PartitionId>>>,
    /// Set to false by the first request without a response; further requests would time out too.
    is_reachable: bool,
}

impl TopicMetadata<'_> {
    /// Returns whether the partition certainly does not exist.
    fn lacks(&mut self, partition: &TopicPartition) -> bool {
        if !self.partitions.contains_key(&partition.topic) {
            let numbers = if self.is_reachable { self.request(&partition.topic) } else { None };
            self.partitions.insert(Arc::clone(&partition.topic), numbers);
        }
        let numbers = self.partitions.get(&partition.topic).and_then(Option::as_ref);
        numbers.is_some_and(|numbers| !numbers.contains(&partition.partition))
    }

    fn request(&mut self, topic: &str) -> Option<BTreeSet<PartitionId>> {
        match self.log_ends.partitions(topic) {
            Ok(partitions) => Some(partitions.iter().map(|info| info.partition).collect()),
            Err(MetadataError::UnknownTopic(_)) => Some(BTreeSet::new()),
            Err(MetadataError::Partition(_)) => None,
            Err(MetadataError::Unreachable(_)) => {
                self.is_reachable = false;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::in_memory::MemoryBroker;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn at(topic: &str, partition: PartitionId) -> TopicPartition {
        TopicPartition { topic: topic.into(), partition }
    }

    fn by_module(partitions: &[(&str, TopicPartition)]) -> StoredByModule {
        let mut by_module = StoredByModule::new();
        for (module, partition) in partitions {
            by_module.entry((*module).into()).or_default().insert(partition.clone(), Some(0));
        }
        by_module
    }

    fn counted(broker: &MemoryBroker) -> (BrokerLogEnds, Arc<AtomicUsize>) {
        let (broker, count) = (broker.clone(), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&count);
        let connect = move |_: &[String]| {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok(Box::new(broker.log_ends()) as Box<dyn LogEnds>)
        };
        (BrokerLogEnds::new(Box::new(connect)), count)
    }

    #[test]
    fn a_partition_that_is_gone_differs_from_an_unknown_one() {
        let broker = MemoryBroker::new();
        broker.create_topic("t", 2);
        broker.put("t", 0, None, b"x");
        broker.set_broken(&at("t", 1), Some("no leader"));
        let (mut ends, _) = counted(&broker);
        let wanted = by_module(&[
            ("a", at("t", 0)),
            ("b", at("t", 0)),
            ("a", at("t", 1)),
            ("a", at("t", 2)),
            ("a", at("old", 0)),
        ]);
        let newest = ends.newest(&["b:1".into()], &wanted);
        let expected = HashMap::from([
            (at("t", 0), LogEnd::Newest(1)),
            (at("t", 1), LogEnd::Unknown),
            (at("t", 2), LogEnd::Gone),
            (at("old", 0), LogEnd::Gone),
        ]);
        assert_eq!(newest.ends, expected);
        assert!(newest.failure.unwrap().contains("no leader"));
        // A partition without a leader is no reason to skip further requests: the broker does respond.
        let newest = ends.newest(&["b:1".into()], &by_module(&[("a", at("t", 1))]));
        assert_eq!((newest.ends[&at("t", 1)], newest.is_unreachable), (LogEnd::Unknown, false));
        broker.set_reachable(false);
        assert!(ends.newest(&["b:1".into()], &by_module(&[("a", at("t", 1))])).is_unreachable);
    }

    #[test]
    fn a_client_is_kept_until_the_brokers_change_or_none_responds() {
        let broker = MemoryBroker::new();
        broker.create_topic("t", 1);
        let (mut ends, connections) = counted(&broker);
        let wanted = by_module(&[("a", at("t", 0))]);
        let mut request = |hosts: &[&str]| {
            let newest = ends.newest(&hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>(), &wanted);
            (newest.ends[&at("t", 0)], connections.load(Ordering::Relaxed))
        };
        assert_eq!(request(&["b:1", "a:1"]), (LogEnd::Newest(0), 1));
        assert_eq!(request(&["a:1", "b:1"]), (LogEnd::Newest(0), 1));
        assert_eq!(request(&["a:1"]), (LogEnd::Newest(0), 2));
        broker.set_reachable(false);
        assert_eq!(request(&["a:1"]), (LogEnd::Unknown, 2));
        broker.set_reachable(true);
        assert_eq!(request(&["a:1"]), (LogEnd::Newest(0), 3));
    }

    #[test]
    fn a_failure_to_connect_is_returned_and_without_partitions_no_broker_is_needed() {
        let mut ends = BrokerLogEnds::new(Box::new(|_| Err("no route".into())));
        assert_eq!(ends.newest(&[], &StoredByModule::new()), NewestOffsets::default());
        let newest = ends.newest(&["b:1".into()], &by_module(&[("a", at("t", 0))]));
        assert_eq!((newest.ends.len(), newest.failure.as_deref()), (0, Some("no route")));
        let newest = ends.newest(&[], &by_module(&[("a", at("t", 0))]));
        assert_eq!((newest.ends.len(), newest.failure.as_deref()), (0, Some("no broker found in ZooKeeper")));
    }
}
