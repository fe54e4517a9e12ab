//! Encodes records as a batch of message format 2 (Kafka 0.11 and later). The code is not generated, because it is the
//! hot path.
//!
//! A [`BatchBuilder`] encodes each record when it is added, so the size of the batch is always known.
//! [`BatchBuilder::finish`] writes the header and the records. Key, value and header values may be null.

use super::compression::{Codec, CompressionError};
use super::wire::{put_varint_bytes, put_varlong, varint_bytes_len, varlong_len};

/// Size of a batch header: the fields from the base offset to the record count.
pub const HEADER_BYTES: usize = 61;
/// Position of the attributes; the CRC covers the bytes from there to the end of the batch.
const CRC_START: usize = 21;
/// Size of base offset and batch length; the batch length does not count these bytes.
const UNCOUNTED_BYTES: usize = 12;

/// A record to encode.
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a> {
    /// Key.
    pub key: Option<&'a [u8]>,
    /// Value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Names and values of the headers, in order.
    pub headers: &'a [(&'a str, Option<&'a [u8]>)],
    /// Timestamp in milliseconds since 1970.
    pub timestamp_ms: i64,
}

/// Producer id, epoch and sequence number of a batch (KIP-98), by which a broker recognises duplicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerState {
    /// Id that a broker assigned (InitProducerId); -1 without idempotence.
    pub producer_id: i64,
    /// Epoch of the producer id; -1 without idempotence.
    pub epoch: i16,
    /// Sequence number of the first record of the batch, counted by partition; -1 without idempotence.
    pub base_sequence: i32,
}

impl ProducerState {
    /// State of a producer without idempotence.
    pub const NONE: ProducerState = ProducerState { producer_id: -1, epoch: -1, base_sequence: -1 };
}

/// Builder of a batch for one partition.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    /// Room for the header, and the encoded records; empty without a record.
    batch: Vec<u8>,
    count: i32,
    /// Timestamp of the first record; the batch stores the others relative to it.
    base_timestamp_ms: i64,
    max_timestamp_ms: i64,
}

impl BatchBuilder {
    /// Returns an empty builder that uses the memory of `buffer`.
    pub fn with_buffer(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        BatchBuilder { batch: buffer, ..BatchBuilder::default() }
    }

    /// Returns the memory of the builder.
    pub fn into_buffer(self) -> Vec<u8> {
        self.batch
    }

    /// Returns the encoded records.
    fn records(&self) -> &[u8] {
        self.batch.get(HEADER_BYTES..).unwrap_or_default()
    }

    /// Returns the number of records.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether no record was added.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the size of the batch in bytes, header included, before compression.
    pub fn encoded_bytes(&self) -> usize {
        HEADER_BYTES + self.records().len()
    }

    /// Returns the bytes by which `record` would enlarge the batch, before compression.
    pub fn cost_of(&self, record: &RecordView) -> usize {
        let body = self.body_len(record);
        varlong_len(body as i64) + body
    }

    /// Adds a record. Its offset delta is the number of records added before it.
    pub fn push(&mut self, record: &RecordView) {
        if self.count == 0 {
            (self.base_timestamp_ms, self.max_timestamp_ms) = (record.timestamp_ms, record.timestamp_ms);
            self.batch.resize(HEADER_BYTES, 0);
        }
        self.max_timestamp_ms = self.max_timestamp_ms.max(record.timestamp_ms);
        let body = self.body_len(record);
        let buffer = &mut self.batch;
        buffer.reserve(body + varlong_len(body as i64));
        put_varlong(buffer, body as i64);
        // Record attributes: no bit is in use.
        buffer.push(0);
        put_varlong(buffer, record.timestamp_ms.wrapping_sub(self.base_timestamp_ms));
        put_varlong(buffer, i64::from(self.count));
        put_varint_bytes(buffer, record.key);
        put_varint_bytes(buffer, record.value);
        put_varlong(buffer, record.headers.len() as i64);
        for (name, value) in record.headers {
            put_varint_bytes(buffer, Some(name.as_bytes()));
            put_varint_bytes(buffer, *value);
        }
        self.count += 1;
    }

