//! Tests of the loop with a member that is scripted by the test.

use super::metadata::CommitMetadata;
use super::*;
use std::ops::Range;
use std::sync::Mutex;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, bounded, unbounded};

use crate::admin::Health;
use crate::broker::membership::{CommitError, CommittedOffset, GroupMembers, GroupOffsets};
use crate::broker::{LogIdentity, Offset};
use crate::ktransfer::group::{Claim, CommandSender, GroupCommand, StoredPosition, mailbox};
use crate::ktransfer::pauses::PauseTable;
use crate::ktransfer::test_backend::wait_until;

mod early_stores;
mod pauses;
mod positions;

const SESSION: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(20);

/// What the brokers keep, and what the test lets them answer.
#[derive(Default)]
struct Brokers {
    offsets: BTreeMap<PartitionId, CommittedOffset>,
    n_partitions: Option<PartitionId>,
    max_metadata_bytes: usize,
    /// The answer to every commit.
    refusal: Option<CommitError>,
    /// What becomes of the commits that are answered with `refusal`.
    refused: Refused,
    /// Commits that the brokers have received and not carried out.
    late: Vec<CommittedOffset>,
    /// Called once, in the next commit, after it is carried out.
    in_commit: Option<Box<dyn FnOnce() + Send>>,
    n_commits: usize,
    released: Vec<ReleaseToken>,
    has_left: bool,
}

/// What becomes of a commit without a confirmation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Refused {
    /// The request is lost.
    #[default]
    Lost,
    /// The answer is lost.
    Stored,
    /// As `Stored`, but the offset is not readable before the next commit.
    StoredLate,
}

impl Brokers {
    /// Carries out the commits that were received.
    fn carry_out_late(&mut self) {
        for offset in std::mem::take(&mut self.late) {
            self.offsets.insert(offset.partition, offset);
        }
    }
}

struct ScriptedMember {
    brokers: Arc<Mutex<Brokers>>,
    events: Receiver<MembershipEvent>,
}

impl GroupOffsets for ScriptedMember {
    fn committed(&mut self, _: Instant) -> Result<Vec<CommittedOffset>, String> {
        Ok(self.brokers.lock().unwrap().offsets.values().cloned().collect())
    }

    fn members(&mut self, _: Instant) -> Result<GroupMembers, String> {
        Ok(GroupMembers { names: Vec::new(), assigned: None })
    }

    fn n_partitions(&mut self, _: Instant) -> Result<Option<PartitionId>, String> {
        Ok(self.brokers.lock().unwrap().n_partitions)
    }

    fn commit(&mut self, offsets: &[CommittedOffset], _: Instant) -> Vec<Result<(), CommitError>> {
        let mut brokers = self.brokers.lock().unwrap();
        brokers.carry_out_late();
        brokers.n_commits += 1;
        let commit = |offset: &CommittedOffset| {
            if let Some(refusal) = brokers.refusal.clone() {
                match brokers.refused {
                    Refused::Lost => {}
                    Refused::Stored => drop(brokers.offsets.insert(offset.partition, offset.clone())),
                    Refused::StoredLate => brokers.late.push(offset.clone()),
                }
                return Err(refusal);
            }
            if offset.metadata.len() > brokers.max_metadata_bytes {
                return Err(CommitError::MetadataTooLong);
            }
            brokers.offsets.insert(offset.partition, offset.clone());
            Ok(())
        };
        let results = offsets.iter().map(commit).collect();
        let in_commit = brokers.in_commit.take();
        drop(brokers);
        if let Some(in_commit) = in_commit {
            in_commit();
        }
        results
    }
}

impl Membership for ScriptedMember {
    fn register<'a>(&'a self, select: &mut Select<'a>) {
        select.recv(&self.events);
    }

    fn next(&mut self) -> Option<MembershipEvent> {
        self.events.try_recv().ok()
    }

    fn released(&mut self, token: ReleaseToken) {
        self.brokers.lock().unwrap().released.push(token);
    }

    fn leave(self: Box<Self>, _: bool, _: Instant) {
        self.brokers.lock().unwrap().has_left = true;
    }
}

