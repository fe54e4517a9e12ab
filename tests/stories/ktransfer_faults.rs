//! Three instances of ktransfer while messages flow and everything around them fails once: the promises of README.
//!
//! `FAULTS_SECONDS` is the length (default 40). A longer run has the same faults, and so a smaller share of repeats.

use std::time::Duration;

use crate::harness::faults::{Fault, FaultScript, Step, Target};
use crate::harness::testbed::{SESSION, STALL, Size, Testbed};

/// Each fault begins at this thousandth of the length.
fn script(length: Duration) -> FaultScript {
    let beyond_the_session = SESSION.mul_f64(1.7);
    let steps = [
        (50, Duration::ZERO, Target::ZooKeeperLink(0), Fault::Reset),
        (100, Duration::from_secs(1), Target::Instance(1), Fault::Kill),
        (250, beyond_the_session, Target::Instance(2), Fault::Pause),
        (450, Duration::from_millis(500), Target::Instance(0), Fault::Stop),
        (520, Duration::from_millis(500), Target::ZooKeeper, Fault::Kill),
        (620, Duration::from_millis(500), Target::Broker, Fault::Kill),
        // One instance loses ZooKeeper while a backend takes longer for its pushes than the takeover.
        (840, 3 * SESSION, Target::Backend(0), Fault::Slow(3 * SESSION)),
        (850, 2 * SESSION, Target::ZooKeeperLink(1), Fault::Stall),
    ];
    let step = |(thousandth, lasts, target, fault)| Step { at: length * thousandth / 1000, lasts, target, fault };
    FaultScript { name: "one of each kind".to_owned(), steps: steps.into_iter().map(step).collect() }
}

/// Returns the number of repeats that the script may cause. Three instances lose their claims without a hand-over
/// (kill, pause, stall); each repeats what it delivered since it stored its offsets. The one
/// that lost ZooKeeper also repeats what it delivered until its lease ended. A half is added for uneven traffic.
fn max_repeats(size: &Size) -> usize {
    let per_instance = f64::from(size.per_second) / size.n_instances as f64;
    (1.5 * per_instance * (1.0 + SESSION.as_secs_f64())) as usize
}

#[test]
fn everything_fails_once_and_no_message_and_no_order_is_lost() {
    let seconds = std::env::var("FAULTS_SECONDS").ok().map(|text| text.parse().expect("a number of seconds"));
    let length = Duration::from_secs(seconds.unwrap_or(40));
    let size = Size::default();
    let mut testbed = Testbed::start(size, 1);
    testbed.run(&script(length));
    let verdict = testbed.finish();
    // Leases end also while the machine runs no process.
    let n_of_stalls = verdict.repeats_by_disturbance.get(STALL).copied().unwrap_or_default();
    let (n_repeats, max) = (verdict.n_repeats - n_of_stalls, max_repeats(&size));
    assert!(n_repeats <= max, "{n_repeats} repeats, allowed are {max}");
    assert!(verdict.n_fenced <= 2, "{} requests after the pause, before the lease was checked", verdict.n_fenced);
}
