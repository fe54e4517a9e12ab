//! Servers that answer as the brokers of one cluster.

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{ApiKey, FindCoordinatorRequest, FindCoordinatorResponse, MetadataRequest};
use kafka_protocol::messages::{MetadataResponse, TopicName};
use kafka_protocol::protocol::StrBytes;

use crate::kafka::config::BrokerAddress;
use crate::kafka::offsets::OffsetReader;
use crate::kafka::scripted_broker::{Received, Reply, ScriptedBroker, connector};
use crate::locks::lock;

pub(super) type Apis<'a> = &'a [(i16, i16, i16)];

/// All that an `OffsetReader` requests, in the versions of a broker of this time.
pub(super) const APIS: Apis = &[(2, 1, 11), (3, 0, 13), (8, 2, 10), (9, 1, 10), (10, 0, 6), (15, 0, 6), (16, 0, 5)];
/// The versions of Kafka 0.11.
pub(super) const OLD_APIS: Apis = &[(2, 0, 2), (3, 0, 4), (8, 0, 3), (9, 0, 3), (10, 0, 1), (15, 0, 1), (16, 0, 1)];

/// What the brokers answer; a test changes it while they run.
#[derive(Default)]
pub(super) struct State {
    /// Leaders of the partitions by topic; -1 is no leader.
    pub(super) leaders: HashMap<String, Vec<i32>>,
    /// Coordinators by group; without an entry the answer is COORDINATOR_NOT_AVAILABLE.
    pub(super) coordinators: HashMap<String, i32>,
    /// Error codes of topics.
    pub(super) errors: HashMap<String, i16>,
}

pub(super) struct Cluster {
    /// The broker with id `n` is at position `n`.
    pub(super) brokers: Vec<ScriptedBroker>,
    pub(super) state: Arc<Mutex<State>>,
}

pub(super) fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

impl Cluster {
    /// Starts brokers; `script` takes the broker id and the state, and answers all requests but Metadata and
    /// FindCoordinator.
    pub(super) fn start(
        count: usize,
        apis: Apis,
        script: impl Fn(i32, &Received, &Mutex<State>) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let script = Arc::new(script);
        let state = Arc::new(Mutex::new(State::default()));
        let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Arc<[u16]> = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        let brokers = listeners.into_iter().zip(0..).map(|(listener, id)| {
            let (script, state, ports) = (Arc::clone(&script), Arc::clone(&state), Arc::clone(&ports));
            ScriptedBroker::start_on(listener, apis, move |received| match ApiKey::try_from(received.api_key) {
                Ok(ApiKey::Metadata) => metadata(received, &lock(&state), &ports),
                Ok(ApiKey::FindCoordinator) => coordinators(received, &lock(&state), &ports),
                _ => script(id, received, &state),
            })
        });
        Cluster { brokers: brokers.collect(), state }
    }

    /// Returns a reader whose bootstrap address is broker 0.
    pub(super) fn reader(&self) -> OffsetReader {
        OffsetReader::new(connector(), vec![self.brokers[0].address.clone()])
    }

    /// Returns the address of a broker.
    pub(super) fn address(&self, id: usize) -> &BrokerAddress {
        &self.brokers[id].address
    }
}

fn metadata(received: &Received, state: &State, ports: &[u16]) -> Reply {
    let request: MetadataRequest = received.decode();
    assert!(!request.allow_auto_topic_creation, "a metadata request must not create topics");
    let brokers = ports.iter().zip(0..).map(|(port, id)| {
        let broker = MetadataResponseBroker::default().with_node_id(id.into());
        broker.with_host(text("127.0.0.1")).with_port((*port).into())
    });
    let topics = request.topics.unwrap_or_default().into_iter().map(|requested| {
        let name = requested.name.unwrap().to_string();
        let topic = MetadataResponseTopic::default().with_name(Some(TopicName(text(&name))));
        match (state.errors.get(&name), state.leaders.get(&name)) {
            (Some(code), _) => topic.with_error_code(*code),
            (None, None) => topic.with_error_code(3),
            (None, Some(leaders)) => {
                // The order of the response is not that of the numbers.
                let partitions = leaders.iter().enumerate().rev().map(|(number, leader)| {
                    let partition = MetadataResponsePartition::default().with_partition_index(number as i32);
                    partition.with_leader_id((*leader).into()).with_error_code(if *leader < 0 { 5 } else { 0 })
                });
                topic.with_partitions(partitions.collect())
            }
        }
    });
    let response = MetadataResponse::default().with_brokers(brokers.collect()).with_topics(topics.collect());
    received.reply(&response)
}

fn coordinators(received: &Received, state: &State, ports: &[u16]) -> Reply {
    let request: FindCoordinatorRequest = received.decode();
    let found = |group: &str| match state.coordinators.get(group) {
        Some(id) => (0, *id, ports[*id as usize]),
        None => (15, -1, 0),
    };
    let response = FindCoordinatorResponse::default();
    if received.version < 4 {
        let (code, id, port) = found(&request.key);
        let response = response.with_error_code(code).with_node_id(id.into());
        return received.reply(&response.with_host(text("127.0.0.1")).with_port(port.into()));
    }
    let coordinators = request.coordinator_keys.into_iter().map(|group| {
        let (code, id, port) = found(&group);
        let coordinator = Coordinator::default().with_key(group).with_error_code(code).with_node_id(id.into());
        coordinator.with_host(text("127.0.0.1")).with_port(port.into())
    });
    received.reply(&response.with_coordinators(coordinators.collect()))
}
