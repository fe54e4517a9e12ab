//! Producer ids: obtained, refused, lost, fenced.

use super::*;
use crate::kafka::testkit::BatchSpec;

fn init() -> Scope {
    Scope::api(ApiKey::InitProducerId)
}

#[test]
fn a_broker_that_does_not_assign_an_id_delays_only_its_own_partitions() {
    let cluster = TestCluster::start(2);
    cluster.create_topic("t", 2);
    cluster.fault_always(init().at_broker(1), Fault::lost());
    let mut client = TestClient::new(&cluster);
    let message = Message::new(AcksLevel::All, "t", 0);
    let hung = client.send(message.clone());
    assert!(cluster.wait_until(LONG, |cluster| cluster.requests(ApiKey::InitProducerId) == 1));
    let started = Instant::now();
    client.offsets(&[client.send(Message { partition: 1, ..message.clone() })]);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert!(!client.has_ended(hung));
    // The partition moves to a broker that works.
    cluster.move_leader("t", 0, Some(2));
    client.offsets(&[hung, client.send(message)]);
    client.finish(&cluster);
}

#[test]
fn a_partition_moves_while_its_first_leader_cannot_assign_an_id() {
    let cluster = TestCluster::start(2);
    cluster.create_topic("t", 1);
    cluster.fault_always(init().at_broker(1), Fault::error(code::COORDINATOR_LOAD_IN_PROGRESS));
    let mut client = TestClient::new(&cluster);
    let message = Message::new(AcksLevel::All, "t", 0);
    let waiting = client.send(message.clone());
    assert!(cluster.wait_until(LONG, |cluster| cluster.requests(ApiKey::InitProducerId) >= 2));
    cluster.crash_broker(1);
    cluster.elect_leaders();
    client.offsets(&[waiting, client.send(message)]);
    client.finish(&cluster);
}

#[test]
fn a_failure_to_obtain_an_id_is_no_cause_any_more_after_another_broker_assigned_one() {
    let cluster = TestCluster::start(2);
    cluster.create(TopicSpec::new("t").partitions(2).min_in_sync(2));
    cluster.fault_always(init().at_broker(1), Fault::error(code::COORDINATOR_LOAD_IN_PROGRESS));
    let mut client = TestClient::new(&cluster);
    let message = Message::new(AcksLevel::All, "t", 0);
    let waiting = client.send(message.clone());
    assert!(cluster.wait_until(LONG, |cluster| cluster.requests(ApiKey::InitProducerId) >= 2));
    client.offsets(&[client.send(Message { partition: 1, ..message.clone() }), waiting]);
    cluster.set_in_sync("t", 0, &[1]);
    let end = client.end_of(client.send(Message { deadline: brief(), ..message }));
    assert_eq!(end.reason, "broker 1: NOT_ENOUGH_REPLICAS");
    client.finish(&cluster);
}

#[test]
fn ids_are_requested_again_while_the_cluster_starts() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    cluster.fault_times(init(), Fault::error(code::COORDINATOR_LOAD_IN_PROGRESS), 3);
    let mut client = TestClient::new(&cluster);
    let message = Message::new(AcksLevel::All, "t", 0);
    client.offsets(&client.send_many(2, &message));
    assert_eq!(cluster.requests(ApiKey::InitProducerId), 4);
    client.finish(&cluster);
}

#[test]
fn messages_that_wait_for_an_id_end_at_their_deadline() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    cluster.fault_always(init(), Fault::error(code::COORDINATOR_NOT_AVAILABLE));
    let mut client = TestClient::new(&cluster);
    let message = Message::new(AcksLevel::All, "t", 0);
    let end = client.end_of(client.send(Message { deadline: brief(), ..message.clone() }));
    assert_eq!(end.outcome, Outcome::TimedOut(Stored::No));
    let reason = "broker 1: COORDINATOR_NOT_AVAILABLE: no producer id, which acks=-1 needs";
    assert_eq!(end.reason, reason);
    // Without a message nothing requests an id; the next message makes it be requested again.
    cluster.clear_faults();
    client.offsets(&[client.send(message)]);
    client.finish(&cluster);
}

#[test]
fn messages_are_refused_while_the_cluster_refuses_an_id() {
    let cluster = TestCluster::start(2);
    cluster.create_topic("t", 2);
    cluster.fault_always(init(), Fault::error(code::CLUSTER_AUTHORIZATION_FAILED));
    let mut client = TestClient::new(&cluster);
    let message = Message::new(AcksLevel::All, "t", 0);
    // The second time the refusal is remembered.
    for partition in [0, 0, 1, 0] {
        let end = client.end_of(client.send(Message { partition, ..message.clone() }));
        assert_eq!(end.outcome, Outcome::Rejected(code::CLUSTER_AUTHORIZATION_FAILED, Stored::No));
        let reason = "CLUSTER_AUTHORIZATION_FAILED: the cluster refuses a producer id, which acks=-1 needs";
        assert_eq!(end.reason, reason);
    }
    client.offsets(&[client.send(Message::new(AcksLevel::Leader, "t", 0))]);
    cluster.clear_faults();
    let started = Instant::now();
    while let Outcome::Rejected(..) = client.outcome(client.send(message.clone())) {
        assert!(started.elapsed() < LONG);
    }
    client.finish(&cluster);
}

