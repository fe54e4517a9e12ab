//! Pauses of operators: stored with the offsets, followed by every member, and never dropped.

use super::*;
use crate::ktransfer::pauses::{PauseChange, PauseMark, PauseStoreError};

fn mark(by: &str) -> PauseMark {
    PauseMark { by: by.to_owned(), at_ms: 7 }
}

fn pause(partition: Option<PartitionId>) -> PauseChange {
    PauseChange::Pause(partition, mark("ann"))
}

impl Rig {
    fn change(&self, change: &PauseChange) -> Result<(), PauseStoreError> {
        self.observers.pauses.change(change)
    }

    /// Makes a change whose commits get no answer.
    fn change_without_answer(&self, change: &PauseChange, refused: Refused) {
        let refusal = Some(CommitError::Failed("no response".into()));
        {
            let mut brokers = self.brokers.lock().unwrap();
            (brokers.refusal, brokers.refused) = (refusal, refused);
        }
        let answer = self.observers.pauses.change_within(change, Duration::from_millis(1));
        assert!(matches!(&answer, Err(PauseStoreError::Unknown(_))), "{answer:?}");
        self.brokers.lock().unwrap().refusal = None;
    }

    /// Whether the commit of the partition has its pause.
    fn is_pause_committed(&self, partition: PartitionId) -> bool {
        self.committed(partition).is_some_and(|of| metadata_of(&of).pauses.is_paused())
    }

    /// Assigns partitions and stores an offset of each.
    fn begin(&self, partitions: &[PartitionId]) -> BTreeMap<PartitionId, Claim> {
        let claims = self.assign(partitions);
        for (partition, claim) in &claims {
            self.commands.send(commit(claim, 50));
            self.wait_for_offset(*partition, 50);
        }
        claims
    }
}

#[test]
fn a_pause_of_a_partition_is_committed_before_it_is_answered_and_found_by_the_next_owner() {
    let brokers = Rig::brokers(Some(2));
    let one = Rig::start(&brokers);
    let claims = one.begin(&[0, 1]);
    assert_eq!(one.change(&pause(Some(1))), Ok(()));
    assert!(one.is_pause_committed(1) && !one.is_pause_committed(0), "there was nothing else to commit");
    assert!(one.observers.pauses.is_paused(1) && !one.observers.pauses.is_paused(0));
    // What is on the wire ends, and later commits keep the pause.
    one.commands.send(commit(&claims[&1], 90));
    one.wait_for_offset(1, 90);
    assert!(one.is_pause_committed(1));
    // A crash.
    drop(one);
    let two = Rig::start(&brokers);
    assert!(two.observers.pauses.holds_new_claim(0), "nothing is known yet");
    two.assign(&[0, 1]);
    assert!(two.observers.pauses.is_paused(1) && !two.observers.pauses.holds_new_claim(0));
    assert_eq!(two.observers.pauses.present().of(1), Some(&mark("ann")));
    assert_eq!(two.change(&PauseChange::Resume(Some(1))), Ok(()));
    assert!(!two.is_pause_committed(1) && !two.observers.pauses.is_paused(1));
    let refused = two.change(&pause(Some(7)));
    assert!(
        matches!(&refused, Err(PauseStoreError::NotStored(reason)) if reason.contains("partition 7")),
        "{refused:?}"
    );
    two.leave();
}

