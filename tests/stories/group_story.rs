//! Members of a group as processes that are killed and paused, over a real ZooKeeper.
//!
//! The members are copies of this test binary. Each says with a time what it gained, pushed and lost; the story then reads from
//! all of them together that nobody ever pushed a partition that another one had taken over.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{RecvTimeoutError, bounded};

use kafka_http_wrapper::broker::{Offset, PartitionId, PartitionInfo};
use kafka_http_wrapper::keeper::{self, KeeperConfig, discovery};
use kafka_http_wrapper::ktransfer::group::zookeeper::{ZookeeperGroup, ZookeeperGroupConfig};
use kafka_http_wrapper::ktransfer::group::{Generation, Group, GroupCommand, GroupEvent, mailbox};
use kafka_http_wrapper::shutdown::Stop;
use kafka_http_wrapper::supervise::{Ended, Supervisor};

use crate::harness::process::{Process, folder};
use crate::harness::{Zk, ZooKeeper, cluster, wait_until};

const SESSION: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(30);
const TAKEOVER: Duration = Duration::from_secs(3 + 3);
const PARTITIONS: i32 = 4;

/// Address of ZooKeeper, for the copy of this binary that is a member.
const MEMBER_OF: &str = "KAFKA_HTTP_WRAPPER_STORY_MEMBER_OF";

fn say(words: &str) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros();
    eprintln!("@ {now} {words}");
}

/// A dispatcher that pushes a message every 5 ms for each partition it holds. Leaves when `stop` is triggered.
fn be_a_member(address: &str, stop: &Stop) {
    let keepers = Supervisor::new("keepers", Stop::new());
    let config = KeeperConfig {
        hosts: vec![address.to_owned()],
        chroot: "/c".into(),
        session_timeout: SESSION,
        connect_timeout: Duration::from_secs(1),
    };
    let keeper = keeper::connect(config, &keepers);
    let config = ZookeeperGroupConfig {
        group: "g".into(),
        topic: "t".into(),
        offset_update_interval: Duration::from_millis(100),
    };
    let group = Box::new(ZookeeperGroup::new(config, Arc::clone(&keeper)));
    let lease = group.lease();
    let (commands, heard) = mailbox();
    let (sender, events) = bounded(16);
    let loops = Supervisor::new("loops", Stop::new());
    loops.spawn_task("group@g", move || group.run(heard, sender));

    let mut held: BTreeMap<PartitionId, (Generation, Offset)> = BTreeMap::new();
    while !stop.is_triggered() {
        match events.recv_timeout(Duration::from_millis(5)) {
            Ok(GroupEvent::Gained { partition, generation, position }) => {
                say(&format!("gained {partition} {}", position.unwrap_or(0)));
                held.insert(partition, (generation, position.unwrap_or(0)));
            }
            Ok(GroupEvent::Releasing { partition, generation }) => {
                let (_, next) = held.remove(&partition).expect("only what was gained is released");
                commands.send(GroupCommand::Release { partition, generation, next: Some(next) });
            }
            Ok(GroupEvent::Lost { partition, .. }) => {
                say(&format!("lost {partition} 0"));
                held.remove(&partition);
            }
            Err(RecvTimeoutError::Timeout) => {
                for (partition, (generation, next)) in &mut held {
                    let before = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros();
                    if lease.is_valid(*partition, *generation) {
                        eprintln!("@ {before} pushed {partition} {next}");
                        *next += 1;
                        commands.send(GroupCommand::Commit {
                            partition: *partition,
                            generation: *generation,
                            next: *next,
                        });
                    }
                }
            }
            Err(RecvTimeoutError::Disconnected) => panic!("the group ended"),
        }
    }
    for (partition, (generation, next)) in held {
        commands.send(GroupCommand::Release { partition, generation, next: Some(next) });
    }
    commands.send(GroupCommand::Leave);
    loops.stop().trigger();
    assert_eq!(loops.join(PATIENCE), Ended::Stopped);
    keeper.close(SESSION);
    keepers.stop().trigger();
    assert_eq!(keepers.join(PATIENCE), Ended::Stopped);
}

/// One line of a member.
struct Said {
    at_us: u128,
    who: usize,
    what: String,
    partition: PartitionId,
    offset: Offset,
}

fn read_lines(who: usize, path: &Path) -> Vec<Said> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let parse = |line: &str| {
        let mut words = line.strip_prefix("@ ")?.split(' ');
        Some(Said {
            at_us: words.next()?.parse().ok()?,
            who,
            what: words.next()?.to_owned(),
            partition: words.next()?.parse().ok()?,
            offset: words.next()?.parse().ok()?,
        })
    };
    text.lines().filter_map(parse).collect()
}

/// Nobody pushes what another has taken over, and nothing is passed over. Returns the number of pushes.
fn check_all(outputs: &[PathBuf]) -> usize {
    let mut said: Vec<Said> = outputs.iter().enumerate().flat_map(|(who, path)| read_lines(who, path)).collect();
    said.sort_by_key(|said| said.at_us);
    let mut owner: HashMap<PartitionId, usize> = HashMap::new();
    let mut next: HashMap<PartitionId, Offset> = HashMap::new();
    let mut pushes = 0;
    for Said { at_us, who, what, partition, offset } in said {
        let expected = next.entry(partition).or_insert(0);
        match what.as_str() {
            "gained" => {
                owner.insert(partition, who);
                assert!(
                    offset <= *expected,
                    "{at_us}: {who} begins {partition} at {offset}, {expected} was not pushed"
                );
            }
            "pushed" => {
                assert_eq!(owner.get(&partition), Some(&who), "{at_us}: {who} pushed {offset} of {partition}");
                assert!(offset <= *expected, "{at_us}: {who} passed over {expected} of {partition}");
                *expected = (*expected).max(offset + 1);
                pushes += 1;
            }
            _ => {}
        }
    }
    pushes
}

