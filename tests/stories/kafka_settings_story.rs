//! The `kafka:` map over the real binaries: TLS and SASL with a real broker, what a wrong password or authority leads
//! to, compression, and bootstrap hosts of which most are dead.
#![cfg(feature = "librdkafka")]

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::http;
use crate::harness::secured::{Certificates, PASSWORD, USER};
use crate::harness::{
    Backend, Cluster, Daemon, Kafka, Program, cluster, configs, free_port, kafka_wire, unique, wait_until,
};
use crate::kproxy_story::Kproxy;

const DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(12);

/// The `kafka` map, indented by so much.
fn map(indent: &str, mechanism: &str, password: &str, authority: &Path) -> String {
    let lines = [
        "kafka:".to_owned(),
        " security.protocol: sasl_ssl".to_owned(),
        format!(" sasl.mechanism: {mechanism}"),
        format!(" sasl.username: {USER}"),
        format!(" sasl.password: {password}"),
        format!(" ssl.ca.location: {}", authority.display()),
    ];
    lines.iter().map(|line| format!("{indent}{line}\n")).collect()
}

/// A kproxy that knows only this address of the brokers; returns when it listens.
fn kproxy(brokers: &[&str], lines: &str) -> Kproxy {
    let (port, admin_port) = (free_port(), free_port());
    let hosts: String = brokers.iter().map(|host| format!(" - {host}\n")).collect();
    let file = format!(
        "log_dir: ./log\nlog_level: 4\nport: {port}\nadmin_port: {admin_port}\nread_timeout_ms: 5000\n\
         broker_hosts:\n{hosts}{lines}\n"
    );
    let daemon = Daemon::start(Program::Kproxy, &[("kproxy.yaml", &file)]);
    let kproxy = Kproxy { daemon, address: format!("127.0.0.1:{port}"), admin: format!("127.0.0.1:{admin_port}") };
    wait_until(DEADLINE, "kproxy listens", || http::get(&kproxy.url("/healthz")).is_ok());
    kproxy
}

fn assert_no_secret(daemon: &Daemon, answers: &[String]) {
    let texts = [daemon.log(), daemon.output()].into_iter().chain(answers.iter().cloned());
    for text in texts {
        assert!(!text.contains("the-password-of"), "a secret is told: {text}");
    }
}

