//! HTTP to Kafka, Kafka to HTTP, and a monitor of the delay between them.

pub mod admin;
pub mod broker;
pub mod config;
pub mod daemon;
pub mod http;
pub mod keeper;
pub mod kmonitor;
pub mod kproxy;
pub mod ktransfer;
pub mod logging;
pub mod metrics;
pub mod shutdown;
pub mod supervise;
