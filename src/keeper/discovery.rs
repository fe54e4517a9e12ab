//! Reads what brokers write to ZooKeeper: their endpoints, the partitions of each topic and the partition leaders.
//!
//! The assignment of partitions to group members uses only the leaders in ZooKeeper, as the original does. If members
//! read the leaders from different sources, their assignments could differ, and two members could claim the same
//! partition.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::api::{Keeper, KeeperError, Node};
use super::paths;
use crate::broker::{PartitionId, PartitionInfo};

/// The JSON in the node of a broker, without the fields that are not needed.
#[derive(Deserialize)]
struct BrokerNode {
    host: Option<String>,
    #[serde(default)]
    port: i64,
    #[serde(default)]
    endpoints: Vec<String>,
    /// Protocol of each listener name in `endpoints`. A listener without an entry has its name as protocol.
    #[serde(default)]
    listener_security_protocol_map: BTreeMap<String, String>,
}

/// The JSON in the node of a topic: the replicas of each partition.
#[derive(Deserialize)]
struct TopicNode {
    partitions: BTreeMap<String, Vec<i32>>,
}

/// The JSON in the state node of a partition.
#[derive(Deserialize)]
struct StateNode {
    leader: i32,
}

/// Why the partitions of a topic could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    /// The topic has no node, so it does not exist.
    #[error("topic {0} does not exist")]
    UnknownTopic(String),
    /// A node does not contain what brokers write, or a partition that is being created has no state node yet. A retry
    /// may succeed.
    #[error("node {0} is missing or does not hold the JSON that Kafka writes there")]
    Unreadable(String),
    /// A read failed.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
}

/// The live brokers, as they describe themselves in ZooKeeper.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokerList {
    /// `host:port` of each broker with an endpoint for the protocol, sorted.
    pub addresses: Vec<String>,
    /// Why the others are left out, sorted.
    pub skipped: Vec<String>,
    /// Number of requests that it took.
    pub request_count: u64,
}

/// Returns the endpoints (`host:port`) of the live brokers for `protocol` (`PLAINTEXT`, `SASL_SSL`, …), sorted; empty
/// if no broker is live. A broker without an endpoint for `protocol` is skipped, with a line in the log.
pub fn brokers(keeper: &dyn Keeper, protocol: &str) -> Result<Vec<String>, KeeperError> {
    let list = broker_list(keeper, protocol)?;
    list.skipped.iter().for_each(|reason| log::warn!("{reason}"));
    Ok(list.addresses)
}

/// Returns the live brokers with an endpoint for `protocol`, and the others. For a caller that calls it often and logs
/// only changes.
pub fn broker_list(keeper: &dyn Keeper, protocol: &str) -> Result<BrokerList, KeeperError> {
    let ids = match keeper.children(paths::BROKER_IDS) {
        Err(KeeperError::NoNode(_)) => return Ok(BrokerList { request_count: 1, ..BrokerList::default() }),
        ids => ids?,
    };
    let mut list = BrokerList { request_count: 1 + ids.len() as u64, ..BrokerList::default() };
    let nodes: Vec<String> = ids.iter().map(|id| paths::broker(id)).collect();
    for ((id, path), node) in ids.iter().zip(&nodes).zip(keeper.read_all(&nodes)) {
        // The broker may have stopped since the children were listed.
        let Some(node) = node? else { continue };
        match broker_address(&node.data, protocol) {
            Some(address) => list.addresses.push(address),
            None => {
                list.skipped.push(format!("broker {id} skipped: no {protocol} endpoint in its ZooKeeper node {path}"));
            }
        }
    }
    list.addresses.sort_unstable();
    list.skipped.sort_unstable();
    Ok(list)
}

