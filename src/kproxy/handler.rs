//! The requests of kproxy: `/commit`, `/commit_batch`, and the operations endpoints on the same port.
//!
//! The head of a request is checked before its body is read. The body then becomes one message or many, which are
//! handed to the broker seam together with the [`Reply`]. Bounds: `req_pool_size` messages and `max_in_flight_bytes`; a
//! request beyond either is answered with 503 at once.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use log::Level;

use super::access::{AccessControl, RateCharge};
use super::answer::Failure;
use super::batch::{BatchDefaults, BatchFormat, BatchItem, BatchLimits, BatchRequest, ParsedMessage, PendingBatch};
use super::content_coding::{self, Coding, CommitCoding, DecodedLimit};
use super::cors::AllowedOrigins;
use super::headers;
use super::in_flight::{PendingCommit, PendingMessage};
use super::in_flight_slots::{InFlightSlots, SlotPool};
use super::log_fields::{ClientLabel, redacted_query, truncated};
use super::metrics::{KproxyMetrics, TopicCounters};
use super::producer_pool::ProducerPool;
use super::query::{Query, parse};
use crate::admin::Admin;
use crate::broker::{Acks, Header, PartitionId, Record};
use crate::http::{Admission, ByteLease, DeferredResponses, Handler, Head, Reply, Request, Response};
use crate::log_limited;

/// Answers every request on kproxy's port.
pub(super) struct CommitHandler {
    pub(super) producers: ProducerPool<PendingMessage>,
    pub(super) admin: Admin,
    pub(super) metrics: Arc<KproxyMetrics>,
    /// `None` admits all clients: no access control is configured.
    pub(super) access: Option<AccessControl>,
    /// `None` answers browsers like any other client.
    pub(super) origins: Option<AllowedOrigins>,
    pub(super) slots: SlotPool,
    pub(super) max_message_bytes: usize,
    pub(super) commit_coding: CommitCoding,
    pub(super) batch_limits: BatchLimits,
    /// Whether the engine can write record headers and timestamps.
    pub(super) has_headers_and_timestamps: bool,
}

/// The endpoints that take POST, by path.
const ENDPOINTS: [(&str, Endpoint); 2] = [("/commit", Endpoint::Commit), ("/commit_batch", Endpoint::CommitBatch)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    /// The body is one message.
    Commit,
    /// The body holds many messages.
    CommitBatch,
}

/// The parsed head of an admitted request, whose body has the messages. For a batch, `key`, `partition`, `timestamp_ms`
/// and `headers` apply to messages that have none of their own.
struct AdmittedCommit {
    /// The format of a batch; `None` for a `/commit`, whose body is one message.
    format: Option<BatchFormat>,
    /// The coding of the body, to be decoded.
    coding: Option<Coding>,
    topic: TopicCounters,
    key: Option<Vec<u8>>,
    acks: Acks,
    /// `None` if no access control is configured.
    charge: Option<RateCharge>,
    partition: Option<PartitionId>,
    timestamp_ms: Option<i64>,
    /// A `/commit` whose value is null and whose body must be empty.
    is_tombstone: bool,
    headers: Vec<Header>,
}

impl CommitHandler {
    /// Checks a head before any of the body is read; fails with the first refusal.
    fn check(&self, endpoint: Endpoint, head: &Head, max_body_bytes: usize) -> Result<AdmittedCommit, Failure> {
        // Authentication comes before query and headers: without valid credentials their errors are not reported.
        let access = self.access.as_ref();
        let credential = access.map_or(Ok(None), |access| access.authenticate(head))?;
        let query = parse(head.query.as_deref().unwrap_or_default())?;
        access.map_or(Ok(()), |access| access.authorize(credential.as_deref(), &query.topic))?;
        let (format, coding, headers) = match endpoint {
            Endpoint::Commit => (None, self.commit_coding(head)?, self.record_headers(head, &query)?),
            Endpoint::CommitBatch if query.is_tombstone => {
                let message = "tombstone is for /commit only: put \"value\":null into the messages of the batch";
                return Err(Failure::bad_tombstone(message));
            }
            Endpoint::CommitBatch => {
                (Some(BatchFormat::of(head)?), Coding::of(&head.headers)?, self.batch_trace(head)?)
            }
        };
        if query.timestamp_ms.is_some() && !self.has_headers_and_timestamps {
            return Err(Failure::unsupported());
        }
        self.check_free_slot()?;
        // Rates come last, so that a request refused for another reason is not charged.
        let charge = access.map(|access| access.charge(credential, &query.topic, head, max_body_bytes)).transpose()?;
        Ok(AdmittedCommit {
            charge,
            format,
            coding,
            topic: self.metrics.topic(&query.topic),
            key: query.key.map(Cow::into_owned),
            acks: query.acks,
            partition: query.partition,
            timestamp_ms: query.timestamp_ms,
            is_tombstone: query.is_tombstone,
            headers,
        })
    }

