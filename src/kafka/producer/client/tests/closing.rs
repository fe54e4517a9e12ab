//! The end of the producer, and of connections that are not used.

use super::*;

#[test]
fn close_waits_for_messages_within_the_grace() {
    let cluster = TestCluster::start(2);
    cluster.create_topic("t", 4);
    cluster.set_replication_delay(Duration::from_millis(100));
    let mut client = TestClient::new(&cluster);
    let mut numbers = Vec::new();
    for level in AcksLevel::EACH {
        (0..4).for_each(|at| numbers.extend(client.send_many(50, &Message::new(level, "t", at))));
    }
    client.producer().close(LONG);
    // Each message has ended when `close` returns.
    assert!(numbers.iter().all(|number| client.has_ended(*number)) && client.has_stored_all());
    assert_eq!(client.outcome(client.send(Message::new(AcksLevel::All, "t", 0))), Outcome::Closed(Stored::No));
    client.finish(&cluster);
}

#[test]
fn close_without_grace_ends_all_messages_truthfully() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 2);
    for level in CONFIRMED {
        let mut client = TestClient::new(&cluster);
        let message = Message::new(level, "t", 0);
        client.offsets(&[client.send(message.clone())]);
        cluster.fault(produce(), Fault::held());
        let in_flight = client.send(message.clone());
        assert!(cluster.wait_until(LONG, |cluster| cluster.held_requests() == 1));
        let waiting = [client.send(message.clone()), client.send(Message { partition: 1, ..message })];
        client.close(Duration::from_millis(100));
        assert_eq!(client.outcome(in_flight), Outcome::Closed(Stored::Unknown));
        waiting.into_iter().for_each(|number| assert_eq!(client.outcome(number), Outcome::Closed(Stored::No)));
        client.finish(&cluster);
        assert!(values(&cluster, "t", 0).contains(&client.value(in_flight)), "the held request was carried out");
    }
}

#[test]
fn close_does_not_wait_for_messages_that_have_ended() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    let mut client = TestClient::new(&cluster);
    cluster.fault(produce(), Fault::held());
    let number = client.send(Message { deadline: brief(), ..Message::new(AcksLevel::Leader, "t", 0) });
    assert_eq!(client.outcome(number), Outcome::TimedOut(Stored::Unknown));
    let started = Instant::now();
    client.close(LONG);
    assert!(started.elapsed() < LONG / 2);
    client.finish(&cluster);
}

#[test]
fn refused_producer_ids_do_not_hold_up_close() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    cluster.fault_always(
        Scope::api(ApiKey::InitProducerId),
        Fault::error(code::CLUSTER_AUTHORIZATION_FAILED).after(Duration::from_millis(300)),
    );
    let mut client = TestClient::new(&cluster);
    let number = client.send(Message::new(AcksLevel::All, "t", 0));
    let started = Instant::now();
    client.close(LONG);
    assert!(started.elapsed() < LONG / 2);
    assert_eq!(client.outcome(number), Outcome::Rejected(code::CLUSTER_AUTHORIZATION_FAILED, Stored::No));
}

#[test]
fn close_ends_the_threads_whatever_they_wait_for() {
    let cluster = TestCluster::start(3);
    cluster.create_topic("t", 3);
    cluster.create_topic("leaderless", 1);
    cluster.move_leader("leaderless", 0, None);
    let init = Scope::api(ApiKey::InitProducerId).at_broker(1);
    for case in 0..4 {
        let mut client = TestClient::new(&cluster);
        match case {
            0 => cluster.pause_broker(2, true),
            1 => cluster.fault(init.clone(), Fault::lost()),
            2 => cluster.fault(produce(), Fault::response(ResponseFault::Never)),
            _ => cluster.fault(produce(), Fault::throttle(50_000)),
        }
        for level in AcksLevel::EACH {
            (0..3).for_each(|at| _ = client.send(Message::new(level, "t", at)));
        }
        // Meanwhile the threads begin to wait.
        client.outcome(client.send(Message { deadline: brief(), ..Message::new(AcksLevel::All, "leaderless", 0) }));
        let started = Instant::now();
        client.close(Duration::ZERO);
        assert!(started.elapsed() < Duration::from_secs(10), "{case}: {:?}", started.elapsed());
        cluster.clear_faults();
        cluster.pause_broker(2, false);
    }
}

#[test]
fn a_metadata_request_without_a_response_does_not_hold_up_close() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    let mut client = TestClient::new(&cluster);
    client.offsets(&[client.send(Message::new(AcksLevel::Leader, "t", 0))]);
    cluster.pause_broker(1, true);
    // Until then the metadata requests have grown to their longest time, and one is in progress.
    let deadline = Instant::now() + Duration::from_secs(5);
    client.outcome(client.send(Message { deadline, ..Message::new(AcksLevel::Leader, "t", 0) }));
    let started = Instant::now();
    client.close(Duration::ZERO);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    cluster.pause_broker(1, false);
}

#[test]
fn the_threads_end_also_if_no_broker_can_be_reached() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    let mut client = TestClient::new(&cluster);
    cluster.crash_broker(1);
    let message = Message::new(AcksLevel::All, "t", 0);
    let end = client.end_of(client.send(Message { deadline: brief(), ..message.clone() }));
    assert_eq!(end.outcome, Outcome::TimedOut(Stored::No));
    let number = client.send(message);
    let started = Instant::now();
    client.close(Duration::from_millis(300));
    assert!(started.elapsed() < Duration::from_secs(15));
    assert_eq!(client.outcome(number), Outcome::Closed(Stored::No));
}

#[test]
fn an_idle_connection_is_closed_and_made_again() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    let mut client = TestClient::with(&cluster, |settings| {
        settings.connection.max_idle = Duration::from_millis(200);
    });
    for level in AcksLevel::EACH {
        for round in 1..=3 {
            let before = cluster.connections();
            client.outcome(client.send(Message::new(level, "t", 0)));
            assert!(cluster.connections() > before, "{level:?} {round}");
            assert!(cluster.wait_until(LONG, |cluster| cluster.log("t", 0).len() == level as usize * 3 + round));
            let open = cluster.open_connections();
            assert!(cluster.wait_until(LONG, |cluster| cluster.open_connections() < open), "{level:?}");
        }
    }
    client.finish(&cluster);
}

#[test]
fn a_message_that_arrives_while_an_idle_thread_ends_is_stored() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    let mut client = TestClient::with(&cluster, |settings| {
        settings.connection.max_idle = Duration::from_millis(1);
    });
    for step in 0..300 {
        // Around the idle time.
        std::thread::park_timeout(Duration::from_micros(step % 30 * 100));
        client.offsets(&[client.send(Message::new(AcksLevel::Leader, "t", 0))]);
    }
    client.finish(&cluster);
}

#[test]
fn a_connection_that_the_broker_closes_while_it_is_idle_costs_no_message() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    let mut client = TestClient::new(&cluster);
    for level in AcksLevel::EACH {
        let message = Message::new(level, "t", 0);
        for _ in 0..3 {
            let stored = cluster.log("t", 0).len();
            client.outcome(client.send(message.clone()));
            assert!(cluster.wait_until(LONG, |cluster| cluster.log("t", 0).len() == stored + 1));
            cluster.close_connections(1);
        }
    }
    client.finish(&cluster);
    assert!(client.has_stored_all());
}
