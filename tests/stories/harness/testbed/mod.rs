//! A whole system under faults: kproxy, several instances of ktransfer and a fleet of backends, with a link before
//! everything that an instance connects to.
//!
//! A story starts a [`Testbed`], carries out a script of faults with [`Testbed::run`], and ends with
//! [`Testbed::finish`], which waits until every confirmed message is delivered, stops all daemons, and judges the run.

mod apply;
mod letters;
mod resources;
mod services;
mod traffic;
mod watch;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

pub(crate) use self::services::Groups;
pub(crate) use self::watch::STALL;

use self::letters::{LettersTopic, REFUSED, is_refused};
use self::services::Services;
use self::traffic::Traffic;
use self::watch::{ProcessId, Sampled, Watcher};
use super::fault_oracle::{Disturbance, Evidence, Limits, Position, Push, Verdict, judge};
use super::faults::SplitMix;
use super::fleet::{Arrival, Fleet, INSTANCE_HEADER, Reply};
use super::{ConfigFile, Kproxy, Ktransfer, STOP_DEADLINE, configs, poll, wait_until};

/// The session timeout of the instances.
pub(crate) const SESSION: Duration = Duration::from_secs(3);
/// Time after the last fault within which every confirmed message must be delivered.
const SETTLE_DEADLINE: Duration = Duration::from_secs(90);
const TOPIC: &str = "testbed_topic";

/// The size of a testbed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) n_instances: usize,
    pub(crate) n_backends: usize,
    pub(crate) n_partitions: i32,
    pub(crate) n_keys: u64,
    /// Messages that are posted in a second.
    pub(crate) per_second: u32,
}

impl Default for Size {
    fn default() -> Size {
        Size { n_instances: 3, n_backends: 2, n_partitions: 8, n_keys: 60, per_second: 200 }
    }
}

/// One instance of ktransfer; it has a slot, and another name after each start.
struct Instance {
    name: String,
    ktransfer: Ktransfer,
}

/// A running system.
pub(crate) struct Testbed {
    size: Size,
    services: Services,
    module: String,
    kproxy: Kproxy,
    fleet: Fleet,
    instances: Vec<Instance>,
    n_started: usize,
    /// `None` if no message is refused.
    letters: Option<LettersTopic>,
    traffic: Traffic,
    watcher: Watcher,
    sampled: Sampled,
    /// Every process that the testbed has started, with its name.
    processes: Vec<(ProcessId, String)>,
    started: Instant,
    disturbances: Vec<Disturbance>,
    /// Exit codes other than 0 of instances that were stopped politely.
    bad_exits: Vec<String>,
}

impl Testbed {
    /// Starts all processes and the traffic, with groups in ZooKeeper; returns when every partition is claimed and
    /// messages are delivered.
    pub(crate) fn start(size: Size, seed: u64) -> Testbed {
        Self::start_with(Groups::InZooKeeper, size, seed)
    }

    /// As [`Testbed::start`], with groups in ZooKeeper or in Kafka.
    pub(crate) fn start_with(groups: Groups, size: Size, seed: u64) -> Testbed {
        Self::start_services(groups, size, seed, false)
    }

    /// As [`Testbed::start_with`], with groups in Kafka, and backends that refuse the messages of some keys. The topic
    /// of their dead letters is on the broker that coordinates the group, and on no other.
    pub(crate) fn start_with_letters(size: Size, seed: u64) -> Testbed {
        Self::start_services(Groups::InKafka, size, seed, true)
    }

