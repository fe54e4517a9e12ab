//! The log of a partition as its leader keeps it, without sockets and without a clock of its own.
//!
//! Invariants: batches are whole and ordered by offset; `start <= high watermark <= end`; the last stable offset is at
//! most the high watermark. Offsets may have gaps after compaction. The checks of an append run in the order of
//! Kafka's `UnifiedLog.append`: size and CRC, then the records, then the sequence numbers. So a rejected record costs
//! no sequence number.

use bytes::{Bytes, BytesMut};

use super::batch::{Batch, StoredRecord};
use super::batch_spec::{BatchSpec, compacted};
use super::codes;
use super::producer_state::{Judgement, ProducerStates, SequenceRules};

/// The settings of a topic that an append checks. The defaults are those of Kafka.
#[derive(Clone, Debug)]
pub struct AppendRules {
    /// `cleanup.policy=compact`: each record must have a key.
    pub is_compacted: bool,
    /// `message.timestamp.type=LogAppendTime`.
    pub has_log_append_time: bool,
    /// `max.message.bytes`: largest batch; a larger one is MESSAGE_TOO_LARGE.
    pub max_message_bytes: usize,
    /// `segment.bytes`: a batch above it is RECORD_LIST_TOO_LARGE.
    pub segment_bytes: usize,
    /// `message.timestamp.before.max.ms`: how far a timestamp may be in the past.
    pub timestamp_before_max_ms: i64,
    /// `message.timestamp.after.max.ms`: how far a timestamp may be in the future.
    pub timestamp_after_max_ms: i64,
    /// The rules about sequence numbers.
    pub sequences: SequenceRules,
}

impl Default for AppendRules {
    fn default() -> Self {
        AppendRules {
            is_compacted: false,
            has_log_append_time: false,
            max_message_bytes: 1_048_588,
            segment_bytes: 1 << 30,
            timestamp_before_max_ms: i64::MAX,
            timestamp_after_max_ms: i64::MAX,
            sequences: SequenceRules::CURRENT,
        }
    }
}

/// A successful append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Offset of the first record; of the stored batch if this one was a duplicate.
    pub base_offset: i64,
    /// Offset after the last record.
    pub end_offset: i64,
    /// Append time; -1 without LogAppendTime.
    pub log_append_time_ms: i64,
    /// Whether the batch had been stored before and was not stored again.
    pub is_duplicate: bool,
}

/// A rejected append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendError {
    /// Error code of the protocol.
    pub code: i16,
    /// Error message.
    pub message: Option<String>,
    /// Position in the batch and message of each rejected record.
    pub record_errors: Vec<(i32, String)>,
}

impl AppendError {
    pub(super) fn new(code: i16, message: impl Into<String>) -> Self {
        AppendError { code, message: Some(message.into()), record_errors: Vec::new() }
    }
}

/// A transaction that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedTransaction {
    /// Producer id.
    pub producer_id: i64,
    /// Offset of the first record.
    pub first_offset: i64,
    /// Offset of the marker.
    pub marker_offset: i64,
    /// Whether it was committed.
    pub is_committed: bool,
}

/// The log of a partition.
#[derive(Clone, Debug, Default)]
pub struct PartitionLog {
    batches: Vec<Batch>,
    start: i64,
    end: i64,
    high_watermark: i64,
    /// Leader epochs with their first offsets.
    epochs: Vec<(i32, i64)>,
    producers: ProducerStates,
    transactions: Vec<EndedTransaction>,
}

impl PartitionLog {
    /// Returns the first offset.
    pub fn start_offset(&self) -> i64 {
        self.start
    }

    /// Returns the offset of the next record.
    pub fn end_offset(&self) -> i64 {
        self.end
    }

    /// Returns the end of the records that all in-sync replicas have.
    pub fn high_watermark(&self) -> i64 {
        self.high_watermark
    }

    /// Sets the high watermark, within the log; it never moves back.
    pub fn advance_high_watermark(&mut self, offset: i64) {
        self.high_watermark = self.high_watermark.max(offset.min(self.end));
    }

