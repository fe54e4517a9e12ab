//! Tests of group members with an in-memory ensemble: join, assignment, hand-over, fencing.

use super::*;
use crate::admin::Health;
use crate::broker::LogIdentity;
use crate::keeper::in_memory::{InMemoryEnsemble, InMemoryKeeper};
use crate::keeper::paths::{self, create_with_parents};
use crate::keeper::{Keeper, Lifetime, Node};
use crate::ktransfer::group::{Claim, CommandSender, GroupCommand, mailbox};
use crate::ktransfer::stop_report::StopReport;
use crate::ktransfer::test_backend::wait_until;
use crossbeam_channel::{Receiver, bounded};
use std::cell::RefCell;
use std::collections::HashMap;
use std::thread::JoinHandle;

use crate::shutdown::Stop;

/// Session timeout of the members. A member polls at a sixth of this timeout, which is 200 ms.
pub(super) const SESSION: Duration = Duration::from_millis(1_200);
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn create_topic(keeper: &dyn Keeper, leaders: &[i32]) {
    let partitions: Vec<_> = (0..leaders.len()).map(|number| format!("\"{number}\":[1]")).collect();
    let create =
        |path: &str, data: String| create_with_parents(keeper, path, data.as_bytes(), Lifetime::Persistent).unwrap();
    create("/brokers/topics/t", format!("{{\"partitions\":{{{}}}}}", partitions.join(",")));
    for (number, leader) in leaders.iter().enumerate() {
        create(&format!("/brokers/topics/t/partitions/{number}/state"), format!("{{\"leader\":{leader}}}"));
    }
}

/// A running member. The test acts as its dispatcher.
pub(super) struct RunningMember {
    pub(super) health: Health,
    pub(super) keeper: Arc<InMemoryKeeper>,
    /// The fences of all claims that [`Self::gains`] received.
    fences: RefCell<HashMap<(PartitionId, Generation), Arc<TimedFence>>>,
    pub(super) commands: CommandSender,
    pub(super) events: Receiver<GroupEvent>,
    thread: JoinHandle<()>,
    leases_stop: Stop,
    pub(super) report: StopReport,
}

impl RunningMember {
    pub(super) fn start(ensemble: &InMemoryEnsemble) -> RunningMember {
        RunningMember::reading(ensemble, "t", Duration::from_millis(50))
    }

    pub(super) fn storing_every(ensemble: &InMemoryEnsemble, offset_update_interval: Duration) -> RunningMember {
        RunningMember::reading(ensemble, "t", offset_update_interval)
    }

    pub(super) fn reading(ensemble: &InMemoryEnsemble, topic: &str, offset_update_interval: Duration) -> RunningMember {
        let keeper = ensemble.connect(SESSION);
        let config = ZookeeperGroupConfig {
            group: "g".into(),
            topic: topic.into(),
            offset_update_interval,
            leave_timeout: Duration::from_secs(1),
        };
        let leases = Leases::new(Arc::clone(&keeper) as SharedKeeper);
        let (leases_stop, extended) = (Stop::new(), Arc::clone(&leases));
        let stopped = leases_stop.clone();
        std::thread::spawn(move || extended.run(&stopped));
        let report = StopReport::default();
        let health = Health::new();
        let observers = GroupObservers {
            health: Some(health.component("group of g")),
            report: report.clone(),
            ..GroupObservers::default()
        };
        let group =
            Box::new(ZookeeperGroup::new(config, Arc::clone(&keeper) as SharedKeeper, leases).observed_by(observers));
        let (commands, mailbox) = mailbox();
        // The smallest bound, so that the tests show that the group continues while the dispatcher does not receive.
        let (sender, events) = bounded(1);
        let thread = std::thread::spawn(move || group.run(mailbox, sender));
        RunningMember { health, keeper, fences: RefCell::default(), commands, events, thread, leases_stop, report }
    }

    pub(super) fn next(&self) -> GroupEvent {
        self.events.recv_timeout(PATIENCE).expect("an event within the time limit")
    }

