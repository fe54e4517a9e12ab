//! Loads and checks `ktransfer.yaml` and the files of its modules.
//!
//! `conf/ktransfer.yaml` and `conf/modules/` document every key with its meaning, unit and default.

use std::collections::BTreeSet;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::backend_client::{IdempotencyKey, SigningSecret};
use super::backends::EjectionConfig;
use super::outcomes::{Outcome, OutcomeTable};
use super::policy::RetryPolicy;
use crate::access::CredentialsFile;
use crate::broker::{self, Engine, KafkaSettings, Role};
use crate::config::{Problems, Section};
use crate::daemon::{self, Settings};
use crate::keeper::{self, KeeperConfig};
use crate::logging::LogConfig;

mod backends;
mod ejection;
mod protocol;
mod signature;

use protocol::MAX_DURATION_MS;
pub(super) use protocol::ProtocolConfig;

/// Default of `max_retry_interval_ms`; if `fail_retry_interval_ms` is longer, that is the default.
const DEFAULT_MAX_PAUSE_MS: u64 = 10_000;
/// Largest `max_pushes_per_second`.
const MAX_PUSHES_PER_SECOND: i64 = 1_000_000;

/// The configuration of ktransfer.
#[derive(Clone)]
pub struct Config {
    /// The main file.
    pub(super) file: PathBuf,
    /// The log file settings: `log_dir`, `log_level`.
    pub(super) log: LogConfig,
    /// Where the groups of the modules are.
    pub(super) groups: GroupService,
    /// `zk_fail_retry_interval_ms`: longest pause before a module that failed, or could not start, is started again.
    pub(super) retry_interval: Duration,
    /// `broker_hosts`; `None` uses the brokers that are registered in ZooKeeper, which requires `zk_hosts`.
    pub(super) broker_hosts: Option<Vec<String>>,
    /// `kafka_client`: the Kafka client library.
    pub(super) engine: Engine,
    /// `kafka`: settings of the Kafka client.
    pub(super) kafka: KafkaSettings,
    /// `admin_port`: serves `/metrics`, `/healthz`, `/readyz`, `/v1/modules` and the page; `None` serves none.
    pub(super) admin_port: Option<u16>,
    /// `credentials_file`: the operators; `None` refuses their operations.
    pub(super) credentials: Option<CredentialsFile>,
    /// `shutdown_grace_ms`: time limit of the daemon's stop.
    pub(super) shutdown_grace: Duration,
    /// The modules in `module_enabled`.
    pub(super) modules: Vec<ModuleConfig>,
}

/// The service that manages the groups: assigns partitions to instances, and keeps the stored offsets.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum GroupService {
    /// `zk_hosts` is set: `zk_hosts`, `zk_chroot`, `zk_timeout_ms`.
    ZooKeeper(KeeperConfig),
    /// Without `zk_hosts`.
    Kafka(KafkaGroupSettings),
}

/// The settings of groups in Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KafkaGroupSettings {
    /// `session_timeout_ms`: another instance takes over the partitions of one that died after this time.
    pub(super) session_timeout: Duration,
    /// `instance_id`: makes the instance a static member of its groups.
    pub(super) instance_id: Option<Arc<str>>,
}

impl Settings for Config {
    fn log(&self) -> &LogConfig {
        &self.log
    }

    fn shutdown_grace(&self) -> Duration {
        self.shutdown_grace
    }
}

