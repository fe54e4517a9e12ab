//! Settings of librdkafka that this engine does not take, each with the reason.
//!
//! They are refused, not ignored: a user who sets one expects an effect. The settings that no engine may take, since
//! they would break a guarantee of the daemons, are in `settings/names.rs`.

/// Names and reasons. A name that ends with a dot stands for every setting that begins with it.
#[rustfmt::skip]
pub(super) const DECLINED: &[(&str, &str)] = &[
    ("builtin.features", "not needed: docs/kafka.md lists what this client has"),
    // Security.
    ("ssl.key.password", ENCRYPTED_KEY),
    ("ssl.keystore.location", KEYSTORE),
    ("ssl.keystore.password", KEYSTORE),
    ("ssl.crl.location", "not supported: certificates are not looked up in revocation lists"),
    ("ssl.cipher.suites", SUITES),
    ("ssl.curves.list", SUITES),
    ("ssl.sigalgs.list", SUITES),
    ("ssl.ca.certificate.stores", "not supported: it is for Windows"),
    ("ssl.providers", NO_OPENSSL),
    ("ssl.engine.location", NO_OPENSSL),
    ("ssl.engine.id", NO_OPENSSL),
    ("sasl.kerberos.", "not supported: this client has no GSSAPI (Kerberos)"),
    ("enable.sasl.oauthbearer.unsecure.jwt", UNSIGNED_TOKENS),
    ("sasl.oauthbearer.config", UNSIGNED_TOKENS),
    ("sasl.oauthbearer.assertion.", "not supported: tokens are requested with sasl.oauthbearer.client.secret only"),
    (
        "sasl.oauthbearer.metadata.authentication.type",
        "not supported: tokens come from sasl.oauthbearer.token.endpoint.url",
    ),
    // Sockets and brokers.
    ("socket.send.buffer.bytes", "not needed: the system adapts the size of socket buffers"),
    ("socket.receive.buffer.bytes", "not needed: the system adapts the size of socket buffers"),
    ("socket.blocking.max.ms", "not needed: librdkafka ignores it, too"),
    ("socket.max.fails", "not needed: a connection is closed when a request on it fails or times out"),
    ("broker.address.ttl", "not needed: a name is looked up again after ten seconds"),
    ("client.dns.lookup", "not needed: all addresses of a name are tried"),
    ("reconnect.backoff.jitter.ms", "not needed: the back-off always has jitter"),
    ("api.version.request.timeout.ms", "not needed: socket.connection.setup.timeout.ms includes this request"),
    ("metadata.recovery.strategy", BOOTSTRAP),
    ("metadata.recovery.rebootstrap.trigger.ms", BOOTSTRAP),
    ("topic.metadata.refresh.fast.interval.ms", "not needed: a metadata request is repeated after 50 ms to 1 s"),
    ("topic.metadata.refresh.fast.cnt", "not needed: librdkafka ignores it, too"),
    ("topic.metadata.refresh.sparse", "not needed: only the topics in use are requested"),
    ("log.thread.name", LOG),
    ("log.connection.close", LOG),
    ("enable.random.seed", "not needed: random numbers come from the system"),
    ("enable.metrics.push", "not needed: the client sends no metrics to brokers; see /metrics"),
    // Producer.
    ("compression.level", "not supported: each codec has one level, chosen for speed"),
    ("batch.num.messages", BATCHES),
    ("queue.buffering.backpressure.threshold", BATCHES),
    (
        "sticky.partitioning.linger.ms",
        "not needed: the client itself spreads messages without a key over the partitions",
    ),
    ("receive.message.max.bytes", "not needed: responses to a producer are small"),
    ("message.copy.max.bytes", "not needed: the client has no such buffer"),
    // Consumer.
    ("fetch.min.bytes", "not supported: a broker responds as soon as it has a message"),
    ("fetch.error.backoff.ms", "not needed: the pause after an error grows from 100 ms to 400 ms"),
];

const ENCRYPTED_KEY: &str = "not supported: decrypt the key with `openssl pkey -in KEY -out NEW_KEY` into a file that \
                             only the daemon can read, and leave this setting out";
const KEYSTORE: &str = "not supported: convert the store with `openssl pkcs12 -in STORE -nodes -out FILE` and set \
                        ssl.certificate.location and ssl.key.location to that file";
const SUITES: &str = "not needed: only TLS 1.2 and 1.3 with algorithms that are considered secure are used";
const NO_OPENSSL: &str = "not needed: this client does not use OpenSSL";
const UNSIGNED_TOKENS: &str = "not supported: unsigned tokens are for tests only; use sasl.oauthbearer.method: oidc";
const BOOTSTRAP: &str = "not needed: the client returns to broker_hosts when no other broker responds";
const LOG: &str = "not needed: it is about the log lines of librdkafka";
const BATCHES: &str = "not needed: the messages that gather while a request is in flight go out together in the next";

/// Returns the reason for which the setting with this canonical name is not taken; `None` if it is not in the table.
pub(super) fn reason(name: &str) -> Option<&'static str> {
    let is_meant = |listed: &str| listed == name || (listed.ends_with('.') && name.starts_with(listed));
    DECLINED.iter().find(|(listed, _)| is_meant(listed)).map(|(_, reason)| *reason)
}
