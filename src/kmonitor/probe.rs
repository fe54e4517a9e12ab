//! Finds out whether anything can be delivered between the stored and the newest offset of a place.
//!
//! Transaction markers and aborted messages take offsets, but no consumer receives them. After a commit or an abort at
//! the end of a log, a delay would stay forever although no message waits. So if messages seem to wait and no offset
//! has moved for a while, a probe reads the log from the stored offset with `read_committed`. It ends at the first
//! message; if it reaches the end of the log without one, no message waits. The result holds until an offset moves.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::broker::{FetchEvent, Fetcher, Offset, TopicPartition};

use super::client::{Client, Connect};

/// Largest number of logs that one round reads.
pub(super) const MAX_PROBES: usize = 50;
/// Longest time of a round.
const ROUND: Duration = Duration::from_millis(1_500);
/// Messages taken at a time; the first one of a partition decides.
const MAX_MESSAGES: usize = 50;

/// A place to probe: from the offset of the first message that seems to wait to the newest one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    /// The log.
    pub at: TopicPartition,
    /// The first offset that was not pushed.
    pub from: Offset,
    /// The newest offset.
    pub newest: Offset,
}

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// A message that can be delivered.
    Message,
    /// The end of the log, without a message.
    Nothing,
}

/// Reads logs of one cluster.
pub(super) struct Prober {
    client: Client<dyn Fetcher>,
}

impl Prober {
    /// Makes a prober without a Kafka client; the first round calls `connect`.
    pub(super) fn new(connect: Connect<dyn Fetcher>) -> Self {
        Prober { client: Client::new(connect) }
    }

    /// Reads these logs, each at most once, and returns what was found; a log that could not be read has no entry.
    pub(super) fn round(&mut self, hosts: &[String], probes: &[Probe]) -> Vec<(Probe, Finding)> {
        let fetcher = match self.client.get(hosts) {
            Ok(fetcher) => fetcher,
            Err(cause) => {
                log::debug!("no probe of {} logs: {cause}", probes.len());
                return Vec::new();
            }
        };
        let mut open: BTreeMap<TopicPartition, &Probe> =
            probes.iter().take(MAX_PROBES).map(|probe| (probe.at.clone(), probe)).collect();
        open.values().for_each(|probe| fetcher.assign(&probe.at, probe.from));
        let deadline = Instant::now() + ROUND;
        let mut findings = Vec::new();
        while !open.is_empty() && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            for event in fetcher.poll(left, MAX_MESSAGES) {
                let (at, finding) = match event {
                    FetchEvent::Messages(batch) => (batch.partition, Some(Finding::Message)),
                    FetchEvent::Position { partition, next, .. } => {
                        let is_end = open.get(&partition).is_some_and(|probe| probe.newest <= next);
                        (partition, is_end.then_some(Finding::Nothing))
                    }
                    // Another log than before: the next reading of its ends shows what that means.
                    FetchEvent::OffsetGone { partition, .. }
                    | FetchEvent::Truncated { partition, .. }
                    | FetchEvent::Recreated { partition, .. } => {
                        fetcher.revoke(&partition);
                        open.remove(&partition);
                        continue;
                    }
                    FetchEvent::Unreachable { .. } => {
                        // The brokers may have other addresses by now.
                        self.client.forget();
                        return findings;
                    }
                    FetchEvent::TopicId { .. }
                    | FetchEvent::PartitionError { .. }
                    | FetchEvent::Recovered { .. }
                    | FetchEvent::BrokerUnreachable { .. } => continue,
                };
                if let Some(finding) = finding
                    && let Some(probe) = open.remove(&at)
                {
                    fetcher.revoke(&at);
                    findings.push((probe.clone(), finding));
                }
            }
        }
        open.keys().for_each(|at| fetcher.revoke(at));
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::in_memory::MemoryBroker;
    use crate::locks::lock;
    use std::sync::{Arc, Mutex};

    #[test]
    fn markers_are_nothing_and_a_message_is_found_behind_them() {
        let broker = MemoryBroker::new();
        broker.create_topic("t", 4);
        let at = |partition| TopicPartition { topic: "t".into(), partition };
        broker.put("t", 0, None, b"x");
        broker.put_marker(&at(0));
        broker.put_marker(&at(1));
        broker.put("t", 1, None, b"x");
        broker.put("t", 2, None, b"x");
        broker.trim(&at(2), 1);
        let source = broker.clone();
        let mut prober = Prober::new(Box::new(move |_| Ok(Box::new(source.fetcher()))));
        let probe = |partition, from, newest| Probe { at: at(partition), from, newest };
        let probes = [probe(0, 1, 2), probe(1, 0, 2), probe(2, 0, 1)];
        let mut round = |hosts: &str, probes: &[Probe]| prober.round(&[hosts.to_owned()], probes);
        let mut findings = round("b:1", &probes);
        findings.sort_by_key(|(probe, _)| probe.at.partition);
        let expected = [(probes[0].clone(), Finding::Nothing), (probes[1].clone(), Finding::Message)];
        assert_eq!(findings, expected, "of a log that begins later nothing is said");
        assert_eq!(round("b:1", &[probe(0, 0, 2)]), [(probe(0, 0, 2), Finding::Message)]);
        let mut refused = Prober::new(Box::new(|_| Err("no route".into())));
        assert_eq!(refused.round(&[], &probes), []);
    }

    #[test]
    fn the_addresses_of_now_are_probed() {
        let broker = MemoryBroker::new();
        broker.create_topic("t", 1);
        broker.put("t", 0, None, b"x");
        let (source, connected) = (broker.clone(), Arc::new(Mutex::new(Vec::new())));
        let hosts_of = Arc::clone(&connected);
        let mut prober = Prober::new(Box::new(move |hosts: &[String]| {
            lock(&hosts_of).push(hosts.join(","));
            Ok(Box::new(source.fetcher()))
        }));
        let probe = Probe { at: TopicPartition { topic: "t".into(), partition: 0 }, from: 0, newest: 1 };
        let mut finds = |hosts: &str| prober.round(&[hosts.to_owned()], std::slice::from_ref(&probe)).len();
        assert_eq!((finds("a:1"), finds("a:1"), finds("b:1")), (1, 1, 1));
        broker.set_reachable(false);
        assert_eq!(finds("b:1"), 0);
        broker.set_reachable(true);
        assert_eq!(finds("b:1"), 1);
        assert_eq!(*lock(&connected), ["a:1", "b:1", "b:1"], "a new client after no broker responded");
    }
}
