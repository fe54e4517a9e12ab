//! HTTP to Kafka, Kafka to HTTP, and a monitor of the delay between them: the architecture of the three daemons.
//!
//! ```text
//!  application ──POST /commit──▶ kproxy ──append──▶ Kafka ──fetch──▶ ktransfer ──POST──▶ backend servers
//!                                                     ▲                 │ claims, stored offsets
//!                                       newest offsets│                 ▼
//!                              people, Zabbix ◀── kmonitor ◀────── ZooKeeper
//! ```
//!
//! # The three flows
//!
//! **kproxy**: a *reader* thread owns its connections, parses a request and hands the message, together with the
//! connection, to the broker seam. The outcome arrives on the engine's thread and the answer is written there; only what
//! does not fit into the socket waits for the reader. No thread waits for an acknowledgement.
//!
//! **ktransfer**, for each module: the *group* claims partitions in ZooKeeper and tells the *dispatcher*; the dispatcher
//! tells the *fetcher* where to read, opens a slot of the partition's *window* for each message and hands it to the *worker*
//! of its key; the worker pushes until it is done; the end of the contiguous done prefix is the commit point,
//! which goes back to the group to be stored.
//!
//! **kmonitor**, for each cluster: one thread reads all stored offsets from ZooKeeper, then the newest offsets from
//! the brokers, and swaps in a new snapshot that the HTTP handler answers from.
//!
//! # Invariants
//!
//! 1. kproxy answers 200 only when Kafka confirmed the message at the level asked for. Every other answer says whether
//!    it may have been stored and whether to try again.
//! 2. ktransfer stores an offset only when every earlier message of that partition was delivered, filtered out, or given
//!    up after the configured number of attempts. A crash or a hand-over repeats messages; it never loses one.
//! 3. Messages with the same key are pushed one at a time, in the order of the partition.
//! 4. At most one ktransfer pushes a partition. One that lost its claim stops before the claim can be taken over, and
//!    cannot move the stored offset afterwards: every write is conditional on a version it moved when it claimed.
//! 5. kmonitor leaves a delay it does not know out; it never shows it as 0, negative or frozen.
//! 6. No request, message, configuration file or peer's answer ends a daemon or makes it use memory without a bound.
//!    Every queue has a bound, and the place that makes it says what happens when it is full.
//! 7. SIGTERM: stop taking, finish what is in flight (bounded by `shutdown_grace_ms`), store, release, exit 0.
//!
//! # What is deliberately absent
//!
//! There is no async runtime: threads are few, fixed in number, named, and started by [`supervise`] alone. No
//! type of the Kafka, ZooKeeper and HTTP client crates is seen outside [`broker`], [`keeper`] and three files of
//! [`ktransfer`] (`push`, `client`, `socket`). The three daemons never import one another. Decisions (window, template,
//! method, division, delay, partitioner, request parser, status table) are pure functions with tables as tests; IO is at
//! the edges.
//!
//! # Reading order
//!
//! `bin/` → [`daemon`] → [`kproxy`], [`ktransfer`], [`kmonitor`] → [`http`], [`broker`], [`keeper`], [`admin`], [`metrics`] →
//! [`config`], [`logging`], [`reload`], [`supervise`], [`shutdown`].

pub mod daemon;

pub mod kmonitor;
pub mod kproxy;
pub mod ktransfer;

pub mod admin;
pub mod broker;
pub mod http;
pub mod kafka;
pub mod keeper;
pub mod metrics;

pub mod config;
pub mod locks;
pub mod logging;
pub mod panics;
pub mod reload;
pub mod shutdown;
pub mod supervise;

#[cfg(test)]
mod documents;
