//! Chooses the engine by `kafka_client`, checks the `kafka` settings with it, and makes its producers, fetchers and log
//! end readers.
//!
//! Every `match` in this file is over [`BuiltInEngine`], whose variants are the engines of this build, and is
//! exhaustive. So a new variant is a compile error in each place that has to handle it.

use std::sync::Arc;

use super::kafka_rust;
use super::membership::{GroupOffsets, Membership, MembershipConfig};
use super::native;
use super::settings::{KafkaSettings, Role, SettingProblem};
use super::{BrokerConfig, Completion, Engine, Fetcher, FetcherConfig, GroupReader, LogEnds, Producer, ProducerConfig};
use crate::config::{Problems, Section};
use crate::supervise::Supervisor;

/// An engine that this build has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BuiltInEngine {
    Native,
    KafkaRust,
}

/// Why `kafka_client: librdkafka` is refused.
const WITHOUT_LIBRDKAFKA: &str = "is \"librdkafka\", which is no longer part of this program: remove this key, or use \
                                  native, which takes the settings of the map kafka by the same names";

/// Why the engine `kafka-rust` has no groups.
const WITHOUT_GROUPS: &str = "kafka_client: kafka-rust has no groups in Kafka; use native, or groups in ZooKeeper";

impl Engine {
    /// Takes `kafka_client` (default `auto`); an engine that this build does not have is a problem.
    pub fn from_section(section: &mut Section, problems: &mut Problems) -> Self {
        let choices = [
            ("auto", Self::Auto),
            ("native", Self::Native),
            ("librdkafka", Self::Librdkafka),
            ("kafka-rust", Self::KafkaRust),
        ];
        let engine = section.choice("kafka_client", &choices, problems);
        if let Err(text) = engine.resolve() {
            section.note("kafka_client", text, problems);
        }
        engine
    }

    /// Takes the map `kafka` and checks it for this engine and `role`.
    pub fn settings_from_section(self, section: &mut Section, role: Role, problems: &mut Problems) -> KafkaSettings {
        let Some(mut map) = section.section("kafka", false, problems) else { return KafkaSettings::default() };
        let problems_before = problems.0.len();
        let settings = KafkaSettings::from_map(&mut map, role, problems);
        // The engine would report the same problems again, with other texts.
        if problems.0.len() == problems_before {
            for (key, text) in self.validate(&settings, role) {
                map.note(&key, text, problems);
            }
        }
        // A key that is still in the map is not a string.
        map.finish(problems);
        settings
    }

    /// Returns whether records can have headers and timestamps. If not, an append of a record with headers or a
    /// timestamp fails as [`AppendFailure::Unsupported`](super::AppendFailure::Unsupported).
    pub fn has_headers_and_timestamps(self) -> bool {
        match self.resolve() {
            Ok(BuiltInEngine::Native) => true,
            Ok(BuiltInEngine::KafkaRust) | Err(_) => false,
        }
    }

    /// Returns whether the engine has [`membership`], [`group_offsets`] and [`group_reader`].
    pub fn has_groups(self) -> bool {
        match self.resolve() {
            Ok(BuiltInEngine::Native) => true,
            Ok(BuiltInEngine::KafkaRust) | Err(_) => false,
        }
    }

    fn validate(self, settings: &KafkaSettings, role: Role) -> Vec<SettingProblem> {
        match self.resolve() {
            Ok(BuiltInEngine::Native) => native::validate(settings, role),
            Ok(BuiltInEngine::KafkaRust) => kafka_rust::validate(settings, role),
            // `from_section` has noted the problem with `kafka_client`.
            Err(_) => Vec::new(),
        }
    }

    /// Returns the engine to use, or an error text if this build does not have the chosen one.
    fn resolve(self) -> Result<BuiltInEngine, String> {
        match self {
            Self::Auto | Self::Native => Ok(BuiltInEngine::Native),
            Self::Librdkafka => Err(WITHOUT_LIBRDKAFKA.to_owned()),
            Self::KafkaRust => Ok(BuiltInEngine::KafkaRust),
        }
    }
}

/// Makes a producer; no broker need be reachable. Its threads belong to `supervisor`. The threads that run completions
/// continue after the supervisor's stop, until [`Producer::close`] or the drop of the producer; so the producer must be
/// closed or dropped before the supervisor is joined.
pub fn producer<C: Completion>(
    broker: &BrokerConfig,
    config: ProducerConfig,
    supervisor: &Supervisor,
) -> Result<Arc<dyn Producer<C>>, String> {
    match broker.engine.resolve()? {
        BuiltInEngine::Native => Ok(Arc::new(native::NativeProducer::new(broker, &config, supervisor)?)),
        BuiltInEngine::KafkaRust => Ok(Arc::new(kafka_rust::KafkaRustProducer::new(broker, &config, supervisor))),
    }
}

/// Makes a fetcher without any assigned partition; no broker need be reachable.
pub fn fetcher(
    broker: &BrokerConfig,
    config: FetcherConfig,
    supervisor: &Supervisor,
) -> Result<Box<dyn Fetcher>, String> {
    match broker.engine.resolve()? {
        BuiltInEngine::Native => Ok(Box::new(native::NativeFetcher::new(broker, &config, supervisor)?)),
        BuiltInEngine::KafkaRust => Ok(Box::new(kafka_rust::KafkaRustFetcher::new(broker, config, supervisor))),
    }
}

/// Makes a reader of log end offsets; no broker need be reachable.
pub fn log_ends(broker: &BrokerConfig, supervisor: &Supervisor) -> Result<Box<dyn LogEnds>, String> {
    match broker.engine.resolve()? {
        BuiltInEngine::Native => Ok(Box::new(native::NativeLogEnds::new(broker)?)),
        BuiltInEngine::KafkaRust => Ok(Box::new(kafka_rust::KafkaRustLogEnds::new(broker, supervisor))),
    }
}

/// Joins a group that Kafka manages; no broker need be reachable. The threads of the member end when it leaves or is
/// dropped.
pub fn membership(broker: &BrokerConfig, config: MembershipConfig) -> Result<Box<dyn Membership>, String> {
    match broker.engine.resolve()? {
        BuiltInEngine::Native => Ok(Box::new(native::NativeMembership::new(broker, config)?)),
        BuiltInEngine::KafkaRust => Err(WITHOUT_GROUPS.to_owned()),
    }
}

/// Makes a client that reads and commits the offsets of `topic` for `group` from outside of the group; no broker need
/// be reachable.
pub fn group_offsets(broker: &BrokerConfig, group: Arc<str>, topic: Arc<str>) -> Result<Box<dyn GroupOffsets>, String> {
    match broker.engine.resolve()? {
        BuiltInEngine::Native => Ok(Box::new(native::NativeGroupOffsets::new(broker, group, topic)?)),
        BuiltInEngine::KafkaRust => Err(WITHOUT_GROUPS.to_owned()),
    }
}

/// Makes a reader of consumer groups; no broker need be reachable. Fails for an engine without
/// [groups](Engine::has_groups).
pub fn group_reader(broker: &BrokerConfig) -> Result<Box<dyn GroupReader>, String> {
    match broker.engine.resolve()? {
        BuiltInEngine::Native => Ok(Box::new(native::NativeGroups::new(broker)?)),
        BuiltInEngine::KafkaRust => Err("kafka_client: kafka-rust does not read consumer groups".to_owned()),
    }
}