/// The configuration of one module. No `Debug`: the headers may hold secrets.
#[derive(Clone, PartialEq)]
pub(super) struct ModuleConfig {
    /// Name of the module: its consumer group in ZooKeeper, and the name of its file without `.yaml`.
    pub(super) name: Arc<str>,
    /// `topic`: the topic whose messages are pushed.
    pub(super) topic: Arc<str>,
    /// `methods`: only messages with one of these methods are pushed; `None` pushes every message.
    pub(super) methods: Option<BTreeSet<Arc<str>>>,
    /// `protocol`: the request of a push and its timeouts.
    pub(super) protocol: ProtocolConfig,
    /// `worker_num`: number of threads that push, and so the maximum number of concurrent pushes.
    pub(super) worker_num: NonZeroUsize,
    /// `window_size`: maximum number of messages pushed and not done, over all partitions.
    pub(super) window_size: NonZeroUsize,
    /// `max_commit_gap`: maximum number of messages of one partition that are read and not stored as done: those
    /// queued, pushed, or done ahead of one that is not done.
    pub(super) max_commit_gap: NonZeroUsize,
    /// `outcomes`: what each result of an attempt means.
    pub(super) outcomes: OutcomeTable,
    /// `dead_letter_topic`: the topic of the messages that are given up; `None` drops them.
    pub(super) dead_letter_topic: Option<Arc<str>>,
    /// `tombstones`: whether messages without a value are pushed.
    pub(super) tombstones: Tombstones,
    /// `filtered`: what happens to messages whose method is not in `methods`.
    pub(super) filtered: FilteredMessages,
    /// The retry settings: `max_retry_times`, `fail_retry_interval_ms`, `max_retry_interval_ms`.
    pub(super) retry: RetryPolicy,
    /// `backend_servers`, each `host` or `host:port` as in the file.
    pub(super) backend_servers: Vec<String>,
    /// `serialize_by_key`: whether messages of one key are pushed one at a time, in order.
    pub(super) serialize_by_key: bool,
    /// `zk_offset_update_interval_sec`: longest interval between two stores of a commit point that has moved.
    pub(super) offset_update_interval: Duration,
    /// `max_in_flight_bytes`: memory of the messages from the fetch loop until they are done.
    pub(super) max_in_flight_bytes: NonZeroUsize,
    /// `waiting_queue_size`: maximum number of messages queued between fetch loop and dispatcher.
    pub(super) waiting_queue_size: NonZeroUsize,
    /// `start_from`: where reading starts in a partition without a stored offset.
    pub(super) start_from: StartFrom,
    /// `idempotency_key`: the parts of the header `Idempotency-Key`.
    pub(super) idempotency_key: IdempotencyKey,
    /// `ejection`: when a backend that fails is taken out of use.
    pub(super) ejection: EjectionConfig,
    /// `max_pushes_per_second`: limit on pushes, retries included; `None` is no limit.
    pub(super) max_pushes_per_second: Option<NonZeroU64>,
    /// `signature`: the secrets with which pushes are signed; without any they are not.
    pub(super) signing_secrets: Vec<SigningSecret>,
}

/// Whether messages without a value are pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tombstones {
    /// They are pushed, with an empty body.
    Push,
    /// They are done without a push.
    Skip,
}

/// What happens to messages whose method is not in `methods`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FilteredMessages {
    /// They are done without a push.
    Drop,
    /// They are stored in the dead-letter topic.
    DeadLetter,
}

/// Where reading starts in a partition without a stored offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StartFrom {
    /// At the oldest message that Kafka keeps.
    Earliest,
    /// At the next message that is appended.
    Latest,
}

/// Loads the main file and the file of each enabled module. Fails with all problems of all files.
pub fn load(path: &Path) -> Result<Config, Problems> {
    let mut problems = Problems::default();
    let config = main_file(Section::load(path, &mut problems), &mut problems);
    problems.or(config)
}

