//! The `kafka:` map of the configuration, with the real daemons: TLS and SASL with a real broker, wrong passwords and
//! authorities, compression, and a list of bootstrap hosts of which most are dead. All with the engine `native`.
#![cfg(feature = "tls")]

use std::net::TcpListener;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::harness::configs::CLUSTER_NAME;
use crate::harness::secured::{Certificates, PASSWORD, USER};
use crate::harness::{
    Backend, BackendAnswer, Cluster, Daemon, Kafka, Kmonitor, Kproxy, Ktransfer, STOP_DEADLINE, cluster, configs,
    free_port, kafka_wire, unique, wait_until,
};

const DEADLINE: Duration = Duration::from_secs(60);
const WRONG_PASSWORD: &str = "not-the-password-of-alice";

/// Returns the `kafka` map for SASL_SSL with [`USER`] and a password.
fn sasl_ssl(mechanism: &str, password: &str, authority: &Path) -> Value {
    json!({
        "security.protocol": "sasl_ssl",
        "sasl.mechanism": mechanism,
        "sasl.username": USER,
        "sasl.password": password,
        "ssl.ca.location": authority,
    })
}

/// Returns the `kafka` map for SASL_SSL with OAUTHBEARER and tokens of the provider at `token_url`.
fn oauthbearer(token_url: &str, authority: &Path) -> Value {
    json!({
        "security.protocol": "sasl_ssl",
        "sasl.mechanism": "OAUTHBEARER",
        "sasl.oauthbearer.method": "oidc",
        "sasl.oauthbearer.token.endpoint.url": token_url,
        "sasl.oauthbearer.client.id": USER,
        "sasl.oauthbearer.client.secret": PASSWORD,
        "sasl.oauthbearer.scope": "kafka",
        "ssl.ca.location": authority,
    })
}

