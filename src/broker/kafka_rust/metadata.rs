//! Topic lookups and the reachability check of a producer, on a client of their own.

use std::time::Duration;

use super::guarded_client::{CallError, GuardedClient};
use super::produce_request::failure_of;
use crate::broker::BrokerConfig;
use crate::broker::metadata_gate::MetadataClient;
use crate::broker::topics::LookupAnswer;
use crate::shutdown::Stop;

/// Largest number of topic names looked up by one client. A client keeps every name, so it is then replaced.
const MAX_NAMES_PER_CLIENT: u32 = 1_000;

/// Looks up topics with the `kafka` crate.
pub(super) struct KafkaRustMetadata {
    client: GuardedClient,
    name_count: u32,
}

impl KafkaRustMetadata {
    /// Makes a metadata client; triggering `abort` ends its pending call.
    pub(super) fn new(broker: &BrokerConfig, abort: Stop) -> Self {
        KafkaRustMetadata { client: GuardedClient::new(broker, "kafka-meta-call", abort), name_count: 0 }
    }
}

impl MetadataClient for KafkaRustMetadata {
    fn check_reachable(&mut self, wait: Duration) -> Result<(), String> {
        // Without a topic the crate would request all topics. The illegal name "." keeps the response small.
        let outcome = self.client.call(wait, |client| client.load_metadata(&["."]));
        outcome.or_else(|error| match error {
            CallError::Code(_) => Ok(()),
            error => Err(error.in_words()),
        })
    }

    fn look_up(&mut self, topic: &str, wait: Duration) -> LookupAnswer {
        self.name_count += 1;
        if self.name_count > MAX_NAMES_PER_CLIENT {
            self.client.abandon();
            self.name_count = 1;
        }
        let name = topic.to_owned();
        let found = self.client.call(wait, move |client| {
            client.load_metadata(&[&name])?;
            Ok(client.topics().partitions(&name).map_or(0, |partitions| partitions.len()))
        });
        match found {
            // The crate reads version 0 of the response, which does not distinguish "being created" from "does not
            // exist".
            Ok(0) => LookupAnswer::DoesNotExist,
            Ok(count) => LookupAnswer::Exists(count as i32),
            Err(CallError::Code(code)) => LookupAnswer::Refused(failure_of(code).0, format!("{code:?}")),
            Err(error) => LookupAnswer::Unreachable(error.in_words()),
        }
    }
}
