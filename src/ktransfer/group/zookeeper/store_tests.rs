//! Tests of what a group stores, also when ZooKeeper fails, with an in-memory ensemble.

use super::tests::*;
use super::*;
use crate::broker::LogIdentity;
use crate::keeper::in_memory::InMemoryEnsemble;
use crate::keeper::paths::{self, create_with_parents};
use crate::keeper::{Keeper, Lifetime};
use crate::ktransfer::group::{GroupCommand, StoredPosition};

#[test]
fn messages_done_ahead_are_stored_beside_a_stuck_offset_and_found_by_the_next_owner() {
    let ensemble = InMemoryEnsemble::new();
    create_topic(&*ensemble.connect(SESSION), &[1]);
    // Only the snapshots are stored before the leave, not the commits.
    let one = RunningMember::storing_every(&ensemble, 100 * PATIENCE);
    let (generation, _) = one.gains(&[0])[&0];
    one.commands.send(GroupCommand::Commit { partition: 0, generation, next: 50 });
    let ranges: Arc<[_]> = [60..100, 120..130].into();
    let topic_id = Some([9; 16]);
    let (partition, read_epoch) = (0, Some(3));
    one.commands.send(GroupCommand::DoneAhead {
        partition,
        generation,
        topic_id,
        ranges: Arc::clone(&ranges),
        read_epoch,
    });
    let path = paths::ahead("g", "t", 0);
    let deadline = Instant::now() + PATIENCE;
    while one.read(&path).is_none_or(|node| !String::from_utf8_lossy(&node.data).contains("10+40 20+10")) {
        assert!(Instant::now() < deadline, "{path} is {:?}", one.read(&path));
        std::thread::yield_now();
    }
    // A crash: the claim ends without a leave.
    one.keeper.set_reachable(false);
    ensemble.expire(&one.keeper);
    let two = RunningMember::start(&ensemble);
    let GroupEvent::Gained(claim) = two.next() else { panic!("expected the claim") };
    let position = claim.position.expect("an offset is stored");
    let StoredPosition { next, done_ahead, .. } = position;
    assert_eq!((next, position.topic_id, done_ahead, position.read_epoch), (50, topic_id, ranges, read_epoch));
    two.leave();
    one.keeper.set_reachable(true);
    one.leave();
}

#[test]
fn a_commit_point_that_moved_far_is_stored_before_the_store_interval() {
    let ensemble = InMemoryEnsemble::new();
    create_topic(&*ensemble.connect(SESSION), &[1]);
    let one = RunningMember::storing_every(&ensemble, 100 * PATIENCE);
    let (generation, _) = one.gains(&[0])[&0];
    for next in [50, 54, 90] {
        one.commands.send(GroupCommand::Commit { partition: 0, generation, next });
        one.wait_for_text("/consumers/g/offsets/t/0", &next.to_string());
    }
    one.leave();
}

#[test]
fn a_leave_that_cannot_store_or_release_reports_partitions_and_offsets() {
    let ensemble = InMemoryEnsemble::new();
    create_topic(&*ensemble.connect(SESSION), &[1, 1]);
    let one = RunningMember::storing_every(&ensemble, 100 * PATIENCE);
    let gained = one.gains(&[0, 1]);
    one.commands.send(GroupCommand::Commit { partition: 1, generation: gained[&1].0, next: 50 });
    one.wait_for_text("/consumers/g/offsets/t/1", "50");
    one.commands.send(GroupCommand::Commit { partition: 1, generation: gained[&1].0, next: 52 });
    one.keeper.set_reachable(false);
    let report = one.report.clone();
    one.leave();
    let failures = report.take().join("\n");
    for words in ["group g", "1 at 52 (stored: 50)", "not released before the session ends: 0, 1", "unreachable"] {
        assert!(failures.contains(words), "{words:?} is missing in {failures:?}");
    }
}

#[test]
fn an_offset_that_is_no_number_is_not_guessed_and_read_when_it_is_corrected() {
    let ensemble = InMemoryEnsemble::new();
    let observer = ensemble.connect(SESSION);
    create_topic(&*observer, &[1, 1]);
    create_with_parents(&*observer, "/consumers/g/offsets/t/0", b"4 2", Lifetime::Persistent).unwrap();
    let one = RunningMember::start(&ensemble);
    one.gains(&[1]);
    one.wait_for_health(Some("correct the data of node /consumers/g/offsets/t/0"));
    assert!(one.events.recv_timeout(SESSION).is_err());
    observer.write("/consumers/g/offsets/t/0", b"42", 0).unwrap();
    assert_eq!(one.gains(&[0])[&0].1, Some(42));
    one.leave();
}

#[test]
fn an_uncertain_store_ends_no_claim() {
    let ensemble = InMemoryEnsemble::new();
    create_topic(&*ensemble.connect(SESSION), &[1]);
    let one = RunningMember::start(&ensemble);
    let (generation, _) = one.gains(&[0])[&0];
    for next in [5, 6, 7] {
        one.keeper.lose_responses(1);
        one.commands.send(GroupCommand::Commit { partition: 0, generation, next });
        one.wait_for_text("/consumers/g/offsets/t/0", &next.to_string());
    }
    assert!(one.events.recv_timeout(SESSION / 2).is_err());
    assert!(one.lease_is_valid(0, generation));
    one.leave();
}

#[test]
fn a_position_is_stored_also_if_it_is_the_one_before_a_store_without_a_response() {
    let ensemble = InMemoryEnsemble::new();
    create_topic(&*ensemble.connect(SESSION), &[1]);
    let one = RunningMember::storing_every(&ensemble, 100 * PATIENCE);
    let (generation, _) = one.gains(&[0])[&0];
    let (path, ahead, partition, topic_id) = ("/consumers/g/offsets/t/0", paths::ahead("g", "t", 0), 0, None);
    one.commands.send(GroupCommand::Commit { partition, generation, next: 50 });
    one.wait_for_text(path, "50");
    one.keeper.lose_responses(1);
    one.commands.send(GroupCommand::Commit { partition, generation, next: 90 });
    one.wait_for_text(path, "90");
    let log = LogIdentity::default();
    one.commands.send(GroupCommand::StoreNow { partition, generation, next: 50, log });
    one.wait_for_text(path, "50");
    // The same with what is done ahead of the offset.
    one.keeper.lose_responses(1);
    let ranges: Arc<[_]> = [105..130, 140..150].into();
    one.commands.send(GroupCommand::DoneAhead { partition, generation, topic_id, ranges, read_epoch: None });
    let has_ahead = || one.read(&ahead).is_some_and(|node| String::from_utf8_lossy(&node.data).contains("+25"));
    let wait_for_ahead = |is_stored: bool| {
        let deadline = Instant::now() + PATIENCE;
        while has_ahead() != is_stored {
            assert!(Instant::now() < deadline, "{ahead} is {:?}", one.read(&ahead));
            std::thread::yield_now();
        }
    };
    wait_for_ahead(true);
    one.commands.send(GroupCommand::StoreNow { partition, generation, next: 50, log });
    wait_for_ahead(false);
    one.leave();
}
