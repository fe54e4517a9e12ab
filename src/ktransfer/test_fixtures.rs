//! For unit tests: a module `m` of topic `t`, its context, and a job of this module.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::backend_client::IdempotencyKey;
use super::backends::EjectionConfig;
use super::config::{FilteredMessages, ModuleConfig, ProtocolConfig, StartFrom, Tombstones};
use super::dead_letters::{self, Letter, ModuleLetters};
use super::group::{Claim, Generation, StoredPosition, TimedFence};
use super::job::{Assignment, Job, WindowId};
use super::metrics::Metrics;
use super::outcomes::OutcomeTable;
use super::policy::RetryPolicy;
use super::template::UriTemplate;
use super::worker_context::WorkerContext;
use crate::admin::Health;
use crate::broker::{
    AppendError, AppendFailure, Appended, Completion, Header, Message, Offset, PartitionId, Stored, TopicPartition,
};
use crate::clock::BootTime;
use crate::metrics::Registry;

/// Creates the configuration of a module that pushes to `servers`.
pub(super) fn module_config(servers: &[&str]) -> ModuleConfig {
    ModuleConfig {
        name: "m".into(),
        topic: "t".into(),
        methods: None,
        protocol: ProtocolConfig {
            uri: UriTemplate::parse("/p?key={#KEY}&transid={#TRANSID}&method={#METHOD}").unwrap(),
            headers: vec![
                ("Host".into(), "www.example.org".into()),
                ("X-Two".into(), "a".into()),
                ("X-Two".into(), "b".into()),
            ],
            connect_timeout: Some(Duration::from_secs(5)),
            write_timeout: Some(Duration::from_secs(5)),
            read_timeout: Some(Duration::from_millis(500)),
            tls: None,
        },
        worker_num: NonZeroUsize::new(8).unwrap(),
        window_size: NonZeroUsize::new(20).unwrap(),
        max_commit_gap: NonZeroUsize::new(10_000).unwrap(),
        retry: RetryPolicy {
            first_pause: Duration::from_millis(10),
            max_pause: Duration::from_millis(40),
            max_retry_times: None,
        },
        outcomes: OutcomeTable::default(),
        dead_letter_topic: None,
        tombstones: Tombstones::Push,
        filtered: FilteredMessages::Drop,
        backend_servers: servers.iter().map(|server| (*server).to_owned()).collect(),
        serialize_by_key: true,
        offset_update_interval: Duration::from_secs(1),
        max_in_flight_bytes: NonZeroUsize::new(64 << 20).unwrap(),
        waiting_queue_size: NonZeroUsize::new(256).unwrap(),
        start_from: StartFrom::Earliest,
        idempotency_key: IdempotencyKey::Timestamp,
        ejection: EjectionConfig {
            failures: Some(5),
            rate: None,
            interval: Duration::from_millis(40),
            max_interval: Duration::from_millis(200),
            slow_start: Duration::from_millis(50),
            count_5xx: true,
        },
        max_pushes_per_second: None,
        signing_secrets: Vec::new(),
    }
}

/// Creates a claim whose fence is valid for a minute.
pub(super) fn claim(partition: PartitionId, generation: u64, position: Option<Offset>) -> Claim {
    Claim {
        partition,
        generation: Generation(generation),
        fence: TimedFence::until(BootTime::now() + Duration::from_secs(60)),
        token: generation,
        position: position.map(StoredPosition::at),
    }
}

/// Creates the worker context of a module with this `config`. Its metrics are in `registry`.
pub(super) fn worker_context(config: ModuleConfig, registry: &Registry) -> WorkerContext {
    let metrics = Metrics::new(registry).of_module(&config.name, &config.topic);
    WorkerContext::new(config, metrics, None)
}

/// Creates the worker context of a module with dead letters; the letters to be stored arrive at the receiver.
pub(super) fn context_with_letters(config: ModuleConfig, registry: &Registry) -> (WorkerContext, Receiver<Letter>) {
    let mut context = worker_context(config, registry);
    let (sender, letters) = dead_letters::channel();
    let (module, health) = (Arc::clone(&context.config.name), Health::new().component("dead letters of m"));
    context.dead_letters = Some(ModuleLetters::new(sender, module, "dead".into(), context.metrics.clone(), health));
    (context, letters)
}

/// Completes a letter as stored, or as not stored.
pub(super) fn complete(letter: Letter, is_stored: bool) {
    let failure = || AppendError { kind: AppendFailure::UnknownTopic, stored: Stored::No, reason: "gone".to_owned() };
    let stored = Appended { partition: 0, offset: Some(0) };
    letter.completion.complete(if is_stored { Ok(stored) } else { Err(failure()) });
}

/// Record headers for [`job`]. A backend receives `trace`, `null` (empty) and `utf8`; the others have a name or value
/// that HTTP does not allow, or are too long.
pub(super) const RECORD_HEADERS: &[(&str, Option<&[u8]>)] = &[
    ("trace", Some(b"a b/c")),
    ("null", None),
    ("bad name", Some(b"x")),
    ("bad-value", Some(b"x\r\ny: z")),
    ("long", Some(&[b'x'; 9000])),
    ("utf8", Some("\u{e9}".as_bytes())),
];

/// Creates a job for a message at offset 42 of partition 3, under a claim that has not ended.
pub(super) fn job(key: Option<&[u8]>, value: Option<&[u8]>, headers: &[(&str, Option<&[u8]>)]) -> Job {
    let header = |(name, value): &(&str, Option<&[u8]>)| Header { name: (*name).into(), value: value.map(Into::into) };
    Job {
        assignment: Arc::new(Assignment::new(&claim(3, 1, None))),
        window: WindowId(1),
        message: Message {
            from: TopicPartition { topic: "t".into(), partition: 3 },
            offset: 42,
            key: key.map(Into::into),
            value: value.map(Into::into),
            headers: headers.iter().map(header).collect(),
            timestamp_ms: Some(1_700_000_000_123),
        },
        method: None,
        unpushable: None,
        _memory: None,
    }
}
