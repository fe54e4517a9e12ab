use super::*;
use crate::kafka::error_code::{
    COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, FENCED_INSTANCE_ID, GROUP_AUTHORIZATION_FAILED,
    GROUP_MAX_SIZE_REACHED, ILLEGAL_GENERATION, INCONSISTENT_GROUP_PROTOCOL, INVALID_SESSION_TIMEOUT,
    MEMBER_ID_REQUIRED, NOT_COORDINATOR, REBALANCE_IN_PROGRESS, UNKNOWN_MEMBER_ID, name,
};
use crate::kafka::group::subscription::{decode_assignment, encode_assignment};
use crate::kafka::protocol::heartbeat::HeartbeatResponse;
use crate::kafka::protocol::join_group::{JoinGroupResponse, JoinedMember};
use crate::kafka::protocol::sync_group::SyncGroupResponse;

const SECOND: Duration = Duration::from_secs(1);

fn on(partition: i32) -> TopicPartition {
    TopicPartition { topic: "t".into(), partition }
}

fn config() -> GroupConfig {
    GroupConfig {
        session_timeout: 10 * SECOND,
        rebalance_timeout: 30 * SECOND,
        heartbeat_interval: SECOND,
        ..GroupConfig::new("g", ["t".into()])
    }
}

fn join_response(error_code: i16, generation: i32) -> JoinGroupResponse {
    JoinGroupResponse {
        error_code,
        generation,
        protocol: Some("cooperative-sticky".into()),
        leader: "other".into(),
        member_id: "me".into(),
        ..JoinGroupResponse::default()
    }
}

fn heartbeat_response(error_code: i16) -> HeartbeatResponse {
    HeartbeatResponse { throttle_time_ms: 0, error_code }
}

fn expect_join(member: &mut Member, now: Instant) -> JoinGroupRequest {
    match member.next(now) {
        Next::Join(request) => request,
        next => panic!("no join: {next:?}"),
    }
}

fn expect_heartbeat(member: &mut Member, now: Instant) {
    assert!(matches!(member.next(now), Next::Heartbeat(_)));
}

/// The claims and their generation in a join.
fn claims(request: &JoinGroupRequest) -> (Vec<TopicPartition>, i32) {
    let subscription = Subscription::decode(&request.protocols[0].1).unwrap();
    (subscription.owned.clone(), subscription.claim_generation())
}

/// Joins and syncs as a follower.
fn enter(member: &mut Member, now: Instant, generation: i32, partitions: &[TopicPartition]) -> JoinGroupRequest {
    let request = expect_join(member, now);
    member.join_answered(now, join_response(0, generation));
    assert!(matches!(member.next(now), Next::Sync(_)));
    let assignment = encode_assignment(partitions);
    member.sync_answered(now, &SyncGroupResponse { assignment, ..SyncGroupResponse::default() });
    request
}

/// The sync that confirms a lease.
fn confirm(member: &mut Member, now: Instant, partitions: &[TopicPartition]) {
    assert_eq!(member.last_heartbeat_sent_and_answered(), None);
    assert!(matches!(member.next(now), Next::Sync(request) if request.assignments.is_empty()));
    let assignment = encode_assignment(partitions);
    member.sync_answered(now, &SyncGroupResponse { assignment, ..SyncGroupResponse::default() });
}

/// A member that holds partitions 0 and 1 in generation 5 and whose heartbeat was answered at `now`.
fn stable(config: GroupConfig, now: Instant) -> Member {
    let mut member = Member::new(Arc::new(config));
    enter(&mut member, now, 5, &[on(0), on(1)]);
    expect_heartbeat(&mut member, now);
    member.heartbeat_answered(now, heartbeat_response(0));
    confirm(&mut member, now, &[on(0), on(1)]);
    assert_eq!(
        events(&mut member),
        [
            GroupEvent::Assigned { partitions: vec![on(0), on(1)], generation: 5 },
            GroupEvent::HeartbeatAnswered { sent: now, answered: now }
        ]
    );
    member
}

fn events(member: &mut Member) -> Vec<GroupEvent> {
    std::iter::from_fn(|| member.take_event()).collect()
}