#[test]
fn a_pause_of_the_module_reaches_other_members_and_later_claims_and_so_does_the_resume() {
    let brokers = Rig::brokers(Some(4));
    let (one, two) = (Rig::start(&brokers), Rig::start(&brokers));
    one.begin(&[0, 1]);
    two.begin(&[2]);
    assert_eq!(two.change(&pause(Some(2))), Ok(()));
    assert_eq!(one.change(&pause(None)), Ok(()));
    assert!(one.is_pause_committed(0) || one.is_pause_committed(1));
    wait_until("the other member follows", || two.observers.pauses.is_paused(2));
    wait_until("every commit has it", || (0..3).all(|partition| one.is_pause_committed(partition)));
    // A partition without an offset, of a member that comes later.
    let three = Rig::start(&brokers);
    three.assign(&[3]);
    assert!(three.observers.pauses.is_paused(3));
    // A resume ends the pauses of single partitions, too, whoever owns them.
    assert_eq!(one.change(&PauseChange::Resume(None)), Ok(()));
    assert!(!one.observers.pauses.is_paused(0));
    wait_until("the others follow", || !two.observers.pauses.is_paused(2) && !three.observers.pauses.is_paused(3));
    wait_until("no commit has it", || !(0..3).any(|partition| one.is_pause_committed(partition)));
    for rig in [one, two, three] {
        rig.leave();
    }
}

#[test]
fn a_change_waits_for_a_rebalance_and_is_followed_only_when_it_is_stored() {
    let brokers = Rig::brokers(Some(1));
    let rig = Rig::start(&brokers);
    rig.begin(&[0]);
    for change in [pause(None), PauseChange::Resume(None)] {
        let was_paused = rig.observers.pauses.is_paused(0);
        brokers.lock().unwrap().refusal = Some(CommitError::Failed("REBALANCE_IN_PROGRESS".into()));
        let n_commits = brokers.lock().unwrap().n_commits;
        let pauses = rig.observers.pauses.clone();
        let changing = std::thread::spawn(move || pauses.change(&change));
        wait_until("it is attempted twice", || brokers.lock().unwrap().n_commits > n_commits + 1);
        assert_eq!(rig.observers.pauses.is_paused(0), was_paused);
        brokers.lock().unwrap().refusal = None;
        assert_eq!(changing.join().unwrap(), Ok(()));
        assert_eq!((rig.observers.pauses.is_paused(0), rig.is_pause_committed(0)), (!was_paused, !was_paused));
    }
    rig.leave();
}

#[test]
fn a_change_that_cannot_be_kept_is_refused() {
    // Nothing to keep it beside.
    let standby = Rig::start(&Rig::brokers(Some(1)));
    standby.send(MembershipEvent::Proven(Instant::now()));
    wait_until("the group has joined", || standby.health.troubles().is_empty());
    assert_eq!(standby.observers.pauses.check(&PauseChange::Resume(None)), Ok(()), "nothing to change");
    let refused = standby.change(&pause(None));
    assert_eq!(standby.observers.pauses.check(&pause(None)), refused, "a dry run");
    assert!(matches!(&refused, Err(PauseStoreError::NotStored(reason)) if reason.contains("owns no")), "{refused:?}");
    standby.leave();
    // Brokers that keep no text.
    let brokers = Rig::brokers(Some(1));
    brokers.lock().unwrap().max_metadata_bytes = 20;
    let rig = Rig::start(&brokers);
    rig.begin(&[0]);
    let refused = rig.change(&pause(None));
    assert_eq!(rig.observers.pauses.check(&pause(None)), refused, "a dry run");
    let names_key = |reason: &str| reason.contains("offset.metadata.max.bytes");
    assert!(matches!(&refused, Err(PauseStoreError::NotStored(reason)) if names_key(reason)), "{refused:?}");
    assert!(!rig.observers.pauses.is_paused(0));
    rig.leave();
}

#[test]
fn a_dry_run_changes_nothing() {
    let brokers = Rig::brokers(Some(1));
    let rig = Rig::start(&brokers);
    rig.begin(&[0]);
    let n_commits = brokers.lock().unwrap().n_commits;
    for change in [pause(None), pause(Some(0))] {
        assert_eq!(rig.observers.pauses.check(&change), Ok(()));
    }
    assert_eq!(brokers.lock().unwrap().n_commits, n_commits);
    assert!(!rig.observers.pauses.is_paused(0));
    assert_eq!(rig.change(&pause(None)), Ok(()));
    let refused = rig.observers.pauses.check(&PauseChange::Resume(Some(0)));
    assert_eq!(refused, Err(PauseStoreError::ModulePaused));
    rig.leave();
}

