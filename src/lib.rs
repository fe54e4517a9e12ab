//! HTTP to Kafka, Kafka to HTTP, and a monitor of the delay between them: the architecture of the three daemons.
//!
//! ```text
//!  application ──POST /commit──▶ kproxy ──append──▶ Kafka ──fetch──▶ ktransfer ──POST──▶ backend servers
//!                                                     ▲                 │ claims, stored offsets
//!                                       newest offsets│                 ▼
//!                              people, Zabbix ◀── kmonitor ◀────── ZooKeeper
//! ```
//!
//! # Glossary
//!
//! - **module**: one topic that ktransfer pushes to one set of backends; its name is the consumer group in ZooKeeper.
//! - **claim**: the ephemeral ZooKeeper node of a partition; the ktransfer that created it owns the partition.
//!   **generation**: the number of a claim, by which events of an earlier claim are recognized. **lease**: the time
//!   until which a claim is certainly held. **hand-over**: one ktransfer releases a partition, another claims it.
//! - **window**: the messages of one partition that are read but not yet stored as done; `window_size` limits how many
//!   of them are pushed and not done. **commit point**: the offset to store; every message below it is done. **done
//!   ahead**: done although an earlier message of the partition is not. **give up** (a message): make no further
//!   attempt and continue with the next message.
//! - **outcome**: the meaning of the result of a push: delivered, retried, dropped or a **dead letter**, which is the
//!   message stored in another topic with the reason. **tombstone**: a message without a value.
//! - **transid**: the offset of a message, in templates and log lines of ktransfer. **delay**: how many messages of
//!   a partition can still be pushed: the newest offset minus the stored one, or the oldest one if that is larger.
//!   **place**: a partition of a topic as one module consumes it.
//! - **acks level**: the `acks` of a commit, 0, 1 or -1. **in-flight slot**: the permission to have one message between
//!   request and answer; kproxy has `req_pool_size` of them. **rules** of a topic: the part of its configuration that
//!   decides which messages it accepts, as far as kproxy has read it.
//! - **seam**: the module that hides a client library: [`broker`] for Kafka, [`keeper`] for ZooKeeper. **engine**: one
//!   of the Kafka clients behind the seam: `native` (the client in [`kafka`]), the `kafka` crate, or a broker in memory
//!   for unit tests.
//! - **the original**: the Go programs that this crate replaces. **story**: an end-to-end test, in `tests/stories`.
//!
//! # The three flows
//!
//! **kproxy**: a *reader* thread owns its connections, parses a request, and hands the message and the connection to
//! the broker seam. The outcome arrives on the engine's thread, which writes the answer; the reader writes only what
//! does not fit into the socket buffer at that time. No thread waits for an acknowledgement.
//!
//! **ktransfer**, for each module: the *group* claims partitions in ZooKeeper and reports them to the *dispatcher*. The
//! dispatcher sends the *fetcher* the start offsets, opens a slot of the partition's *window* for each fetched message,
//! and sends the message to the *worker* of its key. The worker pushes the message until it is done, and continues with
//! its other keys while the message waits. A message that is given up may become a dead letter; one producer stores the
//! dead letters of all modules. The commit point goes back to the group, which stores it.
//!
//! **kmonitor**, for each cluster: a *poller* reads stored offsets and owners from ZooKeeper or Kafka, then the log end
//! offsets from the brokers, records them in a table, and publishes the *view* from which the HTTP handler answers.
//!
//! # Invariants
//!
//! 1. kproxy answers 200 only when Kafka confirmed the message at the requested acks level. Every other answer says
//!    whether the message may have been stored and whether a retry makes sense.
//! 2. ktransfer stores an offset only when every earlier message of that partition was delivered, filtered out, or
//!    given up; with a dead-letter topic, when its dead letter is confirmed. A crash or a hand-over repeats messages;
//!    it never loses one.
//! 3. Messages with the same key are pushed one at a time, in the order of the partition.
//! 4. At most one ktransfer pushes a partition. A ktransfer that lost its claim stops before the claim can be taken
//!    over, and cannot change the stored offset afterwards: every write is conditional on a version that each claim
//!    changes.
//! 5. kmonitor leaves an unknown delay out; it never shows it as 0, negative or frozen.
//! 6. No request, message, configuration file or response of a peer ends a daemon or makes its memory grow without a
//!    bound. Every queue has a bound, and the code that creates it says what happens when it is full.
//! 7. SIGTERM: accept nothing new, finish requests and pushes in flight (within `shutdown_grace_ms`), store offsets,
//!    release claims, exit 0.
//!
//! # Threads
//!
//! There is no async runtime. Only [`supervise`] starts our own threads, each with a name:
//!
//! - The threads of a [`Supervisor`](supervise::Supervisor) do the work; the configuration fixes their number. The
//!   threads of the Kafka client that send to a broker or fetch from it (`kafka-BROKER-LEVEL`, `kafka-fetch-BROKER`)
//!   start on first use, the others with their group.
//! - Expendable threads (`spawn_expendable`) make the calls that have no deadline: look-ups of host names for the Kafka
//!   client (`kafka-resolver`) and of backends (`names-look-up`), those of the `kafka` crate (`kafka-call`,
//!   `kafka-fetch`, …), and the search for a ZooKeeper server (`zk-search`); and those that may hang on a file: `log`
//!   writes the log files, `reload` runs after a SIGHUP. They start when they are needed, and may be abandoned while
//!   they hang. The code that starts them bounds their number.
//!
//! One exception: a call that reads offsets from many brokers starts a scoped thread for each broker (`kafka-offsets`),
//! which ends with the call.
//!
//! # What is deliberately absent
//!
//! No type of the Kafka and HTTP client crates is visible outside [`broker`] and the module
//! `backend_client` of [`ktransfer`]. The three daemons never import one another. Decisions (window, template, method,
//! assignment, delay, partitioner, request parser, status table) are pure functions, tested with tables of inputs and
//! results; IO is at the edges.
//!
//! # Reading order
//!
//! `bin/` → [`daemon`] → [`kproxy`], [`ktransfer`], [`kmonitor`] → `html`, [`http`], [`broker`], [`keeper`], [`admin`],
//! [`metrics`] → [`kafka`] (the Kafka client behind the engine `native`) → `access`, [`config`], [`logging`], `reload`,
//! [`supervise`], [`shutdown`], [`clock`], `decimal`, `heap`, `locks`, `panics`, `random`, `rates`, `regular_file`,
//! `tls_client`, `token_bucket`.

pub mod daemon;

pub mod kmonitor;
pub mod kproxy;
pub mod ktransfer;

mod access;
pub mod admin;
pub mod broker;
mod html;
pub mod http;
pub mod kafka;
pub mod keeper;
pub mod metrics;

pub mod clock;
pub mod config;
mod decimal;
mod heap;
mod locks;
pub mod logging;
mod panics;
#[cfg(feature = "tls")]
mod pem;
mod random;
mod rates;
mod regular_file;
mod reload;
pub mod shutdown;
pub mod supervise;
mod tls_client;
mod token_bucket;

#[cfg(test)]
mod docs_test;
#[cfg(test)]
mod import_circles;

#[cfg(test)]
#[path = "../tests/stories/harness/json_schema.rs"]
mod json_schema;

#[cfg(test)]
#[cfg(feature = "tls")]
#[path = "../tests/stories/harness/certificates.rs"]
#[allow(dead_code, reason = "the stories use more of it")]
mod certificates;
