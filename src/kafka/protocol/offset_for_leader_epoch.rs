//! OffsetForLeaderEpoch, versions 2 to 4: where a leader epoch ends in the log of a leader (KIP-320).
//!
//! Lower versions need the right of a replica and are not used. Version 4 is the first flexible version. Fetch detects
//! diverging logs by itself from version 12 on.

use std::sync::Arc;

use super::Request;
use crate::kafka::wire::{Malformed, WireReader, end_structure, put_length, put_string};

/// A request for the ends of epochs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OffsetForLeaderEpochRequest {
    /// Names of topics and their partitions.
    pub topics: Vec<(Arc<str>, Vec<EpochQuery>)>,
}

/// A partition of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochQuery {
    /// Number of the partition.
    pub partition: i32,
    /// Epoch of the leader as the client has it; -1 if unknown. The broker refuses an older or newer epoch.
    pub current_leader_epoch: i32,
    /// The epoch whose end is requested.
    pub epoch: i32,
}

/// The ends of the epochs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OffsetForLeaderEpochResponse {
    /// Time in milliseconds for which the client must send no request, because it exceeded a quota.
    pub throttle_time_ms: i32,
    /// Names of topics and their partitions.
    pub topics: Vec<(String, Vec<EpochEnd>)>,
}

/// A partition of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochEnd {
    /// Error code of the protocol; 0 means success.
    pub error_code: i16,
    /// Number of the partition.
    pub partition: i32,
    /// The largest epoch in the log that is not larger than the requested one; -1 if unknown.
    pub epoch: i32,
    /// The offset after the last message of that epoch; -1 if unknown.
    pub end_offset: i64,
}

// Smallest encoded sizes of array elements: they limit the element count of an array by the bytes that are left.
const MIN_TOPIC_BYTES: usize = 2;
const MIN_PARTITION_BYTES: usize = 18;

impl Request for OffsetForLeaderEpochRequest {
    const API_KEY: i16 = 23;
    const VERSIONS: (i16, i16) = (2, 4);
    const FIRST_FLEXIBLE: i16 = 4;
    type Response = OffsetForLeaderEpochResponse;

    fn encode(&self, buffer: &mut Vec<u8>, version: i16) {
        let flexible = version >= Self::FIRST_FLEXIBLE;
        if version >= 3 {
            // Replica id: -1 from clients.
            buffer.extend_from_slice(&(-1_i32).to_be_bytes());
        }
        put_length(buffer, flexible, self.topics.len());
        for (name, partitions) in &self.topics {
            put_string(buffer, flexible, name);
            put_length(buffer, flexible, partitions.len());
            for query in partitions {
                for value in [query.partition, query.current_leader_epoch, query.epoch] {
                    buffer.extend_from_slice(&value.to_be_bytes());
                }
                end_structure(buffer, flexible);
            }
            end_structure(buffer, flexible);
        }
        end_structure(buffer, flexible);
    }

    fn decode(reader: &mut WireReader, version: i16) -> Result<OffsetForLeaderEpochResponse, Malformed> {
        let flexible = version >= Self::FIRST_FLEXIBLE;
        let mut response = OffsetForLeaderEpochResponse { throttle_time_ms: reader.i32()?, topics: Vec::new() };
        for _ in 0..reader.array(flexible, MIN_TOPIC_BYTES)? {
            let name = reader.string(flexible)?.ok_or(Malformed("a topic without a name"))?.to_owned();
            let mut partitions = Vec::new();
            for _ in 0..reader.array(flexible, MIN_PARTITION_BYTES)? {
                let (error_code, partition) = (reader.i16()?, reader.i32()?);
                partitions.push(EpochEnd { error_code, partition, epoch: reader.i32()?, end_offset: reader.i64()? });
                reader.skip_tagged_fields(flexible)?;
            }
            response.topics.push((name, partitions));
            reader.skip_tagged_fields(flexible)?;
        }
        reader.skip_tagged_fields(flexible)?;
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::super::codec_tests::{check_noise, decode_all, decoded_by_crate, encoded_by_crate, versions};
    use super::*;
    use kafka_protocol::messages::offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult};
    use kafka_protocol::messages::{
        OffsetForLeaderEpochRequest as CrateRequest, OffsetForLeaderEpochResponse as CrateResponse, TopicName,
    };
    use proptest::prelude::*;

    fn crate_response() -> CrateResponse {
        let end = EpochEndOffset::default().with_partition(3).with_error_code(76).with_leader_epoch(4);
        let topic = OffsetForLeaderTopicResult::default()
            .with_topic(TopicName("t".into()))
            .with_partitions(vec![end.with_end_offset(1 << 40)]);
        CrateResponse::default().with_throttle_time_ms(9).with_topics(vec![topic])
    }

    #[test]
    fn every_version_agrees_with_kafka_protocol() {
        for version in versions::<OffsetForLeaderEpochRequest>() {
            let query = EpochQuery { partition: 3, current_leader_epoch: 6, epoch: 5 };
            let request = OffsetForLeaderEpochRequest { topics: vec![("t".into(), vec![query])] };
            let seen: CrateRequest = decoded_by_crate(&request, version);
            let partition = &seen.topics[0].partitions[0];
            assert_eq!(&*seen.topics[0].topic.0, "t");
            assert_eq!((partition.partition, partition.current_leader_epoch, partition.leader_epoch), (3, 6, 5));
            assert_eq!(seen.replica_id.0, if version >= 3 { -1 } else { -2 }, "version {version}");

            let bytes = encoded_by_crate(&crate_response(), version);
            let end = EpochEnd { error_code: 76, partition: 3, epoch: 4, end_offset: 1 << 40 };
            let expected = OffsetForLeaderEpochResponse { throttle_time_ms: 9, topics: vec![("t".into(), vec![end])] };
            assert_eq!(decode_all::<OffsetForLeaderEpochRequest>(&bytes, version), Ok(expected), "version {version}");
        }
    }

    proptest! {
        #[test]
        fn malformed_responses_never_panic(
            noise: Vec<u8>, at: prop::sample::Index, byte: u8, version in 2..=4_i16,
        ) {
            let good = encoded_by_crate(&crate_response(), version);
            check_noise::<OffsetForLeaderEpochRequest>(&noise, good, at, byte, version);
        }
    }
}
