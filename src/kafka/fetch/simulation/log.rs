//! The model of a partition: its log with transactions, compaction and epochs. Batches are real bytes.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::kafka::wire::{put_varint_bytes, put_varlong, varint_bytes_len, varlong_len};

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Open,
    Committed,
    Aborted,
}

/// A batch of a log.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    pub(super) base: i64,
    pub(super) last: i64,
    pub(super) epoch: i32,
    /// Producer of a transaction; -1 without one.
    pub(super) producer: i64,
    /// Abort (true) or commit marker.
    pub(super) marker: Option<bool>,
    /// Offsets and payloads.
    pub(super) records: Vec<(i64, u64)>,
    pub(super) bytes: Vec<u8>,
}

/// An aborted transaction: producer, first offset, offset of the marker.
pub(super) type Aborted = (i64, i64, i64);

/// A partition.
#[derive(Clone, Debug)]
pub(super) struct Log {
    pub(super) start: i64,
    pub(super) end: i64,
    pub(super) epoch: i32,
    /// Epochs with their first offsets.
    pub(super) epochs: Vec<(i32, i64)>,
    pub(super) batches: Vec<Batch>,
    pub(super) aborted: Vec<Aborted>,
    /// First offset and payloads of the open transactions, by producer.
    pub(super) open: BTreeMap<i64, (i64, Vec<u64>)>,
}

fn open_transactions<'a>(batches: impl Iterator<Item = &'a Batch>) -> BTreeMap<i64, (i64, Vec<u64>)> {
    let mut open: BTreeMap<i64, (i64, Vec<u64>)> = BTreeMap::new();
    for batch in batches.filter(|batch| batch.producer >= 0) {
        if batch.marker.is_some() {
            open.remove(&batch.producer);
        } else {
            let payloads = batch.records.iter().map(|(_, payload)| *payload);
            open.entry(batch.producer).or_insert((batch.base, Vec::new())).1.extend(payloads);
        }
    }
    open
}

impl Default for Log {
    fn default() -> Self {
        let (batches, aborted, open) = (Vec::new(), Vec::new(), BTreeMap::new());
        Log { start: 0, end: 0, epoch: 0, epochs: vec![(0, 0)], batches, aborted, open }
    }
}

impl Log {
    /// Appends a batch with these payloads.
    pub(super) fn append(&mut self, producer: i64, payloads: &[u64]) {
        let base = self.end;
        let records = payloads.iter().enumerate().map(|(index, payload)| (base + index as i64, *payload)).collect();
        self.end += payloads.len() as i64;
        if producer >= 0 {
            self.open.entry(producer).or_insert((base, Vec::new())).1.extend(payloads);
        }
        self.push(Batch {
            base,
            last: self.end - 1,
            epoch: self.epoch,
            producer,
            marker: None,
            records,
            bytes: Vec::new(),
        });
    }

    /// Ends a transaction; returns its payloads.
    pub(super) fn end_transaction(&mut self, producer: i64, abort: bool) -> Vec<u64> {
        let Some((first, payloads)) = self.open.remove(&producer) else { return Vec::new() };
        let base = self.end;
        self.end += 1;
        if abort {
            self.aborted.push((producer, first, base));
        }
        let (epoch, marker) = (self.epoch, Some(abort));
        self.push(Batch { base, last: base, epoch, producer, marker, records: Vec::new(), bytes: Vec::new() });
        payloads
    }

    fn push(&mut self, mut batch: Batch) {
        batch.encode();
        self.batches.push(batch);
    }

    /// The end of what a consumer of committed messages can read.
    pub(super) fn stable_end(&self) -> i64 {
        self.open.values().map(|(first, _)| *first).min().unwrap_or(self.end)
    }

    /// The positions of a consumer that has read everything: compaction may have removed the last batches.
    pub(super) fn end_positions(&self) -> RangeInclusive<i64> {
        self.batches.last().map_or(self.start, |batch| batch.last + 1)..=self.end
    }

    /// Removes records at `keep` false from a batch without an open transaction; returns their payloads.
    pub(super) fn compact(&mut self, index: usize, mut keep: impl FnMut() -> bool) -> Vec<u64> {
        let stable = self.stable_end();
        let Some(batch) = self.batches.get_mut(index).filter(|batch| batch.marker.is_none() && batch.last < stable)
        else {
            return Vec::new();
        };
        let (kept, removed): (Vec<_>, Vec<_>) = batch.records.iter().partition(|_| keep());
        batch.records = kept;
        batch.encode();
        if batch.records.is_empty() && keep() {
            self.batches.remove(index);
        }
        removed.into_iter().map(|(_, payload)| payload).collect()
    }

