//! Fetch, versions 4 to 17. The record data of a response is borrowed from its bytes, because this is the hot path; so
//! the request has no [`super::Request`] implementation.
//!
//! Version 4 is the first with message format 2 (Kafka 0.11); 7 has fetch sessions (KIP-227); 9 sends the leader epoch
//! (KIP-320); 11 sends the rack of the client (KIP-392); 12 is the first flexible version and detects diverging logs;
//! 13 names topics by id (KIP-516); 16 returns the new leader's address (KIP-951).

use std::sync::Arc;

use crate::kafka::metadata::{BrokerId, TopicId};
use crate::kafka::produce::{NodeAddress, node_endpoints};
use crate::kafka::wire::{Malformed, WireReader, end_structure, put_length, put_string};

/// API key of Fetch.
pub const API_KEY: i16 = 1;
/// The lowest and the highest supported version.
pub const VERSIONS: (i16, i16) = (4, 17);
/// The first version with tagged fields.
pub const FIRST_FLEXIBLE: i16 = 12;
/// The first version with fetch sessions.
pub const FIRST_WITH_SESSIONS: i16 = 7;
/// The first version in which the broker compares the last fetched epoch with its log.
pub const FIRST_WITH_DIVERGENCE: i16 = 12;
/// The first version that names topics by id instead of by name.
pub const FIRST_WITH_TOPIC_IDS: i16 = 13;
/// The id of a topic whose id is unknown.
pub const NO_TOPIC_ID: TopicId = [0; 16];

/// A Fetch request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchRequest {
    /// Longest time that the broker waits for data, in milliseconds.
    pub max_wait_ms: i32,
    /// Upper bound of the record data in the response, in bytes; the first batch may be larger (KIP-74).
    pub max_bytes: i32,
    /// Whether the broker returns only messages of committed transactions (and messages without a transaction).
    pub read_committed: bool,
    /// Id of the fetch session; 0 for none.
    pub session_id: i32,
    /// Number of the request in its session; 0 starts a session, -1 means that no session is wanted.
    pub session_epoch: i32,
    /// Partitions to add to the session or to change in it; all partitions in a request that starts a session.
    pub topics: Vec<FetchTopic>,
    /// Partitions to remove from the session.
    pub forgotten: Vec<ForgottenTopic>,
    /// `client.rack`: the leader may name a replica in this rack (version 11 and later). Empty for none.
    pub rack: Arc<str>,
}

/// A topic of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchTopic {
    /// Name, sent up to version 12.
    pub name: Arc<str>,
    /// Id, sent from version 13.
    pub id: TopicId,
    /// Its partitions.
    pub partitions: Vec<FetchPartition>,
}

/// A partition of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchPartition {
    /// Number of the partition.
    pub partition: i32,
    /// Epoch of the leader as the client has it; -1 if unknown. The broker refuses an older or newer epoch.
    pub leader_epoch: i32,
    /// Offset of the first message wanted.
    pub offset: i64,
    /// Epoch of the message before `offset`; -1 if unknown.
    pub last_fetched_epoch: i32,
    /// Upper bound of the record data of this partition, in bytes.
    pub max_bytes: i32,
}

/// Partitions of one topic that a request removes from the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForgottenTopic {
    /// Name, sent up to version 12.
    pub name: Arc<str>,
    /// Id, sent from version 13.
    pub id: TopicId,
    /// Numbers of the partitions.
    pub partitions: Vec<i32>,
}