fn config() -> KafkaGroupConfig {
    KafkaGroupConfig {
        group: "g".into(),
        topic: "t".into(),
        session_timeout: SESSION,
        instance_id: None,
        offset_update_interval: 100 * PATIENCE,
        leave_timeout: Duration::from_millis(300),
    }
}

/// A member that runs in a thread.
struct Rig {
    brokers: Arc<Mutex<Brokers>>,
    script: Sender<MembershipEvent>,
    commands: CommandSender,
    events: Receiver<GroupEvent>,
    observers: GroupObservers,
    health: Health,
    thread: Option<JoinHandle<()>>,
}

impl Rig {
    fn brokers(n_partitions: Option<PartitionId>) -> Arc<Mutex<Brokers>> {
        Arc::new(Mutex::new(Brokers { n_partitions, max_metadata_bytes: 4096, ..Brokers::default() }))
    }

    fn group(brokers: &Arc<Mutex<Brokers>>, events: Receiver<MembershipEvent>) -> KafkaGroup {
        KafkaGroup::new(config(), Box::new(ScriptedMember { brokers: Arc::clone(brokers), events }))
    }

    fn start(brokers: &Arc<Mutex<Brokers>>) -> Rig {
        let (script, events) = unbounded();
        let (commands, mailbox) = mailbox();
        let (event_sender, group_events) = bounded(64);
        let health = Health::new();
        let (health_part, pauses) = (Some(health.component("group")), PauseTable::stored_by_group());
        let observers = GroupObservers { health: health_part, pauses, ..GroupObservers::default() };
        let group = Box::new(Rig::group(brokers, events).observed_by(observers.clone()));
        let thread = std::thread::spawn(move || group.run(mailbox, event_sender));
        let brokers = Arc::clone(brokers);
        Rig { brokers, script, commands, events: group_events, observers, health, thread: Some(thread) }
    }

    fn send(&self, event: MembershipEvent) {
        self.script.send(event).unwrap();
    }

    fn next(&self) -> GroupEvent {
        self.events.recv_timeout(PATIENCE).expect("an event of the group")
    }

    /// Assigns partitions; returns their claims by partition.
    fn assign(&self, partitions: &[PartitionId]) -> BTreeMap<PartitionId, Claim> {
        self.send(MembershipEvent::Assigned(partitions.to_vec()));
        self.send(MembershipEvent::Proven(Instant::now()));
        let gained = |_| match self.next() {
            GroupEvent::Gained(claim) => (claim.partition, claim),
            event => panic!("expected a claim, not {event:?}"),
        };
        (0..partitions.len()).map(gained).collect()
    }

    fn committed(&self, partition: PartitionId) -> Option<CommittedOffset> {
        self.brokers.lock().unwrap().offsets.get(&partition).cloned()
    }

    fn wait_for_offset(&self, partition: PartitionId, offset: Offset) {
        wait_until("the offset is committed", || self.committed(partition).is_some_and(|of| of.offset == offset));
    }

    fn leave(mut self) -> Vec<String> {
        self.commands.send(GroupCommand::Leave);
        self.thread.take().unwrap().join().unwrap();
        assert!(self.brokers.lock().unwrap().has_left);
        self.observers.report.take()
    }
}

fn offset(partition: PartitionId, offset: Offset, metadata: &str) -> CommittedOffset {
    CommittedOffset { partition, offset, leader_epoch: None, metadata: metadata.into() }
}

fn commit(claim: &Claim, next: Offset) -> GroupCommand {
    GroupCommand::Commit { partition: claim.partition, generation: claim.generation, next }
}

fn metadata_of(committed: &CommittedOffset) -> CommitMetadata {
    metadata::decode(committed.offset, &committed.metadata).expect("metadata of ktransfer")
}

