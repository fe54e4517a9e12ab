//! DescribeConfigs: the configuration of topics, versions 0 to 4.
//!
//! Version 1 states where a value comes from and can list the values that it hides, which is not requested; 3 can add
//! documentation, which is not requested either; 4 is the first flexible version.

use std::sync::Arc;

use super::Request;
use crate::kafka::wire::{Malformed, WireReader, put_length, put_string};

/// The resource type of topics.
const TOPIC: u8 = 2;
// Smallest encoded sizes of array elements: they limit the element count of an array by the bytes that are left.
const MIN_RESULT_BYTES: usize = 7;
const MIN_CONFIG_BYTES: usize = 5;
const MIN_SYNONYM_BYTES: usize = 3;

/// Requests some configs of topics: the values in effect, whether they are those of the topic or defaults.
#[derive(Clone, Copy, Debug)]
pub struct DescribeConfigsRequest<'a> {
    /// The topics, whose names have at most 32,767 bytes.
    pub topics: &'a [Arc<str>],
    /// The names of the configs. A broker leaves those out that it does not have.
    pub names: &'a [&'a str],
}

/// The response to a [`DescribeConfigsRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DescribeConfigsResponse {
    /// Time in milliseconds for which the client must send no request, because it exceeded a quota.
    pub throttle_time_ms: i32,
    /// The topics, in the order of the response.
    pub topics: Vec<TopicConfigs>,
}

/// The configs of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicConfigs {
    /// Name of the topic.
    pub topic: String,
    /// Error code of the protocol; with an error there are no configs. TOPIC_AUTHORIZATION_FAILED: the client has no
    /// right DescribeConfigs.
    pub error_code: i16,
    /// Names and values.
    pub configs: Vec<(String, String)>,
}

impl Request for DescribeConfigsRequest<'_> {
    const API_KEY: i16 = 32;
    const VERSIONS: (i16, i16) = (0, 4);
    const FIRST_FLEXIBLE: i16 = 4;
    type Response = DescribeConfigsResponse;

    fn encode(&self, buffer: &mut Vec<u8>, version: i16) {
        let flexible = version >= Self::FIRST_FLEXIBLE;
        put_length(buffer, flexible, self.topics.len());
        for topic in self.topics {
            buffer.push(TOPIC);
            put_string(buffer, flexible, topic);
            put_length(buffer, flexible, self.names.len());
            for name in self.names {
                put_string(buffer, flexible, name);
            }
            if flexible {
                buffer.push(0);
            }
        }
        if version >= 1 {
            // No synonyms.
            buffer.push(0);
        }
        if version >= 3 {
            // No documentation.
            buffer.push(0);
        }
        if flexible {
            buffer.push(0);
        }
    }

    fn decode(reader: &mut WireReader, version: i16) -> Result<DescribeConfigsResponse, Malformed> {
        let flexible = version >= Self::FIRST_FLEXIBLE;
        let mut response = DescribeConfigsResponse { throttle_time_ms: reader.i32()?, topics: Vec::new() };
        for _ in 0..reader.array(flexible, MIN_RESULT_BYTES)? {
            let error_code = reader.i16()?;
            // The error message.
            reader.string(flexible)?;
            let resource_type = reader.i8()?;
            let topic = reader.text(flexible)?;
            let mut configs = Vec::new();
            for _ in 0..reader.array(flexible, MIN_CONFIG_BYTES)? {
                configs.extend(config(reader, version)?);
            }
            reader.skip_tagged_fields(flexible)?;
            if resource_type == TOPIC.cast_signed() {
                response.topics.push(TopicConfigs { topic, error_code, configs });
            }
        }
        reader.skip_tagged_fields(flexible)?;
        Ok(response)
    }
}

