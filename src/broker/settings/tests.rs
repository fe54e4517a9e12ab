use super::*;
use crate::broker::Engine;

const WRITES: Role = Role::Writes { timeout: Duration::from_secs(30) };

/// Reads the lines of a `kafka` map: the settings, and the problems as `key: text`.
fn take(lines: &str, engine: Engine, role: Role) -> (KafkaSettings, Vec<String>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let indented: String = lines.lines().map(|line| format!("  {line}\n")).collect();
    std::fs::write(file.path(), format!("kafka:\n{indented}")).unwrap();
    let mut problems = Problems::default();
    let mut section = Section::load(file.path(), &mut problems);
    let settings = engine.settings_from_section(&mut section, role, &mut problems);
    (settings, problems.0.iter().map(|problem| format!("{}: {}", problem.key, problem.text)).collect())
}

/// Fails unless each case yields exactly one problem, and its text contains all the words of the case.
fn assert_refused(engine: Engine, role: Role, cases: &[(&str, &[&str])]) {
    for (lines, words) in cases {
        let (_, problems) = take(lines, engine, role);
        assert_eq!(problems.len(), 1, "{role:?} {lines:?}: {problems:?}");
        for word in *words {
            assert!(problems[0].contains(word), "{role:?} {lines:?}: {problems:?} has no {word:?}");
        }
        assert!(!problems[0].contains("topsecret"), "{problems:?}");
    }
}

#[test]
fn a_value_that_is_no_scalar_and_a_secret_that_is_no_string_are_refused() {
    for role in [WRITES, Role::Reads] {
        assert_refused(
            Engine::Auto,
            role,
            &[
                ("sasl.password: [topsecret]", &["kafka.sasl.password: must be a string"]),
                ("sasl:\n  password: topsecret", &["kafka.sasl: must be", "write a dotted name as one key"]),
                ("sasl.password:", &["kafka.sasl.password: has no value"]),
                ("client.id: ''", &["kafka.client.id: is empty"]),
                ("client.id: \"a\\0b\"", &["kafka.client.id: contains a zero byte"]),
                ("sasl.password: 0x10", &["kafka.sasl.password: must be a string: put it in quotes"]),
                ("socket.timeout.ms: 1.5", &["kafka.socket.timeout.ms: must be"]),
                ("5: a", &["kafka.5: unknown key"]),
            ],
        );
    }
}

#[test]
fn settings_that_would_break_a_guarantee_are_refused_with_the_reason() {
    assert_refused(
        Engine::Auto,
        WRITES,
        &[
            ("bootstrap.servers: a:1", &["kafka.bootstrap.servers: may not be set", "broker_hosts"]),
            ("metadata.broker.list: a:1", &["kafka.metadata.broker.list: may not be set", "broker_hosts"]),
            ("acks: 1", &["kafka.acks", "each commit"]),
            ("max.in.flight: 5", &["kafka.max.in.flight: may not be set", "order"]),
            ("delivery.timeout.ms: 1", &["kafka.delivery.timeout.ms", "commit_timeout_ms"]),
            ("message.max.bytes: 5000", &["max_request_size_bytes"]),
            ("retries: 0", &["kafka.retries", "commit_timeout_ms"]),
            ("dr_msg_cb: x", &["kafka.dr_msg_cb", "in a file"]),
            ("group.id: x", &["kafka.group.id: is a consumer setting, but kproxy only produces"]),
            ("plugin.library.paths: x", &["foreign code"]),
        ],
    );
    assert_refused(
        Engine::Auto,
        Role::Reads,
        &[
            ("group.id: x", &["kafka.group.id: may not be set", "ZooKeeper"]),
            ("enable.auto.commit: true", &["ZooKeeper"]),
            ("auto.offset.reset: latest", &["start_from"]),
            ("receive.message.max.bytes: 5000", &["64 MiB"]),
            ("acks: 1", &["kafka.acks: is a producer setting, but this daemon only consumes"]),
        ],
    );
    let (_, problems) = take("receive.message.max.bytes: 5000", Engine::Auto, WRITES);
    assert_eq!(problems, ["kafka.receive.message.max.bytes: not needed: responses to a producer are small"]);
}

