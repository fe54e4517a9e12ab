//! Tests of a member with a cluster in memory.

use super::*;
use crate::broker::{Engine, KafkaSettings};
use crate::kafka::testkit::{ApiKey, Fault, Scope, TestCluster, codes};

const LONG: Duration = Duration::from_secs(60);

fn soon() -> Instant {
    Instant::now() + LONG
}

/// Starts a member of group `g` that reads topic `t` with two partitions.
fn start(cluster: &TestCluster) -> NativeMembership {
    cluster.create_topic("t", 2);
    let broker = BrokerConfig {
        hosts: cluster.bootstrap().iter().map(|(host, port)| format!("{host}:{port}")).collect(),
        engine: Engine::Auto,
        client_id: "test".into(),
        request_timeout: Duration::from_secs(5),
        settings: KafkaSettings::default(),
        requests: Default::default(),
    };
    let config = MembershipConfig {
        group: "g".into(),
        topic: "t".into(),
        instance_id: None,
        session_timeout: Duration::from_secs(10),
        rebalance_timeout: Duration::from_secs(10),
    };
    NativeMembership::new(&broker, config).unwrap()
}

/// Returns the next event that is no proof, after at least one proof.
fn next(member: &mut NativeMembership) -> MembershipEvent {
    loop {
        let mut select = Select::new();
        member.register(&mut select);
        select.ready_timeout(LONG).expect("an event");
        match member.next() {
            None | Some(MembershipEvent::Proven(_)) => {}
            Some(event) => return event,
        }
    }
}

fn offset(partition: PartitionId, metadata: &str) -> CommittedOffset {
    CommittedOffset { partition, offset: 7, leader_epoch: Some(3), metadata: metadata.into() }
}

#[test]
fn a_member_commits_reads_and_leaves() {
    let cluster = TestCluster::start(1);
    let mut member = start(&cluster);
    assert_eq!(next(&mut member), MembershipEvent::Assigned(vec![0, 1]));
    assert_eq!(member.committed(soon()), Ok(Vec::new()));
    assert_eq!(member.commit(&[offset(0, "a"), offset(1, "b")], soon()), [Ok(()), Ok(())]);
    let mut committed = member.committed(soon()).unwrap();
    committed.sort_by_key(|of| of.partition);
    assert_eq!(committed, [offset(0, "a"), offset(1, "b")]);
    assert_eq!(member.n_partitions(soon()), Ok(Some(2)));
    let members = member.members(soon()).unwrap();
    assert_eq!((members.names.len(), members.assigned), (1, Some([0, 1].into())));
    Box::new(member).leave(false, soon());
    assert!(cluster.wait_until(LONG, |cluster| cluster.group("g").is_some_and(|(_, _, members)| members == 0)));
}

#[test]
fn refused_commits_say_what_to_do() {
    let cluster = TestCluster::start(1);
    let mut member = start(&cluster);
    next(&mut member);
    // Until a heartbeat is answered the member may be about to confirm its generation, and ignores a refusal.
    assert!(cluster.wait_until(LONG, |cluster| cluster.requests(ApiKey::Heartbeat) >= 2));
    let scope = Scope::api(ApiKey::OffsetCommit);
    cluster.fault(scope.clone(), Fault::error(codes::OFFSET_METADATA_TOO_LARGE));
    assert_eq!(member.commit(&[offset(0, "a")], soon()), [Err(CommitError::MetadataTooLong)]);
    cluster.fault(scope.clone(), Fault::error(codes::REBALANCE_IN_PROGRESS));
    let results = member.commit(&[offset(0, "a")], soon());
    assert!(matches!(&results[..], [Err(CommitError::Failed(reason))] if reason.contains("REBALANCE_IN_PROGRESS")));
    cluster.fault_always(scope, Fault::error(codes::ILLEGAL_GENERATION));
    let deadline = soon();
    loop {
        let results = member.commit(&[offset(0, "a")], soon());
        assert!(matches!(&results[..], [Err(CommitError::Ended(_))]), "{results:?}");
        let event = member.next();
        if let Some(MembershipEvent::Lost(token, reason)) = event {
            assert!(reason.contains("rebalance"), "{reason}");
            // Other members may have the partitions: nothing is committed before the owner knows of the loss.
            cluster.clear_faults();
            member.released(token);
            break;
        }
        assert!(Instant::now() < deadline, "{event:?}");
    }
    assert_eq!(next(&mut member), MembershipEvent::Assigned(vec![0, 1]));
    assert_eq!(member.commit(&[offset(0, "a")], soon()), [Ok(())]);
}
