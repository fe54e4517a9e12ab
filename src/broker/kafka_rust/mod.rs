//! The engine without C: the pure-Rust `kafka` crate under guards.
//!
//! The crate has constant time limits of two minutes, does not compare the numbers of questions and answers, never
//! mends a broken connection, and panics on answers it does not expect. So nothing but four calls of its client are
//! used (metadata, offsets, fetch, produce), each on a thread that owns the client and may be abandoned, and a
//! client is thrown away after anything but an error code of Kafka's own: see [`caller`].
//!
//! Limits: brokers 0.9 to 3.9 (4.0 dropped the old protocol), plaintext, messages plain or in gzip or snappy, no
//! headers, no timestamps, and what an aborted transaction wrote is read.

mod fetcher;
mod guarded_client;
mod log_ends;
mod producer;

pub(super) use fetcher::KafkaRustFetcher;
pub(super) use log_ends::KafkaRustLogEnds;
pub(super) use producer::KafkaRustProducer;
