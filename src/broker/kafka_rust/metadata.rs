//! Topic lookups and the reachability check of a producer, on a client of their own.

use std::sync::Arc;
use std::time::Duration;

use super::guarded_client::{CallError, GuardedClient};
use crate::broker::BrokerConfig;
use crate::broker::metadata_gate::{MetadataClient, TopicAnswer};
use crate::broker::topics::LookupAnswer;
use crate::shutdown::Stop;

/// Looks up topics with the `kafka` crate.
pub(super) struct KafkaRustMetadata {
    client: GuardedClient,
}

impl KafkaRustMetadata {
    /// Makes a metadata client; triggering `abort` ends its pending call.
    pub(super) fn new(broker: &BrokerConfig, abort: Stop) -> Self {
        KafkaRustMetadata { client: GuardedClient::new(broker, "kafka-meta-call", abort) }
    }
}

/// Returns the answer for a topic with this number of partitions. The crate reads version 0 of the response, which does
/// not distinguish "being created" from "does not exist".
fn answer(partition_count: usize) -> LookupAnswer {
    match partition_count {
        0 => LookupAnswer::DoesNotExist,
        count => LookupAnswer::Exists(i32::try_from(count).unwrap_or(i32::MAX)),
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

    fn look_up(&mut self, topics: &[Arc<str>], wait: Duration) -> Result<Vec<TopicAnswer>, String> {
        let names = topics.to_vec();
        let counts = self.client.call(wait, move |client| {
            // The crate keeps the topics of all responses.
            client.reset_metadata();
            client.load_metadata(&names)?;
            let count = |name: &Arc<str>| client.topics().partitions(name).map_or(0, |partitions| partitions.len());
            Ok(names.iter().map(count).collect::<Vec<_>>())
        });
        let counts = counts.map_err(|error| error.in_words())?;
        Ok(topics.iter().cloned().zip(counts.into_iter().map(answer)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::testkit::{ApiKey, Fault, Release, Scope, TestCluster};

    #[test]
    fn known_topics_are_looked_up_with_one_request_that_may_take_all_the_time() {
        let cluster = TestCluster::builder(1).release(Release::V2_4).start();
        let mut names: Vec<Arc<str>> = (0..50).map(|number| Arc::from(format!("t{number}"))).collect();
        names.iter().zip(1..).for_each(|(name, count)| cluster.create_topic(name, count));
        names.push("missing".into());
        let broker = BrokerConfig {
            hosts: cluster.bootstrap().iter().map(|(host, port)| format!("{host}:{port}")).collect(),
            engine: Default::default(),
            client_id: "t".into(),
            request_timeout: Duration::from_secs(30),
            settings: Default::default(),
            requests: Default::default(),
        };
        let mut metadata = KafkaRustMetadata::new(&broker, Stop::new());
        cluster.fault_always(Scope::api(ApiKey::Metadata), Fault::delay(Duration::from_millis(600)));
        let answers = metadata.refresh(&names, Duration::from_secs(30)).expect("the broker answers");
        let counts = (1..=50).map(LookupAnswer::Exists).chain([LookupAnswer::DoesNotExist]);
        assert_eq!(answers, names.iter().cloned().zip(counts).collect::<Vec<_>>());
        assert_eq!(cluster.requests(ApiKey::Metadata), 1);
        // Topics of earlier responses are not kept.
        cluster.clear_faults();
        cluster.delete_topic("t7");
        let answers = metadata.look_up(&names[7..9], Duration::from_secs(30)).expect("the broker answers");
        let expected = [LookupAnswer::DoesNotExist, LookupAnswer::Exists(9)];
        assert_eq!(answers, names[7..9].iter().cloned().zip(expected).collect::<Vec<_>>());
    }
}
