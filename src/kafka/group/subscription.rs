//! The bytes that members of a consumer group exchange through JoinGroup and SyncGroup: ConsumerProtocolSubscription
//! and ConsumerProtocolAssignment, versions 0 to 3.
//!
//! Each begins with its version. A reader decodes a higher version as the highest that it supports and ignores the
//! bytes after it, as the Java client does (`ConsumerProtocol`). Version 1 has the owned partitions (KIP-429), 2 their
//! generation (KIP-792), 3 the rack (KIP-881).

use std::sync::Arc;

use super::TopicPartition;
use crate::kafka::wire::{Malformed, WireReader, put_length, put_string};

/// The version that this client writes. Members with an older client read the fields of their version.
const VERSION: i16 = 3;
/// Generation of a member that has none.
pub const NO_GENERATION: i32 = -1;

/// The subscription that a member sends to the leader when it joins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscription {
    /// Names of the subscribed topics.
    pub topics: Vec<Arc<str>>,
    /// Data for the assignor. Java's `CooperativeStickyAssignor` writes the generation as an `i32`.
    pub user_data: Option<Vec<u8>>,
    /// The claims: partitions that the member holds (version 1 and later).
    pub owned: Vec<TopicPartition>,
    /// Generation in which the owned partitions were assigned (version 2 and later), or [`NO_GENERATION`].
    pub generation: i32,
    /// Rack of the member (version 3 and later).
    pub rack: Option<String>,
}

impl Subscription {
    /// Returns the encoded subscription.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_version(VERSION)
    }

    fn encode_version(&self, version: i16) -> Vec<u8> {
        let mut buffer = version.to_be_bytes().to_vec();
        put_length(&mut buffer, false, self.topics.len());
        for topic in &self.topics {
            put_string(&mut buffer, false, topic);
        }
        put_user_data(&mut buffer, self.user_data.as_deref());
        if version >= 1 {
            put_partitions(&mut buffer, &self.owned);
        }
        if version >= 2 {
            buffer.extend_from_slice(&self.generation.to_be_bytes());
        }
        if version >= 3 {
            match &self.rack {
                Some(rack) => put_string(&mut buffer, false, rack),
                None => buffer.extend_from_slice(&(-1_i16).to_be_bytes()),
            }
        }
        buffer
    }

    /// Decodes the subscription of a member.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = WireReader::new(bytes);
        let version = version(&mut reader)?;
        let mut subscription = Subscription { generation: NO_GENERATION, ..Subscription::default() };
        for _ in 0..reader.array(false, 2)? {
            let topic = reader.string(false)?.ok_or(Malformed("a topic without a name"))?;
            subscription.topics.push(topic.into());
        }
        subscription.user_data = reader.nullable_bytes()?.map(<[u8]>::to_vec);
        if version >= 1 {
            subscription.owned = partitions(&mut reader)?;
        }
        if version >= 2 {
            subscription.generation = reader.i32()?;
        }
        if version >= 3 {
            subscription.rack = reader.string(false)?.map(str::to_owned);
        }
        Ok(subscription)
    }

    /// Returns the generation of the claims. Java clients before 3.5 have it only in the user data of their assignor.
    pub fn claim_generation(&self) -> i32 {
        if self.generation >= 0 {
            return self.generation;
        }
        let from_user_data = self.user_data.as_deref().and_then(<[u8]>::first_chunk);
        from_user_data.map_or(NO_GENERATION, |bytes| i32::from_be_bytes(*bytes))
    }
}

/// Returns the encoded assignment of a member.
pub fn encode_assignment(assigned: &[TopicPartition]) -> Vec<u8> {
    let mut buffer = VERSION.to_be_bytes().to_vec();
    put_partitions(&mut buffer, assigned);
    put_user_data(&mut buffer, None);
    buffer
}

/// Decodes an assignment. No bytes mean no partitions: the leader has assigned nothing to the member.
pub fn decode_assignment(bytes: &[u8]) -> Result<Vec<TopicPartition>, Malformed> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let mut reader = WireReader::new(bytes);
    version(&mut reader)?;
    let assigned = partitions(&mut reader)?;
    // User data.
    reader.nullable_bytes()?;
    Ok(assigned)
}

fn version(reader: &mut WireReader) -> Result<i16, Malformed> {
    match reader.i16()? {
        version @ 0.. => Ok(version),
        _ => Err(Malformed("a negative version of the consumer protocol")),
    }
}

fn put_user_data(buffer: &mut Vec<u8>, data: Option<&[u8]>) {
    match data {
        Some(data) => {
            put_length(buffer, false, data.len());
            buffer.extend_from_slice(data);
        }
        None => buffer.extend_from_slice(&(-1_i32).to_be_bytes()),
    }
}

/// Appends `partitions`, which should be sorted: each run of one topic becomes one array.
fn put_partitions(buffer: &mut Vec<u8>, partitions: &[TopicPartition]) {
    let runs = || partitions.chunk_by(|left, right| left.topic == right.topic);
    put_length(buffer, false, runs().count());
    for run in runs() {
        put_string(buffer, false, &run[0].topic);
        put_length(buffer, false, run.len());
        for TopicPartition { partition, .. } in run {
            buffer.extend_from_slice(&partition.to_be_bytes());
        }
    }
}

