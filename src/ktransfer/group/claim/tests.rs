use super::*;
use crate::keeper::in_memory::{InMemoryEnsemble, InMemoryKeeper};
use std::sync::Arc;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(6);
const OFFSET: &str = "/consumers/g/offsets/t/0";
const AHEAD: &str = "/consumers/g/ahead/t/0";

/// Returns a member that has registered.
fn member<'a>(keeper: &'a dyn Keeper, id: &'a str) -> Claimant<'a> {
    create_with_parents(keeper, &paths::group_id("g", id), b"{}", Lifetime::Ephemeral).unwrap();
    Claimant { keeper, group: "g", topic: "t", id, group_has_offsets: false }
}

fn claim(member: &Claimant<'_>, partition: PartitionId) -> Result<ClaimOutcome, KeeperError> {
    without_token(member.claim_all(&[partition]).remove(0))
}

/// Tokens may be the time; they have tests of their own.
fn without_token(mut outcome: Result<ClaimOutcome, KeeperError>) -> Result<ClaimOutcome, KeeperError> {
    if let Ok(ClaimOutcome::Claimed { token, .. }) = &mut outcome {
        *token = 0;
    }
    outcome
}

fn claimed(version: i32, position: Option<Offset>) -> Result<ClaimOutcome, KeeperError> {
    Ok(ClaimOutcome::Claimed { version, token: 0, position, ahead: DoneAhead::default() })
}

fn token_of(member: &Claimant<'_>) -> u64 {
    match member.claim_all(&[0]).remove(0) {
        Ok(ClaimOutcome::Claimed { token, .. }) => token,
        other => panic!("not claimed: {other:?}"),
    }
}

#[test]
fn the_token_grows_also_if_nodes_are_deleted_and_is_the_version_where_it_was_before() {
    let keeper = InMemoryEnsemble::new().connect(TIMEOUT);
    let one = member(&*keeper, "h:1");
    create_with_parents(&*keeper, OFFSET, b"7", Lifetime::Persistent).unwrap();
    for version in 0..40 {
        keeper.write(OFFSET, b"8", version).unwrap();
    }
    assert_eq!(token_of(&one), 41, "as an earlier version of the program");
    keeper.delete(OFFSET, 41).unwrap();
    assert_eq!(token_of(&one), 42);
    // Created again by hand.
    keeper.delete(OFFSET, 1).unwrap();
    keeper.create(OFFSET, b"3", Lifetime::Persistent).unwrap();
    assert_eq!(token_of(&one), 43);
    keeper.delete(OFFSET, 1).unwrap();
    let token_node = keeper.read("/consumers/g/tokens/t/0").unwrap().expect("it is kept");
    keeper.delete("/consumers/g/tokens/t/0", token_node.version).unwrap();
    let token = token_of(&one);
    assert!(token > 1_700_000_000_000, "the time: {token}");
    assert_eq!(token_of(&one), token + 1);
}

fn store(
    member: &Claimant<'_>,
    version: i32,
    stored: Option<Offset>,
    next: Offset,
    ahead: &DoneAhead,
) -> Result<StoreOutcome, KeeperError> {
    member.store_all(&[Store { partition: 0, version, stored, next, ahead }]).remove(0)
}

fn data(keeper: &InMemoryKeeper, path: &str) -> String {
    String::from_utf8(keeper.read(path).unwrap().expect("the node exists").data).unwrap()
}

/// Keeper and member of `ensemble`; the member has claimed partition 0 with `position`.
fn owner_at(ensemble: &InMemoryEnsemble, position: Offset) -> Arc<InMemoryKeeper> {
    let keeper = ensemble.connect(TIMEOUT);
    let one = member(&*keeper, "h:1");
    assert_eq!(claim(&one, 0), claimed(1, None));
    assert_eq!(store(&one, 1, None, position, &DoneAhead::default()), Ok(StoreOutcome::Stored(2)));
    keeper
}

