//! Several instances of ktransfer under random faults: `make soak`, and a short run among the other stories.
//!
//! `SOAK_SECONDS` is the length (default 20), `SEED` selects the faults; with `SOAK_GROUPS=kafka` there is no
//! ZooKeeper. A failed run prints its script; the same seed gives the same script again.

use std::time::Duration;

use crate::harness::faults::{FaultScript, ScriptShape};
use crate::harness::testbed::{Groups, SESSION, Size, Testbed};

fn number_from_environment(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is not a number")),
        Err(_) => default,
    }
}

#[test]
fn random_faults_cost_no_message_and_no_order() {
    let seed = number_from_environment("SEED", 1);
    let length = Duration::from_secs(number_from_environment("SOAK_SECONDS", 20));
    let groups = match std::env::var("SOAK_GROUPS").as_deref() {
        Err(_) | Ok("zookeeper") => Groups::InZooKeeper,
        Ok("kafka") => Groups::InKafka,
        Ok(other) => panic!("SOAK_GROUPS={other:?} is neither zookeeper nor kafka"),
    };
    let size = Size::default();
    let shape = ScriptShape {
        length,
        interval: Duration::from_secs(4),
        n_instances: size.n_instances,
        n_backends: size.n_backends,
        has_zookeeper: groups == Groups::InZooKeeper,
        session: SESSION,
    };
    let mut testbed = Testbed::start_with(groups, size, seed);
    testbed.run(&FaultScript::random(seed, shape));
    testbed.finish();
}