fn partitions(reader: &mut WireReader) -> Result<Vec<TopicPartition>, Malformed> {
    let mut partitions = Vec::new();
    for _ in 0..reader.array(false, 6)? {
        let topic: Arc<str> = reader.string(false)?.ok_or(Malformed("a topic without a name"))?.into();
        for _ in 0..reader.array(false, 4)? {
            partitions.push(TopicPartition { topic: Arc::clone(&topic), partition: reader.i32()? });
        }
    }
    Ok(partitions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::{BufMut, Bytes, BytesMut};
    use kafka_protocol::messages::consumer_protocol_assignment::TopicPartition as CrateAssigned;
    use kafka_protocol::messages::consumer_protocol_subscription::TopicPartition as CrateOwned;
    use kafka_protocol::messages::{ConsumerProtocolAssignment, ConsumerProtocolSubscription, TopicName};
    use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
    use proptest::prelude::*;

    fn name(name: &'static str) -> TopicName {
        TopicName(StrBytes::from_static_str(name))
    }

    fn on(topic: &str, partition: i32) -> TopicPartition {
        TopicPartition { topic: topic.into(), partition }
    }

    #[test]
    fn every_version_of_a_subscription_agrees_with_kafka_protocol() {
        for version in 0..=3_i16 {
            let at_least = |first: i16| version >= first;
            let ours = Subscription {
                topics: vec!["t".into(), "u".into()],
                user_data: at_least(1).then(|| vec![0, 0, 0, 9]),
                owned: if at_least(1) { vec![on("t", 0), on("t", 5), on("u", 1)] } else { Vec::new() },
                generation: if at_least(2) { 8 } else { NO_GENERATION },
                rack: at_least(3).then(|| "r".into()),
            };
            let owned = |topic, partitions| CrateOwned::default().with_topic(name(topic)).with_partitions(partitions);
            let mut theirs = ConsumerProtocolSubscription::default()
                .with_topics(vec![StrBytes::from_static_str("t"), StrBytes::from_static_str("u")])
                .with_user_data(at_least(1).then(|| Bytes::from_static(&[0, 0, 0, 9])));
            if at_least(1) {
                theirs = theirs.with_owned_partitions(vec![owned("t", vec![0, 5]), owned("u", vec![1])]);
            }
            if at_least(2) {
                theirs = theirs.with_generation_id(8);
            }
            theirs = theirs.with_rack_id(at_least(3).then(|| StrBytes::from_static_str("r")));
            let mut buffer = BytesMut::new();
            buffer.put_i16(version);
            theirs.encode(&mut buffer, version).unwrap();
            assert_eq!(ours.encode_version(version), &buffer[..], "{version}");
            assert_eq!(Subscription::decode(&buffer), Ok(ours.clone()), "{version}");
            assert_eq!(ours.claim_generation(), [-1, 9, 8, 8][version as usize]);
            for length in 0..buffer.len() {
                assert!(Subscription::decode(&buffer[..length]).is_err(), "{length} bytes of version {version}");
            }
        }
    }

    #[test]
    fn every_version_of_an_assignment_agrees_with_kafka_protocol() {
        let ours = [on("t", 0), on("t", 2), on("u", 7)];
        let encoded = encode_assignment(&ours);
        let seen = ConsumerProtocolAssignment::decode(&mut &encoded[2..], VERSION).unwrap();
        let seen: Vec<_> = seen.assigned_partitions.iter().map(|a| (&**a.topic, &a.partitions[..])).collect();
        assert_eq!(seen, [("t", &[0, 2][..]), ("u", &[7])]);
        for version in 0..=3_i16 {
            let assigned = |topic, list| CrateAssigned::default().with_topic(name(topic)).with_partitions(list);
            let mut buffer = BytesMut::new();
            buffer.put_i16(version);
            ConsumerProtocolAssignment::default()
                .with_assigned_partitions(vec![assigned("t", vec![0, 2]), assigned("u", vec![7])])
                .with_user_data(Some(Bytes::from_static(b"any")))
                .encode(&mut buffer, version)
                .unwrap();
            assert_eq!(decode_assignment(&buffer), Ok(ours.to_vec()), "{version}");
            for length in 1..buffer.len() {
                assert!(decode_assignment(&buffer[..length]).is_err(), "{length} bytes of version {version}");
            }
        }
        assert_eq!(decode_assignment(&[]), Ok(Vec::new()));
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let ours = Subscription { topics: vec!["t".into()], generation: 4, ..Subscription::default() };
        let mut encoded = ours.encode();
        encoded[..2].copy_from_slice(&9_i16.to_be_bytes());
        encoded.extend_from_slice(b"unknown fields");
        assert_eq!(Subscription::decode(&encoded), Ok(ours));
        assert!(Subscription::decode(&[0xff; 30]).is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_do_not_panic(bytes: Vec<u8>) {
            let _ = (Subscription::decode(&bytes), decode_assignment(&bytes));
        }
    }
}
