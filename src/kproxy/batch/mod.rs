//! Many messages in one request, `POST /commit_batch`, with one result for each.
//!
//! `ndjson` and `binary` take a body apart (pure), here the two are checked alike and the messages go to the broker in
//! their order, `delivery` gathers the outcomes and answers once. A body that is not well formed to its end is refused
//! whole, before any of it is handed over. A batch is no transaction: its messages are stored one by one.
//!
//! Bounds: `max_batch_messages`, `max_batch_bytes`; a place of `req_pool_size` for each message, all of them or 503;
//! what the messages take in memory counts within `max_in_flight_bytes` until the answer. While a body is taken apart it
//! is in memory beside its messages, which at most one batch on each HTTP thread is.

mod binary;
mod delivery;
mod ndjson;

use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

use super::answer::Failure;
use super::commit::{AdmittedCommit, CommitHandler, Way};
use super::headers;
use super::in_flight::{Delivery, Places};
use super::shown::Peer;
use crate::broker::{Header, PartitionId, Record};
use crate::http::{ByteLease, Head, Reply, Request};

pub(super) use delivery::Part;
use delivery::{Asked, Batch};

/// Headers of one message, and bytes of its key and headers: about what a head, of one `/commit`, can bring.
const MAX_HEADERS: usize = 100;
const MAX_KEY_AND_HEADERS_BYTES: usize = 16 * 1024;
/// What a header takes besides its bytes: two pieces of memory and who owns them.
const HEADER_OVERHEAD: usize = 96;

/// How the body of a batch is written, by its `Content-Type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// `application/x-ndjson`: one JSON object a line.
    Ndjson,
    /// `application/octet-stream`: lengths and bytes.
    Binary,
}

/// One message of a batch as its body has it; what it leaves out comes from the query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    /// `None`: not said. Empty: none at all, whatever the query says.
    key: Option<Vec<u8>>,
    value: Vec<u8>,
    headers: Vec<Header>,
    partition: Option<PartitionId>,
    timestamp_ms: Option<i64>,
}

/// Bounds of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// `max_batch_messages`.
    pub(super) messages: usize,
    /// `max_batch_bytes`: the whole body.
    pub(super) bytes: usize,
    /// `max_request_size_bytes`: one value.
    pub(super) value_bytes: usize,
    /// `req_pool_size`.
    pub(super) places: usize,
}

impl Format {
    /// The format of a request's body; parameters such as `charset` mean nothing here.
    pub(super) fn of(head: &Head) -> Result<Format, Failure> {
        let sent = head.header("content-type").unwrap_or_default();
        let essence = sent.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
        let formats = [("application/x-ndjson", Format::Ndjson), ("application/octet-stream", Format::Binary)];
        let found = formats.iter().find(|(name, _)| essence.eq_ignore_ascii_case(name.as_bytes()));
        found.map(|(_, format)| *format).ok_or_else(|| {
            let reason = "the Content-Type of a batch must be application/x-ndjson or application/octet-stream";
            Failure::new(415, "unsupported_media_type", reason, false)
                .with_header("Accept", "application/x-ndjson, application/octet-stream")
        })
    }

    fn parse(self, body: &[u8], bounds: &Bounds) -> Result<Vec<Entry>, Failure> {
        match self {
            _ if body.is_empty() => Err(Failure::bad("empty_body", "a batch has at least one message")),
            Format::Ndjson => ndjson::parse(body, bounds),
            Format::Binary => binary::parse(body, bounds),
        }
    }
}

impl Bounds {
    /// Asked before a message is read that comes after `count` others.
    fn check_count(&self, count: usize) -> Result<(), Failure> {
        let refused = |reason| Err(Failure::new(413, "too_many_messages", reason, false));
        if count >= self.messages {
            refused(format!("the batch has more than {} messages, which is max_batch_messages", self.messages))
        } else if count >= self.places {
            refused(format!("the batch has more than {} messages, which is req_pool_size", self.places))
        } else {
            Ok(())
        }
    }

    /// What both formats ask of a message; `place` is where it is, in words.
    fn check(&self, entry: &Entry, place: impl Display) -> Result<(), Failure> {
        let too_large = |reason| Err(Failure::new(413, "too_large", reason, false));
        let size = entry.value.len();
        let beside = entry.key.as_ref().map_or(0, Vec::len) + entry.headers.iter().map(bytes_of).sum::<usize>();
        if size == 0 {
            return Err(malformed(place, "the value is empty"));
        }
        if size > self.value_bytes {
            let most = self.value_bytes;
            return too_large(format!("{place}: the value has {size} bytes, max_request_size_bytes is {most}"));
        }
        if beside > MAX_KEY_AND_HEADERS_BYTES {
            return too_large(format!(
                "{place}: key and headers have {beside} bytes, at most {MAX_KEY_AND_HEADERS_BYTES} can be"
            ));
        }
        if entry.headers.len() > MAX_HEADERS {
            return too_large(format!("{place}: there are more than {MAX_HEADERS} headers"));
        }
        if entry.headers.iter().any(|header| header.name.is_empty() || header.name.contains('\0')) {
            return Err(malformed(place, "a header's name is empty or has a zero byte"));
        }
        Ok(())
    }
}

