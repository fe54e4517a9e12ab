//! Members of a ktransfer group, which run as processes that are killed and paused, with a real ZooKeeper.
//!
//! Each member is a copy of this test binary. It prints, with the time, the partitions that it gained and lost and the
//! messages that it pushed. The story then checks the output of all members: no member pushed a message of a partition
//! that another member had taken over.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{RecvTimeoutError, bounded};

use kafka_http_wrapper::broker::{Offset, PartitionId, PartitionInfo};
use kafka_http_wrapper::keeper::{SharedKeeper, discovery};
use kafka_http_wrapper::ktransfer::group::zookeeper::{ZookeeperGroup, ZookeeperGroupConfig};
use kafka_http_wrapper::ktransfer::group::{
    Claim, Generation, Group, GroupCommand, GroupEvent, Leases, TimedFence, mailbox,
};
use kafka_http_wrapper::shutdown::Stop;
use kafka_http_wrapper::supervise::{Ended, Supervisor};

use crate::harness::keeper::KeeperSession;
use crate::harness::link::Traffic;
use crate::harness::process::{Process, folder, rerun_test};
use crate::harness::{Link, ZkClient, ZooKeeper, cluster, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);
/// The session timeout (3 s), plus 3 s to notice the expiry and to claim the partitions.
const MAX_TAKEOVER: Duration = Duration::from_secs(3 + 3);

/// Number of partitions that a member pushes in one turn; those of a large group would fill the disk.
const MAX_PUSHED: usize = 4;

/// The environment variable that makes a copy of this binary a member; its value is the address of ZooKeeper.
const MEMBER_OF: &str = "KAFKA_HTTP_WRAPPER_STORY_MEMBER_OF";

fn now_us() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970").as_micros()
}

/// The partitions that a member owns, each with the generation and the fence of its claim and the next offset to push.
#[derive(Default)]
struct Held(BTreeMap<PartitionId, (Generation, Arc<TimedFence>, Offset)>);

/// Runs a member until `stop` is triggered. It "pushes" (prints) the next message of each owned partition
/// whenever no event has arrived for 5 ms.
fn run_member(address: &str, stop: &Stop) {
    let session = KeeperSession::connect(&[address.to_owned()], "/c");
    let leases = Leases::new(Arc::clone(&session.keeper));
    let group = Box::new(new_group(&session.keeper, &leases));
    let (commands, inbox) = mailbox();
    let (sender, events) = bounded(16);
    let loops = Supervisor::new("loops", Stop::new());
    let leases_stop = loops.stop().clone();
    loops.spawn("leases", move || leases.run(&leases_stop));
    loops.spawn_task("group@g", move || group.run(inbox, sender));

    let mut held = Held::default();
    while !stop.is_triggered() {
        match events.recv_timeout(Duration::from_millis(5)) {
            Ok(event) => {
                if let Some(command) = held.on_event(event) {
                    commands.send(command);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                for (partition, (generation, fence, next)) in held.0.iter_mut().take(MAX_PUSHED) {
                    // The time of the push is taken before the lease is checked, so a push during a valid lease never
                    // gets a time after the lease has ended.
                    let before_us = now_us();
                    if fence.is_valid() {
                        eprintln!("@ {before_us} pushed {partition} {next}");
                        *next += 1;
                        let (partition, generation, next) = (*partition, *generation, *next);
                        commands.send(GroupCommand::Commit { partition, generation, next });
                    }
                }
            }
            Err(RecvTimeoutError::Disconnected) => panic!("the group ended"),
        }
    }
    for (partition, (generation, _, next)) in held.0 {
        commands.send(GroupCommand::Release { partition, generation, next: Some(next) });
    }
    commands.send(GroupCommand::Leave);
    loops.stop().trigger();
    assert_eq!(loops.join(DEADLINE), Ended::Stopped);
    session.close();
}

fn new_group(keeper: &SharedKeeper, leases: &Arc<Leases>) -> ZookeeperGroup {
    let config = ZookeeperGroupConfig {
        group: "g".into(),
        topic: "t".into(),
        offset_update_interval: Duration::from_millis(100),
        leave_timeout: Duration::from_secs(3),
    };
    ZookeeperGroup::new(config, Arc::clone(keeper), Arc::clone(leases))
}

impl Held {
    /// Prints which partition the member gained or lost; returns the command to send, if the event requires one.
    fn on_event(&mut self, event: GroupEvent) -> Option<GroupCommand> {
        match event {
            GroupEvent::Gained(Claim { partition, generation, fence, position, .. }) => {
                let position = position.map_or(0, |stored| stored.next);
                eprintln!("@ {} gained {partition} {position}", now_us());
                self.0.insert(partition, (generation, fence, position));
                None
            }
            GroupEvent::Releasing { partition, generation } => {
                let (_, _, next) = self.0.remove(&partition).expect("only an owned partition is released");
                Some(GroupCommand::Release { partition, generation, next: Some(next) })
            }
            GroupEvent::Lost { partition, .. } => {
                eprintln!("@ {} lost {partition} 0", now_us());
                self.0.remove(&partition);
                None
            }
        }
    }
}

/// One line of a member's output.
struct Entry {
    at_us: u128,
    member: usize,
    action: String,
    partition: PartitionId,
    offset: Offset,
}

fn read_entries(member: usize, path: &Path) -> Vec<Entry> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let parse = |line: &str| {
        // With one test thread, libtest writes the name of the test at the start of the line of the first entry.
        let (_, entry) = line.split_once("@ ")?;
        let mut words = entry.split(' ');
        Some(Entry {
            at_us: words.next()?.parse().ok()?,
            member,
            action: words.next()?.to_owned(),
            partition: words.next()?.parse().ok()?,
            offset: words.next()?.parse().ok()?,
        })
    };
    text.lines().filter_map(parse).collect()
}

