use super::*;
use crate::kafka::scripted_broker::{Received, RefusingPort, Reply, ScriptedBroker, connector};
use kafka_protocol::messages::find_coordinator_response::Coordinator as CrateCoordinator;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    FindCoordinatorRequest as CrateFind, FindCoordinatorResponse, MetadataRequest as CrateRequest,
    MetadataResponse as CrateResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;

type Find = FindCoordinatorRequest<'static>;

const APIS: &[(i16, i16, i16)] = &[(3, 4, 12), (10, 1, 4)];
/// Longer than any test that passes.
const LONG: Duration = Duration::from_secs(60);

fn after(duration: Duration) -> Instant {
    Instant::now() + duration
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn broker(id: i32, address: &BrokerAddress) -> MetadataResponseBroker {
    let broker = MetadataResponseBroker::default().with_node_id(id.into());
    broker.with_host(text(&address.host)).with_port(address.port.into())
}

/// Answers with broker 1 at `address` and every requested topic.
fn metadata(received: &Received, address: &BrokerAddress) -> Reply {
    let request: CrateRequest = received.decode();
    assert!(!request.allow_auto_topic_creation, "a metadata request must not create topics");
    let topics = request.topics.unwrap_or_default().into_iter();
    let topics = topics.map(|topic| MetadataResponseTopic::default().with_name(topic.name)).collect();
    received.reply(&CrateResponse::default().with_brokers(vec![broker(1, address)]).with_topics(topics))
}

fn working() -> ScriptedBroker {
    let unreachable = RefusingPort::bind();
    ScriptedBroker::start(APIS, move |received| metadata(received, &unreachable.address))
}

fn client(bootstrap: &[&BrokerAddress]) -> MetadataClient {
    MetadataClient::new(connector(), bootstrap.iter().map(|address| (*address).clone()).collect())
}

#[test]
fn an_open_connection_is_used_again_and_an_unreachable_broker_is_replaced_by_the_bootstrap_address() {
    let server = working();
    let mut client = client(&[&server.address]);
    for _ in 0..3 {
        client.request(MetadataTopics::None, after(LONG)).unwrap();
    }
    assert_eq!((client.brokers().len(), server.count::<MetadataRequest>()), (1, 3));
    // The broker that the response names refuses connections.
    for _ in 0..10 {
        client.current = None;
        client.request(MetadataTopics::All, after(LONG)).unwrap();
    }
}

#[test]
fn silent_and_closing_brokers_cost_only_a_part_of_the_time() {
    let (silent, closing) = (ScriptedBroker::start_silent(), ScriptedBroker::start(APIS, |_| Reply::Close));
    let late = ScriptedBroker::start(APIS, |_| Reply::Silence);
    let (refusing, server) = (RefusingPort::bind(), working());
    for _ in 0..4 {
        let mut client =
            client(&[&silent.address, &closing.address, &late.address, &refusing.address, &server.address]);
        let start = Instant::now();
        client.request(MetadataTopics::None, after(LONG)).unwrap();
        assert!(start.elapsed() < LONG / 4);
    }
}

#[test]
fn the_error_names_each_address_and_why_it_failed() {
    let (silent, refusing) = (ScriptedBroker::start_silent(), RefusingPort::bind());
    let unresolvable = BrokerAddress { host: "no-such-host.invalid".into(), port: 9092 };
    let mut client = client(&[&silent.address, &refusing.address, &unresolvable]);
    let start = Instant::now();
    let failure = client.request(MetadataTopics::None, after(Duration::from_secs(2))).unwrap_err();
    assert!(start.elapsed() < LONG / 2);
    let text = failure.to_string();
    for address in [&silent.address, &refusing.address, &unresolvable] {
        assert!(text.contains(&format!("broker {address}: ")), "{text}");
    }
    assert!(text.starts_with("metadata request failed: ") && text.contains("refused"), "{text}");
    assert_eq!((failure.error_code, failure.is_permanent), (None, false));
}

#[test]
fn without_an_address_or_with_brokers_that_are_too_old_the_request_fails_at_once() {
    assert!(client(&[]).request(MetadataTopics::None, after(LONG)).is_err());
    let old = ScriptedBroker::start(&[(3, 0, 2)], |_| Reply::Close);
    let failure = client(&[&old.address]).request(MetadataTopics::None, after(LONG)).unwrap_err();
    assert!(failure.is_permanent && failure.reason.contains("does not support"), "{failure}");
}

#[test]
fn a_response_without_brokers_is_retried_and_replaces_nothing() {
    let unreachable = RefusingPort::bind();
    let server = ScriptedBroker::start(APIS, move |received| match received.index {
        1 | 2 => received.reply(&CrateResponse::default()),
        _ => metadata(received, &unreachable.address),
    });
    let mut client = client(&[&server.address]);
    client.request(MetadataTopics::None, after(LONG)).unwrap();
    let response = client.request(MetadataTopics::None, after(LONG)).unwrap();
    assert_eq!((response.brokers.len(), server.count::<MetadataRequest>()), (1, 4));

    let empty = ScriptedBroker::start(APIS, |received| received.reply(&CrateResponse::default()));
    client.bootstrap = vec![empty.address.clone()];
    client.current = None;
    let failure = client.request(MetadataTopics::None, after(Duration::from_millis(300))).unwrap_err();
    assert!(failure.reason.contains("the broker knows no brokers yet"), "{failure}");
    assert_eq!(client.brokers().len(), 1);
}

#[test]
fn many_names_are_requested_once_each_in_bounded_requests() {
    let server = working();
    let mut client = client(&[&server.address]);
    let mut names: Vec<Arc<str>> = (0..4_500).map(|number| format!("topic-{number}").into()).collect();
    names.extend_from_within(..);
    let too_long: Arc<str> = "x".repeat(70_000).into();
    names.push(Arc::clone(&too_long));
    let response = client.request(MetadataTopics::Names(names), after(LONG)).unwrap();
    assert_eq!((response.topics.len(), server.count::<MetadataRequest>()), (4_501, 3));
    let invalid = response.topics.iter().find(|topic| topic.name == too_long).unwrap();
    assert_eq!(invalid.error_code, error_code::INVALID_TOPIC_EXCEPTION);

    // No name is left: the request is for no topics, not for all.
    let response = client.request(MetadataTopics::Names(vec![too_long]), after(LONG)).unwrap();
    assert_eq!((response.topics.len(), server.count::<MetadataRequest>()), (1, 4));
}

#[test]
fn topics_that_are_duplicate_or_were_not_requested_are_left_out_and_large_topics_are_decoded() {
    let server = ScriptedBroker::start(APIS, |received| {
        let partitions = (0..10_000).map(|number| {
            let partition = MetadataResponsePartition::default().with_partition_index(number);
            partition.with_leader_id((-1).into()).with_error_code(5)
        });
        let topic = |name: &str| MetadataResponseTopic::default().with_name(Some(TopicName(text(name))));
        let large = topic("a").with_partitions(partitions.collect());
        let address = BrokerAddress { host: "localhost".into(), port: 9092 };
        let response = CrateResponse::default().with_brokers(vec![broker(1, &address), broker(1, &address)]);
        received.reply(&response.with_topics(vec![large, topic("a"), topic("other")]))
    });
    let mut client = client(&[&server.address]);
    let response = client.request(MetadataTopics::Names(vec!["a".into()]), after(LONG)).unwrap();
    assert_eq!((response.topics.len(), response.topics[0].partitions.len(), client.brokers().len()), (1, 10_000, 1));
    assert!(response.topics[0].partitions.iter().all(|partition| partition.leader.is_none()));
    assert_eq!(response.controller, None);
}

/// Answers coordinator lookups: `new` has none at first, `denied` is refused, all others are on broker 2.
fn coordinator(received: &Received) -> Reply {
    let request: CrateFind = received.decode();
    let code = |group: &str| match group {
        "new" if received.index < 4 => 15,
        "denied" => 30,
        _ => 0,
    };
    let response = FindCoordinatorResponse::default();
    if received.version < 4 {
        let response = response.with_node_id(2.into()).with_host(text("kafka-2")).with_port(9092);
        return received.reply(&response.with_error_code(code(&request.key)));
    }
    let coordinators = request.coordinator_keys.into_iter().map(|group| {
        let coordinator = CrateCoordinator::default().with_error_code(code(&group)).with_key(group);
        coordinator.with_node_id(2.into()).with_host(text("kafka-2")).with_port(9092)
    });
    received.reply(&response.with_coordinators(coordinators.collect()))
}

#[test]
fn coordinators_are_looked_up_in_one_request_or_one_by_one() {
    for (max_version, requests) in [(4, 1), (3, 4)] {
        let server = ScriptedBroker::start(&[(10, 1, max_version)], coordinator);
        let mut client = client(&[&server.address]);
        let too_long: Arc<str> = "g".repeat(40_000).into();
        let groups = ["a", "new", "denied", "b"].map(Arc::from);
        let found = client.coordinators(&[&groups[..], &[Arc::clone(&too_long)]].concat(), after(LONG));
        assert_eq!((found.len(), server.count::<Find>()), (5, requests), "version {max_version}");
        for group in ["a", "b"] {
            let broker = found[group].as_ref().unwrap();
            assert_eq!((broker.id, broker.address.to_string()), (2, "kafka-2:9092".to_owned()));
        }
        let failure = found["denied"].as_ref().unwrap_err();
        assert_eq!(failure.to_string(), "no coordinator for group \"denied\": GROUP_AUTHORIZATION_FAILED");
        assert_eq!(found["new"].as_ref().unwrap_err().error_code, Some(error_code::COORDINATOR_NOT_AVAILABLE));
        assert_eq!(found[&too_long].as_ref().unwrap_err().error_code, Some(error_code::INVALID_GROUP_ID));
    }
}

#[test]
fn a_coordinator_is_looked_up_until_there_is_one_or_the_lookup_is_refused() {
    let server = ScriptedBroker::start(APIS, coordinator);
    let mut client = client(&[&server.address]);
    assert_eq!(client.coordinator("denied", after(LONG)).unwrap_err().error_code, Some(30));
    assert_eq!(server.count::<Find>(), 1);
    assert_eq!(client.coordinator("new", after(LONG)).unwrap().id, 2);
    assert_eq!(server.count::<Find>(), 5);
}

#[test]
fn a_group_without_a_coordinator_fails_at_the_deadline_with_the_code_of_the_broker() {
    let server = ScriptedBroker::start(APIS, |received| {
        let request: CrateFind = received.decode();
        let groups = request.coordinator_keys.into_iter().filter(|group| **group == *"new");
        let coordinators = groups.map(|group| {
            let coordinator = CrateCoordinator::default().with_key(group).with_error_code(15);
            coordinator.with_error_message(Some(text("no replicas")))
        });
        received.reply(&FindCoordinatorResponse::default().with_coordinators(coordinators.collect()))
    });
    let mut client = client(&[&server.address]);
    let failure = client.coordinator("new", after(Duration::from_millis(400))).unwrap_err();
    assert_eq!(failure.error_code, Some(error_code::COORDINATOR_NOT_AVAILABLE));
    assert!(failure.reason.ends_with("COORDINATOR_NOT_AVAILABLE (no replicas)"), "{failure}");
    let failure = client.coordinator("missing", after(Duration::from_millis(200))).unwrap_err();
    assert_eq!(failure.to_string(), "the response lacks the coordinator of group \"missing\"");
    assert!(server.count::<Find>() > 2);
}

#[test]
fn a_throttled_request_waits_or_uses_another_broker() {
    let throttling = ScriptedBroker::start(APIS, |received| {
        let address = BrokerAddress { host: "127.0.0.1".into(), port: 1 };
        let response = CrateResponse::default().with_brokers(vec![broker(1, &address)]);
        received.reply(&response.with_throttle_time_ms(if received.index == 0 { 300 } else { 3_600_000 }))
    });
    let mut client = client(&[&throttling.address]);
    client.request(MetadataTopics::None, after(LONG)).unwrap();
    let start = Instant::now();
    client.request(MetadataTopics::None, after(LONG)).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(250), "{:?}", start.elapsed());
    let failure = client.request(MetadataTopics::None, after(Duration::from_millis(500))).unwrap_err();
    assert!(failure.reason.contains("a quota of the broker delays the next request"), "{failure}");
    assert_eq!(throttling.count::<MetadataRequest>(), 2);
}