    fn start_services(groups: Groups, size: Size, seed: u64, has_letters: bool) -> Testbed {
        let (services, module) = Services::start(groups, &size);
        let letters = has_letters.then(|| services.create_letters_topic());
        let fleet = Fleet::start(size.n_backends, normal(seed, has_letters));
        fleet.refuse_stale_claims();
        let kproxy = Kproxy::start_ready(configs::kproxy_for(&services.brokers()));
        let started = Instant::now();
        let letters = letters.map(|name| LettersTopic { name, started: SystemTime::now() });
        let traffic = Traffic::start(&kproxy.address, TOPIC, size.per_second, size.n_keys, seed);
        let sampled: Sampled = Arc::default();
        let offsets = services.offset_reader(&module, size.n_partitions);
        let watcher = Watcher::start(offsets, Arc::clone(&sampled), started);
        let mut testbed = Testbed {
            size,
            processes: vec![(ProcessId::of(kproxy.daemon.pid()), "kproxy".to_owned())],
            services,
            module,
            kproxy,
            fleet,
            instances: Vec::new(),
            n_started: 0,
            letters,
            traffic,
            watcher,
            sampled,
            started,
            disturbances: Vec::new(),
            bad_exits: Vec::new(),
        };
        for slot in 0..size.n_instances {
            let instance = testbed.start_instance(slot);
            testbed.instances.push(instance);
        }
        testbed.wait_until_shared();
        testbed
    }

    fn start_instance(&mut self, slot: usize) -> Instance {
        self.n_started += 1;
        let name = format!("{slot}-{}", self.n_started);
        let config = self.services.config(slot).set("zk_fail_retry_interval_ms", 1000);
        let ktransfer = Ktransfer::start(config, &[(&self.module, self.module_file(&name))]);
        let process = ProcessId::of(ktransfer.daemon.pid());
        self.processes.push((process, format!("instance {name}")));
        self.sampled.lock().unwrap_or_else(PoisonError::into_inner).push(process);
        Instance { name, ktransfer }
    }

    fn module_file(&self, instance: &str) -> ConfigFile {
        let headers: [(&str, &str); 1] = [(INSTANCE_HEADER, instance)];
        let file = configs::module(TOPIC, &self.fleet.addresses())
            .set("protocol.headers", [headers.into_iter().collect::<BTreeMap<_, _>>()])
            .set("protocol.read_timeout_ms", 10_000)
            .set("protocol.write_timeout_ms", 1_000)
            .set("worker_num", 16)
            .set("window_size", 100)
            .set("fail_retry_interval_ms", 50)
            .set("max_retry_interval_ms", 1_000);
        let Some(letters) = &self.letters else { return file };
        let refused = REFUSED.to_string();
        let outcomes = BTreeMap::from([("200-299", "ok"), (&refused, "dead_letter"), ("default", "retry")]);
        file.set("dead_letter_topic", &letters.name).set("outcomes", outcomes)
    }

    /// Waits until every instance owns partitions, and messages are delivered.
    #[track_caller]
    fn wait_until_shared(&self) {
        wait_until(SETTLE_DEADLINE, "every instance owns partitions and messages are delivered", || {
            self.services.n_owned(&self.module) == (self.size.n_partitions as usize, self.size.n_instances)
                && self.fleet.n_arrivals() > 100
        });
    }

