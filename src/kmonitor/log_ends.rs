//! The newest offsets of the partitions that some module has a stored offset for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::broker::{LogEnds, MetadataError, PartitionId, TopicPartition};

use super::delay::{LogEnd, StoredByModule};

/// Makes what asks the brokers at these addresses. An error is told in words and tried again later.
pub type Connect = Box<dyn FnMut(&[String]) -> Result<Box<dyn LogEnds>, String> + Send>;

/// Asks the brokers of one cluster. The connection is made anew when the brokers changed or gave no answer.
pub struct BrokerLogEnds {
    connect: Connect,
    connected: Option<(Vec<String>, Box<dyn LogEnds>)>,
}

/// What the brokers told.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct NewestOffsets {
    /// One entry a partition asked for; what is missing is unknown.
    pub ends: HashMap<TopicPartition, LogEnd>,
    /// Why some or all of it is unknown, in words.
    pub trouble: Option<String>,
    /// Whether no broker told anything: a further question would wait in vain as well.
    pub is_silence: bool,
}

impl NewestOffsets {
    /// Nothing is known, and nobody can be asked.
    fn silence(trouble: String) -> Self {
        NewestOffsets { trouble: Some(trouble), is_silence: true, ..NewestOffsets::default() }
    }
}

impl BrokerLogEnds {
    /// Connects when first asked.
    pub fn new(connect: Connect) -> Self {
        BrokerLogEnds { connect, connected: None }
    }

    /// Asks the brokers at `hosts` for every partition in `by_module`, each once.
    pub fn newest(&mut self, hosts: &[String], by_module: &StoredByModule) -> NewestOffsets {
        let wanted: BTreeSet<&TopicPartition> = by_module.values().flat_map(BTreeMap::keys).collect();
        let wanted: Vec<TopicPartition> = wanted.into_iter().cloned().collect();
        if wanted.is_empty() {
            return NewestOffsets::default();
        }
        if hosts.is_empty() {
            return NewestOffsets::silence("no broker is there".to_owned());
        }
        let mut hosts = hosts.to_vec();
        hosts.sort_unstable();
        let log_ends = match self.connected(hosts) {
            Ok(log_ends) => log_ends,
            Err(cause) => return NewestOffsets::silence(cause),
        };
        let answers = log_ends.newest(&wanted);
        let mut topics = Topics { log_ends: &mut **log_ends, known: HashMap::new(), is_answered: true };
        let mut newest = NewestOffsets::default();
        let mut n_unreachable = 0;
        for (partition, answer) in wanted.iter().zip(answers) {
            let end = match answer {
                Ok(offset) => LogEnd::Newest(offset),
                Err(MetadataError::UnknownTopic(_)) => LogEnd::Gone,
                Err(MetadataError::Partition(_)) if topics.lacks(partition) => LogEnd::Gone,
                Err(cause) => {
                    n_unreachable += usize::from(matches!(cause, MetadataError::Unreachable(_)));
                    newest.trouble.get_or_insert(cause.to_string());
                    LogEnd::Unknown
                }
            };
            newest.ends.insert(partition.clone(), end);
        }
        if n_unreachable == wanted.len() {
            // Nothing came through: the next time begins with a new connection.
            self.connected = None;
            newest.is_silence = true;
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

/// Which partitions there are, asked only for topics of which one gave no answer.
struct Topics<'a> {
    log_ends: &'a mut dyn LogEnds,
    /// By topic; `None` where nobody could tell.
    known: HashMap<Arc<str>, Option<BTreeSet<PartitionId>>>,
    /// Cleared by the first question without an answer: the others would wait in vain as well.
    is_answered: bool,
}

impl Topics<'_> {
    /// Whether the partition certainly does not exist.
    fn lacks(&mut self, partition: &TopicPartition) -> bool {
        if !self.known.contains_key(&partition.topic) {
            let numbers = if self.is_answered { self.ask(&partition.topic) } else { None };
            self.known.insert(Arc::clone(&partition.topic), numbers);
        }
        let numbers = self.known.get(&partition.topic).and_then(Option::as_ref);
        numbers.is_some_and(|numbers| !numbers.contains(&partition.partition))
    }

    fn ask(&mut self, topic: &str) -> Option<BTreeSet<PartitionId>> {
        match self.log_ends.partitions(topic) {
            Ok(partitions) => Some(partitions.iter().map(|info| info.partition).collect()),
            Err(MetadataError::UnknownTopic(_)) => Some(BTreeSet::new()),
            Err(MetadataError::Partition(_)) => None,
            Err(MetadataError::Unreachable(_)) => {
                self.is_answered = false;
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
    fn gone_is_told_from_unknown() {
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
        assert!(newest.trouble.unwrap().contains("no leader"));
        // A broker that knows no leader is not silent: what is asked next may well be answered.
        let newest = ends.newest(&["b:1".into()], &by_module(&[("a", at("t", 1))]));
        assert_eq!((newest.ends[&at("t", 1)], newest.is_silence), (LogEnd::Unknown, false));
        broker.set_reachable(false);
        assert!(ends.newest(&["b:1".into()], &by_module(&[("a", at("t", 1))])).is_silence);
    }

    #[test]
    fn a_connection_is_kept_until_brokers_change_or_nothing_answers() {
        let broker = MemoryBroker::new();
        broker.create_topic("t", 1);
        let (mut ends, connections) = counted(&broker);
        let wanted = by_module(&[("a", at("t", 0))]);
        let mut ask = |hosts: &[&str]| {
            let newest = ends.newest(&hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>(), &wanted);
            (newest.ends[&at("t", 0)], connections.load(Ordering::Relaxed))
        };
        assert_eq!(ask(&["b:1", "a:1"]), (LogEnd::Newest(0), 1));
        assert_eq!(ask(&["a:1", "b:1"]), (LogEnd::Newest(0), 1));
        assert_eq!(ask(&["a:1"]), (LogEnd::Newest(0), 2));
        broker.set_reachable(false);
        assert_eq!(ask(&["a:1"]), (LogEnd::Unknown, 2));
        broker.set_reachable(true);
        assert_eq!(ask(&["a:1"]), (LogEnd::Newest(0), 3));
    }

    #[test]
    fn what_cannot_connect_says_why_and_nothing_asked_needs_no_broker() {
        let mut ends = BrokerLogEnds::new(Box::new(|_| Err("no route".into())));
        assert_eq!(ends.newest(&[], &StoredByModule::new()), NewestOffsets::default());
        let newest = ends.newest(&["b:1".into()], &by_module(&[("a", at("t", 0))]));
        assert_eq!((newest.ends.len(), newest.trouble.as_deref()), (0, Some("no route")));
        let newest = ends.newest(&[], &by_module(&[("a", at("t", 0))]));
        assert_eq!((newest.ends.len(), newest.trouble.as_deref()), (0, Some("no broker is there")));
    }
}