    /// Returns the end of the records that consumers with `read_committed` receive: no transaction below it is open,
    /// and each marker below it is below the high watermark.
    pub fn last_stable_offset(&self) -> i64 {
        let open = self.producers.first_open_offset();
        let unreplicated = self.transactions.iter().filter(|ended| ended.marker_offset >= self.high_watermark);
        unreplicated.map(|ended| ended.first_offset).chain(open).fold(self.high_watermark, i64::min)
    }

    /// Begins a leader epoch at the end of the log.
    pub fn begin_epoch(&mut self, epoch: i32) {
        if self.epochs.last().is_none_or(|(last, _)| *last < epoch) {
            // An epoch without records is replaced, so that the first offsets rise.
            self.epochs.retain(|(_, start)| *start < self.end);
            self.epochs.push((epoch, self.end));
        }
    }

    /// Returns the current leader epoch; -1 before the first.
    pub fn leader_epoch(&self) -> i32 {
        self.epochs.last().map_or(-1, |(epoch, _)| *epoch)
    }

    /// Returns the largest epoch that is at most `epoch`, and its end offset (`OffsetForLeaderEpoch`); `(-1, -1)` if
    /// `epoch` is later than the last one.
    pub fn epoch_end(&self, epoch: i32) -> (i32, i64) {
        let Some(&(latest, _)) = self.epochs.last() else {
            return (-1, -1);
        };
        if epoch < 0 || epoch > latest {
            return (-1, -1);
        }
        if epoch == latest {
            return (epoch, self.end);
        }
        let next = self.epochs.partition_point(|(known, _)| *known <= epoch);
        let end = self.epochs[next].1;
        match next.checked_sub(1) {
            Some(index) => (self.epochs[index].0, end),
            None => (epoch, end),
        }
    }

    /// Checks and appends the record data of a Produce request.
    pub fn append(&mut self, data: &[u8], rules: &AppendRules, now_ms: i64) -> Result<Appended, AppendError> {
        let (batch, rest) = Batch::parse(data).map_err(|(code, message)| AppendError::new(code, message))?;
        if batch.bytes().len() > rules.max_message_bytes {
            let message = format!("batch of {} bytes exceeds max.message.bytes", batch.bytes().len());
            return Err(AppendError::new(codes::MESSAGE_TOO_LARGE, message));
        }
        check_batch(&batch, rest)?;
        check_records(&batch, rules, now_ms)?;
        if batch.bytes().len() > rules.segment_bytes {
            return Err(AppendError::new(codes::RECORD_LIST_TOO_LARGE, "batch exceeds segment.bytes"));
        }
        let append_time = rules.has_log_append_time.then_some(now_ms);
        match self.producers.judge(&batch, rules.sequences) {
            Judgement::Reject(code) => Err(AppendError { code, message: None, record_errors: Vec::new() }),
            Judgement::Duplicate { base_offset, timestamp_ms } => {
                let log_append_time_ms = append_time.map_or(-1, |_| timestamp_ms);
                let end_offset = base_offset + i64::from(batch.count);
                Ok(Appended { base_offset, end_offset, log_append_time_ms, is_duplicate: true })
            }
            Judgement::Append => {
                let base_offset = self.end;
                self.store(batch.stored_at(base_offset, self.leader_epoch(), append_time));
                let log_append_time_ms = append_time.unwrap_or(-1);
                Ok(Appended { base_offset, end_offset: self.end, log_append_time_ms, is_duplicate: false })
            }
        }
    }

    /// Appends a batch without the checks for clients and returns its first offset.
    pub fn append_unchecked(&mut self, batch: &Batch) -> i64 {
        let base_offset = self.end;
        self.store(batch.stored_at(base_offset, self.leader_epoch(), None));
        base_offset
    }

