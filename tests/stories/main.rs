//! Stories over the real binaries, a real Kafka and a real ZooKeeper.
//!
//! One binary for all of them, so that the shared cluster is started once: a new story is a module here.

#![allow(clippy::unwrap_used, reason = "a story that cannot go on fails there")]
#![allow(clippy::print_stderr, reason = "a story may say what it measured")]

mod access_story;
mod broker_suite;
mod contract_story;
mod daemon_options;
mod group_story;
mod harness;
mod harness_story;
mod hostile_story;
mod http_story;
mod http_table;
mod kafka_settings_story;
mod keeper_story;
mod kmonitor_delay;
mod kproxy_story;
mod ktransfer_outage;
mod ktransfer_push;
mod order_story;
mod path_story;
mod threads_story;
#[cfg(feature = "tls")]
mod tls_story;
mod ways_story;