#[test]
fn a_refused_new_id_does_not_concern_partitions_that_have_an_id() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 2);
    let mut client = TestClient::new(&cluster);
    let message = Message::new(AcksLevel::All, "t", 0);
    client.offsets(&[client.send(message.clone()), client.send(Message { partition: 1, ..message.clone() })]);
    let (id, _) = ids_and_epochs(&cluster, "t", 0)[0];
    // Somebody else uses the id with a higher epoch.
    let fence = BatchSpec::new().record(Some("k"), Some("fence"), 0).producer(id, 7, 0);
    cluster.append("t", 0, &fence);
    cluster.fault_always(init(), Fault::error(code::CLUSTER_AUTHORIZATION_FAILED));
    let fenced = client.send(message.clone());
    assert_eq!(client.outcome(fenced), Outcome::Rejected(code::CLUSTER_AUTHORIZATION_FAILED, Stored::No));
    client.offsets(&client.send_many(3, &Message { partition: 1, ..message.clone() }));
    cluster.clear_faults();
    let started = Instant::now();
    while let Outcome::Rejected(..) = client.outcome(client.send(message.clone())) {
        assert!(started.elapsed() < LONG);
    }
    client.finish(&cluster);
}

#[test]
fn a_producer_that_the_broker_has_forgotten_continues() {
    for release in Release::ALL {
        let cluster = TestCluster::builder(1).release(release).start();
        cluster.create_topic("t", 2);
        let mut client = TestClient::new(&cluster);
        let message = Message::new(AcksLevel::All, "t", 0);
        for _ in 0..3 {
            client.offsets(&client.send_many(3, &message));
            client.offsets(&[client.send(Message { partition: 1, ..message.clone() })]);
            let (id, _) = *ids_and_epochs(&cluster, "t", 0).last().unwrap();
            cluster.change_log("t", 0, |log| log.expire_producer(id));
        }
        client.offsets(&client.send_many(3, &message));
        client.finish(&cluster);
        assert_eq!(ids_and_epochs(&cluster, "t", 1).len(), 1, "another partition is not concerned");
    }
}

#[test]
fn a_producer_continues_behind_records_that_the_cluster_has_lost() {
    let cluster = TestCluster::start(2);
    cluster.create_topic("t", 1);
    let mut client = TestClient::new(&cluster);
    let message = Message::new(AcksLevel::All, "t", 0);
    for _ in 0..10 {
        client.offsets(&[client.send(message.clone())]);
    }
    cluster.truncate("t", 0, 7);
    assert_eq!(client.offsets(&[client.send(message.clone()), client.send(message)]), [7, 8]);
    client.close(Duration::ZERO);
}

#[test]
fn a_fenced_producer_continues_with_another_id() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    let mut client = TestClient::new(&cluster);
    let message = Message::new(AcksLevel::All, "t", 0);
    client.offsets(&[client.send(message.clone())]);
    let (id, _) = ids_and_epochs(&cluster, "t", 0)[0];
    cluster.append("t", 0, &BatchSpec::new().record(Some("k"), Some("fence"), 0).producer(id, 7, 0));
    client.offsets(&client.send_many(3, &message));
    let ids = ids_and_epochs(&cluster, "t", 0);
    assert!(ids.len() == 3 && ids[2].0 != id, "{ids:?}");
    assert_eq!(cluster.requests(ApiKey::InitProducerId), 2);
    client.finish(&cluster);
}

#[test]
fn another_cluster_at_the_same_address_gets_no_batch_under_the_former_producer_id() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    let mut client = TestClient::new(&cluster);
    let message = Message::new(AcksLevel::All, "t", 0);
    client.offsets(&[client.send(message.clone())]);
    let (id, epoch) = ids_and_epochs(&cluster, "t", 0)[0];
    // Another client of the other cluster has the same id, and has sent more messages.
    cluster.crash_broker(1);
    cluster.become_another();
    cluster.create_topic("t", 1);
    for sequence in 0..4 {
        cluster.append("t", 0, &BatchSpec::new().record(Some("k"), Some("other"), 0).producer(id, epoch, sequence));
    }
    cluster.start_broker(1);
    let mut stored = Vec::new();
    while stored.len() < 3 {
        let number = client.send(message.clone());
        match client.outcome(number) {
            Outcome::Appended(_) => stored.push(client.value(number)),
            // It was sent on the connection to the former cluster.
            outcome => assert_eq!(outcome, Outcome::Rejected(code::UNKNOWN_PRODUCER_ID, Stored::Unknown)),
        }
    }
    assert_eq!(values(&cluster, "t", 0)[4..], stored, "none was taken for a duplicate");
    client.close(Duration::ZERO);
}

#[test]
fn a_batch_that_another_cluster_may_have_stored_is_not_sent_again() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    let client = TestClient::new(&cluster);
    let message = Message::new(AcksLevel::All, "t", 0);
    client.offsets(&[client.send(message.clone())]);
    cluster.fault(produce(), Fault::held());
    let unknown = client.send(message.clone());
    assert!(cluster.wait_until(LONG, |cluster| cluster.held_requests() == 1));
    cluster.crash_broker(1);
    cluster.become_another();
    cluster.create_topic("t", 1);
    cluster.start_broker(1);
    let end = client.end_of(unknown);
    assert_eq!(end.outcome, Outcome::Rejected(code::UNKNOWN_PRODUCER_ID, Stored::Unknown), "{}", end.reason);
    client.offsets(&[client.send(message)]);
    assert!(!values(&cluster, "t", 0).contains(&client.value(unknown)));
}
