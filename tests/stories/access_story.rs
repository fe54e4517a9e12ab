//! Who may write what with kproxy, and how much: credentials, topics and rates, with a real broker behind.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tempfile::NamedTempFile;

use crate::harness::http::{self, Client, Response};
use crate::harness::{Cluster, Program, binary, cluster, wait_until};
use crate::kproxy_story::Kproxy;

const DEADLINE: Duration = Duration::from_secs(30);
/// SHA-256 of `digested`.
const DIGEST: &str = "62f2b4a72d1b5d56ccac2eea669989c3ae07badc27c3022910f5a9fa9c219ab2";

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Credentials, and a kproxy that asks for them.
struct Guarded {
    kproxy: Kproxy,
    file: NamedTempFile,
}

impl Guarded {
    fn start(cluster: &Cluster, credentials: &str, lines: &str) -> Guarded {
        let file = NamedTempFile::new().unwrap();
        fs::write(file.path(), credentials).unwrap();
        let lines = format!("credentials_file: {}\n{lines}", file.path().display());
        Guarded { kproxy: Kproxy::start_ready(cluster, &lines), file }
    }

    /// Writes the file anew and has it read; returns when the log says what came of it.
    fn reload(&mut self, credentials: &str, outcome: &str) {
        let before = self.kproxy.daemon.log().matches(outcome).count();
        fs::write(self.file.path(), credentials).unwrap();
        self.kproxy.daemon.signal(libc::SIGHUP);
        wait_until(DEADLINE, "the file was read anew", || self.kproxy.daemon.log().matches(outcome).count() > before);
    }

    fn has_metric(&self, line: &str) -> bool {
        let text = http::get(&format!("http://{}/metrics", self.kproxy.admin)).unwrap().text();
        text.lines().any(|known| known == line)
    }
}

fn post(client: &mut Client, path: &str, authorization: Option<&str>, body: &[u8]) -> Response {
    let headers: Vec<_> = authorization.map(|value| ("Authorization", value)).into_iter().collect();
    client.request("POST", path, &headers, body).unwrap()
}

fn post_batch(client: &mut Client, topic: &str, authorization: Option<&str>, n_messages: usize) -> Response {
    let mut headers = vec![("Content-Type", "application/x-ndjson")];
    headers.extend(authorization.map(|value| ("Authorization", value)));
    let body = "{\"value\":\"x\"}\n".repeat(n_messages);
    client.request("POST", &format!("/commit_batch?topic={topic}"), &headers, body.as_bytes()).unwrap()
}

/// Status and the word for programs; checks what every refusal has to say.
fn outcome(answer: &Response) -> (u16, String) {
    if answer.status == 200 {
        return (200, String::new());
    }
    let body = answer.json();
    assert_eq!(body["stored"], "no", "{body}");
    assert_eq!(body["retriable"], answer.status == 429, "{body}");
    (answer.status, body["error"].as_str().unwrap().to_owned())
}

fn n_stored(cluster: &Cluster, topic: &str) -> i64 {
    cluster.log_ends(topic).values().sum()
}