impl FetchRequest {
    /// Appends the body of the request. Every request of a client has replica id -1.
    pub fn encode(&self, buffer: &mut Vec<u8>, version: i16) {
        let flexible = version >= FIRST_FLEXIBLE;
        if version < 15 {
            // Replica id; later versions have it as a tagged field with this default.
            put_i32(buffer, -1);
        }
        put_i32(buffer, self.max_wait_ms);
        // Lowest number of bytes for which the broker responds before the wait has passed.
        put_i32(buffer, 1);
        put_i32(buffer, self.max_bytes);
        buffer.push(u8::from(self.read_committed));
        if version >= FIRST_WITH_SESSIONS {
            put_i32(buffer, self.session_id);
            put_i32(buffer, self.session_epoch);
        }
        put_length(buffer, flexible, self.topics.len());
        for topic in &self.topics {
            put_topic(buffer, version, &topic.name, &topic.id);
            put_length(buffer, flexible, topic.partitions.len());
            for partition in &topic.partitions {
                partition.encode(buffer, version);
            }
            end_structure(buffer, flexible);
        }
        if version >= FIRST_WITH_SESSIONS {
            put_length(buffer, flexible, self.forgotten.len());
            for topic in &self.forgotten {
                put_topic(buffer, version, &topic.name, &topic.id);
                put_length(buffer, flexible, topic.partitions.len());
                topic.partitions.iter().for_each(|partition| put_i32(buffer, *partition));
                end_structure(buffer, flexible);
            }
        }
        if version >= 11 {
            put_string(buffer, flexible, &self.rack);
        }
        end_structure(buffer, flexible);
    }
}

impl FetchPartition {
    fn encode(&self, buffer: &mut Vec<u8>, version: i16) {
        put_i32(buffer, self.partition);
        if version >= 9 {
            put_i32(buffer, self.leader_epoch);
        }
        buffer.extend_from_slice(&self.offset.to_be_bytes());
        if version >= FIRST_WITH_DIVERGENCE {
            put_i32(buffer, self.last_fetched_epoch);
        }
        if version >= 5 {
            // Log start offset: only replicas have one.
            buffer.extend_from_slice(&(-1_i64).to_be_bytes());
        }
        put_i32(buffer, self.max_bytes);
        end_structure(buffer, version >= FIRST_FLEXIBLE);
    }
}

fn put_i32(buffer: &mut Vec<u8>, value: i32) {
    buffer.extend_from_slice(&value.to_be_bytes());
}

fn put_topic(buffer: &mut Vec<u8>, version: i16, name: &str, id: &TopicId) {
    match version >= FIRST_WITH_TOPIC_IDS {
        true => buffer.extend_from_slice(id),
        false => put_string(buffer, version >= FIRST_FLEXIBLE, name),
    }
}

/// The body of a Fetch response; names and record data borrow from its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchResponse<'a> {
    /// Time in milliseconds for which the client must send no request, because it exceeded a quota.
    pub throttle_time_ms: i32,
    /// Error code of the whole request (version 7 and later); with an error there are no topics.
    pub error_code: i16,
    /// Id of the fetch session; 0 if the broker has made none.
    pub session_id: i32,
    /// The topics; in a session only those with new data, an error or a changed high watermark.
    pub topics: Vec<TopicResponse<'a>>,
    /// Addresses of the brokers in `current_leader` of the partitions (version 16 and later).
    pub nodes: Vec<NodeAddress>,
}

/// How a response names a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TopicRef<'a> {
    /// By name, up to version 12.
    Name(&'a str),
    /// By id, from version 13.
    Id(TopicId),
}

/// A topic of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicResponse<'a> {
    /// The topic.
    pub topic: TopicRef<'a>,
    /// Its partitions.
    pub partitions: Vec<PartitionResponse<'a>>,
}

/// A partition of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionResponse<'a> {
    /// Number of the partition.
    pub partition: i32,
    /// Error code of the protocol; 0 means success.
    pub error_code: i16,
    /// Offset up to which the messages are replicated; -1 if unknown.
    pub high_watermark: i64,
    /// Producer id and first offset of each aborted transaction in the range of the record data.
    pub aborted: Vec<(i64, i64)>,
    /// Replica that the client is to fetch from (version 11 and later).
    pub preferred_replica: Option<BrokerId>,
    /// The log of the broker diverges from what the client fetched (version 12 and later): the largest epoch of the
    /// log that is not larger than the last fetched epoch, and the end offset of that epoch.
    pub diverging: Option<(i32, i64)>,
    /// Broker id and epoch of the leader, if this broker is not the leader (version 12 and later).
    pub current_leader: Option<(BrokerId, i32)>,
    /// Record data; the last batch may be cut off.
    pub records: &'a [u8],
}