    fn body_len(&self, record: &RecordView) -> usize {
        let base = if self.count == 0 { record.timestamp_ms } else { self.base_timestamp_ms };
        let headers = record.headers.iter();
        1 + varlong_len(record.timestamp_ms.wrapping_sub(base))
            + varlong_len(i64::from(self.count))
            + varint_bytes_len(record.key)
            + varint_bytes_len(record.value)
            + varlong_len(record.headers.len() as i64)
            + headers
                .map(|(name, value)| varint_bytes_len(Some(name.as_bytes())) + varint_bytes_len(*value))
                .sum::<usize>()
    }

    /// Appends the encoded batch to `buffer` and returns its size in bytes; leaves `buffer` unchanged if the
    /// compression fails. The batch must not be empty. The builder keeps its records, so the batch can be encoded
    /// again with another producer id.
    pub fn finish(
        &self,
        codec: Codec,
        producer: ProducerState,
        buffer: &mut Vec<u8>,
    ) -> Result<usize, CompressionError> {
        debug_assert!(self.count > 0, "a batch must have a record");
        let start = buffer.len();
        buffer.extend_from_slice(&self.header(codec, producer));
        if let Err(failure) = codec.compress(self.records(), buffer) {
            buffer.truncate(start);
            return Err(failure);
        }
        seal(&mut buffer[start..]);
        Ok(buffer.len() - start)
    }

    /// Returns the batch without compression, and without a copy of the records. The builder is empty afterwards and
    /// has no memory. The batch must not be empty.
    pub fn take_uncompressed(&mut self, producer: ProducerState) -> Vec<u8> {
        debug_assert!(self.count > 0, "a batch must have a record");
        let header = self.header(Codec::None, producer);
        let mut batch = std::mem::take(&mut self.batch);
        self.count = 0;
        if let Some(room) = batch.first_chunk_mut() {
            *room = header;
            seal(&mut batch);
        }
        batch
    }

    /// Returns the header without batch length and CRC, which [`seal`] sets.
    fn header(&self, codec: Codec, producer: ProducerState) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            header[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        // Base offset: the broker sets it.
        put(&0_i64.to_be_bytes());
        // Batch length.
        put(&[0; 4]);
        // Partition leader epoch: -1 from clients, the broker sets it.
        put(&(-1_i32).to_be_bytes());
        // Magic: message format 2.
        put(&[2]);
        // CRC.
        put(&[0; 4]);
        put(&codec.number().to_be_bytes());
        // Offset delta of the last record.
        put(&(self.count - 1).to_be_bytes());
        put(&self.base_timestamp_ms.to_be_bytes());
        put(&self.max_timestamp_ms.to_be_bytes());
        put(&producer.producer_id.to_be_bytes());
        put(&producer.epoch.to_be_bytes());
        put(&producer.base_sequence.to_be_bytes());
        put(&self.count.to_be_bytes());
        header
    }

    /// Removes the records and keeps the allocated memory.
    pub fn clear(&mut self) {
        self.batch.clear();
        self.count = 0;
    }
}

