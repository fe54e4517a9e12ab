//! Facts about librdkafka's settings: which have several names, which hold secrets, and which would break a guarantee
//! of the daemons.

/// Settings with several names, as (alias, canonical name). If one map had both names, it would be unclear which
/// value counts.
pub(super) const ALIASES: [(&str, &str); 12] = [
    ("metadata.broker.list", "bootstrap.servers"),
    ("max.in.flight", "max.in.flight.requests.per.connection"),
    ("sasl.mechanism", "sasl.mechanisms"),
    ("sasl.oauthbearer.client.credentials.client.id", "sasl.oauthbearer.client.id"),
    ("sasl.oauthbearer.client.credentials.client.secret", "sasl.oauthbearer.client.secret"),
    ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
    ("queue.buffering.max.ms", "linger.ms"),
    ("retries", "message.send.max.retries"),
    ("compression.codec", "compression.type"),
    ("request.required.acks", "acks"),
    ("delivery.timeout.ms", "message.timeout.ms"),
    ("auto.commit.enable", "enable.auto.commit"),
];

/// The clients that a refused setting applies to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Refused in every daemon.
    Any,
    /// A setting of producers only.
    Producer,
    /// A setting of consumers only.
    Consumer,
    /// A setting of every client, refused in consumers only.
    FixedInConsumer,
}

const ONE_IN_FLIGHT: &str = "one request in flight per connection keeps the order of messages through retries";
const REPORTED: &str = "every message needs a delivery report with its offset";
const QUEUES: &str = "the queue is sized for req_pool_size messages of max_request_size_bytes";
const RETRIED: &str = "a message is retried until commit_timeout_ms";
const LOOKED_UP: &str = "kafka-http-wrapper looks topics up itself, so that a commit to an unknown topic fails quickly";
const IDEMPOTENT: &str = "acks=-1 always uses the idempotent producer, and transactions are not supported";
const NO_GROUP: &str = "partitions are assigned and offsets stored in ZooKeeper; Kafka consumer groups are not used";
const START_OFFSET: &str = "the offsets in ZooKeeper and start_from decide where reading starts";
const PREFETCH: &str = "prefetching is bounded so that a message of 64 MiB can be read";
const API_VERSIONS: &str = "the API versions of the brokers are always requested";
pub(super) const NOT_IN_FILE: &str = "it cannot be set in a file";

