//! ktransfer: Kafka to HTTP.

pub mod method;
pub mod policy;
pub mod template;
pub mod window;
