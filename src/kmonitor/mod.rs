//! kmonitor.

pub mod board;
pub mod cluster;
pub mod config;
pub mod delay;
pub mod handler;
pub mod log_ends;
pub mod positions;
pub mod report;
