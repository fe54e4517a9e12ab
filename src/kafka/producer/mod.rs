//! The producer: sends messages in batches and reports one outcome for each message.
//!
//! - [`client`]: the producer as its users see it, and its threads.
//! - [`message`]: the trait of a message, and the acks levels.
//! - [`accumulator`] forms the batches and derives the outcomes, without IO; `partition_index` and [`outcome`] have the
//!   types of its input and output.
//! - `level`: the messages of an acks level; `sticky`: the partition of messages without a key; `topic_limit`: the
//!   largest batch at acks=0. `deadlines`: the thread that watches the time.
//! - `sender`: the thread for one level and broker; `exchange`: one request of it; `sender_handle`: how other threads
//!   use it; `buffers`: its memory; `response`: the meaning of the error codes of a response for a batch.
//! - `throttling`: a sender whose broker throttles it; `quota`: its arithmetic.
//! - [`links`]: the connections as operators see them.
//! - `leaders`: the leader of each partition; `stale_topics`: the topics whose leaders may have changed; `refresh`: the
//!   thread that requests their metadata.

pub mod accumulator;
mod batch_size;
mod buffers;
pub mod client;
mod deadlines;
mod exchange;
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
mod stale_topics;
mod sticky;
mod throttling;
mod topic_limit;
