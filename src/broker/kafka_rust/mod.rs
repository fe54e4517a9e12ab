//! The engine without C code: the pure-Rust `kafka` crate, used with precautions.
//!
//! The crate has fixed timeouts of two minutes, does not compare correlation ids, never reopens a broken connection,
//! and panics on responses it does not expect. So the engine uses only four calls of the crate's client (metadata,
//! offsets, fetch, produce). Each call runs on a thread that owns the client and may be abandoned. After a failure
//! other than an error code of Kafka the client is dropped: see [`guarded_client`].
//!
//! Limits: brokers 0.9 to 3.9 (4.0 removed the old protocol versions), plaintext, messages uncompressed or in gzip or
//! snappy, no headers, no timestamps. Messages of aborted transactions are read.

mod fetch_request;
mod fetcher;
mod guarded_client;
mod log_ends;
mod metadata;
mod partition_reader;
mod produce_job;
mod produce_request;
mod produce_worker;
mod producer;
mod validate;

pub(super) use fetcher::KafkaRustFetcher;
pub(super) use log_ends::KafkaRustLogEnds;
pub(super) use producer::KafkaRustProducer;
pub(super) use validate::validate;
