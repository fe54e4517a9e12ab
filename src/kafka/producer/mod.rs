//! The producer: sends messages in batches and reports one outcome for each message.
//!
//! [`gather`] forms the batches and derives the outcomes, without IO; [`outcome`] has the types of its input and output.

mod batch_size;
pub mod gather;
pub mod outcome;
mod partition;
mod schedule;
