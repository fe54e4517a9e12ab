//! The test harness: a real Kafka and ZooKeeper, the daemons as real processes, a backend that records pushes, and an
//! HTTP client.
//!
//! The stories, the demo and the benchmark use it. Invariant: when the process that uses the harness ends, in whatever
//! way (also by `kill -9`), no process and no folder that the harness created is left; see [`process`].

#![allow(dead_code, unused_imports, reason = "the stories, the demo and the benchmark each use a part")]
#![allow(clippy::print_stderr, reason = "starting the servers takes seconds, so it prints what it waits for")]

pub(crate) mod append;
pub(crate) mod backend;
pub(crate) mod certificates;
pub(crate) mod chromium;
pub(crate) mod class_archive;
pub(crate) mod cluster;
pub(crate) mod config_file;
pub(crate) mod configs;
pub(crate) mod daemon;
pub(crate) mod dead_letters;
pub(crate) mod delivery;
pub(crate) mod engine;
pub(crate) mod fake_zookeeper;
pub(crate) mod fault_oracle;
pub(crate) mod faults;
pub(crate) mod fleet;
pub(crate) mod group_wire;
pub(crate) mod http;
pub(crate) mod jars;
pub(crate) mod json_schema;
pub(crate) mod kafka;
pub(crate) mod kafka_admin;
pub(crate) mod kafka_tools;
pub(crate) mod kafka_wire;
pub(crate) mod keeper;
pub(crate) mod kmonitor;
pub(crate) mod kproxy;
pub(crate) mod kraft_cluster;
pub(crate) mod ktransfer;
pub(crate) mod link;
pub(crate) mod member;
pub(crate) mod message;
pub(crate) mod metrics;
pub(crate) mod one_topic;
pub(crate) mod operator;
pub(crate) mod oracle;
pub(crate) mod original;
pub(crate) mod page;
pub(crate) mod process;
pub(crate) mod prometheus;
pub(crate) mod reloading;
pub(crate) mod secured;
pub(crate) mod server_process;
pub(crate) mod testbed;
#[cfg(feature = "tls")]
pub(crate) mod tls;
#[cfg(feature = "tls")]
pub(crate) mod tls_backend;
pub(crate) mod transactions;
pub(crate) mod wait;
pub(crate) mod zabbix;
pub(crate) mod zk;
pub(crate) mod zookeeper;

use std::time::Duration;

pub(crate) use backend::{Backend, BackendAnswer, PushRecord, Request};
pub(crate) use cluster::{Cluster, cluster, unique};
pub(crate) use config_file::ConfigFile;
pub(crate) use daemon::{Daemon, Program, binary};
pub(crate) use fleet::{Fleet, Reply};
pub(crate) use kafka::Kafka;
pub(crate) use kmonitor::Kmonitor;
pub(crate) use kproxy::Kproxy;
pub(crate) use kraft_cluster::{KraftCluster, kraft_cluster};
pub(crate) use ktransfer::Ktransfer;
pub(crate) use link::Link;
pub(crate) use member::Member;
pub(crate) use process::free_port;
pub(crate) use server_process::ServerProcess;
pub(crate) use wait::{SetOnDrop, poll, wait_until};
pub(crate) use zk::ZkClient;
pub(crate) use zookeeper::ZooKeeper;

/// Deadline for a daemon to listen, and to become ready if its cluster answers.
pub(crate) const START_DEADLINE: Duration = Duration::from_secs(60);

/// Deadline for a daemon to end after SIGTERM: the default `shutdown_grace_ms` (10 s) plus two seconds.
pub(crate) const STOP_DEADLINE: Duration = Duration::from_secs(12);