#[test]
fn a_pause_outlives_brokers_that_keep_less_text_and_is_never_overwritten_without_it() {
    let brokers = Rig::brokers(Some(1));
    let rig = Rig::start(&brokers);
    let claim = rig.begin(&[0]).remove(&0).unwrap();
    let (partition, generation) = (0, claim.generation);
    let log = LogIdentity { topic_id: Some([9; 16]), leader_epoch: Some(4) };
    rig.commands.send(GroupCommand::StoreNow { partition, generation, next: 50, log });
    assert_eq!(rig.change(&pause(None)), Ok(()));
    let ranges: Arc<[Range<Offset>]> = (0..4_000).map(|number| 100 + 2 * number..101 + 2 * number).collect();
    brokers.lock().unwrap().max_metadata_bytes = 50;
    let (topic_id, read_epoch) = (log.topic_id, Some(6));
    rig.commands.send(GroupCommand::DoneAhead { partition, generation, topic_id, ranges, read_epoch });
    rig.commands.send(commit(&claim, 60));
    rig.wait_for_offset(0, 60);
    assert!(rig.is_pause_committed(0) && rig.committed(0).unwrap().metadata.len() <= 50);
    brokers.lock().unwrap().max_metadata_bytes = 10;
    let n_commits = brokers.lock().unwrap().n_commits;
    rig.commands.send(commit(&claim, 70));
    wait_until("it is attempted", || brokers.lock().unwrap().n_commits > n_commits);
    let report = rig.leave().join("");
    assert!(report.contains("0 at 70 (stored: 60)") && report.contains("offset.metadata.max.bytes"), "{report}");
    assert!(metadata_of(&brokers.lock().unwrap().offsets[&0]).pauses.is_paused());
    // The next owner does not claim it without its pause.
    let next = Rig::start(&brokers);
    next.send(MembershipEvent::Assigned(vec![0]));
    next.send(MembershipEvent::Proven(Instant::now()));
    wait_until("the reason is known", || {
        next.health.troubles().iter().any(|(_, reason)| reason.contains("not claimed yet"))
    });
    assert!(metadata_of(&brokers.lock().unwrap().offsets[&0]).pauses.is_paused());
    brokers.lock().unwrap().max_metadata_bytes = 4096;
    next.leave();
}

/// What follows an operation of unknown result: each operation is answered when its result is certain.
#[test]
fn an_operation_after_one_of_unknown_result_is_answered_when_it_is_stored() {
    for partition in [Some(1), None] {
        for refused in [Refused::Lost, Refused::Stored, Refused::StoredLate] {
            for repeats in [false, true] {
                let case = format!("{partition:?}, {refused:?}, repeats: {repeats}");
                let (pause, resume) = (pause(partition), PauseChange::Resume(partition));
                let brokers = Rig::brokers(Some(2));
                let rig = Rig::start(&brokers);
                rig.begin(&[0, 1]);
                rig.change_without_answer(&pause, refused);
                let next = if repeats { &pause } else { &resume };
                assert_eq!(rig.change(next), Ok(()), "{case}");
                assert_stored(&brokers, repeats, &case);
                assert_eq!(rig.observers.pauses.is_paused(1), repeats, "{case}");

                // The same with the resume.
                assert_eq!(rig.change(&pause), Ok(()), "{case}");
                rig.change_without_answer(&resume, refused);
                let next = if repeats { &resume } else { &pause };
                assert_eq!(rig.change(next), Ok(()), "{case}");
                assert_stored(&brokers, !repeats, &case);
                assert_eq!(rig.observers.pauses.is_paused(1), !repeats, "{case}");
                rig.leave();
            }
        }
    }
}

