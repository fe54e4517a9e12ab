//! The default engine: librdkafka through the rdkafka crate.
//!
//! What all three parts share: the settings every client gets and the voice it logs with. librdkafka reconnects
//! and retries inside; this engine adds what the seam promises beyond that (an unknown topic is answered soon,
//! nothing waits for a broker that is not there, an offset that is gone names its partition).

mod asking;
mod batches;
mod fetcher;
mod log_ends;
mod native;
mod outcome;
mod producer;
mod validate;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use log::{Level, log};
use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::{BrokerConfig, KafkaSettings};
use crate::locks::lock;

pub(super) use fetcher::LibrdkafkaFetcher;
pub(super) use log_ends::LibrdkafkaLogEnds;
pub(super) use producer::LibrdkafkaProducer;
pub(super) use validate::validate;

/// Lines logged for one client in [`QUIET_FOR`]; an unreachable broker would write several a second.
const MAX_LINES: u32 = 4;
const QUIET_FOR: Duration = Duration::from_secs(30);
/// Lines and errors of a client that only asks, taken in after each question; librdkafka gives out one at a time.
const EVENTS_SERVED: usize = 32;

/// What every client of this engine is told, before the `kafka` map.
fn common_settings(broker: &BrokerConfig) -> ClientConfig {
    let connect_ms = broker.request_timeout.as_millis().clamp(1_000, 30_000);
    let mut settings = ClientConfig::new();
    settings
        .set("bootstrap.servers", broker.hosts.join(","))
        .set("client.id", &broker.client_id)
        .set("socket.keepalive.enable", "true")
        .set("socket.connection.setup.timeout.ms", connect_ms.to_string())
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000")
        .set("log.connection.close", "false")
        .set_log_level(RDKafkaLogLevel::Info);
    settings
}

/// The `kafka` map, after what we set ourselves: what must stay ours is refused at load.
fn set_the_users(settings: &mut ClientConfig, broker: &BrokerConfig) {
    for (name, value) in broker.settings.iter() {
        settings.set(name, value);
    }
}

fn in_words(error: &KafkaError) -> String {
    error.rdkafka_error_code().map_or_else(|| error.to_string(), |code| code.to_string())
}

/// Writes what a client says to the log, at most a few lines in a while, and remembers why it has no connection.
struct Voice {
    name: &'static str,
    /// What a line may not show.
    settings: KafkaSettings,
    said: Mutex<Said>,
    /// The last trouble with a connection that more than waiting may be needed for.
    trouble: Mutex<Option<Trouble>>,
}

struct Said {
    since: Instant,
    lines: u32,
}

/// What librdkafka said of a connection, and when.
struct Trouble {
    since: Instant,
    words: String,
}

impl Voice {
    fn new(name: &'static str, broker: &BrokerConfig) -> Self {
        let said = Mutex::new(Said { since: Instant::now(), lines: 0 });
        Voice { name, settings: broker.settings.clone(), said, trouble: Mutex::default() }
    }

    /// Adds to `what` failed the reason that is known, unless it is old.
    fn with_trouble(&self, what: String) -> String {
        let trouble = lock(&self.trouble);
        match &*trouble {
            Some(trouble) if trouble.since.elapsed() < QUIET_FOR => format!("{what} ({})", trouble.words),
            _ => what,
        }
    }

    /// A connection works: what was said before is over.
    fn forget_trouble(&self) {
        *lock(&self.trouble) = None;
    }

    fn note_trouble(&self, code: RDKafkaErrorCode, reason: &str) {
        let what = match code {
            RDKafkaErrorCode::Authentication => "authentication failed",
            RDKafkaErrorCode::SSL => "TLS failed",
            RDKafkaErrorCode::Resolve => "the host name cannot be resolved",
            _ => return,
        };
        let words = format!("{what}: {}", self.settings.hide(reason));
        *lock(&self.trouble) = Some(Trouble { since: Instant::now(), words });
    }

    fn say(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        let level = match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => Level::Error,
            // What librdkafka calls an error it tries again by itself.
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => Level::Warn,
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => Level::Info,
            RDKafkaLogLevel::Debug => Level::Debug,
        };
        let mut said = lock(&self.said);
        if said.since.elapsed() > QUIET_FOR {
            let left_out = said.lines.saturating_sub(MAX_LINES);
            *said = Said { since: Instant::now(), lines: 0 };
            if left_out > 0 {
                log!(target: "librdkafka", level, "{}: {left_out} more lines suppressed", self.name);
            }
        }
        said.lines += 1;
        if said.lines <= MAX_LINES {
            log!(target: "librdkafka", level, "{} {facility}: {}", self.name, self.settings.hide(line));
        }
    }
}

impl ClientContext for Voice {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.say(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.note_trouble(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown), reason);
        self.say(RDKafkaLogLevel::Error, &in_words(&error), reason);
    }
}

impl ConsumerContext for Voice {}

/// A context with a voice in it.
trait HasVoice {
    fn voice(&self) -> &Voice;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::settings::refused;
    use crate::broker::{Acks, FetcherConfig, PartitionerKind, ProducerConfig, Role};

    /// What we set as well and users may change: no promise depends on it.
    const MAY_BE_CHANGED: [&str; 11] = [
        "client.id",
        "socket.keepalive.enable",
        "socket.connection.setup.timeout.ms",
        "reconnect.backoff.ms",
        "reconnect.backoff.max.ms",
        "log.connection.close",
        "linger.ms",
        "sticky.partitioning.linger.ms",
        "retry.backoff.ms",
        "fetch.error.backoff.ms",
        "fetch.wait.max.ms",
    ];

    #[test]
    fn what_we_set_is_refused_from_users_or_meant_to_be_changed() {
        let broker = BrokerConfig {
            hosts: vec!["a:1".into()],
            engine: Default::default(),
            client_id: "t".into(),
            request_timeout: Duration::from_secs(5),
            settings: Default::default(),
        };
        let timeout = Duration::from_secs(30);
        let partitioner = PartitionerKind::Fnv1a;
        let writing = ProducerConfig { partitioner, max_message_bytes: 1_000, max_in_flight: 10, timeout };
        let reading = FetcherConfig { prefetch_bytes: 1 << 20, max_message_bytes: 1_000 };
        let all = [
            (Role::Writes { timeout }, producer::settings(&broker, &writing, Acks::All)),
            (Role::Reads, fetcher::settings(&broker, &reading)),
        ];
        for (role, settings) in all {
            for name in settings.config_map().keys().copied() {
                let is_free = MAY_BE_CHANGED.contains(&name);
                assert_eq!(refused(name, role).is_none(), is_free, "{role:?} {name}");
            }
        }
    }
}