fn owners(look: &Zk) -> Vec<String> {
    (0..PARTITIONS).filter_map(|partition| look.read(&format!("/c/consumers/g/owners/t/{partition}"))).collect()
}

fn stored_sum(look: &Zk) -> i64 {
    let stored = |partition| {
        look.read(&format!("/c/consumers/g/offsets/t/{partition}")).and_then(|text| text.parse::<i64>().ok())
    };
    (0..PARTITIONS).filter_map(stored).sum()
}

#[test]
fn a_paused_or_killed_member_is_taken_over_and_never_pushes_what_it_lost() {
    if let Ok(address) = std::env::var(MEMBER_OF) {
        return be_a_member(&address, &Stop::new());
    }
    let server = ZooKeeper::start();
    let look = server.client();
    look.create("/c/brokers/topics/t", r#"{"partitions":{"0":[1],"1":[1],"2":[1],"3":[1]}}"#);
    for partition in 0..PARTITIONS {
        look.create(&format!("/c/brokers/topics/t/partitions/{partition}/state"), r#"{"leader":1}"#);
    }
    let place = folder("members");
    let mut outputs = Vec::new();
    let mut start = |name: &str| {
        let output = place.join(name);
        outputs.push(output.clone());
        let mut command = Command::new(std::env::current_exe().expect("our own path"));
        let test = "group_story::a_paused_or_killed_member_is_taken_over_and_never_pushes_what_it_lost";
        command.args(["--exact", test, "--nocapture"]).env(MEMBER_OF, server.address());
        Process::start(name, command, &output)
    };
    let mut one = start("one");
    wait_until(PATIENCE, "one member owns all", || owners(&look).len() == 4);
    let first = owners(&look).remove(0);
    let mut two = start("two");
    let shared = || {
        let ids = look.children("/c/consumers/g/ids");
        let owners = owners(&look);
        // Runs of two, in the order of the ids.
        ids.len() == 2 && owners == [&ids[0], &ids[0], &ids[1], &ids[1]].map(String::clone)
    };
    wait_until(PATIENCE, "each owns its run of the division", shared);
    let before = stored_sum(&look);
    wait_until(PATIENCE, "both go on", || stored_sum(&look) > before + 50);

    one.signal(libc::SIGSTOP);
    let paused = Instant::now();
    wait_until(PATIENCE, "the other owns all", || {
        let owners = owners(&look);
        owners.len() == 4 && !owners.contains(&first)
    });
    let taken_over = paused.elapsed();
    assert!(taken_over < TAKEOVER, "taken over after {taken_over:?}");
    let after = stored_sum(&look);
    wait_until(PATIENCE, "the other pushes all", || stored_sum(&look) > after + 100);
    one.signal(libc::SIGCONT);
    wait_until(PATIENCE, "each has its run again", shared);

    let ids = look.children("/c/consumers/g/ids");
    assert!(!ids.contains(&first), "the paused one came back under another id");
    two.kill9();
    let killed = Instant::now();
    wait_until(PATIENCE, "the one left owns all", || {
        let owners = owners(&look);
        owners.len() == 4 && owners.windows(2).all(|pair| pair[0] == pair[1])
    });
    let killed_over = killed.elapsed();
    assert!(killed_over < TAKEOVER, "taken over after {killed_over:?}");
    let after = stored_sum(&look);
    wait_until(PATIENCE, "it pushes all", || stored_sum(&look) > after + 100);

    server.kill9();
    server.restart();
    let look = server.client();
    let after = stored_sum(&look);
    wait_until(PATIENCE, "it goes on after ZooKeeper was killed", || stored_sum(&look) > after + 100);
    let killed = owners(&look).remove(0);
    one.kill9();
    let pushes = check_all(&outputs);
    eprintln!("{pushes} pushes; taken over {taken_over:?} after a pause, {killed_over:?} after a kill");
    assert!(pushes > 500, "{pushes} pushes");

    // The last one leaves properly.
    let stop = Stop::new();
    let (stopped, address) = (stop.clone(), server.address());
    let member = std::thread::spawn(move || be_a_member(&address, &stopped));
    wait_until(PATIENCE, "the new one owns all", || {
        let owners = owners(&look);
        owners.len() == 4 && !owners.contains(&killed)
    });
    stop.trigger();
    member.join().expect("it leaves well");
    assert!(owners(&look).is_empty() && look.children("/c/consumers/g/ids").is_empty());
}

#[test]
fn what_a_real_broker_writes_is_understood() {
    let cluster = cluster();
    let topic = cluster.new_topic("discovered", 3);
    let supervisor = Supervisor::new("story", Stop::new());
    let config = KeeperConfig {
        hosts: vec![cluster.zookeeper.clone()],
        chroot: cluster.chroot.to_owned(),
        session_timeout: SESSION,
        connect_timeout: Duration::from_secs(1),
    };
    let keeper = keeper::connect(config, &supervisor);
    let brokers = wait_until(PATIENCE, "it answers", || discovery::brokers(&*keeper, "PLAINTEXT").ok());
    assert_eq!(brokers.join(","), cluster.brokers);
    let known: Vec<_> = (0..3).map(|partition| PartitionInfo { partition, leader: Some(0) }).collect();
    wait_until(PATIENCE, "all partitions are there", || {
        discovery::partitions(&*keeper, &topic).is_ok_and(|partitions| partitions == known)
    });
    keeper.close(SESSION);
    supervisor.stop().trigger();
    assert_eq!(supervisor.join(PATIENCE), Ended::Stopped);
}
