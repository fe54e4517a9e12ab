//! Many messages in one request, `POST /commit_batch`, with one result for each.
//!
//! [`BatchFormat::parse`] turns a body into messages (`ndjson`, `binary`; pure), [`BatchDefaults`] turns those into
//! records, [`PendingBatch`] gathers the outcomes and answers once. A malformed body is refused as a whole, before any
//! message is handed to the broker. A batch is no transaction: its messages are stored one by one.
//!
//! Bounds: `max_batch_messages`, `max_batch_bytes`; each message takes one slot of `req_pool_size`, and a batch that
//! does not get all its slots is answered with 503; the memory of the messages counts towards `max_in_flight_bytes`
//! until the answer. While a body is parsed, body and messages are both in memory; this holds for at most one body on
//! each HTTP thread.

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
