//! One fetch request to one broker, and its response by partition.

use std::collections::BTreeSet;
use std::time::Duration;

use kafka::client::{FetchPartition, KafkaClient};
use kafka::error::{Error, KafkaCode};

use super::guarded_client::CallError;
use crate::broker::{Offset, PartitionId, TopicPartition};

/// Longest time that a broker waits for messages before it responds. A partition that is assigned while a request is in
/// flight is first requested after that response.
pub(super) const MAX_BROKER_WAIT: Duration = Duration::from_millis(100);

/// One partition in a fetch request.
#[derive(Clone)]
pub(super) struct PartitionRequest {
    pub(super) partition: TopicPartition,
    /// Number of the assignment that the request was made for (`PartitionReader::epoch`).
    pub(super) epoch: u64,
    pub(super) offset: Offset,
    pub(super) max_bytes: usize,
}

/// The response to a fetch request.
pub(super) struct FetchResponse {
    pub(super) leader: String,
    /// Number of the request.
    pub(super) number: u64,
    pub(super) outcome: Result<Vec<PartitionResponse>, CallError>,
}

/// One partition in a fetch response.
pub(super) struct PartitionResponse {
    pub(super) topic: String,
    pub(super) partition: PartitionId,
    /// The log end offset and the messages, or why there are none.
    pub(super) outcome: Result<(Offset, Vec<FetchedMessage>), PartitionError>,
}

/// A message of a response, copied out of the crate's buffer.
pub(super) struct FetchedMessage {
    pub(super) offset: Offset,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

/// Why a response has no messages of a partition.
pub(super) enum PartitionError {
    /// The broker returned this error code.
    Code(KafkaCode),
    /// The crate could not decode the messages; its error text.
    Other(String),
}

/// Sends one fetch request for these partitions and returns the response. Looks up the leaders first if `reload` is set
/// or the client does not know a topic yet.
pub(super) fn fetch(
    client: &mut KafkaClient,
    requests: &[PartitionRequest],
    reload: bool,
) -> kafka::Result<Vec<PartitionResponse>> {
    let topics: BTreeSet<&str> = requests.iter().map(|request| &*request.partition.topic).collect();
    let unknown: Vec<&str> = topics.into_iter().filter(|topic| reload || !client.topics().contains(topic)).collect();
    if !unknown.is_empty() {
        client.load_metadata(&unknown)?;
    }
    client.set_fetch_max_wait_time(MAX_BROKER_WAIT)?;
    client.set_fetch_min_bytes(1);
    client.set_fetch_crc_validation(true);
    let partitions = requests.iter().map(|request| {
        FetchPartition::new(&request.partition.topic, request.partition.partition, request.offset)
            .with_max_bytes(i32::try_from(request.max_bytes).unwrap_or(i32::MAX))
    });
    let mut responses = Vec::new();
    for response in client.fetch_messages(partitions)? {
        for topic in response.topics() {
            for partition in topic.partitions() {
                let outcome = match partition.data() {
                    Ok(data) => {
                        let messages = data.messages().iter().map(|message| FetchedMessage {
                            offset: message.offset,
                            key: message.key.to_vec(),
                            value: message.value.to_vec(),
                        });
                        Ok((data.highwatermark_offset(), messages.collect()))
                    }
                    Err(error) => Err(match &*error {
                        Error::Kafka(code) => PartitionError::Code(*code),
                        error => PartitionError::Other(error.to_string()),
                    }),
                };
                let (topic, partition) = (topic.topic().to_owned(), partition.partition());
                responses.push(PartitionResponse { topic, partition, outcome });
            }
        }
    }
    Ok(responses)
}
