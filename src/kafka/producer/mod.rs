//! The producer: sends messages in batches and reports one outcome for each message.
//!
//! - [`client`]: the producer as its users see it, and its threads.
//! - [`message`]: what a message must provide, and the acks levels.
//! - [`gather`] forms the batches and derives the outcomes, without IO; `partition_index` and [`outcome`] have the
//!   types of its input and output.
//! - `level`: the messages of an acks level; `sticky`: the partition of those without a key; `topic_limit`: how large a
//!   batch may be where no response refuses it. `deadlines`: the thread that watches the time.
//! - `sender`: the thread for one level and broker; `exchange`: one request of it; `sender_handle`: what other threads
//!   see of it; `buffers`: its memory; `response`: what the error codes of a response say about a batch.
//! - `throttling`: a sender whose broker throttles it; `quota`: its arithmetic.
//! - [`links`]: the connections as operators see them.
//! - `leaders`: who leads what; `refresh`: the thread that requests metadata.

mod batch_size;
mod buffers;
pub mod client;
mod deadlines;
mod doubted;
mod exchange;
pub mod gather;
mod leaders;
mod level;
pub mod links;
pub mod message;
pub mod outcome;
mod partition;
mod partition_index;
mod quota;
mod refresh;
mod response;
mod schedule;
mod sender;
mod sender_handle;
mod shared;
mod sticky;
mod throttling;
mod topic_limit;
