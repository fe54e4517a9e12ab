//! Kafka to HTTP: each message of a topic posted to the module's backends, in order per key, never lost.
//!
//! Reading order: [`config`], [`module`] (the threads of a module), [`dispatcher`] (its loop), [`window`], [`group`],
//! [`fetcher`], [`worker`], [`push`], [`policy`].

#[cfg(test)]
mod backend_for_tests;
pub mod backends;
mod client;
pub mod config;
pub mod dispatcher;
pub mod fetcher;
pub mod group;
pub mod job;
pub mod method;
pub mod metrics;
pub mod module;
pub mod policy;
pub mod push;
mod socket;
pub mod template;
pub mod window;
pub mod worker;

pub use config::{Config, load};