#[test]
fn a_partition_is_claimed_once_and_the_earlier_owner_is_fenced() {
    let ensemble = InMemoryEnsemble::new();
    let (one, other) = (ensemble.connect(TIMEOUT), ensemble.connect(TIMEOUT));
    let (first, second) = (member(&*one, "h:1"), member(&*other, "h:2"));
    assert_eq!(claim(&first, 0), claimed(1, None));
    assert_eq!(data(&one, OFFSET), "-1");
    assert_eq!(claim(&first, 0), claimed(2, None), "a repeated claim after a lost response succeeds");
    assert_eq!(claim(&second, 0), Ok(ClaimOutcome::Owned));
    let nothing = DoneAhead::default();
    assert_eq!(store(&first, 2, None, 7, &nothing), Ok(StoreOutcome::Stored(3)));

    // The registration of the first member stays: only the version fences it.
    one.delete("/consumers/g/owners/t/0", 0).unwrap();
    assert_eq!(claim(&second, 0), claimed(4, Some(7)));
    assert_eq!(store(&first, 3, Some(7), 9, &nothing), Ok(StoreOutcome::Fenced));
    assert_eq!(first.release_all(&[0]), [Ok(())]);
    assert!(other.read("/consumers/g/owners/t/0").unwrap().is_some(), "the node of another member is kept");
    assert_eq!(store(&second, 4, Some(7), 8, &nothing), Ok(StoreOutcome::Stored(5)));
    assert_eq!(second.release_all(&[0]), [Ok(())]);
    assert_eq!(other.read("/consumers/g/owners/t/0"), Ok(None));
    assert_eq!(data(&other, OFFSET), "8");
}

#[test]
fn nothing_is_changed_after_the_session_of_the_member() {
    let ensemble = InMemoryEnsemble::new();
    let keeper = owner_at(&ensemble, 7);
    let old = Claimant { keeper: &*keeper, group: "g", topic: "t", id: "h:1", group_has_offsets: false };
    ensemble.expire(&keeper);
    // An offset node that was deleted by hand and created again may have the version that the member knows.
    keeper.delete(OFFSET, 2).unwrap();
    keeper.create(OFFSET, b"0", Lifetime::Persistent).unwrap();
    assert_eq!(keeper.write(OFFSET, b"100", 0).and_then(|version| keeper.write(OFFSET, b"100", version)), Ok(2));
    let no_registration = KeeperError::NoNode("/consumers/g/ids/h:1".into());
    assert_eq!(store(&old, 2, Some(7), 9, &DoneAhead::default()), Err(no_registration.clone()));
    assert_eq!(data(&keeper, OFFSET), "100");
    assert_eq!(claim(&old, 0), Err(no_registration));
}

#[test]
fn an_owner_node_of_an_earlier_member_of_this_process_is_taken_over_at_once() {
    let ensemble = InMemoryEnsemble::new();
    let keeper = owner_at(&ensemble, 7);
    let next = member(&*keeper, "h:2");
    assert_eq!(claim(&next, 0), claimed(3, Some(7)));
    assert_eq!(data(&keeper, "/consumers/g/owners/t/0"), "h:2");
}

#[test]
fn many_partitions_are_claimed_stored_and_released_together() {
    let keeper = InMemoryEnsemble::new().connect(TIMEOUT);
    let one = member(&*keeper, "h:1");
    create_with_parents(&*keeper, "/consumers/g/offsets/t/1", b"soon", Lifetime::Persistent).unwrap();
    create_with_parents(&*keeper, "/consumers/g/owners/t/2", b"other", Lifetime::Persistent).unwrap();
    let outcomes: Vec<_> = one.claim_all(&[0, 1, 2, 3]).into_iter().map(without_token).collect();
    let unreadable = Ok(ClaimOutcome::Unreadable(BadOffset("soon".into())));
    assert_eq!(outcomes, [claimed(1, None), unreadable, Ok(ClaimOutcome::Owned), claimed(1, None)]);
    let ahead = DoneAhead::default();
    let stores = [0, 3].map(|partition| Store { partition, version: 1, stored: None, next: 5, ahead: &ahead });
    assert_eq!(one.store_all(&stores), [Ok(StoreOutcome::Stored(2)), Ok(StoreOutcome::Stored(2))]);
    assert_eq!(one.release_all(&[0, 1, 2, 3]), [Ok(()), Ok(()), Ok(()), Ok(())]);
    assert_eq!(keeper.children("/consumers/g/owners/t"), Ok(vec!["2".into()]));
}