#[test]
fn only_who_may_writes_and_only_where() {
    let cluster = cluster();
    let [orders, audit, other] = ["orders", "audit", "other"].map(|prefix| cluster.new_topic(prefix, 2));
    let credentials = format!(
        "credentials:
 - {{name: all, token: plain-t0ken}}
 - {{name: digested, token_sha256: {DIGEST}}}
 - {{name: ann, user: ann, password: 'pa:ss'}}
 - {{name: bob, user: bob, password_sha256: {DIGEST}, topics: ['orders*']}}
"
    );
    let mut guarded = Guarded::start(cluster, &credentials, "allowed_topics: ['orders*', 'audit*']");
    let [token, digested, ann, bob] =
        [bearer("plain-t0ken"), bearer("digested"), basic("ann", "pa:ss"), basic("bob", "digested")];
    let (ok, unauthorized) = ((200, ""), (401, "unauthorized"));
    let not_allowed = (403, "topic_not_allowed");
    let mut client = Client::connect(&guarded.kproxy.address).unwrap();
    let rows: Vec<(&str, Option<String>, (u16, &str))> = vec![
        (&orders, Some(token.clone()), ok),
        (&orders, Some(digested), ok),
        (&orders, Some(ann.clone()), ok),
        (&orders, Some(bob.clone()), ok),
        (&audit, Some(ann.clone()), ok),
        (&audit, Some(bob.clone()), not_allowed),
        (&other, Some(bob.clone()), not_allowed),
        (&other, Some(token.clone()), not_allowed),
        (&orders, None, unauthorized),
        (&other, None, unauthorized),
        ("no/topic", None, unauthorized),
        (&orders, Some(bearer("plain-t0keN")), unauthorized),
        (&orders, Some(bearer(DIGEST)), unauthorized),
        (&orders, Some(bearer("")), unauthorized),
        (&orders, Some(basic("ann", "digested")), unauthorized),
        (&orders, Some(basic("ann", "")), unauthorized),
        (&orders, Some(basic("eve", "pa:ss")), unauthorized),
        (&orders, Some("Basic !!".to_owned()), unauthorized),
        (&orders, Some("plain-t0ken".to_owned()), unauthorized),
        (&orders, Some("Digest username=\"ann\"".to_owned()), unauthorized),
    ];
    let mut texts = Vec::new();
    for (topic, authorization, expected) in &rows {
        let answer = post(&mut client, &format!("/commit?topic={topic}"), authorization.as_deref(), b"x");
        assert_eq!(outcome(&answer), (expected.0, expected.1.to_owned()), "{topic} {authorization:?}");
        let challenge = answer.header("WWW-Authenticate");
        if answer.status == 401 {
            assert_eq!(challenge, Some("Bearer realm=\"kproxy\", Basic realm=\"kproxy\", charset=\"UTF-8\""));
        } else {
            assert_eq!(challenge, None);
        }
        texts.push(answer.text());
    }
    let refused = |user: &str, password: &str| {
        let mut client = Client::connect(&guarded.kproxy.address).unwrap();
        post(&mut client, &format!("/commit?topic={orders}"), Some(&basic(user, password)), b"x").text()
    };
    assert_eq!(refused("ann", "wrong"), refused("nobody", "wrong"), "one cannot ask which users there are");

    // One of two would do, but which of them was meant?
    let both = [("Authorization", token.as_str()), ("Authorization", ann.as_str())];
    let answer = client.request("POST", &format!("/commit?topic={orders}"), &both, b"x").unwrap();
    assert_eq!(outcome(&answer), (401, "unauthorized".to_owned()));

    // A large body is not asked for, and not waited for.
    for (expect, authorization) in [("Expect: 100-continue\r\n", ""), ("", "Authorization: Bearer no\r\n")] {
        let mut client = Client::connect(&guarded.kproxy.address).unwrap();
        let head = format!("POST /commit?topic={orders} HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n");
        client.send_raw(format!("{head}{expect}{authorization}\r\n").as_bytes()).unwrap();
        let (_, head) = client.read_head().unwrap();
        assert_eq!((head.status, head.header("Connection")), (401, Some("close")));
    }

    // A batch is asked the same.
    for (topic, authorization, status) in [(&orders, None, 401), (&other, Some(&bob), 403), (&orders, Some(&bob), 200)]
    {
        let answer = post_batch(&mut client, topic, authorization.map(String::as_str), 2);
        assert_eq!(answer.status, status, "{}", answer.text());
    }

    // A secret where none belongs is of no use, and not in the log.
    let answer = post(&mut client, &format!("/commit?topic={orders}&access_token=plain-t0ken"), None, b"x");
    assert_eq!(answer.status, 401);
    let answer = post(&mut client, &format!("/commit?topic={orders}&access_token=plain-t0ken"), Some(&token), b"x");
    assert_eq!(answer.status, 200);

    for (path, status) in [("/metrics", 401), ("/healthz", 200), ("/readyz", 200)] {
        assert_eq!(client.get(path).unwrap().status, status, "{path}");
    }
    assert_eq!(client.request("GET", "/metrics", &[("Authorization", &bob)], b"").unwrap().status, 200);
    assert!(guarded.has_metric("kproxy_unauthorized_total{reason=\"missing\"} 7"));

    assert_eq!(n_stored(cluster, &orders), 7);
    assert_eq!(n_stored(cluster, &audit), 1);
    assert_eq!(n_stored(cluster, &other), 0);
    guarded.kproxy.daemon.end_well(DEADLINE);
    let log = guarded.kproxy.daemon.log();
    assert_eq!(log.matches(" credential=bob").count(), 2, "who wrote is in the log");
    texts.push(log);
    texts.push(guarded.kproxy.daemon.output());
    let encoded = STANDARD.encode("ann:pa:ss");
    for text in texts {
        for secret in ["plain-t0ken", "pa:ss", encoded.as_str(), &DIGEST[..16], "digested&", "Bearer d"] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
    }
}