fn main_file(mut section: Section, problems: &mut Problems) -> Config {
    let file = section.file().to_owned();
    let log = LogConfig::from_section(&mut section, problems);
    let kafka_groups = kafka_groups(&mut section, problems);
    let has_zookeeper = section.has("zk_hosts");
    let groups = match has_zookeeper {
        true => GroupService::ZooKeeper(zookeeper(&mut section, problems)),
        false => GroupService::Kafka(kafka_groups),
    };
    let retry_interval = section.millis("zk_fail_retry_interval_ms", Some(30_000), 1..=MAX_DURATION_MS, problems);
    let broker_hosts = section.hosts("broker_hosts", false, problems);
    let engine = Engine::from_section(&mut section, problems);
    if !has_zookeeper {
        check_without_zookeeper(&mut section, broker_hosts.is_some(), engine, problems);
    }
    let kafka = engine.settings_from_section(&mut section, Role::Reads, problems);
    let admin_port = section.optional_port("admin_port", problems);
    let credentials = CredentialsFile::from_section(&mut section, problems);
    if credentials.is_some() && admin_port.is_none() {
        section.note("credentials_file", "has no effect without admin_port, where operators use it", problems);
    }
    let shutdown_grace = daemon::shutdown_grace(&mut section, problems);
    let folder = PathBuf::from(section.string("module_conf_dir", None, problems));
    let names = section.strings("module_enabled", true, problems).unwrap_or_default();
    let mut modules = Vec::new();
    for name in names {
        if is_module_name(&name) {
            let file = folder.join(format!("{name}.yaml"));
            modules.extend(module_file(&name, Section::load(&file, problems), problems));
        } else {
            let text = format!("has {name:?}, but a module is named after its file: no slash, and no leading dot");
            section.note("module_enabled", text, problems);
        }
    }
    check_dead_letters(&modules, engine, &section, problems);
    section.finish(problems);
    Config {
        file,
        log,
        groups,
        retry_interval,
        broker_hosts,
        engine,
        kafka,
        admin_port,
        credentials,
        shutdown_grace,
        modules,
    }
}

fn zookeeper(section: &mut Section, problems: &mut Problems) -> KeeperConfig {
    let hosts = section.hosts("zk_hosts", true, problems).unwrap_or_default();
    let chroot = keeper::chroot("zk_chroot", section, problems);
    let session_timeout = section.millis("zk_timeout_ms", Some(30_000), 100..=600_000, problems);
    // The original has no key for the connect timeout. A third of the session timeout leaves time to try two more
    // servers.
    let connect_timeout = session_timeout / 3;
    KeeperConfig { hosts, chroot, session_timeout, connect_timeout }
}

/// The keys may also be set beside `zk_hosts`, so that a file can be prepared for groups in Kafka.
fn kafka_groups(section: &mut Section, problems: &mut Problems) -> KafkaGroupSettings {
    let session_timeout = section.millis("session_timeout_ms", Some(30_000), 1_000..=1_800_000, problems);
    let is_given = section.has("instance_id");
    let instance_id = is_given.then(|| section.string("instance_id", None, problems));
    if let Some(id) = instance_id.as_ref().filter(|id| !broker::is_topic_name(id.as_bytes())) {
        section.note("instance_id", format!("is {id:?}, but must be {}", broker::TOPIC_NAME_RULE), problems);
    }
    KafkaGroupSettings { session_timeout, instance_id: instance_id.map(Into::into) }
}

/// Without ZooKeeper, brokers must be given, and keys of ZooKeeper would be ignored: a user might rely on them.
fn check_without_zookeeper(section: &mut Section, has_brokers: bool, engine: Engine, problems: &mut Problems) {
    if !has_brokers {
        let text = "is missing: set zk_hosts for groups in ZooKeeper, or broker_hosts for groups in Kafka";
        section.note("zk_hosts", text, problems);
    }
    if !engine.has_groups() {
        let text =
            "is \"kafka-rust\", which has no groups in Kafka: set zk_hosts for groups in ZooKeeper, or use native";
        section.note("kafka_client", text, problems);
    }
    for (key, instead) in [("zk_chroot", "remove this key"), ("zk_timeout_ms", "use session_timeout_ms")] {
        if section.take(key).is_some() {
            let text = format!("has no effect without zk_hosts, since the groups are in Kafka then: {instead}");
            section.note(key, text, problems);
        }
    }
}

