//! Random schedules: a cluster that fails in all ways at once, and the ends of all messages compared with the logs.
//!
//! The seed of a schedule is the name of its thread, so a failure shows it. A seed does not repeat the order in which
//! threads run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::*;
use crate::kafka::testkit::Rates;
use crate::kafka::testkit::random::Generator;
use crate::random::random;

/// Time in which schedules begin, in seconds; `SOAK_SECONDS` in the environment replaces it.
const SECONDS: u64 = 10;
/// Schedules at the same time. A schedule waits most of the time; more would slow down the tests beside it.
const THREADS: usize = 6;
/// Deadline of the messages that need not end before the faults do.
const LONG_DEADLINE: Duration = Duration::from_secs(4);

const TOPICS: [(&str, i32); 3] = [("plain", 4), ("compacted", 2), ("small", 2)];
const BROKERS: u64 = 3;

#[test]
fn all_ends_are_true_under_random_faults() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(SECONDS, |text| text.parse().expect("a number"));
    let until = Instant::now() + Duration::from_secs(seconds);
    let next_seed = AtomicU64::new(random());
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| run_schedules(&next_seed, until));
        }
    });
}

fn run_schedules(next_seed: &AtomicU64, until: Instant) {
    loop {
        let seed = next_seed.fetch_add(1, Ordering::Relaxed);
        let schedule = thread::Builder::new().name(format!("seed {seed}"));
        schedule.spawn(move || Schedule::start(seed).run()).unwrap().join().unwrap();
        if Instant::now() >= until {
            return;
        }
    }
}

/// A cluster, its client, and the source of what happens to both.
struct Schedule {
    random: Generator,
    // Dropped before the cluster.
    client: TestClient,
    cluster: TestCluster,
    /// Messages so far.
    count: usize,
}

impl Schedule {
    fn start(seed: u64) -> Schedule {
        let mut random = Generator::new(seed);
        let release = Release::ALL[random.below(Release::ALL.len() as u64) as usize];
        let cluster = TestCluster::builder(BROKERS as usize).release(release).start();
        for (topic, partitions) in TOPICS {
            let spec = TopicSpec::new(topic).partitions(partitions as usize);
            cluster.create(match topic {
                "compacted" => spec.compacted(),
                "small" => spec.max_message_bytes(1_500),
                _ => spec,
            });
        }
        cluster.set_leader_hints(random.chance(500));
        cluster.set_replication_delay(Duration::from_millis(random.below(4)));
        let max_idle = Duration::from_millis(if random.chance(200) { 5 } else { 60_000 });
        let linger = Duration::from_millis(random.below(5).saturating_sub(3));
        let client = TestClient::with(&cluster, |settings| {
            settings.connection.max_idle = max_idle;
            settings.connection.connect_timeout = Duration::from_secs(1);
            settings.connection.request_timeout = Duration::from_secs(3);
            settings.producer.linger = linger;
        });
        let permille = random.below(60) as u16;
        let rates = Rates { never: permille / 10, throttle: permille / 4, ..Rates::all(permille) };
        cluster.random_faults(random.number(), rates);
        Schedule { random, client, cluster, count: 0 }
    }

    fn run(mut self) {
        for _ in 0..40 + self.random.below(60) {
            match self.random.below(20) {
                0 => self.move_leader(),
                1 => self.stop_and_start_a_broker(),
                2 => self.pause_a_broker(),
                3 => self.hold_a_request(),
                4 => self.cluster.close_connections(1 + self.random.below(BROKERS) as i32),
                5 => self.cluster.release_held(),
                _ => self.send_burst(),
            }
            self.pause();
        }
        self.cluster.clear_faults();
        self.recovers();
        self.client.finish(&self.cluster);
    }

