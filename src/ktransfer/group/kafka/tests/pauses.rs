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
    let refused = standby.change(&pause(None));
    assert!(matches!(&refused, Err(PauseStoreError::NotStored(reason)) if reason.contains("owns no")), "{refused:?}");
    standby.leave();
    // Brokers that keep no text.
    let brokers = Rig::brokers(Some(1));
    brokers.lock().unwrap().max_metadata_bytes = 20;
    let rig = Rig::start(&brokers);
    rig.begin(&[0]);
    let refused = rig.change(&pause(None));
    let names_key = |reason: &str| reason.contains("offset.metadata.max.bytes");
    assert!(matches!(&refused, Err(PauseStoreError::NotStored(reason)) if names_key(reason)), "{refused:?}");
    assert!(!rig.observers.pauses.is_paused(0));
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
    brokers.lock().unwrap().max_metadata_bytes = 40;
    let (topic_id, read_epoch) = (log.topic_id, Some(6));
    rig.commands.send(GroupCommand::DoneAhead { partition, generation, topic_id, ranges, read_epoch });
    rig.commands.send(commit(&claim, 60));
    rig.wait_for_offset(0, 60);
    assert!(rig.is_pause_committed(0) && rig.committed(0).unwrap().metadata.len() <= 40);
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
