//! Leaders that move, hang, disappear; topics that are deleted, recreated, enlarged.

use super::*;

#[test]
fn order_and_exactly_once_hold_while_leaders_move() {
    let cluster = TestCluster::start(3);
    cluster.create_topic("t", 4);
    for has_hints in [true, false] {
        cluster.set_leader_hints(has_hints);
        let mut client = TestClient::new(&cluster);
        for round in 0..30 {
            for partition in 0..4 {
                CONFIRMED.into_iter().for_each(|level| _ = client.send_many(3, &Message::new(level, "t", partition)));
                if round % 3 == 0 {
                    cluster.move_leader("t", partition, Some(1 + (round / 3 + partition) % 3));
                }
            }
            // Some messages are in flight, some wait.
            let number = client.send(Message::new(AcksLevel::Leader, "t", round % 4));
            client.outcome(number);
        }
        client.wait();
        client.finish(&cluster);
        assert!(client.has_stored_all());
    }
}

#[test]
fn messages_survive_a_broker_that_stops_and_starts() {
    let cluster = TestCluster::start(3);
    cluster.create_topic("t", 6);
    let mut client = TestClient::new(&cluster);
    for broker in [1, 2, 3, 1] {
        let send = || {
            for partition in 0..6 {
                CONFIRMED.into_iter().for_each(|level| _ = client.send_many(5, &Message::new(level, "t", partition)));
            }
        };
        send();
        cluster.stop_broker(broker);
        send();
        client.wait();
        cluster.start_broker(broker);
    }
    client.finish(&cluster);
    assert!(client.has_stored_all());
}

#[test]
fn messages_wait_for_a_crashed_broker_that_no_other_replaces() {
    let cluster = TestCluster::start(2);
    cluster.create(TopicSpec::new("t").replication(1));
    let mut client = TestClient::new(&cluster);
    let message = Message::new(AcksLevel::All, "t", 0);
    client.offsets(&[client.send(message.clone())]);
    cluster.crash_broker(1);
    let waiting = client.send(message.clone());
    let end = client.end_of(client.send(Message { deadline: brief(), ..Message::new(AcksLevel::Leader, "t", 0) }));
    assert_eq!(end.outcome, Outcome::TimedOut(Stored::No));
    let (host, port) = cluster.address(1);
    assert!(end.reason.contains(&format!("{host}:{port}")), "{}", end.reason);
    // Without a leader in metadata, too.
    cluster.elect_leaders();
    let late = client.end_of(client.send(Message { deadline: later_by(1), ..Message::new(AcksLevel::Leader, "t", 0) }));
    assert_eq!((late.outcome, &*late.reason), (Outcome::TimedOut(Stored::No), "partition 0 of topic t has no leader"));
    cluster.start_broker(1);
    client.offsets(&[waiting, client.send(message)]);
    client.finish(&cluster);
}

#[test]
fn messages_without_a_key_avoid_a_broker_that_cannot_be_reached_and_one_that_hangs() {
    let cluster = TestCluster::start(2);
    cluster.create(TopicSpec::new("t").partitions(4).replication(1));
    let client = TestClient::new(&cluster);
    let lost: Vec<i32> = (0..4).filter(|partition| cluster.leader("t", *partition).0 == Some(2)).collect();
    assert_eq!(lost.len(), 2);
    for is_paused in [true, false] {
        client.offsets(&(0..4).map(|at| client.send(Message::new(AcksLevel::Leader, "t", at))).collect::<Vec<_>>());
        if is_paused {
            cluster.pause_broker(2, true);
        } else {
            cluster.crash_broker(2);
        }
        // Meanwhile the broker has not answered for long, or a connection to it has failed.
        let deadline = later_by(2);
        client.outcome(client.send(Message { deadline, ..Message::new(AcksLevel::Leader, "t", lost[0]) }));
        for step in 0..100 {
            let deadline = later() + Duration::from_secs(step);
            let partition = client.producer().sticky_partition(AcksLevel::Leader, "t", 4, deadline);
            assert!(!lost.contains(&partition), "{is_paused} {step}: partition {partition}");
        }
        cluster.pause_broker(2, false);
    }
}