// Smallest encoded sizes of array elements: they limit the element count of an array by the bytes that are left.
const MIN_TOPIC_BYTES: usize = 2;
const MIN_PARTITION_BYTES: usize = 24;
const MIN_ABORTED_BYTES: usize = 16;

impl<'a> FetchResponse<'a> {
    /// Decodes the body of a response; fails if bytes are missing, left over or invalid.
    pub fn decode(body: &'a [u8], version: i16) -> Result<FetchResponse<'a>, Malformed> {
        let flexible = version >= FIRST_FLEXIBLE;
        let mut reader = WireReader::new(body);
        let mut response = FetchResponse { throttle_time_ms: reader.i32()?, ..FetchResponse::default() };
        if version >= FIRST_WITH_SESSIONS {
            (response.error_code, response.session_id) = (reader.i16()?, reader.i32()?);
        }
        for _ in 0..reader.array(flexible, MIN_TOPIC_BYTES)? {
            let topic = match version >= FIRST_WITH_TOPIC_IDS {
                true => TopicRef::Id(topic_id(&mut reader)?),
                false => TopicRef::Name(reader.string(flexible)?.ok_or(Malformed("a topic without a name"))?),
            };
            let mut partitions = Vec::new();
            for _ in 0..reader.array(flexible, MIN_PARTITION_BYTES)? {
                partitions.push(PartitionResponse::decode(&mut reader, version)?);
            }
            response.topics.push(TopicResponse { topic, partitions });
            reader.skip_tagged_fields(flexible)?;
        }
        if flexible {
            let nodes = &mut response.nodes;
            reader.tagged_fields(|tag, data| if tag == 0 { node_endpoints(data, nodes) } else { Ok(()) })?;
        }
        if !reader.is_empty() {
            return Err(Malformed("bytes after the response"));
        }
        Ok(response)
    }
}

impl<'a> PartitionResponse<'a> {
    fn decode(reader: &mut WireReader<'a>, version: i16) -> Result<Self, Malformed> {
        let flexible = version >= FIRST_FLEXIBLE;
        let (partition, error_code, high_watermark) = (reader.i32()?, reader.i16()?, reader.i64()?);
        // Last stable offset.
        reader.i64()?;
        if version >= 5 {
            // Log start offset.
            reader.i64()?;
        }
        let mut aborted = Vec::new();
        for _ in 0..reader.array(flexible, MIN_ABORTED_BYTES)? {
            aborted.push((reader.i64()?, reader.i64()?));
            reader.skip_tagged_fields(flexible)?;
        }
        let preferred_replica = if version >= 11 { Some(reader.i32()?).filter(|id| *id >= 0) } else { None };
        let records = match flexible {
            true => match reader.unsigned_varint()? {
                0 => &[][..],
                length => reader.take(length as usize - 1)?,
            },
            false => reader.nullable_bytes()?.unwrap_or_default(),
        };
        let (mut diverging, mut current_leader) = (None, None);
        if flexible {
            reader.tagged_fields(|tag, data| {
                match tag {
                    // An absent epoch has the default -1 in each of these structures.
                    0 => diverging = Some((data.i32()?, data.i64()?)).filter(|(epoch, _)| *epoch >= 0),
                    1 => current_leader = Some((data.i32()?, data.i32()?)).filter(|(id, _)| *id >= 0),
                    _ => return Ok(()),
                }
                data.tagged_fields(|_, _| Ok(()))
            })?;
        }
        Ok(PartitionResponse {
            partition,
            error_code,
            high_watermark,
            aborted,
            preferred_replica,
            diverging,
            current_leader,
            records,
        })
    }
}

fn topic_id(reader: &mut WireReader) -> Result<TopicId, Malformed> {
    reader.take(16)?.try_into().map_err(|_| Malformed("a topic id that is too short"))
}

#[cfg(test)]
mod tests;
