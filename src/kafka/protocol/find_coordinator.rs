//! FindCoordinator: the brokers that coordinate consumer groups, versions 1 to 4.
//!
//! Version 3 is the first flexible version; 4 looks up several groups in one request (KIP-699). The versions from 5 add
//! what concerns transactions and share groups only.

use std::sync::Arc;

use super::Request;
use crate::kafka::config::BrokerAddress;
use crate::kafka::metadata::BrokerInfo;
use crate::kafka::wire::{Malformed, WireReader, put_length, put_string};

/// The key type of consumer groups.
const GROUP: u8 = 0;
/// Smallest encoded size of a coordinator: it limits the element count of an array by the bytes that are left.
const MIN_COORDINATOR_BYTES: usize = 14;

/// Requests the coordinators of consumer groups.
#[derive(Clone, Copy, Debug)]
pub struct FindCoordinatorRequest<'a> {
    /// The group ids, each of at most 32,767 bytes. Versions below [`FindCoordinatorRequest::FIRST_BATCH`] have only
    /// the first.
    pub groups: &'a [Arc<str>],
}

impl FindCoordinatorRequest<'_> {
    /// The first version with more than one group.
    pub const FIRST_BATCH: i16 = 4;
}

/// The response to a [`FindCoordinatorRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FindCoordinatorResponse {
    /// Time in milliseconds for which the client must send no request, because it exceeded a quota.
    pub throttle_time_ms: i32,
    /// The coordinators, in the order of the response.
    pub coordinators: Vec<Coordinator>,
}

/// The coordinator of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coordinator {
    /// The group id; `None` below version 4.
    pub group: Option<String>,
    /// Error code of the protocol; COORDINATOR_NOT_AVAILABLE if the group has no coordinator at present.
    pub error_code: i16,
    /// Error message of the broker.
    pub error_message: Option<String>,
    /// The broker, without its rack; only without an error. A port outside of 1 to 65535 is returned as 0.
    pub broker: BrokerInfo,
}

impl Request for FindCoordinatorRequest<'_> {
    const API_KEY: i16 = 10;
    const VERSIONS: (i16, i16) = (1, 4);
    const FIRST_FLEXIBLE: i16 = 3;
    type Response = FindCoordinatorResponse;

    fn encode(&self, buffer: &mut Vec<u8>, version: i16) {
        let flexible = version >= Self::FIRST_FLEXIBLE;
        if version < Self::FIRST_BATCH {
            put_string(buffer, flexible, self.groups.first().map_or("", |group| group));
        }
        buffer.push(GROUP);
        if version >= Self::FIRST_BATCH {
            put_length(buffer, flexible, self.groups.len());
            for group in self.groups {
                put_string(buffer, flexible, group);
            }
        }
        if flexible {
            buffer.push(0);
        }
    }

    fn decode(reader: &mut WireReader, version: i16) -> Result<FindCoordinatorResponse, Malformed> {
        let flexible = version >= Self::FIRST_FLEXIBLE;
        let throttle_time_ms = reader.i32()?;
        let mut coordinators = Vec::new();
        if version < Self::FIRST_BATCH {
            let error_code = reader.i16()?;
            let error_message = reader.string(flexible)?.map(str::to_owned);
            coordinators.push(Coordinator {
                group: None,
                error_code,
                error_message,
                broker: broker(reader, flexible)?,
            });
        } else {
            for _ in 0..reader.array(flexible, MIN_COORDINATOR_BYTES)? {
                let group = reader.string(flexible)?.ok_or(Malformed("a coordinator without a group"))?.to_owned();
                let broker = broker(reader, flexible)?;
                let error_code = reader.i16()?;
                let error_message = reader.string(flexible)?.map(str::to_owned);
                reader.tagged_fields(|_, _| Ok(()))?;
                coordinators.push(Coordinator { group: Some(group), error_code, error_message, broker });
            }
        }
        if flexible {
            reader.tagged_fields(|_, _| Ok(()))?;
        }
        Ok(FindCoordinatorResponse { throttle_time_ms, coordinators })
    }
}

fn broker(reader: &mut WireReader, flexible: bool) -> Result<BrokerInfo, Malformed> {
    let id = reader.i32()?;
    let host = reader.string(flexible)?.ok_or(Malformed("a coordinator without a host"))?.into();
    // With an error the port is -1.
    let port = u16::try_from(reader.i32()?).unwrap_or(0);
    Ok(BrokerInfo { id, address: BrokerAddress { host, port }, rack: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::protocol::codec_tests::{check_noise, decode_all, decoded_by_crate, encoded_by_crate, versions};
    use kafka_protocol::messages::find_coordinator_response::Coordinator as CrateCoordinator;
    use kafka_protocol::messages::{FindCoordinatorRequest as CrateRequest, FindCoordinatorResponse as CrateResponse};
    use kafka_protocol::protocol::StrBytes;
    use proptest::prelude::*;

    type Find = FindCoordinatorRequest<'static>;

    #[test]
    fn kafka_protocol_decodes_the_request_of_every_version() {
        for version in versions::<Find>() {
            let groups = ["g".into(), "h".into()];
            let seen: CrateRequest = decoded_by_crate(&FindCoordinatorRequest { groups: &groups }, version);
            let keys: Vec<_> = seen.coordinator_keys.iter().map(|key| &**key).collect();
            let expected = if version >= 4 { ("", vec!["g", "h"]) } else { ("g", Vec::new()) };
            assert_eq!((&*seen.key, keys, seen.key_type), (expected.0, expected.1, 0), "{version}");
        }
    }

    fn response(version: i16) -> CrateResponse {
        let response = CrateResponse::default().with_throttle_time_ms(4);
        let host = StrBytes::from_static_str("kafka-2");
        let message = Some(StrBytes::from_static_str("m"));
        if version < 4 {
            let response = response.with_node_id(2.into()).with_host(host).with_port(9092);
            return response.with_error_code(15).with_error_message(message);
        }
        let found = CrateCoordinator::default().with_key(StrBytes::from_static_str("g")).with_node_id(2.into());
        let found = found.with_host(host).with_port(9092).with_error_code(15).with_error_message(message);
        let absent = CrateCoordinator::default().with_key(StrBytes::from_static_str("h")).with_node_id((-1).into());
        response.with_coordinators(vec![found, absent.with_port(-1).with_error_message(None)])
    }

    #[test]
    fn responses_of_every_version_are_decoded() {
        for version in versions::<Find>() {
            let broker = |id, host: &str, port| {
                let address = BrokerAddress { host: host.into(), port };
                BrokerInfo { id, address, rack: None }
            };
            let group = |name: &str| (version >= 4).then(|| name.to_owned());
            let mut coordinators = vec![Coordinator {
                group: group("g"),
                error_code: 15,
                error_message: Some("m".into()),
                broker: broker(2, "kafka-2", 9092),
            }];
            if version >= 4 {
                let broker = broker(-1, "", 0);
                coordinators.push(Coordinator { group: group("h"), error_code: 0, error_message: None, broker });
            }
            let expected = FindCoordinatorResponse { throttle_time_ms: 4, coordinators };
            let bytes = encoded_by_crate(&response(version), version);
            assert_eq!(decode_all::<Find>(&bytes, version), Ok(expected), "{version}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_a_truncated_response_is_malformed(
            noise in prop::collection::vec(any::<u8>(), 0..100),
            at in any::<prop::sample::Index>(),
            byte: u8,
            version in versions::<Find>(),
        ) {
            check_noise::<Find>(&noise, encoded_by_crate(&response(version), version), at, byte, version);
        }
    }
}
