//! Appends single records of today's format, with headers and of any size the topic takes.

use std::time::Duration;

use kafka_protocol::records::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType};

use super::Cluster;
use super::kafka_wire::{KafkaRequest, KafkaResponse, call, metadata};

const PRODUCE: i16 = 0;
const DEADLINE: Duration = Duration::from_secs(30);

/// Appends one record to a partition; returns when it is stored. Two headers must not have the same name.
pub(crate) fn append(cluster: &Cluster, topic: &str, partition: i32, key: &str, value: &[u8], headers: &[String]) {
    let record = Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: -1,
        producer_id: -1,
        producer_epoch: -1,
        timestamp_type: TimestampType::Creation,
        offset: 0,
        sequence: -1,
        timestamp: 1_700_000_000_000,
        key: Some(key.as_bytes().to_vec().into()),
        value: Some(value.to_vec().into()),
        headers: headers.iter().map(|name| (name.clone().into(), None)).collect(),
    };
    let mut batch = bytes::BytesMut::new();
    let options = RecordEncodeOptions { version: 2, compression: Compression::None };
    RecordBatchEncoder::encode(&mut batch, [&record], &options).expect("a record that can be encoded");

    let mut request = KafkaRequest::default();
    request.short(-1); // Not in a transaction.
    request.short(-1); // acks: all replicas.
    request.int(DEADLINE.as_millis() as i32);
    request.int(1);
    request.text(topic);
    request.int(1);
    request.int(partition);
    request.int(batch.len() as i32);
    request.0.extend_from_slice(&batch);
    let metadata = metadata(&cluster.brokers, &[topic]).expect("a broker answers");
    let leader = &metadata.brokers[&metadata.leaders[topic][&partition]];
    let answer = call(leader, PRODUCE, 3, &request.0).expect("the leader answers");
    let mut reader = KafkaResponse(&answer);
    let code = (|| {
        let _ = (reader.int()?, reader.text()?, reader.int()?, reader.int()?);
        reader.short()
    })();
    assert_eq!(code.expect("a whole response"), 0, "a record of {} bytes is stored", batch.len());
}
