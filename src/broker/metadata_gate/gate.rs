//! The gate: refuses an append, submits it to the engine, or puts it into the table until its topic is known.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::reachability::Reachability;
use super::state::{
    FailedAppend, GateState, NotSubmitted, PendingAppend, ProducerEngine, TopicAnswer, Waiting, not_stored,
};
use crate::broker::topic_rules::TopicRules;
use crate::broker::topics::{Known, LookupAnswer, LookupResult, TopicTable};
use crate::broker::{Acks, AppendError, AppendFailure, Completion, Header, ProducerConfig, Record};
use crate::clock::unix_ms;
use crate::locks::lock;

/// Upper bound of the bytes that headers of batch and record add to a message that has at most 100 headers.
const MAX_RECORD_OVERHEAD_BYTES: usize = 2048;
/// Number of answers for which the table is locked at a time, since appends wait for the lock.
const MAX_HANDLED_UNDER_LOCK: usize = 64;

/// Takes an answer over into the table; returns the items that waited for it, with the result for them.
type HandleAnswer<W> = fn(&mut TopicTable<W>, &str, LookupAnswer, Instant) -> Option<(LookupResult, Vec<W>)>;

/// What has become of an append.
enum Admission<C> {
    /// The engine has it.
    Submitted,
    /// It waits for a lookup of its topic.
    NeedsLookup(PendingAppend<C>),
    /// The same, because the engine knows less of the topic than the table.
    IsOutdated(PendingAppend<C>),
}

/// The gate of a producer whose engine is `E`.
pub(in crate::broker) struct MetadataGate<C: Completion, E> {
    pub(in crate::broker) engine: E,
    pub(super) state: Arc<GateState<C>>,
    max_message_bytes: usize,
    timeout: Duration,
    pub(super) reachability: Reachability,
}

impl<C: Completion, E: ProducerEngine<C>> MetadataGate<C, E> {
    /// Makes the gate of `engine`; its metadata thread is not started.
    pub(super) fn new(engine: E, state: Arc<GateState<C>>, config: &ProducerConfig) -> Self {
        let (max_message_bytes, timeout) = (config.max_message_bytes, config.timeout);
        MetadataGate { engine, state, max_message_bytes, timeout, reachability: Reachability::new() }
    }

    /// [`crate::broker::Producer::append`].
    pub(in crate::broker) fn append(&self, record: Record, acks: Acks, completion: C) {
        let now = Instant::now();
        let append = PendingAppend { record, acks, completion, deadline: now + self.timeout };
        if let Err((completion, error)) = self.start(append, now) {
            completion.complete(Err(error));
        }
    }

    /// Refuses further appends and fails those that wait for their topic. The engine completes its own.
    pub(in crate::broker) fn close(&self) {
        self.state.is_closed.store(true, Ordering::Release);
        // Every append reads `is_closed` under this lock, so afterwards none reaches the engine.
        let waiting = self.state.write_topics().drain();
        for waiting in waiting {
            waiting.into_append().completion.complete(Err(closed_error()));
        }
        let _ = self.state.wake.try_send(());
    }

    /// [`crate::broker::Producer::reachable`].
    pub(in crate::broker) fn reachable(&self) -> Result<(), String> {
        lock(&self.reachability.state).clone()
    }

    /// [`crate::broker::Producer::topic_lookups`].
    pub(in crate::broker) fn topic_lookups(&self) -> u64 {
        self.state.lookup_count.load(Ordering::Relaxed)
    }

    fn start(&self, append: PendingAppend<C>, now: Instant) -> Result<(), FailedAppend<C>> {
        let limit = self.max_message_bytes;
        if append.record.value_bytes() > limit {
            let reason = format!("larger than {limit} bytes (max_request_size_bytes)");
            return Err(refused(append, AppendFailure::TooLarge, reason));
        }
        let append = match self.admit(&self.state.read_topics(), append, now)? {
            Admission::Submitted => return Ok(()),
            Admission::NeedsLookup(append) | Admission::IsOutdated(append) => append,
        };
        let mut topics = self.state.write_topics();
        // The result of a lookup may have come between the two locks.
        let (append, is_outdated) = match self.admit(&topics, append, now)? {
            Admission::Submitted => return Ok(()),
            Admission::NeedsLookup(append) => (append, false),
            Admission::IsOutdated(append) => (append, true),
        };
        let topic = Arc::clone(&append.record.topic);
        if is_outdated {
            topics.invalidate(&topic, now);
        }
        topics.add(&topic, Waiting::new(append), now).map_err(|waiting| {
            let reason = "too many messages wait for a topic lookup".to_owned();
            refused(waiting.into_append(), AppendFailure::Full, reason)
        })?;
        drop(topics);
        let _ = self.state.wake.try_send(());
        Ok(())
    }

    /// Submits an append if its topic is known. The caller holds the lock of the table.
    fn admit(
        &self,
        topics: &TopicTable<Waiting<C>>,
        append: PendingAppend<C>,
        now: Instant,
    ) -> Result<Admission<C>, FailedAppend<C>> {
        if self.state.is_closed() {
            return Err((append.completion, closed_error()));
        }
        if self.reachability.is_refusing.load(Ordering::Relaxed) {
            return Err(refused(append, AppendFailure::Unreachable, self.reachability.reason()));
        }
        match topics.known(&append.record.topic, append.record.partition, now) {
            Known::Yes(partition_count, rules) => match self.submit(append, partition_count, &rules) {
                Ok(()) => Ok(Admission::Submitted),
                Err(NotSubmitted::NeedsLookup(append)) => Ok(Admission::IsOutdated(*append)),
                Err(NotSubmitted::Failed(failed)) => Err(failed),
            },
            Known::No => Err(unknown_topic(append)),
            Known::Refused(kind, reason) => Err(refused_topic(append, kind, &reason)),
            Known::NeedsLookup => Ok(Admission::NeedsLookup(append)),
        }
    }