/// Checks the requirements of the dead-letter topics of all modules: the engine has record headers, and the topics form
/// no cycle. A module that reads the dead-letter topic of another one may have a dead-letter topic too, but no message
/// may come back to the first.
fn check_dead_letters(modules: &[ModuleConfig], engine: Engine, section: &Section, problems: &mut Problems) {
    for module in modules {
        let Some(first) = &module.dead_letter_topic else { continue };
        if !engine.has_headers_and_timestamps() {
            let text = format!("module {} has dead_letter_topic, which needs record headers: use native", module.name);
            section.note("kafka_client", text, problems);
        }
        let mut reached = vec![first];
        let mut next = 0;
        while next < reached.len() {
            let topic = reached[next];
            let readers = modules.iter().filter(|reader| reader.topic == *topic);
            for topic in readers.filter_map(|reader| reader.dead_letter_topic.as_ref()) {
                if !reached.contains(&topic) {
                    reached.push(topic);
                }
            }
            next += 1;
        }
        // A module with its own topic as dead-letter topic is a problem of its file.
        if reached.contains(&&module.topic) && *first != module.topic {
            let text = format!("dead letters of module {} come back to its topic {}", module.name, module.topic);
            section.note("module_enabled", text, problems);
        }
    }
}

/// Whether `name` can be the name of a file, the name of a ZooKeeper node and part of a header value.
fn is_module_name(name: &str) -> bool {
    !name.starts_with('.') && name.chars().all(|character| character.is_ascii_graphic() && !"/\\\"".contains(character))
}

/// Reads the file of one module. Returns `None` only after it has added a problem.
fn module_file(name: &str, mut section: Section, problems: &mut Problems) -> Option<ModuleConfig> {
    let is_given = section.has("topic");
    let topic = section.string("topic", None, problems);
    if is_given && !broker::is_topic_name(topic.as_bytes()) {
        section.note("topic", format!("is {topic:?}, but must be {}", broker::TOPIC_NAME_RULE), problems);
    }
    let methods =
        section.strings("methods", false, problems).map(|methods| methods.into_iter().map(Arc::from).collect());
    let has_tls = section.is_map_with("protocol", "tls");
    let protocol = match section.section("protocol", true, problems) {
        Some(inner) => protocol::from_section(inner, problems),
        None => None,
    };
    let worker_num = section.count("worker_num", Some(100), 10_000, problems);
    let window_size = section.count("window_size", Some(200), 1_000_000, problems);
    let max_commit_gap = section.count("max_commit_gap", Some(10_000), 10_000_000, problems);
    let retry = retry(&mut section, problems);
    let (outcomes, dead_letter_topic) = outcomes(&mut section, &topic, problems);
    let mut choices = [("push", Tombstones::Push), ("skip", Tombstones::Skip)];
    // The first is the default. A tombstone has no method.
    if methods.is_some() {
        choices.reverse();
    }
    let tombstones = section.choice("tombstones", &choices, problems);
    let choices = [("drop", FilteredMessages::Drop), ("dead_letter", FilteredMessages::DeadLetter)];
    let filtered = section.choice("filtered", &choices, problems);
    if filtered == FilteredMessages::DeadLetter && dead_letter_topic.is_none() {
        section.note("filtered", "is dead_letter, which needs dead_letter_topic", problems);
    }
    let backend_servers = section.strings("backend_servers", true, problems).unwrap_or_default();
    let default_tls = backends::check(&section, &backend_servers, has_tls, problems);
    let serialize_by_key = section.boolean("serialize_by_key", true, problems);
    // Accepted so that files of the original load unchanged. The original passed the value to its Kafka client;
    // ktransfer does not use it.
    section.integer("expected_processing_time_ms", Some(100), 0..=i64::MAX, problems);
    let seconds = section.integer("zk_offset_update_interval_sec", Some(10), 1..=3600, problems);
    let waiting_queue_size = section.count("waiting_queue_size", Some(256), 1_000_000, problems);
    let max_in_flight_bytes = section.count("max_in_flight_bytes", Some(256 << 20), 1 << 40, problems);
    let starts = [("earliest", StartFrom::Earliest), ("latest", StartFrom::Latest)];
    let start_from = section.choice("start_from", &starts, problems);
    let keys = [("timestamp", IdempotencyKey::Timestamp), ("offset", IdempotencyKey::Offset)];
    let idempotency_key = section.choice("idempotency_key", &keys, problems);
    let ejection = ejection::from_section(section.section("ejection", false, problems), problems);
    let signing_secrets = signature::from_section(section.section("signature", false, problems), problems);
    if let Some(protocol) = protocol.as_ref().filter(|_| !signing_secrets.is_empty()) {
        signature::check_headers(&protocol.headers, &section, problems);
    }
    let pushes = section.optional_integer("max_pushes_per_second", 1..=MAX_PUSHES_PER_SECOND, problems);
    let max_pushes_per_second = pushes.and_then(|pushes| NonZeroU64::new(pushes.unsigned_abs()));
    section.finish(problems);
    Some(ModuleConfig {
        name: name.into(),
        topic: topic.into(),
        methods,
        protocol: protocol.map(|protocol| ProtocolConfig { tls: protocol.tls.or(default_tls), ..protocol })?,
        worker_num,
        window_size,
        max_commit_gap,
        outcomes,
        dead_letter_topic,
        tombstones,
        filtered,
        retry,
        backend_servers,
        serialize_by_key,
        offset_update_interval: Duration::from_secs(seconds.unsigned_abs()),
        max_in_flight_bytes,
        waiting_queue_size,
        start_from,
        idempotency_key,
        ejection,
        max_pushes_per_second,
        signing_secrets,
    })
}

