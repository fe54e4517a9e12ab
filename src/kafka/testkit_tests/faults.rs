//! Scripted faults.

use std::time::Duration;

use super::*;
use crate::kafka::testkit::{ApiKey, Fault, Rates, ResponseFault, Scope, codes};

fn cluster() -> TestCluster {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 2);
    cluster
}

fn produce() -> Scope {
    Scope::api(ApiKey::Produce)
}

#[test]
fn an_error_applies_once_and_to_its_partition_alone() {
    let cluster = cluster();
    let mut client = RawClient::connect(&cluster, 1);
    cluster.fault(produce().partition("t", 1), Fault::error(codes::NOT_LEADER_OR_FOLLOWER));
    assert_eq!(client.produce("t", 0, &one("a")).error_code, 0);
    assert_eq!(cluster.pending_faults(), 1);
    assert_eq!(client.produce("t", 1, &one("b")).error_code, codes::NOT_LEADER_OR_FOLLOWER);
    assert_eq!(client.produce("t", 1, &one("c")).error_code, 0);
    assert_eq!((values(&cluster, "t", 0), values(&cluster, "t", 1)), (vec!["a".into()], vec!["c".into()]));
}

#[test]
fn an_error_after_leaves_the_record_in_the_log() {
    let cluster = cluster();
    let mut client = RawClient::connect(&cluster, 1);
    cluster.fault_times(produce(), Fault::error_after(codes::REQUEST_TIMED_OUT), 2);
    assert_eq!(client.produce("t", 0, &one("a")).error_code, codes::REQUEST_TIMED_OUT);
    assert_eq!(client.produce("t", 0, &one("b")).error_code, codes::REQUEST_TIMED_OUT);
    assert_eq!(client.produce("t", 0, &one("c")).error_code, 0);
    assert_eq!(values(&cluster, "t", 0), ["a", "b", "c"]);
}

#[test]
fn faults_of_the_response() {
    let faults = [
        (ResponseFault::Close, NoResponse::Closed),
        (ResponseFault::CloseWithin(0), NoResponse::Closed),
        (ResponseFault::CloseWithin(9), NoResponse::Closed),
        (ResponseFault::CloseWithin(1000), NoResponse::Closed),
        (ResponseFault::WrongCorrelationId, NoResponse::WrongCorrelationId),
        (ResponseFault::Truncated(3), NoResponse::Undecodable),
        (ResponseFault::Garbage, NoResponse::Undecodable),
        (ResponseFault::AnnouncedLength(100_000), NoResponse::Closed),
    ];
    for (fault, expected) in faults {
        let cluster = cluster();
        let mut client = RawClient::connect(&cluster, 1);
        cluster.fault(produce(), Fault::response(fault.clone()));
        client.send(7, &produce_request("t", 0, -1, &one("a")));
        if matches!(fault, ResponseFault::AnnouncedLength(_)) {
            assert!(cluster.wait_until(LONG, |cluster| cluster.log("t", 0).len() == 1));
            cluster.close_connections(1);
        }
        assert_eq!(client.receive::<m::ProduceRequest>(7).unwrap_err(), expected, "{fault:?}");
        assert_eq!(values(&cluster, "t", 0), ["a"], "{fault:?}");
    }
}

#[test]
fn a_response_that_trickles_or_precedes_a_close_is_complete() {
    for fault in [ResponseFault::CloseAfter, ResponseFault::Trickle(Duration::from_micros(100))] {
        let cluster = cluster();
        let mut client = RawClient::connect(&cluster, 1);
        cluster.fault(produce(), Fault::response(fault));
        assert_eq!(client.produce("t", 0, &one("a")).base_offset, 0);
    }
}

#[test]
fn a_closed_connection_without_handling_stores_nothing() {
    let cluster = cluster();
    let mut client = RawClient::connect(&cluster, 1);
    cluster.fault(produce(), Fault::close_before());
    let outcome = client.call(9, &produce_request("t", 0, -1, &one("a")));
    assert!(matches!(outcome, Err(NoResponse::Closed)));
    assert_eq!(cluster.log("t", 0), []);
}

#[test]
fn a_request_that_the_client_gave_up_is_carried_out_later() {
    let cluster = cluster();
    cluster.fault(produce(), Fault::held());
    let mut first = RawClient::connect(&cluster, 1);
    first.send(9, &produce_request("t", 0, -1, &one("late")));
    assert!(cluster.wait_until(LONG, |cluster| cluster.held_requests() == 1));
    drop(first);
    let mut second = RawClient::connect(&cluster, 1);
    assert_eq!(second.produce("t", 0, &one("retry")).error_code, 0);
    cluster.release_held();
    assert!(cluster.wait_until(LONG, |cluster| cluster.log("t", 0).len() == 2));
    assert_eq!(values(&cluster, "t", 0), ["retry", "late"]);
}

