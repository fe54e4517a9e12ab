//! A message on its way to Kafka, and what its client is told of the outcome.
//!
//! An engine tells many outcomes in a row, on one thread. While few messages are in flight, that thread answers itself: to
//! wake the reader of each connection would take longer. When there are many, it leaves the answers to the readers, most of
//! which are awake then or worth waking, and the engine gets on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use log::{Level, info};

use super::answer::{Failure, stored};
use super::batch::Part;
use super::metrics::{Metrics, Topic};
use super::shown::{Peer, shown_query};
use crate::broker::{Acks, AppendResult, Completion};
use crate::http::{ByteLease, DeferredResponse, Reply};
use crate::log_limited;

/// With more messages in flight than this the readers answer. Measured at acks=1: with 8 connections a tenth fewer requests
/// a second, and a fifth more CPU time for each, if they always did; with 512 a fifth more than if they never did.
const FEW: usize = 32;

/// One message that the broker has, by the way it came.
pub(super) enum Delivery {
    One(Box<Commit>),
    Part(Part),
}

impl Completion for Delivery {
    fn complete(self, outcome: AppendResult) {
        match self {
            Delivery::One(commit) => commit.complete(outcome),
            Delivery::Part(part) => part.complete(outcome),
        }
    }
}

/// A message on its way to Kafka, with whoever waits for the outcome.
pub(super) struct Commit {
    pub(super) reply: Reply,
    pub(super) topic: Topic,
    pub(super) acks: Acks,
    pub(super) query: String,
    pub(super) bytes: usize,
    pub(super) peer: Peer,
    pub(super) started: Instant,
    pub(super) metrics: Arc<Metrics>,
    pub(super) place: Places,
    /// The message's bytes within the budget.
    pub(super) lease: ByteLease,
    /// `None` until it is known.
    pub(super) outcome: Option<AppendResult>,
}

/// Some of the `req_pool_size` places; given back when dropped.
pub(super) struct Places {
    in_flight: Arc<AtomicUsize>,
    count: usize,
}

impl Places {
    /// So many that were taken.
    pub(super) fn taken(in_flight: &Arc<AtomicUsize>, count: usize) -> Places {
        Places { in_flight: Arc::clone(in_flight), count }
    }

    /// Places that are taken, these and all others.
    fn in_all(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// One of them, to be given back on its own.
    pub(super) fn take_one(&mut self) -> Places {
        let count = self.count.min(1);
        self.count -= count;
        Places { in_flight: Arc::clone(&self.in_flight), count }
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        if self.count > 0 {
            self.in_flight.fetch_sub(self.count, Ordering::Relaxed);
        }
    }
}

impl Commit {
    fn complete(mut self: Box<Self>, outcome: AppendResult) {
        self.outcome = Some(outcome);
        if self.place.in_all() > FEW { self.reply.reader().defer(self) } else { self.run() }
    }
}

impl DeferredResponse for Commit {
    fn run(self: Box<Self>) {
        let Commit { reply, topic, acks, query, bytes, peer, started, metrics, place, lease, outcome } = *self;
        // Before the answer: who gets it may send the next request at once.
        drop((place, lease));
        let took = started.elapsed();
        let (query, cost) = (shown_query(&query), took.as_micros());
        let outcome =
            outcome.map_or_else(|| Err(Failure::lost()), |outcome| outcome.map_err(|error| Failure::of_append(&error)));
        match outcome {
            Ok(appended) => {
                reply.send(stored(&topic.name, appended));
                metrics.stored(&topic, acks, took);
                let (partition, offset) = (appended.partition, appended.offset.unwrap_or(-1));
                info!(
                    "commit {query} stored partition={partition} offset={offset} bytes={bytes} cost_us={cost} peer={peer}"
                );
            }
            Err(failure) => {
                reply.send(failure.response());
                metrics.not_stored(&topic, acks, failure.status, took);
                log_limited!(
                    Level::Warn,
                    "commit {query} failed status={} error={} stored={:?} bytes={bytes} cost_us={cost} peer={peer}: {}",
                    failure.status,
                    failure.code,
                    failure.stored,
                    failure.message
                );
            }
        }
    }
}