#[test]
fn the_token_grows_with_every_claim_and_is_committed_before_the_claim_is_reported() {
    let brokers = Rig::brokers(Some(2));
    // Clocks that are behind do not matter: the token of an earlier claim is in the future.
    let future = u64::MAX / 2;
    brokers.lock().unwrap().offsets.insert(0, offset(0, 7, &format!("kt1;o=7;t={future};n=2")));
    let rig = Rig::start(&brokers);
    let claims = rig.assign(&[0, 1]);
    assert_eq!(claims[&0].token, future + 1);
    assert_eq!(metadata_of(&rig.committed(0).unwrap()).token, future + 1);
    assert_eq!(claims[&0].position, Some(StoredPosition::at(7)));
    assert_eq!((claims[&1].position.clone(), rig.committed(1)), (None, None));
    assert!(claims[&0].fence.is_valid() && claims[&1].token > 1_600_000_000_000, "milliseconds since 1970");
    rig.commands.send(commit(&claims[&0], 90));
    rig.wait_for_offset(0, 90);
    assert_eq!(metadata_of(&rig.committed(0).unwrap()).token, future + 1);
    assert_eq!(rig.leave(), Vec::<String>::new());
}

#[test]
fn what_is_done_ahead_is_found_by_the_next_owner() {
    let brokers = Rig::brokers(Some(1));
    let one = Rig::start(&brokers);
    let claim = one.assign(&[0]).remove(&0).unwrap();
    let (partition, generation) = (0, claim.generation);
    let log = LogIdentity { topic_id: Some([9; 16]), leader_epoch: Some(4) };
    one.commands.send(GroupCommand::StoreNow { partition, generation, next: 50, log });
    let ranges: Arc<[Range<Offset>]> = [60..100, 120..130].into();
    let (topic_id, read_epoch, done) = (log.topic_id, Some(6), Arc::clone(&ranges));
    one.commands.send(GroupCommand::DoneAhead { partition, generation, topic_id, ranges: done, read_epoch });
    wait_until("the snapshot is committed", || {
        one.committed(0).is_some_and(|of| metadata_of(&of).ranges == ranges && of.leader_epoch == Some(4))
    });
    // A crash.
    drop(one);
    let two = Rig::start(&brokers);
    let position = two.assign(&[0])[&0].position.clone().expect("an offset is committed");
    assert_eq!((position.next, position.log(), position.read_epoch), (50, log, read_epoch));
    assert_eq!(position.done_ahead, ranges);
    two.leave();
    // An offset that another tool set.
    brokers.lock().unwrap().offsets.get_mut(&0).unwrap().offset = 10;
    let three = Rig::start(&brokers);
    let position = three.assign(&[0])[&0].position.clone().expect("an offset is committed");
    assert_eq!((position.next, position.topic_id, position.done_ahead.len()), (10, None, 0));
    three.leave();
}

#[test]
fn start_from_decides_about_the_first_partitions_and_added_ones_begin_at_their_beginning() {
    let brokers = Rig::brokers(Some(4));
    let one = Rig::start(&brokers);
    let claims = one.assign(&[0, 1]);
    assert!(claims.values().all(|claim| claim.position.is_none()));
    one.commands.send(commit(&claims[&0], 500));
    one.wait_for_offset(0, 500);
    assert_eq!(metadata_of(&one.committed(0).unwrap()).first_partitions, Some(4));
    // Another member of the same group, and two partitions that were added later.
    brokers.lock().unwrap().n_partitions = Some(6);
    let two = Rig::start(&brokers);
    let claims = two.assign(&[2, 3, 4, 5]);
    let starts: Vec<_> = claims.values().map(|claim| claim.position.as_ref().map(|position| position.next)).collect();
    assert_eq!(starts, [None, None, Some(0), Some(0)]);
    two.wait_for_offset(4, 0);
    assert_eq!(metadata_of(&two.committed(4).unwrap()).first_partitions, Some(4));
    one.leave();
    two.leave();
}

