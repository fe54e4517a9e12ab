//! The engine of this project: the Kafka client in `src/kafka`.
//!
//! This folder converts between the seam ([`crate::broker`]) and the client, which has no knowledge of the daemons:
//! settings and addresses ([`config`]), errors, and the messages of a fetch.

mod config;
mod declined;
mod producer;
mod settings;
mod values;
pub(super) use producer::NativeProducer;
mod fetcher;
mod log_ends;
#[allow(dead_code, reason = "the producer of this engine is not written yet")]
mod producer_settings;
pub(super) use fetcher::NativeFetcher;
pub(super) use log_ends::NativeLogEnds;
pub(super) use settings::validate;