#[test]
fn a_new_member_joins_again_with_the_id_that_it_was_given() {
    let now = Instant::now();
    let mut member = Member::new(Arc::new(config()));
    assert_eq!(&*expect_join(&mut member, now).member_id, "");
    member.join_answered(now, join_response(MEMBER_ID_REQUIRED, -1));
    assert_eq!(&*expect_join(&mut member, now).member_id, "me");
}

#[test]
fn a_lost_partition_is_revoked_and_the_member_joins_again_after_its_release() {
    let now = Instant::now();
    let mut member = stable(config(), now);
    expect_heartbeat(&mut member, now + SECOND);
    member.heartbeat_answered(now + SECOND, heartbeat_response(REBALANCE_IN_PROGRESS));
    // An answer with this error does not extend the lease.
    assert_eq!(member.last_heartbeat_sent_and_answered(), Some((now, now)));
    let request = enter(&mut member, now + SECOND, 6, &[on(0)]);
    assert_eq!(claims(&request), (vec![on(0), on(1)], 5));
    let [GroupEvent::Revoke { partitions, token }] = &events(&mut member)[..] else { panic!("no revocation") };
    assert_eq!(partitions[..], [on(1)]);
    expect_heartbeat(&mut member, now + SECOND);
    member.heartbeat_answered(now + SECOND, heartbeat_response(0));
    assert!(matches!(member.next(now + SECOND), Next::Wait(_)));
    member.released(*token);
    assert_eq!(claims(&expect_join(&mut member, now + SECOND)), (vec![on(0)], 6));
}

#[test]
fn a_partition_given_back_during_its_release_is_assigned_after_it() {
    let now = Instant::now();
    let mut member = stable(config(), now);
    member.commit_refused(now, REBALANCE_IN_PROGRESS, 5);
    enter(&mut member, now, 6, &[on(0)]);
    let [GroupEvent::Revoke { token, .. }] = events(&mut member)[..] else { panic!("no revocation") };
    member.commit_refused(now, REBALANCE_IN_PROGRESS, 6);
    let request = enter(&mut member, now, 7, &[on(0), on(1)]);
    assert_eq!(claims(&request).0, [on(0), on(1)]);
    assert_eq!(events(&mut member), []);
    member.released(token);
    assert_eq!(events(&mut member), [GroupEvent::Assigned { partitions: vec![on(1)], generation: 7 }]);
}

#[test]
fn a_partition_given_back_does_not_wait_for_another_release() {
    let now = Instant::now();
    let mut member = stable(config(), now);
    let mut tokens = Vec::new();
    for (generation, assigned) in [(6, vec![on(0)]), (7, vec![])] {
        member.commit_refused(now, REBALANCE_IN_PROGRESS, generation - 1);
        enter(&mut member, now, generation, &assigned);
        let [GroupEvent::Revoke { token, .. }] = events(&mut member)[..] else { panic!("no revocation") };
        tokens.push(token);
    }
    member.commit_refused(now, REBALANCE_IN_PROGRESS, 7);
    enter(&mut member, now, 8, &[on(0), on(1)]);
    member.released(tokens[1]);
    assert_eq!(events(&mut member), [GroupEvent::Assigned { partitions: vec![on(0)], generation: 8 }]);
    member.released(tokens[0]);
    assert_eq!(events(&mut member), [GroupEvent::Assigned { partitions: vec![on(1)], generation: 8 }]);
}

#[test]
fn after_a_loss_the_member_joins_when_the_owner_has_released_or_the_lease_has_ended() {
    let now = Instant::now();
    for (code, member_id) in [(ILLEGAL_GENERATION, "me"), (UNKNOWN_MEMBER_ID, "")] {
        for is_released in [true, false] {
            let mut member = stable(config(), now);
            expect_heartbeat(&mut member, now + SECOND);
            member.heartbeat_answered(now + SECOND, heartbeat_response(code));
            let [GroupEvent::Lost { partitions, token, .. }] = &events(&mut member)[..] else { panic!("no loss") };
            assert_eq!(partitions[..], [on(0), on(1)]);
            assert_eq!(member.identity(), None);
            assert!(matches!(member.next(now + SECOND), Next::Wait(until) if until == now + 10 * SECOND));
            let mut time = now + 10 * SECOND;
            if is_released {
                member.released(*token);
                time = now + SECOND;
            }
            let request = expect_join(&mut member, time);
            assert_eq!((claims(&request), &*request.member_id), ((Vec::new(), NO_GENERATION), member_id));
        }
    }
}

