//! Random schedules of the core against a model of a cluster ([`cluster`], [`log`]): appends, transactions, compaction,
//! retention, elections with and without truncation, topics created again, lost and late responses, lost sessions,
//! damaged data, old metadata, pauses, new assignments. No sockets, no threads, and the time is a number.
//!
//! Checked: messages come in order and only from committed transactions; positions rise; a truncation names a point
//! that separates the messages that are in the log from those that are not; and in the end the owner has exactly the
//! messages that the log has.

mod cluster;
mod log;
mod owner;
mod random;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::FetchConfig;
use super::core::{BrokerVersions, FetchCore, FetchPlan, MetadataWork, PartitionQuery, QueryPlan, QueryResults, Work};
use super::outcome::outcome;
use super::session::FetchSession;
use crate::kafka::metadata::{BrokerId, MetadataResponse};
use crate::kafka::protocol::fetch::{FetchRequest, FetchResponse, PartitionResponse, TopicRef, TopicResponse};
use cluster::{Cluster, Response};
use owner::Owner;
use random::Random;

/// Number of schedules.
const SCHEDULES: u64 = 10_000;
/// Random steps of a schedule; then the faults end.
const STEPS: u64 = 120;
/// Rounds in which all messages must arrive when the faults have ended.
const MAX_ROUNDS: u32 = 400;
/// Rounds in which a last truncation is found although all messages are there.
const MIN_ROUNDS: u32 = 40;
/// Versions of Fetch: without sessions and epochs; without detection of divergence; by name; by id.
const VERSIONS: [i16; 5] = [6, 11, 12, 13, 17];

/// A response that has not arrived.
enum Pending {
    Fetch(FetchPlan, bool, Response),
    Ranges(QueryPlan, QueryResults<(i64, i64)>),
    EpochEnds(QueryPlan, QueryResults<(i32, i64)>),
}

#[derive(Default)]
struct Worker {
    session: FetchSession,
    pending: Option<Pending>,
}