    /// Returns the coding of a `/commit` that is to be decoded.
    fn commit_coding(&self, head: &Head) -> Result<Option<Coding>, Failure> {
        match self.commit_coding {
            CommitCoding::Keep => Ok(None),
            CommitCoding::Decode => Coding::of(&head.headers),
            CommitCoding::Refuse => content_coding::refuse_any(&head.headers).map(|()| None),
        }
    }

    /// Returns the record headers of a `/commit`: custom headers, the trace context, and the coding that is kept.
    fn record_headers(&self, head: &Head, query: &Query<'_>) -> Result<Vec<Header>, Failure> {
        let mut headers = self.custom_headers_and_trace(head)?;
        if self.commit_coding == CommitCoding::Keep
            && !query.is_tombstone
            && self.has_headers_and_timestamps
            && let Some(value) = content_coding::record_header_value(&head.headers)
        {
            headers::add_content_encoding(&mut headers, value);
        }
        Ok(headers)
    }

    fn custom_headers_and_trace(&self, head: &Head) -> Result<Vec<Header>, Failure> {
        if !headers::any_for_record(&head.headers) {
            return Ok(Vec::new());
        }
        let mut custom = headers::custom(&head.headers)?;
        if self.has_headers_and_timestamps {
            headers::add_trace(&mut custom, &headers::trace_context(&head.headers));
        } else if !custom.is_empty() {
            // Only custom headers are refused. A trace context is dropped: many HTTP clients send one by default.
            return Err(Failure::unsupported());
        }
        Ok(custom)
    }

    fn batch_trace(&self, head: &Head) -> Result<Vec<Header>, Failure> {
        if !headers::any_for_record(&head.headers) {
            return Ok(Vec::new());
        }
        if !headers::custom(&head.headers)?.is_empty() {
            let message = "X-Kafka-Header- is for /commit only: put headers into the messages of the batch";
            return Err(Failure::bad_header(message));
        }
        Ok(if self.has_headers_and_timestamps { headers::trace_context(&head.headers) } else { Vec::new() })
    }

    /// Fails if all slots are in use, so that the client need not send the body. A slot is acquired only after the body
    /// has arrived.
    fn check_free_slot(&self) -> Result<(), Failure> {
        let used = self.slots.used();
        if used < self.slots.size() { Ok(()) } else { Err(self.pool_full(used, 1)) }
    }

    fn acquire_slots(&self, count: usize) -> Result<InFlightSlots, Failure> {
        self.slots.acquire(count).map_err(|used| self.pool_full(used, count))
    }

    fn pool_full(&self, used: usize, wanted: usize) -> Failure {
        self.metrics.pool_full.inc();
        let size = self.slots.size();
        Failure::overloaded(format!(
            "req_pool_size is {size}: {used} messages are in flight, no room for {wanted} more"
        ))
    }