#[test]
fn a_session_expires_by_the_time_of_sending_and_is_not_continued_by_a_heartbeat() {
    let now = Instant::now();
    let mut member = stable(config(), now);
    expect_heartbeat(&mut member, now + SECOND);
    member.heartbeat_answered(now + 4 * SECOND, heartbeat_response(0));
    assert_eq!(member.lease_end(), Some(now + 11 * SECOND));
    expect_heartbeat(&mut member, now + 4 * SECOND);
    member.request_failed(now + 11 * SECOND);
    assert!(member.take_coordinator_is_unknown());
    let request = expect_join(&mut member, now + 11 * SECOND);
    assert_eq!((claims(&request).0, &*request.member_id), (Vec::new(), "me"));
    assert!(matches!(events(&mut member)[..], [_, GroupEvent::Lost { reason: LostReason::SessionExpired, .. }]));
}

#[test]
fn a_rebalance_longer_than_the_session_loses_nothing_but_needs_a_confirmed_lease() {
    let now = Instant::now();
    let mut member = stable(config(), now);
    member.commit_refused(now, REBALANCE_IN_PROGRESS, 5);
    expect_join(&mut member, now + SECOND);
    let later = now + 25 * SECOND;
    member.join_answered(later, join_response(0, 6));
    assert!(matches!(member.next(later), Next::Sync(_)));
    let assignment = encode_assignment(&[on(0), on(1)]);
    member.sync_answered(later, &SyncGroupResponse { assignment, ..SyncGroupResponse::default() });
    expect_heartbeat(&mut member, later);
    member.heartbeat_answered(later, heartbeat_response(0));
    assert_eq!(events(&mut member), []);
    confirm(&mut member, later + SECOND, &[on(0), on(1)]);
    assert_eq!(events(&mut member), [GroupEvent::HeartbeatAnswered { sent: later, answered: later }]);
}

#[test]
fn a_heartbeat_that_a_loading_coordinator_answered_begins_no_lease() {
    let now = Instant::now();
    let mut member = Member::new(Arc::new(config()));
    enter(&mut member, now, 5, &[on(0)]);
    expect_heartbeat(&mut member, now);
    member.heartbeat_answered(now, heartbeat_response(0));
    assert!(matches!(member.next(now), Next::Sync(_)));
    member.sync_answered(now, &SyncGroupResponse { error_code: UNKNOWN_MEMBER_ID, ..SyncGroupResponse::default() });
    assert_eq!(member.last_heartbeat_sent_and_answered(), None);
    assert!(matches!(events(&mut member)[..], [GroupEvent::Assigned { .. }, GroupEvent::Lost { .. }]));
}

#[test]
fn an_eager_member_releases_everything_before_it_joins() {
    let now = Instant::now();
    let assignors = vec![Assignor::CooperativeSticky, Assignor::Range];
    let mut member = stable(GroupConfig { assignors, ..config() }, now);
    expect_heartbeat(&mut member, now + SECOND);
    member.heartbeat_answered(now + SECOND, heartbeat_response(REBALANCE_IN_PROGRESS));
    assert!(matches!(member.next(now + SECOND), Next::Wait(_)));
    let [GroupEvent::Revoke { partitions, token }] = &events(&mut member)[..] else { panic!("no revocation") };
    assert_eq!(partitions[..], [on(0), on(1)]);
    // Heartbeats go on meanwhile.
    expect_heartbeat(&mut member, now + 2 * SECOND);
    member.heartbeat_answered(now + 2 * SECOND, heartbeat_response(REBALANCE_IN_PROGRESS));
    member.released(*token);
    let request = expect_join(&mut member, now + 2 * SECOND);
    assert_eq!(claims(&request).0, []);
    assert_eq!(request.protocols.len(), 2);
}

#[test]
fn fatal_errors_end_the_member_with_their_name() {
    let now = Instant::now();
    let fatal = [
        FENCED_INSTANCE_ID,
        GROUP_AUTHORIZATION_FAILED,
        GROUP_MAX_SIZE_REACHED,
        INCONSISTENT_GROUP_PROTOCOL,
        INVALID_SESSION_TIMEOUT,
        999,
    ];
    for code in fatal {
        let mut member = stable(config(), now);
        member.commit_refused(now, REBALANCE_IN_PROGRESS, 5);
        expect_join(&mut member, now);
        member.join_answered(now, join_response(code, -1));
        assert!(matches!(member.next(now), Next::Ended));
        let [GroupEvent::Lost { reason: LostReason::Failed, .. }, GroupEvent::Failed { reason }] =
            &events(&mut member)[..]
        else {
            panic!("no failure")
        };
        assert!(reason.contains(&*name(code)), "{reason}");
        assert_eq!(member.leave(true), None);
    }
}