    /// Ends the open transaction of a producer id with a marker; returns the offset of the marker.
    pub fn end_transaction(&mut self, producer_id: i64, epoch: i16, is_commit: bool, now_ms: i64) -> i64 {
        self.append_unchecked(&BatchSpec::marker(producer_id, epoch, is_commit, now_ms))
    }

    /// Skips offsets, as if compaction had removed records there.
    pub fn skip_offsets(&mut self, count: i64) {
        self.end += count;
    }

    fn store(&mut self, batch: Batch) {
        self.remember(&batch);
        self.end = batch.last_offset() + 1;
        self.batches.push(batch);
    }

    fn remember(&mut self, batch: &Batch) {
        if let (true, Some(first_offset)) = (batch.is_control(), self.producers.transaction_start(batch.producer_id)) {
            self.transactions.push(EndedTransaction {
                producer_id: batch.producer_id,
                first_offset,
                marker_offset: batch.base_offset,
                is_committed: is_commit_marker(batch),
            });
        }
        self.producers.record(batch);
    }

    /// Removes the records from `offset` on, as a replica does that follows a leader without them. A batch that
    /// contains `offset` goes as a whole.
    pub fn truncate(&mut self, offset: i64) {
        self.batches.retain(|batch| batch.last_offset() < offset);
        let cut = self.batches.last().map_or(self.start, |batch| batch.last_offset() + 1);
        self.end = self.end.min(offset.max(cut));
        self.high_watermark = self.high_watermark.min(self.end);
        self.epochs.retain(|(_, start)| *start < self.end);
        self.producers.clear();
        self.transactions.clear();
        let batches = std::mem::take(&mut self.batches);
        batches.iter().for_each(|batch| self.remember(batch));
        self.batches = batches;
    }

    /// Removes the records before `offset`, as retention and DeleteRecords do. The producers stay known.
    pub fn delete_before(&mut self, offset: i64) {
        self.start = self.start.max(offset.min(self.high_watermark));
        self.batches.retain(|batch| batch.last_offset() >= self.start);
        self.transactions.retain(|ended| ended.marker_offset >= self.start);
    }

    /// Removes the records for which `is_kept` is false, as compaction does: the other offsets stay. A batch without
    /// records disappears.
    pub fn compact(&mut self, is_kept: impl Fn(&StoredRecord) -> bool) {
        let batches = self.batches.iter().filter_map(|batch| {
            let records = batch.records().ok()?;
            let kept: Vec<_> = records.iter().filter(|record| is_kept(record)).cloned().collect();
            match kept.len() {
                0 => None,
                count if count == records.len() => Some(batch.clone()),
                _ => Some(compacted(batch, &kept)),
            }
        });
        self.batches = batches.collect();
    }

    /// Forgets a producer id; see [`ProducerStates::expire`].
    pub fn expire_producer(&mut self, producer_id: i64) {
        self.producers.expire(producer_id);
    }

    /// Returns all records, transaction markers among them.
    pub fn records(&self) -> Vec<StoredRecord> {
        self.batches.iter().flat_map(|batch| batch.records().unwrap_or_default()).collect()
    }

    /// Returns the stored batches.
    pub fn batches(&self) -> &[Batch] {
        &self.batches
    }

    /// Returns the aborted transactions with records in `from..to`.
    pub fn aborted(&self, from: i64, to: i64) -> Vec<EndedTransaction> {
        let overlaps = |ended: &&EndedTransaction| ended.marker_offset >= from && ended.first_offset < to;
        self.transactions.iter().filter(|ended| !ended.is_committed).filter(overlaps).copied().collect()
    }

    /// Returns batches from the one that contains `from` to the last one below `bound`, cut at `max_bytes` as brokers
    /// do, so that the last batch may be incomplete. If the first batch alone is larger, it is returned whole with
    /// `is_first_whole`, else nothing is returned.
    pub fn read(&self, from: i64, bound: i64, max_bytes: usize, is_first_whole: bool) -> Bytes {
        let first = self.batches.partition_point(|batch| batch.last_offset() < from);
        let mut data = BytesMut::new();
        let mut first_bytes = None;
        for batch in self.batches[first..].iter().take_while(|batch| batch.base_offset < bound) {
            first_bytes.get_or_insert(batch.bytes().len());
            data.extend_from_slice(batch.bytes());
            if data.len() >= max_bytes {
                break;
            }
        }
        match first_bytes {
            Some(size) if size > max_bytes && is_first_whole => data.truncate(size),
            Some(size) if size > max_bytes => data.clear(),
            _ => data.truncate(max_bytes),
        }
        data.freeze()
    }

