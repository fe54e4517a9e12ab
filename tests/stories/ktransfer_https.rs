//! ktransfer and https backends: certificates, and signed pushes.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::certificates::{Authority, Certificate};
use crate::harness::fleet::{Fleet, Reply};
use crate::harness::one_topic::wait_until_stored;
use crate::harness::tls_backend::TlsBackend;
use crate::harness::{ConfigFile, Member, STOP_DEADLINE, cluster, configs, unique};

const DEADLINE: Duration = Duration::from_secs(30);
const OLD_SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const NEW_SECRET: &str = "whsec_/+7dzLuqmYh3ZlVEMyIRAP/u3cy7qpmId2ZVRDMiEQA=";

fn path(file: &Path) -> &str {
    file.to_str().unwrap()
}

fn topic_with(n_messages: usize) -> String {
    let topic = cluster().new_topic("https", 1);
    let bodies: Vec<String> = (0..n_messages).map(|number| format!("{{\"number\": {number}}}")).collect();
    let messages: Vec<(&[u8], &[u8])> = bodies.iter().map(|body| (b"k".as_slice(), body.as_bytes())).collect();
    cluster().produce(&topic, 0, &messages);
    topic
}

fn with_tls(file: ConfigFile, authority: &Authority, client: Option<&Certificate>) -> ConfigFile {
    let file = file.set("protocol.tls.ca_file", path(&authority.own.certificate));
    match client {
        None => file,
        Some(client) => file
            .set("protocol.tls.certificate_file", path(&client.certificate))
            .set("protocol.tls.key_file", path(&client.key)),
    }
}

/// Whether the library of Standard Webhooks for Python accepts a push.
fn is_accepted(secret: &str, headers: [&str; 3], body: &[u8]) -> bool {
    const PROGRAM: &str = "import sys, standardwebhooks\n\
        headers = dict(zip(['webhook-id', 'webhook-timestamp', 'webhook-signature'], sys.argv[2:]))\n\
        standardwebhooks.Webhook(sys.argv[1]).verify(sys.stdin.buffer.read(), headers)";
    let mut python = Command::new("python3")
        .args(["-c", PROGRAM, secret])
        .args(headers)
        .env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("python3 is installed");
    python.stdin.take().unwrap().write_all(body).unwrap();
    python.wait().unwrap().success()
}

#[test]
fn pushes_over_tls_with_a_client_certificate_are_signed_by_both_secrets_of_a_rotation() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let backend = TlsBackend::start(&authority.issue("backend", 30), Some(&authority));
    let secrets = folder.path().join("secrets");
    std::fs::write(&secrets, format!("# From next week on.\n{NEW_SECRET}\n")).unwrap();
    let topic = topic_with(20);
    let file = configs::module(&topic, &[backend.address()])
        .set("protocol.conn_timeout_ms", 5000)
        .set("protocol.write_timeout_ms", 5000)
        .set("signature.secrets", [OLD_SECRET])
        .set("signature.secrets_file", path(&secrets));
    let file = with_tls(file, &authority, Some(&authority.issue("client", 30)));
    let module = unique("https");
    let mut member = Member::start(cluster(), &module, "a", file);
    wait_until_stored(&module, &topic, 20);
    let requests = backend.requests();
    assert_eq!(
        (requests.len(), backend.n_connections()),
        (20, 1),
        "one key has one worker, which keeps its connection"
    );
    for (number, request) in requests.iter().enumerate().step_by(9) {
        let header = |name: &str| request.header(name).unwrap_or_else(|| panic!("{name}"));
        let headers = ["webhook-id", "webhook-timestamp", "webhook-signature"].map(header);
        assert_eq!(request.text(), format!("{{\"number\": {number}}}"));
        assert_eq!(headers[0], header("Idempotency-Key").replace('.', "%2E"));
        assert!(is_accepted(OLD_SECRET, headers, &request.body) && is_accepted(NEW_SECRET, headers, &request.body));
        assert!(!is_accepted(NEW_SECRET, headers, b"{}"));
    }
    member.daemon.stop(STOP_DEADLINE);
}

#[test]
fn a_backend_with_a_wrong_certificate_gets_no_message_and_the_log_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new(folder.path(), "authority"), Authority::new(folder.path(), "other"));
    for (own, clients, reason) in [
        (authority.issue("expired", -1), None, "tls: the server's certificate has expired"),
        (other.issue("foreign", 30), None, "was not issued by a trusted certificate authority"),
        (authority.issue("own", 30), Some(&other), "tls: the server requires a client certificate"),
    ] {
        let (wrong, good) = (TlsBackend::start(&own, clients), Fleet::start(1, |_| Reply::ok()));
        let topic = topic_with(10);
        let servers = [wrong.address(), good.addresses()[0].clone()];
        let file = configs::module(&topic, &servers)
            .set("fail_retry_interval_ms", 20)
            .set("protocol.conn_timeout_ms", 5000)
            .set("worker_num", 2);
        let module = unique("wrong_certificate");
        let mut member = Member::start(cluster(), &module, "a", with_tls(file, &authority, None));
        wait_until_stored(&module, &topic, 10);
        member.daemon.wait_for_log(reason, DEADLINE);
        assert_eq!((wrong.requests().len(), good.n_delivered()), (0, 10), "{reason}");
        member.daemon.stop(STOP_DEADLINE);
    }
}
