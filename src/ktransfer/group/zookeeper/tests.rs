//! Members of a group over a ZooKeeper in memory: joining, dividing, taking over, being fenced.

use super::*;
use crate::keeper::memory::{MemoryKeeper, MemorySession};
use crate::keeper::paths::{self, create_with_parents};
use crate::keeper::{Keeper, Lifetime, Node};
use crate::ktransfer::group::{Commands, GroupCommand, mailbox};
use crossbeam_channel::{Receiver, bounded};
use std::thread::JoinHandle;

/// A poll is a sixth of it, 200 ms.
const SESSION: Duration = Duration::from_millis(1_200);
const PATIENCE: Duration = Duration::from_secs(20);

fn topic_of(keeper: &dyn Keeper, leaders: &[i32]) {
    let partitions: Vec<_> = (0..leaders.len()).map(|number| format!("\"{number}\":[1]")).collect();
    let make =
        |path: &str, data: String| create_with_parents(keeper, path, data.as_bytes(), Lifetime::Persistent).unwrap();
    make("/brokers/topics/t", format!("{{\"partitions\":{{{}}}}}", partitions.join(",")));
    for (number, leader) in leaders.iter().enumerate() {
        make(&format!("/brokers/topics/t/partitions/{number}/state"), format!("{{\"leader\":{leader}}}"));
    }
}

/// A group with a dispatcher that is the test.
struct Running {
    session: Arc<MemorySession>,
    lease: Lease,
    commands: Commands,
    events: Receiver<GroupEvent>,
    thread: JoinHandle<()>,
}

impl Running {
    fn start(memory: &MemoryKeeper) -> Running {
        Running::storing_every(memory, Duration::from_millis(50))
    }

    fn storing_every(memory: &MemoryKeeper, offset_update_interval: Duration) -> Running {
        let session = memory.session(SESSION);
        let config = ZookeeperGroupConfig { group: "g".into(), topic: "t".into(), offset_update_interval };
        let group = Box::new(ZookeeperGroup::new(config, Arc::clone(&session) as SharedKeeper));
        let lease = group.lease();
        let (commands, mailbox) = mailbox();
        // Small on purpose: the group must go on when the dispatcher is slow.
        let (sender, events) = bounded(1);
        let thread = std::thread::spawn(move || group.run(mailbox, sender));
        Running { session, lease, commands, events, thread }
    }

    fn next(&self) -> GroupEvent {
        self.events.recv_timeout(PATIENCE).expect("an event in time")
    }

    fn gains(&self, expected: &[PartitionId]) -> BTreeMap<PartitionId, (Generation, Option<Offset>)> {
        let mut gained = BTreeMap::new();
        while gained.len() < expected.len() {
            match self.next() {
                GroupEvent::Gained { partition, generation, position } => {
                    assert!(self.lease.valid_for(partition, generation));
                    gained.insert(partition, (generation, position));
                }
                other => panic!("{other:?} while waiting for {expected:?}"),
            }
        }
        assert_eq!(gained.keys().copied().collect::<Vec<_>>(), expected);
        gained
    }

    fn read(&self, path: &str) -> Option<Node> {
        self.session.read(path).expect("it answers")
    }

    fn wait_for_text(&self, path: &str, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.read(path).is_none_or(|node| node.data != text.as_bytes()) {
            assert!(Instant::now() < deadline, "{path} is {:?}, not {text}", self.read(path));
            std::thread::yield_now();
        }
    }

    fn leave(self) {
        self.commands.send(GroupCommand::Leave);
        self.thread.join().expect("the group ends well");
    }
}

