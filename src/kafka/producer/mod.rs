//! The producer: sends messages in batches and reports one outcome for each message.
//!
//! [`gather`] forms the batches and derives the outcomes, without IO.

pub mod gather;
