//! The command `StoreNow` beside commits whose result is not known yet, or never: a seek goes on when the receipt is
//! there.

use super::*;

fn store_now(claim: &Claim, next: Offset) -> GroupCommand {
    let log = LogIdentity::default();
    GroupCommand::StoreNow { partition: claim.partition, generation: claim.generation, next, log }
}

#[test]
fn a_position_is_stored_also_if_it_is_the_one_before_a_commit_without_a_response() {
    for refused in [Refused::Lost, Refused::Stored, Refused::StoredLate] {
        let brokers = Rig::brokers(Some(1));
        let rig = Rig::start(&brokers);
        let claim = rig.assign(&[0]).remove(&0).unwrap();
        rig.commands.send(commit(&claim, 50));
        rig.wait_for_offset(0, 50);
        let n_commits = {
            let mut brokers = brokers.lock().unwrap();
            (brokers.refusal, brokers.refused) = (Some(CommitError::Failed("no response".into())), refused);
            brokers.n_commits
        };
        rig.commands.send(commit(&claim, 90));
        wait_until("the commit is attempted", || brokers.lock().unwrap().n_commits > n_commits);
        let receipts = &rig.observers.receipts;
        receipts.forget(0);
        rig.commands.send(store_now(&claim, 50));
        let n_commits = brokers.lock().unwrap().n_commits;
        wait_until("the position is attempted", || brokers.lock().unwrap().n_commits > n_commits);
        assert!(!receipts.has(0, claim.generation, 50), "{refused:?}");
        brokers.lock().unwrap().refusal = None;
        wait_until("it is stored", || receipts.has(0, claim.generation, 50));
        brokers.lock().unwrap().carry_out_late();
        assert_eq!(rig.committed(0).unwrap().offset, 50, "{refused:?}");
        rig.leave();
    }
}

#[test]
fn a_commit_in_flight_with_messages_done_ahead_is_no_receipt_of_a_position() {
    let brokers = Rig::brokers(Some(1));
    let rig = Rig::start(&brokers);
    let claim = rig.assign(&[0]).remove(&0).unwrap();
    rig.commands.send(commit(&claim, 50));
    rig.wait_for_offset(0, 50);
    let ranges: Arc<[Range<Offset>]> = [105..130, 140..150].into();
    let (partition, generation, topic_id) = (0, claim.generation, None);
    rig.commands.send(GroupCommand::DoneAhead { partition, generation, topic_id, ranges, read_epoch: None });
    wait_until("the messages ahead are stored", || !metadata_of(&rig.committed(0).unwrap()).ranges.is_empty());
    let (receipts, commands, position) = (rig.observers.receipts.clone(), rig.commands.clone(), store_now(&claim, 100));
    let state = Arc::clone(&brokers);
    let n_commits = {
        let mut brokers = brokers.lock().unwrap();
        brokers.in_commit = Some(Box::new(move || {
            receipts.forget(0);
            commands.send(position);
            state.lock().unwrap().refusal = Some(CommitError::Failed("no response".into()));
        }));
        brokers.n_commits
    };
    rig.commands.send(commit(&claim, 100));
    wait_until("the position is attempted", || brokers.lock().unwrap().n_commits > n_commits + 1);
    assert!(!rig.observers.receipts.has(0, generation, 100), "the messages ahead are still stored");
    brokers.lock().unwrap().refusal = None;
    wait_until("it is stored", || rig.observers.receipts.has(0, generation, 100));
    assert!(metadata_of(&rig.committed(0).unwrap()).ranges.is_empty());
    rig.leave();
}