    /// Returns the time since the start of the traffic.
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits until every confirmed message is delivered, stops all daemons, and judges the run. The caller compares
    /// the number of repeats with what it allows. Panics, with the judgement, if the run broke a promise.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Verdict {
        let traffic = std::mem::replace(&mut self.traffic, Traffic::none());
        let posts = traffic.finish();
        assert!(!posts.confirmed.is_empty(), "kproxy confirmed nothing");
        // Not asserted here: the verdict names the messages that are not delivered.
        let is_settled = poll(SETTLE_DEADLINE, || self.are_done(&posts.confirmed).then_some(())).is_some();
        let took = self.now();
        let mut leftovers = std::mem::take(&mut self.bad_exits);
        if is_settled {
            for instance in &mut self.instances {
                instance.ktransfer.daemon.stop(STOP_DEADLINE);
            }
            leftovers.extend(self.unstored());
        }
        self.kproxy.daemon.stop(STOP_DEADLINE);
        let seen = self.watcher.seen();
        let pushes: Vec<Push> = self.fleet.arrivals().iter().map(|arrival| push(arrival, self.started)).collect();
        leftovers.extend(self.leftovers(is_settled));
        for (process, samples) in &seen.samples {
            let name = self.processes.iter().find(|(known, _)| known == process).map_or("", |(_, name)| name);
            let of_instance = pushes.iter().filter(|push| name.strip_prefix("instance ") == Some(&*push.instance));
            let mut began: Vec<Duration> = of_instance.map(|push| push.began).collect();
            began.sort_unstable();
            let busy = resources::busy(samples, &began);
            let grown = resources::growth(&busy);
            leftovers.extend(grown.into_iter().map(|growth| format!("{name}: {growth}")));
            if let (Some(first), Some(last)) = (busy.first(), busy.last()) {
                let (n_busy, n) = (busy.len(), samples.len());
                eprintln!("{name}: {n_busy} samples of {n} while busy, first {first:?}, last {last:?}");
            }
        }
        let mut disturbances = self.disturbances.clone();
        disturbances.extend(seen.stalls);
        let limits = Limits {
            fence_slack: Duration::from_millis(250),
            // A takeover takes a session timeout and 3 s; the new owner then catches up.
            aftermath: SESSION + Duration::from_secs(6) + self.services.leaders_return(),
            // Offsets are stored each second.
            commit_lag: Duration::from_secs(3),
        };
        let (dead_letters, letters) = self.judge_letters(&pushes, &disturbances, &limits);
        leftovers.extend(letters.violations);
        let evidence =
            Evidence { confirmed: posts.confirmed, dead_letters, pushes, stored: seen.stored, disturbances, leftovers };
        let mut verdict = judge(&evidence, &limits);
        for (what, count) in letters.repeats_by_disturbance {
            verdict.n_repeats += count;
            *verdict.repeats_by_disturbance.entry(what).or_default() += count;
        }
        let rate = verdict.n_delivered as f64 / took.as_secs_f64();
        eprintln!(
            "{:.0} s, {rate:.0} messages/s, {} posts not confirmed; {verdict}",
            took.as_secs_f64(),
            posts.n_unconfirmed
        );
        if !verdict.is_good() {
            for disturbance in &evidence.disturbances {
                let (from, until) = (disturbance.from.as_secs_f64(), disturbance.until.as_secs_f64());
                eprintln!("  {from:.3} s to {until:.3} s: {}", disturbance.what);
            }
        }
        assert!(verdict.is_good(), "{verdict}");
        verdict
    }

    fn are_done(&self, confirmed: &[Position]) -> bool {
        let (delivered, refused) = (self.fleet.delivered(), self.refused());
        let is_done = |position: &Position| delivered.contains(position) || refused.contains(position);
        confirmed.iter().all(is_done) && self.are_letters_stored(refused.len())
    }

    /// Returns the partitions whose stored offset is not the end of the log after the stop.
    fn unstored(&self) -> Vec<String> {
        let partitions = self.services.ends_and_stored(&self.module).into_iter();
        let wrong = partitions.filter(|(_, (end, stored))| stored.unwrap_or_default() != *end);
        wrong
            .map(|(partition, (end, stored))| format!("partition {partition}: {stored:?} stored, log end {end}"))
            .collect()
    }

    /// Returns the processes that still run, and the claims and members that are left.
    fn leftovers(&self, is_stopped: bool) -> Vec<String> {
        if !is_stopped {
            return vec!["the run did not settle".to_owned()];
        }
        let alive = self.processes.iter().filter(|(process, _)| process.is_alive());
        let mut found: Vec<String> =
            alive.map(|(process, name)| format!("{name} (pid {}) still runs", process.pid)).collect();
        found.extend(self.services.claims_and_members(&self.module));
        found
    }
}

/// Answers like a good backend, within a few milliseconds: 200, or to some messages that they are refused.
fn normal(seed: u64, refuses: bool) -> impl Fn(&Arrival) -> Reply + Send + Sync + 'static {
    let random = Mutex::new(SplitMix(seed));
    move |arrival| {
        let wait = random.lock().unwrap_or_else(PoisonError::into_inner).below(10);
        let reply = if refuses && is_refused(arrival) { Reply::status(REFUSED) } else { Reply::ok() };
        reply.after(Duration::from_millis(wait))
    }
}

fn push(arrival: &Arrival, started: Instant) -> Push {
    let since = |time: Instant| time.saturating_duration_since(started);
    Push {
        key: arrival.key(),
        position: arrival.position(),
        instance: arrival.instance().to_owned(),
        claim: arrival.claim(),
        began: since(arrival.began),
        ended: arrival.ended.map(since),
        is_delivered: arrival.is_delivered(),
    }
}
