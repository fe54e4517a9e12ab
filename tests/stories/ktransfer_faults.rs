//! Three instances of ktransfer while messages flow and everything around them fails once: the promises of README.
//!
//! `FAULTS_SECONDS` is the length (default 40; 120 is the length for which the share of repeats is promised).

use std::time::Duration;

use crate::harness::faults::{Fault, FaultScript, Step, Target};
use crate::harness::testbed::{SESSION, Size, Testbed};

/// The share of repeats of a run of [`FULL_LENGTH`]. A shorter run has the same faults, and so as many repeats.
const MAX_REPEAT_SHARE: f64 = 0.005;
const FULL_LENGTH: Duration = Duration::from_secs(120);

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

#[test]
fn everything_fails_once_and_no_message_and_no_order_is_lost() {
    let seconds = std::env::var("FAULTS_SECONDS").ok().map(|text| text.parse().expect("a number of seconds"));
    let length = Duration::from_secs(seconds.unwrap_or(40));
    let size = Size::default();
    let mut testbed = Testbed::start(size, 1);
    testbed.run(&script(length));
    let verdict = testbed.finish();
    let of_full_length = f64::from(size.per_second) * length.max(FULL_LENGTH).as_secs_f64();
    let max_repeats = (of_full_length * MAX_REPEAT_SHARE) as usize;
    assert!(verdict.n_repeats <= max_repeats, "{} repeats, allowed are {max_repeats}", verdict.n_repeats);
    assert!(verdict.n_fenced <= 2, "{} requests after the pause, before the lease was checked", verdict.n_fenced);
}
