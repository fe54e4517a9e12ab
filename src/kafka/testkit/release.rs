//! Kafka releases: the request versions that their brokers support, and their rules about sequence numbers.

use kafka_protocol::messages::ApiKey;

use super::producer_state::SequenceRules;

/// A release whose brokers the test cluster imitates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Release {
    /// Kafka 0.11: the first with message format 2.
    V0_11,
    /// Kafka 2.0.
    V2_0,
    /// Kafka 2.4: the first with flexible versions and record errors.
    V2_4,
    /// Kafka 2.8: the first with topic ids in Metadata.
    V2_8,
    /// Kafka 3.9: the last that supports the request versions of 0.11.
    V3_9,
    /// Kafka 4.0: the first without the oldest versions (KIP-896).
    V4_0,
    /// Kafka 4.1: the first that names topics by their ids in Produce (KIP-516).
    V4_1,
}

impl Release {
    /// All releases, the oldest first.
    pub const ALL: [Release; 7] =
        [Release::V0_11, Release::V2_0, Release::V2_4, Release::V2_8, Release::V3_9, Release::V4_0, Release::V4_1];

    /// Returns the lowest and the highest version of a request; `None` if the release has no such request.
    pub fn versions(self, api: ApiKey) -> Option<(i16, i16)> {
        let (_, lowest_of_4, highest) = VERSIONS.iter().find(|(key, ..)| *key == api)?;
        let highest = highest[self as usize];
        let lowest = if self >= Release::V4_0 { *lowest_of_4 } else { 0 };
        (highest >= 0).then_some((lowest, highest))
    }

    /// Returns the requests that the cluster serves.
    pub fn apis() -> impl Iterator<Item = ApiKey> {
        VERSIONS.iter().map(|(key, ..)| *key)
    }

    /// Returns the rules about sequence numbers.
    pub fn sequence_rules(self) -> SequenceRules {
        SequenceRules {
            old_duplicate_has_own_code: self < Release::V2_0,
            unknown_producer_is_rejected: self < Release::V2_8,
        }
    }
}

/// Request, lowest version in 4.0 (KIP-896), highest version in each of [`Release::ALL`]; -1: no such request.
const VERSIONS: &[(ApiKey, i16, [i16; 7])] = &[
    // Kafka 4.0 announces Produce 0 to 2, too, because of librdkafka (KAFKA-18659), and rejects them.
    (ApiKey::Produce, 0, [3, 6, 8, 9, 11, 12, 13]),
    (ApiKey::Fetch, 4, [5, 8, 11, 12, 17, 17, 18]),
    (ApiKey::ListOffsets, 1, [2, 3, 5, 6, 9, 10, 10]),
    (ApiKey::Metadata, 0, [4, 6, 9, 11, 12, 13, 13]),
    // Kafka 4.1 has version 10 of both, which the crate cannot encode.
    (ApiKey::OffsetCommit, 2, [3, 4, 8, 8, 9, 9, 9]),
    (ApiKey::OffsetFetch, 1, [3, 4, 6, 7, 9, 9, 9]),
    (ApiKey::FindCoordinator, 0, [1, 2, 3, 3, 6, 6, 6]),
    (ApiKey::JoinGroup, 0, [2, 3, 6, 7, 9, 9, 9]),
    (ApiKey::Heartbeat, 0, [1, 2, 4, 4, 4, 4, 4]),
    (ApiKey::LeaveGroup, 0, [1, 2, 4, 4, 5, 5, 5]),
    (ApiKey::SyncGroup, 0, [1, 2, 4, 5, 5, 5, 5]),
    (ApiKey::DescribeGroups, 0, [1, 2, 5, 5, 5, 6, 6]),
    (ApiKey::ListGroups, 0, [1, 2, 3, 4, 5, 5, 5]),
    (ApiKey::SaslHandshake, 0, [0, 1, 1, 1, 1, 1, 1]),
    (ApiKey::ApiVersions, 0, [1, 2, 3, 3, 4, 4, 4]),
    (ApiKey::InitProducerId, 0, [0, 1, 2, 4, 5, 5, 5]),
    (ApiKey::OffsetForLeaderEpoch, 2, [0, 1, 3, 4, 4, 4, 4]),
    (ApiKey::SaslAuthenticate, 0, [-1, 0, 1, 2, 2, 2, 2]),
];
