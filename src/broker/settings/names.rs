//! What is known of the settings of librdkafka: which have several names, which hold secrets, and which would break a
//! promise of ours.

use super::Role;

/// Several names of one setting: what is written, what we use. Two of them in one map would overrule each other at random.
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

/// Whom a setting that is refused concerns.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    All,
    Writing,
    Reading,
    /// Every client has it, and only those that read must keep ours.
    AllThatRead,
}

const ONE_ORDER: &str = "one request at a time keeps the order of messages through retries";
const COUNTED: &str = "every message must be answered for";
const QUEUES: &str = "the queue has room for req_pool_size messages of max_request_size_bytes";
const RETRIED: &str = "a message is tried again until commit_timeout_ms";
const LOOKED_UP: &str = "topics are looked up by kafka-http-wrapper itself, so that an unknown one is answered soon";
const ONCE_ONLY: &str = "acks=-1 already goes by the idempotent producer, and there are no transactions";
const NO_GROUP: &str = "partitions are shared out, and offsets kept, in ZooKeeper; Kafka's groups are not used";
const OUR_PLACE: &str = "where to read is decided by the offsets in ZooKeeper and start_from";
const PREFETCH: &str = "what is prefetched is bounded so that a message of 64 MiB can be read";
const ALL_ASKED: &str = "brokers are always asked what they speak";
const NOT_CODE: &str = "it cannot be set in a file";

/// What would break a promise, and why. A unit test sees to it that everything the engine itself sets is here, unless it is
/// meant to be changed.
const REFUSED: &[(&str, Of, &str)] = &[
    ("bootstrap.servers", Of::All, "the brokers are named by broker_hosts"),
    ("topic.blacklist", Of::All, "a topic must not vanish"),
    ("topic.metadata.refresh.interval.ms", Of::All, LOOKED_UP),
    ("topic.metadata.propagation.max.ms", Of::All, LOOKED_UP),
    ("metadata.max.age.ms", Of::All, LOOKED_UP),
    ("api.version.request", Of::All, ALL_ASKED),
    ("api.version.fallback.ms", Of::All, ALL_ASKED),
    ("broker.version.fallback", Of::All, ALL_ASKED),
    ("log_level", Of::All, "the key log_level says what is logged"),
    ("log.queue", Of::All, "the lines of librdkafka go to our log"),
    ("debug", Of::All, "such lines are not written to our log"),
    ("statistics.interval.ms", Of::All, "nobody reads these statistics; see /metrics"),
    ("internal.termination.signal", Of::All, "signals belong to the daemon"),
    ("plugin.library.paths", Of::All, "foreign code is not loaded"),
    ("enabled_events", Of::All, NOT_CODE),
    ("interceptors", Of::All, NOT_CODE),
    ("opaque", Of::All, NOT_CODE),
    ("default_topic_conf", Of::All, NOT_CODE),
    ("acks", Of::Writing, "each commit chooses it (acks=0, 1 or -1)"),
    ("enable.idempotence", Of::Writing, ONCE_ONLY),
    ("enable.gapless.guarantee", Of::Writing, ONCE_ONLY),
    ("transactional.id", Of::Writing, ONCE_ONLY),
    ("transaction.timeout.ms", Of::Writing, ONCE_ONLY),
    ("max.in.flight.requests.per.connection", Of::All, ONE_ORDER),
    ("queuing.strategy", Of::Writing, ONE_ORDER),
    ("msg_order_cmp", Of::Writing, ONE_ORDER),
    ("message.max.bytes", Of::All, "max_request_size_bytes says how large a message may be"),
    ("message.timeout.ms", Of::Writing, "commit_timeout_ms says how long a commit may take"),
    ("message.send.max.retries", Of::Writing, RETRIED),
    ("batch.size", Of::Writing, "what failed for the size of its batch is found and sent again by it"),
    ("partitioner", Of::Writing, "the key partitioner chooses it"),
    ("queue.buffering.max.messages", Of::Writing, QUEUES),
    ("queue.buffering.max.kbytes", Of::Writing, QUEUES),
    ("delivery.report.only.error", Of::Writing, COUNTED),
    ("produce.offset.report", Of::Writing, COUNTED),
    ("group.id", Of::Reading, NO_GROUP),
    ("group.instance.id", Of::Reading, NO_GROUP),
    ("group.protocol", Of::Reading, NO_GROUP),
    ("group.protocol.type", Of::Reading, NO_GROUP),
    ("group.remote.assignor", Of::Reading, NO_GROUP),
    ("partition.assignment.strategy", Of::Reading, NO_GROUP),
    ("session.timeout.ms", Of::Reading, NO_GROUP),
    ("heartbeat.interval.ms", Of::Reading, NO_GROUP),
    ("coordinator.query.interval.ms", Of::Reading, NO_GROUP),
    ("max.poll.interval.ms", Of::Reading, NO_GROUP),
    ("enable.auto.commit", Of::Reading, NO_GROUP),
    ("auto.commit.interval.ms", Of::Reading, NO_GROUP),
    ("enable.auto.offset.store", Of::Reading, NO_GROUP),
    ("offset.store.method", Of::Reading, NO_GROUP),
    ("offset.store.path", Of::Reading, NO_GROUP),
    ("offset.store.sync.interval.ms", Of::Reading, NO_GROUP),
    ("auto.offset.reset", Of::Reading, OUR_PLACE),
    ("enable.partition.eof", Of::Reading, OUR_PLACE),
    ("isolation.level", Of::Reading, "messages of aborted transactions are never pushed, and log ends count all"),
    ("check.crcs", Of::Reading, "a damaged message is never pushed"),
    ("queued.min.messages", Of::Reading, PREFETCH),
    ("queued.max.messages.kbytes", Of::Reading, PREFETCH),
    ("fetch.message.max.bytes", Of::Reading, PREFETCH),
    ("fetch.max.bytes", Of::Reading, PREFETCH),
    ("receive.message.max.bytes", Of::AllThatRead, PREFETCH),
    ("allow.auto.create.topics", Of::AllThatRead, "reading must not create a topic"),
    ("fetch.queue.backoff.ms", Of::Reading, PREFETCH),
    ("consume.callback.max.messages", Of::Reading, NOT_CODE),
];

/// Why a setting may not be in the file of a daemon with this role.
pub(in crate::broker) fn refused(name: &str, role: Role) -> Option<String> {
    if name.ends_with("_cb") {
        return Some(format!("may not be set: {NOT_CODE}"));
    }
    let (_, of, why) = REFUSED.iter().find(|(refused, _, _)| *refused == name)?;
    Some(match (of, role) {
        (Of::AllThatRead, Role::Writes { .. }) => return None,
        (Of::Reading, Role::Writes { .. }) => "is for reading, but kproxy only writes".to_owned(),
        (Of::Writing, Role::Reads) => "is for writing, but this daemon only reads".to_owned(),
        _ => format!("may not be set: {why}"),
    })
}

/// Whether the value must not be shown.
pub(in crate::broker) fn is_secret(name: &str) -> bool {
    const WORDS: [&str; 8] = ["key", "token", "password", "passphrase", "secret", "jaas", "pem", "username"];
    let is_place = name.ends_with(".location") || name.ends_with(".file");
    name == "sasl.oauthbearer.config" || (!is_place && WORDS.iter().any(|word| name.contains(word)))
}
