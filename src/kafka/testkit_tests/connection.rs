//! The client's own connection against the cluster and against hostile peers; SASL.

use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::kafka::config::{BrokerAddress, ConnectionConfig};
use crate::kafka::connection::Connector;
use crate::kafka::produce;
use crate::kafka::protocol::api_versions::ApiVersionsRequest;
use crate::kafka::testkit::{ApiKey, Fault, HostilePeer, Hostility, Release, ResponseFault, Scope, codes};

fn address((host, port): (String, u16)) -> BrokerAddress {
    BrokerAddress { host: Arc::from(host), port }
}

fn connector() -> Connector {
    Connector::new(ConnectionConfig {
        client_id: "test".into(),
        connect_timeout: LONG,
        request_timeout: LONG,
        max_idle: LONG,
        max_response_bytes: 1 << 20,
        ..ConnectionConfig::default()
    })
}

#[test]
fn our_connection_produces_against_every_release() {
    for release in Release::ALL {
        let cluster = TestCluster::builder(1).release(release).start();
        cluster.create_topic("t", 1);
        let deadline = Instant::now() + LONG;
        let mut connection = connector().connect(&address(cluster.address(1)), deadline).unwrap();
        let version = connection.version_of(produce::API_KEY, produce::VERSIONS).unwrap();
        let encoded = one("v").encode();
        let data = [produce::PartitionData { partition: 0, records: encoded.bytes() }];
        let sent = connection.send_with(produce::API_KEY, version, version >= 9, deadline, |request| {
            produce::encode_request(request, version, -1, 1000, &[("t", &data)]);
        });
        let response =
            connection.receive_with(sent.unwrap(), deadline, |body| produce::decode_response(body, version)).unwrap();
        assert_eq!((response.partitions[0].error_code, response.partitions[0].base_offset), (0, 0), "{release:?}");
        assert_eq!(values(&cluster, "t", 0), ["v"]);
    }
}

#[test]
fn our_connection_fails_with_broken_responses() {
    let faults = [
        Fault::response(ResponseFault::WrongCorrelationId),
        Fault::response(ResponseFault::Truncated(4)),
        Fault::response(ResponseFault::Garbage),
        Fault::response(ResponseFault::AnnouncedLength(i32::MAX)),
        Fault::close_unanswered(),
        Fault::close_before(),
    ];
    for fault in faults {
        let cluster = TestCluster::start(1);
        let deadline = Instant::now() + LONG;
        let mut connection = connector().connect(&address(cluster.address(1)), deadline).unwrap();
        cluster.fault(Scope::api(ApiKey::ApiVersions), fault.clone());
        assert!(connection.call(&ApiVersionsRequest, deadline).is_err(), "{fault:?}");
        assert!(Instant::now() < deadline, "{fault:?}");
    }
}

#[test]
fn our_connection_gives_up_hostile_peers() {
    let kinds = [
        Hostility::Http,
        Hostility::Tls,
        Hostility::Silent,
        Hostility::Closing,
        Hostility::ClosingAfterRequest,
        Hostility::Announcing(i32::MAX),
        Hostility::Announcing(-1),
        Hostility::Announcing(1000),
        Hostility::EndlessSlowly,
        Hostility::EndlessFast,
    ];
    for kind in kinds {
        let peer = HostilePeer::start(kind);
        let deadline = Instant::now() + Duration::from_millis(200);
        let error = connector().connect(&address(peer.address()), deadline).err().unwrap();
        assert!(error.to_string().contains(&peer.address().1.to_string()), "{error}");
        assert_eq!(peer.accepted(), 1, "{kind:?}");
    }
}

#[test]
fn a_session_that_is_not_renewed_ends_with_the_next_request() {
    let cluster = TestCluster::builder(1).user("alice", "secret").session_lifetime(Duration::from_millis(1)).start();
    let mut client = RawClient::connect(&cluster, 1);
    let handshake = m::SaslHandshakeRequest::default().with_mechanism(text("PLAIN"));
    client.call(1, &handshake).unwrap();
    let token = m::SaslAuthenticateRequest::default().with_auth_bytes(Bytes::from_static(b"\0alice\0secret"));
    assert_eq!(client.call(1, &token).unwrap().session_lifetime_ms, 1);
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(2) {
        std::thread::yield_now();
    }
    // ApiVersions and SASL itself are served without a session.
    assert!(client.call(0, &m::ApiVersionsRequest::default()).is_ok());
    assert!(client.call(1, &m::MetadataRequest::default()).is_err());
}

#[test]
fn only_users_with_their_password_are_served() {
    let cluster = TestCluster::builder(1).user("alice", "secret").start();
    cluster.create_topic("t", 1);
    let mut client = RawClient::connect(&cluster, 1);
    assert!(client.call(9, &produce_request("t", 0, -1, &one("a"))).is_err());
    for (password, expected) in [("secret", codes::NONE), ("wrong", codes::SASL_AUTHENTICATION_FAILED)] {
        for version in 0..=2 {
            let mut client = RawClient::connect(&cluster, 1);
            let handshake = m::SaslHandshakeRequest::default().with_mechanism(text("PLAIN"));
            assert_eq!(client.call(1, &handshake).unwrap().error_code, 0);
            let token = Bytes::from(format!("\0alice\0{password}"));
            let response = client.call(version, &m::SaslAuthenticateRequest::default().with_auth_bytes(token)).unwrap();
            assert_eq!(response.error_code, expected);
            let outcome = client.call(9, &produce_request("t", 0, -1, &one("a")));
            assert_eq!(outcome.is_ok(), expected == codes::NONE);
        }
    }
    for (password, is_right) in [("secret", true), ("wrong", false)] {
        // After a handshake in version 0 the token comes without Kafka's headers.
        let mut client = RawClient::connect(&cluster, 1);
        let handshake = m::SaslHandshakeRequest::default().with_mechanism(text("PLAIN"));
        assert_eq!(client.call(0, &handshake).unwrap().error_code, 0);
        let token = format!("\0alice\0{password}");
        client.stream.write_all(&[&(token.len() as i32).to_be_bytes()[..], token.as_bytes()].concat()).unwrap();
        let answered = client.stream.read_exact(&mut [0; 4]).is_ok();
        assert_eq!(answered, is_right);
        assert_eq!(answered && client.call(9, &produce_request("t", 0, -1, &one("a"))).is_ok(), is_right);
    }
    let mut client = RawClient::connect(&cluster, 1);
    let handshake = m::SaslHandshakeRequest::default().with_mechanism(text("GSSAPI"));
    assert_eq!(client.call(1, &handshake).unwrap().error_code, codes::UNSUPPORTED_SASL_MECHANISM);
}