    /// In a healthy cluster messages to each partition are stored again.
    fn recovers(&self) {
        let partitions = TOPICS.into_iter().flat_map(|(topic, count)| (0..count).map(move |number| (topic, number)));
        let partitions: Vec<_> = partitions.collect();
        for (topic, partition) in &partitions {
            if self.cluster.leader(topic, *partition).0.is_none() {
                self.cluster.move_leader(topic, *partition, Some(1));
            }
        }
        self.cluster.release_held();
        let send = |level| partitions.iter().map(move |(topic, partition)| Message::new(level, topic, *partition));
        let mut messages: Vec<_> = CONFIRMED.into_iter().flat_map(send).collect();
        // A message may be in a batch with one that is refused and whose first request had no response: what became of
        // that batch cannot be known.
        for _ in 0..3 {
            let numbers: Vec<_> = messages.iter().map(|message| self.client.send(message.clone())).collect();
            let is_stored = numbers.into_iter().map(|number| match self.client.outcome(number) {
                Outcome::Appended(_) => true,
                Outcome::Rejected(_, Stored::Unknown) => false,
                outcome => panic!("message {number}: {outcome:?}"),
            });
            let mut is_stored = is_stored.collect::<Vec<_>>().into_iter();
            messages.retain(|_| !is_stored.next().unwrap());
        }
        assert!(messages.is_empty(), "never stored: {messages:?}");
    }

    fn send_burst(&mut self) {
        for _ in 0..1 + self.random.below(30) {
            let level = AcksLevel::EACH[self.random.below(3) as usize];
            let (topic, partitions) = TOPICS[self.random.below(TOPICS.len() as u64) as usize];
            let partition = self.random.below(partitions as u64) as i32;
            let key = (!self.random.chance(100)).then(|| format!("key {}", self.random.below(10)));
            let padding = if self.random.chance(50) { 2_000 } else { self.random.below(300) as usize };
            let time = match self.random.chance(300) {
                true => Duration::from_millis(self.random.below(200)),
                false => LONG_DEADLINE,
            };
            let deadline = Instant::now() + time;
            self.client.send(Message { key, padding, deadline, ..Message::new(level, topic, partition) });
            self.count += 1;
        }
    }

    fn partition(&mut self) -> (&'static str, i32) {
        let (topic, partitions) = TOPICS[self.random.below(TOPICS.len() as u64) as usize];
        (topic, self.random.below(partitions as u64) as i32)
    }

    fn move_leader(&mut self) {
        let (topic, partition) = self.partition();
        if self.random.chance(300) {
            self.cluster.move_leader(topic, partition, None);
            self.pause();
        }
        let leader = 1 + self.random.below(BROKERS) as i32;
        self.cluster.move_leader(topic, partition, Some(leader));
    }

    fn stop_and_start_a_broker(&mut self) {
        let broker = 1 + self.random.below(BROKERS) as i32;
        self.cluster.crash_broker(broker);
        self.send_burst();
        self.pause();
        self.cluster.elect_leaders();
        self.send_burst();
        self.pause();
        self.cluster.start_broker(broker);
    }

    fn pause_a_broker(&mut self) {
        let broker = 1 + self.random.below(BROKERS) as i32;
        self.cluster.pause_broker(broker, true);
        self.send_burst();
        self.pause();
        self.move_leader();
        self.pause();
        self.cluster.pause_broker(broker, false);
    }

    /// Makes a late copy: the request is carried out some time after the client has given it up.
    fn hold_a_request(&mut self) {
        let (topic, partition) = self.partition();
        let fault = if self.random.chance(500) { Fault::held() } else { Fault::response_held() };
        self.cluster.fault(produce().partition(topic, partition), fault);
        self.send_burst();
        self.pause();
        self.cluster.close_connections(1 + self.random.below(BROKERS) as i32);
    }

    /// Waits a moment, or for a message.
    fn pause(&mut self) {
        let time = Duration::from_millis(self.random.below(20));
        if self.count > 0 {
            let number = self.random.below(self.count as u64) as usize;
            self.client.end_within(number, time);
        }
    }
}