#[test]
fn what_is_done_ahead_is_stored_with_the_offset_and_kept_by_the_next_claim() {
    let ensemble = InMemoryEnsemble::new();
    let keeper = owner_at(&ensemble, 7);
    let one = Claimant { keeper: &*keeper, group: "g", topic: "t", id: "h:1", group_has_offsets: false };
    let ahead = DoneAhead {
        topic_id: Some([7; 16]),
        leader_epoch: Some(3),
        ranges: [10..12, 15..16].into(),
        read_epoch: Some(5),
    };
    // The commit point stands still, so only the second node is written.
    assert_eq!(store(&one, 2, Some(7), 7, &ahead), Ok(StoreOutcome::Stored(2)));
    let kept = |version| Ok(ClaimOutcome::Claimed { version, token: 0, position: Some(7), ahead: ahead.clone() });
    assert_eq!(claim(&one, 0), kept(3));
    assert_eq!(claim(&one, 0), kept(4), "a claim keeps the node valid");

    assert_eq!(store(&one, 4, Some(7), 11, &ahead), Ok(StoreOutcome::Stored(5)));
    let rest = DoneAhead {
        topic_id: Some([7; 16]),
        leader_epoch: Some(3),
        ranges: [11..12, 15..16].into(),
        read_epoch: Some(5),
    };
    assert_eq!(claim(&one, 0), Ok(ClaimOutcome::Claimed { version: 6, token: 0, position: Some(11), ahead: rest }));

    keeper.write(OFFSET, b"11", 6).unwrap();
    assert_eq!(claim(&one, 0), claimed(8, Some(11)), "the offset was set by hand");
    assert_eq!(data(&keeper, AHEAD), "{}");
}

#[test]
fn a_store_of_what_is_done_ahead_is_fenced_like_an_offset() {
    let ensemble = InMemoryEnsemble::new();
    let keeper = owner_at(&ensemble, 7);
    let one = Claimant { keeper: &*keeper, group: "g", topic: "t", id: "h:1", group_has_offsets: false };
    let ahead = DoneAhead { ranges: [10..12, 14..15].into(), ..DoneAhead::default() };
    keeper.write(OFFSET, b"3", 2).unwrap();
    assert_eq!(store(&one, 2, Some(7), 7, &ahead), Ok(StoreOutcome::Fenced));
    keeper.delete(OFFSET, 3).unwrap();
    assert_eq!(store(&one, 2, Some(7), 8, &ahead), Ok(StoreOutcome::Fenced), "the offset was deleted");
}

#[test]
fn a_store_without_a_response_is_settled_by_a_read() {
    let ensemble = InMemoryEnsemble::new();
    let keeper = owner_at(&ensemble, 7);
    let one = Claimant { keeper: &*keeper, group: "g", topic: "t", id: "h:1", group_has_offsets: false };
    assert_eq!(one.settle_all(&[(0, 2, 9)]), [Ok(Some(2))], "it was not carried out");
    keeper.lose_responses(1);
    assert!(matches!(store(&one, 2, Some(7), 9, &DoneAhead::default()), Err(KeeperError::Unreachable(_))));
    let both = one.settle_all(&[(0, 2, 9), (1, 4, 8)]);
    assert_eq!(both, [Ok(Some(3)), Ok(None)], "it was carried out; the other node is gone");
    keeper.write(OFFSET, b"5", 3).unwrap();
    assert_eq!(one.settle_all(&[(0, 2, 9)]), [Ok(None)], "another client wrote the node");
    assert_eq!(one.settle_all(&[(0, 3, 9), (0, 4, 9)]), [Ok(None), Ok(Some(4))]);
}

#[test]
fn a_partition_without_an_offset_node_is_new_to_a_group_with_offsets() {
    let keeper = InMemoryEnsemble::new().connect(TIMEOUT);
    let one = Claimant { group_has_offsets: true, ..member(&*keeper, "h:1") };
    assert_eq!(claim(&one, 0), claimed(1, Some(0)));
    assert_eq!(data(&keeper, OFFSET), "0", "stored by the claim");
}

#[test]
fn an_offset_node_that_holds_no_offset_is_reported_until_it_is_corrected() {
    let keeper = InMemoryEnsemble::new().connect(TIMEOUT);
    let one = member(&*keeper, "h:1");
    create_with_parents(&*keeper, OFFSET, b"soon", Lifetime::Persistent).unwrap();
    assert_eq!(claim(&one, 0), Ok(ClaimOutcome::Unreadable(BadOffset("soon".into()))));
    assert_eq!(data(&keeper, OFFSET), "soon");
    keeper.write(OFFSET, b" 12\n", 0).unwrap();
    assert_eq!(claim(&one, 0), claimed(2, Some(12)));
}