/// Panics if a member pushed a partition after another member had gained it, or if an offset was skipped. Returns the
/// number of pushes.
fn check_entries(outputs: &[PathBuf]) -> usize {
    let read = |(member, path): (usize, &PathBuf)| read_entries(member, path);
    let mut entries: Vec<Entry> = outputs.iter().enumerate().flat_map(read).collect();
    entries.sort_by_key(|entry| entry.at_us);
    let mut owner: HashMap<PartitionId, usize> = HashMap::new();
    let mut next: HashMap<PartitionId, Offset> = HashMap::new();
    let mut n_pushes = 0;
    for Entry { at_us, member, action, partition, offset } in entries {
        let expected = next.entry(partition).or_insert(0);
        match action.as_str() {
            "gained" => {
                owner.insert(partition, member);
                assert!(offset <= *expected, "{at_us}: {member} starts {partition} at {offset}, skipping {expected}");
            }
            "pushed" => {
                assert_eq!(owner.get(&partition), Some(&member), "{at_us}: {member} pushed {offset} of {partition}");
                assert!(offset <= *expected, "{at_us}: {member} skipped {expected} of {partition}");
                *expected = (*expected).max(offset + 1);
                n_pushes += 1;
            }
            _ => {}
        }
    }
    n_pushes
}

/// A ZooKeeper with a topic of four partitions, and the output files of the members of one group.
struct TestGroup {
    server: ZooKeeper,
    n_partitions: i32,
    folder: PathBuf,
    outputs: Vec<PathBuf>,
}

impl TestGroup {
    fn new(n_partitions: i32) -> TestGroup {
        let server = ZooKeeper::start();
        let zk = server.client();
        let partitions: Vec<String> = (0..n_partitions).map(|partition| format!("\"{partition}\":[1]")).collect();
        zk.create("/c/brokers/topics/t", &format!("{{\"partitions\":{{{}}}}}", partitions.join(",")));
        TestGroup { server, n_partitions, folder: folder("members"), outputs: Vec::new() }
    }

    fn start_member(&mut self, name: &str) -> Process {
        let address = self.server.address();
        self.start_member_at(name, &address)
    }

    /// Starts a member that connects to ZooKeeper at `address`.
    fn start_member_at(&mut self, name: &str, address: &str) -> Process {
        let output = self.folder.join(name);
        self.outputs.push(output.clone());
        let mut command =
            rerun_test(module_path!(), "a_paused_or_killed_member_is_taken_over_and_pushes_nothing_it_lost");
        command.env(MEMBER_OF, address);
        Process::start(name, command, &output)
    }

    fn zk(&self) -> ZkClient {
        self.server.client()
    }

    /// Returns the owners of the claimed partitions, in the order of the partitions.
    fn owners(&self) -> Vec<String> {
        let zk = self.zk();
        (0..self.n_partitions)
            .filter_map(|partition| zk.read(&format!("/c/consumers/g/owners/t/{partition}")))
            .collect()
    }

    fn member_ids(&self) -> Vec<String> {
        self.zk().children("/c/consumers/g/ids")
    }

    fn stored_sum(&self) -> i64 {
        let zk = self.zk();
        let stored = |partition| zk.read(&format!("/c/consumers/g/offsets/t/{partition}"))?.parse::<i64>().ok();
        (0..self.n_partitions).filter_map(stored).sum()
    }

    /// Waits until one member, other than `except`, owns all partitions; returns its id.
    #[track_caller]
    fn wait_for_single_owner(&self, except: Option<&str>) -> String {
        wait_until(DEADLINE, "one member owns all partitions", || {
            let owners = self.owners();
            let is_single = owners.len() == 4 && owners.windows(2).all(|pair| pair[0] == pair[1]);
            (is_single && except != Some(owners[0].as_str())).then(|| owners[0].clone())
        })
    }

    /// Waits until two members own two partitions each: the earlier owner keeps partitions 0 and 1.
    #[track_caller]
    fn wait_until_shared(&self) {
        wait_until(DEADLINE, "each member owns its half", || {
            let (mut ids, owners) = (self.member_ids(), self.owners());
            ids.sort();
            let mut halves: Vec<String> = owners.iter().step_by(2).cloned().collect();
            halves.sort();
            owners.len() == 4 && owners[0] == owners[1] && owners[2] == owners[3] && halves == ids
        });
    }