#[test]
fn credentials_change_while_kproxy_runs() {
    let cluster = cluster();
    let topic = cluster.new_topic("reload", 1);
    let path = format!("/commit?topic={topic}");
    let both = "credentials:\n - {name: a, token: token-a}\n - {name: b, token: token-b}\n";
    let mut guarded = Guarded::start(cluster, both, "");
    let mut client = Client::connect(&guarded.kproxy.address).unwrap();
    let mut statuses =
        || ["token-a", "token-b", "token-c"].map(|token| post(&mut client, &path, Some(&bearer(token)), b"x").status);
    assert_eq!(statuses(), [200, 200, 401]);

    guarded.reload(
        "credentials:\n - {name: b, token: token-b}\n - {name: c, token: token-c}\n",
        " read anew: 2 credentials",
    );
    assert_eq!(statuses(), [401, 200, 200], "on a connection that was there before");

    guarded.reload(
        "credentials:\n - {name: a, token: token-a}\n - {name: a, token: token-b, tpics: [x]}\n",
        "stays in force",
    );
    assert_eq!(statuses(), [401, 200, 200]);
    assert!(guarded.has_metric("kproxy_credentials_stale 1"));
    fs::remove_file(guarded.file.path()).unwrap();
    guarded.kproxy.daemon.signal(libc::SIGHUP);
    wait_until(DEADLINE, "a file that is gone", || guarded.kproxy.daemon.log().contains("cannot be read"));
    assert_eq!(statuses(), [401, 200, 200]);

    guarded.reload("credentials:\n - {name: a, token: token-a}\n", " read anew: 1 credentials");
    assert_eq!(statuses(), [200, 401, 401]);
    assert!(guarded.has_metric("kproxy_credentials_stale 0"));
    assert_eq!(n_stored(cluster, &topic), 9);
    guarded.kproxy.daemon.end_well(DEADLINE);
    let log = guarded.kproxy.daemon.log();
    assert!(
        log.contains("credentials[2].name: is the same as that of one before it"),
        "all that is wrong is in the log"
    );
    assert!(!log.contains("token-"), "and no secret is");
}

/// Posts until there is a 429; the number of 200s before it, and the seconds it says to wait.
fn until_limited(client: &mut Client, path: &str, authorization: Option<&str>, body: &[u8]) -> (i64, u64) {
    let started = Instant::now();
    let mut passed = 0;
    while started.elapsed() < DEADLINE {
        let answer = post(client, path, authorization, body);
        if answer.status == 200 {
            passed += 1;
            continue;
        }
        assert_eq!(outcome(&answer), (429, "rate_limited".to_owned()));
        return (passed, answer.header("Retry-After").unwrap().parse().unwrap());
    }
    panic!("{passed} passed and no limit");
}