#[test]
fn errors_of_the_coordinator_are_retried_and_looked_up_without_a_loss() {
    let now = Instant::now();
    let cases = [(COORDINATOR_LOAD_IN_PROGRESS, false), (COORDINATOR_NOT_AVAILABLE, true), (NOT_COORDINATOR, true)];
    for (code, is_unknown) in cases {
        let mut member = stable(config(), now);
        member.take_coordinator_is_unknown();
        expect_heartbeat(&mut member, now + SECOND);
        member.heartbeat_answered(now + SECOND, heartbeat_response(code));
        assert_eq!(member.take_coordinator_is_unknown(), is_unknown);
        assert!(matches!(member.next(now + SECOND), Next::Wait(_)));
        expect_heartbeat(&mut member, now + 2 * SECOND);
        member.heartbeat_answered(now + 2 * SECOND, heartbeat_response(REBALANCE_IN_PROGRESS));
        expect_join(&mut member, now + 2 * SECOND);
        member.join_answered(now + 2 * SECOND, join_response(code, -1));
        assert_eq!(member.take_coordinator_is_unknown(), is_unknown);
        assert_eq!(claims(&expect_join(&mut member, now + 3 * SECOND)).0, [on(0), on(1)]);
        assert_eq!(events(&mut member), []);
    }
}

#[test]
fn the_leader_assigns_and_follows_up_if_partitions_stay_withheld() {
    let now = Instant::now();
    let mut member = Member::new(Arc::new(config()));
    expect_join(&mut member, now);
    let subscription = |owned: &[i32]| Subscription {
        topics: vec!["t".into()],
        owned: owned.iter().map(|partition| on(*partition)).collect(),
        generation: 3,
        ..Subscription::default()
    };
    let joined = |id: &str, owned: &[i32]| JoinedMember {
        member_id: id.into(),
        instance_id: None,
        metadata: subscription(owned).encode(),
    };
    let members = vec![joined("me", &[]), joined("other", &[0, 1])];
    member.join_answered(now, JoinGroupResponse { leader: "me".into(), members, ..join_response(0, 4) });
    assert!(matches!(member.next(now), Next::PartitionCounts(topics) if topics.contains("t")));
    member.set_partition_counts([("t".into(), 2)].into());
    let Next::Sync(request) = member.next(now) else { panic!("no sync") };
    let assigned: Vec<_> =
        request.assignments.iter().map(|(id, bytes)| (&**id, decode_assignment(bytes).unwrap().len())).collect();
    assert_eq!(assigned, [("me", 0), ("other", 1)]);
    member.sync_answered(now, &SyncGroupResponse::default());
    for second in 0..10 {
        let time = now + SECOND * second;
        expect_heartbeat(&mut member, time);
        member.heartbeat_answered(time, heartbeat_response(0));
        if second == 0 {
            confirm(&mut member, time, &[]);
        }
    }
    expect_join(&mut member, now + 10 * SECOND);
}

#[test]
fn static_members_leave_only_for_good() {
    let now = Instant::now();
    let is_static = || GroupConfig { instance_id: Some("i".into()), ..config() };
    assert!(stable(config(), now).leave(false).is_some());
    assert_eq!(stable(is_static(), now).leave(false), None);
    let request = stable(is_static(), now).leave(true).expect("it leaves");
    assert_eq!(request.instance_id.as_deref(), Some("i"));
    assert_eq!(Member::new(Arc::new(config())).leave(true), None);
}

#[test]
fn malformed_data_of_another_member_ends_the_member() {
    let now = Instant::now();
    let mut member = Member::new(Arc::new(config()));
    expect_join(&mut member, now);
    let members = vec![JoinedMember { metadata: vec![0xff; 9], ..JoinedMember::default() }];
    member.join_answered(now, JoinGroupResponse { leader: "me".into(), members, ..join_response(0, 4) });
    assert!(matches!(member.next(now), Next::Ended));
}
