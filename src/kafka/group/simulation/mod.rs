//! Whole groups in virtual time: members, owners and a model of the coordinator, with random joins, crashes, closes,
//! delays, lost requests and responses, and changes of the coordinator.
//!
//! Checked at every step: no partition is worked on by two owners. Checked after the faults have ended: every partition
//! is worked on.

mod coordinator;
mod process;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use self::coordinator::{Answer, Coordinator, RequestId};
use self::process::{Happens, Process, Scheduled, Sent};
use super::assignor::{Assignor, PartitionCounts};
use super::config::GroupConfig;
use super::member::{Member, Next};
use super::{GroupEvent, TopicPartition};
use crate::kafka::protocol::heartbeat::HeartbeatResponse;

const SESSION_MS: u64 = 10_000;
const REBALANCE_MS: u64 = 15_000;
const PROCESSES: usize = 5;
/// Virtual time with and without faults.
const FAULTY_MS: u64 = 150_000;
const QUIET_MS: u64 = 120_000;

struct Simulation {
    start: Instant,
    now_ms: u64,
    random: u64,
    faults: bool,
    assignors: Vec<Assignor>,
    /// Whether processes are static members.
    is_static: bool,
    counts: PartitionCounts,
    coordinator: Coordinator,
    processes: Vec<Option<Process>>,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    scheduled: std::collections::HashMap<u64, Scheduled>,
    next_number: u64,
    /// The process, its incarnation and the arrival of the responses of each request.
    requests: std::collections::HashMap<RequestId, (usize, u64)>,
    log: VecDeque<String>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut simulation = Simulation {
            start: Instant::now(),
            now_ms: 0,
            random: seed | 1,
            faults: true,
            assignors: vec![Assignor::CooperativeSticky],
            is_static: false,
            counts: [("t".into(), 5), ("u".into(), 2)].into(),
            coordinator: Coordinator::new(),
            processes: (0..PROCESSES).map(|_| None).collect(),
            queue: BinaryHeap::new(),
            scheduled: std::collections::HashMap::new(),
            next_number: 0,
            requests: std::collections::HashMap::new(),
            log: VecDeque::new(),
        };
        simulation.is_static = simulation.chance(30);
        if simulation.chance(30) {
            simulation.assignors.push(Assignor::Range);
        }
        simulation
    }

    /// Returns a number below `bound` (xorshift).
    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn delay(&mut self) -> u64 {
        match self.faults && self.chance(4) {
            true => self.below(2 * SESSION_MS),
            false => 1 + self.below(40),
        }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.now_ms)
    }

    fn note(&mut self, text: String) {
        self.log.push_back(format!("{} {text}", self.now_ms));
        if self.log.len() > 400 {
            self.log.pop_front();
        }
    }

    fn schedule(&mut self, after_ms: u64, process: usize, what: Happens) {
        let Some(incarnation) = self.processes[process].as_ref().map(|process| process.incarnation) else { return };
        self.schedule_for(after_ms, process, incarnation, what);
    }

    fn schedule_for(&mut self, after_ms: u64, process: usize, incarnation: u64, what: Happens) {
        self.next_number += 1;
        self.queue.push(Reverse((self.now_ms + after_ms, self.next_number)));
        self.scheduled.insert(self.next_number, Scheduled { process, incarnation, what });
    }

    fn launch(&mut self, process: usize) {
        let config = GroupConfig {
            session_timeout: Duration::from_millis(SESSION_MS),
            rebalance_timeout: Duration::from_millis(REBALANCE_MS),
            assignors: self.assignors.clone(),
            instance_id: self.is_static.then(|| format!("instance-{process}").into()),
            ..GroupConfig::new("g", [Arc::from("t"), Arc::from("u")])
        };
        self.next_number += 1;
        self.note(format!("process {process} starts"));
        self.processes[process] = Some(Process {
            member: Member::new(Arc::new(config)),
            incarnation: self.next_number,
            outstanding: None,
            working_on: BTreeSet::new(),
            lease_from: None,
            cut_until: 0,
            owner_until: 0,
        });
        self.schedule(0, process, Happens::Wakes);
    }

    /// Starts, crashes or closes a process, or moves the coordinator.
    fn disturb(&mut self) {
        let process = self.below(PROCESSES as u64) as usize;
        if self.processes[process].is_none() {
            return self.launch(process);
        }
        match self.below(10) {
            0..4 => {
                self.note(format!("process {process} crashes"));
                self.processes[process] = None;
            }
            4..6 => {
                self.note(format!("process {process} closes"));
                let leave = self.processes[process].as_mut().and_then(|process| process.member.leave(false));
                if let Some(leave) = leave {
                    self.send(process, Sent::Leave(leave));
                }
                self.processes[process] = None;
            }
            6 => {
                self.note("the coordinator moves".into());
                let loading = Duration::from_millis(self.below(3_000));
                self.coordinator.fail_over(self.now(), loading);
            }
            7 => {
                let count = self.counts.entry("u".into()).or_default();
                *count = (*count + 1).min(6);
                self.note("a topic has more partitions".into());
                self.refresh_partition_counts();
            }
            _ => {
                let length = self.below(2 * SESSION_MS);
                let until = self.now_ms + length;
                self.note(format!("process {process} is cut off for {length} ms"));
                if let Some(running) = &mut self.processes[process] {
                    running.cut_until = until;
                }
            }
        }
    }

    /// Whether a message of a process gets lost.
    fn is_lost(&mut self, process: usize) -> bool {
        let cut_until = self.processes[process].as_ref().map_or(0, |running| running.cut_until);
        self.faults && (self.now_ms < cut_until || self.chance(4))
    }

    fn refresh_partition_counts(&mut self) {
        for process in self.processes.iter_mut().flatten() {
            process.member.refresh_partition_counts(&self.counts);
        }
    }

    fn send(&mut self, process: usize, request: Sent) {
        self.next_number += 1;
        let id = self.next_number;
        let Some(running) = &mut self.processes[process] else { return };
        self.requests.insert(id, (process, running.incarnation));
        running.outstanding = Some(id);
        let timeout = match request {
            Sent::Join(_) | Sent::Sync(_) => REBALANCE_MS + 5_000,
            _ => 4_000,
        };
        self.schedule(timeout, process, Happens::TimesOut(id));
        if !self.is_lost(process) {
            let delay = self.delay();
            self.schedule(delay, process, Happens::Arrives(id, request));
        }
    }

    /// Delivers responses, some late or never.
    fn deliver(&mut self) {
        for answer in self.coordinator.take_answers() {
            let (Answer::Join(id, _) | Answer::Sync(id, _)) = &answer;
            let Some((process, incarnation)) = self.requests.get(id).copied() else { continue };
            if !self.is_lost(process) {
                let delay = self.delay();
                self.schedule_for(delay, process, incarnation, Happens::Answered(answer));
            }
        }
    }

    fn happen(&mut self, Scheduled { process, incarnation, what }: Scheduled) {
        let now = self.now();
        // A request arrives also if its sender has crashed.
        if let Happens::Arrives(id, request) = what {
            let is_alive = self.processes[process].as_ref().is_some_and(|running| running.incarnation == incarnation);
            // Except for the join of a static member that has ended since: it would take the place of the process that
            // runs now, whatever its lease. The protocol has no defence against that, see the config.
            let is_ghost = matches!(&request, Sent::Join(join) if join.instance_id.is_some()) && !is_alive;
            if is_ghost {
                return;
            }
            match request {
                Sent::Join(request) => self.coordinator.join(now, id, &request),
                Sent::Sync(request) => self.coordinator.sync(now, id, &request),
                Sent::Leave(request) => self.coordinator.leave(now, &request),
                Sent::Heartbeat(request) => {
                    let code = self.coordinator.heartbeat(now, &request);
                    let delay = self.delay();
                    if !self.is_lost(process) {
                        self.schedule_for(delay, process, incarnation, Happens::HeartbeatAnswered(id, code));
                    }
                }
            }
            return;
        }
        let Some(running) = self.processes[process].as_mut().filter(|running| running.incarnation == incarnation)
        else {
            return;
        };
        match what {
            Happens::Arrives(..) | Happens::Wakes => {}
            Happens::Answered(answer) => {
                let (Answer::Join(id, _) | Answer::Sync(id, _)) = &answer;
                if running.outstanding != Some(*id) {
                    return;
                }
                running.outstanding = None;
                match answer {
                    Answer::Join(_, response) => running.member.join_answered(now, response),
                    Answer::Sync(_, response) => running.member.sync_answered(now, &response),
                }
            }
            Happens::HeartbeatAnswered(id, error_code) => {
                if running.outstanding != Some(id) {
                    return;
                }
                running.outstanding = None;
                running.member.heartbeat_answered(now, HeartbeatResponse { throttle_time_ms: 0, error_code });
            }
            Happens::TimesOut(id) => {
                if running.outstanding != Some(id) {
                    return;
                }
                running.outstanding = None;
                running.member.request_failed(now);
            }
            Happens::Counts(id, counts) => {
                if running.outstanding != Some(id) {
                    return;
                }
                running.outstanding = None;
                match counts {
                    Some(counts) => running.member.set_partition_counts(counts),
                    None => running.member.request_failed(now),
                }
            }
            Happens::OwnerSees(event) => self.owner_sees(process, event),
            Happens::Releases(token) => running.member.released(token),
        }
        self.advance(process);
    }

    fn owner_sees(&mut self, process: usize, event: GroupEvent) {
        let delay = self.delay();
        let Some(running) = &mut self.processes[process] else { return };
        match event {
            GroupEvent::Assigned { partitions, .. } => running.working_on.extend(partitions),
            GroupEvent::HeartbeatAnswered { sent, .. } => running.lease_from = Some(sent),
            GroupEvent::Revoke { partitions, token } | GroupEvent::Lost { partitions, token, .. } => {
                running.working_on.retain(|partition| !partitions.contains(partition));
                self.schedule(delay, process, Happens::Releases(token));
            }
            GroupEvent::Failed { reason } => {
                // Only a duplicate of the instance id is fatal here, and a process that failed is started again.
                self.note(format!("process {process} failed: {reason}"));
                self.processes[process] = None;
                self.launch(process);
            }
        }
    }

    /// Sends the next request of a member and passes its events to the owner.
    fn advance(&mut self, process: usize) {
        let now = self.now();
        let Some(running) = &mut self.processes[process] else { return };
        if running.outstanding.is_none() {
            match running.member.next(now) {
                Next::Join(request) => self.send(process, Sent::Join(request)),
                Next::Sync(request) => self.send(process, Sent::Sync(request)),
                Next::Heartbeat(request) => self.send(process, Sent::Heartbeat(request)),
                Next::PartitionCounts(_) => {
                    self.next_number += 1;
                    let id = self.next_number;
                    running.outstanding = Some(id);
                    let counts = (!(self.faults && self.chance(4))).then(|| self.counts.clone());
                    let delay = self.delay();
                    self.schedule(delay, process, Happens::Counts(id, counts));
                }
                Next::Wait(until) => {
                    let after = until.saturating_duration_since(now).as_millis() as u64;
                    self.schedule(after.max(1), process, Happens::Wakes);
                }
                Next::Ended => {}
            }
        }
        while let Some(event) = self.processes[process].as_mut().and_then(|running| running.member.take_event()) {
            self.note(format!("process {process}: {event:?}"));
            let delay = self.delay();
            let now_ms = self.now_ms;
            let Some(running) = &mut self.processes[process] else { return };
            running.owner_until = running.owner_until.max(now_ms + delay);
            let after = running.owner_until - now_ms;
            self.schedule(after, process, Happens::OwnerSees(event));
        }
    }

    /// The partitions that the owner of a process works on now.
    fn worked_on(&self, process: &Process) -> BTreeSet<TopicPartition> {
        let lease_end = process.lease_from.map(|from| from + Duration::from_millis(SESSION_MS));
        match lease_end.is_some_and(|end| self.now() < end) {
            true => process.working_on.clone(),
            false => BTreeSet::new(),
        }
    }

    fn check(&self) -> BTreeSet<TopicPartition> {
        let mut all = BTreeSet::new();
        for process in self.processes.iter().flatten() {
            for partition in self.worked_on(process) {
                let text = || self.log.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
                assert!(all.insert(partition.clone()), "{partition} has two owners at {}:\n{}", self.now_ms, text());
            }
        }
        all
    }

    fn run_until(&mut self, end_ms: u64) {
        while let Some(Reverse((time, number))) = self.queue.peek().copied() {
            if time >= end_ms {
                break;
            }
            self.queue.pop();
            self.now_ms = time;
            let now = self.now();
            self.coordinator.tick(now);
            if let Some(scheduled) = self.scheduled.remove(&number) {
                self.happen(scheduled);
            }
            self.deliver();
            self.check();
        }
        self.now_ms = end_ms;
        let now = self.now();
        self.coordinator.tick(now);
        self.deliver();
    }

    fn run(&mut self) {
        self.launch(0);
        while self.now_ms < FAULTY_MS {
            let next = self.now_ms + 1 + self.below(9_000);
            self.run_until(next);
            self.disturb();
        }
        self.faults = false;
        if self.processes.iter().all(Option::is_none) {
            self.launch(0);
        }
        self.note("the faults end".into());
        // The driver refreshes the partition counts now and then.
        for end_ms in [FAULTY_MS + QUIET_MS / 2, FAULTY_MS + QUIET_MS] {
            self.run_until(end_ms);
            self.refresh_partition_counts();
        }
        let expected: BTreeSet<_> = self
            .counts
            .iter()
            .flat_map(|(topic, count)| {
                (0..*count).map(|partition| TopicPartition { topic: Arc::clone(topic), partition })
            })
            .collect();
        let log = || self.log.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
        assert_eq!(self.check(), expected, "{}", log());
        let sizes: Vec<_> = self.processes.iter().flatten().map(|process| process.working_on.len()).collect();
        let is_balanced = sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1;
        assert!(is_balanced || self.assignors.len() > 1, "{sizes:?}\n{}", log());
    }
}

proptest! {
    #[test]
    fn no_partition_has_two_owners_and_every_partition_gets_one(seed: u64) {
        Simulation::new(seed).run();
    }
}