/// Sets batch length and CRC of a batch.
fn seal(batch: &mut [u8]) {
    let length = (batch.len() - UNCOUNTED_BYTES) as i32;
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c::crc32c(&batch[CRC_START..]);
    batch[CRC_START - 4..CRC_START].copy_from_slice(&crc.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::indexmap::IndexMap;
    use kafka_protocol::records::{
        Compression, Record, RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
    };
    use proptest::prelude::*;

    type Fields = (Option<Vec<u8>>, Option<Vec<u8>>, i64, Vec<(String, Option<Vec<u8>>)>);

    fn build(records: &[Fields]) -> BatchBuilder {
        let mut builder = BatchBuilder::default();
        for (key, value, timestamp_ms, headers) in records {
            let headers: Vec<(&str, Option<&[u8]>)> =
                headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
            let view = RecordView {
                key: key.as_deref(),
                value: value.as_deref(),
                headers: &headers,
                timestamp_ms: *timestamp_ms,
            };
            let expected = builder.encoded_bytes() + builder.cost_of(&view);
            builder.push(&view);
            assert_eq!(builder.encoded_bytes(), expected, "cost_of returns the bytes that push adds");
        }
        builder
    }

    fn fields() -> impl Strategy<Value = Vec<Fields>> {
        let header = ("[a-z]{0,5}", any::<Option<Vec<u8>>>());
        let record = (
            any::<Option<Vec<u8>>>(),
            any::<Option<Vec<u8>>>(),
            1_600_000_000_000..1_700_000_000_000_i64,
            prop::collection::vec(header, 0..4),
        );
        prop::collection::vec(record, 1..20)
    }

    /// The same records as values of the `kafka-protocol` crate.
    fn crate_records(records: &[Fields], producer: ProducerState) -> Vec<Record> {
        let of = |(index, (key, value, timestamp, headers)): (usize, &Fields)| Record {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: -1,
            producer_id: producer.producer_id,
            producer_epoch: producer.epoch,
            timestamp_type: TimestampType::Creation,
            offset: index as i64,
            sequence: producer.base_sequence.wrapping_add(if producer.base_sequence < 0 { 0 } else { index as i32 }),
            timestamp: *timestamp,
            key: key.clone().map(Into::into),
            value: value.clone().map(Into::into),
            headers: headers
                .iter()
                .map(|(name, value)| (name.clone().into(), value.clone().map(Into::into)))
                .collect::<IndexMap<_, _>>(),
        };
        records.iter().enumerate().map(of).collect()
    }

    #[test]
    fn a_batch_taken_without_a_copy_is_the_encoded_batch() {
        let records: [Fields; 2] =
            [(Some(b"k".to_vec()), Some(b"value".to_vec()), 5, vec![("h".into(), None)]), (None, None, 9, vec![])];
        let (mut encoded, producer) = (Vec::new(), ProducerState { producer_id: 7, epoch: 1, base_sequence: 3 });
        build(&records).finish(Codec::None, producer, &mut encoded).unwrap();
        let mut builder = build(&records);
        assert_eq!(builder.take_uncompressed(producer), encoded);
        assert!(builder.is_empty() && builder.into_buffer().capacity() == 0);
        // The memory of an earlier batch is used again.
        let mut builder = BatchBuilder::with_buffer(encoded.clone());
        for (key, value, timestamp_ms, headers) in &records {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
            let (key, value, timestamp_ms) = (key.as_deref(), value.as_deref(), *timestamp_ms);
            builder.push(&RecordView { key, value, headers: &headers, timestamp_ms });
        }
        assert_eq!(builder.take_uncompressed(producer), encoded);
    }

    proptest! {
        #[test]
        fn kafka_protocol_decodes_a_batch(records in fields(), base_sequence in 0..1000_i32) {
            let producer = ProducerState { producer_id: 7, epoch: 3, base_sequence };
            let mut buffer = b"before".to_vec();
            let size = build(&records).finish(Codec::None, producer, &mut buffer).unwrap();
            prop_assert_eq!(size, buffer.len() - 6);
            let decoded = RecordBatchDecoder::decode(&mut &buffer[6..]).unwrap();
            // The crate keeps headers in a map, which cannot hold two headers of the same name.
            let unique = records.iter().all(|(_, _, _, headers)| {
                let names: std::collections::BTreeSet<_> = headers.iter().map(|(name, _)| name).collect();
                names.len() == headers.len()
            });
            if unique {
                prop_assert_eq!(decoded.records, crate_records(&records, producer));
            }
        }

        #[test]
        fn a_batch_has_the_bytes_that_kafka_protocol_encodes(mut records in fields()) {
            for (_, _, timestamp, headers) in &mut records {
                // Equal timestamps: the crate takes the smallest as base timestamp, this module the first, as the Java
                // client does.
                *timestamp = 1_650_000_000_000;
                headers.truncate(1);
            }
            let producer = ProducerState { producer_id: 7, epoch: 3, base_sequence: 5 };
            let mut ours = Vec::new();
            build(&records).finish(Codec::None, producer, &mut ours).unwrap();
            let mut other = bytes::BytesMut::new();
            let options = RecordEncodeOptions { version: 2, compression: Compression::None };
            RecordBatchEncoder::encode(&mut other, &crate_records(&records, producer), &options).unwrap();
            prop_assert_eq!(ours, other.to_vec());
        }
    }
}
