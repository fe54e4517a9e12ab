//! Many messages in one request, `POST /commit_batch`, with one result for each.
//!
//! [`BatchFormat::parse`] turns a body into messages (`ndjson`, `binary`; pure), [`BatchDefaults`] turns those into
//! records, [`PendingBatch`] gathers the outcomes and answers once. A body that is not well formed to its end is
//! refused whole, before any message is handed over. A batch is no transaction: its messages are stored one by one.
//!
//! Bounds: `max_batch_messages`, `max_batch_bytes`; one slot of `req_pool_size` for each message, all of them or 503;
//! the memory of the messages counts within `max_in_flight_bytes` until the answer. While a body is parsed it is in
//! memory beside its messages; that is at most one body on each HTTP thread.

mod binary;
mod delivery;
mod format;
mod limits;
mod message;
mod ndjson;
#[cfg(test)]
mod tests;

pub(super) use delivery::{BatchItem, BatchRequest, PendingBatch};
pub(super) use format::BatchFormat;
pub(super) use limits::BatchLimits;
pub(super) use message::{BatchDefaults, ParsedMessage};
