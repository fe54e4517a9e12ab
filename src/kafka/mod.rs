//! A synchronous Kafka client, independent of the daemons; only `crate::broker` may use it.
//!
//! These modules do no IO: they convert bytes to values and values to bytes.
//!
//! - [`wire`]: the primitive types of the protocol, read with bounds checks. [`frame`]: length prefixes and headers.
//! - [`produce`]: Produce requests and responses. [`protocol`]: the other requests and responses.
//! - [`record_batch`]: encodes records as a batch of message format 2, the only format that this client writes.
//!   [`records`]: decodes the record data of a fetch response, in message formats 0, 1 and 2.
//! - [`compression`]: the four codecs, with a limit on the decompressed bytes.
//! - [`metadata`]: brokers, topics and partition leaders as values. [`error_code`]: names of the error codes.
//! - `sasl`: the SASL mechanisms.
//!
//! These do IO, with a deadline for each call; each one uses only those before it.
//!
//! - [`config`]: settings. [`backoff`]: pauses between attempts.
//! - [`resolve`]: looks up host names on threads of its own.
//! - `socket`, `stream`: TCP, and a byte stream over it or over TLS (`tls_client`).
//! - `oauth`: access tokens from a token endpoint.
//! - [`connection`]: one connection to a broker, authenticated, with requests and responses.
//! - [`broker_pool`]: the connections to the brokers of a cluster, with back-off and throttle times.
//! - [`metadata_client`]: requests that any broker can answer: metadata, coordinators. [`topic_configs`]: and the
//!   configuration of topics.
//!
//! These are the clients, with threads. Their decisions are in modules without IO.
//!
//! - [`producer`]: sends messages; a thread for each broker and acks level.
//! - [`fetch`]: reads messages from offsets that the owner chooses; a thread for each broker.
//! - [`offsets`]: offsets of partitions and groups, from all brokers at the same time.
//! - [`group`]: membership in a consumer group.
//!
//! For tests: `testkit` is a cluster in memory that speaks the protocol, with scripted and random faults.
//!
//! To add a request: a file in [`protocol`], which implements [`Request`](protocol::Request); its test in every version
//! against the crate `kafka-protocol`; its handler in `testkit`.
//!
//! Invariants: memory for a response grows with the bytes received, never by a length field alone; decompressed data
//! has an upper bound; no input makes a decoder panic.
//!
//! The formats are specified in the protocol guide and the message format section of the Apache Kafka documentation.

pub mod backoff;
pub mod broker_pool;
pub mod compression;
pub mod config;
pub mod connection;
pub mod error_code;
pub mod fetch;
pub mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz_targets;
pub mod group;
pub mod metadata;
pub mod metadata_client;
mod oauth;
pub mod offsets;
pub mod produce;
pub mod producer;
pub mod protocol;
pub mod record_batch;
pub mod records;
pub mod resolve;
mod sasl;
#[cfg(test)]
mod scripted_broker;
mod socket;
mod stream;
#[cfg(test)]
mod test_server;
#[cfg(test)]
pub mod testkit;
#[cfg(test)]
mod testkit_tests;
pub mod topic_configs;
pub mod wire;
