//! kproxy with certificates: clients of TLS are served as others are, and those that are not get nowhere.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::version::{TLS12, TLS13};

use crate::harness::certificates::{Authority, Certificate};
use crate::harness::http::{self, Client};
use crate::harness::process::folder;
use crate::harness::tls::{begin, certificate, rest, shake};
use crate::harness::{Cluster, Daemon, Program, cluster, configs, free_port, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

/// A kproxy that speaks TLS.
struct Secured {
    daemon: Daemon,
    address: String,
    admin: String,
    authority: Authority,
    own: Certificate,
}

impl Secured {
    /// Starts one, with more lines in its map `tls` (indented by one space) and outside; returns when it is ready.
    fn start(cluster: &Cluster, tls_lines: &str, lines: &str) -> Secured {
        let folder = folder("certificates");
        let authority = Authority::new(&folder, "authority");
        let own = authority.issue("server", 30);
        let (port, admin_port) = (free_port(), free_port());
        let text = configs::kproxy(cluster, port, admin_port).replace("read_timeout_ms: 100", "read_timeout_ms: 20000");
        let (certificate, key) = (own.certificate.display(), own.key.display());
        let tls = format!("tls:\n certificate_file: {certificate}\n key_file: {key}\n{tls_lines}");
        let file = format!("{text}\n{tls}\n{lines}\n");
        let mut daemon = Daemon::start(Program::Kproxy, &[("kproxy.yaml", &file)]);
        let admin = format!("127.0.0.1:{admin_port}");
        daemon.wait_until_ready(&admin, DEADLINE);
        Secured { daemon, address: format!("127.0.0.1:{port}"), admin, authority, own }
    }

    fn client(&self) -> Client {
        self.client_as(&self.authority.client(&[&TLS12, &TLS13])).expect("the handshake succeeds")
    }

    fn client_as(&self, config: &Arc<ClientConfig>) -> io::Result<Client> {
        Client::over(&self.address, |socket| Ok(Box::new(shake(config, socket)?)))
    }

    fn socket(&self) -> TcpStream {
        let socket = TcpStream::connect(&self.address).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.set_write_timeout(Some(DEADLINE)).unwrap();
        socket
    }

    fn wait_for_metric(&self, line: &str) {
        let url = format!("http://{}/metrics", self.admin);
        wait_until(DEADLINE, line, || http::get(&url).is_ok_and(|all| all.text().lines().any(|known| known == line)));
    }

    fn wait_for_handshakes(&self, outcome: &str, count: u64) {
        self.wait_for_metric(&format!("http_tls_handshakes_total{{outcome=\"{outcome}\",server=\"http\"}} {count}"));
    }

    fn end_without_connections(mut self) {
        self.wait_for_metric("http_connections{server=\"http\"} 0");
        self.daemon.end_well(DEADLINE);
    }

    /// The first part of what a client says, which is not all of a record.
    fn half_a_hello(&self) -> Vec<u8> {
        let mut hello = Vec::new();
        begin(&self.authority.client(&[&TLS13])).write_tls(&mut hello).unwrap();
        hello.truncate(hello.len() / 2);
        hello
    }
}

/// The bytes of a commit.
fn commit(topic: &str, value: &str) -> Vec<u8> {
    let length = value.len();
    format!("POST /commit?topic={topic}&key=k HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{value}")
        .into_bytes()
}

fn values(cluster: &Cluster, topic: &str, count: usize) -> Vec<String> {
    let messages = wait_until(DEADLINE, "all messages are there", || {
        let messages = cluster.messages(topic);
        (messages.len() >= count).then_some(messages)
    });
    messages.into_iter().map(|message| String::from_utf8_lossy(&message.value).into_owned()).collect()
}

#[test]
fn commits_over_both_versions_are_stored_one_by_one_pipelined_and_large() {
    let cluster = cluster();
    let topic = cluster.new_topic("tls", 1);
    let secured = Secured::start(cluster, "", "");
    let mut expected = Vec::new();
    for version in [&TLS12, &TLS13] {
        let mut client = secured.client_as(&secured.authority.client(&[version])).unwrap();
        for number in 0..20 {
            let value = format!("{:?} one by one {number}", version.version);
            let answer = client.post(&format!("/commit?topic={topic}&key=k&acks=-1"), value.as_bytes()).unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
            expected.push(value);
        }
        // All in one piece: what is decrypted ahead of an answer must not be forgotten.
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
    // As much as the broker takes by default, several times.
    let large = "0123456789".repeat(90_000);
    for _ in 0..5 {
        let answer = client.post(&format!("/commit?topic={large_topic}&key=k"), large.as_bytes()).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert!(values(cluster, &large_topic, 5).iter().all(|value| *value == large));
    // Too large, sent whole before the answer is read.
    let mut stream = shake(&secured.authority.client(&[&TLS13]), secured.socket()).unwrap();
    let head = format!("POST /commit?topic={topic} HTTP/1.1\r\nHost: h\r\nContent-Length: 12000000\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&vec![b'x'; 12_000_000]).unwrap();
    let (answer, goodbye) = rest(&mut stream);
    assert!(answer.starts_with(b"HTTP/1.1 413 ") && goodbye, "{}", String::from_utf8_lossy(&answer));
    drop((client, stream));
    assert_eq!(cluster.messages(&topic).len(), expected.len());
    secured.end_without_connections();
}

#[test]
fn other_implementations_of_tls_are_served() {
    let cluster = cluster();
    let topic = cluster.new_topic("tls_openssl", 1);
    let secured = Secured::start(cluster, "", "");
    for version in ["-tls1_2", "-tls1_3"] {
        let mut openssl = Command::new("openssl")
            .args(["s_client", "-quiet", "-verify_return_error", "-servername", "localhost", "-alpn", "h2,http/1.1"])
            .args([version, "-connect", &secured.address, "-CAfile"])
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
        let (answer, words) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{version}: {answer}, {words}");
    }
    assert_eq!(values(cluster, &topic, 2), ["-tls1_2", "-tls1_3"]);
    secured.wait_for_handshakes("ok", 2);
    secured.end_without_connections();
}

#[test]
fn who_does_not_shake_hands_is_turned_away_and_nothing_stays() {
    let cluster = cluster();
    let topic = cluster.new_topic("tls_hostile", 1);
    let secured = Secured::start(cluster, " handshake_timeout_ms: 500", "");
    // Plain HTTP is told so, in plain HTTP.
    let told = http::post(&format!("http://{}/commit?topic={topic}", secured.address), b"plain").unwrap();
    assert_eq!(told.status, 400);
    assert!(
        told.json()["message"].as_str().unwrap().contains("https") && told.json()["stored"] == "no",
        "{}",
        told.text()
    );
    secured.wait_for_handshakes("failed", 1);
    secured.daemon.wait_for_log("TLS handshake with 127.0.0.1:", DEADLINE);

    // Garbage in a record; the rest of a hello that never comes; nothing at all.
    let mut garbage = secured.socket();
    garbage.write_all(b"\x16\x03\x01\x00\x10garbage! garbage").unwrap();
    garbage.shutdown(Shutdown::Write).unwrap();
    garbage.read_to_end(&mut Vec::new()).expect("it ends in time, without a reset");
    secured.wait_for_handshakes("failed", 2);
    let (mut half, mut silent) = (secured.socket(), secured.socket());
    half.write_all(&secured.half_a_hello()).unwrap();
    for socket in [&mut half, &mut silent] {
        socket.read_to_end(&mut Vec::new()).expect("it is closed in time");
    }
    secured.wait_for_handshakes("timeout", 2);

    // A reset in the middle of a handshake, and one in the middle of an answer.
    let mut cut = secured.socket();
    cut.write_all(&secured.half_a_hello()).unwrap();
    socket2::SockRef::from(&cut).set_linger(Some(Duration::ZERO)).unwrap();
    drop(cut);
    secured.wait_for_handshakes("failed", 3);
    let mut client = secured.client();
    client.send_raw(&commit(&topic, "cut").repeat(50)).unwrap();
    socket2::SockRef::from(client.socket()).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);

    // A body that TCP ends in the middle, though nobody said goodbye.
    let mut stream = shake(&secured.authority.client(&[&TLS13]), secured.socket()).unwrap();
    let whole = commit(&topic, "truncated");
    stream.write_all(&whole[..whole.len() - 1]).unwrap();
    stream.sock.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut stream).0, b"");
    drop(stream);

    // Takes no answers, of which there are more than the sockets hold; the write deadline ends it.
    let mut slow = shake(&secured.authority.client(&[&TLS13]), secured.socket()).unwrap();
    let asks = b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n".repeat(500);
    // It fails once kproxy has given up.
    let _ = (0..100).try_for_each(|_| slow.write_all(&asks));
    secured.wait_for_metric("http_timeouts_total{deadline=\"write\",server=\"http\"} 1");
    drop(slow);
    let good = secured.client().post(&format!("/commit?topic={topic}"), b"good").unwrap();
    assert_eq!(good.status, 200, "{}", good.text());
    let stored = cluster.messages(&topic);
    assert!(stored.iter().all(|message| message.value == b"cut" || message.value == b"good"), "{stored:?}");
    secured.end_without_connections();
}

#[test]
fn certificates_of_clients_are_asked_for_and_checked() {
    let cluster = cluster();
    let topic = cluster.new_topic("tls_clients", 1);
    let clients = Authority::new(&folder("clients"), "clients");
    let foreign = Authority::new(&folder("foreign"), "strangers").issue("foreign", 30);
    let (known, expired) = (clients.issue("known", 30), clients.issue("expired", -1));
    let client_ca = format!(" client_ca_file: {}\n", clients.own.certificate.display());
    for wanted in ["required", "optional"] {
        let secured = Secured::start(cluster, &format!("{client_ca} client_certificates: {wanted}"), "");
        let commit = |version, identity: Option<&Certificate>| {
            let mut client = secured.client_as(&secured.authority.client_with(&[version], identity))?;
            client.post(&format!("/commit?topic={topic}"), wanted.as_bytes()).map(|answer| answer.status)
        };
        for version in [&TLS12, &TLS13] {
            assert_eq!(commit(version, Some(&known)).unwrap(), 200);
            for (identity, alert) in [(&foreign, "UnknownCA"), (&expired, "CertificateExpired")] {
                let refused = commit(version, Some(identity)).unwrap_err().to_string();
                assert!(refused.contains(alert), "{wanted}: {refused}");
            }
            match commit(version, None) {
                Ok(status) => assert_eq!((status, wanted), (200, "optional")),
                Err(refused) => assert!(wanted == "required", "{wanted}: {refused}"),
            }
        }
        let failed = if wanted == "required" { 6 } else { 4 };
        secured.wait_for_handshakes("failed", failed);
        secured.end_without_connections();
    }
    assert_eq!(cluster.messages(&topic).len(), 6, "what was refused is not stored");
}

#[test]
fn sighup_shows_the_new_certificate_to_new_connections_and_a_bad_one_to_nobody() {
    let cluster = cluster();
    let topic = cluster.new_topic("tls_reload", 1);
    let mut secured = Secured::start(cluster, "", "");
    let path = format!("/commit?topic={topic}");
    let config = secured.authority.client(&[&TLS13]);
    let shown = |secured: &Secured| {
        let stream = shake(&config, secured.socket()).expect("the handshake succeeds");
        stream.conn.peer_certificates().expect("it was shown")[0].clone()
    };
    let before = certificate(&secured.own.certificate);
    assert_eq!(shown(&secured), before);
    let mut old = secured.client_as(&config).unwrap();
    assert_eq!(old.post(&path, b"before").unwrap().status, 200);

    let next = secured.authority.issue("next", 30);
    let after = certificate(&next.certificate);
    fs::copy(&next.certificate, &secured.own.certificate).unwrap();
    secured.daemon.signal(libc::SIGHUP);
    secured.daemon.wait_for_log("tls could not be read anew", DEADLINE);
    let log = secured.daemon.log();
    assert!(log.contains("which is not the key of the first certificate in"), "{log}");
    assert_eq!(shown(&secured), before, "a broken pair is not taken");

    fs::copy(&next.key, &secured.own.key).unwrap();
    secured.daemon.signal(libc::SIGHUP);
    wait_until(DEADLINE, "the new certificate is shown", || shown(&secured) == after);
    assert_eq!(old.post(&path, b"after").unwrap().status, 200, "an old connection goes on");
    drop(old);
    assert_eq!(cluster.messages(&topic).len(), 2);
    secured.end_without_connections();
}

#[test]
fn a_stop_answers_what_is_under_way_says_goodbye_and_exits_with_0() {
    let cluster = Cluster::start(1);
    let topic = cluster.new_topic("tls_stop", 1);
    let mut secured = Secured::start(&cluster, "", "shutdown_grace_ms: 10000");
    let config = secured.authority.client(&[&TLS13]);
    let mut idle = shake(&config, secured.socket()).unwrap();
    let mut busy = shake(&config, secured.socket()).unwrap();
    let mut begun = secured.socket();
    begun.write_all(&secured.half_a_hello()).unwrap();
    assert_eq!(secured.client().post(&format!("/commit?topic={topic}"), b"first").unwrap().status, 200);
    cluster.kafka_servers[0].stop_process();
    busy.write_all(&commit(&topic, "second")).unwrap();
    secured.wait_for_metric("kproxy_commits_in_flight 1");
    secured.daemon.terminate();
    assert_eq!(rest(&mut idle), (Vec::new(), true), "an idle connection is closed at once, with a goodbye");
    cluster.kafka_servers[0].continue_process();
    let (answer, goodbye) = rest(&mut busy);
    assert!(answer.starts_with(b"HTTP/1.1 200 ") && goodbye, "{}", String::from_utf8_lossy(&answer));
    drop(busy);
    assert_eq!(secured.daemon.wait(DEADLINE).code(), Some(0));
    assert_eq!(cluster.messages(&topic).len(), 2);
}

#[test]
fn a_test_of_the_configuration_names_the_file_that_is_wrong_and_shows_no_key() {
    let files = folder("certificates");
    let authority = Authority::new(&files, "authority");
    let (one, other) = (authority.issue("one", 30), authority.issue("other", 30));
    let secret = fs::read_to_string(&other.key).unwrap().lines().nth(1).unwrap().to_owned();
    let check = |certificate: &PathBuf, key: &PathBuf| {
        let tls = format!("tls: {{certificate_file: {}, key_file: {}}}", certificate.display(), key.display());
        fs::write(files.join("k.yaml"), format!("{tls}\nbroker_hosts: ['127.0.0.1:1']\n")).unwrap();
        let path = files.join("k.yaml").display().to_string();
        let mut daemon = Daemon::start_with_arguments(Program::Kproxy, &["-t", "-f", &path]);
        (daemon.wait(DEADLINE).code(), daemon.output())
    };
    let (code, output) = check(&one.certificate, &one.key);
    assert_eq!(code, Some(0), "{output}");
    for (certificate, key, told) in [
        (&one.certificate, &other.key, "tls.key_file: is "),
        (&one.certificate, &other.certificate, "tls.key_file: is "),
        (&other.key, &other.key, "tls.certificate_file: is "),
        (&files.join("absent"), &other.key, "tls.certificate_file: is "),
    ] {
        let (code, output) = check(certificate, key);
        assert_eq!(code, Some(1), "{output}");
        assert!(output.contains(told) && !output.contains(&secret), "{told}: {output}");
    }
}

#[test]
fn an_idle_connection_costs_little_memory() {
    let secured = Secured::start(cluster(), "", "");
    let config = secured.authority.client(&[&TLS13]);
    let open = |count: usize| -> Vec<_> {
        let connections = (0..count).map(|_| shake(&config, secured.socket()).expect("the handshake succeeds"));
        connections
            .map(|mut stream| {
                // Not idle before it was used.
                stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
                let mut start = [0; 12];
                stream.read_exact(&mut start).unwrap();
                assert_eq!(&start, b"HTTP/1.1 200");
                stream
            })
            .collect()
    };
    let warm = open(50);
    let before = secured.daemon.resident_bytes();
    let more = open(400);
    let each = secured.daemon.resident_bytes().saturating_sub(before) / 400;
    eprintln!("an idle TLS connection takes {each} bytes of kproxy's memory");
    assert!(each < 64 << 10, "{each} bytes");
    drop((warm, more));
    secured.end_without_connections();
}
