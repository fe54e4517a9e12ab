//! kproxy with TLS: clients are served as over plain HTTP, and connections without a TLS handshake are refused.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::version::{TLS12, TLS13};

use crate::harness::certificates::{Authority, Certificate};
use crate::harness::http::{self, Client, connect_raw, post_request};
use crate::harness::process::folder;
use crate::harness::tls::{certificate, handshake, new_client, read_until_closed};
use crate::harness::{Cluster, ConfigFile, Daemon, Kproxy, Program, cluster, configs, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

/// A kproxy with TLS, the authority that signed its certificate, and the files of the certificate.
struct TlsKproxy {
    kproxy: Kproxy,
    authority: Authority,
    own: Certificate,
}

impl TlsKproxy {
    fn start(cluster: &Cluster) -> TlsKproxy {
        TlsKproxy::start_with(configs::kproxy(cluster))
    }

    /// Starts a kproxy with this configuration and a new certificate; returns when it is ready.
    fn start_with(config: ConfigFile) -> TlsKproxy {
        let folder = folder("certificates");
        let authority = Authority::new(&folder, "authority");
        let own = authority.issue("server", 30);
        let config = config
            .set("read_timeout_ms", 20_000)
            .set("tls.certificate_file", &own.certificate)
            .set("tls.key_file", &own.key);
        TlsKproxy { kproxy: Kproxy::start_ready(config), authority, own }
    }

    fn client(&self) -> Client {
        self.client_as(&self.authority.client(&[&TLS12, &TLS13])).expect("the handshake succeeds")
    }

    fn client_as(&self, config: &Arc<ClientConfig>) -> io::Result<Client> {
        Client::over(&self.kproxy.address, |socket| Ok(Box::new(handshake(config, socket)?)))
    }

    fn socket(&self) -> TcpStream {
        connect_raw(&self.kproxy.address, DEADLINE)
    }

    fn wait_for_handshakes(&self, outcome: &str, count: u64) {
        let line = format!("http_tls_handshakes_total{{outcome=\"{outcome}\",server=\"http\"}} {count}");
        self.kproxy.wait_for_metric(&line, DEADLINE);
    }

    /// Waits until all connections are closed; then stops kproxy.
    fn stop_idle(mut self) {
        self.kproxy.wait_for_metric("http_connections{server=\"http\"} 0", DEADLINE);
        self.kproxy.daemon.stop(DEADLINE);
    }

    /// Returns the first half of a ClientHello, which is not a complete TLS record.
    fn half_a_hello(&self) -> Vec<u8> {
        let mut hello = Vec::new();
        new_client(&self.authority.client(&[&TLS13])).write_tls(&mut hello).unwrap();
        hello.truncate(hello.len() / 2);
        hello
    }
}

/// Returns the bytes of a commit of `value`.
fn commit(topic: &str, value: &str) -> Vec<u8> {
    post_request(&format!("/commit?topic={topic}&key=k"), &[], value.as_bytes())
}

fn values(cluster: &Cluster, topic: &str, count: usize) -> Vec<String> {
    let messages = wait_until(DEADLINE, "all messages are stored", || {
        let messages = cluster.messages(topic);
        (messages.len() >= count).then_some(messages)
    });
    messages.into_iter().map(|message| String::from_utf8_lossy(&message.value).into_owned()).collect()
}

#[test]
fn commits_over_tls_12_and_13_are_stored_one_by_one_pipelined_and_large() {
    let cluster = cluster();
    let topic = cluster.new_topic("tls", 1);
    let secured = TlsKproxy::start(cluster);
    let mut expected = Vec::new();
    for version in [&TLS12, &TLS13] {
        let mut client = secured.client_as(&secured.authority.client(&[version])).unwrap();
        for number in 0..20 {
            let value = format!("{:?} one by one {number}", version.version);
            let answer = client.post(&format!("/commit?topic={topic}&key=k&acks=-1"), value.as_bytes()).unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
            expected.push(value);
        }
        // The requests are sent in one write, so kproxy decrypts several of them before it answers the first one.
        let pipelined: Vec<_> = (0..200).map(|number| format!("{:?} pipelined {number}", version.version)).collect();
        let bytes: Vec<u8> = pipelined.iter().flat_map(|value| commit(&topic, value)).collect();
        client.send_raw(&bytes).unwrap();
        for value in &pipelined {
            let answer = client.read_response().unwrap();
            assert_eq!(answer.status, 200, "{value}: {}", answer.text());
        }
        expected.extend(pipelined);
    }
    assert_eq!(values(cluster, &topic, expected.len()), expected, "in order, each once");

    let large_topic = cluster.new_topic("tls_large", 1);
    let mut client = secured.client();
    // Five messages of 900 kB; the broker accepts up to about 1 MB by default.
    let large = "0123456789".repeat(90_000);
    for _ in 0..5 {
        let answer = client.post(&format!("/commit?topic={large_topic}&key=k"), large.as_bytes()).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert!(values(cluster, &large_topic, 5).iter().all(|value| *value == large));
    // The client sends the whole body, which is too large, before it reads the answer.
    let mut stream = handshake(&secured.authority.client(&[&TLS13]), secured.socket()).unwrap();
    let head = format!("POST /commit?topic={topic} HTTP/1.1\r\nHost: h\r\nContent-Length: 12000000\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&vec![b'x'; 12_000_000]).unwrap();
    let (answer, has_close_notify) = read_until_closed(&mut stream);
    assert!(answer.starts_with(b"HTTP/1.1 413 ") && has_close_notify, "{}", String::from_utf8_lossy(&answer));
    drop((client, stream));
    assert_eq!(cluster.messages(&topic).len(), expected.len());
    secured.stop_idle();
}

#[test]
fn openssl_s_client_is_served() {
    let cluster = cluster();
    let topic = cluster.new_topic("tls_openssl", 1);
    let secured = TlsKproxy::start(cluster);
    for version in ["-tls1_2", "-tls1_3"] {
        let mut openssl = Command::new("openssl")
            .args(["s_client", "-quiet", "-verify_return_error", "-servername", "localhost", "-alpn", "h2,http/1.1"])
            .args([version, "-connect", &secured.kproxy.address, "-CAfile"])
            .arg(&secured.authority.own.certificate)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let closing =
            String::from_utf8(commit(&topic, version)).unwrap().replacen("Host: h", "Host: h\r\nConnection: close", 1);
        openssl.stdin.as_mut().unwrap().write_all(closing.as_bytes()).unwrap();
        let output = openssl.wait_with_output().unwrap();
        let (answer, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{version}: {answer}, {errors}");
    }
    assert_eq!(values(cluster, &topic, 2), ["-tls1_2", "-tls1_3"]);
    secured.wait_for_handshakes("ok", 2);
    secured.stop_idle();
}

#[test]
fn connections_without_a_handshake_are_refused_and_freed() {
    let cluster = cluster();
    let topic = cluster.new_topic("tls_hostile", 1);
    let secured = TlsKproxy::start_with(configs::kproxy(cluster).set("tls.handshake_timeout_ms", 500));
    send_plain_http(&secured, &topic);
    break_handshakes(&secured);
    break_connections(&secured, &topic);
    never_read(&secured);
    let good = secured.client().post(&format!("/commit?topic={topic}"), b"good").unwrap();
    assert_eq!(good.status, 200, "{}", good.text());
    let stored = cluster.messages(&topic);
    assert!(stored.iter().all(|message| message.value == b"cut" || message.value == b"good"), "{stored:?}");
    secured.stop_idle();
}

/// Sends plain HTTP: kproxy answers 400 in plain HTTP and names https.
fn send_plain_http(secured: &TlsKproxy, topic: &str) {
    let answer = http::post(&secured.kproxy.url(&format!("/commit?topic={topic}")), b"plain").unwrap();
    let body = answer.json();
    assert_eq!((answer.status, &body["stored"]), (400, &"no".into()), "{body}");
    assert!(body["message"].as_str().unwrap().contains("https"), "{body}");
    secured.wait_for_handshakes("failed", 1);
    secured.kproxy.daemon.wait_for_log("TLS handshake with 127.0.0.1:", DEADLINE);
}

/// Breaks handshakes: with garbage in a TLS record, half a ClientHello, no byte at all, and a reset.
fn break_handshakes(secured: &TlsKproxy) {
    let mut garbage = secured.socket();
    garbage.write_all(b"\x16\x03\x01\x00\x10garbage! garbage").unwrap();
    garbage.shutdown(Shutdown::Write).unwrap();
    garbage.read_to_end(&mut Vec::new()).expect("the connection ends in time, without a reset");
    secured.wait_for_handshakes("failed", 2);
    let (mut half, mut silent) = (secured.socket(), secured.socket());
    half.write_all(&secured.half_a_hello()).unwrap();
    for socket in [&mut half, &mut silent] {
        socket.read_to_end(&mut Vec::new()).expect("the connection is closed in time");
    }
    secured.wait_for_handshakes("timeout", 2);
    let mut cut = secured.socket();
    cut.write_all(&secured.half_a_hello()).unwrap();
    reset_on_drop(&cut);
    drop(cut);
    secured.wait_for_handshakes("failed", 3);
}

/// Breaks connections after the handshake: with a reset during the answers, and with a body that is cut off by a TCP
/// FIN without close_notify.
fn break_connections(secured: &TlsKproxy, topic: &str) {
    let mut client = secured.client();
    client.send_raw(&commit(topic, "cut").repeat(50)).unwrap();
    reset_on_drop(client.socket());
    drop(client);

    let mut stream = handshake(&secured.authority.client(&[&TLS13]), secured.socket()).unwrap();
    let whole = commit(topic, "truncated");
    stream.write_all(&whole[..whole.len() - 1]).unwrap();
    stream.sock.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_until_closed(&mut stream).0, b"");
}

/// Sends requests and reads no answers: when the socket buffers are full, kproxy closes the connection at the write
/// deadline.
fn never_read(secured: &TlsKproxy) {
    let mut slow = handshake(&secured.authority.client(&[&TLS13]), secured.socket()).unwrap();
    let requests = b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n".repeat(500);
    // A write fails when kproxy has closed the connection.
    let _ = (0..100).try_for_each(|_| slow.write_all(&requests));
    secured.kproxy.wait_for_metric("http_timeouts_total{deadline=\"write\",server=\"http\"} 1", DEADLINE);
}

/// Makes closing the socket send a reset (RST) instead of a FIN.
fn reset_on_drop(socket: &TcpStream) {
    socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO)).unwrap();
}

#[test]
fn client_certificates_are_requested_and_verified() {
    let cluster = cluster();
    let topic = cluster.new_topic("tls_clients", 1);
    let clients = Authority::new(&folder("clients"), "clients");
    let foreign = Authority::new(&folder("foreign"), "foreign_authority").issue("foreign", 30);
    let (known, expired) = (clients.issue("known", 30), clients.issue("expired", -1));
    for mode in ["required", "optional"] {
        let config = configs::kproxy(cluster)
            .set("tls.client_ca_file", &clients.own.certificate)
            .set("tls.client_certificates", mode);
        let secured = TlsKproxy::start_with(config);
        let commit = |version, identity: Option<&Certificate>| {
            let mut client = secured.client_as(&secured.authority.client_with(&[version], identity))?;
            client.post(&format!("/commit?topic={topic}"), mode.as_bytes()).map(|answer| answer.status)
        };
        for version in [&TLS12, &TLS13] {
            assert_eq!(commit(version, Some(&known)).unwrap(), 200);
            for (identity, alert) in [(&foreign, "UnknownCA"), (&expired, "CertificateExpired")] {
                let refused = commit(version, Some(identity)).unwrap_err().to_string();
                assert!(refused.contains(alert), "{mode}: {refused}");
            }
            match commit(version, None) {
                Ok(status) => assert_eq!((status, mode), (200, "optional")),
                Err(refused) => assert!(mode == "required", "{mode}: {refused}"),
            }
        }
        let failed = if mode == "required" { 6 } else { 4 };
        secured.wait_for_handshakes("failed", failed);
        secured.stop_idle();
    }
    assert_eq!(cluster.messages(&topic).len(), 6, "refused messages are not stored");
}

#[test]
fn sighup_loads_a_new_certificate_for_new_connections_and_rejects_a_bad_one() {
    let cluster = cluster();
    let topic = cluster.new_topic("tls_reload", 1);
    let mut secured = TlsKproxy::start(cluster);
    let path = format!("/commit?topic={topic}");
    let config = secured.authority.client(&[&TLS13]);
    let served_certificate = |secured: &TlsKproxy| {
        let stream = handshake(&config, secured.socket()).expect("the handshake succeeds");
        stream.conn.peer_certificates().expect("the server sends its certificate")[0].clone()
    };
    let before = certificate(&secured.own.certificate);
    assert_eq!(served_certificate(&secured), before);
    let mut old = secured.client_as(&config).unwrap();
    assert_eq!(old.post(&path, b"before").unwrap().status, 200);

    let next = secured.authority.issue("next", 30);
    let after = certificate(&next.certificate);
    fs::copy(&next.certificate, &secured.own.certificate).unwrap();
    secured.kproxy.daemon.signal(libc::SIGHUP);
    secured.kproxy.daemon.wait_for_log("tls could not be reloaded", DEADLINE);
    let log = secured.kproxy.daemon.log();
    assert!(log.contains("which is not the key of the first certificate in"), "{log}");
    assert_eq!(served_certificate(&secured), before, "a certificate without its key is rejected");
    secured.kproxy.wait_for_metric("kproxy_certificates_stale 1", DEADLINE);
    let page = || http::get(&format!("http://{}/rows", secured.kproxy.admin)).unwrap().text();
    wait_until(DEADLINE, "the page shows it", || page().contains("tls could not be reloaded: key_file is /"));

    fs::copy(&next.key, &secured.own.key).unwrap();
    secured.kproxy.daemon.signal(libc::SIGHUP);
    wait_until(DEADLINE, "the new certificate is served", || served_certificate(&secured) == after);
    secured.kproxy.wait_for_metric("kproxy_certificates_stale 0", DEADLINE);
    wait_until(DEADLINE, "the page does not show it any more", || !page().contains("could not be reloaded"));
    assert_eq!(old.post(&path, b"after").unwrap().status, 200, "an old connection stays open");
    drop(old);
    assert_eq!(cluster.messages(&topic).len(), 2);
    secured.stop_idle();
}

#[test]
fn a_stop_answers_the_commits_in_flight_sends_close_notify_and_exits_with_0() {
    let cluster = Cluster::start(1);
    let topic = cluster.new_topic("tls_stop", 1);
    let mut secured = TlsKproxy::start_with(configs::kproxy(&cluster).set("shutdown_grace_ms", 10_000));
    let config = secured.authority.client(&[&TLS13]);
    let mut idle = handshake(&config, secured.socket()).unwrap();
    let mut busy = handshake(&config, secured.socket()).unwrap();
    let mut begun = secured.socket();
    begun.write_all(&secured.half_a_hello()).unwrap();
    assert_eq!(secured.client().post(&format!("/commit?topic={topic}"), b"first").unwrap().status, 200);
    cluster.kafka_servers[0].freeze();
    busy.write_all(&commit(&topic, "second")).unwrap();
    secured.kproxy.wait_for_commits_in_flight(1);
    secured.kproxy.daemon.terminate();
    assert_eq!(
        read_until_closed(&mut idle),
        (Vec::new(), true),
        "an idle connection is closed at once, with close_notify"
    );
    cluster.kafka_servers[0].unfreeze();
    let (answer, has_close_notify) = read_until_closed(&mut busy);
    assert!(answer.starts_with(b"HTTP/1.1 200 ") && has_close_notify, "{}", String::from_utf8_lossy(&answer));
    drop(busy);
    assert_eq!(secured.kproxy.daemon.wait(DEADLINE).code(), Some(0));
    assert_eq!(cluster.messages(&topic).len(), 2);
}

#[test]
fn a_test_of_the_configuration_names_the_wrong_file_and_prints_no_key() {
    let files = folder("certificates");
    let authority = Authority::new(&files, "authority");
    let (one, other) = (authority.issue("one", 30), authority.issue("other", 30));
    let secret = fs::read_to_string(&other.key).unwrap().lines().nth(1).unwrap().to_owned();
    let check = |certificate: &Path, key: &Path| {
        let config = ConfigFile::of("kproxy").set("tls.certificate_file", certificate).set("tls.key_file", key);
        fs::write(files.join("k.yaml"), config.text()).unwrap();
        let path = files.join("k.yaml").display().to_string();
        let mut daemon = Daemon::start_with_arguments(Program::Kproxy, &["-t", "-f", &path]);
        (daemon.wait(DEADLINE).code(), daemon.output())
    };
    let (code, output) = check(&one.certificate, &one.key);
    assert_eq!(code, Some(0), "{output}");
    for (certificate, key, problem) in [
        (&one.certificate, &other.key, "tls.key_file: is "),
        (&one.certificate, &other.certificate, "tls.key_file: is "),
        (&other.key, &other.key, "tls.certificate_file: is "),
        (&files.join("absent"), &other.key, "tls.certificate_file: is "),
    ] {
        let (code, output) = check(certificate, key);
        assert_eq!(code, Some(1), "{output}");
        assert!(output.contains(problem) && !output.contains(&secret), "{problem}: {output}");
    }
}

#[test]
fn an_idle_connection_costs_little_memory() {
    let secured = TlsKproxy::start(cluster());
    let config = secured.authority.client(&[&TLS13]);
    let open = |count: usize| -> Vec<_> {
        let connections = (0..count).map(|_| handshake(&config, secured.socket()).expect("the handshake succeeds"));
        connections
            .map(|mut stream| {
                // A connection counts as idle only after its first request.
                stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
                let mut start = [0; 12];
                stream.read_exact(&mut start).unwrap();
                assert_eq!(&start, b"HTTP/1.1 200");
                stream
            })
            .collect()
    };
    let warm = open(50);
    let before = secured.kproxy.daemon.resident_bytes();
    let more = open(400);
    let each = secured.kproxy.daemon.resident_bytes().saturating_sub(before) / 400;
    eprintln!("an idle TLS connection takes {each} bytes of kproxy's memory");
    assert!(each < 64 << 10, "{each} bytes");
    drop((warm, more));
    secured.stop_idle();
}