    /// Hands the body of a request to the broker as one message.
    fn commit(&self, admitted: AdmittedCommit, request: Request, reply: Reply) {
        let started = Instant::now();
        let Request { mut head, body, mut lease, .. } = request;
        let AdmittedCommit { topic, key, acks, charge, partition, timestamp_ms, headers, .. } = admitted;
        let limit = DecodedLimit { max_bytes: self.max_message_bytes, setting: "max_request_size_bytes" };
        let prepared = decoded(admitted.coding, body, limit, &mut lease)
            .and_then(|body| value_of(body, admitted.is_tombstone))
            .and_then(|value| Ok((value, self.acquire_slots(1)?)));
        let (value, slot) = match prepared {
            Ok(prepared) => prepared,
            Err(failure) => return reply.send(self.refuse(&head, Some(Endpoint::Commit), &failure)),
        };
        let record = Record { topic: Arc::clone(&topic.name), partition, key, value, headers, timestamp_ms };
        let bytes = record.value_bytes();
        let client = client_of(&head, charge, 1, bytes);
        let commit = Box::new(PendingCommit {
            reply,
            topic,
            acks,
            query: head.query.take().unwrap_or_default(),
            bytes,
            client,
            started,
            metrics: Arc::clone(&self.metrics),
            slot,
            lease,
            outcome: None,
            record: None,
        });
        self.producers.append(record, acks, PendingMessage::Commit(commit));
    }

    /// Hands the messages of a request's body to the broker, in the order of the body.
    fn commit_batch(&self, format: BatchFormat, admitted: AdmittedCommit, request: Request, reply: Reply) {
        let started = Instant::now();
        let Request { head, body, mut lease, .. } = request;
        let AdmittedCommit { topic, acks, charge, key, partition, timestamp_ms, headers: trace, .. } = admitted;
        let defaults = BatchDefaults { topic: Arc::clone(&topic.name), key, partition, timestamp_ms, trace };
        let limit = DecodedLimit { max_bytes: self.batch_limits.max_body_bytes, setting: "max_batch_bytes" };
        let prepared = decoded(admitted.coding, body, limit, &mut lease)
            .and_then(|body| Ok((body.len(), self.prepare_batch(format, &defaults, body, &mut lease)?)));
        let (bytes, (messages, mut slots)) = match prepared {
            Ok(prepared) => prepared,
            Err(failure) => return reply.send(self.refuse(&head, Some(Endpoint::CommitBatch), &failure)),
        };
        let client = client_of(&head, charge, messages.len(), bytes);
        let (metrics, query) = (Arc::clone(&self.metrics), head.query.unwrap_or_default());
        let request = BatchRequest { topic, acks, metrics, query, bytes, client, started };
        let batch = PendingBatch::new(messages.len(), request, lease, reply);
        for (index, message) in messages.into_iter().enumerate() {
            let record = defaults.record(message);
            let item = BatchItem::new(&batch, index, slots.split_one());
            self.producers.append(record, acks, PendingMessage::BatchItem(item));
        }
        PendingBatch::release(batch, &mut DeferredResponses::default());
    }

    /// Parses a body and acquires memory and slots for all its messages. After a failure no message has been handed to
    /// the broker.
    fn prepare_batch(
        &self,
        format: BatchFormat,
        defaults: &BatchDefaults,
        body: Vec<u8>,
        lease: &mut ByteLease,
    ) -> Result<(Vec<ParsedMessage>, InFlightSlots), Failure> {
        let messages = format.parse(&body, &self.batch_limits)?;
        drop(body);
        if let Some(index) = messages.iter().position(|message| defaults.is_tombstone_without_key(message)) {
            return Err(Failure::bad_batch(format.place(index), "a null value needs a key, which it deletes"));
        }
        if !self.has_headers_and_timestamps && messages.iter().any(ParsedMessage::has_headers_or_timestamp) {
            return Err(Failure::unsupported());
        }
        content_coding::lease_memory(lease, defaults.bytes_of_records(&messages), "the batch with all its messages")?;
        let slots = self.acquire_slots(messages.len())?;
        Ok((messages, slots))
    }

    /// Answers a request whose path is none of the [`ENDPOINTS`].
    fn other_path(&self, head: &Head) -> Response {
        if head.method == "OPTIONS" && head.path == "*" {
            return Response::new(200, "", "").with_header("Allow", "GET, HEAD, POST, OPTIONS");
        }
        // `/metrics` needs credentials, because its labels reveal topic names. `/healthz` and `/readyz` need none,
        // because probes send none.
        if head.path == "/metrics"
            && head.method != "OPTIONS"
            && let Some(Err(failure)) = self.access.as_ref().map(|access| access.authenticate(head))
        {
            return self.refuse(head, None, &failure);
        }
        if let Some(response) = self.admin.answer(head) {
            return self.preflight(head, "GET, HEAD").unwrap_or(response);
        }
        self.refuse(head, None, &Failure::unknown_path())
    }