#[test]
fn the_only_broker_has_all_the_time_for_a_slow_answer() {
    // Longer than the first attempt at one of several brokers.
    let server = ScriptedBroker::start(APIS, |received| {
        std::thread::sleep(FIRST_ATTEMPT + Duration::from_millis(300));
        metadata(received, &BrokerAddress { host: "127.0.0.1".into(), port: 1 })
    });
    let mut client = client(&[&server.address]);
    client.request(MetadataTopics::None, after(LONG)).unwrap();
    assert_eq!(server.count::<MetadataRequest>(), 1, "the first attempt was cut off");
}

#[test]
fn an_attempt_has_at_most_half_of_the_time_and_a_minimum() {
    let (now, second) = (Instant::now(), Duration::from_secs(1));
    let attempt = |round, left| attempt_deadline(round, true, now, now + left).map(|until| until - now);
    assert_eq!(attempt(0, second * 60), Some(FIRST_ATTEMPT));
    assert_eq!(attempt(3, second * 60), Some(FIRST_ATTEMPT * 8));
    assert_eq!(attempt(3, second * 10), Some(second * 5));
    assert_eq!(attempt(0, MIN_ATTEMPT * 3 / 2), Some(MIN_ATTEMPT));
    assert_eq!(attempt(0, MIN_ATTEMPT / 2), Some(MIN_ATTEMPT / 2));
    assert_eq!(attempt(0, Duration::ZERO), None);
    assert_eq!(attempt_deadline(0, false, now, now + second * 60), Some(now + second * 60), "nothing else to try");
    assert_eq!(attempt_deadline(0, false, now, now), None);
    assert_eq!(attempt_deadline(u32::MAX, true, now, now + second).map(|until| until - now), Some(second / 2));
}
