//! Tests of the assignment in groups of several kinds of members, with an in-memory ensemble.

use super::tests::*;
use super::*;
use crate::keeper::in_memory::InMemoryEnsemble;
use crate::keeper::paths::{self, create_with_parents};
use crate::keeper::{Keeper, Lifetime};
use crate::ktransfer::group::GroupCommand;

/// Registers a member by hand, as the original does with `{"t":1}`.
fn register(keeper: &dyn Keeper, id: &str, registration: &str) {
    let path = format!("/consumers/g/ids/{id}");
    create_with_parents(keeper, &path, registration.as_bytes(), Lifetime::Ephemeral).unwrap();
}

#[test]
fn a_member_of_another_topic_gets_no_partition() {
    let ensemble = InMemoryEnsemble::new();
    let observer = ensemble.connect(SESSION);
    create_topic(&*observer, &[1, 1, 1, 1]);
    register(&*observer, "a:1", r#"{"version":1,"subscription":{"OTHER":1},"pattern":"static","timestamp":"0"}"#);
    let one = RunningMember::start(&ensemble);
    one.gains(&[0, 1, 2, 3]);
    let other = RunningMember::reading(&ensemble, "u", Duration::from_millis(50));
    assert!(one.events.recv_timeout(SESSION).is_err(), "nothing moves to a ktransfer of another topic");
    other.leave();
    one.leave();
}

#[test]
fn an_owner_node_that_nobody_deletes_is_named() {
    let ensemble = InMemoryEnsemble::new();
    let observer = ensemble.connect(SESSION);
    create_topic(&*observer, &[1, 1]);
    // Of no session, so it vanishes with none.
    create_with_parents(&*observer, "/consumers/g/owners/t/1", b"gone:1", Lifetime::Persistent).unwrap();
    let keeper: SharedKeeper = ensemble.connect(SESSION);
    let config = ZookeeperGroupConfig {
        group: "g".into(),
        topic: "t".into(),
        offset_update_interval: PATIENCE,
        leave_timeout: SESSION,
    };
    let mut group = ZookeeperGroup::new(config, Arc::clone(&keeper), Leases::new(keeper));
    let turn = |group: &mut ZookeeperGroup| {
        group.round().unwrap();
        group.claim_some().unwrap();
        group.pending_events.clear();
        // As if the dispatcher had received where they begin.
        group.held.values_mut().for_each(|held| held.progress.stored = Some(0));
    };
    turn(&mut group);
    assert!(group.foreign_since.contains_key(&1) && group.state(Instant::now()).is_ok(), "a hand-over takes a while");
    group.foreign_since.insert(1, Instant::now().checked_sub(15 * PATIENCE).unwrap());
    turn(&mut group);
    let trouble = group.state(Instant::now()).unwrap_err();
    assert!(trouble.contains("partitions [1] of topic t") && trouble.contains("/consumers/g/owners/t/1"), "{trouble}");
    observer.delete("/consumers/g/owners/t/1", 0).unwrap();
    turn(&mut group);
    assert!(group.held.contains_key(&1) && group.state(Instant::now()).is_ok());
}

#[test]
fn beside_the_original_the_range_assignor_is_used() {
    let original = r#"{"pattern":"static","subscription":{"t":1},"timestamp":1400000000,"version":1}"#;
    // Ids of ktransfers begin with the name of the host, so "!" is before and "~" after them.
    for (id, registration, ours) in [("!:1", original, [0, 2]), ("~:1", original, [1, 3]), ("~:1", "", [1, 3])] {
        let ensemble = InMemoryEnsemble::new();
        let observer = ensemble.connect(SESSION);
        // By leader: partitions 1 and 3, then 0 and 2. The sticky assignor would assign 0 and 1, or 2 and 3.
        create_topic(&*observer, &[2, 1, 2, 1]);
        register(&*observer, id, registration);
        let one = RunningMember::start(&ensemble);
        one.gains(&ours);
        for theirs in (0..4).filter(|partition| !ours.contains(partition)) {
            let owner = paths::owner("g", "t", theirs);
            create_with_parents(&*observer, &owner, id.as_bytes(), Lifetime::Ephemeral).unwrap();
        }
        assert!(one.events.recv_timeout(SESSION).is_err());
        // The original leaves.
        ensemble.expire(&observer);
        one.gains(&(0..4).filter(|partition| !ours.contains(partition)).collect::<Vec<_>>());
        one.leave();
    }
}

#[test]
fn a_join_moves_only_the_share_of_the_new_member() {
    let ensemble = InMemoryEnsemble::new();
    create_topic(&*ensemble.connect(SESSION), &[1; 8]);
    let (one, two) = (RunningMember::start(&ensemble), RunningMember::start(&ensemble));
    let members = [&one, &two];
    let mut moves = 0;
    let mut owned = [0_usize; 2];
    // The two members may join at the same time or not; in the end each has four.
    let deadline = Instant::now() + PATIENCE;
    while owned != [4, 4] {
        assert!(Instant::now() < deadline, "{owned:?}");
        for (owned, member) in owned.iter_mut().zip(members) {
            member.answer_events(owned, &mut moves);
        }
    }
    let three = RunningMember::start(&ensemble);
    let mut joined = 0;
    moves = 0;
    while joined < 2 {
        assert!(Instant::now() < deadline, "{owned:?} {joined}");
        for (owned, member) in owned.iter_mut().zip(members) {
            member.answer_events(owned, &mut moves);
        }
        three.answer_events(&mut joined, &mut moves);
    }
    assert_eq!((moves, owned, joined), (2, [3, 3], 2));
    for member in [one, two, three] {
        member.leave();
    }
}

#[test]
fn many_partitions_are_claimed_while_a_commit_is_stored() {
    let ensemble = InMemoryEnsemble::new();
    create_topic(&*ensemble.connect(SESSION), &[1; 100]);
    let one = RunningMember::storing_every(&ensemble, 100 * PATIENCE);
    let GroupEvent::Gained(first) = one.next() else { panic!("expected a claim") };
    one.commands.send(GroupCommand::Commit { partition: first.partition, generation: first.generation, next: 7 });
    let path = paths::offset("g", "t", first.partition);
    // The dispatcher receives no event, so the round is not over.
    one.wait_for_text(&path, "7");
    one.gains(&(0..100).filter(|partition| *partition != first.partition).collect::<Vec<_>>());
    one.leave();
}
