use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use kafka_http_wrapper::broker::{
    Acks, AppendFailure, AppendResult, Fetcher, Message, MetadataError, PartitionerKind, Producer, Stored,
};

use super::fixture::{DEADLINE, Fixture, Kind, Report, append, at, outcome, record, start, values};
use crate::harness::engine::read_messages as read;
use crate::harness::{Cluster, unique, wait_until};

/// Starts a thread that appends the numbers from 0 until `stop` is set; it returns the channel of each outcome.
fn append_numbers(
    producer: &Arc<dyn Producer<Report>>,
    topic: &Arc<str>,
    acks: Acks,
    stop: &Arc<AtomicBool>,
) -> JoinHandle<Vec<Receiver<AppendResult>>> {
    let (producer, topic, stop) = (Arc::clone(producer), Arc::clone(topic), Arc::clone(stop));
    std::thread::spawn(move || {
        let mut answers = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let number = answers.len();
            answers.push(start(&*producer, record(&topic, Some("k"), format!("{number}")), acks));
            // The pause limits the rate to about 2000 appends a second.
            std::thread::sleep(Duration::from_micros(500));
        }
        answers
    })
}

/// Returns the log end offset of the only partition; waits until the broker returns it.
fn log_end(cluster: &Cluster, topic: &str) -> i64 {
    wait_until(DEADLINE, "the log end offset is known", || cluster.log_ends(topic).get(&0).copied())
}

/// Kills, restarts and freezes a broker while one producer and one fetcher use it.
fn a_broker_is_killed_restarted_and_frozen(kind: Kind) {
    let cluster = Cluster::start_with(1, &["auto.create.topics.enable=true"]);
    let fixture = Fixture::with_brokers(kind, cluster.brokers.clone());
    let topic = fixture.topic("killed", 1);
    let producer = fixture.producer_with(PartitionerKind::Fnv1a, Duration::from_secs(15));

    // This broker creates topics automatically, so a missing topic is not reported as unknown.
    let created: Arc<str> = unique("created_by_the_broker").into();
    append(&*producer, record(&created, None, "v"), Acks::Leader).expect("the broker creates the topic");

    let mut restart = Restart { cluster: &cluster, topic: &topic, fetcher: fixture.fetcher(), found: Vec::new() };
    restart.fetcher.assign(&at(&topic, 0), 0);
    for acks in [Acks::Leader, Acks::All] {
        restart.check(kind, &producer, acks);
    }
    freeze_the_broker(&cluster, &fixture, &topic);
    close_while_the_broker_is_frozen(&cluster, &*producer, &topic);
}

/// Kills and restarts the broker during appends, and compares their outcomes with the messages in the topic.
struct Restart<'a> {
    cluster: &'a Cluster,
    topic: &'a Arc<str>,
    fetcher: Box<dyn Fetcher>,
    /// All messages that were read so far, in the order of their offsets.
    found: Vec<Message>,
}

impl Restart<'_> {
    fn check(&mut self, kind: Kind, producer: &Arc<dyn Producer<Report>>, acks: Acks) {
        let before = log_end(self.cluster, self.topic);
        let outcomes = self.append_during_a_restart(producer, acks);
        let end = log_end(self.cluster, self.topic) as usize;
        let n_missing = end - self.found.len();
        self.found.extend(read(&mut *self.fetcher, n_missing));
        let offsets: Vec<i64> = self.found.iter().map(|message| message.offset).collect();
        assert_eq!(offsets, (0..end as i64).collect::<Vec<_>>(), "each once and in order, across the restart");
        let appended = values(&self.found[before as usize..]);
        let (mut n_confirmed, mut n_failed) = (0, 0);
        let mut last_offset = None;
        for (number, outcome) in outcomes.iter().enumerate() {
            let value = number.to_string().into_bytes();
            let n_stored = appended.iter().filter(|found| **found == value).count();
            match outcome {
                Ok(done) => {
                    let offset = done.offset.expect("the offset is known");
                    assert_eq!(self.found[offset as usize].value.as_ref(), Some(&value));
                    assert!(last_offset < Some(offset), "in the order of the appends");
                    (last_offset, n_confirmed) = (Some(offset), n_confirmed + 1);
                    if acks == Acks::All && kind != Kind::KafkaRust {
                        assert_eq!(n_stored, 1, "the idempotent producer makes no duplicates");
                    }
                }
                Err(error) => {
                    assert!(error.kind.is_retriable(), "{error:?}");
                    assert!(error.stored == Stored::Unknown || n_stored == 0, "{number} is stored, {error:?}");
                    n_failed += 1;
                }
            }
        }
        eprintln!("acks {acks:?}: {n_confirmed} confirmed, {n_failed} failed, across a kill -9 and restart");
        // Messages in flight at the kill may fail; messages appended before or after it are confirmed.
        assert!(n_confirmed > 100);
    }

    fn append_during_a_restart(&self, producer: &Arc<dyn Producer<Report>>, acks: Acks) -> Vec<AppendResult> {
        let stop = Arc::new(AtomicBool::new(false));
        let wait_for_100 = |when: &str| {
            let before = log_end(self.cluster, self.topic);
            wait_until(DEADLINE, when, || log_end(self.cluster, self.topic) > before + 100);
        };
        let kafka = &self.cluster.kafka_servers[0];
        let appending = append_numbers(producer, self.topic, acks, &stop);
        wait_for_100("messages are stored");
        kafka.kill9();
        wait_until(DEADLINE, "the producer reports the broker as unreachable", || producer.reachable().is_err());
        kafka.restart();
        wait_until(DEADLINE, "the producer reaches the broker again", || producer.reachable().is_ok());
        wait_for_100("messages are stored after the restart");
        stop.store(true, Ordering::Relaxed);
        appending.join().expect("appending does not panic").iter().map(outcome).collect()
    }
}

