//! Requests and responses that go wrong.

use super::*;

/// Sends three messages to a partition, another later; the first request has a fault. Each must be stored.
fn survives(fault: &Fault, level: AcksLevel) {
    let cluster = TestCluster::start(2);
    cluster.create_topic("t", 2);
    let mut client = TestClient::new(&cluster);
    let message = Message::new(level, "t", 0);
    client.offsets(&[client.send(message.clone())]);
    cluster.fault(produce(), fault.clone());
    let mut numbers = client.send_many(3, &message);
    numbers.push(client.send(Message { partition: 1, ..message.clone() }));
    client.offsets(&numbers);
    assert_eq!(cluster.pending_faults(), 0, "{fault:?}");
    client.offsets(&client.send_many(3, &message));
    client.finish(&cluster);
    if level == AcksLevel::All {
        // A retry is recognised, or the fault came before the append: no epoch is used.
        assert_eq!(ids_and_epochs(&cluster, "t", 0).len(), 1, "{fault:?}");
    }
}

#[test]
fn connections_that_break_at_any_point_lose_nothing() {
    let responses = [
        ResponseFault::Close,
        ResponseFault::CloseWithin(0),
        ResponseFault::CloseWithin(3),
        ResponseFault::CloseWithin(20),
        ResponseFault::CloseAfter,
    ];
    let responses = responses.into_iter().map(Fault::response);
    for fault in responses.chain([Fault::close_before(), Fault::close_unanswered().after(Duration::from_millis(50))]) {
        CONFIRMED.into_iter().for_each(|level| survives(&fault, level));
    }
}

#[test]
fn responses_that_violate_the_protocol_lose_nothing() {
    let responses = [
        ResponseFault::WrongCorrelationId,
        ResponseFault::Truncated(1),
        ResponseFault::Truncated(15),
        ResponseFault::Garbage,
        ResponseFault::AnnouncedLength(i32::MAX),
        ResponseFault::AnnouncedLength(2 << 20),
        ResponseFault::AnnouncedLength(-1),
        ResponseFault::Trickle(Duration::from_millis(1)),
    ];
    for fault in responses.into_iter().map(Fault::response) {
        CONFIRMED.into_iter().for_each(|level| survives(&fault, level));
    }
}

#[test]
fn codes_that_leave_the_outcome_open_are_retried() {
    let before = [
        code::NOT_LEADER_OR_FOLLOWER,
        code::UNKNOWN_TOPIC_OR_PARTITION,
        code::KAFKA_STORAGE_ERROR,
        code::NOT_ENOUGH_REPLICAS,
        code::LEADER_NOT_AVAILABLE,
        code::REQUEST_TIMED_OUT,
        code::NETWORK_EXCEPTION,
    ];
    let after = [
        code::REQUEST_TIMED_OUT,
        code::NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        code::NOT_LEADER_OR_FOLLOWER,
        code::UNKNOWN_TOPIC_OR_PARTITION,
        code::KAFKA_STORAGE_ERROR,
    ];
    before.into_iter().map(Fault::error).for_each(|fault| {
        CONFIRMED.into_iter().for_each(|level| survives(&fault, level));
    });
    after.into_iter().map(Fault::error_after).for_each(|fault| survives(&fault, AcksLevel::All));
    // At acks=1 only a write that failed leaves the outcome open.
    survives(&Fault::error_after(code::KAFKA_STORAGE_ERROR), AcksLevel::Leader);
}

#[test]
fn a_write_that_failed_at_the_broker_is_never_reported_as_not_stored() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    for level in CONFIRMED {
        let mut client = TestClient::new(&cluster);
        cluster.fault_always(produce(), Fault::error_after(code::KAFKA_STORAGE_ERROR));
        let number = client.send(Message { deadline: brief(), ..Message::new(level, "t", 0) });
        let end = client.end_of(number);
        assert_eq!(end.outcome, Outcome::TimedOut(Stored::Unknown), "{level:?}");
        assert!(end.reason.contains("KAFKA_STORAGE_ERROR"), "{}", end.reason);
        cluster.clear_faults();
        client.close(Duration::ZERO);
    }
}

