//! Stories: end-to-end tests over the real binaries, a real Kafka and a real ZooKeeper.
//!
//! They are one test binary, so that the shared cluster is started once: a new story is a module here.

#![allow(clippy::unwrap_used, reason = "a failed step fails its story")]
#![allow(clippy::print_stderr, reason = "stories print what they measure")]

/// What the stories run on; not a story.
mod harness;
/// The harness itself: it leaves no process behind, its backend records truly.
mod harness_checks;

/// kproxy: credentials, topics and rates.
mod access;
/// The seam to Kafka: the same promises from every engine.
mod broker_suite;
/// kproxy: each error answer against what is in the topic, while brokers and topics come and go.
mod contract;
/// Options, configuration errors, signals, exit codes and log files, which all daemons share.
mod daemon_options;
/// kproxy: partition, timestamp and record headers of a commit, and `/commit_batch`.
mod endpoints;
/// ktransfer: members of a group that are killed and paused.
mod group;
/// kproxy: crowds of hostile clients, and what they cost in memory, threads and time.
mod hostile_clients;
/// kproxy: early answers that arrive, and running out of file descriptors.
mod http;
/// kproxy: a table of odd requests with the sections of the RFCs.
mod http_table;
/// The `kafka:` map: TLS and SASL, compression, dead bootstrap hosts.
mod kafka_settings;
/// The seam to ZooKeeper: servers that are down, killed, frozen, or no ZooKeeper at all.
mod keeper;
/// kmonitor: delays, and clusters and brokers that are down.
mod kmonitor_delay;
/// kproxy: commits, unknown topics, a broker that is down, stops.
mod kproxy;
/// ktransfer: ZooKeeper and brokers that are down, wrong module files.
mod ktransfer_outage;
/// ktransfer: message filter, retries, order per key, hand-over.
mod ktransfer_push;
/// kproxy: order and true answers while leaders move and brokers die.
mod order;
/// The whole path through all three daemons.
mod path;
/// kproxy: the number of its threads.
mod threads;
/// kproxy: HTTPS.
#[cfg(feature = "tls")]
mod tls;