fn retry(section: &mut Section, problems: &mut Problems) -> RetryPolicy {
    let times = section.integer("max_retry_times", Some(-1), -1..=i64::from(u32::MAX), problems);
    let first_pause = section.millis("fail_retry_interval_ms", Some(200), 1..=MAX_DURATION_MS, problems);
    let first_ms = u64::try_from(first_pause.as_millis()).unwrap_or(MAX_DURATION_MS);
    let default = first_ms.max(DEFAULT_MAX_PAUSE_MS);
    let max_pause = section.millis("max_retry_interval_ms", Some(default), 1..=MAX_DURATION_MS, problems);
    if max_pause < first_pause {
        let text =
            format!("is {}, but must not be below fail_retry_interval_ms, which is {first_ms}", max_pause.as_millis());
        section.note("max_retry_interval_ms", text, problems);
    }
    RetryPolicy { first_pause, max_pause, max_retry_times: u32::try_from(times).ok() }
}

/// Reads `outcomes` and `dead_letter_topic`; `topic` is the topic of the module.
fn outcomes(section: &mut Section, topic: &str, problems: &mut Problems) -> (OutcomeTable, Option<Arc<str>>) {
    let mut table = OutcomeTable::default();
    if let Some(value) = section.take("outcomes") {
        match OutcomeTable::from_yaml(&value) {
            Ok(read) => table = read,
            Err(found) => found.into_iter().for_each(|(entry, text)| {
                let key = if entry.is_empty() { "outcomes".to_owned() } else { format!("outcomes.{entry}") };
                section.note(&key, text, problems);
            }),
        }
    }
    if !section.has("dead_letter_topic") {
        if table.has(Outcome::DeadLetter) {
            section.note("outcomes", "has dead_letter, which needs dead_letter_topic", problems);
        }
        return (table, None);
    }
    let dead_letter_topic = section.string("dead_letter_topic", None, problems);
    if !broker::is_topic_name(dead_letter_topic.as_bytes()) {
        let text = format!("is {dead_letter_topic:?}, but must be {}", broker::TOPIC_NAME_RULE);
        section.note("dead_letter_topic", text, problems);
    } else if dead_letter_topic == topic {
        section.note("dead_letter_topic", "is the topic of the module: each dead letter would be pushed", problems);
    }
    (table, Some(dead_letter_topic.into()))
}

#[cfg(test)]
impl Config {
    /// The names of the modules that are enabled.
    pub(crate) fn module_names(&self) -> impl Iterator<Item = &str> {
        self.modules.iter().map(|module| &*module.name)
    }
}

#[cfg(test)]
mod tests;
