//! Decodes the record data of one partition into a [`RecordSet`]: one buffer with the bytes of all its messages, and
//! one list with their places in it. So no message has an allocation of its own. Pure.
//!
//! Messages of aborted transactions, control batches and messages below the requested offset are left out. The list of
//! aborted transactions belongs to one response: a broker lists every aborted transaction that overlaps its data.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};

use crate::kafka::compression::CompressionError;
use crate::kafka::records::{BatchInfo, Entries, Entry, OpenedEntry, ReadHeaders, ReadRecord, RecordError};

/// Decoded messages of one partition.
#[derive(Default)]
pub struct RecordSet {
    /// Key, value and encoded headers of each message.
    bytes: Vec<u8>,
    records: Vec<Record>,
}

/// The place of a message in the buffer of its set.
struct Record {
    offset: i64,
    /// -1 for none.
    timestamp_ms: i64,
    start: u32,
    /// -1 for null.
    key_len: i32,
    /// -1 for null.
    value_len: i32,
    headers_len: u32,
    header_count: u32,
}

/// A message, which borrows from its set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageView<'a> {
    /// Offset in its partition.
    pub offset: i64,
    /// Timestamp in milliseconds since 1970; `None` in message format 0 and if the producer set none.
    pub timestamp_ms: Option<i64>,
    /// Key.
    pub key: Option<&'a [u8]>,
    /// Value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Headers.
    pub headers: ReadHeaders<'a>,
}

/// Bytes counted for each message beside key, value and headers.
pub const MESSAGE_OVERHEAD_BYTES: usize = size_of::<Record>();
/// A set has at most about this many bytes and one batch more: positions in a set have 32 bits.
const MAX_SET_BYTES: usize = 1 << 30;
/// Bytes of an entry up to its message format. An entry with a wrong length is recognized by them.
const MIN_ENTRY_BYTES: usize = 17;

impl RecordSet {
    /// Returns the number of messages.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is no message.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Returns the message at `index`, which is less than [`len`](Self::len).
    pub fn message(&self, index: usize) -> MessageView<'_> {
        let record = &self.records[index];
        let (key, rest) = part(&self.bytes[record.start as usize..], record.key_len);
        let (value, rest) = part(rest, record.value_len);
        let headers = ReadHeaders::from_encoded(record.header_count as usize, &rest[..record.headers_len as usize]);
        let timestamp_ms = (record.timestamp_ms >= 0).then_some(record.timestamp_ms);
        MessageView { offset: record.offset, timestamp_ms, key, value, headers }
    }

    /// Takes the value of the only message without a copy; the message is a tombstone afterwards. Returns `None` and
    /// changes nothing if it has no value, or if there are several messages.
    pub(super) fn take_only_value(&mut self) -> Option<Vec<u8>> {
        let [record] = self.records.as_mut_slice() else { return None };
        let value_len = usize::try_from(record.value_len).ok()?;
        let key_start = record.start as usize;
        let value_start = key_start + record.key_len.max(0) as usize;
        let mut value = std::mem::take(&mut self.bytes);
        let headers = value.split_off(value_start + value_len);
        self.bytes = [&value[key_start..value_start], &headers].concat();
        (record.start, record.value_len) = (0, -1);
        value.drain(..value_start);
        value.shrink_to_fit();
        Some(value)
    }

    /// Returns the bytes counted for the message at `index`.
    pub fn cost(&self, index: usize) -> usize {
        let record = &self.records[index];
        let len = |len: i32| usize::try_from(len).unwrap_or(0);
        len(record.key_len) + len(record.value_len) + record.headers_len as usize + MESSAGE_OVERHEAD_BYTES
    }

    /// Returns the bytes counted for all messages.
    pub fn total_cost(&self) -> usize {
        self.bytes.len() + self.records.len() * MESSAGE_OVERHEAD_BYTES
    }

    fn push(&mut self, record: &ReadRecord) {
        let headers = record.headers.encoded();
        let len = |bytes: Option<&[u8]>| bytes.map_or(-1, |bytes| bytes.len() as i32);
        self.records.push(Record {
            offset: record.offset,
            timestamp_ms: record.timestamp_ms.unwrap_or(-1),
            start: self.bytes.len() as u32,
            key_len: len(record.key),
            value_len: len(record.value),
            headers_len: headers.len() as u32,
            header_count: record.headers.len() as u32,
        });
        self.bytes.extend_from_slice(record.key.unwrap_or_default());
        self.bytes.extend_from_slice(record.value.unwrap_or_default());
        self.bytes.extend_from_slice(headers);
    }
}

fn part(bytes: &[u8], len: i32) -> (Option<&[u8]>, &[u8]) {
    match usize::try_from(len) {
        Ok(len) => (Some(&bytes[..len]), &bytes[len..]),
        Err(_) => (None, bytes),
    }
}

/// Limits of [`unpack`].
#[derive(Clone, Copy, Debug)]
pub struct UnpackLimits {
    /// No further batch is decoded once the decoded messages have this many bytes. The first batch is always decoded.
    pub stop_bytes: usize,
    /// Upper bound of the decompressed bytes of one batch, and of the memory of its messages.
    pub max_batch_bytes: usize,
}

