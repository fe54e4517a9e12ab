//! Topics that are not used any more, and those that do not exist any more.

use super::*;

fn names(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| format!("t{number}")).collect()
}

/// Forgets the topics that are missing, as after an hour without messages.
fn forget(client: &TestClient) {
    client.producer().shared.forget_missing(Instant::now() + Duration::from_secs(3_600));
}

/// Returns the number of topics that a level and the view have.
fn known(client: &TestClient, names: &[String]) -> usize {
    names.iter().filter(|name| client.producer().levels().iter().any(|level| level.lock().has_topic(name))).count()
}

#[test]
fn deleted_topics_are_forgotten_and_a_broker_that_dies_causes_requests_of_the_others_only() {
    let cluster = TestCluster::start(2);
    let live = names(0..5);
    live.iter().for_each(|name| cluster.create_topic(name, 4));
    let mut client = TestClient::new(&cluster);
    let send = |client: &TestClient, names: &[String]| {
        let messages = names.iter().flat_map(|name| AcksLevel::EACH.map(|level| Message::new(level, name, 1)));
        messages.map(|message| client.send(message)).collect::<Vec<_>>()
    };
    send(&client, &live);
    for round in 1..=10 {
        let passing = names(round * 100..round * 100 + 20);
        passing.iter().for_each(|name| cluster.create_topic(name, 4));
        client.learn();
        send(&client, &passing);
        client.wait();
        passing.iter().for_each(|name| cluster.delete_topic(name));
        client.learn_of(&passing);
        assert_eq!(known(&client, &passing), 20, "they may have been used a short while ago");
        forget(&client);
        assert_eq!((known(&client, &passing), known(&client, &live)), (0, 5));
    }
    // A batch at acks=0 may arrive after its topic was deleted, and the connection ends.
    client.wait();
    let before = cluster.partitions_per_request(ApiKey::Metadata);
    cluster.stop_broker(1);
    send(&client, &live);
    client.wait();
    let mut after = cluster.partitions_per_request(ApiKey::Metadata);
    after.retain(|topics, count| before.get(topics) != Some(count));
    assert!(after.keys().all(|topics| *topics <= live.len()), "{after:?}");
    client.close(Duration::ZERO);
}

#[test]
fn a_topic_that_was_forgotten_by_mistake_loses_nothing() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    cluster.create_topic("other", 1);
    let mut client = TestClient::new(&cluster);
    let (message, other) = (Message::new(AcksLevel::All, "t", 0), Message::new(AcksLevel::All, "other", 0));
    assert_eq!(client.offsets(&[client.send(message.clone()), client.send(other.clone())]), [0, 0]);
    for round in 1..=3 {
        cluster.fault(Scope::api(ApiKey::Metadata).topic("t"), Fault::error(code::UNKNOWN_TOPIC_OR_PARTITION));
        client.learn_of(&["t".to_owned()]);
        forget(&client);
        assert_eq!(client.end_of(client.send(message.clone())).reason, NO_METADATA);
        client.learn();
        // With the same producer id and epoch the broker would take it for a duplicate of the first message.
        assert_eq!(client.offsets(&[client.send(message.clone()), client.send(other.clone())]), [round, round]);
    }
    client.finish(&cluster);
    assert_eq!(ids_and_epochs(&cluster, "other", 0).len(), 1, "other partitions keep their epoch");
    assert_eq!(cluster.requests(ApiKey::InitProducerId), 1);
}

#[test]
fn a_topic_with_messages_is_not_forgotten() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    let client = TestClient::new(&cluster);
    cluster.fault(produce(), Fault::held());
    let waiting = client.send_many(3, &Message::new(AcksLevel::All, "t", 0));
    assert!(cluster.wait_until(LONG, |cluster| cluster.held_requests() == 1));
    cluster.fault(Scope::api(ApiKey::Metadata).topic("t"), Fault::error(code::UNKNOWN_TOPIC_OR_PARTITION));
    client.learn_of(&["t".to_owned()]);
    forget(&client);
    cluster.release_held();
    client.offsets(&waiting);
}

#[test]
fn of_many_topics_those_whose_metadata_comes_are_sent() {
    const TOPICS: usize = 2_001;
    let cluster = TestCluster::start(2);
    let topics = names(0..TOPICS);
    topics.iter().for_each(|name| cluster.create_topic(name, 1));
    topics.iter().for_each(|name| cluster.move_leader(name, 0, Some(1)));
    let client = TestClient::new(&cluster);
    let send = || topics.iter().map(|name| client.send(Message::new(AcksLevel::Leader, name, 0))).collect::<Vec<_>>();
    client.offsets(&send());
    cluster.set_leader_hints(false);
    topics.iter().for_each(|name| cluster.move_leader(name, 0, Some(2)));
    // A request names at most 2,000 topics; the one with this topic is not answered.
    cluster.fault_always(Scope::api(ApiKey::Metadata).topic("t0"), Fault::lost());
    let numbers = send();
    let is_stored = |client: &TestClient| numbers.iter().any(|number| client.has_ended(*number));
    assert!(cluster.wait_until(LONG, |_| is_stored(&client)), "one response that is missing spoils all others");
    cluster.clear_faults();
    client.offsets(&numbers);
}
