//! The engine of this project: the Kafka client in `src/kafka`.
//!
//! This folder converts between the seam ([`crate::broker`]) and the client, which has no knowledge of the daemons:
//! settings and addresses ([`config`]), errors, and the messages of a fetch.

#[allow(dead_code, reason = "the adapters of this engine are not written yet")]
mod config;
mod declined;
mod producer;
mod settings;
mod values;

pub(super) use producer::NativeProducer;
pub(super) use settings::validate;