/// Freezes the broker: its connections stay open, and it answers nothing. Appends time out, and succeed afterwards.
fn freeze_the_broker(cluster: &Cluster, fixture: &Fixture, topic: &Arc<str>) {
    let kafka = &cluster.kafka_servers[0];
    let hasty = fixture.producer_with(PartitionerKind::Fnv1a, Duration::from_secs(3));
    append(&*hasty, record(topic, None, "v"), Acks::Leader).expect("the message is stored");
    kafka.freeze();
    let started = Instant::now();
    let error = append(&*hasty, record(topic, None, "hung"), Acks::Leader).expect_err("no broker answers");
    assert_eq!((error.kind, error.stored), (AppendFailure::TimedOut, Stored::Unknown), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    wait_until(DEADLINE, "the producer reports the broker as unreachable", || hasty.reachable().is_err());
    let partitions = fixture.log_ends().partitions(topic);
    assert!(matches!(partitions, Err(MetadataError::Unreachable(_))), "{partitions:?}");
    kafka.unfreeze();
    wait_until(DEADLINE, "the producer reaches the broker again", || {
        append(&*hasty, record(topic, None, "v"), Acks::Leader).is_ok()
    });
}

/// Closes the producer while the broker is frozen: the close completes the append in flight.
fn close_while_the_broker_is_frozen(cluster: &Cluster, producer: &dyn Producer<Report>, topic: &Arc<str>) {
    let kafka = &cluster.kafka_servers[0];
    // This producer may still report the previous freeze, and then it refuses appends at once.
    wait_until(DEADLINE, "the producer reaches the broker", || producer.reachable().is_ok());
    kafka.freeze();
    let answer = start(producer, record(topic, None, "last"), Acks::Leader);
    let started = Instant::now();
    producer.close(Duration::from_millis(500));
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    let error = answer.try_recv().expect("a close completes all appends").expect_err("no broker answers");
    assert_eq!(error.kind, AppendFailure::Closed, "{error}");
    kafka.unfreeze();
}

fn a_broker_is_down_at_the_start(kind: Kind) {
    let cluster = Cluster::start(1);
    let fixture = Fixture::with_brokers(kind, cluster.brokers.clone());
    let topic = fixture.topic("absent", 1);
    cluster.kafka_servers[0].kill9();
    let producer = fixture.producer();
    let mut fetcher = fixture.fetcher();
    fetcher.assign(&at(&topic, 0), 0);
    for round in 0..3 {
        let started = Instant::now();
        let error = append(&*producer, record(&topic, None, "early"), Acks::Leader).expect_err("the broker is down");
        assert_eq!((error.kind, error.stored), (AppendFailure::Unreachable, Stored::No), "{error}");
        assert!(started.elapsed() < Duration::from_secs(5), "{round}: {:?}", started.elapsed());
    }
    wait_until(DEADLINE, "appends are refused at once", || {
        let started = Instant::now();
        append(&*producer, record(&topic, None, "early"), Acks::Leader).expect_err("the broker is down");
        started.elapsed() < Duration::from_millis(50)
    });
    assert!(producer.reachable().is_err());
    assert!(fixture.log_ends().newest(&[at(&topic, 0)])[0].is_err());
    let started = Instant::now();
    drop(fetcher.poll(Duration::from_millis(100), 10));
    assert!(started.elapsed() < Duration::from_secs(10));
    cluster.kafka_servers[0].restart();
    wait_until(DEADLINE, "an append succeeds", || {
        append(&*producer, record(&topic, None, "late"), Acks::Leader).is_ok()
    });
    assert_eq!(read(&mut *fetcher, 1)[0].value.as_deref(), Some(&b"late"[..]), "no refused message is stored");
}

/// Kills one of two brokers: the log end offsets of the partitions that the other broker leads are still returned.
fn log_ends_of_the_living_broker_are_returned(kind: Kind) {
    let cluster = Cluster::start(2);
    let fixture = Fixture::with_brokers(kind, cluster.brokers.clone());
    let topic = fixture.topic("halved", 4);
    let mut ends = fixture.log_ends();
    let all: Vec<_> = (0..4).map(|partition| at(&topic, partition)).collect();
    wait_until(DEADLINE, "all log ends are returned", || ends.newest(&all).iter().all(Result::is_ok));
    let partitions = ends.partitions(&topic).expect("it exists");
    let survivor = partitions[0].leader.expect("it has a leader");
    let leaders: HashSet<_> = partitions.iter().map(|info| info.leader).collect();
    assert_eq!(leaders.len(), 2, "both brokers lead partitions");
    cluster.kafka_servers[1 - survivor as usize].kill9();
    wait_until(DEADLINE, "only the partitions of the living broker have log ends", || {
        let started = Instant::now();
        let newest = ends.newest(&all);
        assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
        partitions.iter().zip(&newest).all(|(info, newest)| newest.is_ok() == (info.leader == Some(survivor)))
    });
}

/// Defines a module with the outages for one engine.
macro_rules! outages_of {
    ($engine:ident, $kind:expr) => {
        mod $engine {
            use super::Kind;

            #[test]
            fn outlives_a_broker_that_is_killed_restarted_and_frozen() {
                super::a_broker_is_killed_restarted_and_frozen($kind);
            }

            #[test]
            fn recovers_from_a_broker_that_is_down_at_the_start() {
                super::a_broker_is_down_at_the_start($kind);
            }

            #[test]
            fn returns_the_log_ends_of_the_living_broker() {
                super::log_ends_of_the_living_broker_are_returned($kind);
            }
        }
    };
}

outages_of!(native, Kind::Native);
outages_of!(kafka_rust, Kind::KafkaRust);