#[test]
fn one_member_takes_all_stores_and_leaves_nothing_behind_but_offsets() {
    let memory = MemoryKeeper::new();
    let look = memory.session(SESSION);
    topic_of(&*look, &[1, 2, 1]);
    create_with_parents(&*look, "/consumers/g/offsets/t/1", b"42", Lifetime::Persistent).unwrap();
    let one = Running::start(&memory);
    let gained = one.gains(&[0, 1, 2]);
    assert_eq!((gained[&0].1, gained[&1].1), (None, Some(42)));
    let id = look.children("/consumers/g/ids").unwrap().remove(0);
    assert_eq!(look.read("/consumers/g/owners/t/2").unwrap().unwrap().data, id.as_bytes());

    one.commands.send(GroupCommand::Commit { partition: 1, generation: gained[&1].0, next: 50 });
    one.commands.send(GroupCommand::Commit { partition: 1, generation: gained[&1].0, next: 51 });
    one.commands.send(GroupCommand::Commit { partition: 2, generation: Generation(99), next: 1_000 });
    one.wait_for_text("/consumers/g/offsets/t/1", "51");
    let (generation, next) = (gained[&0].0, Some(7));
    one.commands.send(GroupCommand::Release { partition: 0, generation, next });
    one.commands.send(GroupCommand::Leave);
    one.thread.join().unwrap();
    assert!(!one.lease.valid_for(0, generation) && !one.lease.valid_for(1, gained[&1].0));
    assert_eq!(look.children("/consumers/g/owners/t"), Ok(vec![]));
    assert_eq!(look.children("/consumers/g/ids"), Ok(vec![]));
    for (partition, text) in [(0, "7"), (1, "51"), (2, "-1")] {
        let node = look.read(&paths::offset("g", "t", partition)).unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&node.data), text, "partition {partition}");
    }
}

#[test]
fn the_first_position_of_a_partition_does_not_wait_for_the_interval() {
    let memory = MemoryKeeper::new();
    topic_of(&*memory.session(SESSION), &[1]);
    let one = Running::storing_every(&memory, 100 * PATIENCE);
    let (generation, _) = one.gains(&[0])[&0];
    // Until it is stored, a start from latest would begin behind what came meanwhile.
    one.commands.send(GroupCommand::Commit { partition: 0, generation, next: 50 });
    one.wait_for_text("/consumers/g/offsets/t/0", "50");
    one.leave();
}

#[test]
fn a_second_member_gets_its_share_only_when_it_is_released() {
    let memory = MemoryKeeper::new();
    topic_of(&*memory.session(SESSION), &[1, 1, 1, 1]);
    let one = Running::start(&memory);
    let gained = one.gains(&[0, 1, 2, 3]);
    let two = Running::start(&memory);
    let mut releasing: Vec<_> = (0..2)
        .map(|_| match one.next() {
            GroupEvent::Releasing { partition, generation } => (partition, generation),
            other => panic!("{other:?}"),
        })
        .collect();
    releasing.sort_unstable();
    assert!(two.events.is_empty(), "nothing is free yet");
    assert!(one.lease.valid_for(releasing[0].0, gained[&releasing[0].0].0), "still ours while it is finished");
    for (partition, generation) in &releasing {
        one.commands.send(GroupCommand::Release { partition: *partition, generation: *generation, next: Some(10) });
    }
    let shares: Vec<_> = releasing.iter().map(|(partition, _)| *partition).collect();
    assert!(shares == [0, 1] || shares == [2, 3], "{shares:?}");
    let taken = two.gains(&shares);
    assert!(taken.values().all(|(_, position)| *position == Some(10)));
    one.leave();
    let rest: Vec<_> = (0..4).filter(|partition| !shares.contains(partition)).collect();
    two.gains(&rest);
    two.leave();
}

#[test]
fn a_lost_session_loses_all_claims_and_they_are_gained_again_in_the_next() {
    let memory = MemoryKeeper::new();
    topic_of(&*memory.session(SESSION), &[1, 1]);
    let one = Running::start(&memory);
    let first = one.gains(&[0, 1]);
    one.commands.send(GroupCommand::Commit { partition: 0, generation: first[&0].0, next: 5 });
    one.wait_for_text("/consumers/g/offsets/t/0", "5");
    memory.expire(&one.session);
    let mut lost: Vec<_> = (0..2).map(|_| one.next()).collect();
    lost.sort_by_key(|event| format!("{event:?}"));
    let expected = |partition| GroupEvent::Lost { partition, generation: first[&partition].0 };
    assert_eq!(lost, [expected(0), expected(1)]);
    assert!(!one.lease.valid_for(0, first[&0].0));
    let again = one.gains(&[0, 1]);
    assert_eq!(again[&0].1, Some(5));
    assert!(again[&0].0 > first[&1].0);
    one.commands.send(GroupCommand::Commit { partition: 0, generation: first[&0].0, next: 4 });
    one.commands.send(GroupCommand::Commit { partition: 1, generation: again[&1].0, next: 9 });
    one.wait_for_text("/consumers/g/offsets/t/1", "9");
    assert_eq!(one.read("/consumers/g/offsets/t/0").unwrap().data, b"5", "the old generation stores nothing");
    assert_eq!(one.read("/consumers/g/ids").map(|_| one.session.children("/consumers/g/ids").unwrap().len()), Some(1));
    one.leave();
}

