//! Asks the brokers which topics there are, and whether any broker answers, by the producer of acks=0.
//!
//! A client of its own would cost a thread for each broker. A producer has one request at a time under way with a broker, but
//! those of acks=0 are not answered, so that no question waits behind them. But librdkafka keeps every name that a producer was asked
//! about for ever, so topics are looked up with questions of administration, which leave nothing behind. Those never
//! make a topic; where the brokers are to make it (`auto.create.topics.enable`), the name is asked for in the ordinary
//! way too. Invariant: of the names that strangers try, the producer keeps no more than [`MAX_UNKNOWN_NAMES`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::warn;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext};
use rdkafka::types::{RDKafka, RDKafkaRespErr};

use super::native::{Described, ask_any_broker, describe_topic};
use super::{HasVoice, Voice, in_words};
use crate::broker::metadata_gate::MetadataClient;
use crate::broker::topics::LookupAnswer;

/// After so many names that no broker made, brokers are not asked to make any more; those that do make them leave none.
const MAX_UNKNOWN_NAMES: usize = 1_000;

/// Looked up to see whether a broker responds; any response will do, also that the topic does not exist. Not
/// DescribeCluster: librdkafka 2.12 aborts the process when a broker that is starting returns neither brokers nor topics
/// (`rd_kafka_DescribeClusterResponse_parse` returns no error for it, and no result).
const PROBED_TOPIC: &str = "__kafka_http_wrapper_probe";

/// The questions of one producer.
pub(super) struct Asking<X: ProducerContext + HasVoice + 'static> {
    native: Arc<BaseProducer<X>>,
    hosts: String,
    /// Brokers that were there last, and which of them is asked.
    brokers: Vec<i32>,
    turn: usize,
    /// Names that brokers were asked to make and that were not there afterwards.
    in_vain: HashSet<String>,
}

impl<X: ProducerContext + HasVoice + 'static> Asking<X> {
    /// Asks by this producer, which somebody else polls.
    pub(super) fn new(native: Arc<BaseProducer<X>>, hosts: &[String]) -> Self {
        Asking { native, hosts: hosts.join(", "), brokers: Vec::new(), turn: 0, in_vain: HashSet::new() }
    }

    fn voice(&self) -> &Voice {
        self.native.client().context().voice()
    }

    /// Asks the broker that answered last; when it does not, the next one in the second half of the time.
    fn ask_one_or_another<T>(
        &mut self,
        wait: Duration,
        ask: impl Fn(*mut RDKafka, i32, Duration) -> Result<T, String>,
    ) -> Result<T, String> {
        let deadline = Instant::now() + wait;
        let left = || deadline.saturating_duration_since(Instant::now());
        let client = self.native.client().native_ptr();
        if self.brokers.is_empty() {
            self.brokers = ask_any_broker(client, wait / 2).map_err(|code| code.to_string())?;
        }
        let Some(&first) = self.brokers.get(self.turn % self.brokers.len().max(1)) else {
            return Err("no broker is known".to_owned());
        };
        if self.brokers.len() == 1 {
            return ask(client, first, left());
        }
        ask(client, first, left() / 2).or_else(|_| {
            self.turn = (self.turn + 1) % self.brokers.len();
            ask(client, self.brokers[self.turn], left())
        })
    }

    /// Lets the brokers make the topic, if they do such a thing.
    fn let_it_be_made(&mut self, topic: &str, wait: Duration) -> LookupAnswer {
        if !self.in_vain.contains(topic) {
            if self.in_vain.len() >= MAX_UNKNOWN_NAMES {
                return LookupAnswer::DoesNotExist;
            }
            self.in_vain.insert(topic.to_owned());
            if self.in_vain.len() == MAX_UNKNOWN_NAMES {
                warn!(
                    "commits to further unknown topics fail without a request to auto-create the topic: \
                     the brokers created none of the last {MAX_UNKNOWN_NAMES} unknown topics"
                );
            }
        }
        let metadata = match self.native.client().fetch_metadata(Some(topic), wait) {
            Ok(metadata) => metadata,
            Err(error) => return LookupAnswer::Unreachable(self.voice().with_trouble(in_words(&error))),
        };
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return LookupAnswer::NotYet;
        };
        match found.error() {
            None if found.partitions().is_empty() => LookupAnswer::NotYet,
            None => LookupAnswer::Exists(found.partitions().len() as i32),
            Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE) => LookupAnswer::NotYet,
            Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => LookupAnswer::DoesNotExist,
            Some(code) => LookupAnswer::Refused(RDKafkaErrorCode::from(code).to_string()),
        }
    }
}

impl<X: ProducerContext + HasVoice + 'static> MetadataClient for Asking<X> {
    fn check_reachable(&mut self, wait: Duration) -> Result<(), String> {
        let client = self.native.client().native_ptr();
        let outcome = if self.brokers.is_empty() {
            ask_any_broker(client, wait).map(|brokers| self.brokers = brokers)
        } else {
            let probe = |client, broker, wait| describe_topic(client, PROBED_TOPIC, broker, wait).map(drop);
            // If two brokers do not respond, any other broker will do; a broker that works responds at once.
            self.ask_one_or_another(wait, probe)
                .or_else(|_| ask_any_broker(client, wait / 4).map(|brokers| self.brokers = brokers))
        };
        match outcome {
            Ok(()) => {
                self.voice().forget_trouble();
                Ok(())
            }
            Err(code) => {
                self.brokers.clear();
                Err(self.voice().with_trouble(format!("none of {} responds: {code}", self.hosts)))
            }
        }
    }

    fn look_up(&mut self, topic: &str, wait: Duration) -> LookupAnswer {
        let deadline = Instant::now() + wait;
        let described =
            self.ask_one_or_another(wait, |client, target, wait| describe_topic(client, topic, target, wait));
        let answer = match described {
            Err(reason) => LookupAnswer::Unreachable(self.voice().with_trouble(reason)),
            Ok(Described::Partitions(0)) => LookupAnswer::NotYet,
            Ok(Described::Partitions(count)) => LookupAnswer::Exists(count as i32),
            Ok(Described::Error(RDKafkaErrorCode::LeaderNotAvailable)) => LookupAnswer::NotYet,
            Ok(Described::Error(RDKafkaErrorCode::UnknownTopicOrPartition)) => {
                self.let_it_be_made(topic, deadline.saturating_duration_since(Instant::now()))
            }
            Ok(Described::Error(code)) => LookupAnswer::Refused(code.to_string()),
        };
        if matches!(answer, LookupAnswer::Exists(_)) {
            self.in_vain.remove(topic);
        }
        answer
    }
}
