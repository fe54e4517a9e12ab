//! The outcomes of a batch's messages, gathered into one answer.
//!
//! Every message holds the batch; the one that completes last answers. The status is 200 only when all messages are
//! stored, else the highest status among those that are not. So it is 503 or 504 as soon as one message is worth a
//! retry, and never a status that a client which reads nothing else would take for success.

use std::fmt::Write;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use log::{Level, info};

use crate::broker::{Acks, AppendResult, Appended};
use crate::http::{ByteLease, DeferredResponse, Reply, Response};
use crate::kproxy::answer::{Failure, OffsetOrNull, RETRY_AFTER};
use crate::kproxy::in_flight_slots::InFlightSlots;
use crate::kproxy::log_fields::{ClientLabel, redacted_query};
use crate::kproxy::metrics::{KproxyMetrics, TopicCounters};
use crate::locks;
use crate::log_limited;

type Outcome = Result<Appended, Failure>;

/// A batch that waits for the outcomes of its messages.
pub(crate) struct PendingBatch {
    /// In a lock only so that threads may share the batch; taken once, at the end.
    reply: Mutex<Reply>,
    /// By the index of the message in the batch.
    outcomes: Box<[OnceLock<Outcome>]>,
    request: BatchRequest,
    /// The messages' memory within `max_in_flight_bytes`.
    lease: ByteLease,
}

/// The request of a batch, for metrics and log.
pub(crate) struct BatchRequest {
    pub(crate) topic: TopicCounters,
    pub(crate) acks: Acks,
    pub(crate) metrics: Arc<KproxyMetrics>,
    pub(crate) query: String,
    pub(crate) bytes: usize,
    pub(crate) client: ClientLabel,
    pub(crate) started: Instant,
}

/// One message of a batch that was handed to the broker.
pub(crate) struct BatchItem {
    batch: Arc<PendingBatch>,
    index: usize,
    slot: InFlightSlots,
}

impl BatchItem {
    pub(crate) fn new(batch: &Arc<PendingBatch>, index: usize, slot: InFlightSlots) -> Self {
        BatchItem { batch: Arc::clone(batch), index, slot }
    }

    /// Records the outcome of the message; the last one answers the request.
    pub(crate) fn complete(self, outcome: AppendResult) {
        let BatchItem { batch, index, slot } = self;
        // Released before the answer: a client may send its next request as soon as it has the answer.
        drop(slot);
        let outcome = outcome.map_err(|error| Failure::from_append(&error));
        let BatchRequest { topic, acks, metrics, started, .. } = &batch.request;
        match &outcome {
            Ok(_) => metrics.stored(topic, *acks, started.elapsed()),
            Err(failure) => metrics.not_stored(topic, *acks, failure.status, started.elapsed()),
        }
        // Fails only for a message that completed before, which no engine does.
        let _ = batch.outcomes[index].set(outcome);
        PendingBatch::release(batch);
    }
}

impl PendingBatch {
    pub(crate) fn new(message_count: usize, request: BatchRequest, lease: ByteLease, reply: Reply) -> Arc<Self> {
        let outcomes = (0..message_count).map(|_| OnceLock::new()).collect();
        Arc::new(PendingBatch { reply: Mutex::new(reply), outcomes, request, lease })
    }

    /// Gives up one holder's reference; the last holder answers.
    pub(crate) fn release(batch: Arc<Self>) {
        if let Some(mut batch) = Arc::into_inner(batch) {
            // The answer is long, so it is not put together on the engine's thread.
            let reader = locks::get_mut(&mut batch.reply).reader();
            reader.defer(Box::new(batch));
        }
    }
}

impl DeferredResponse for PendingBatch {
    fn run(self: Box<Self>) {
        let PendingBatch { reply, outcomes, request, lease } = *self;
        drop(lease);
        let outcomes: Vec<Outcome> = outcomes
            .into_iter()
            .map(|outcome| outcome.into_inner().unwrap_or_else(|| Err(Failure::no_delivery_report())))
            .collect();
        let failed = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
        let worst = failed.clone().max_by_key(|failure| failure.status);
        let status = worst.map_or(200, |failure| failure.status);
        let mut response = Response::new(status, "application/x-ndjson", result_lines(&outcomes));
        if status == 503 {
            response = response.with_header("Retry-After", RETRY_AFTER);
        }
        locks::into_inner(reply).send(response);

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

/// One line of JSON for each outcome.
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