#[test]
fn a_topic_that_is_younger_than_the_group_is_read_from_its_beginning() {
    let brokers = Rig::brokers(None);
    let rig = Rig::start(&brokers);
    rig.send(MembershipEvent::Proven(Instant::now()));
    wait_until("the group has joined", || rig.health.troubles().is_empty());
    brokers.lock().unwrap().n_partitions = Some(2);
    let claims = rig.assign(&[0, 1]);
    assert!(claims.values().all(|claim| claim.position == Some(StoredPosition::at(0))));
    rig.wait_for_offset(1, 0);
    // Deleted with its offsets, and created again.
    rig.send(MembershipEvent::Revoked(vec![0, 1], ReleaseToken::for_tests(1)));
    for _ in 0..2 {
        let GroupEvent::Releasing { partition, generation } = rig.next() else { panic!("expected a release") };
        rig.commands.send(GroupCommand::Release { partition, generation, next: Some(900) });
    }
    wait_until("the partitions are given up", || brokers.lock().unwrap().released.len() == 1);
    brokers.lock().unwrap().offsets.clear();
    let claims = rig.assign(&[0, 1]);
    assert!(claims.values().all(|claim| claim.position == Some(StoredPosition::at(0))));
    rig.leave();
}

#[test]
fn a_revoked_partition_is_given_up_only_after_its_last_offset_is_committed() {
    let brokers = Rig::brokers(Some(2));
    let rig = Rig::start(&brokers);
    let claims = rig.assign(&[0, 1]);
    let token = ReleaseToken::for_tests(5);
    rig.send(MembershipEvent::Revoked(vec![0], token));
    let generation = claims[&0].generation;
    assert_eq!(rig.next(), GroupEvent::Releasing { partition: 0, generation });
    rig.commands.send(commit(&claims[&1], 3));
    rig.wait_for_offset(1, 3);
    assert_eq!(brokers.lock().unwrap().released, []);
    brokers.lock().unwrap().refusal = Some(CommitError::Failed("REBALANCE_IN_PROGRESS".into()));
    let n_commits = brokers.lock().unwrap().n_commits;
    rig.commands.send(GroupCommand::Release { partition: 0, generation, next: Some(77) });
    wait_until("the commit is attempted", || brokers.lock().unwrap().n_commits > n_commits);
    assert!(!claims[&0].fence.is_valid() && claims[&1].fence.is_valid());
    assert_eq!(brokers.lock().unwrap().released, []);
    brokers.lock().unwrap().refusal = None;
    rig.wait_for_offset(0, 77);
    wait_until("the partition is given up", || brokers.lock().unwrap().released == [token]);
    rig.leave();
}

#[test]
fn a_loss_ends_every_claim_at_once_and_nothing_is_committed() {
    let brokers = Rig::brokers(Some(1));
    let rig = Rig::start(&brokers);
    let claim = rig.assign(&[0]).remove(&0).unwrap();
    rig.commands.send(commit(&claim, 50));
    rig.wait_for_offset(0, 50);
    let token = ReleaseToken::for_tests(1);
    rig.send(MembershipEvent::Lost(token, "on behalf of the test".into()));
    assert_eq!(rig.next(), GroupEvent::Lost { partition: 0, generation: claim.generation });
    assert!(!claim.fence.is_valid());
    wait_until("the loss is confirmed", || brokers.lock().unwrap().released == [token]);
    rig.commands.send(GroupCommand::Release { partition: 0, generation: claim.generation, next: Some(99) });
    // A proof of the time before does not revive the claim, and a new claim has another generation.
    let again = rig.assign(&[0]).remove(&0).unwrap();
    assert!(!claim.fence.is_valid() && again.fence.is_valid());
    assert!(again.generation > claim.generation && again.token > claim.token);
    assert_eq!(again.position.unwrap().next, 50);
    rig.leave();
}

