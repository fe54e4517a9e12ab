//! Stories: end-to-end tests over the real binaries, a real Kafka and a real ZooKeeper.
//!
//! All stories are in one test binary, so that their shared cluster is started only once. A new story is a module here.

#![allow(clippy::unwrap_used, reason = "a failed step fails its story")]
#![allow(clippy::print_stderr, reason = "stories print what they measure")]

/// The servers, daemons and clients that the stories use.
mod harness;
/// Tests of the harness: it leaves no process behind, and its backend records correctly.
mod harness_checks;

/// kproxy: credentials, allowed topics and rate limits.
mod access;
/// kproxy: bodies that are empty on purpose, or compressed.
mod bodies;
/// The Kafka seam: every engine behaves the same.
mod broker_suite;
/// kproxy: the programs of docs/clients.md.
mod client_programs;
/// kproxy: what load balancers and browsers see.
mod clients;
/// kproxy: each error answer, compared with the topic, while brokers are killed and topics are deleted.
mod contract;
/// Options, configuration errors, signals, exit codes and log files, which are the same for all daemons.
mod daemon_options;
/// kproxy: partition, timestamp and record headers of a commit, and `/commit_batch`.
mod endpoints;
/// ktransfer: members of a group that are killed and paused.
mod group;
/// Files that hang: a log file that takes no bytes, and a pipe in the place of a file that is read.
mod hanging_files;
/// Host names whose look-up hangs: answers and stops of all daemons are in time.
mod hanging_names;
/// kproxy: thousands of hostile clients, and the memory, threads and time that they cost.
mod hostile_clients;
/// kproxy: an answer that is sent before the whole request, and a process without file descriptors.
mod http;
/// kproxy: a table of unusual and malformed requests, each with the section of its RFC.
mod http_table;
/// The `kafka:` map of the configuration: TLS and SASL, compression, dead bootstrap hosts.
mod kafka_settings;
/// The ZooKeeper seam: servers that are down, killed, frozen, or not ZooKeeper servers.
mod keeper;
/// kmonitor: no alarm without proof, for instance on idle topics.
mod kmonitor_alarms;
/// kmonitor: large answers, slow readers, and clients that have the current page.
mod kmonitor_answers;
/// kmonitor: delays, also while clusters or brokers are down.
mod kmonitor_delay;
/// kmonitor: modules of which little can be read, groups that rebalance, and pauses.
mod kmonitor_groups;
/// kmonitor: what is known while servers restart, stall or die.
mod kmonitor_outages;
/// kmonitor: its page in a real browser.
mod kmonitor_page;
/// kmonitor: what it costs ZooKeeper, also an old one.
mod kmonitor_scale;
/// kmonitor: stored offsets in Kafka, and modules that move.
mod kmonitor_sources;
/// kmonitor: topics that are created again, grow or lose messages; offsets that are missing or left over.
mod kmonitor_truth;
/// kmonitor: each verdict.
mod kmonitor_verdicts;
/// kproxy: commits, unknown topics, a broker that is down, SIGTERM.
mod kproxy;
/// ktransfer: hostile backends and messages that cannot be pushed.
mod ktransfer_backends;
/// ktransfer: backends that are dead, one of several or all of them.
mod ktransfer_dead_backends;
/// ktransfer: dead letters, what they hold up, and how they are replayed.
mod ktransfer_dead_letters;
/// ktransfer: three instances while everything around them fails once.
mod ktransfer_faults;
/// ktransfer: backends that answer early, late, wrongly or not at all.
mod ktransfer_http;
/// ktransfer: https backends, client certificates, signatures.
#[cfg(feature = "tls")]
mod ktransfer_https;
/// ktransfer: what refused keys and large messages do to the rest of a module.
mod ktransfer_isolation;
/// ktransfer: groups in Kafka, without ZooKeeper.
mod ktransfer_kafka_groups;
/// ktransfer: operations on modules whose groups are in Kafka 4.x.
mod ktransfer_kraft_operations;
/// ktransfer: its memory while messages of unusual shapes are refused.
mod ktransfer_memory;
/// ktransfer: stored offsets that move between ZooKeeper and Kafka.
mod ktransfer_moved;
/// ktransfer: a module that is stuck and paused moves between ZooKeeper and Kafka 3.9 or 4.x.
mod ktransfer_moved_paused;
/// ktransfer: topics that grow, are created again, lose messages or have transactions.
mod ktransfer_offsets;
/// ktransfer: operators pause, resume, skip and seek.
mod ktransfer_operations;
/// ktransfer: one group with the original, the Go program.
mod ktransfer_original;
/// ktransfer: a ZooKeeper or a broker that is down, wrong module files.
mod ktransfer_outage;
/// ktransfer: what each status and each transport error means for a message.
mod ktransfer_outcomes;
/// ktransfer: which instance pushes a partition, and until when.
mod ktransfer_ownership;
/// ktransfer: message filter, retries, order per key, hand-over.
mod ktransfer_push;
/// ktransfer: topics that are deleted and created again.
mod ktransfer_recreated;
/// ktransfer: modules that a SIGHUP adds, removes and changes.
mod ktransfer_reload;
/// ktransfer: reloads of wrong files, and reloads while modules stop.
mod ktransfer_reload_faults;
/// ktransfer: ZooKeeper connections that are lost, a stop without ZooKeeper, members with other topics.
mod ktransfer_sessions;
/// ktransfer: stopped, or a module removed, while a push is on the wire.
mod ktransfer_stops;
/// ktransfer: topics that cannot be read are named in `/readyz`.
mod ktransfer_unread;
/// ktransfer: what one key or one push can hold up.
mod ktransfer_window;
/// All daemons: alerts, dashboard and metrics in a real Prometheus.
mod monitoring;
/// kproxy: outages, leaders that move, and other changes of a cluster, at commits and batches.
mod native_outages;
/// ktransfer and kproxy: their pages in a real browser.
mod operator_pages;
/// kproxy: order and correct answers while leaders move and brokers are killed.
mod order;
/// The whole path of a message through all three daemons.
mod path;
/// kproxy: a produce quota of the brokers.
mod quota;
/// kproxy: thousands of messages that the brokers refuse, beside other traffic.
mod refusals;
/// kproxy: stopped while many clients post.
mod rolling_restart;
/// ktransfer: random faults, of which `make soak` runs more.
mod soak;
/// kproxy: the number of its threads.
mod threads;
/// kproxy: HTTPS.
#[cfg(feature = "tls")]
mod tls;
/// kproxy: what it knows of a topic beforehand, and rights that are denied and granted.
mod topic_rules;
/// kmonitor: values for Zabbix, and its templates.
mod zabbix;