    /// The end of an epoch as a broker returns it (`LeaderEpochFileCache.endOffsetFor`); -1 if undefined.
    pub(super) fn epoch_end(&self, epoch: i32) -> (i32, i64) {
        if self.epochs.last().is_some_and(|(last, _)| *last == epoch) {
            return (epoch, self.end);
        }
        let Some((_, end)) = self.epochs.iter().find(|(known, _)| *known > epoch) else { return (-1, -1) };
        let floor = self.epochs.iter().rev().find(|(known, _)| *known <= epoch);
        (floor.map_or(epoch, |(known, _)| *known), *end)
    }

    /// A leader with a higher epoch is elected.
    pub(super) fn elect(&mut self) {
        self.epoch += 1;
        self.epochs.retain(|(_, start)| *start < self.end);
        self.epochs.push((self.epoch, self.end));
    }

    /// Removes the batches below `offset`, which is the start of a batch or the end. Returns the payloads removed.
    pub(super) fn expire(&mut self, offset: i64) -> Vec<u64> {
        let keep = self.batches.iter().position(|batch| batch.base >= offset).unwrap_or(self.batches.len());
        let kept = self.batches.split_off(keep);
        let removed = std::mem::replace(&mut self.batches, kept);
        self.start = offset;
        let older = self.epochs.iter().rposition(|(_, start)| *start <= offset).unwrap_or(0);
        self.epochs.drain(..older);
        if let Some((_, start)) = self.epochs.first_mut() {
            *start = (*start).max(offset);
        }
        removed.into_iter().flat_map(|batch| batch.records).map(|(_, payload)| payload).collect()
    }

    /// Whether the log may be cut at `offset`: no transaction that has ended is open again without its marker.
    pub(super) fn may_cut(&self, offset: i64) -> bool {
        let open = open_transactions(self.batches.iter().filter(|batch| batch.base < offset));
        let ended = |producer| {
            self.batches
                .iter()
                .any(|batch| batch.base >= offset && batch.producer == producer && batch.marker.is_some())
        };
        !open.into_keys().any(ended)
    }

    /// Removes the batches from `offset` on, which is the start of a batch or the end.
    pub(super) fn truncate(&mut self, offset: i64) {
        self.batches.retain(|batch| batch.base < offset);
        self.end = offset;
        self.aborted.retain(|(_, _, marker)| *marker < offset);
        self.epochs.retain(|(_, start)| *start < offset);
        self.open = open_transactions(self.batches.iter());
    }

    /// The record data from the batch with `offset` on, at most about `max_bytes`, and the aborted transactions in it.
    pub(super) fn read(&self, offset: i64, committed: bool, max_bytes: usize) -> (Vec<u8>, Vec<(i64, i64)>) {
        let limit = if committed { self.stable_end() } else { self.end };
        let (mut data, mut end) = (Vec::new(), offset);
        for batch in self.batches.iter().filter(|batch| batch.last >= offset && batch.last < limit) {
            if !data.is_empty() && data.len() + batch.bytes.len() > max_bytes {
                break;
            }
            data.extend_from_slice(&batch.bytes);
            end = batch.last + 1;
        }
        let overlaps = |one: &&Aborted| one.2 >= offset && one.1 < end;
        let aborted = self.aborted.iter().filter(overlaps).map(|(producer, first, _)| (*producer, *first));
        (data, if committed { aborted.collect() } else { Vec::new() })
    }
}

impl Batch {
    /// Encodes the batch, message format 2.
    fn encode(&mut self) {
        let (mut records, mut count) = (Vec::new(), 0_i32);
        let mut put = |delta: i64, key: Option<&[u8]>, value: &[u8]| {
            let len = 3 + varlong_len(delta) + varint_bytes_len(key) + varint_bytes_len(Some(value));
            put_varlong(&mut records, len as i64);
            records.extend([0, 0]);
            put_varlong(&mut records, delta);
            put_varint_bytes(&mut records, key);
            put_varint_bytes(&mut records, Some(value));
            put_varlong(&mut records, 0);
            count += 1;
        };
        for (offset, payload) in &self.records {
            put(offset - self.base, None, &payload.to_be_bytes());
        }
        if let Some(abort) = self.marker {
            put(0, Some(&[0, 0, 0, u8::from(!abort)]), &[0; 6]);
        }
        let attributes = if self.producer >= 0 { 0x10 } else { 0 } | if self.marker.is_some() { 0x20_i16 } else { 0 };
        let mut body = attributes.to_be_bytes().to_vec();
        body.extend(((self.last - self.base) as i32).to_be_bytes());
        body.extend([0; 16]);
        body.extend(self.producer.to_be_bytes());
        body.extend([0; 6]);
        body.extend(count.to_be_bytes());
        body.extend(records);
        self.bytes = self.base.to_be_bytes().to_vec();
        self.bytes.extend((body.len() as i32 + 9).to_be_bytes());
        self.bytes.extend(self.epoch.to_be_bytes());
        self.bytes.push(2);
        self.bytes.extend(crc32c::crc32c(&body).to_be_bytes());
        self.bytes.extend(body);
    }
}