#[test]
fn a_code_without_a_rule_ends_the_messages_as_unknown() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    let mut client = TestClient::new(&cluster);
    for level in CONFIRMED {
        for error in [code::UNKNOWN_SERVER_ERROR, 999] {
            cluster.fault(produce(), Fault::error_after(error));
            let numbers = client.send_many(2, &Message::new(level, "t", 0));
            assert_eq!(client.outcome(numbers[0]), Outcome::Rejected(error, Stored::Unknown));
            client.outcome(numbers[1]);
        }
    }
    client.finish(&cluster);
}

#[test]
fn a_late_copy_of_a_request_is_stored_once_at_acks_all() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    let mut client = TestClient::new(&cluster);
    client.offsets(&[client.send(Message::new(AcksLevel::All, "t", 0))]);
    cluster.fault(produce(), Fault::held());
    let numbers = client.send_many(5, &Message::new(AcksLevel::All, "t", 0));
    assert!(cluster.wait_until(LONG, |cluster| cluster.held_requests() == 1));
    cluster.close_connections(1);
    // The retry is stored; then the held request arrives.
    client.offsets(&numbers);
    client.offsets(&client.send_many(10, &Message::new(AcksLevel::All, "t", 0)));
    client.finish(&cluster);
}

#[test]
fn a_late_copy_of_an_expired_batch_is_stored_at_most_once_and_not_behind_later_messages() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    let mut client = TestClient::new(&cluster);
    let message = Message::new(AcksLevel::All, "t", 0);
    client.offsets(&[client.send(message.clone())]);
    cluster.fault(produce(), Fault::held());
    let expired = client.send(Message { deadline: brief(), ..message.clone() });
    assert_eq!(client.outcome(expired), Outcome::TimedOut(Stored::Unknown));
    assert!(cluster.wait_until(LONG, |cluster| cluster.held_requests() == 1));
    cluster.close_connections(1);
    client.offsets(&client.send_many(3, &message));
    cluster.release_held();
    assert!(cluster.wait_until(LONG, |cluster| cluster.held_requests() == 0));
    client.offsets(&client.send_many(3, &message));
    client.finish(&cluster);
    assert!(!values(&cluster, "t", 0).contains(&client.value(expired)), "the next epoch excludes the late copy");
}

#[test]
fn a_response_after_the_deadline_changes_nothing() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 2);
    for level in CONFIRMED {
        let mut client = TestClient::new(&cluster);
        cluster.fault(produce(), Fault::response_held());
        let message = Message::new(level, "t", 0);
        let expired = client.send(Message { deadline: brief(), ..message.clone() });
        let waiting = client.send(Message { partition: 1, ..message.clone() });
        assert_eq!(client.outcome(expired), Outcome::TimedOut(Stored::Unknown));
        cluster.release_held();
        client.offsets(&[waiting, client.send(message)]);
        client.finish(&cluster);
    }
}

#[test]
fn a_request_that_is_never_answered_ends_at_the_deadlines_of_its_messages() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    for (level, fault) in CONFIRMED.into_iter().flat_map(|level| {
        [Fault::lost(), Fault::response(ResponseFault::Never)].into_iter().map(move |fault| (level, fault))
    }) {
        let mut client = TestClient::new(&cluster);
        cluster.fault(produce(), fault);
        let message = Message::new(level, "t", 0);
        let lost = client.send(Message { deadline: brief(), ..message.clone() });
        let end = client.end_of(lost);
        assert_eq!(end.outcome, Outcome::TimedOut(Stored::Unknown));
        assert!(end.reason.contains("broker 1 has not answered"), "{}", end.reason);
        client.offsets(&[client.send(message)]);
        client.finish(&cluster);
    }
}