    /// Returns offset, timestamp and leader epoch of the first record from `timestamp_ms` on.
    pub fn offset_for_time(&self, timestamp_ms: i64) -> Option<(i64, i64, i32)> {
        let batches = self.batches.iter().filter(|batch| batch.max_timestamp_ms >= timestamp_ms);
        let mut records = batches.flat_map(|batch| batch.records().unwrap_or_default());
        let found = records.find(|record| record.timestamp_ms >= timestamp_ms && record.offset >= self.start)?;
        Some((found.offset, found.timestamp_ms, found.leader_epoch))
    }

    /// Returns offset, timestamp and leader epoch of the first record with the largest timestamp.
    pub fn max_timestamp(&self) -> Option<(i64, i64, i32)> {
        let largest = self.batches.iter().map(|batch| batch.max_timestamp_ms).max()?;
        self.offset_for_time(largest)
    }
}

fn is_commit_marker(batch: &Batch) -> bool {
    let records = batch.records().unwrap_or_default();
    records.first().and_then(|record| record.key.as_ref()).is_some_and(|key| key.get(3) == Some(&1))
}

/// Checks a batch of a client as `LogValidator.validateBatch` does.
fn check_batch(batch: &Batch, rest: &[u8]) -> Result<(), AppendError> {
    let invalid = |message: &str| Err(AppendError::new(codes::INVALID_RECORD, message));
    if !rest.is_empty() {
        return invalid("record data with more than one batch");
    }
    if batch.count <= 0 {
        return invalid("invalid record count");
    }
    if batch.last_offset_delta != batch.count - 1 {
        return invalid("inconsistent offset range and record count");
    }
    if batch.is_control() {
        return invalid("clients are not allowed to write control records");
    }
    if batch.producer_id >= 0 && batch.base_sequence < 0 {
        return invalid("invalid sequence number in a batch with producer id");
    }
    Ok(())
}

/// Checks the records of a client as `LogValidator.validateRecord` does; any rejected record rejects the batch.
fn check_records(batch: &Batch, rules: &AppendRules, now_ms: i64) -> Result<(), AppendError> {
    let records = batch.records().map_err(|cause| AppendError::new(codes::INVALID_RECORD, cause))?;
    let mut record_errors = Vec::new();
    let mut has_invalid_timestamp = false;
    for (index, record) in (0..).zip(&records) {
        if rules.is_compacted && record.key.is_none() {
            record_errors.push((index, "compacted topic cannot accept message without key".to_owned()));
        } else if batch.has_log_append_time() || (!rules.has_log_append_time && !is_in_range(record, rules, now_ms)) {
            has_invalid_timestamp = true;
            record_errors.push((index, format!("timestamp {} is out of range", record.timestamp_ms)));
        }
    }
    if record_errors.is_empty() {
        return Ok(());
    }
    let (code, message) = match has_invalid_timestamp {
        true => (codes::INVALID_TIMESTAMP, "one or more records have been rejected due to invalid timestamp"),
        false => (codes::INVALID_RECORD, "one or more records have been rejected"),
    };
    Err(AppendError { code, message: Some(message.into()), record_errors })
}

fn is_in_range(record: &StoredRecord, rules: &AppendRules, now_ms: i64) -> bool {
    // A timestamp of -1 means that the record has none.
    let age = now_ms.saturating_sub(record.timestamp_ms);
    record.timestamp_ms == -1
        || (age <= rules.timestamp_before_max_ms && age.saturating_neg() <= rules.timestamp_after_max_ms)
}