#[test]
fn settings_without_effect_are_refused() {
    assert_refused(
        Engine::Auto,
        WRITES,
        &[
            ("sasl.password: topsecret", &["kafka.sasl.password: needs security.protocol: sasl"]),
            ("security.protocol: ssl\nsasl.username: topsecret", &["kafka.sasl.username: needs"]),
            ("security.protocol: sasl_plaintext\nssl.ca.pem: topsecret", &["kafka.ssl.ca.pem: needs"]),
            (
                "security.protocol: SASL_SSL\nsasl.mechanism: OAUTHBEARER",
                &["kafka.sasl.mechanism: is OAUTHBEARER", "oidc"],
            ),
            (
                "security.protocol: ssl\nssl.ca.location: /nowhere/ca.pem",
                &["kafka.ssl.ca.location: is \"/nowhere/ca.pem\"", "No such file"],
            ),
        ],
    );
}

#[test]
fn kafka_rust_refuses_the_settings_it_does_not_have() {
    assert_refused(
        Engine::KafkaRust,
        WRITES,
        &[
            ("security.protocol: ssl", &["kafka.security.protocol: needs kafka_client: native"]),
            ("linger.ms: 5", &["kafka.linger.ms: needs kafka_client: native"]),
            ("compression.type: zstd", &["kafka.compression.type: is \"zstd\"", "gzip"]),
            ("compression.codec: lz4", &["kafka.compression.codec: is \"lz4\"", "snappy"]),
        ],
    );
    assert_refused(Engine::KafkaRust, Role::Reads, &[("compression.type: gzip", &["needs kafka_client: native"])]);
    for kind in ["none", "gzip", "snappy"] {
        let (settings, problems) =
            take(&format!("compression.codec: {kind}\nclient.id: me"), Engine::KafkaRust, WRITES);
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!((settings.get("compression.type"), settings.get("client.id")), (Some(kind), Some("me")));
    }
}

#[test]
fn a_setting_under_two_of_its_names_is_refused_and_debug_output_hides_secrets() {
    let lines = "security.protocol: sasl_ssl\nsasl.mechanism: PLAIN\nsasl.mechanisms: PLAIN\n\
        sasl.username: user-name\nsasl.password: topsecret";
    let (settings, problems) = take(lines, Engine::Auto, WRITES);
    assert_eq!(problems, ["kafka.sasl.mechanisms: is the same setting as sasl.mechanism"]);
    let shown = format!("{settings:?}");
    assert!(shown.contains("sasl_ssl") && !shown.contains("topsecret") && !shown.contains("user-name"), "{shown}");
    for (name, secret) in [
        ("sasl.password", true),
        ("ssl.key.password", true),
        ("ssl.key.pem", true),
        ("ssl.keystore.password", true),
        ("sasl.oauthbearer.config", true),
        ("sasl.oauthbearer.client.secret", true),
        ("sasl.oauthbearer.assertion.private.key.passphrase", true),
        ("sasl.jaas.config", true),
        ("ssl.ca.location", false),
        ("ssl.key.location", false),
        ("compression.type", false),
    ] {
        assert_eq!(is_secret(name), secret, "{name}");
    }
}

const OAUTHBEARER: &str = "security.protocol: sasl_plaintext\nsasl.mechanism: OAUTHBEARER\n\
    sasl.oauthbearer.method: oidc\nsasl.oauthbearer.client.id: a\nsasl.oauthbearer.client.secret: topsecret";
const SCRAM: &str =
    "security.protocol: sasl_plaintext\nsasl.mechanism: SCRAM-SHA-512\nsasl.username: a\nsasl.password: topsecret";

#[test]
fn native_takes_the_settings_that_have_an_effect() {
    let token_url = "sasl.oauthbearer.token.endpoint.url: http://nowhere.invalid/token";
    for role in [WRITES, Role::Reads] {
        for lines in [
            "security.protocol: PLAINTEXT\nclient.id: me\nbroker.address.family: v4\nsocket.keepalive.enable: 1",
            "socket.timeout.ms: 6000\nsocket.connection.setup.timeout.ms: 1000\nconnections.max.idle.ms: 0",
            "reconnect.backoff.ms: 5\nreconnect.backoff.max.ms: 5",
            "security.protocol: sasl_plaintext\nsasl.mechanisms: PLAIN\nsasl.username: a\nsasl.password: topsecret",
            SCRAM,
            &format!("{OAUTHBEARER}\n{token_url}\nsasl.oauthbearer.scope: kafka"),
            &format!("{OAUTHBEARER}\n{token_url}\nsasl.oauthbearer.extensions: a=b,c=d=e"),
        ] {
            let (_, problems) = take(lines, Engine::Native, role);
            assert!(problems.is_empty(), "{role:?} {lines:?}: {problems:?}");
        }
    }
    for kind in ["none", "gzip", "snappy", "LZ4", "zstd"] {
        let (_, problems) =
            take(&format!("compression.codec: {kind}\nlinger.ms: 5\nretry.backoff.ms: 5000"), Engine::Native, WRITES);
        assert!(problems.is_empty(), "{kind}: {problems:?}");
    }
}