fn later_by(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

#[test]
fn a_partition_without_a_leader_holds_up_no_other() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 2);
    cluster.move_leader("t", 0, None);
    let mut client = TestClient::new(&cluster);
    for level in AcksLevel::EACH {
        let waiting = client.send_many(3, &Message::new(level, "t", 0));
        let sent = client.send(Message::new(level, "t", 1));
        client.outcome(sent);
        assert!(!client.has_ended(waiting[0]));
    }
    cluster.move_leader("t", 0, Some(1));
    client.wait();
    assert!(cluster.wait_until(LONG, |cluster| cluster.log("t", 0).len() == 9));
    client.finish(&cluster);
}

/// A broker hangs while it has a request; another broker becomes the leader.
fn moves_away_from_a_paused_broker(level: AcksLevel, is_leaderless_between: bool, is_connected: bool) {
    let cluster = TestCluster::start(3);
    cluster.create_topic("t", 4);
    let mut client = TestClient::new(&cluster);
    let message = Message::new(level, "t", 0);
    if is_connected {
        client.offsets(&[client.send(message.clone())]);
    }
    cluster.pause_broker(1, true);
    let started = Instant::now();
    let numbers = client.send_many(2, &message);
    if is_leaderless_between {
        cluster.move_leader("t", 0, None);
        cluster.move_leader("t", 3, None);
        // The client has noticed it when messages of the other partition have no leader.
        let deadline = || Instant::now() + Duration::from_millis(100);
        let notices = || client.end_of(client.send(Message { deadline: deadline(), partition: 3, ..message.clone() }));
        while !notices().reason.contains("no leader") {
            assert!(started.elapsed() < LONG);
        }
    }
    cluster.move_leader("t", 0, Some(2));
    let moved = client.offsets(&numbers);
    assert!(moved[0] < moved[1] && started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    client.offsets(&[client.send(message)]);
    cluster.pause_broker(1, false);
    client.finish(&cluster);
}

#[test]
fn messages_move_away_from_a_broker_that_does_not_answer() {
    for level in CONFIRMED {
        moves_away_from_a_paused_broker(level, false, true);
    }
}

#[test]
fn messages_move_away_from_a_hung_broker_also_if_the_partition_had_no_leader_in_between() {
    for level in CONFIRMED {
        moves_away_from_a_paused_broker(level, true, true);
    }
}

#[test]
fn messages_move_away_from_a_broker_that_hangs_while_the_client_connects() {
    for level in CONFIRMED {
        moves_away_from_a_paused_broker(level, false, false);
    }
}

#[test]
fn messages_of_a_deleted_topic_are_rejected_after_a_while_and_others_are_not() {
    let cluster = TestCluster::start(2);
    cluster.create_topic("deleted", 2);
    cluster.create_topic("kept", 2);
    let mut client = TestClient::new(&cluster);
    for level in CONFIRMED {
        client.offsets(&[client.send(Message::new(level, "deleted", 0))]);
    }
    cluster.delete_topic("deleted");
    let started = Instant::now();
    let numbers = CONFIRMED.map(|level| client.send(Message::new(level, "deleted", 1)));
    let kept = CONFIRMED.map(|level| client.send(Message::new(level, "kept", 1)));
    client.offsets(&kept);
    for (number, stored) in numbers.into_iter().zip([Stored::No, Stored::Unknown]) {
        let end = client.end_of(number);
        assert_eq!(end.outcome, Outcome::Rejected(code::UNKNOWN_TOPIC_OR_PARTITION, stored));
        assert_eq!(end.reason, "UNKNOWN_TOPIC_OR_PARTITION");
        let time = end.at - started;
        assert!((Duration::from_secs(3)..Duration::from_secs(20)).contains(&time), "{time:?}");
    }
    client.close(Duration::ZERO);
}

#[test]
fn a_topic_that_is_recreated_is_sent_messages() {
    for release in [Release::V2_4, Release::V4_0] {
        let cluster = TestCluster::builder(3).release(release).start();
        cluster.create_topic("t", 3);
        // The new topic begins with lower epochs.
        (0..3).for_each(|partition| cluster.move_leader("t", partition, Some(1)));
        (0..3).for_each(|partition| cluster.move_leader("t", partition, Some(2)));
        let mut client = TestClient::new(&cluster);
        for level in CONFIRMED {
            client.offsets(&[client.send(Message::new(level, "t", 1))]);
        }
        cluster.delete_topic("t");
        cluster.create_topic("t", 2);
        cluster.move_leader("t", 1, Some(3));
        let numbers: Vec<_> = CONFIRMED
            .into_iter()
            .flat_map(|level| [0, 1].map(|at| client.send(Message::new(level, "t", at))))
            .collect();
        let beyond = client.send(Message::new(AcksLevel::Leader, "t", 2));
        match release < Release::V2_8 {
            // An unchanged retry of a producer that the new topic does not know is rejected before 2.5.
            true => numbers.iter().for_each(|number| _ = client.outcome(*number)),
            false => _ = client.offsets(&numbers),
        }
        client.offsets(&CONFIRMED.map(|level| client.send(Message::new(level, "t", 1))));
        // A connection that is closed because a partition of its request has another leader leaves the others open.
        let outcome = client.outcome(beyond);
        assert!(matches!(outcome, Outcome::Rejected(code::UNKNOWN_TOPIC_OR_PARTITION, _)), "{release:?}: {outcome:?}");
        client.close(Duration::ZERO);
    }
}

#[test]
fn added_partitions_are_sent_messages() {
    let cluster = TestCluster::start(2);
    cluster.create_topic("t", 1);
    let mut client = TestClient::new(&cluster);
    client.offsets(&[client.send(Message::new(AcksLevel::All, "t", 0))]);
    cluster.add_partitions("t", 3);
    assert_eq!(client.end_of(client.send(Message::new(AcksLevel::All, "t", 3))).reason, NO_METADATA);
    client.learn();
    for level in CONFIRMED {
        client.offsets(&(0..4).map(|at| client.send(Message::new(level, "t", at))).collect::<Vec<_>>());
    }
    client.close(Duration::ZERO);
}

#[test]
fn acks_0_notices_that_a_broker_is_not_the_leader_any_more() {
    let cluster = TestCluster::start(2);
    cluster.create_topic("t", 1);
    let mut client = TestClient::new(&cluster);
    let message = Message::new(AcksLevel::None, "t", 0);
    client.send(message.clone());
    assert!(cluster.wait_until(LONG, |cluster| cluster.log("t", 0).len() == 1));
    cluster.move_leader("t", 0, Some(2));
    // Messages to the former leader are lost, which is what acks=0 means.
    let started = Instant::now();
    while cluster.log("t", 0).len() == 1 {
        client.outcome(client.send(message.clone()));
        assert!(started.elapsed() < LONG);
    }
    client.finish(&cluster);
}

#[test]
fn a_broker_that_has_another_address_by_now_is_found_although_the_former_one_answers() {
    let cluster = TestCluster::start(2);
    cluster.create_topic("t", 1);
    cluster.swap_addresses(1, 2);
    let mut client = TestClient::new(&cluster);
    // The broker at that address is another one.
    let numbers = CONFIRMED.map(|level| client.send(Message::new(level, "t", 0)));
    assert!(cluster.wait_until(LONG, |cluster| cluster.requests(ApiKey::Produce) >= 4));
    assert!(numbers.iter().all(|number| !client.has_ended(*number)));
    cluster.swap_addresses(1, 2);
    client.offsets(&numbers);
    client.finish(&cluster);
}
