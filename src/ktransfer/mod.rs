//! Kafka to HTTP: each message of a topic posted to the module's backends, in order per key, never lost.

pub mod group;
pub mod method;
pub mod policy;
pub mod template;
pub mod window;