#[test]
fn a_sender_whose_thread_cannot_be_started_is_started_later() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    let mut client = TestClient::new(&cluster);
    client.fail_starts(2);
    client.offsets(&[client.send(Message::new(AcksLevel::All, "t", 0))]);
    client.finish(&cluster);
}

#[test]
fn a_message_whose_deadline_passes_while_the_connection_is_authenticated_again_was_not_sent() {
    let user = || SaslConfig::Plain { username: "u".into(), password: "p".into() };
    for level in CONFIRMED {
        let lifetime = Duration::from_secs(2);
        let cluster = TestCluster::builder(1).user("u", "p").session_lifetime(lifetime).start();
        cluster.create_topic("t", 1);
        let mut client = TestClient::with(&cluster, |settings| settings.connection.security.sasl = Some(user()));
        let message = Message::new(level, "t", 0);
        client.offsets(&[client.send(message.clone())]);
        cluster.fault(Scope::api(ApiKey::SaslAuthenticate), Fault::held());
        while cluster.pending_faults() > 0 {
            client.outcome(client.send(Message { deadline: brief(), ..message.clone() }));
        }
        let outcome = client.outcome(client.send(Message { deadline: brief(), ..message.clone() }));
        assert_eq!(outcome, Outcome::TimedOut(Stored::No));
        cluster.release_held();
        client.offsets(&[client.send(message)]);
        client.finish(&cluster);
    }
}

#[test]
fn a_throttle_time_is_obeyed_and_named_when_messages_time_out() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    for level in CONFIRMED {
        let mut client = TestClient::new(&cluster);
        cluster.fault_times(produce(), Fault::throttle(200), 3);
        let message = Message::new(level, "t", 0);
        for _ in 0..5 {
            client.offsets(&client.send_many(2, &message));
        }
        assert_eq!(cluster.pending_faults(), 0);
        cluster.fault(produce(), Fault::throttle(50_000));
        client.offsets(&[client.send(message.clone())]);
        let late = client.end_of(client.send(Message { deadline: brief(), ..message.clone() }));
        assert!(matches!(late.outcome, Outcome::Throttled(wait) if wait > LONG), "{:?}", late.outcome);
        assert!(late.reason.contains("quota of the broker"), "{}", late.reason);
        // On a new connection the broker does not throttle: the client looks at it every second.
        let started = Instant::now();
        loop {
            let deadline = Instant::now() + Duration::from_secs(1);
            let end = client.end_of(client.send(Message { deadline, ..message.clone() }));
            if matches!(end.outcome, Outcome::Appended(_)) {
                break;
            }
            assert!(started.elapsed() < LONG, "the pause of 50 s is not ended");
            std::thread::sleep(Duration::from_millis(20));
        }
        // A pause does not delay the end.
        cluster.fault(produce(), Fault::throttle(50_000));
        client.offsets(&[client.send(message.clone())]);
        client.close(Duration::ZERO);
        client.check(&cluster);
    }
    let client = TestClient::new(&cluster);
    cluster.fault(Scope::api(ApiKey::InitProducerId), Fault::throttle(300));
    client.offsets(&[client.send(Message::new(AcksLevel::All, "t", 0))]);
    assert_eq!(cluster.throttle_violations(), 0);
}

#[test]
fn a_connection_lost_in_the_middle_of_a_large_response_loses_nothing() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 32);
    let mut client = TestClient::new(&cluster);
    cluster.fault(produce(), Fault::response_held());
    client.send(Message::new(AcksLevel::All, "t", 0));
    assert!(cluster.wait_until(LONG, |cluster| cluster.held_requests() == 1));
    cluster.fault(produce(), Fault::response(ResponseFault::CloseWithin(400)));
    (0..32).for_each(|partition| _ = client.send_many(3, &Message::new(AcksLevel::All, "t", partition)));
    cluster.release_held();
    client.wait();
    client.finish(&cluster);
    assert!((0..32).all(|partition| cluster.log("t", partition).len() >= 3));
}