#[test]
fn brokers_with_a_small_metadata_limit_get_less_of_what_is_done_ahead() {
    let brokers = Rig::brokers(Some(1));
    brokers.lock().unwrap().max_metadata_bytes = 200;
    let rig = Rig::start(&brokers);
    let claim = rig.assign(&[0]).remove(&0).unwrap();
    let ranges: Vec<Range<Offset>> = (0..4_000).map(|number| 100 + 2 * number..101 + 2 * number).collect();
    let (partition, generation, topic_id, read_epoch) = (0, claim.generation, None, None);
    rig.commands.send(commit(&claim, 50));
    let done = ranges.clone().into();
    rig.commands.send(GroupCommand::DoneAhead { partition, generation, topic_id, ranges: done, read_epoch });
    wait_until("some ranges are committed", || {
        rig.committed(0).is_some_and(|of| {
            let kept = metadata_of(&of).ranges;
            of.offset == 50 && kept.len() > 10 && ranges.starts_with(&kept)
        })
    });
    brokers.lock().unwrap().max_metadata_bytes = 0;
    rig.commands.send(commit(&claim, 60));
    rig.wait_for_offset(0, 60);
    assert_eq!(rig.committed(0).unwrap().metadata, "", "the offset is more important");
    rig.leave();
}

#[test]
fn many_partitions_that_are_refused_at_once_halve_the_metadata_once() {
    let brokers = Rig::brokers(Some(8));
    brokers.lock().unwrap().max_metadata_bytes = 2048;
    let rig = Rig::start(&brokers);
    let claims = rig.assign(&[0, 1, 2, 3, 4, 5, 6, 7]);
    let ranges: Arc<[Range<Offset>]> = (0..4_000).map(|number| 100 + 2 * number..101 + 2 * number).collect();
    for claim in claims.values() {
        let (partition, generation, topic_id, read_epoch) = (claim.partition, claim.generation, None, Some(6));
        rig.commands.send(commit(claim, 50));
        let ranges = Arc::clone(&ranges);
        rig.commands.send(GroupCommand::DoneAhead { partition, generation, topic_id, ranges, read_epoch });
    }
    wait_until("all partitions have many ranges", || {
        (0..8).all(|partition| rig.committed(partition).is_some_and(|of| of.metadata.len() > 1024))
    });
    rig.leave();
}

#[test]
fn a_leave_that_cannot_commit_reports_partitions_and_offsets() {
    for is_lost in [false, true] {
        let brokers = Rig::brokers(Some(1));
        let rig = Rig::start(&brokers);
        let claim = rig.assign(&[0]).remove(&0).unwrap();
        rig.commands.send(commit(&claim, 50));
        rig.wait_for_offset(0, 50);
        brokers.lock().unwrap().refusal = Some(CommitError::Failed("no broker".into()));
        let n_commits = brokers.lock().unwrap().n_commits;
        rig.commands.send(commit(&claim, 70));
        wait_until("the commit is attempted", || brokers.lock().unwrap().n_commits > n_commits);
        if is_lost {
            rig.send(MembershipEvent::Lost(ReleaseToken::for_tests(1), "no heartbeat".into()));
            rig.next();
        }
        let report = rig.leave().join("");
        assert!(report.contains("offsets not stored") && report.contains("0 at 70 (stored: 50)"), "{report}");
    }
}

#[test]
fn a_member_that_fails_ends_the_loop_and_names_the_key() {
    let rig = Rig::start(&Rig::brokers(Some(1)));
    rig.send(MembershipEvent::Failed("JoinGroup was refused: INVALID_SESSION_TIMEOUT".into()));
    assert!(rig.events.recv_timeout(PATIENCE).is_err(), "the loop has ended");
    let troubles = rig.health.troubles();
    assert!(troubles[0].1.contains("session_timeout_ms is 30000"), "{troubles:?}");
}

#[test]
fn a_missing_topic_is_reported_once_it_lasts_until_it_exists() {
    let brokers = Rig::brokers(None);
    let (script, events) = unbounded();
    let mut group = Rig::group(&brokers, events);
    script.send(MembershipEvent::Proven(Instant::now())).unwrap();
    assert!(group.look().is_err());
    let now = Instant::now();
    let long = Duration::from_secs(10);
    let missing = Err("topic t does not exist".to_owned());
    assert_eq!((group.state(now), group.state(now + long)), (Ok(()), missing.clone()));
    assert!(group.look().is_err());
    assert_eq!(group.state(now + long), missing, "since the first time");
    brokers.lock().unwrap().n_partitions = Some(1);
    assert_eq!((group.look(), group.state(now + long)), (Ok(()), Ok(())));
}