/// Checks whether the next owner of partition 1 finds it paused.
fn assert_stored(brokers: &Arc<Mutex<Brokers>>, is_paused: bool, case: &str) {
    let (offsets, n_partitions) = {
        let mut brokers = brokers.lock().unwrap();
        brokers.carry_out_late();
        (brokers.offsets.clone(), brokers.n_partitions)
    };
    let after_crash = Rig::brokers(n_partitions);
    after_crash.lock().unwrap().offsets = offsets;
    let next = Rig::start(&after_crash);
    next.assign(&[0, 1]);
    assert_eq!(next.observers.pauses.is_paused(1), is_paused, "{case}");
    next.leave();
}

#[test]
fn an_operation_of_unknown_result_is_settled_without_another_one() {
    for refused in [Refused::Lost, Refused::Stored] {
        let brokers = Rig::brokers(Some(2));
        let rig = Rig::start(&brokers);
        rig.begin(&[0, 1]);
        rig.change_without_answer(&pause(Some(1)), refused);
        let n_commits = brokers.lock().unwrap().n_commits;
        wait_until("what is stored is made certain", || brokers.lock().unwrap().n_commits > n_commits);
        wait_until("it is what the member follows", || rig.is_pause_committed(1) == rig.observers.pauses.is_paused(1));
        rig.leave();
    }
}

/// An instance that does not know pauses commits its partitions without them.
#[test]
fn a_change_counts_as_the_latest_after_another_program_has_erased_the_numbers() {
    let brokers = Rig::brokers(Some(4));
    let (one, two) = (Rig::start(&brokers), Rig::start(&brokers));
    one.begin(&[0, 1]);
    two.assign(&[2]);
    assert_eq!(one.change(&pause(None)), Ok(()));
    wait_until("the other member follows", || two.observers.pauses.is_paused(2));
    assert_eq!(one.change(&PauseChange::Resume(None)), Ok(()));
    wait_until("the other member follows", || !two.observers.pauses.is_paused(2));
    one.leave();
    let erase = || {
        let mut brokers = brokers.lock().unwrap();
        brokers.offsets = (0..4).map(|partition| (partition, offset(partition, 50, "kt1;o=50;t=1"))).collect();
    };
    erase();
    // Two members that know nothing of the changes before.
    let three = Rig::start(&brokers);
    three.assign(&[0, 3]);
    assert_eq!(three.change(&pause(Some(3))), Ok(()));
    wait_until("the other member knows it", || two.observers.pauses.is_paused(3));
    assert_eq!(three.change(&pause(None)), Ok(()));
    wait_until("the other member follows", || two.observers.pauses.is_paused(2));
    assert_eq!(three.change(&PauseChange::Resume(None)), Ok(()));
    wait_until("the other member follows", || !two.observers.pauses.is_paused(2) && !two.observers.pauses.is_paused(3));
    two.leave();
    three.leave();
}

#[test]
fn a_pause_that_another_program_has_erased_is_stored_again_when_it_is_repeated() {
    let brokers = Rig::brokers(Some(3));
    let (one, two) = (Rig::start(&brokers), Rig::start(&brokers));
    one.begin(&[0]);
    two.begin(&[1]);
    assert_eq!(one.change(&pause(None)), Ok(()));
    wait_until("every commit has it", || two.observers.pauses.is_paused(1) && two.is_pause_committed(1));
    one.leave();
    // Its partition goes to an instance that does not know pauses; the other one loses its partition to it, too.
    two.send(MembershipEvent::Revoked(vec![1], ReleaseToken::for_tests(1)));
    let GroupEvent::Releasing { partition, generation } = two.next() else { panic!("expected a release") };
    two.commands.send(GroupCommand::Release { partition, generation, next: Some(60) });
    wait_until("the partition is given up", || brokers.lock().unwrap().released.len() == 1);
    let erased = |partition| (partition, offset(partition, 60, "kt1;o=60;t=1"));
    brokers.lock().unwrap().offsets = [erased(0), erased(1)].into();
    two.assign(&[1]);
    assert!(two.is_pause_committed(1), "the claim has what the member knows");
    brokers.lock().unwrap().offsets = [erased(0), erased(1)].into();
    assert_eq!(two.change(&pause(None)), Ok(()));
    assert!(two.is_pause_committed(1));
    two.leave();
}
