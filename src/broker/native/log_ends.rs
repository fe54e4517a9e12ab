//! Partitions, log end offsets and oldest offsets, through [`OffsetReader`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config;
use crate::broker::{
    BrokerConfig, LogEnds, LogRange, MetadataError, Offset, PartitionInfo, RangeSink, TopicInfo, TopicPartition,
};
use crate::kafka::error_code;
use crate::kafka::metadata::TopicMetadata;
use crate::kafka::offsets::{OffsetError, OffsetErrorKind, OffsetRange, OffsetReader, OffsetSpec};

/// Reads log end offsets with the client in `src/kafka`.
pub(in crate::broker) struct NativeLogEnds {
    reader: OffsetReader,
    request_timeout: Duration,
}

impl NativeLogEnds {
    /// Makes the reader; no broker need be reachable. Fails if a file of the settings cannot be read.
    pub(in crate::broker) fn new(broker: &BrokerConfig) -> Result<Self, String> {
        let connector = config::connector(broker, config::MAX_METADATA_RESPONSE_BYTES)?;
        let reader = OffsetReader::new(connector, config::bootstrap(&broker.hosts)?);
        Ok(NativeLogEnds { reader, request_timeout: broker.request_timeout })
    }

    /// Returns these offsets of the partitions, in the same order.
    fn offsets(
        &mut self,
        partitions: &[TopicPartition],
        at: OffsetSpec,
        deadline: Instant,
    ) -> Vec<Result<Offset, MetadataError>> {
        let wanted: Vec<_> = partitions.iter().map(|of| (Arc::clone(&of.topic), of.partition)).collect();
        let found = self.reader.log_ends(&wanted, at, deadline);
        let result = |(partition, found): (&TopicPartition, Result<Offset, OffsetError>)| {
            found.map_err(|error| metadata_error(&partition.topic, &error))
        };
        partitions.iter().zip(found).map(result).collect()
    }
}

impl LogEnds for NativeLogEnds {
    fn partitions(&mut self, topic: &str) -> Result<Vec<PartitionInfo>, MetadataError> {
        let found = self.reader.partitions(&topic.into(), Instant::now() + self.request_timeout);
        let found = found.map_err(|error| metadata_error(topic, &error))?;
        Ok(partition_infos(&found))
    }

    fn topics(&mut self, topics: &[Arc<str>], deadline: Instant) -> Vec<Result<TopicInfo, MetadataError>> {
        let found = self.reader.topics(topics, deadline);
        let info = |(name, found): (&Arc<str>, Result<TopicMetadata, OffsetError>)| {
            let topic = found.map_err(|error| metadata_error(name, &error))?;
            Ok(TopicInfo { id: topic.id, partitions: partition_infos(&topic) })
        };
        topics.iter().zip(found).map(info).collect()
    }

    fn newest(&mut self, partitions: &[TopicPartition]) -> Vec<Result<Offset, MetadataError>> {
        self.offsets(partitions, OffsetSpec::Latest, Instant::now() + self.request_timeout)
    }

    fn range(&mut self, partition: &TopicPartition) -> Result<LogRange, MetadataError> {
        let deadline = Instant::now() + self.request_timeout;
        self.range_of_all(std::slice::from_ref(partition), deadline)
            .pop()
            .unwrap_or_else(|| Err(MetadataError::Partition(format!("{partition} is not in the response"))))
    }

    fn at_time(
        &mut self,
        partitions: &[TopicPartition],
        time_ms: i64,
        deadline: Instant,
    ) -> Vec<Result<Option<Offset>, MetadataError>> {
        let wanted: Vec<_> = partitions.iter().map(|of| (Arc::clone(&of.topic), of.partition)).collect();
        let found = self.reader.log_ends(&wanted, OffsetSpec::Timestamp(time_ms), deadline);
        let result = |(partition, found): (&TopicPartition, Result<Offset, OffsetError>)| match found {
            Ok(offset) => Ok(Some(offset)),
            Err(error) if error.kind == OffsetErrorKind::NoMessage => Ok(None),
            Err(error) => Err(metadata_error(&partition.topic, &error)),
        };
        partitions.iter().zip(found).map(result).collect()
    }

    fn ranges(&mut self, partitions: &[TopicPartition], deadline: Instant, found: &mut RangeSink<'_>) {
        let wanted: Vec<_> = partitions.iter().map(|of| (Arc::clone(&of.topic), of.partition)).collect();
        self.reader.ranges(&wanted, deadline, &mut |index, result| {
            let range = result.map_err(|error| metadata_error(&partitions[index].topic, &error));
            found(index, range.map(seam_range));
        });
    }
}

fn seam_range(range: OffsetRange) -> LogRange {
    LogRange { oldest: range.earliest, newest: range.latest, stable: range.latest_committed }
}

fn partition_infos(topic: &TopicMetadata) -> Vec<PartitionInfo> {
    topic.partitions.iter().map(|of| PartitionInfo { partition: of.partition, leader: of.leader }).collect()
}

/// Converts an error about a topic, one of its partitions, or a group. `topic` is the name of the topic.
pub(super) fn metadata_error(topic: &str, error: &OffsetError) -> MetadataError {
    let reason = error.reason.to_string();
    match error.kind {
        OffsetErrorKind::UnknownTopic => MetadataError::UnknownTopic(topic.to_owned()),
        OffsetErrorKind::Unreachable | OffsetErrorKind::Unusable => MetadataError::Unreachable(reason),
        OffsetErrorKind::NoLeader => MetadataError::NoLeader(reason),
        OffsetErrorKind::Refused(
            error_code::TOPIC_AUTHORIZATION_FAILED
            | error_code::GROUP_AUTHORIZATION_FAILED
            | error_code::CLUSTER_AUTHORIZATION_FAILED,
        ) => MetadataError::NotAuthorized(reason),
        OffsetErrorKind::Refused(error_code::INVALID_TOPIC_EXCEPTION) => MetadataError::InvalidTopic(reason),
        OffsetErrorKind::UnknownPartition | OffsetErrorKind::NoMessage | OffsetErrorKind::Refused(_) => {
            MetadataError::Partition(reason)
        }
    }
}
