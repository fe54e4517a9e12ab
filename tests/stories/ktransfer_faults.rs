//! Three instances of ktransfer under load, while each server and connection around them fails once: checks the
//! promises of the README.
//!
//! `FAULTS_SECONDS` is the length (default 40). A longer run has the same faults, and so a smaller share of repeats.

use std::time::Duration;

use crate::harness::fault_oracle::Verdict;
use crate::harness::faults::{Fault, FaultScript, Step, Target};
use crate::harness::testbed::{Groups, SESSION, STALL, Size, Testbed};

/// Each fault begins at this thousandth of the length.
fn script(length: Duration) -> FaultScript {
    let beyond_the_session = SESSION.mul_f64(1.7);
    let steps = [
        (50, Duration::ZERO, Target::GroupLink(0), Fault::Reset),
        (100, Duration::from_secs(1), Target::Instance(1), Fault::Kill),
        (250, beyond_the_session, Target::Instance(2), Fault::Pause),
        // No backend takes a message: its attempts fail several times in a row.
        (400, Duration::from_secs(1), Target::Backend(0), Fault::Status(503)),
        (400, Duration::from_secs(1), Target::Backend(1), Fault::Status(503)),
        (450, Duration::from_millis(500), Target::Instance(0), Fault::Stop),
        (520, Duration::from_millis(500), Target::ZooKeeper, Fault::Kill),
        (620, Duration::from_millis(500), Target::Broker, Fault::Kill),
        // One instance loses ZooKeeper while a backend takes longer for its pushes than the takeover.
        (840, 3 * SESSION, Target::Backend(0), Fault::Slow(3 * SESSION)),
        (850, 2 * SESSION, Target::GroupLink(1), Fault::Stall),
    ];
    script_of("one of each kind", length, &steps)
}

/// The same faults with groups in Kafka: instead of ZooKeeper, the broker that coordinates the group fails, so that the
/// other broker takes over; after its restart it becomes the coordinator again.
fn script_without_zookeeper(length: Duration) -> FaultScript {
    let beyond_the_session = SESSION.mul_f64(1.7);
    let steps = [
        (50, Duration::ZERO, Target::GroupLink(0), Fault::Reset),
        (100, Duration::from_secs(1), Target::Instance(1), Fault::Kill),
        (250, beyond_the_session, Target::Instance(2), Fault::Pause),
        // No backend takes a message: its attempts fail several times in a row.
        (380, Duration::from_secs(1), Target::Backend(0), Fault::Status(503)),
        (380, Duration::from_secs(1), Target::Backend(1), Fault::Status(503)),
        (420, Duration::from_millis(500), Target::Instance(0), Fault::Stop),
        (480, Duration::from_secs(4), Target::Coordinator, Fault::Kill),
        (700, Duration::from_millis(500), Target::Broker, Fault::Kill),
        // One instance loses the brokers while a backend takes longer for its pushes than the takeover.
        (890, 3 * SESSION, Target::Backend(0), Fault::Slow(3 * SESSION)),
        (900, 2 * SESSION, Target::GroupLink(1), Fault::Stall),
    ];
    script_of("one of each kind without ZooKeeper", length, &steps)
}

/// The broker that coordinates the group, and alone has the topic of the dead letters, is down for 12 s. Meanwhile
/// instances are killed and stopped, while letters wait.
fn script_with_dead_letters(length: Duration) -> FaultScript {
    let steps = [
        (30, Duration::ZERO, Target::GroupLink(0), Fault::Reset),
        (100, Duration::from_secs(12), Target::Coordinator, Fault::Kill),
        (190, Duration::from_secs(1), Target::Instance(1), Fault::Kill),
        (260, Duration::from_millis(500), Target::Instance(0), Fault::Stop),
        (700, Duration::ZERO, Target::GroupLink(2), Fault::Reset),
        (950, Duration::from_secs(1), Target::Instance(2), Fault::Kill),
    ];
    script_of("dead letters whose broker is down", length, &steps)
}

fn script_of(name: &str, length: Duration, steps: &[(u32, Duration, Target, Fault)]) -> FaultScript {
    let step = |(thousandth, lasts, target, fault): &(u32, Duration, Target, Fault)| Step {
        at: length * *thousandth / 1000,
        lasts: *lasts,
        target: *target,
        fault: *fault,
    };
    FaultScript { name: name.to_owned(), steps: steps.iter().map(step).collect() }
}

/// Returns the number of repeats that the script may cause. `n_lost` times an instance loses its claims without a
/// hand-over (kill, pause, stall, …); each time it repeats what it delivered since it stored its offsets. The one
/// that lost its group also repeats what it delivered until its lease ended. A half is added for uneven traffic.
fn max_repeats(size: &Size, n_lost: f64) -> usize {
    let per_instance = f64::from(size.per_second) / size.n_instances as f64;
    (1.5 * per_instance * (n_lost / 3.0 + SESSION.as_secs_f64())) as usize
}

/// The length of a run in seconds.
fn length(default: u64) -> Duration {
    let seconds = std::env::var("FAULTS_SECONDS").ok().map(|text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(default))
}

/// Returns the repeats after stalls: leases end also while the machine runs no process.
fn of_stalls(verdict: &Verdict) -> usize {
    verdict.repeats_by_disturbance.get(STALL).copied().unwrap_or_default()
}

fn run(groups: Groups, script: &FaultScript, n_lost: f64) {
    let size = Size::default();
    let mut testbed = Testbed::start_with(groups, size, 1);
    testbed.run(script);
    check(&testbed.finish(), &size, n_lost);
}

fn check(verdict: &Verdict, size: &Size, n_lost: f64) {
    let (n_repeats, max) = (verdict.n_repeats - of_stalls(verdict), max_repeats(size, n_lost));
    assert!(n_repeats <= max, "{n_repeats} repeats, allowed are {max}");
    assert!(verdict.n_fenced <= 2, "{} requests after the pause, before the lease was checked", verdict.n_fenced);
}

#[test]
fn everything_fails_once_and_no_message_and_no_order_is_lost() {
    run(Groups::InZooKeeper, &script(length(40)), 3.0);
}

#[test]
fn everything_fails_once_without_zookeeper_and_no_message_and_no_order_is_lost() {
    // All instances may lose their claims while the coordinator moves.
    run(Groups::InKafka, &script_without_zookeeper(length(50)), 6.0);
}

#[test]
fn dead_letters_whose_broker_is_down_are_exactly_the_refused_messages_and_in_order() {
    let size = Size::default();
    let mut testbed = Testbed::start_with_letters(size, 1);
    testbed.run(&script_with_dead_letters(length(50)));
    // Two instances are killed, and all may lose their claims while the coordinator moves.
    check(&testbed.finish(), &size, 5.0);
}
