//! Messages that wait for a delivery report, and the answer to a `/commit` (for a batch: `batch/delivery.rs`).
//!
//! An engine passes on many delivery reports at once, on one thread. While few messages are in flight, that thread
//! writes the answer to each `/commit` itself, because waking the reader thread of the connection would take longer.
//! While many messages are in flight, it leaves the answers to the reader threads: most readers are awake then, or have
//! enough answers to write to be worth waking. A reader gets its answers together, and the records with them, because
//! it has allocated them.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use log::{Level, info, log_enabled};

use super::answer::{Failure, stored};
use super::batch::BatchItem;
use super::in_flight_slots::InFlightSlots;
use super::log_fields::{ClientLabel, redacted_query};
use super::metrics::{KproxyMetrics, TopicCounters};
use crate::broker::{Acks, AppendResult, Appended, Completion, Record};
use crate::decimal::{push_decimal, push_signed};
use crate::http::{ByteLease, DeferredResponse, DeferredResponses, HasReply, Reply};
use crate::log_limited;

/// While more messages than this are in flight, the reader threads write the answers, else the engine's thread.
/// Measured at acks=1, with readers that write all answers, against an engine's thread that does: with 8 connections a
/// tenth fewer requests a second and a fifth more CPU time for each; with 512 connections a fifth more requests a
/// second.
const MAX_ANSWERED_BY_ENGINE: usize = 32;

/// A message that waits for its delivery report, by the endpoint that received it.
pub(super) enum PendingMessage {
    /// The message of a `/commit`.
    Commit(Box<PendingCommit>),
    /// One message of a `/commit_batch`.
    BatchItem(BatchItem),
}

impl Completion for PendingMessage {
    fn complete(self, outcome: AppendResult) {
        complete_all(std::iter::once((self, outcome, None)));
    }

    fn complete_all(results: impl Iterator<Item = (Self, AppendResult, Box<Record>)>) {
        complete_all(results.map(|(message, outcome, record)| (message, outcome, Some(record))));
    }
}

fn complete_all(results: impl Iterator<Item = (PendingMessage, AppendResult, Option<Box<Record>>)>) {
    let mut deferred = DeferredResponses::default();
    // Decided once, since all threads change the number of messages in flight.
    let mut is_left_to_readers = None;
    for (message, outcome, record) in results {
        match message {
            PendingMessage::Commit(mut commit) => {
                (commit.outcome, commit.record) = (Some(outcome), record);
                let is_many = || commit.slot.used_in_pool() > MAX_ANSWERED_BY_ENGINE;
                if *is_left_to_readers.get_or_insert_with(is_many) { deferred.add(commit) } else { commit.run() }
            }
            PendingMessage::BatchItem(item) => item.complete(outcome, &mut deferred),
        }
    }
}

/// The message of one `/commit`, with the connection that waits for its answer.
pub(super) struct PendingCommit {
    pub(super) reply: Reply,
    pub(super) topic: TopicCounters,
    pub(super) acks: Acks,
    pub(super) query: String,
    pub(super) bytes: usize,
    pub(super) client: ClientLabel,
    pub(super) started: Instant,
    pub(super) metrics: Arc<KproxyMetrics>,
    pub(super) slot: InFlightSlots,
    /// The share of `max_in_flight_bytes` that the message takes.
    pub(super) lease: ByteLease,
    /// `None` until the delivery report arrives.
    pub(super) outcome: Option<AppendResult>,
    /// The record, which comes back with the delivery report of some engines.
    pub(super) record: Option<Box<Record>>,
}

impl HasReply for PendingCommit {
    fn reply(&mut self) -> &Reply {
        &self.reply
    }
}

impl DeferredResponse for PendingCommit {
    fn run(self: Box<Self>) {
        let PendingCommit { reply, topic, acks, query, bytes, client, started, metrics, .. } = *self;
        // Released before the answer, so that the client's next request finds the slot and the bytes free.
        drop((self.record, self.slot, self.lease));
        let outcome = self.outcome;
        let took = started.elapsed();
        let (query, cost) = (redacted_query(&query), took.as_micros());
        let outcome = outcome.map_or_else(
            || Err(Failure::no_delivery_report()),
            |outcome| outcome.map_err(|error| Failure::from_append(&error)),
        );
        match outcome {
            Ok(appended) => {
                reply.send(stored(&topic.name, appended));
                metrics.stored(&topic, acks, took);
                log_stored(&query, appended, bytes, cost, &client);
            }
            Err(failure) => {
                reply.send(failure.response());
                metrics.not_stored(&topic, acks, failure.status, took);
                log_limited!(
                    Level::Warn,
                    "commit {query} failed status={} error={} stored={:?} bytes={bytes} cost_us={cost} \
                     peer={client}: {}",
                    failure.status,
                    failure.code,
                    failure.stored,
                    failure.message
                );
            }
        }
    }
}

/// Logs a stored message. The line is put together without `std::fmt`, since each request has one.
fn log_stored(query: &str, appended: Appended, bytes: usize, cost_us: u128, client: &ClientLabel) {
    if !log_enabled!(Level::Info) {
        return;
    }
    thread_local! {
        static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    LINE.with_borrow_mut(|line| {
        line.clear();
        for text in ["commit ", query, " stored partition="] {
            line.extend_from_slice(text.as_bytes());
        }
        push_signed(line, appended.partition.into());
        line.extend_from_slice(b" offset=");
        push_signed(line, appended.offset.unwrap_or(-1));
        line.extend_from_slice(b" bytes=");
        push_decimal(line, bytes as u64);
        line.extend_from_slice(b" cost_us=");
        push_decimal(line, u64::try_from(cost_us).unwrap_or(u64::MAX));
        line.extend_from_slice(b" peer=");
        client.parts().for_each(|part| line.extend_from_slice(part.as_bytes()));
        info!("{}", str::from_utf8(line).expect("strings and digits were appended"));
    });
}