#[test]
fn native_names_key_value_and_what_is_allowed() {
    for role in [WRITES, Role::Reads] {
        assert_refused(
            Engine::Native,
            role,
            &[
                ("security.protcol: ssl", &["kafka.security.protcol: is not a setting of this client"]),
                ("security.protocol: tls", &["kafka.security.protocol: is \"tls\"", "ssl, sasl_plaintext or sasl_ssl"]),
                ("socket.timeout.ms: 1", &["kafka.socket.timeout.ms: is \"1\"", "a whole number from 10 to 300000"]),
                ("socket.keepalive.enable: false", &["kafka.socket.keepalive.enable: is \"false\"", "must be true"]),
                (
                    "security.protocol: ssl\nenable.ssl.certificate.verification: maybe",
                    &["kafka.enable.ssl.certificate.verification: is \"maybe\"", "true or false"],
                ),
                ("client.id: \"a\\nb\"", &["kafka.client.id", "without control characters"]),
                ("socket.max.fails: 5", &["kafka.socket.max.fails: not needed: a connection"]),
                ("reconnect.backoff.ms: 20\nreconnect.backoff.max.ms: 10", &["kafka.reconnect.backoff.ms: is 20, but"]),
                ("sasl.kerberos.keytab: a\nsecurity.protocol: sasl_ssl\nsasl.mechanism: PLAIN", &["Kerberos"]),
            ],
        );
    }
    let producer: &[&str] = &["is a producer setting"];
    assert_refused(Engine::Native, Role::Reads, &[("compression.codec: zstd", producer), ("linger.ms: 5", producer)]);
    assert_refused(
        Engine::Native,
        WRITES,
        &[
            ("client.rack: a", &["kafka.client.rack: is a consumer setting"]),
            ("linger.ms: 40000", &["kafka.linger.ms: is 40000", "less than commit_timeout_ms, which is 30000"]),
            ("compression.type: brotli", &["kafka.compression.type: is \"brotli\"", "snappy, lz4 or zstd"]),
            ("compression.level: 9", &["kafka.compression.level: not supported"]),
        ],
    );
}

#[test]
fn native_refuses_security_that_is_incomplete_or_without_effect() {
    let token_url = "sasl.oauthbearer.token.endpoint.url: localhost/topsecret";
    for role in [WRITES, Role::Reads] {
        assert_refused(
            Engine::Native,
            role,
            &[
                ("security.protocol: sasl_ssl", &["kafka.security.protocol: needs sasl.mechanism", "SCRAM-SHA-512"]),
                (
                    "security.protocol: sasl_ssl\nsasl.mechanism: SCRAM-SHA-512\nsasl.username: a",
                    &["kafka.sasl.mechanism: is \"SCRAM-SHA-512\", which needs sasl.password"],
                ),
                (
                    "security.protocol: sasl_ssl\nsasl.mechanism: GSSAPI",
                    &["kafka.sasl.mechanism: is \"GSSAPI\", but must be PLAIN", "Kerberos"],
                ),
                (
                    &format!("{SCRAM}\nhttps.ca.pem: topsecret"),
                    &["kafka.https.ca.pem: needs sasl.mechanism: OAUTHBEARER"],
                ),
                (&format!("{SCRAM}\nsasl.oauthbearer.scope: a"), &["kafka.sasl.oauthbearer.scope: needs"]),
                (OAUTHBEARER, &["kafka.sasl.mechanism: is \"OAUTHBEARER\"", "sasl.oauthbearer.token.endpoint.url"]),
                (&format!("{OAUTHBEARER}\n{token_url}"), &["token.endpoint.url: must be a URL"]),
                (
                    "security.protocol: ssl\nssl.key.pem: topsecret",
                    &["kafka.ssl.key.pem: needs ssl.certificate.location or ssl.certificate.pem"],
                ),
                (
                    "security.protocol: ssl\nssl.key.password: topsecret",
                    &["kafka.ssl.key.password: not", "openssl pkey"],
                ),
                ("security.protocol: ssl\nssl.keystore.location: /etc/hosts", &["not supported", "openssl pkcs12"]),
                ("security.protocol: ssl\nssl.ca.location: /etc", &["kafka.ssl.ca.location: is \"/etc\", a folder"]),
                (
                    "security.protocol: ssl\nssl.ca.location: probe\nssl.ca.pem: topsecret",
                    &["kafka.ssl.ca.location: cannot be set together with ssl.ca.pem"],
                ),
            ],
        );
    }
}