struct Simulation {
    random: Random,
    version: i16,
    committed: bool,
    cluster: Cluster,
    core: FetchCore,
    now: Instant,
    workers: HashMap<BrokerId, Worker>,
    metadata: Option<(Vec<Arc<str>>, MetadataResponse)>,
    old_metadata: Option<MetadataResponse>,
    owners: Vec<Owner>,
    has_faults: bool,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let now = Instant::now();
        let partitions = 1 + random.below(3) as i32;
        let brokers = 1 + random.below(3) as i32;
        let cluster = Cluster::new(partitions, brokers, &mut random);
        let committed = !random.one_in(4);
        let config = FetchConfig {
            prefetch_bytes: [600, 5_000, 1 << 20][random.below(3) as usize],
            max_message_bytes: 1000,
            max_wait: Duration::from_millis(250),
            client_rack: None,
            read_committed: committed,
        };
        let mut core = FetchCore::new(config, now);
        let owners: Vec<Owner> =
            (0..partitions).map(|partition| Owner::new(cluster.topic.clone(), partition)).collect();
        for owner in &owners {
            core.assign(owner.name.clone(), 0, None, None, now);
        }
        let version = VERSIONS[random.below(VERSIONS.len() as u64) as usize];
        Simulation {
            random,
            version,
            committed,
            cluster,
            core,
            now,
            workers: HashMap::new(),
            metadata: None,
            old_metadata: None,
            owners,
            has_faults: true,
        }
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            self.random_step();
        }
        self.has_faults = false;
        for partition in 0..self.cluster.partitions.len() {
            for producer in 0..3 {
                self.cluster.end_transaction(partition, producer, producer == 1);
            }
        }
        for owner in &self.owners {
            self.core.set_paused(&owner.name, false);
        }
        for round in 0..MAX_ROUNDS {
            self.step_metadata();
            (0..self.cluster.brokers).for_each(|id| self.step_worker(id));
            self.poll(1000);
            self.now += Duration::from_millis(50);
            let positions = |owner: &Owner| self.cluster.partition_of(&owner.name).log.end_positions();
            if round >= MIN_ROUNDS
                && self.owners.iter().all(|owner| positions(owner).contains(&owner.position))
                && self.owners.iter().all(|owner| owner.is_complete(&self.cluster, self.committed))
            {
                break;
            }
        }
        for owner in &self.owners {
            owner.check_end(&self.cluster, self.committed);
        }
    }

    fn random_step(&mut self) {
        let partition = self.random.below(self.cluster.partitions.len() as u64) as usize;
        let broker = self.random.below(self.cluster.brokers as u64) as BrokerId;
        match self.random.below(24) {
            0..=3 => {
                let producer = self.random.below(6) as i64 - 3;
                let count = 1 + self.random.below(4);
                self.cluster.append(partition, producer.max(-1), count);
            }
            4 => {
                let (producer, abort) = (self.random.below(3) as i64, self.random.one_in(2));
                self.cluster.end_transaction(partition, producer, abort);
            }
            5 => self.change_log(partition),
            6 => self.elect(partition, broker),
            7 if self.random.one_in(2) => self.cluster.lose_sessions(broker),
            8 if self.version >= 13 && self.random.one_in(8) => self.cluster.recreate(),
            9..=11 => self.step_metadata(),
            12..=18 => self.step_worker(broker),
            19..=21 => {
                let max = 1 + self.random.below(6) as usize;
                self.poll(max);
            }
            22 => self.reassign(partition),
            _ => self.now += Duration::from_millis(self.random.below(400)),
        }
        self.now += Duration::from_millis(self.random.below(20));
    }

    fn change_log(&mut self, partition: usize) {
        let log = &mut self.cluster.partitions[partition].log;
        let index = self.random.below(log.batches.len() as u64 + 1) as usize;
        let removed = if self.random.one_in(4) {
            let start = log.batches.get(index).map_or(log.stable_end(), |batch| batch.base);
            if start <= log.stable_end() { log.expire(start) } else { Vec::new() }
        } else {
            log.compact(index, || self.random.one_in(2))
        };
        self.owners[partition].removed.extend(removed);
    }

    fn elect(&mut self, partition: usize, broker: BrokerId) {
        let log = &self.cluster.partitions[partition].log;
        let mut cut = None;
        // Without leader epochs a truncation is invisible.
        if self.version >= 11 && self.random.one_in(3) && !log.batches.is_empty() {
            let index = self.random.below(log.batches.len() as u64) as usize;
            cut = Some(log.batches[index].base).filter(|offset| log.may_cut(*offset));
        }
        self.cluster.elect(partition, broker, cut);
    }

    fn reassign(&mut self, partition: usize) {
        let paused = self.random.one_in(3);
        let owner = &mut self.owners[partition];
        if self.random.one_in(3) {
            self.core.set_paused(&owner.name, paused);
        } else if self.random.one_in(3) {
            owner.assign(&mut self.core, self.now);
        }
    }

    fn poll(&mut self, max: usize) {
        let events = self.core.take(max);
        let count: usize = events.iter().map(owner::message_count).sum();
        assert!(count <= max, "{count} messages, {max} requested");
        for event in events {
            let Some(name) = event.partition() else { continue };
            let owner = &mut self.owners[name.partition as usize];
            owner.take(&event, &mut self.core, &self.cluster, self.committed, self.now);
        }
    }

    fn step_metadata(&mut self) {
        if let Some((topics, response)) = self.metadata.take() {
            match self.has_faults && self.random.one_in(8) {
                true => self.core.on_metadata_failed("lost".into(), self.now),
                false => self.core.on_metadata(&topics, &response, self.now),
            }
        } else if let MetadataWork::Request(topics) = self.core.metadata_work(self.now) {
            let current = self.cluster.metadata();
            let old = self.old_metadata.replace(current.clone());
            let is_old = self.has_faults && self.random.one_in(5);
            self.metadata = Some((topics, old.filter(|_| is_old).unwrap_or(current)));
        }
        for id in self.core.missing_workers(self.now) {
            self.workers.insert(id, Worker::default());
        }
    }

    fn step_worker(&mut self, id: BrokerId) {
        let Some(mut worker) = self.workers.remove(&id) else { return };
        let is_lost = self.has_faults && self.random.one_in(10);
        match worker.pending.take() {
            Some(pending) if is_lost => {
                worker.session.lost();
                self.core.on_failed(id, Some(pending.number()), "lost".into(), true, self.now);
            }
            Some(pending) => self.deliver(id, &mut worker, pending),
            None => match self.core.next_work(id, self.now) {
                Work::Connect(_) if is_lost => self.core.on_failed(id, None, "refused".into(), false, self.now),
                Work::Connect(_) => {
                    worker.session.lost();
                    let versions = BrokerVersions { fetch: self.version, has_epoch_ends: self.version >= 9 };
                    self.core.on_connected(id, versions);
                }
                Work::Fetch(plan) => worker.pending = Some(self.fetch(id, &mut worker.session, plan)),
                Work::Ranges(plan) => worker.pending = Some(self.ranges(id, plan)),
                Work::EpochEnds(plan) => worker.pending = Some(self.epoch_ends(id, plan)),
                Work::Wait(_) => {}
                Work::End => return,
            },
        }
        self.workers.insert(id, worker);
    }

    fn fetch(&mut self, id: BrokerId, session: &mut FetchSession, plan: FetchPlan) -> Pending {
        let mut request = FetchRequest { read_committed: self.committed, ..FetchRequest::default() };
        session.prepare(plan.version, &plan.wanted, &mut request);
        let response = self.cluster.fetch(id, plan.version, &request);
        Pending::Fetch(plan, request.session_epoch > 0, response)
    }

    fn ranges(&self, id: BrokerId, plan: QueryPlan) -> Pending {
        let range = |query: &PartitionQuery| {
            let partition = self.cluster.partition_of(&query.name);
            let result = match self.cluster.check_leader(id, partition, query.leader_epoch) {
                0 => Ok((partition.log.start, partition.log.end)),
                code => Err(code),
            };
            (query.name.clone(), result)
        };
        let ranges = plan.partitions.iter().map(range).collect();
        Pending::Ranges(plan, ranges)
    }

    fn epoch_ends(&self, id: BrokerId, plan: QueryPlan) -> Pending {
        let end = |query: &PartitionQuery| {
            let partition = self.cluster.partition_of(&query.name);
            let result = match self.cluster.check_leader(id, partition, query.leader_epoch) {
                0 => Ok(partition.log.epoch_end(query.epoch)),
                code => Err(code),
            };
            (query.name.clone(), result)
        };
        let ends = plan.partitions.iter().map(end).collect();
        Pending::EpochEnds(plan, ends)
    }

    fn deliver(&mut self, id: BrokerId, worker: &mut Worker, pending: Pending) {
        match pending {
            Pending::Ranges(plan, ranges) => self.core.on_ranges(id, &plan, &ranges, Duration::ZERO, self.now),
            Pending::EpochEnds(plan, ends) => self.core.on_epoch_ends(id, &plan, &ends, Duration::ZERO, self.now),
            Pending::Fetch(plan, is_incremental, mut response) => {
                if self.has_faults && self.random.one_in(12) {
                    // Damage that the CRC of the first batch shows.
                    response.partitions.iter_mut().filter_map(|one| one.data.get_mut(30)).for_each(|byte| *byte ^= 1);
                }
                worker.session.responded(response.error_code, response.session_id);
                let topics = response.partitions.iter().map(|one| TopicResponse {
                    topic: if plan.version >= 13 { TopicRef::Id(one.key.1) } else { TopicRef::Name(&one.key.0) },
                    partitions: vec![PartitionResponse {
                        partition: one.key.2,
                        error_code: one.error_code,
                        high_watermark: -1,
                        aborted: one.aborted.clone(),
                        preferred_replica: None,
                        diverging: one.diverging,
                        current_leader: one.hint,
                        records: &one.data,
                    }],
                });
                let decoded = FetchResponse {
                    error_code: response.error_code,
                    session_id: response.session_id,
                    topics: topics.collect(),
                    ..FetchResponse::default()
                };
                let outcome = outcome(decoded, &plan, 1 << 20);
                self.core.on_fetched(id, &plan, outcome, is_incremental, self.now);
            }
        }
    }
}

impl Pending {
    fn number(&self) -> u64 {
        match self {
            Pending::Fetch(plan, _, _) => plan.number,
            Pending::Ranges(plan, _) | Pending::EpochEnds(plan, _) => plan.number,
        }
    }
}

#[test]
fn every_committed_message_comes_once_and_in_order_through_all_faults() {
    let mut seen = owner::Seen::default();
    for seed in 0..SCHEDULES {
        let outcome = std::panic::catch_unwind(|| {
            let mut simulation = Simulation::new(seed);
            simulation.run();
            simulation.owners.iter().fold(owner::Seen::default(), |seen, owner| seen.plus(&owner.seen))
        });
        match outcome {
            Ok(one) => seen = seen.plus(&one),
            Err(panic) => {
                let Simulation { version, committed, .. } = Simulation::new(seed);
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                panic!("seed {seed}, version {version}, read_committed {committed}: {text}");
            }
        }
    }
    // The schedules reach every kind of event.
    assert!(seen.is_everything(), "{seen:?}");
}