#[test]
fn over_a_rate_one_is_told_when_to_come_back() {
    let cluster = cluster();
    let [requests, bytes, batch, free] =
        ["rate-requests", "rate-bytes", "rate-batch", "free"].map(|prefix| cluster.new_topic(prefix, 1));
    let lines = "rate_limits:
 - {topics: ['rate-requests*'], requests_per_second: 1, burst_seconds: 4}
 - {topics: ['rate-bytes*'], bytes_per_second: 1000}
 - {topics: ['rate-batch*'], requests_per_second: 10}
";
    let credentials = "credentials:
 - {name: quick, token: quick}
 - {name: slow, token: slow, requests_per_second: 1, burst_seconds: 2}
";
    let guarded = Guarded::start(cluster, credentials, lines);
    let mut client = Client::connect(&guarded.kproxy.address).unwrap();
    let (quick, slow) = (bearer("quick"), bearer("slow"));
    let told_to_wait = |seconds: u64| std::thread::sleep(Duration::from_secs(seconds));

    // A topic by requests. On a slow machine some come in while it is posted.
    let path = format!("/commit?topic={requests}");
    let started = Instant::now();
    let (passed, wait) = until_limited(&mut client, &path, Some(&quick), b"x");
    let most = 4 + i64::try_from(started.elapsed().as_secs()).unwrap() + 1;
    assert!((4..=most).contains(&passed), "{passed} of 4");
    assert_eq!(wait, 1);
    told_to_wait(wait);
    assert_eq!(post(&mut client, &path, Some(&quick), b"x").status, 200, "after the time that was told");
    assert_eq!(n_stored(cluster, &requests), passed + 1);

    // A topic by bytes: what is larger than a second's worth passes when nothing was posted before, and is a debt then.
    let path = format!("/commit?topic={bytes}");
    let large = vec![b'x'; 6000];
    assert_eq!(post(&mut client, &path, Some(&quick), &large).status, 200);
    let answer = post(&mut client, &path, Some(&quick), b"small");
    assert_eq!(outcome(&answer), (429, "rate_limited".to_owned()));
    let wait: u64 = answer.header("Retry-After").unwrap().parse().unwrap();
    assert!((1..=6).contains(&wait), "{wait}");
    // Refused before the body: it is neither asked for nor read.
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: h\r\nAuthorization: {quick}\r\nContent-Length: 9000000\r\nExpect: 100-continue\r\n\r\n"
    );
    let mut expecting = Client::connect(&guarded.kproxy.address).unwrap();
    expecting.send_raw(head.as_bytes()).unwrap();
    assert_eq!(expecting.read_head().unwrap().1.status, 429);
    told_to_wait(wait);
    assert_eq!(post(&mut client, &path, Some(&quick), b"small").status, 200);
    assert_eq!(n_stored(cluster, &bytes), 2);

    // The messages of a batch are as many requests: they pass together, and the next one waits for them.
    assert_eq!(post_batch(&mut client, &batch, Some(&quick), 100).status, 200);
    let answer = post_batch(&mut client, &batch, Some(&quick), 1);
    let wait: u64 = answer.header("Retry-After").unwrap().parse().unwrap();
    assert!(answer.status == 429 && (2..=10).contains(&wait), "{wait} {}", answer.text());
    assert_eq!(n_stored(cluster, &batch), 100);

    // A credential, whatever the topic; the other one is not in its way.
    let path = format!("/commit?topic={free}");
    let (passed, wait) = until_limited(&mut client, &path, Some(&slow), b"x");
    assert!(passed >= 2 && wait == 1, "{passed} {wait}");
    for _ in 0..20 {
        assert_eq!(post(&mut client, &path, Some(&quick), b"x").status, 200);
    }
    told_to_wait(wait);
    assert_eq!(post(&mut client, &path, Some(&slow), b"x").status, 200);
    assert_eq!(n_stored(cluster, &free), passed + 21);
    assert!(guarded.has_metric("kproxy_rate_limited_total{by=\"credential\"} 1"));
    assert!(guarded.has_metric("kproxy_rate_limited_total{by=\"topic\"} 4"));
}

#[test]
fn a_check_of_the_configuration_reads_the_credentials_and_tells_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("who.yaml", "credentials:\n - {name: a, token: SECRET SECRET}\n - {user: SECRET}\n");
    write(
        "kproxy.yaml",
        "broker_hosts: ['h:1']\nallowed_topics: ['a[']\ncredentials_file: who.yaml\nrate_limits: [{topics: ['*']}]\n",
    );
    let check = || {
        let mut command = Command::new(binary(Program::Kproxy));
        let output = command.args(["-t", "-f", "kproxy.yaml"]).current_dir(folder.path()).output().unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (code, text) = check();
    assert_eq!(code, Some(1), "{text}");
    for part in [
        "allowed_topics: has \"a[\"",
        "who.yaml: credentials[1].token",
        "credentials[2].name",
        "rate_limits[1]",
        "5 problems",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("SECRET"), "{text}");

    write("who.yaml", "credentials:\n - {name: a, token: SECRET}\n");
    write("kproxy.yaml", "broker_hosts: ['h:1']\ncredentials_file: who.yaml\n");
    let (code, text) = check();
    assert!(code == Some(0) && !text.contains("SECRET"), "{text}");
}
