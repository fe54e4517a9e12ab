//! Deadlines of messages.

use super::*;

#[test]
fn messages_end_at_their_deadlines_in_any_order() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 3);
    (0..3).for_each(|partition| cluster.move_leader("t", partition, None));
    let mut client = TestClient::new(&cluster);
    let started = Instant::now();
    let after = |milliseconds| started + Duration::from_millis(milliseconds);
    let message = |partition, deadline| Message { deadline, ..Message::new(AcksLevel::Leader, "t", partition) };
    let never = client.send(message(0, later()));
    // Each has an earlier deadline than all before.
    let numbers: Vec<_> =
        (0..10).map(|step| client.send(message(1 + step % 2, after(1100 - 100 * step as u64)))).collect();
    let last = client.send(message(2, after(1200)));
    for number in numbers {
        assert_eq!(client.outcome(number), Outcome::TimedOut(Stored::No));
    }
    let end = client.end_of(last);
    assert!((1200..10_000).contains(&(end.at - started).as_millis()), "{:?}", end.at - started);
    assert!(!client.has_ended(never));
    client.close(Duration::ZERO);
    assert_eq!(client.outcome(never), Outcome::Closed(Stored::No));
}

#[test]
fn a_deadline_that_has_passed_ends_a_message_or_it_is_stored() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    let mut client = TestClient::new(&cluster);
    for level in AcksLevel::EACH {
        let deadline = Instant::now();
        client.send_many(20, &Message { deadline, ..Message::new(level, "t", 0) });
        client.outcome(client.send(Message::new(level, "t", 0)));
    }
    client.finish(&cluster);
}

#[test]
fn a_long_wait_for_a_response_does_not_delay_other_deadlines() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 2);
    for level in CONFIRMED {
        let mut client = TestClient::new(&cluster);
        client.offsets(&[client.send(Message::new(level, "t", 0))]);
        cluster.fault(produce(), Fault::response_held());
        let in_flight = client.send(Message::new(level, "t", 0));
        assert!(cluster.wait_until(LONG, |cluster| cluster.held_requests() == 1));
        let waiting = client.send(Message { deadline: brief(), ..Message::new(level, "t", 1) });
        let end = client.end_of(waiting);
        assert_eq!(end.outcome, Outcome::TimedOut(Stored::No));
        assert_eq!(end.reason, "broker 1 has not answered an earlier request");
        assert!(!client.has_ended(in_flight));
        cluster.release_held();
        client.offsets(&[in_flight]);
        client.finish(&cluster);
    }
}