    /// Returns the answer to a pre-flight request of a browser, if its origin is allowed.
    fn preflight(&self, head: &Head, methods: &'static str) -> Option<Response> {
        self.origins.as_ref().and_then(|origins| origins.preflight(head, methods))
    }

    /// Counts and logs a refused request, of which nothing was handed to the broker, and returns its answer.
    fn refuse(&self, head: &Head, endpoint: Option<Endpoint>, failure: &Failure) -> Response {
        match endpoint {
            Some(Endpoint::CommitBatch) => self.metrics.batch(failure.status),
            Some(Endpoint::Commit) | None => self.metrics.refused(failure.status),
        }
        let query = redacted_query(head.query.as_deref().unwrap_or_default());
        log_limited!(
            Level::Warn,
            "{} {} {query} refused status={} error={} peer={}: {}",
            truncated(&head.method),
            truncated(&head.path),
            failure.status,
            failure.code,
            ClientLabel { address: head.peer.clone(), credential: None },
            failure.message
        );
        failure.response()
    }
}

/// Returns the body without its coding.
fn decoded(
    coding: Option<Coding>,
    body: Vec<u8>,
    limit: DecodedLimit,
    lease: &mut ByteLease,
) -> Result<Vec<u8>, Failure> {
    match coding {
        Some(coding) => coding.decode(&body, limit, lease),
        None => Ok(body),
    }
}

/// Returns the value of the message of a `/commit`; `None` is null. An empty body is refused unless the request says
/// that it is meant: a consumer of a compacted topic takes a null for a deletion.
fn value_of(body: Vec<u8>, is_tombstone: bool) -> Result<Option<Vec<u8>>, Failure> {
    match (body.len(), is_tombstone) {
        (0, true) => Ok(None),
        (bytes, true) => {
            Err(Failure::bad_tombstone(format!("tombstone=1 needs an empty body, this has {bytes} bytes")))
        }
        (0, false) => Err(Failure::empty_body(
            "empty body: the body is the message; to delete a key from a compacted topic, use tombstone=1",
        )),
        (_, false) => Ok(Some(body)),
    }
}

/// Charges the actual number and size of a request's messages, and returns the client for log lines.
fn client_of(head: &Head, charge: Option<RateCharge>, message_count: usize, bytes: usize) -> ClientLabel {
    let credential = charge.and_then(|charge| charge.finalize(message_count, bytes));
    ClientLabel { address: head.peer.clone(), credential }
}

impl Handler for CommitHandler {
    fn admit(self: Arc<Self>, head: &Head) -> Admission {
        let Some(&(_, endpoint)) = ENDPOINTS.iter().find(|(path, _)| *path == head.path) else {
            return Admission::Refuse(self.other_path(head));
        };
        let max_body_bytes = match endpoint {
            Endpoint::Commit => self.max_message_bytes,
            Endpoint::CommitBatch => self.batch_limits.max_body_bytes,
        };
        match &*head.method {
            "POST" => match self.check(endpoint, head, max_body_bytes) {
                Ok(admitted) => {
                    let then = Box::new(move |request, reply| match admitted.format {
                        None => self.commit(admitted, request, reply),
                        Some(format) => self.commit_batch(format, admitted, request, reply),
                    });
                    Admission::Read { max_body_bytes, then }
                }
                Err(failure) => Admission::Refuse(self.refuse(head, Some(endpoint), &failure)),
            },
            "OPTIONS" => {
                let answer = || Response::new(200, "", "").with_header("Allow", "POST, OPTIONS");
                Admission::Refuse(self.preflight(head, "POST").unwrap_or_else(answer))
            }
            _ => Admission::Refuse(self.refuse(head, Some(endpoint), &Failure::method_not_allowed())),
        }
    }

    fn response_headers(&self, head: Option<&Head>) -> Vec<(&'static str, String)> {
        self.origins.as_ref().map_or_else(Vec::new, |origins| origins.response_headers(head))
    }

    fn refusal(&self, status: u16, reason: &str, peer: &str) -> Response {
        log_limited!(Level::Warn, "request refused status={status} peer={peer}: {reason}");
        Failure::from_server(status, reason).response()
    }
}

#[cfg(test)]
mod tests;