fn bytes_of(header: &Header) -> usize {
    header.name.len() + header.value.as_ref().map_or(0, Vec::len)
}

/// A body that cannot be understood, and where.
fn malformed(place: impl Display, what: impl Display) -> Failure {
    Failure::bad("bad_batch", format!("{place}: {what}"))
}

impl CommitHandler {
    /// Hands the messages of a request's body to the broker.
    pub(super) fn commit_batch(&self, format: Format, notes: AdmittedCommit, request: Request, reply: Reply) {
        let started = Instant::now();
        let Request { head, body, mut lease, .. } = request;
        let (bytes, prepared) = (body.len(), self.take_apart(format, &notes, body, &mut lease));
        let (entries, mut places) = match prepared {
            Ok(prepared) => prepared,
            Err(failure) => return reply.send(self.refuse(&head, Some(Way::Batch), &failure)),
        };
        let AdmittedCommit { topic, acks, permit, key, partition, timestamp_ms, headers: trace, .. } = notes;
        let peer = Peer::settled(head.peer, permit, entries.len(), bytes);
        let name = Arc::clone(&topic.name);
        let (metrics, query) = (Arc::clone(&self.metrics), head.query.unwrap_or_default());
        let asked = Asked { topic, acks, metrics, query, bytes, peer, started };
        let batch = Batch::new(entries.len(), asked, lease, reply);
        for (index, entry) in entries.into_iter().enumerate() {
            let mut headers = entry.headers;
            headers::add_trace(&mut headers, &trace);
            let record = Record {
                topic: Arc::clone(&name),
                partition: entry.partition.or(partition),
                key: entry.key.or_else(|| key.clone()).filter(|key| !key.is_empty()),
                value: entry.value,
                headers,
                timestamp_ms: entry.timestamp_ms.or(timestamp_ms),
            };
            let part = Part::new(&batch, index, places.take_one());
            self.lanes.append(record, acks, Delivery::Part(part));
        }
        Batch::let_go(batch);
    }

    /// The messages of a body, with all the room they need; nothing has been handed over when it fails.
    fn take_apart(
        &self,
        format: Format,
        notes: &AdmittedCommit,
        body: Vec<u8>,
        lease: &mut ByteLease,
    ) -> Result<(Vec<Entry>, Places), Failure> {
        let entries = format.parse(&body, &self.batches)?;
        drop(body);
        let asks_for_more = |entry: &Entry| !entry.headers.is_empty() || entry.timestamp_ms.is_some();
        if !self.has_headers_and_timestamps && entries.iter().any(asks_for_more) {
            return Err(Failure::unsupported());
        }
        let of_headers = |headers: &[Header]| headers.iter().map(|header| bytes_of(header) + HEADER_OVERHEAD).sum();
        let of_trace: usize = of_headers(&notes.headers);
        let of_key = notes.key.as_ref().map_or(0, Vec::len);
        let of_entry = |entry: &Entry| {
            let key = entry.key.as_ref().map_or(of_key, Vec::len);
            entry.value.len() + key + of_headers(&entry.headers) + of_trace
        };
        if !lease.grow_to(entries.iter().map(of_entry).sum()) {
            return Err(Failure::overloaded("the messages do not fit into max_in_flight_bytes now"));
        }
        let places = self.take_places(entries.len())?;
        Ok((entries, places))
    }
}

/// For fuzzing: what is taken is within the bounds and never more than its body; what is refused says why.
#[cfg(fuzzing)]
pub(super) fn fuzz(format: Format, body: &[u8]) {
    let bounds = Bounds { messages: 5, bytes: 1 << 20, value_bytes: 100, places: 1000 };
    match format.parse(body, &bounds) {
        Ok(entries) => {
            assert!(!entries.is_empty() && entries.len() <= bounds.messages);
            assert!(entries.iter().all(|entry| entry.value.len() <= bounds.value_bytes));
            let bytes_of_entry = |entry: &Entry| {
                entry.value.len()
                    + entry.headers.iter().map(bytes_of).sum::<usize>()
                    + entry.key.as_ref().map_or(0, Vec::len)
            };
            assert!(entries.iter().map(bytes_of_entry).sum::<usize>() <= body.len());
        }
        Err(failure) => assert!((400..500).contains(&failure.status) && !failure.message.is_empty()),
    }
}

#[cfg(test)]
mod tests;
