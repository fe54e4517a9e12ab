//! The fleet records how long a request is open, and its doors and replies do what they say.

use std::time::Duration;

use super::{Door, Fleet, Reply};
use crate::harness::http::{Client, post_request};
use crate::harness::wait_until;

const DEADLINE: Duration = Duration::from_secs(10);

fn push(key: &str, offset: u32, claim: u32) -> Vec<u8> {
    let (offset, claim) = (offset.to_string(), claim.to_string());
    let headers = [
        ("X-Instance", "a"),
        ("X-Kafka-Key", key),
        ("X-Kafka-Topic", "t"),
        ("X-Kafka-Partition", "3"),
        ("X-Kafka-Offset", &offset),
        ("X-Kafka-Attempt", "1"),
        ("X-Kafka-Claim", &claim),
    ];
    post_request("/push", &headers, b"body")
}

fn send(fleet: &Fleet, server: usize, bytes: &[u8]) -> Client {
    let mut client = Client::connect(&fleet.addresses()[server]).expect("the backend listens");
    client.send_raw(bytes).expect("the backend reads");
    client
}

#[test]
fn a_request_is_open_from_its_first_byte_until_its_answer_or_until_the_client_leaves() {
    let fleet = Fleet::start(2, |arrival| match arrival.key().as_str() {
        "hang" => Reply::hang(),
        _ => Reply::ok(),
    });
    let mut client = send(&fleet, 0, &push("k", 7, 1));
    assert_eq!(client.read_response().expect("an answer").status, 200);
    let hanging = send(&fleet, 1, &push("hang", 8, 1));
    wait_until(DEADLINE, "both arrive", || fleet.n_arrivals() == 2);
    let arrivals = fleet.arrivals();
    let first = &arrivals[0];
    assert_eq!((first.position(), first.instance(), first.claim()), ((3, 7), "a", Some(1)));
    assert_eq!((first.server, first.attempt(), first.request.text().as_str()), (0, 1, "body"));
    assert!(first.is_delivered() && first.ended.is_some_and(|ended| ended >= first.began));
    assert!(arrivals[1].ended.is_none(), "open until the client leaves");
    drop(hanging);
    wait_until(DEADLINE, "the end is noticed", || fleet.arrivals()[1].ended.is_some());
    assert_eq!((fleet.arrivals()[1].status, fleet.n_delivered()), (None, 1));
}

#[test]
fn a_fencing_fleet_refuses_the_older_claim_of_a_partition() {
    let fleet = Fleet::start(2, |_| Reply::ok());
    fleet.refuse_stale_claims();
    for (server, claim, status) in [(0, 5, 200), (1, 9, 200), (0, 5, 412), (1, 9, 200)] {
        let mut client = send(&fleet, server, &push("k", 1, claim));
        assert_eq!(client.read_response().expect("an answer").status, status, "claim {claim}");
    }
}

#[test]
fn doors_and_hostile_replies_do_what_they_say() {
    let fleet = Fleet::start(3, |arrival| match arrival.key().as_str() {
        "early" => Reply::status(413).early(),
        "interim" => Reply::interim_first(103, "Link: </x>\r\n", 200),
        "endless" => Reply::endless_chunks(200, Duration::from_millis(10)),
        _ => Reply::garbage(),
    });
    fleet.set_door(1, Door::Closing);
    fleet.set_door(2, Door::Silent);
    let mut early = send(&fleet, 0, b"POST / HTTP/1.1\r\nX-Kafka-Key: early\r\nContent-Length: 1000000\r\n\r\n");
    assert_eq!(early.read_response().expect("an answer before the body").status, 413);
    assert_eq!(send(&fleet, 0, &push("interim", 1, 1)).read_response().expect("an answer").status, 200);
    send(&fleet, 0, &push("other", 1, 1)).read_response().expect_err("garbage");
    send(&fleet, 1, &push("other", 1, 1)).read_response().expect_err("closed at once");
    let silent = Client::connect(&fleet.addresses()[2]).expect("it accepts");
    silent.socket().set_read_timeout(Some(Duration::from_millis(100))).expect("not zero");
    let mut silent = silent;
    silent.read_response().expect_err("it says nothing");
    let mut endless = send(&fleet, 0, &push("endless", 1, 1));
    assert_eq!(endless.read_head().expect("the head").1.status, 200);
}
