//! A synchronous Kafka client. It knows nothing of the daemons; `crate::broker` is its only user.
//!
//! What stands here so far is pure: bytes to values and back, without IO.
//!
//! - [`wire`]: the primitive types of the protocol, read with bounds.
//! - [`compression`]: the four codecs, each with a limit on what comes out.
//! - [`frame`]: requests and responses on a connection.
//! - [`produce`]: Produce requests and responses.
//! - [`record_batch`]: records to a batch of message format 2, the only one that is written.
//! - [`records`]: the record data of a fetch response to records, in message formats 0, 1 and 2.
//!
//! Invariants: a length in a response is never allocated because it is announced, only as far as its bytes are there;
//! decompressed data is bounded; no bytes make a decoder panic.
//!
//! Source of the formats: the protocol guide and the message format section of the documentation of Apache Kafka.

pub mod compression;
pub mod frame;
pub mod produce;
pub mod producer;
pub mod record_batch;
pub mod records;

pub mod wire;