    /// Submits an append to the engine. The caller holds the lock of the table, which keeps the order.
    fn submit(
        &self,
        append: PendingAppend<C>,
        partition_count: i32,
        rules: &TopicRules,
    ) -> Result<(), NotSubmitted<C>> {
        let chosen = append.record.partition;
        if let Some(partition) = chosen.filter(|partition| !(0..partition_count).contains(partition)) {
            let topic = &append.record.topic;
            let reason =
                format!("topic {topic} has no partition {partition}: it has {partition_count} partitions, from 0 on");
            return Err(NotSubmitted::Failed(refused(append, AppendFailure::UnknownPartition, reason)));
        }
        if *rules != TopicRules::UNKNOWN
            && let Some(error) = self.violation(&append, rules)
        {
            // The topic may have other rules by now.
            self.state.refresh_soon(&append.record.topic);
            return Err(NotSubmitted::Failed((append.completion, error)));
        }
        self.engine.submit(append, partition_count)
    }

    fn violation(&self, append: &PendingAppend<C>, rules: &TopicRules) -> Option<AppendError> {
        let record = &append.record;
        // Most messages are far from the limit.
        let is_near = record_bytes(record) + MAX_RECORD_OVERHEAD_BYTES > rules.max_batch_bytes;
        let batch_bytes = if is_near { self.engine.batch_bytes(record) } else { 0 };
        let now_ms = if record.timestamp_ms.is_some() { unix_ms() } else { 0 };
        rules.violation(record, append.acks, batch_bytes, now_ms)
    }

    /// Fails the appends whose deadline passed in the table.
    pub(super) fn expire(&self, now: Instant) {
        if self.state.read_topics().next_deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        let expired = self.state.write_topics().expire(now);
        for waiting in expired {
            let append = waiting.into_append();
            let reason = format!("the lookup of topic {} timed out", append.record.topic);
            append.completion.complete(Err(not_stored(AppendFailure::Unreachable, reason)));
        }
    }

    /// Handles the answers to lookups: submits or fails the appends that waited for the results.
    pub(super) fn handle_answers(&self, answers: Vec<TopicAnswer>) {
        self.handle(answers, TopicTable::answer);
    }

    /// Handles the answers to the refresh of known topics, in the same way.
    pub(super) fn handle_refreshed(&self, answers: Vec<TopicAnswer>) {
        self.handle(answers, TopicTable::refreshed);
    }

    fn handle(&self, answers: Vec<TopicAnswer>, handle_one: HandleAnswer<Waiting<C>>) {
        let mut answers = answers.into_iter().peekable();
        while answers.peek().is_some() {
            let (mut failed, now) = (Vec::new(), Instant::now());
            let mut topics = self.state.write_topics();
            for (topic, answer) in answers.by_ref().take(MAX_HANDLED_UNDER_LOCK) {
                if let Some((result, waiting)) = handle_one(&mut topics, &topic, answer, now) {
                    failed.extend(self.release(&topic, &result, waiting));
                }
            }
            drop(topics);
            fail_all(failed);
        }
    }

    /// Submits the appends that waited for a topic, or returns them with their errors. The caller holds the lock of the
    /// table, which keeps the order.
    fn release(&self, topic: &str, result: &LookupResult, waiting: Vec<Waiting<C>>) -> Vec<FailedAppend<C>> {
        let submit = |waiting: Waiting<C>| {
            let append = waiting.into_append();
            match result {
                LookupResult::Exists(partition_count, rules) => match self.submit(append, *partition_count, rules) {
                    Ok(()) => None,
                    Err(NotSubmitted::Failed(failed)) => Some(failed),
                    Err(NotSubmitted::NeedsLookup(append)) => {
                        self.state.invalidate(topic);
                        let reason = format!("the partitions of topic {topic} changed during its lookup");
                        Some(refused(*append, AppendFailure::Unreachable, reason))
                    }
                },
                LookupResult::Unknown => Some(unknown_topic(append)),
                LookupResult::Unreachable(reason) => {
                    let reason = format!("the lookup of topic {topic} failed: {reason}");
                    Some(refused(append, AppendFailure::Unreachable, reason))
                }
                LookupResult::Refused(kind, reason) => Some(refused_topic(append, *kind, reason)),
            }
        };
        waiting.into_iter().filter_map(submit).collect()
    }
}

fn fail_all<C: Completion>(failed: Vec<FailedAppend<C>>) {
    for (completion, error) in failed {
        completion.complete(Err(error));
    }
}

fn refused<C>(append: PendingAppend<C>, kind: AppendFailure, reason: String) -> FailedAppend<C> {
    (append.completion, not_stored(kind, reason))
}

fn unknown_topic<C>(append: PendingAppend<C>) -> FailedAppend<C> {
    let reason = format!("topic {} does not exist", append.record.topic);
    refused(append, AppendFailure::UnknownTopic, reason)
}

fn refused_topic<C>(append: PendingAppend<C>, kind: AppendFailure, reason: &str) -> FailedAppend<C> {
    let reason = format!("the brokers refused topic {}: {reason}", append.record.topic);
    refused(append, kind, reason)
}

/// Returns the bytes of key, value and headers.
fn record_bytes(record: &Record) -> usize {
    let header_bytes = |header: &Header| header.name.len() + header.value.as_ref().map_or(0, Vec::len);
    record.value_bytes()
        + record.key.as_ref().map_or(0, Vec::len)
        + record.headers.iter().map(header_bytes).sum::<usize>()
}

fn closed_error() -> AppendError {
    not_stored(AppendFailure::Closed, "the producer is being closed".to_owned())
}
