//! Kafka to HTTP: each message of a topic posted to the module's backends, in order per key, never lost.

pub mod backends;
mod client;
pub mod config;
pub mod dispatcher;
pub mod fetcher;
pub mod group;
pub mod job;
pub mod method;
pub mod metrics;
pub mod policy;
pub mod push;
mod socket;
pub mod template;
pub mod window;
pub mod worker;