/// Settings that would break a guarantee, and why. They are refused for every engine.
pub(super) const REFUSED: &[(&str, Scope, &str)] = &[
    ("bootstrap.servers", Scope::Any, "broker_hosts names the brokers"),
    ("topic.blacklist", Scope::Any, "a listed topic would seem not to exist"),
    ("topic.metadata.refresh.interval.ms", Scope::Any, LOOKED_UP),
    ("topic.metadata.propagation.max.ms", Scope::Any, LOOKED_UP),
    ("metadata.max.age.ms", Scope::Any, LOOKED_UP),
    ("api.version.request", Scope::Any, API_VERSIONS),
    ("api.version.fallback.ms", Scope::Any, API_VERSIONS),
    ("broker.version.fallback", Scope::Any, API_VERSIONS),
    ("log_level", Scope::Any, "the daemon's own key log_level sets what is logged"),
    ("log.queue", Scope::Any, "the log lines of the Kafka client already go to the daemon's log"),
    ("debug", Scope::Any, "debug lines of the Kafka client are not logged"),
    ("statistics.interval.ms", Scope::Any, "these statistics are not used; see /metrics"),
    ("internal.termination.signal", Scope::Any, "the daemon handles signals itself"),
    ("plugin.library.paths", Scope::Any, "plugins (foreign code) are not loaded"),
    ("enabled_events", Scope::Any, NOT_IN_FILE),
    ("interceptors", Scope::Any, NOT_IN_FILE),
    ("opaque", Scope::Any, NOT_IN_FILE),
    ("default_topic_conf", Scope::Any, NOT_IN_FILE),
    ("acks", Scope::Producer, "each commit chooses it by its parameter acks (0, 1 or -1)"),
    ("enable.idempotence", Scope::Producer, IDEMPOTENT),
    ("enable.gapless.guarantee", Scope::Producer, IDEMPOTENT),
    ("transactional.id", Scope::Producer, IDEMPOTENT),
    ("transaction.timeout.ms", Scope::Producer, IDEMPOTENT),
    ("max.in.flight.requests.per.connection", Scope::Any, ONE_IN_FLIGHT),
    ("queuing.strategy", Scope::Producer, ONE_IN_FLIGHT),
    ("msg_order_cmp", Scope::Producer, ONE_IN_FLIGHT),
    ("message.max.bytes", Scope::Any, "max_request_size_bytes is the limit of a message"),
    ("message.timeout.ms", Scope::Producer, "commit_timeout_ms is the timeout of a commit"),
    ("message.send.max.retries", Scope::Producer, RETRIED),
    ("batch.size", Scope::Producer, "the retry of messages whose batch was too large depends on it"),
    ("partitioner", Scope::Producer, "the daemon's own key partitioner sets it"),
    ("queue.buffering.max.messages", Scope::Producer, QUEUES),
    ("queue.buffering.max.kbytes", Scope::Producer, QUEUES),
    ("delivery.report.only.error", Scope::Producer, REPORTED),
    ("produce.offset.report", Scope::Producer, REPORTED),
    ("group.id", Scope::Consumer, NO_GROUP),
    ("group.instance.id", Scope::Consumer, NO_GROUP),
    ("group.protocol", Scope::Consumer, NO_GROUP),
    ("group.protocol.type", Scope::Consumer, NO_GROUP),
    ("group.remote.assignor", Scope::Consumer, NO_GROUP),
    ("partition.assignment.strategy", Scope::Consumer, NO_GROUP),
    ("session.timeout.ms", Scope::Consumer, NO_GROUP),
    ("heartbeat.interval.ms", Scope::Consumer, NO_GROUP),
    ("coordinator.query.interval.ms", Scope::Consumer, NO_GROUP),
    ("max.poll.interval.ms", Scope::Consumer, NO_GROUP),
    ("enable.auto.commit", Scope::Consumer, NO_GROUP),
    ("auto.commit.interval.ms", Scope::Consumer, NO_GROUP),
    ("enable.auto.offset.store", Scope::Consumer, NO_GROUP),
    ("offset.store.method", Scope::Consumer, NO_GROUP),
    ("offset.store.path", Scope::Consumer, NO_GROUP),
    ("offset.store.sync.interval.ms", Scope::Consumer, NO_GROUP),
    ("auto.offset.reset", Scope::Consumer, START_OFFSET),
    ("enable.partition.eof", Scope::Consumer, START_OFFSET),
    (
        "isolation.level",
        Scope::Consumer,
        "messages of aborted transactions are never pushed, and log end offsets count all messages",
    ),
    ("check.crcs", Scope::Consumer, "a corrupt message must never be pushed"),
    ("queued.min.messages", Scope::Consumer, PREFETCH),
    ("queued.max.messages.kbytes", Scope::Consumer, PREFETCH),
    ("fetch.message.max.bytes", Scope::Consumer, PREFETCH),
    ("fetch.max.bytes", Scope::Consumer, PREFETCH),
    ("receive.message.max.bytes", Scope::FixedInConsumer, PREFETCH),
    ("allow.auto.create.topics", Scope::FixedInConsumer, "reading must not create a topic"),
    ("fetch.queue.backoff.ms", Scope::Consumer, PREFETCH),
    ("consume.callback.max.messages", Scope::Consumer, NOT_IN_FILE),
];

/// Returns whether the value of a setting is a secret, which no error and no log line may show.
pub(in crate::broker) fn is_secret(name: &str) -> bool {
    const WORDS: [&str; 8] = ["key", "token", "password", "passphrase", "secret", "jaas", "pem", "username"];
    let is_path = name.ends_with(".location") || name.ends_with(".file");
    name == "sasl.oauthbearer.config" || (!is_path && WORDS.iter().any(|word| name.contains(word)))
}