/// Returns the endpoint of a broker for `protocol`: a listener with that name, or else a listener with that protocol.
/// For `PLAINTEXT` the last choice is `host` and `port`, the only fields that old brokers write; newer brokers that
/// listen only with TLS write `null` and -1 into these fields.
fn broker_address(data: &[u8], protocol: &str) -> Option<String> {
    let node: BrokerNode = serde_json::from_slice(data).ok()?;
    let endpoints = || node.endpoints.iter().filter_map(|endpoint| endpoint.split_once("://"));
    let has_protocol =
        |name: &str| node.listener_security_protocol_map.get(name).map_or(name.to_owned(), String::clone) == protocol;
    let by_name = endpoints().find(|(name, _)| *name == protocol);
    let endpoint = by_name.or_else(|| endpoints().find(|(name, _)| has_protocol(name))).map(|(_, address)| address);
    // An endpoint without a host (`PLAINTEXT://:9092`) cannot be connected to.
    if let Some(endpoint) = endpoint.filter(|endpoint| !endpoint.starts_with(':')) {
        return Some(endpoint.to_owned());
    }
    let host = node.host.filter(|host| !host.is_empty() && protocol == "PLAINTEXT")?;
    let port = u16::try_from(node.port).ok().filter(|port| *port > 0)?;
    Some(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
}

/// Returns the partitions of a topic with their leaders, sorted by number.
pub fn partitions(keeper: &dyn Keeper, topic: &str) -> Result<Vec<PartitionInfo>, DiscoveryError> {
    let ids = partition_ids(keeper, topic)?;
    let states: Vec<String> = ids.iter().map(|partition| paths::partition_state(topic, *partition)).collect();
    let nodes = keeper.read_all(&states);
    let info = |((partition, path), node): ((PartitionId, String), Result<Option<Node>, KeeperError>)| {
        Ok(PartitionInfo { partition, leader: leader(path, node?)? })
    };
    ids.into_iter().zip(states).zip(nodes).map(info).collect()
}

/// Returns the numbers of the partitions of a topic, sorted.
pub fn partition_ids(keeper: &dyn Keeper, topic: &str) -> Result<Vec<PartitionId>, DiscoveryError> {
    let path = paths::topic(topic);
    let node = keeper.read(&path)?.ok_or_else(|| DiscoveryError::UnknownTopic(topic.to_owned()))?;
    parse_topic(&node.data).ok_or(DiscoveryError::Unreadable(path))
}

fn parse_topic(data: &[u8]) -> Option<Vec<PartitionId>> {
    let node: TopicNode = serde_json::from_slice(data).ok()?;
    let mut ids: Vec<PartitionId> =
        node.partitions.keys().map(|name| paths::parse_partition(name)).collect::<Option<_>>()?;
    ids.sort_unstable();
    Some(ids)
}

/// Returns the leader of a partition by its state node; `None` if it has no leader. Fails if it has no state node,
/// which is created shortly after the topic.
fn leader(path: String, node: Option<Node>) -> Result<Option<i32>, DiscoveryError> {
    let state = node.and_then(|node| serde_json::from_slice::<StateNode>(&node.data).ok());
    let state = state.ok_or(DiscoveryError::Unreadable(path))?;
    Ok((state.leader >= 0).then_some(state.leader))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::Lifetime;
    use crate::keeper::in_memory::{InMemoryEnsemble, InMemoryKeeper};
    use crate::keeper::paths::create_with_parents;
    use std::sync::Arc;
    use std::time::Duration;

    fn keeper_with(nodes: &[(&str, &str)]) -> Arc<InMemoryKeeper> {
        let keeper = InMemoryEnsemble::new().connect(Duration::from_secs(6));
        for (path, data) in nodes {
            create_with_parents(&*keeper, path, data.as_bytes(), Lifetime::Persistent).unwrap();
        }
        keeper
    }

    #[test]
    fn the_endpoint_of_a_broker_is_chosen_by_protocol() {
        let cases = [
            (r#"{"endpoints":["PLAINTEXT://127.0.0.1:9092"],"host":"h","port":1,"version":5}"#, Some("127.0.0.1:9092")),
            (r#"{"endpoints":["SSL://h:9093","PLAINTEXT://[::1]:9092"],"host":null,"port":-1}"#, Some("[::1]:9092")),
            (r#"{"endpoints":["SSL://h:9093"],"host":null,"port":-1,"timestamp":"1"}"#, None),
            (r#"{"jmx_port":-1,"host":"old","version":1,"port":9092}"#, Some("old:9092")),
            (r#"{"host":"fe80::1","port":9092}"#, Some("[fe80::1]:9092")),
            (r#"{"host":"old","port":99999}"#, None),
            ("garbage", None),
        ];
        for (data, address) in cases {
            assert_eq!(broker_address(data.as_bytes(), "PLAINTEXT").as_deref(), address, "{data}");
        }
        let named = r#"{"endpoints":["INSIDE://h:1","OUTSIDE://h:2"],"host":"old","port":9,
            "listener_security_protocol_map":{"INSIDE":"PLAINTEXT","OUTSIDE":"SASL_SSL"}}"#;
        for (protocol, address) in [("PLAINTEXT", Some("h:1")), ("SASL_SSL", Some("h:2")), ("SSL", None)] {
            assert_eq!(broker_address(named.as_bytes(), protocol).as_deref(), address, "{protocol}");
        }
        let none = keeper_with(&[]);
        assert_eq!(brokers(&*none, "PLAINTEXT"), Ok(vec![]));
        let two = keeper_with(&[
            ("/brokers/ids/2", r#"{"host":"b","port":2}"#),
            ("/brokers/ids/1", r#"{"host":"a","port":1}"#),
            ("/brokers/ids/3", "garbage"),
        ]);
        assert_eq!(brokers(&*two, "PLAINTEXT"), Ok(vec!["a:1".into(), "b:2".into()]));
    }

    #[test]
    fn partitions_are_read_with_their_leaders_and_an_unreadable_node_is_an_error() {
        let topic = r#"{"removing_replicas":{},"partitions":{"10":[1],"2":[0,1]},"topic_id":"x","version":3}"#;
        let state = |leader: i32| format!(r#"{{"controller_epoch":1,"leader":{leader},"version":1,"isr":[0]}}"#);
        let keeper = keeper_with(&[
            ("/brokers/topics/t", topic),
            ("/brokers/topics/t/partitions/10/state", &state(-1)),
            ("/brokers/topics/t/partitions/2/state", &state(4)),
            ("/brokers/topics/new", topic),
            ("/brokers/topics/bad", r#"{"partitions":{"x":[]}}"#),
        ]);
        let expected = [PartitionInfo { partition: 2, leader: Some(4) }, PartitionInfo { partition: 10, leader: None }];
        assert_eq!(partitions(&*keeper, "t"), Ok(expected.to_vec()));
        assert_eq!(partitions(&*keeper, "absent"), Err(DiscoveryError::UnknownTopic("absent".into())));
        let no_state = DiscoveryError::Unreadable("/brokers/topics/new/partitions/2/state".into());
        assert_eq!(partitions(&*keeper, "new"), Err(no_state));
        assert_eq!(partitions(&*keeper, "bad"), Err(DiscoveryError::Unreadable("/brokers/topics/bad".into())));
    }
}