    pub(super) fn gains(&self, expected: &[PartitionId]) -> BTreeMap<PartitionId, (Generation, Option<Offset>)> {
        let mut gained = BTreeMap::new();
        while gained.len() < expected.len() {
            match self.next() {
                GroupEvent::Gained(Claim { partition, generation, fence, position, .. }) => {
                    assert!(fence.is_valid());
                    self.fences.borrow_mut().insert((partition, generation), fence);
                    gained.insert(partition, (generation, position.map(|stored| stored.next)));
                }
                other => panic!("{other:?} while waiting for {expected:?}"),
            }
        }
        assert_eq!(gained.keys().copied().collect::<Vec<_>>(), expected);
        gained
    }

    /// Waits until `/readyz` names this reason; `None`: until the member is ready.
    pub(super) fn wait_for_health(&self, reason: Option<&str>) {
        wait_until("the health changes", || match (reason, &self.health.troubles()[..]) {
            (Some(reason), [(_, trouble)]) => trouble.contains(reason),
            (reason, troubles) => reason.is_none() && troubles.is_empty(),
        });
    }

    pub(super) fn lease_is_valid(&self, partition: PartitionId, generation: Generation) -> bool {
        self.fences.borrow()[&(partition, generation)].is_valid()
    }

    pub(super) fn read(&self, path: &str) -> Option<Node> {
        self.keeper.read(path).expect("the ensemble is reachable")
    }

    pub(super) fn wait_for_text(&self, path: &str, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.read(path).is_none_or(|node| node.data != text.as_bytes()) {
            assert!(Instant::now() < deadline, "{path} is {:?}, not {text}", self.read(path));
            std::thread::yield_now();
        }
    }

    /// Answers the events that have arrived: releases partitions at once. Counts the partitions that the member owns,
    /// and those it releases.
    pub(super) fn answer_events(&self, owned: &mut usize, moves: &mut usize) {
        while let Ok(event) = self.events.recv_timeout(Duration::from_millis(1)) {
            match event {
                GroupEvent::Gained(_) => *owned += 1,
                GroupEvent::Releasing { partition, generation } => {
                    self.commands.send(GroupCommand::Release { partition, generation, next: None });
                    (*owned, *moves) = (*owned - 1, *moves + 1);
                }
                GroupEvent::Lost { partition, .. } => panic!("partition {partition} is lost"),
            }
        }
    }

    pub(super) fn leave(self) {
        self.commands.send(GroupCommand::Leave);
        self.thread.join().expect("the group ends without a panic");
        self.leases_stop.trigger();
    }
}

#[test]
fn a_single_member_gains_all_partitions_and_after_its_leave_only_offset_nodes_remain() {
    let ensemble = InMemoryEnsemble::new();
    let observer = ensemble.connect(SESSION);
    create_topic(&*observer, &[1, 2, 1]);
    create_with_parents(&*observer, "/consumers/g/offsets/t/1", b"42", Lifetime::Persistent).unwrap();
    let one = RunningMember::start(&ensemble);
    let gained = one.gains(&[0, 1, 2]);
    assert_eq!((gained[&0].1, gained[&1].1), (Some(0), Some(42)), "partition 0 is new to a group with offsets");
    let id = observer.children("/consumers/g/ids").unwrap().remove(0);
    assert_eq!(observer.read("/consumers/g/owners/t/2").unwrap().unwrap().data, id.as_bytes());

    one.commands.send(GroupCommand::Commit { partition: 1, generation: gained[&1].0, next: 50 });
    one.commands.send(GroupCommand::Commit { partition: 1, generation: gained[&1].0, next: 51 });
    one.commands.send(GroupCommand::Commit { partition: 2, generation: Generation(99), next: 1_000 });
    one.wait_for_text("/consumers/g/offsets/t/1", "51");
    let (generation, next) = (gained[&0].0, Some(7));
    one.commands.send(GroupCommand::Release { partition: 0, generation, next });
    one.commands.send(GroupCommand::Leave);
    one.thread.join().unwrap();
    assert!(one.fences.borrow().values().all(|fence| !fence.is_valid()));
    assert_eq!(observer.children("/consumers/g/owners/t"), Ok(vec![]));
    assert_eq!(observer.children("/consumers/g/ids"), Ok(vec![]));
    for (partition, text) in [(0, "7"), (1, "51"), (2, "0")] {
        let node = observer.read(&paths::offset("g", "t", partition)).unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&node.data), text, "partition {partition}");
    }
}