/// Returns name and value; `None` for a config without a value.
fn config(reader: &mut WireReader, version: i16) -> Result<Option<(String, String)>, Malformed> {
    let flexible = version >= DescribeConfigsRequest::FIRST_FLEXIBLE;
    let name = reader.string(flexible)?.ok_or(Malformed("a config without a name"))?.to_owned();
    let value = reader.string(flexible)?.map(str::to_owned);
    // Whether it is read-only, where it comes from (in version 0: whether it is a default), whether it is sensitive.
    reader.take(3)?;
    if version >= 1 {
        for _ in 0..reader.array(flexible, MIN_SYNONYM_BYTES)? {
            reader.string(flexible)?;
            reader.string(flexible)?;
            reader.i8()?;
            reader.skip_tagged_fields(flexible)?;
        }
    }
    if version >= 3 {
        // Type and documentation.
        reader.i8()?;
        reader.string(flexible)?;
    }
    reader.skip_tagged_fields(flexible)?;
    Ok(value.map(|value| (name, value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::protocol::codec_tests::{check_noise, decode_all, decoded_by_crate, encoded_by_crate, versions};
    use kafka_protocol::messages::describe_configs_response::{
        DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
    };
    use kafka_protocol::messages::{DescribeConfigsRequest as CrateRequest, DescribeConfigsResponse as CrateResponse};
    use kafka_protocol::protocol::StrBytes;
    use proptest::prelude::*;

    type Describe = DescribeConfigsRequest<'static>;

    /// The versions that the crate has, too: Kafka 4 dropped version 0.
    fn common_versions() -> impl Iterator<Item = i16> {
        versions::<Describe>().filter(|version| *version >= 1)
    }

    #[test]
    fn kafka_protocol_decodes_the_request_of_every_version() {
        for version in common_versions() {
            let topics = ["t".into(), "u".into()];
            let request = DescribeConfigsRequest { topics: &topics, names: &["max.message.bytes", "cleanup.policy"] };
            let seen: CrateRequest = decoded_by_crate(&request, version);
            let resources = seen.resources.iter().map(|resource| {
                let names = resource.configuration_keys.iter().flatten().map(|name| name.to_string());
                (resource.resource_type, resource.resource_name.to_string(), names.collect::<Vec<_>>())
            });
            let names = || vec!["max.message.bytes".to_owned(), "cleanup.policy".to_owned()];
            let expected = [(2, "t".to_owned(), names()), (2, "u".to_owned(), names())];
            assert_eq!(resources.collect::<Vec<_>>(), expected, "{version}");
            assert!(!seen.include_synonyms && !seen.include_documentation);
        }
    }

    fn response(version: i16) -> CrateResponse {
        let text = StrBytes::from_static_str;
        let config = |name, value: Option<&'static str>| {
            let config = DescribeConfigsResourceResult::default().with_name(text(name)).with_value(value.map(text));
            let synonym = DescribeConfigsSynonym::default().with_name(text("s")).with_value(None);
            match version {
                1.. => config.with_synonyms(vec![synonym]),
                _ => config,
            }
        };
        let known = DescribeConfigsResult::default().with_resource_type(2).with_resource_name(text("t"));
        let known = known.with_configs(vec![config("max.message.bytes", Some("1000")), config("secret", None)]);
        let denied = DescribeConfigsResult::default().with_resource_type(2).with_resource_name(text("u"));
        let denied = denied.with_error_code(29).with_error_message(Some(text("no right")));
        let broker = DescribeConfigsResult::default().with_resource_type(4).with_resource_name(text("0"));
        CrateResponse::default().with_throttle_time_ms(6).with_results(vec![known, denied, broker])
    }

    #[test]
    fn responses_of_every_version_are_decoded() {
        for version in common_versions() {
            let configs = vec![("max.message.bytes".to_owned(), "1000".to_owned())];
            let topics = vec![
                TopicConfigs { topic: "t".into(), error_code: 0, configs },
                TopicConfigs { topic: "u".into(), error_code: 29, configs: Vec::new() },
            ];
            let expected = DescribeConfigsResponse { throttle_time_ms: 6, topics };
            let bytes = encoded_by_crate(&response(version), version);
            assert_eq!(decode_all::<Describe>(&bytes, version), Ok(expected), "{version}");
        }
    }

    #[test]
    fn a_response_of_version_0_is_decoded() {
        let text = |text: &str| [&(text.len() as i16).to_be_bytes()[..], text.as_bytes()].concat();
        let mut bytes = vec![0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0xff, 0xff, TOPIC];
        bytes.extend(text("t"));
        bytes.extend([0, 0, 0, 1]);
        bytes.extend([text("cleanup.policy"), text("compact"), vec![0, 1, 0]].concat());
        let configs = vec![("cleanup.policy".to_owned(), "compact".to_owned())];
        let topics = vec![TopicConfigs { topic: "t".into(), error_code: 0, configs }];
        let expected = DescribeConfigsResponse { throttle_time_ms: 5, topics };
        assert_eq!(decode_all::<Describe>(&bytes, 0), Ok(expected));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_a_truncated_response_is_malformed(
            noise in prop::collection::vec(any::<u8>(), 0..100),
            at in any::<prop::sample::Index>(),
            byte: u8,
            version in 1..=4_i16,
        ) {
            check_noise::<Describe>(&noise, encoded_by_crate(&response(version), version), at, byte, version);
        }
    }
}
