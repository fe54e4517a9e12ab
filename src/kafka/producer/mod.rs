//! The producer: sends messages in batches and reports one outcome for each message.
//!
//! - [`client`]: the producer as its users see it, and its threads.
//! - [`message`]: what a message must provide, and the acks levels.
//! - [`gather`] forms the batches and derives the outcomes, without IO; [`outcome`] has the types of its input and output.
//! - `level`: the messages of an acks level. `sender`: the thread for one level and broker. `leaders`: who leads what.
//! - `response`: what the error codes of a response say about a batch.

mod batch_size;
pub mod client;
pub mod gather;
mod leaders;
mod level;
pub mod message;
pub mod outcome;
mod partition;
mod response;
mod schedule;
mod sender;