#[test]
fn all_three_daemons_reach_a_broker_by_sasl_ssl() {
    let certificates = Certificates::make();
    let (cluster, secured) = Cluster::start_secured(&certificates);
    let topic = cluster.new_topic("secured", 2);
    let right = |indent: &str| map(indent, "SCRAM-SHA-512", PASSWORD, certificates.authority());

    let mut proxy = kproxy(&[&secured], &right(""));
    wait_until(DEADLINE, "kproxy is ready", || proxy.readiness().0 == 200);
    for acks in ["0", "1", "-1"] {
        let answer = proxy.post(&format!("/commit?topic={topic}&acks={acks}&key=k"), b"by sasl_ssl");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    wait_until(DEADLINE, "the messages are there", || cluster.messages(&topic).len() == 3);
    assert!(cluster.messages(&topic).iter().all(|message| message.value == b"by sasl_ssl"));

    // The brokers are found in ZooKeeper, where they listen with SASL_SSL.
    let (module, backend, admin, port) = (unique("module"), Backend::start(), free_port(), free_port());
    let module_file = every_method(&configs::module(&topic, &[backend.address()]));
    let transfer_file = configs::ktransfer(&cluster, admin, &[&module]) + &right("");
    let mut transfer = Daemon::start(
        Program::Ktransfer,
        &[("conf/ktransfer.yaml", &transfer_file), (&format!("conf/modules/{module}.yaml"), &module_file)],
    );
    transfer.wait_until_ready(&format!("127.0.0.1:{admin}"), DEADLINE);
    backend.wait_for_requests(3, DEADLINE);

    let mut monitor =
        Daemon::start(Program::Kmonitor, &[("kmonitor.yaml", &(configs::kmonitor(&cluster, port) + &right(" ")))]);
    wait_until(DEADLINE, "the delay of both partitions is told and 0", || {
        let Ok(answer) = http::get(&format!("http://127.0.0.1:{port}/delay")) else { return false };
        let delays = answer.json()[configs::CLUSTER_NAME][&module].clone();
        delays.as_object().is_some_and(|delays| !delays.is_empty() && delays.values().all(|delay| *delay == 0))
    });
    for daemon in [&mut proxy.daemon, &mut transfer, &mut monitor] {
        daemon.end_well(STOP_DEADLINE);
        assert_no_secret(daemon, &[]);
    }

    // Not let in: kproxy runs, says why it is not ready, and nothing is taken.
    let wrong = "not-the-password-of-alice";
    for (lines, words) in [
        (map("", "SCRAM-SHA-512", wrong, certificates.authority()), ["authentication failed", "SCRAM-SHA-512"]),
        (map("", "PLAIN", wrong, certificates.authority()), ["authentication failed", "Invalid username or password"]),
        (
            map("", "SCRAM-SHA-512", PASSWORD, certificates.other_authority()),
            ["TLS failed", "certificate verify failed"],
        ),
    ] {
        let mut proxy = kproxy(&[&secured], &lines);
        let mut told = String::new();
        wait_until(DEADLINE, "the reason is told", || {
            let (status, body) = proxy.readiness();
            assert_eq!(status, 503, "{body}");
            told = body;
            words.iter().all(|word| told.contains(word))
        });
        let answer = wait_until(DEADLINE, "a commit is refused with the reason", || {
            let answer = proxy.post(&format!("/commit?topic={topic}"), b"x");
            assert_eq!(answer.status, 503, "{}", answer.text());
            words.iter().all(|word| answer.text().contains(word)).then_some(answer)
        });
        assert_eq!(answer.json()["stored"], "no", "{}", answer.text());
        eprintln!("not let in: {}", answer.text());
        proxy.daemon.wait_for_log(words[1], DEADLINE);
        assert_no_secret(&proxy.daemon, &[told, answer.text()]);
        proxy.daemon.end_well(STOP_DEADLINE);
    }
    // kmonitor and ktransfer say why, too.
    let lines = map(" ", "SCRAM-SHA-512", wrong, certificates.authority());
    let port = free_port();
    let monitor = Daemon::start(Program::Kmonitor, &[("kmonitor.yaml", &(configs::kmonitor(&cluster, port) + &lines))]);
    monitor.wait_for_log("authentication failed", DEADLINE);
    assert_no_secret(&monitor, &[]);
    assert_eq!(cluster.messages(&topic).len(), 3, "nothing more was taken");

    // Tokens that librdkafka makes itself.
    let lines = format!(
        "kafka:\n security.protocol: sasl_ssl\n sasl.mechanism: OAUTHBEARER\n enable.sasl.oauthbearer.unsecure.jwt: true\n \
         sasl.oauthbearer.config: principal={USER}\n ssl.ca.location: {}\n",
        certificates.authority().display()
    );
    let mut proxy = kproxy(&[&secured], &lines);
    wait_until(DEADLINE, "kproxy is ready", || proxy.readiness().0 == 200);
    assert_eq!(proxy.post(&format!("/commit?topic={topic}&acks=-1"), b"by token").status, 200);
    proxy.daemon.end_well(STOP_DEADLINE);
}

#[test]
fn a_broker_4_is_reached_by_sasl_ssl() {
    let certificates = Certificates::make();
    let (broker, secured) = Kafka::start_kraft_secured(&certificates);
    let topic = unique("secured");
    kafka_wire::create_topic(&broker.address(), &topic, 1, 1);
    let mut proxy = kproxy(&[&secured], &map("", "SCRAM-SHA-512", PASSWORD, certificates.authority()));
    wait_until(DEADLINE, "kproxy is ready", || proxy.readiness().0 == 200);
    for (number, acks) in ["1", "-1"].iter().enumerate() {
        let answer = proxy.post(&format!("/commit?topic={topic}&acks={acks}"), b"x");
        assert_eq!((answer.status, &answer.json()["offset"]), (200, &number.into()), "{}", answer.text());
    }
    proxy.daemon.end_well(STOP_DEADLINE);
    assert_no_secret(&proxy.daemon, &[]);
}

#[test]
fn each_compression_is_stored_and_can_be_read() {
    let cluster = cluster();
    let value = b"the same words again and again, ".repeat(2_000);
    let topic = cluster.new_topic("compressed", 1);
    let kinds = ["none", "gzip", "snappy", "lz4", "zstd", "gzip by kafka-rust", "snappy by kafka-rust"];
    let mut bytes_received = Vec::new();
    for (number, kind) in kinds.iter().enumerate() {
        // The original's key, and librdkafka's other name for it.
        let name = if number % 2 == 0 { "compression.type" } else { "compression.codec" };
        let (word, engine) = kind.split_once(" by ").unwrap_or((kind, "librdkafka"));
        let mut proxy = Kproxy::start_ready(cluster, &format!("kafka_client: {engine}\nkafka:\n {name}: {word}"));
        let before = log_bytes(cluster, &topic);
        for acks in ["1", "-1"] {
            let answer =
                proxy.post(&format!("/commit?topic={topic}&acks={acks}&key={}", kind.replace(' ', "+")), &value);
            assert_eq!(answer.status, 200, "{kind}: {}", answer.text());
        }
        bytes_received.push(log_bytes(cluster, &topic) - before);
        proxy.daemon.end_well(STOP_DEADLINE);
    }
    eprintln!("bytes stored for twice {} bytes, {kinds:?}: {bytes_received:?}", value.len());
    assert!(bytes_received[0] as usize >= 2 * value.len());
    assert!(bytes_received[1..].iter().all(|stored| *stored < bytes_received[0] / 10), "{bytes_received:?}");

    // Read back by ktransfer, through librdkafka.
    let (module, backend, admin) = (unique("module"), Backend::start(), free_port());
    let module_file = configs::module(&topic, &[backend.address()]);
    let file = every_method(&module_file);
    let main_file = configs::ktransfer(cluster, admin, &[&module]);
    let mut transfer = Daemon::start(
        Program::Ktransfer,
        &[("conf/ktransfer.yaml", &main_file), (&format!("conf/modules/{module}.yaml"), &file)],
    );
    backend.wait_for_requests(2 * kinds.len(), DEADLINE);
    let records = backend.records();
    assert!(records.iter().all(|record| record.request.body == value));
    let keys: Vec<String> = records.iter().map(|record| record.request.key()).collect();
    assert!(kinds.iter().all(|kind| keys.iter().filter(|key| key == kind).count() == 2), "{keys:?}");
    transfer.end_well(STOP_DEADLINE);
}

/// Bytes of the segments of partition 0 on the disk of the only broker.
fn log_bytes(cluster: &Cluster, topic: &str) -> u64 {
    let folder = cluster.kafka_servers[0].data_folder().join(format!("{topic}-0"));
    let files = std::fs::read_dir(folder).expect("the partition has a folder").flatten();
    let logs = files.filter(|file| file.file_name().to_string_lossy().ends_with(".log"));
    logs.map(|file| file.metadata().expect("it is there").len()).sum()
}

/// The module's file without its methods: every message is pushed.
fn every_method(file: &str) -> String {
    let topic = file.lines().next().expect("the topic comes first");
    let rest = file.lines().skip_while(|line| !line.starts_with("protocol:"));
    std::iter::once(topic).chain(rest).map(|line| format!("{line}\n")).collect()
}

#[test]
fn dead_bootstrap_hosts_cost_nothing_after_the_start() {
    let cluster = cluster();
    let topic = cluster.new_topic("dead_hosts", 4);
    let few = Kproxy::start_ready(cluster, "");
    // A port where nobody listens, one whose listener never answers, and a name that does not exist.
    let refused = format!("127.0.0.1:{}", free_port());
    let silent = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    let silent = silent.local_addr().expect("it is bound").to_string();
    let hosts = [&refused, &silent, "no-such-host.invalid:9092", &cluster.brokers];
    let started = Instant::now();
    let mut proxy = kproxy(&hosts, "producer_num: 3");
    wait_until(DEADLINE, "kproxy is ready", || proxy.readiness().0 == 200);
    let ready_after = started.elapsed();
    for number in 0..40 {
        let acks = ["0", "1", "-1"][number % 3];
        let answer = proxy.post(&format!("/commit?topic={topic}&acks={acks}&key={}", number % 7), b"x");
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(few.post(&format!("/commit?topic={topic}&acks={acks}&key=k"), b"x").status, 200);
    }
    let served_after = started.elapsed();
    eprintln!("ready after {ready_after:?}, 80 commits until {served_after:?}");
    assert!(ready_after < Duration::from_secs(15), "{ready_after:?}");
    // Threads of brokers: one a client for the broker, none for the dead hosts.
    let rdk = |daemon: &Daemon| daemon.thread_names().iter().filter(|name| name.starts_with("rdk:")).count();
    wait_until(DEADLINE, "three producers have three times the threads of one", || {
        let (three, one) = (rdk(&proxy.daemon), rdk(&few.daemon));
        three == 3 * one
    });
    let mut slowest = Duration::ZERO;
    for number in 0..100 {
        let posted = Instant::now();
        assert_eq!(proxy.post(&format!("/commit?topic={topic}&key={number}"), b"x").status, 200);
        slowest = slowest.max(posted.elapsed());
    }
    eprintln!("slowest of 100 commits: {slowest:?}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    proxy.daemon.end_well(STOP_DEADLINE);
}