#[test]
fn a_partition_that_is_added_to_the_topic_begins_at_0_and_those_of_a_new_group_as_start_from_says() {
    let ensemble = InMemoryEnsemble::new();
    let observer = ensemble.connect(SESSION);
    create_topic(&*observer, &[1, 2]);
    let one = RunningMember::start(&ensemble);
    let gained = one.gains(&[0, 1]);
    assert_eq!((gained[&0].1, gained[&1].1), (None, None));
    one.commands.send(GroupCommand::Commit { partition: 0, generation: gained[&0].0, next: 5 });
    one.wait_for_text("/consumers/g/offsets/t/0", "5");
    one.commands.send(GroupCommand::Leave);
    one.thread.join().unwrap();

    // Partition 1 has no stored offset, but it is as old as the group.
    let topic = observer.read("/brokers/topics/t").unwrap().unwrap();
    observer.write("/brokers/topics/t", br#"{"partitions":{"0":[1],"1":[1],"2":[1]}}"#, topic.version).unwrap();
    let state = "/brokers/topics/t/partitions/2/state";
    create_with_parents(&*observer, state, br#"{"leader":1}"#, Lifetime::Persistent).unwrap();
    let two = RunningMember::start(&ensemble);
    let gained = two.gains(&[0, 1, 2]);
    assert_eq!((gained[&0].1, gained[&1].1, gained[&2].1), (Some(5), None, Some(0)));
    assert_eq!(two.read("/consumers/g/offsets/t/2").unwrap().data, b"0", "stored by the claim");
    two.commands.send(GroupCommand::Leave);
    two.thread.join().unwrap();
}

#[test]
fn store_now_is_stored_before_the_interval_and_also_below_the_stored_offset() {
    let ensemble = InMemoryEnsemble::new();
    let observer = ensemble.connect(SESSION);
    create_topic(&*observer, &[1]);
    create_with_parents(&*observer, "/consumers/g/offsets/t/0", b"100", Lifetime::Persistent).unwrap();
    let one = RunningMember::storing_every(&ensemble, 100 * PATIENCE);
    let (generation, _) = one.gains(&[0])[&0];
    one.commands.send(GroupCommand::Commit { partition: 0, generation, next: 120 });
    let log = LogIdentity { topic_id: Some([9; 16]), leader_epoch: None };
    one.commands.send(GroupCommand::StoreNow { partition: 0, generation, next: 0, log });
    one.wait_for_text("/consumers/g/offsets/t/0", "0");
    one.commands.send(GroupCommand::Leave);
    one.thread.join().unwrap();
    assert_eq!(observer.read("/consumers/g/offsets/t/0").unwrap().unwrap().data, b"0");
    let ahead = observer.read("/consumers/g/ahead/t/0").unwrap().unwrap().data;
    assert!(String::from_utf8_lossy(&ahead).contains(&"09".repeat(16)), "the log is stored with its offset");
}

#[test]
fn the_first_offset_of_a_partition_is_stored_before_the_interval() {
    let ensemble = InMemoryEnsemble::new();
    create_topic(&*ensemble.connect(SESSION), &[1]);
    let one = RunningMember::storing_every(&ensemble, 100 * PATIENCE);
    let (generation, _) = one.gains(&[0])[&0];
    one.wait_for_health(Some("where partitions [0] begin is not stored yet"));
    // Until an offset is stored, a restart with start_from=latest would skip the messages appended since the start.
    one.commands.send(GroupCommand::Commit { partition: 0, generation, next: 50 });
    one.wait_for_text("/consumers/g/offsets/t/0", "50");
    one.wait_for_health(None);
    one.leave();
}

#[test]
fn a_second_member_gains_its_partitions_only_after_their_release() {
    let ensemble = InMemoryEnsemble::new();
    create_topic(&*ensemble.connect(SESSION), &[1, 1, 1, 1]);
    let one = RunningMember::start(&ensemble);
    let gained = one.gains(&[0, 1, 2, 3]);
    let two = RunningMember::start(&ensemble);
    let mut releasing: Vec<_> = (0..2)
        .map(|_| match one.next() {
            GroupEvent::Releasing { partition, generation } => (partition, generation),
            other => panic!("{other:?}"),
        })
        .collect();
    releasing.sort_unstable();
    assert!(two.events.is_empty(), "nothing is released yet");
    assert!(one.lease_is_valid(releasing[0].0, gained[&releasing[0].0].0), "the lease is valid until the release");
    for (partition, generation) in &releasing {
        one.commands.send(GroupCommand::Release { partition: *partition, generation: *generation, next: Some(10) });
    }
    let released: Vec<_> = releasing.iter().map(|(partition, _)| *partition).collect();
    assert_eq!(released, [2, 3], "the owner keeps the lower half");
    let taken = two.gains(&released);
    assert!(taken.values().all(|(_, position)| *position == Some(10)));
    one.leave();
    let rest: Vec<_> = (0..4).filter(|partition| !released.contains(partition)).collect();
    two.gains(&rest);
    two.leave();
}

#[test]
fn a_lost_session_ends_all_claims_and_the_next_session_gains_them_again() {
    let ensemble = InMemoryEnsemble::new();
    create_topic(&*ensemble.connect(SESSION), &[1, 1]);
    let one = RunningMember::start(&ensemble);
    let first = one.gains(&[0, 1]);
    one.commands.send(GroupCommand::Commit { partition: 0, generation: first[&0].0, next: 5 });
    one.wait_for_text("/consumers/g/offsets/t/0", "5");
    ensemble.expire(&one.keeper);
    let mut lost: Vec<_> = (0..2).map(|_| one.next()).collect();
    lost.sort_by_key(|event| format!("{event:?}"));
    let expected = |partition| GroupEvent::Lost { partition, generation: first[&partition].0 };
    assert_eq!(lost, [expected(0), expected(1)]);
    assert!(!one.lease_is_valid(0, first[&0].0));
    let again = one.gains(&[0, 1]);
    assert_eq!(again[&0].1, Some(5));
    assert!(again[&0].0 > first[&1].0);
    one.commands.send(GroupCommand::Commit { partition: 0, generation: first[&0].0, next: 4 });
    one.commands.send(GroupCommand::Commit { partition: 1, generation: again[&1].0, next: 9 });
    one.wait_for_text("/consumers/g/offsets/t/1", "9");
    assert_eq!(one.read("/consumers/g/offsets/t/0").unwrap().data, b"5", "commits of the old generation are ignored");
    assert_eq!(one.read("/consumers/g/ids").map(|_| one.keeper.children("/consumers/g/ids").unwrap().len()), Some(1));
    one.leave();
}

#[test]
fn an_unreachable_member_is_fenced() {
    let ensemble = InMemoryEnsemble::new();
    create_topic(&*ensemble.connect(SESSION), &[1]);
    let paused = RunningMember::start(&ensemble);
    let old = paused.gains(&[0])[&0].0;
    paused.keeper.set_reachable(false);
    paused.commands.send(GroupCommand::Commit { partition: 0, generation: old, next: 3 });
    let deadline = Instant::now() + PATIENCE;
    while paused.lease_is_valid(0, old) {
        assert!(Instant::now() < deadline, "the lease must expire");
        std::thread::yield_now();
    }
    assert!(paused.events.is_empty(), "the session may survive, so nothing is reported yet");

    let other = RunningMember::start(&ensemble);
    assert!(other.events.recv_timeout(3 * SESSION).is_err(), "the claim lasts as long as the session");
    ensemble.expire(&paused.keeper);
    let new = other.gains(&[0])[&0];
    other.commands.send(GroupCommand::Commit { partition: 0, generation: new.0, next: 1 });
    other.wait_for_text("/consumers/g/offsets/t/0", "1");
    paused.keeper.set_reachable(true);
    assert_eq!(paused.next(), GroupEvent::Lost { partition: 0, generation: old });
    assert_eq!(other.read("/consumers/g/offsets/t/0").unwrap().data, b"1", "3 was never stored");
    paused.leave();
    other.leave();
}

#[test]
fn an_offset_written_by_hand_ends_the_claim_and_is_the_position_of_the_next_claim() {
    let ensemble = InMemoryEnsemble::new();
    let observer = ensemble.connect(SESSION);
    create_topic(&*observer, &[1]);
    let one = RunningMember::start(&ensemble);
    let first = one.gains(&[0])[&0].0;
    let path = paths::offset("g", "t", 0);
    let node = observer.read(&path).unwrap().unwrap();
    observer.write(&path, b"100", node.version).unwrap();
    one.commands.send(GroupCommand::Commit { partition: 0, generation: first, next: 8 });
    assert_eq!(one.next(), GroupEvent::Lost { partition: 0, generation: first });
    assert_eq!(one.gains(&[0])[&0].1, Some(100));
    one.leave();
}

#[test]
fn a_member_claims_and_leaves_despite_lost_responses_and_a_topic_created_later() {
    let ensemble = InMemoryEnsemble::new();
    let one = RunningMember::start(&ensemble);
    assert!(one.events.recv_timeout(SESSION).is_err());
    one.keeper.lose_responses(1);
    let observer = ensemble.connect(SESSION);
    create_topic(&*observer, &[-1]);
    let (generation, start) = one.gains(&[0])[&0];
    assert_eq!(start, Some(0), "the topic is younger than the group");
    one.keeper.lose_responses(1);
    one.commands.send(GroupCommand::Release { partition: 0, generation, next: None });
    one.leave();
    assert_eq!(observer.children("/consumers/g/owners/t"), Ok(vec![]));
    assert_eq!(observer.children("/consumers/g/ids"), Ok(vec![]));
}

#[test]
fn a_partition_is_released_even_if_its_offset_was_written_by_hand() {
    let ensemble = InMemoryEnsemble::new();
    let observer = ensemble.connect(SESSION);
    create_topic(&*observer, &[1, 1]);
    let one = RunningMember::start(&ensemble);
    one.gains(&[0, 1]);
    let two = RunningMember::start(&ensemble);
    let GroupEvent::Releasing { partition, generation } = one.next() else {
        panic!("expected Releasing for one of the two partitions")
    };
    let path = paths::offset("g", "t", partition);
    let node = observer.read(&path).unwrap().unwrap();
    observer.write(&path, b"100", node.version).unwrap();
    one.commands.send(GroupCommand::Release { partition, generation, next: Some(8) });
    assert_eq!(two.gains(&[partition])[&partition].1, Some(100));
    one.leave();
    two.leave();
    assert_eq!(observer.children("/consumers/g/owners/t"), Ok(vec![]));
}

#[test]
fn a_missing_topic_and_rounds_that_fail_are_reported_once_they_last() {
    let ensemble = InMemoryEnsemble::new();
    let keeper = ensemble.connect(SESSION) as SharedKeeper;
    let config = ZookeeperGroupConfig {
        group: "g".into(),
        topic: "t".into(),
        offset_update_interval: SESSION,
        leave_timeout: SESSION,
    };
    let mut group = ZookeeperGroup::new(config, Arc::clone(&keeper), Leases::new(keeper));
    let round_and_states = |group: &mut ZookeeperGroup| {
        let outcome = group.round();
        group.note_round(outcome.as_ref().err());
        let now = Instant::now();
        [group.state(now), group.state(now + Duration::from_secs(10))]
    };
    let missing = Err("topic t does not exist in ZooKeeper".to_owned());
    assert_eq!(round_and_states(&mut group), [Ok(()), missing]);
    create_topic(&*ensemble.connect(SESSION), &[1]);
    let unclaimed = Err("partitions [0] are not claimed yet".to_owned());
    assert_eq!(round_and_states(&mut group), [unclaimed.clone(), unclaimed.clone()]);
    let since = Instant::now();
    group.note_round(Some(&"no right to read".to_owned()));
    group.note_round(Some(&"NoAuth".to_owned()));
    assert_eq!(group.state(since), unclaimed);
    assert_eq!(group.state(Instant::now() + Duration::from_secs(10)), Err("NoAuth".to_owned()));
}
