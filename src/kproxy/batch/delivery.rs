//! Gathers the outcomes of a batch's messages into one answer.
//!
//! Every message holds a reference to the batch; the message that completes last answers the request. The status is 200
//! only when all messages are stored, else the highest status among the failed messages that are worth a retry, or
//! among all failed ones if none is. So a client that reads only the status retries if a retry makes sense, and never
//! takes a partial failure for success.

use std::fmt::Write;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use log::{Level, info};

use crate::broker::{Acks, AppendResult, Appended};
use crate::http::{ByteLease, DeferredResponse, DeferredResponses, HasReply, Reply, Response};
use crate::kproxy::answer::{Failure, OffsetOrNull};
use crate::kproxy::in_flight_slots::InFlightSlots;
use crate::kproxy::log_fields::{ClientLabel, redacted_query};
use crate::kproxy::metrics::{KproxyMetrics, TopicCounters};
use crate::locks;
use crate::log_limited;

type Outcome = Result<Appended, Failure>;

/// A batch that waits for the outcomes of its messages.
pub(crate) struct PendingBatch {
    /// Behind a lock only because threads share the batch; only the last holder takes the reply.
    reply: Mutex<Reply>,
    /// Outcomes by the index of the message in the batch; an entry is empty until the delivery report arrives.
    outcomes: Box<[OnceLock<Outcome>]>,
    request: BatchRequest,
    /// The share of `max_in_flight_bytes` that the messages take.
    lease: ByteLease,
}

/// The properties of a batch's request that metrics and log lines need.
pub(crate) struct BatchRequest {
    pub(crate) topic: TopicCounters,
    pub(crate) acks: Acks,
    pub(crate) metrics: Arc<KproxyMetrics>,
    pub(crate) query: String,
    pub(crate) bytes: usize,
    pub(crate) client: ClientLabel,
    pub(crate) started: Instant,
}

/// One message of a batch that waits for its delivery report.
pub(crate) struct BatchItem {
    batch: Arc<PendingBatch>,
    index: usize,
    slot: InFlightSlots,
}

impl BatchItem {
    pub(crate) fn new(batch: &Arc<PendingBatch>, index: usize, slot: InFlightSlots) -> Self {
        BatchItem { batch: Arc::clone(batch), index, slot }
    }

    /// Records the outcome of the message and, if it is the last one of the batch, answers the request.
    pub(crate) fn complete(self, outcome: AppendResult, deferred: &mut DeferredResponses) {
        let BatchItem { batch, index, slot } = self;
        // Released before the answer, so that the client's next request finds the slot free.
        drop(slot);
        let outcome = outcome.map_err(|error| Failure::from_append(&error));
        let BatchRequest { topic, acks, metrics, started, .. } = &batch.request;
        match &outcome {
            Ok(_) => metrics.stored(topic, *acks, started.elapsed()),
            Err(failure) => metrics.not_stored(topic, *acks, failure.status, started.elapsed()),
        }
        // Fails only for a message that has completed before; no engine completes a message twice.
        let _ = batch.outcomes[index].set(outcome);
        PendingBatch::release(batch, deferred);
    }
}

impl PendingBatch {
    pub(crate) fn new(message_count: usize, request: BatchRequest, lease: ByteLease, reply: Reply) -> Arc<Self> {
        let outcomes = (0..message_count).map(|_| OnceLock::new()).collect();
        Arc::new(PendingBatch { reply: Mutex::new(reply), outcomes, request, lease })
    }

    /// Drops one reference to the batch; the release of the last one answers the request.
    pub(crate) fn release(batch: Arc<Self>, deferred: &mut DeferredResponses) {
        if let Some(batch) = Arc::into_inner(batch) {
            // The answer is long, so a reader thread formats it instead of the engine's thread.
            deferred.add(Box::new(batch));
        }
    }
}

impl HasReply for PendingBatch {
    fn reply(&mut self) -> &Reply {
        locks::get_mut(&mut self.reply)
    }
}

impl DeferredResponse for PendingBatch {
    fn run(self: Box<Self>) {
        let PendingBatch { reply, outcomes, request, lease } = *self;
        let outcomes: Vec<Outcome> = outcomes
            .into_iter()
            .map(|outcome| outcome.into_inner().unwrap_or_else(|| Err(Failure::no_delivery_report())))
            .collect();
        let failed = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
        let worst = failed.clone().max_by_key(|failure| (failure.retriable, failure.status));
        let status = worst.map_or(200, |failure| failure.status);
        let mut response = Response::new(status, "application/x-ndjson", result_lines(&outcomes));
        // Of several failures with this status, the one with the longest pause counts.
        let pauses = failed.clone().filter(|failure| failure.status == status).filter_map(Failure::retry_after_seconds);
        if let Some(seconds) = pauses.max() {
            response = response.with_header("Retry-After", seconds.to_string());
        }
        locks::into_inner(reply).send(response);
        drop(lease);

        let BatchRequest { metrics, query, bytes, client, started, .. } = request;
        metrics.batch(status);
        let (query, cost, messages) = (redacted_query(&query), started.elapsed().as_micros(), outcomes.len());
        match worst {
            None => {
                info!("commit_batch {query} stored messages={messages} bytes={bytes} cost_us={cost} peer={client}");
            }
            Some(failure) => log_limited!(
                Level::Warn,
                "commit_batch {query} failed status={status} error={} messages={messages} failed={} bytes={bytes} \
                 cost_us={cost} peer={client}: {}",
                failure.code,
                failed.count(),
                failure.message
            ),
        }
    }
}

/// Formats one line of JSON for each outcome.
fn result_lines(outcomes: &[Outcome]) -> String {
    let mut lines = String::with_capacity(outcomes.len() * 40);
    for outcome in outcomes {
        // Writing to a `String` cannot fail.
        let _ = match outcome {
            Ok(Appended { partition, offset }) => {
                writeln!(lines, r#"{{"partition":{partition},"offset":{}}}"#, OffsetOrNull(*offset))
            }
            Err(failure) => {
                let mut object = failure.object();
                object.insert("status".to_owned(), failure.status.into());
                writeln!(lines, "{}", serde_json::Value::Object(object))
            }
        };
    }
    lines
}
