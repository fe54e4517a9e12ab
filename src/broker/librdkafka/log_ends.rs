//! Where logs begin and end, asked through librdkafka.
//!
//! The newest offsets of many partitions are one question a leader. Invariant: a partition without an answer is an
//! error of that partition alone, never a number.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;

use super::native::list_newest;
use super::{EVENTS_SERVED, Voice, common_settings, in_words, set_the_users};
use crate::broker::{BrokerConfig, LogEnds, LogRange, MetadataError, Offset, PartitionInfo, TopicPartition};

/// Partitions in one question; librdkafka's work for a question grows with the square of it.
const MAX_TOPICS_PER_LOOKUP: usize = 1_000;

/// The reader of log ends of this engine.
pub(in crate::broker) struct LibrdkafkaLogEnds {
    native: BaseConsumer<Voice>,
    wait: Duration,
}

impl LibrdkafkaLogEnds {
    /// Makes the reader; no broker need be reachable.
    pub(in crate::broker) fn new(broker: &BrokerConfig) -> Result<Self, String> {
        let mut settings = common_settings(broker);
        set_the_users(&mut settings, broker);
        settings
            .set("topic.metadata.refresh.interval.ms", "-1")
            // The end of the log is wanted, also while a transaction is open.
            .set("isolation.level", "read_uncommitted");
        let native = settings
            .create_with_context(Voice::new("log ends", broker))
            .map_err(|error| format!("cannot create the consumer for log end offsets: {}", in_words(&error)))?;
        Ok(LibrdkafkaLogEnds { native, wait: broker.request_timeout })
    }

    /// What failed, with why no broker lets us in where that is known.
    fn with_trouble(&self, what: String) -> String {
        self.native.client().context().with_trouble(what)
    }

    /// Lets the client's log lines out.
    fn serve(&self) {
        // Such a client gets no messages.
        (0..EVENTS_SERVED).for_each(|_| drop(self.native.poll(Duration::ZERO)));
    }
}

impl LogEnds for LibrdkafkaLogEnds {
    fn partitions(&mut self, topic: &str) -> Result<Vec<PartitionInfo>, MetadataError> {
        let answer = self.native.fetch_metadata(Some(topic), self.wait);
        self.serve();
        let metadata = answer.map_err(|error| MetadataError::Unreachable(self.with_trouble(in_words(&error))))?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let found =
            found.ok_or_else(|| MetadataError::Unreachable(format!("the metadata response lacks topic {topic}")))?;
        match found.error() {
            None | Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE) => {}
            Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => {
                return Err(MetadataError::UnknownTopic(topic.to_owned()));
            }
            Some(code) => {
                return Err(MetadataError::Partition(format!("topic {topic}: {}", RDKafkaErrorCode::from(code))));
            }
        }
        let info = |partition: &rdkafka::metadata::MetadataPartition| PartitionInfo {
            partition: partition.id(),
            leader: Some(partition.leader()).filter(|&leader| leader >= 0),
        };
        let mut partitions: Vec<PartitionInfo> = found.partitions().iter().map(info).collect();
        partitions.sort_unstable_by_key(|info| info.partition);
        Ok(partitions)
    }

    fn newest(&mut self, partitions: &[TopicPartition]) -> Vec<Result<Offset, MetadataError>> {
        let deadline = Instant::now() + self.wait;
        let mut seen = HashSet::with_capacity(partitions.len());
        // A negative number would fail the whole question.
        let asked: Vec<&TopicPartition> =
            partitions.iter().filter(|partition| partition.partition >= 0 && seen.insert(*partition)).collect();
        let mut answers: HashMap<TopicPartition, Result<Offset, MetadataError>> = HashMap::with_capacity(asked.len());
        for question in asked.chunks(MAX_TOPICS_PER_LOOKUP) {
            let left = deadline.saturating_duration_since(Instant::now());
            let outcome = match left.is_zero() {
                true => Err("timed out before the request was sent".to_owned()),
                false => list_newest(self.native.client().native_ptr(), question, left),
            };
            match outcome {
                Ok(found) => answers.extend(found.into_iter().map(|(partition, outcome)| {
                    let outcome = outcome.map_err(|code| partition_error(&partition, code));
                    (partition, outcome)
                })),
                Err(reason) => answers.extend(
                    question.iter().map(|&asked| (asked.clone(), Err(MetadataError::Unreachable(reason.clone())))),
                ),
            }
        }
        self.serve();
        for answer in answers.values_mut() {
            if let Err(MetadataError::Unreachable(words)) = answer {
                *words = self.with_trouble(std::mem::take(words));
            }
        }
        let answer = |partition: &TopicPartition| match answers.get(partition) {
            Some(answer) => answer.clone(),
            None => Err(MetadataError::Partition(format!("the response lacks {partition}"))),
        };
        partitions.iter().map(answer).collect()
    }

    fn range(&mut self, partition: &TopicPartition) -> Result<LogRange, MetadataError> {
        let answer = self.native.fetch_watermarks(&partition.topic, partition.partition, self.wait);
        self.serve();
        match answer {
            Ok((oldest, newest)) => Ok(LogRange { oldest, newest }),
            Err(KafkaError::MetadataFetch(code)) => Err(partition_error(partition, code)),
            Err(error) => Err(MetadataError::Unreachable(self.with_trouble(in_words(&error)))),
        }
    }
}

fn partition_error(partition: &TopicPartition, code: RDKafkaErrorCode) -> MetadataError {
    use RDKafkaErrorCode as Code;
    match code {
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::OperationTimedOut
        | Code::RequestTimedOut
        | Code::TimedOutQueue
        | Code::Resolve => MetadataError::Unreachable(format!("{partition}: {code}")),
        code => MetadataError::Partition(format!("{partition}: {code}")),
    }
}