#[test]
fn a_member_that_was_cut_off_is_fenced() {
    let memory = MemoryKeeper::new();
    topic_of(&*memory.session(SESSION), &[1]);
    let paused = Running::start(&memory);
    let old = paused.gains(&[0])[&0].0;
    paused.session.set_reachable(false);
    paused.commands.send(GroupCommand::Commit { partition: 0, generation: old, next: 3 });
    let deadline = Instant::now() + PATIENCE;
    while paused.lease.valid_for(0, old) {
        assert!(Instant::now() < deadline, "the lease must run out");
        std::thread::yield_now();
    }
    assert!(paused.events.is_empty(), "it cannot know yet whether the session survives");

    let other = Running::start(&memory);
    assert!(other.events.recv_timeout(3 * SESSION).is_err(), "the claim lasts as long as the session");
    memory.expire(&paused.session);
    let new = other.gains(&[0])[&0];
    other.commands.send(GroupCommand::Commit { partition: 0, generation: new.0, next: 1 });
    other.wait_for_text("/consumers/g/offsets/t/0", "1");
    paused.session.set_reachable(true);
    assert_eq!(paused.next(), GroupEvent::Lost { partition: 0, generation: old });
    assert_eq!(other.read("/consumers/g/offsets/t/0").unwrap().data, b"1", "3 was never stored");
    paused.leave();
    other.leave();
}

#[test]
fn an_offset_written_by_hand_is_a_new_position() {
    let memory = MemoryKeeper::new();
    let look = memory.session(SESSION);
    topic_of(&*look, &[1]);
    let one = Running::start(&memory);
    let first = one.gains(&[0])[&0].0;
    let path = paths::offset("g", "t", 0);
    let node = look.read(&path).unwrap().unwrap();
    look.write(&path, b"100", node.version).unwrap();
    one.commands.send(GroupCommand::Commit { partition: 0, generation: first, next: 8 });
    assert_eq!(one.next(), GroupEvent::Lost { partition: 0, generation: first });
    assert_eq!(one.gains(&[0])[&0].1, Some(100));
    one.leave();
}

#[test]
fn a_lost_answer_is_no_harm_and_the_topic_may_come_late() {
    let memory = MemoryKeeper::new();
    let one = Running::start(&memory);
    assert!(one.events.recv_timeout(SESSION).is_err());
    one.session.lose_answers(1);
    let look = memory.session(SESSION);
    topic_of(&*look, &[-1]);
    let generation = one.gains(&[0])[&0].0;
    one.session.lose_answers(1);
    one.commands.send(GroupCommand::Release { partition: 0, generation, next: None });
    one.leave();
    assert_eq!(look.children("/consumers/g/owners/t"), Ok(vec![]));
    assert_eq!(look.children("/consumers/g/ids"), Ok(vec![]));
}

#[test]
fn a_partition_that_was_written_by_hand_is_given_back_all_the_same() {
    let memory = MemoryKeeper::new();
    let look = memory.session(SESSION);
    topic_of(&*look, &[1, 1]);
    let one = Running::start(&memory);
    one.gains(&[0, 1]);
    let two = Running::start(&memory);
    let GroupEvent::Releasing { partition, generation } = one.next() else { panic!("one of two is released") };
    let path = paths::offset("g", "t", partition);
    let node = look.read(&path).unwrap().unwrap();
    look.write(&path, b"100", node.version).unwrap();
    one.commands.send(GroupCommand::Release { partition, generation, next: Some(8) });
    assert_eq!(two.gains(&[partition])[&partition].1, Some(100));
    one.leave();
    two.leave();
    assert_eq!(look.children("/consumers/g/owners/t"), Ok(vec![]));
}
