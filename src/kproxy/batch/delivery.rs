//! The outcomes of a batch's messages, gathered into one answer.
//!
//! Every message holds the batch; whichever completes last answers. The status is 200 only when all are stored, else
//! the highest among those of the messages that are not: 503 and 504 as soon as one is worth another try, and never a
//! status that a client which looks at nothing else would take for success.

use std::fmt::Write;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use log::{Level, info};

use crate::broker::{Acks, AppendResult, Appended};
use crate::http::{ByteLease, DeferredResponse, Reply, Response};
use crate::kproxy::answer::{Failure, OffsetOrNull, RETRY_AFTER};
use crate::kproxy::in_flight::Places;
use crate::kproxy::metrics::{Metrics, Topic};
use crate::kproxy::shown::{Peer, shown_query};
use crate::locks;
use crate::log_limited;

type Outcome = Result<Appended, Failure>;

/// A batch under way.
pub(super) struct Batch {
    /// Only in a lock so that threads may share the batch; taken once, at the end.
    reply: Mutex<Reply>,
    /// By the message's place in the batch.
    outcomes: Box<[OnceLock<Outcome>]>,
    asked: Asked,
    /// The messages' bytes within the budget.
    lease: ByteLease,
}

/// What is said of the request in metrics and log.
pub(super) struct Asked {
    pub(super) topic: Topic,
    pub(super) acks: Acks,
    pub(super) metrics: Arc<Metrics>,
    pub(super) query: String,
    pub(super) bytes: usize,
    pub(super) peer: Peer,
    pub(super) started: Instant,
}

/// One message of a batch on its way to Kafka.
pub(in crate::kproxy) struct Part {
    batch: Arc<Batch>,
    index: usize,
    place: Places,
}

impl Part {
    pub(super) fn new(batch: &Arc<Batch>, index: usize, place: Places) -> Self {
        Part { batch: Arc::clone(batch), index, place }
    }

    /// Learns how the message ended.
    pub(in crate::kproxy) fn complete(self, outcome: AppendResult) {
        let Part { batch, index, place } = self;
        // Before the answer: who gets it may send the next request at once.
        drop(place);
        let outcome = outcome.map_err(|error| Failure::of_append(&error));
        let Asked { topic, acks, metrics, started, .. } = &batch.asked;
        match &outcome {
            Ok(_) => metrics.stored(topic, *acks, started.elapsed()),
            Err(failure) => metrics.not_stored(topic, *acks, failure.status, started.elapsed()),
        }
        // Fails only for a message that completed before, which no engine does.
        let _ = batch.outcomes[index].set(outcome);
        Batch::let_go(batch);
    }
}

impl Batch {
    pub(super) fn new(count: usize, asked: Asked, lease: ByteLease, reply: Reply) -> Arc<Self> {
        let outcomes = (0..count).map(|_| OnceLock::new()).collect();
        Arc::new(Batch { reply: Mutex::new(reply), outcomes, asked, lease })
    }

    /// Ends one holder's interest; the last one's answers.
    pub(super) fn let_go(batch: Arc<Self>) {
        if let Some(mut batch) = Arc::into_inner(batch) {
            // Its answer is long: not on the engine's thread.
            let reader = locks::get_mut(&mut batch.reply).reader();
            reader.defer(Box::new(batch));
        }
    }
}

impl DeferredResponse for Batch {
    fn run(self: Box<Self>) {
        let Batch { reply, outcomes, asked, lease } = *self;
        drop(lease);
        let outcomes: Vec<Outcome> =
            outcomes.into_iter().map(|outcome| outcome.into_inner().unwrap_or_else(|| Err(Failure::lost()))).collect();
        let failed = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
        let worst = failed.clone().max_by_key(|failure| failure.status);
        let status = worst.map_or(200, |failure| failure.status);
        let mut response = Response::new(status, "application/x-ndjson", lines(&outcomes));
        if status == 503 {
            response = response.with_header("Retry-After", RETRY_AFTER);
        }
        locks::into_inner(reply).send(response);

        let Asked { metrics, query, bytes, peer, started, .. } = asked;
        metrics.batch(status);
        let (query, cost, messages) = (shown_query(&query), started.elapsed().as_micros(), outcomes.len());
        match worst {
            None => {
                info!("commit_batch {query} stored messages={messages} bytes={bytes} cost_us={cost} peer={peer}");
            }
            Some(failure) => log_limited!(
                Level::Warn,
                "commit_batch {query} failed status={status} error={} messages={messages} failed={} bytes={bytes} cost_us={cost} peer={peer}: {}",
                failure.code,
                failed.count(),
                failure.message
            ),
        }
    }
}

/// One line for each outcome.
fn lines(outcomes: &[Outcome]) -> String {
    let mut lines = String::with_capacity(outcomes.len() * 40);
    for outcome in outcomes {
        // Writing to memory does not fail.
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