    #[track_caller]
    fn wait_for_progress(&self, n_messages: i64, when: &str) {
        let before = self.stored_sum();
        wait_until(DEADLINE, when, || self.stored_sum() > before + n_messages);
    }
}

#[test]
fn a_paused_or_killed_member_is_taken_over_and_pushes_nothing_it_lost() {
    if let Ok(address) = std::env::var(MEMBER_OF) {
        return run_member(&address, &Stop::new());
    }
    let mut group = TestGroup::new(4);
    let mut one = group.start_member("one");
    let first_id = group.wait_for_single_owner(None);
    let mut two = group.start_member("two");
    group.wait_until_shared();
    group.wait_for_progress(50, "both members push");

    one.signal(libc::SIGSTOP);
    let paused = Instant::now();
    group.wait_for_single_owner(Some(&first_id));
    let after_pause = paused.elapsed();
    assert!(after_pause < MAX_TAKEOVER, "taken over after {after_pause:?}");
    group.wait_for_progress(100, "the other member pushes all partitions");
    one.signal(libc::SIGCONT);
    group.wait_until_shared();
    assert!(!group.member_ids().contains(&first_id), "the paused member returns under a new id");

    two.kill9();
    let killed = Instant::now();
    group.wait_for_single_owner(None);
    let after_kill = killed.elapsed();
    assert!(after_kill < MAX_TAKEOVER, "taken over after {after_kill:?}");
    group.wait_for_progress(100, "the remaining member pushes all partitions");

    group.server.kill9();
    group.server.restart();
    group.wait_for_progress(100, "the member continues after ZooKeeper was killed");
    let killed_id = group.owners().remove(0);
    one.kill9();
    let n_pushes = check_entries(&group.outputs);
    eprintln!("{n_pushes} pushes; taken over {after_pause:?} after a pause, {after_kill:?} after a kill");
    assert!(n_pushes > 500, "{n_pushes} pushes");
    leave_in_order(&group, &killed_id);
}

#[test]
fn many_partitions_are_taken_over_soon_although_each_request_takes_milliseconds() {
    const N_PARTITIONS: i32 = 400;
    let mut group = TestGroup::new(N_PARTITIONS);
    let mut one = group.start_member("one");
    let owned_by_one_member = |group: &TestGroup| {
        let owners = group.owners();
        owners.len() == N_PARTITIONS as usize && owners.iter().all(|owner| *owner == owners[0])
    };
    wait_until(DEADLINE, "one member owns all partitions", || owned_by_one_member(&group));
    let link = Link::to(&group.server.address());
    link.set(Traffic::delayed(Duration::from_millis(3)));
    let _two = group.start_member_at("two", &link.address());
    wait_until(DEADLINE, "each member owns a half", || {
        let owners = group.owners();
        let first = owners.first().map(|first| owners.iter().filter(|owner| *owner == first).count());
        owners.len() == N_PARTITIONS as usize && first == Some(N_PARTITIONS as usize / 2)
    });
    one.kill9();
    let killed = Instant::now();
    wait_until(DEADLINE, "the other member owns all partitions", || owned_by_one_member(&group));
    let after_kill = killed.elapsed();
    eprintln!("{} partitions taken over {after_kill:?} after a kill", N_PARTITIONS / 2);
    // One after the other, three requests for each partition and one for each leader would take 6 s more.
    let max_takeover = MAX_TAKEOVER + Duration::from_secs(4);
    assert!(after_kill < max_takeover, "taken over after {after_kill:?}");
    check_entries(&group.outputs);
}

/// Starts a member and stops it; checks that it deletes its claims and its id when it leaves.
fn leave_in_order(group: &TestGroup, killed_id: &str) {
    let stop = Stop::new();
    let (stopped, address) = (stop.clone(), group.server.address());
    let member = std::thread::spawn(move || run_member(&address, &stopped));
    group.wait_for_single_owner(Some(killed_id));
    stop.trigger();
    member.join().expect("the member does not panic");
    assert!(group.owners().is_empty() && group.member_ids().is_empty());
}

#[test]
fn brokers_and_partitions_are_read_from_the_nodes_of_a_real_broker() {
    let cluster = cluster();
    let topic = cluster.new_topic("discovered", 3);
    let session = KeeperSession::connect(std::slice::from_ref(&cluster.zookeeper), cluster.chroot);
    let keeper = &session.keeper;
    let brokers = wait_until(DEADLINE, "ZooKeeper answers", || discovery::brokers(&**keeper, "PLAINTEXT").ok());
    assert_eq!(brokers.join(","), cluster.brokers);
    let expected: Vec<_> = (0..3).map(|partition| PartitionInfo { partition, leader: Some(0) }).collect();
    wait_until(DEADLINE, "all partitions are found", || {
        discovery::partitions(&**keeper, &topic).is_ok_and(|partitions| partitions == expected)
    });
    session.close();
}
