//! Encodes record batches for tests that fill a log themselves, and for compaction.

use bytes::{BufMut, Bytes, BytesMut};

use super::batch::{Batch, CONTROL, LOG_APPEND_TIME, StoredRecord, TRANSACTIONAL, UNCOUNTED_BYTES, put_crc};

/// A batch to encode, as a producer sends it: for the records that a test stores by itself.
#[derive(Clone, Debug)]
pub struct BatchSpec {
    /// Producer id; -1 without idempotence.
    pub producer_id: i64,
    /// Epoch of the producer id.
    pub producer_epoch: i16,
    /// Sequence number of the first record.
    pub base_sequence: i32,
    attributes: i16,
    records: Vec<StoredRecord>,
}

impl Default for BatchSpec {
    fn default() -> Self {
        Self::new()
    }
}

impl BatchSpec {
    /// Returns a batch without records and without producer id.
    pub fn new() -> Self {
        BatchSpec { producer_id: -1, producer_epoch: -1, base_sequence: -1, attributes: 0, records: Vec::new() }
    }

    /// Sets producer id, epoch and first sequence number.
    pub fn producer(mut self, id: i64, epoch: i16, base_sequence: i32) -> Self {
        (self.producer_id, self.producer_epoch, self.base_sequence) = (id, epoch, base_sequence);
        self
    }

    /// Makes the batch part of a transaction.
    pub fn transactional(mut self) -> Self {
        self.attributes |= TRANSACTIONAL;
        self
    }

    /// Adds a record with key and value.
    pub fn record(self, key: Option<&str>, value: Option<&str>, timestamp_ms: i64) -> Self {
        self.record_with_headers(key, value, timestamp_ms, &[])
    }

    /// Adds a record with headers.
    pub fn record_with_headers(
        mut self,
        key: Option<&str>,
        value: Option<&str>,
        timestamp_ms: i64,
        headers: &[(&str, Option<&str>)],
    ) -> Self {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        self.records.push(StoredRecord {
            offset: 0,
            key: key.map(bytes),
            value: value.map(bytes),
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), value.map(bytes))).collect(),
            timestamp_ms,
            producer_id: self.producer_id,
            producer_epoch: self.producer_epoch,
            sequence: -1,
            leader_epoch: -1,
            is_transactional: false,
            is_control: false,
        });
        self
    }

    /// Returns the batch with base offset 0, uncompressed.
    pub fn encode(&self) -> Batch {
        let deltas: Vec<i64> = (0..self.records.len() as i64).collect();
        self.encode_with(&deltas, &self.records, self.records.len() as i32 - 1)
    }

    /// Returns the transaction marker that ends a transaction of a producer.
    pub fn marker(producer_id: i64, producer_epoch: i16, is_commit: bool, timestamp_ms: i64) -> Batch {
        // Key: version 0, type 0 (abort) or 1 (commit). Value: version 0, coordinator epoch 0.
        let mut spec = BatchSpec::new().producer(producer_id, producer_epoch, -1).record(None, None, timestamp_ms);
        spec.attributes = TRANSACTIONAL | CONTROL;
        spec.records[0].key = Some(Bytes::copy_from_slice(&[0, 0, 0, u8::from(is_commit)]));
        spec.records[0].value = Some(Bytes::from_static(&[0; 6]));
        spec.encode()
    }

    fn encode_with(&self, deltas: &[i64], records: &[StoredRecord], last_offset_delta: i32) -> Batch {
        let base_timestamp = records.first().map_or(-1, |record| record.timestamp_ms);
        let max_timestamp = records.iter().map(|record| record.timestamp_ms).max().unwrap_or(-1);
        let mut bytes = BytesMut::new();
        bytes.put_i64(0);
        bytes.put_i32(0);
        bytes.put_i32(-1);
        bytes.put_i8(2);
        bytes.put_u32(0);
        bytes.put_i16(self.attributes);
        bytes.put_i32(last_offset_delta);
        bytes.put_i64(base_timestamp);
        bytes.put_i64(max_timestamp);
        bytes.put_i64(self.producer_id);
        bytes.put_i16(self.producer_epoch);
        bytes.put_i32(self.base_sequence);
        bytes.put_i32(records.len() as i32);
        for (record, delta) in records.iter().zip(deltas) {
            put_record(&mut bytes, record, record.timestamp_ms.wrapping_sub(base_timestamp), *delta);
        }
        let length = (bytes.len() - UNCOUNTED_BYTES) as i32;
        bytes[8..12].copy_from_slice(&length.to_be_bytes());
        put_crc(&mut bytes);
        let (batch, _) = Batch::parse(&bytes).expect("the bytes are a batch");
        batch
    }
}

/// Returns a batch with only these of its records, as compaction leaves it: first and last offset stay, and so do the
/// sequence numbers of the producer.
pub(super) fn compacted(batch: &Batch, records: &[StoredRecord]) -> Batch {
    let spec = BatchSpec {
        producer_id: batch.producer_id,
        producer_epoch: batch.producer_epoch,
        base_sequence: batch.base_sequence,
        attributes: batch.attributes & (LOG_APPEND_TIME | TRANSACTIONAL | CONTROL),
        records: Vec::new(),
    };
    let deltas: Vec<i64> = records.iter().map(|record| record.offset - batch.base_offset).collect();
    let encoded = spec.encode_with(&deltas, records, batch.last_offset_delta);
    encoded.stored_at(batch.base_offset, batch.leader_epoch, None)
}

fn put_record(bytes: &mut BytesMut, record: &StoredRecord, timestamp_delta: i64, offset_delta: i64) {
    let mut body = BytesMut::new();
    body.put_i8(0);
    put_varlong(&mut body, timestamp_delta);
    put_varlong(&mut body, offset_delta);
    put_bytes(&mut body, record.key.as_deref());
    put_bytes(&mut body, record.value.as_deref());
    put_varlong(&mut body, record.headers.len() as i64);
    for (name, value) in &record.headers {
        put_bytes(&mut body, Some(name.as_bytes()));
        put_bytes(&mut body, value.as_deref());
    }
    put_varlong(bytes, body.len() as i64);
    bytes.put_slice(&body);
}

fn put_bytes(bytes: &mut BytesMut, data: Option<&[u8]>) {
    put_varlong(bytes, data.map_or(-1, |data| data.len() as i64));
    bytes.put_slice(data.unwrap_or_default());
}

fn put_varlong(bytes: &mut BytesMut, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        bytes.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.put_u8(rest as u8);
}
