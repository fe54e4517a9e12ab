//! What the stories stand on: real Kafka and ZooKeeper, the daemons as real processes, a recording backend, an HTTP
//! client.
//!
//! Used by the one test binary of the stories, so that one shared cluster serves them all, and by the demo. Invariant:
//! when the process that uses it ends, in whatever way (also by `kill -9`), none of the processes it started and none of
//! its folders stay behind; see [`process`].

#![allow(dead_code, unused_imports, reason = "it offers more than each of its two users takes")]
#![allow(clippy::print_stderr, reason = "starting takes seconds: whoever waits is told what for")]

pub(crate) mod backend;
pub(crate) mod certificates;
pub(crate) mod cluster;
pub(crate) mod configs;
pub(crate) mod daemon;
pub(crate) mod http;
pub(crate) mod jars;
pub(crate) mod kafka;
pub(crate) mod kafka_wire;
pub(crate) mod message;
pub(crate) mod oracle;
pub(crate) mod process;
pub(crate) mod secured;
#[cfg(feature = "tls")]
pub(crate) mod tls;
pub(crate) mod victim;
pub(crate) mod zk;
pub(crate) mod zookeeper;

use std::time::{Duration, Instant};

pub(crate) use backend::{Answer, Backend, Record, Request};
pub(crate) use cluster::{Cluster, cluster, unique};
pub(crate) use daemon::{Daemon, Program, binary};
pub(crate) use kafka::Kafka;
pub(crate) use process::free_port;
pub(crate) use victim::Victim;
pub(crate) use zk::Zk;
pub(crate) use zookeeper::ZooKeeper;

/// An answer of a condition one waits for: `true`, or a value that is there.
pub(crate) trait Met {
    /// What the waiting returns.
    type Value;
    /// The value, if the condition is met.
    fn met(self) -> Option<Self::Value>;
}

impl Met for bool {
    type Value = ();
    fn met(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Met for Option<T> {
    type Value = T;
    fn met(self) -> Option<T> {
        self
    }
}

/// Asks again and again until the condition is met; panics with `what` once `deadline` has passed.
#[track_caller]
pub(crate) fn wait_until<M: Met>(deadline: Duration, what: &str, mut condition: impl FnMut() -> M) -> M::Value {
    match poll(deadline, || condition().met()) {
        Some(value) => value,
        None => panic!("waited {:.1} s in vain: {what}", deadline.as_secs_f64()),
    }
}

/// As [`wait_until`], for who goes on without it.
pub(crate) fn poll<T>(deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        // Asked once more after the deadline, so that a slow machine does not lose by its own scheduling.
        let last = started.elapsed() >= deadline;
        if let Some(value) = condition() {
            return Some(value);
        }
        if last {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