#[test]
fn a_broker_that_stops_drops_the_requests_that_it_holds() {
    let cluster = cluster();
    cluster.fault(produce(), Fault::held());
    let mut client = RawClient::connect(&cluster, 1);
    client.send(9, &produce_request("t", 0, -1, &one("a")));
    assert!(cluster.wait_until(LONG, |cluster| cluster.held_requests() == 1));
    cluster.stop_broker(1);
    cluster.start_broker(1);
    cluster.release_held();
    assert!(cluster.wait_until(LONG, |cluster| cluster.held_requests() == 0));
    assert!(matches!(client.receive::<m::ProduceRequest>(9), Err(NoResponse::Closed)));
    let mut client = RawClient::connect(&cluster, 1);
    assert_eq!(client.produce("t", 0, &one("b")).base_offset, 0);
}

#[test]
fn a_panic_of_a_test_ends_the_threads_of_its_cluster() {
    let outcome = std::panic::catch_unwind(|| {
        let cluster = cluster();
        cluster.fault(produce(), Fault::held());
        let mut client = RawClient::connect(&cluster, 1);
        client.send(9, &produce_request("t", 0, -1, &one("a")));
        assert!(cluster.wait_until(LONG, |cluster| cluster.held_requests() == 1));
        std::panic::resume_unwind(Box::new("the test fails"));
    });
    assert_eq!(outcome.unwrap_err().downcast_ref::<&str>(), Some(&"the test fails"));
}

/// Retries each batch of an idempotent producer until it is answered, as fast as it goes.
#[test]
fn an_idempotent_producer_is_exactly_once_whatever_happens() {
    for seed in 0..8 {
        let cluster = cluster();
        cluster.random_faults(seed, Rates::all(60));
        let mut client = RawClient::connect(&cluster, 1);
        for number in 0..150 {
            let batch = one(&number.to_string()).producer(7, 0, number / 2);
            loop {
                let outcome = client.call(9, &produce_request("t", number % 2, -1, &batch));
                match outcome.map(|response| response.responses[0].partition_responses[0].error_code) {
                    Ok(0) => break,
                    Ok(code) => assert!(codes::OUT_OF_ORDER_SEQUENCE_NUMBER != code, "seed {seed}, record {number}"),
                    Err(_) => client = RawClient::connect(&cluster, 1),
                }
            }
        }
        for partition in 0..2 {
            let expected: Vec<_> = (0..75).map(|number| (2 * number + partition).to_string()).collect();
            assert_eq!(values(&cluster, "t", partition), expected, "seed {seed}");
        }
        assert!(cluster.requests(ApiKey::Produce) > 160, "faults make retries");
    }
}

#[test]
fn requests_within_the_throttle_time_are_counted() {
    let cluster = cluster();
    let mut client = RawClient::connect(&cluster, 1);
    cluster.fault(produce(), Fault::throttle(60_000));
    let response = client.call(9, &produce_request("t", 0, -1, &one("a"))).unwrap();
    assert_eq!((response.throttle_time_ms, cluster.throttle_violations()), (60_000, 0));
    client.produce("t", 0, &one("b"));
    assert_eq!(cluster.throttle_violations(), 1);
}

#[test]
fn a_paused_broker_serves_requests_when_it_resumes() {
    let cluster = cluster();
    cluster.pause_broker(1, true);
    let mut client = RawClient::connect(&cluster, 1);
    client.send(9, &produce_request("t", 0, -1, &one("a")));
    client.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(client.stream.peek(&mut [0]).is_err());
    assert_eq!(cluster.log("t", 0), []);
    cluster.pause_broker(1, false);
    client.stream.set_read_timeout(Some(LONG)).unwrap();
    assert!(client.receive::<m::ProduceRequest>(9).is_ok());
}

#[test]
fn swallowed_requests_are_never_carried_out() {
    let cluster = cluster();
    cluster.drop_everything(Duration::from_secs(3600));
    let mut first = RawClient::connect(&cluster, 1);
    first.send(9, &produce_request("t", 0, -1, &one("a")));
    assert!(cluster.wait_until(LONG, |cluster| cluster.swallowed_requests() == 1));
    cluster.drop_everything(Duration::ZERO);
    let mut client = RawClient::connect(&cluster, 1);
    assert_eq!(client.produce("t", 0, &one("b")).base_offset, 0);
    assert_eq!(values(&cluster, "t", 0), ["b"]);
}

#[test]
fn random_faults_are_the_same_for_a_seed() {
    let outcomes = |seed| {
        let cluster = cluster();
        cluster.random_faults(seed, Rates::all(100));
        let mut client = RawClient::connect(&cluster, 1);
        let mut outcomes = Vec::new();
        for number in 0..60 {
            let outcome = client.call(9, &produce_request("t", 0, -1, &one(&number.to_string())));
            let code = outcome.map(|response| response.responses[0].partition_responses[0].error_code);
            if code.is_err() {
                client = RawClient::connect(&cluster, 1);
            }
            outcomes.push(format!("{code:?}"));
        }
        (outcomes, values(&cluster, "t", 0))
    };
    let first = outcomes(1);
    assert_eq!(first, outcomes(1));
    assert_ne!(first, outcomes(2));
    assert!(first.0.iter().any(|outcome| outcome.starts_with("Err")));
    assert!(first.0.iter().any(|outcome| outcome == "Ok(0)"));
}