/// The result of decoding the record data of one partition.
#[derive(Default)]
pub struct Unpacked {
    /// The messages.
    pub set: RecordSet,
    /// The offset to fetch next; the requested offset if nothing was decoded.
    pub next_offset: i64,
    /// Leader epochs of the decoded batches: each epoch with the first offset that has it, rising.
    pub epochs: Vec<(i32, i64)>,
    /// Bytes of record data that were decoded.
    pub consumed_bytes: usize,
    /// Why the entry at `next_offset` could not be decoded.
    pub error: Option<RecordError>,
    /// CRC-32C of that entry: the same bytes fail again.
    pub error_checksum: u32,
}

/// Decodes record data from `offset` on. `aborted` is the list of aborted transactions of the response (producer id and
/// first offset); empty unless only committed messages are wanted.
pub fn unpack(data: &[u8], offset: i64, aborted: &[(i64, i64)], limits: UnpackLimits) -> Unpacked {
    let mut unpacked = Unpacked { next_offset: offset, ..Unpacked::default() };
    let mut transactions = AbortedTransactions::new(aborted);
    unpacked.set.bytes.reserve(data.len().min(limits.stop_bytes));
    for entry in Entries::of(data) {
        if unpacked.consumed_bytes > 0 && unpacked.set.total_cost() >= limits.stop_bytes.min(MAX_SET_BYTES) {
            break;
        }
        let size = entry.as_ref().map_or(MIN_ENTRY_BYTES, Entry::len);
        let taken = entry.and_then(|entry| {
            let opened = entry.open()?;
            let info = opened.info();
            let is_aborted = transactions.is_aborted(&info, &opened);
            if !is_aborted && !info.is_control && info.next_offset > offset {
                read_records(&opened, &mut unpacked.set, offset, limits.max_batch_bytes)?;
            }
            Ok((entry, info))
        });
        match taken {
            Ok((entry, info)) => {
                unpacked.consumed_bytes += entry.len();
                unpacked.add_epoch(entry.offset().max(offset), &info);
                unpacked.next_offset = unpacked.next_offset.max(info.next_offset);
            }
            Err(cause) => {
                unpacked.error = Some(cause);
                let rest = &data[unpacked.consumed_bytes..];
                unpacked.error_checksum = crc32c::crc32c(&rest[..size.min(rest.len())]);
                break;
            }
        }
    }
    // Filtered data leaves the buffer mostly empty; it is kept for as long as its messages wait.
    if unpacked.set.bytes.len() < unpacked.set.bytes.capacity() / 2 {
        unpacked.set.bytes.shrink_to_fit();
    }
    unpacked
}

/// Adds the records of an entry from `offset` on; adds none if the entry cannot be decoded.
fn read_records(entry: &OpenedEntry, set: &mut RecordSet, offset: i64, max_bytes: usize) -> Result<(), RecordError> {
    let (bytes, records) = (set.bytes.len(), set.records.len());
    let max_cost = set.total_cost().saturating_add(max_bytes);
    let mut is_too_large = false;
    let mut outcome = entry.read(max_bytes, |record| {
        // Small records take several times more memory than decompressed data.
        is_too_large |= set.total_cost() > max_cost;
        if record.offset >= offset && !is_too_large {
            set.push(&record);
        }
    });
    if is_too_large {
        let cause = CompressionError::TooLarge(max_bytes);
        outcome = Err(RecordError::Compression { offset: entry.info().next_offset - 1, cause });
    }
    if outcome.is_err() {
        set.bytes.truncate(bytes);
        set.records.truncate(records);
    }
    outcome
}

impl Unpacked {
    fn add_epoch(&mut self, start: i64, info: &BatchInfo) {
        let is_new = self.epochs.last().is_none_or(|(last, _)| *last < info.leader_epoch);
        if info.leader_epoch >= 0 && info.next_offset > start && is_new {
            self.epochs.push((info.leader_epoch, start));
        }
    }
}

/// Finds the batches of aborted transactions: those of a producer between the first offset of one of its aborted
/// transactions and the abort marker.
struct AbortedTransactions {
    /// First offset and producer id of the transactions that begin later; the smallest offset is at the top.
    pending: BinaryHeap<Reverse<(i64, i64)>>,
    /// Producer ids of the transactions that have begun.
    open: HashSet<i64>,
}

impl AbortedTransactions {
    fn new(aborted: &[(i64, i64)]) -> Self {
        let pending = aborted.iter().map(|(producer_id, first)| Reverse((*first, *producer_id))).collect();
        AbortedTransactions { pending, open: HashSet::new() }
    }

    /// Whether the batch belongs to an aborted transaction. Takes every batch of the response, in order.
    fn is_aborted(&mut self, info: &BatchInfo, entry: &OpenedEntry) -> bool {
        if self.pending.is_empty() && self.open.is_empty() {
            return false;
        }
        while let Some(Reverse((first, producer_id))) = self.pending.peek().copied() {
            if first >= info.next_offset {
                break;
            }
            self.pending.pop();
            self.open.insert(producer_id);
        }
        if info.is_control {
            if entry.is_abort_marker() {
                self.open.remove(&info.producer_id);
            }
            return false;
        }
        info.is_transactional && self.open.contains(&info.producer_id)
    }
}

#[cfg(test)]
mod tests;