/// Starts a provider that issues tokens for [`USER`] to clients with [`PASSWORD`]. The tokens are unsigned, as the
/// broker of the stories expects.
fn token_provider() -> Backend {
    Backend::start_with(|request| {
        let credentials = base64::prelude::BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"));
        let is_client = request.header("authorization") == Some(&format!("Basic {credentials}"));
        let is_request =
            request.text().contains("grant_type=client_credentials") && request.text().contains("scope=kafka");
        if !is_client || !is_request {
            return BackendAnswer::status(401).body(br#"{"error":"invalid_client"}"#);
        }
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("the clock is after 1970").as_secs();
        let part = |json: Value| BASE64_URL_SAFE_NO_PAD.encode(json.to_string());
        let claims = part(json!({"sub": USER, "iat": now, "exp": now + 3600, "scope": "kafka"}));
        let token = format!("{}.{claims}.", part(json!({"alg": "none"})));
        let answer = json!({"access_token": token, "token_type": "Bearer", "expires_in": 3600});
        BackendAnswer::ok().header("Content-Type", "application/json").body(answer.to_string().as_bytes())
    })
}

/// Starts a kproxy for one SASL_SSL listener (`host:port`); returns when kproxy listens.
fn kproxy(secured: &str, kafka: Value) -> Kproxy {
    Kproxy::start(configs::kproxy_for(&[secured]).set("read_timeout_ms", 5000).set("kafka", kafka))
}

fn assert_no_secret(daemon: &Daemon, answers: &[String]) {
    for text in [daemon.log(), daemon.output()].iter().chain(answers) {
        assert!(!text.contains("the-password-of"), "a secret is printed: {text}");
    }
}

/// The servers of these stories: their start takes a while, and no story changes them.
struct SaslServers {
    certificates: Certificates,
    cluster: Cluster,
    /// `host:port` of the SASL_SSL listener.
    listener: String,
}

/// A cluster whose broker has a SASL_SSL listener, and a topic of the story's own.
struct SaslCluster {
    certificates: &'static Certificates,
    cluster: &'static Cluster,
    listener: &'static str,
    topic: String,
}

impl SaslCluster {
    fn new() -> SaslCluster {
        static SHARED: OnceLock<SaslServers> = OnceLock::new();
        let SaslServers { certificates, cluster, listener } = SHARED.get_or_init(|| {
            let certificates = Certificates::make();
            let (cluster, listener) = Cluster::start_secured(&certificates);
            SaslServers { certificates, cluster, listener }
        });
        SaslCluster { certificates, cluster, listener, topic: cluster.new_topic("secured", 2) }
    }

    fn with_password(&self, password: &str) -> Value {
        sasl_ssl("SCRAM-SHA-512", password, self.certificates.authority())
    }

    fn post_three(&self) {
        let mut proxy = kproxy(self.listener, self.with_password(PASSWORD));
        proxy.wait_until_ready();
        for acks in ["0", "1", "-1"] {
            let answer = proxy.post(&format!("/commit?topic={}&acks={acks}&key=k", self.topic), b"by sasl_ssl");
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        wait_until(DEADLINE, "the messages are stored", || self.cluster.messages(&self.topic).len() == 3);
        assert!(self.cluster.messages(&self.topic).iter().all(|message| message.value == b"by sasl_ssl"));
        proxy.daemon.stop(STOP_DEADLINE);
        assert_no_secret(&proxy.daemon, &[]);
    }

    /// Starts a kproxy that the broker refuses. Checks that /readyz, commits and the log name the reason, and that the
    /// answer says `"stored":"no"`.
    fn check_refused_kproxy(&self, kafka: Value, reasons: [&str; 2]) {
        let mut proxy = kproxy(self.listener, kafka);
        let has_reasons = |text: &str| reasons.iter().all(|reason| text.contains(reason));
        let readiness = wait_until(DEADLINE, "/readyz names the reason", || {
            let (status, body) = proxy.readiness();
            assert_eq!(status, 503, "{body}");
            has_reasons(&body).then_some(body)
        });
        let answer = wait_until(DEADLINE, "a commit is refused with the reason", || {
            let answer = proxy.post(&format!("/commit?topic={}", self.topic), b"x");
            assert_eq!(answer.status, 503, "{}", answer.text());
            has_reasons(&answer.text()).then_some(answer)
        });
        assert_eq!(answer.json()["stored"], "no", "{}", answer.text());
        eprintln!("refused: {}", answer.text());
        proxy.daemon.wait_for_log(reasons[1], DEADLINE);
        assert_no_secret(&proxy.daemon, &[readiness, answer.text()]);
        proxy.daemon.stop(STOP_DEADLINE);
    }
}

#[test]
fn all_three_daemons_connect_with_sasl_ssl() {
    let secured = SaslCluster::new();
    secured.post_three();
    // ktransfer and kmonitor read the address of the SASL_SSL listener from the broker's node in ZooKeeper.
    let kafka = secured.with_password(PASSWORD);
    let (module, backend) = (unique("module"), Backend::start());
    let module_file = configs::module(&secured.topic, &[backend.address()]);
    let config = configs::ktransfer(secured.cluster).set("kafka", &kafka);
    let mut transfer = Ktransfer::start(config, &[(&module, module_file)]);
    transfer.wait_until_ready();
    backend.wait_for_requests(3, DEADLINE);

    let config = configs::kmonitor(secured.cluster).set(&format!("{CLUSTER_NAME}.kafka"), kafka);
    let mut monitor = Kmonitor::start(&config);
    wait_until(DEADLINE, "the delay of every partition is 0", || {
        let delays = monitor.delay(CLUSTER_NAME, &module);
        delays.as_object().is_some_and(|delays| !delays.is_empty() && delays.values().all(|delay| *delay == 0))
    });
    for daemon in [&mut transfer.daemon, &mut monitor.daemon] {
        daemon.stop(STOP_DEADLINE);
        assert_no_secret(daemon, &[]);
    }
}

#[test]
fn a_wrong_password_or_authority_is_named_and_nothing_is_stored() {
    let secured = SaslCluster::new();
    let (authority, other_authority) = (secured.certificates.authority(), secured.certificates.other_authority());
    let failed = "authentication failed";
    for (kafka, reasons) in [
        (secured.with_password(WRONG_PASSWORD), [failed, "SCRAM-SHA-512"]),
        (sasl_ssl("PLAIN", WRONG_PASSWORD, authority), [failed, "Invalid username or password"]),
        (
            sasl_ssl("SCRAM-SHA-512", PASSWORD, other_authority),
            ["TLS failed", "was not issued by a trusted certificate authority"],
        ),
    ] {
        secured.check_refused_kproxy(kafka, reasons);
    }
    let kafka = secured.with_password(WRONG_PASSWORD);
    let config = configs::kmonitor(secured.cluster).set(&format!("{CLUSTER_NAME}.kafka"), kafka);
    // kmonitor contacts a broker only for a group with a stored offset.
    let offset = format!("{}/consumers/some_module/offsets/{}/0", secured.cluster.chroot, secured.topic);
    assert!(secured.cluster.zk().create(&offset, "0"));
    let monitor = Kmonitor::start(&config);
    monitor.daemon.wait_for_log("authentication failed", DEADLINE);
    assert_no_secret(&monitor.daemon, &[]);
    assert_eq!(secured.cluster.messages(&secured.topic).len(), 0, "nothing was stored");
}

#[test]
fn kproxy_connects_with_tokens_of_an_oidc_provider() {
    let (secured, provider) = (SaslCluster::new(), token_provider());
    let kafka = oauthbearer(&format!("http://{}/token", provider.address()), secured.certificates.authority());
    let mut proxy = kproxy(secured.listener, kafka);
    proxy.wait_until_ready();
    assert_eq!(proxy.post(&format!("/commit?topic={}&acks=-1", secured.topic), b"by token").status, 200);
    proxy.daemon.stop(STOP_DEADLINE);
    assert_no_secret(&proxy.daemon, &[]);
}

#[test]
fn kproxy_connects_to_a_broker_4_with_sasl_ssl() {
    let certificates = Certificates::make();
    let (broker, secured) = Kafka::start_kraft_secured(&certificates);
    let topic = unique("secured");
    kafka_wire::create_topic(&broker.address(), &topic, 1, 1);
    let mut proxy = kproxy(&secured, sasl_ssl("SCRAM-SHA-512", PASSWORD, certificates.authority()));
    proxy.wait_until_ready();
    for (number, acks) in ["1", "-1"].iter().enumerate() {
        let answer = proxy.post(&format!("/commit?topic={topic}&acks={acks}"), b"x");
        assert_eq!((answer.status, &answer.json()["offset"]), (200, &number.into()), "{}", answer.text());
    }
    proxy.daemon.stop(STOP_DEADLINE);
    assert_no_secret(&proxy.daemon, &[]);
}

#[test]
fn each_compression_is_stored_and_can_be_read() {
    let cluster = cluster();
    let value = b"the same words again and again, ".repeat(2_000);
    let topic = cluster.new_topic("compressed", 1);
    let kinds = ["none", "gzip", "snappy", "lz4", "zstd", "gzip by kafka-rust", "snappy by kafka-rust"];
    let mut bytes_stored = Vec::new();
    for (number, kind) in kinds.iter().enumerate() {
        // This setting has two names; the rows use them alternately.
        let name = if number % 2 == 0 { "compression.type" } else { "compression.codec" };
        let (codec, engine) = kind.split_once(" by ").unwrap_or((kind, "native"));
        let config = configs::kproxy(cluster).set("kafka_client", engine).set("kafka", json!({name: codec}));
        let mut proxy = Kproxy::start_ready(config);
        let before = log_bytes(cluster, &topic);
        for acks in ["1", "-1"] {
            let answer =
                proxy.post(&format!("/commit?topic={topic}&acks={acks}&key={}", kind.replace(' ', "+")), &value);
            assert_eq!(answer.status, 200, "{kind}: {}", answer.text());
        }
        bytes_stored.push(log_bytes(cluster, &topic) - before);
        proxy.daemon.stop(STOP_DEADLINE);
    }
    eprintln!("bytes stored for twice {} bytes, {kinds:?}: {bytes_stored:?}", value.len());
    assert!(bytes_stored[0] as usize >= 2 * value.len());
    assert!(bytes_stored[1..].iter().all(|bytes| *bytes < bytes_stored[0] / 10), "{bytes_stored:?}");

    // ktransfer reads the messages of all compressions.
    let (module, backend) = (unique("module"), Backend::start());
    let module_file = configs::module(&topic, &[backend.address()]);
    let mut transfer = Ktransfer::start_ready(cluster, &[(&module, module_file)]);
    backend.wait_for_requests(2 * kinds.len(), DEADLINE);
    let records = backend.records();
    assert!(records.iter().all(|record| record.request.body == value));
    let keys: Vec<String> = records.iter().map(|record| record.request.key()).collect();
    assert!(kinds.iter().all(|kind| keys.iter().filter(|key| key == kind).count() == 2), "{keys:?}");
    transfer.daemon.stop(STOP_DEADLINE);
}

/// Returns the size in bytes of the log segments of partition 0, on the disk of the only broker.
fn log_bytes(cluster: &Cluster, topic: &str) -> u64 {
    let folder = cluster.kafka_servers[0].data_folder().join(format!("{topic}-0"));
    let files = std::fs::read_dir(folder).expect("the partition has a folder").flatten();
    let logs = files.filter(|file| file.file_name().to_string_lossy().ends_with(".log"));
    logs.map(|file| file.metadata().expect("the segment exists").len()).sum()
}

#[test]
fn dead_bootstrap_hosts_cost_nothing_after_the_start() {
    let cluster = cluster();
    let topic = cluster.new_topic("dead_hosts", 4);
    let healthy = Kproxy::start_usual(cluster);
    // The dead hosts: a port without a listener, a listener that never answers, and a name that does not resolve.
    let refused = format!("127.0.0.1:{}", free_port());
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent = silent.local_addr().expect("it is bound").to_string();
    let hosts = [refused.as_str(), &silent, "no-such-host.invalid:9092", &cluster.brokers];
    let started = Instant::now();
    let mut proxy = Kproxy::start(configs::kproxy_for(&hosts).set("read_timeout_ms", 5000).set("producer_num", 3));
    proxy.wait_until_ready();
    let ready_after = started.elapsed();
    for number in 0..40 {
        let acks = ["0", "1", "-1"][number % 3];
        let answer = proxy.post(&format!("/commit?topic={topic}&acks={acks}&key={}", number % 7), b"x");
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(healthy.post(&format!("/commit?topic={topic}&acks={acks}&key=k"), b"x").status, 200);
    }
    eprintln!("ready after {ready_after:?}, 80 commits until {:?}", started.elapsed());
    assert!(ready_after < Duration::from_secs(15), "{ready_after:?}");
    // Each producer has the same threads for the broker, and no thread for the dead hosts.
    let broker_threads =
        |daemon: &Daemon| daemon.thread_names().iter().filter(|name| name.starts_with("kafka-")).count();
    wait_until(DEADLINE, "three producers have three times the threads of one", || {
        broker_threads(&proxy.daemon) == 3 * broker_threads(&healthy.daemon)
    });
    let mut slowest = Duration::ZERO;
    for number in 0..100 {
        let posted = Instant::now();
        assert_eq!(proxy.post(&format!("/commit?topic={topic}&key={number}"), b"x").status, 200);
        slowest = slowest.max(posted.elapsed());
    }
    eprintln!("slowest of 100 commits: {slowest:?}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    proxy.daemon.stop(STOP_DEADLINE);
}
