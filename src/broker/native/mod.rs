//! The engine of this project: the Kafka client in `src/kafka`.
//!
//! This folder converts between the seam ([`crate::broker`]) and the client, which has no knowledge of the daemons:
//! settings and addresses ([`config`]), errors, and the messages of a fetch.

mod config;
mod declined;
mod fetcher;
mod log_ends;
mod producer;
mod producer_settings;
mod settings;
mod values;

pub(super) use fetcher::NativeFetcher;
pub(super) use log_ends::NativeLogEnds;
pub(super) use producer::NativeProducer;
pub(super) use settings::validate;
