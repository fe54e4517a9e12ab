//! Tests of a member with its thread, with a cluster in memory.

use super::*;
use crate::kafka::group::LostReason;
use crate::kafka::scripted_broker::connector;
use crate::kafka::testkit::{ApiKey, Fault, Scope, TestCluster, codes};

const LONG: Duration = Duration::from_secs(60);

struct Rig {
    cluster: TestCluster,
    supervisor: Supervisor,
    client: GroupClient,
}

impl Rig {
    /// Starts a member of group `g` that reads topic `t`.
    fn start(prepare: impl FnOnce(&TestCluster)) -> Rig {
        let cluster = TestCluster::start(1);
        cluster.create_topic("t", 2);
        prepare(&cluster);
        let supervisor = Supervisor::new("test", Stop::new());
        let config = GroupConfig {
            session_timeout: Duration::from_secs(30),
            heartbeat_interval: Duration::from_millis(20),
            ..GroupConfig::new("g", ["t".into()])
        };
        let address = |(host, port): (String, u16)| BrokerAddress { host: host.into(), port };
        let bootstrap = cluster.bootstrap().into_iter().map(address).collect();
        let client = GroupClient::start(&supervisor, connector(), bootstrap, config).unwrap();
        Rig { cluster, supervisor, client }
    }

    /// Returns the next event that is no heartbeat.
    fn next(&self) -> GroupEvent {
        loop {
            match self.client.events().recv_timeout(LONG).expect("an event") {
                GroupEvent::HeartbeatAnswered { .. } => {}
                event => return event,
            }
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.supervisor.stop().trigger();
    }
}

#[test]
fn a_throttle_time_delays_the_next_request() {
    let rig = Rig::start(|cluster| {
        for api in [ApiKey::SyncGroup, ApiKey::Heartbeat] {
            cluster.fault(Scope::api(api), Fault::throttle(200));
        }
    });
    assert!(matches!(rig.next(), GroupEvent::Assigned { .. }));
    let heartbeats = |cluster: &TestCluster| cluster.requests(ApiKey::Heartbeat) >= 4;
    assert!(rig.cluster.wait_until(LONG, heartbeats), "the member goes on after the throttle time");
    assert_eq!(rig.cluster.throttle_violations(), 0);
}

#[test]
fn the_identity_is_that_of_the_assignment_and_counts_the_losses() {
    let rig = Rig::start(|_| {});
    let GroupEvent::Assigned { generation, .. } = rig.next() else { panic!("expected the assignment") };
    // Before the first heartbeat the member may be about to confirm its generation, and ignores the refusal.
    let answered = rig.client.events().recv_timeout(LONG);
    assert!(matches!(answered, Ok(GroupEvent::HeartbeatAnswered { .. })), "{answered:?}");
    let first = rig.client.identity().expect("the member has joined");
    assert_eq!((first.member.generation, first.losses), (generation, 0));
    rig.client.commit_refused(codes::UNKNOWN_MEMBER_ID, generation - 1);
    rig.client.commit_refused(codes::UNKNOWN_MEMBER_ID, generation);
    let GroupEvent::Lost { partitions, token, reason } = rig.next() else { panic!("expected the loss") };
    assert_eq!((partitions.len(), reason), (2, LostReason::UnknownMember));
    // The coordinator still counts the first member, and would wait a session for it to join.
    rig.cluster.delete_group("g");
    rig.client.released(token);
    assert!(matches!(rig.next(), GroupEvent::Assigned { .. }));
    let second = rig.client.identity().expect("the member has joined again");
    assert_eq!(second.losses, 1);
    assert_ne!(second.member.member_id, first.member.member_id);
}
