//! The access control of kproxy, with a real broker: credentials, allowed topics and rate limits.

use std::fs;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::harness::http::{Client, Response};
use crate::harness::kproxy::{RATE_LIMITED, TOPIC_NOT_ALLOWED, UNAUTHORIZED, assert_refused};
use crate::harness::{Cluster, ConfigFile, Daemon, Kproxy, Program, cluster, configs, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);
/// The SHA-256 digest of the token and password `digested`.
const DIGEST: &str = "62f2b4a72d1b5d56ccac2eea669989c3ae07badc27c3022910f5a9fa9c219ab2";

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Returns the text of a credentials file with this list.
fn credentials(list: Value) -> String {
    ConfigFile::of("credentials").set("credentials", list).text()
}

/// A kproxy with a credentials file, and that file.
struct Guarded {
    kproxy: Kproxy,
    file: NamedTempFile,
}

impl Guarded {
    fn start(config: ConfigFile, list: Value) -> Guarded {
        let file = NamedTempFile::new().unwrap();
        fs::write(file.path(), credentials(list)).unwrap();
        let kproxy = Kproxy::start_ready(config.set("credentials_file", file.path()));
        Guarded { kproxy, file }
    }

    /// Overwrites the credentials file and sends SIGHUP; returns when kproxy has logged `outcome` once more.
    fn reload(&mut self, text: &str, outcome: &str) {
        let before = self.kproxy.daemon.log().matches(outcome).count();
        fs::write(self.file.path(), text).unwrap();
        self.kproxy.daemon.signal(libc::SIGHUP);
        wait_until(DEADLINE, "the reload is logged", || self.kproxy.daemon.log().matches(outcome).count() > before);
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

#[test]
fn only_a_known_credential_writes_and_only_to_its_topics() {
    let cluster = cluster();
    let topics = ["orders", "audit", "other"].map(|prefix| cluster.new_topic(prefix, 2));
    let list = json!([
        {"name": "all", "token": "plain-t0ken"},
        {"name": "digested", "token_sha256": DIGEST},
        {"name": "ann", "user": "ann", "password": "pa:ss"},
        {"name": "bob", "user": "bob", "password_sha256": DIGEST, "topics": ["orders*"]},
    ]);
    let mut guarded = Guarded::start(configs::kproxy(cluster).set("allowed_topics", ["orders*", "audit*"]), list);
    let mut texts = check_every_credential(&guarded.kproxy, &topics);
    let [orders, audit, other] = &topics;
    check_unusual_requests(&guarded.kproxy, orders, other);
    check_operations(&guarded.kproxy);
    assert!(guarded.kproxy.has_metric("kproxy_unauthorized_total{reason=\"missing\"} 7"));

    assert_eq!([orders, audit, other].map(|topic| cluster.message_count(topic)), [7, 1, 0]);
    guarded.kproxy.daemon.stop(DEADLINE);
    let log = guarded.kproxy.daemon.log();
    assert_eq!(log.matches(" credential=bob").count(), 2, "the log names the credential");
    texts.push(log);
    texts.push(guarded.kproxy.daemon.output());
    let encoded = STANDARD.encode("ann:pa:ss");
    for text in texts {
        for secret in ["plain-t0ken", "pa:ss", encoded.as_str(), &DIGEST[..16], "digested&", "Bearer d"] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
    }
}

/// Posts with valid and invalid credentials to each topic; returns the bodies of the answers.
fn check_every_credential(kproxy: &Kproxy, [orders, audit, other]: &[String; 3]) -> Vec<String> {
    let [token, digested, ann, bob] =
        [bearer("plain-t0ken"), bearer("digested"), basic("ann", "pa:ss"), basic("bob", "digested")];
    let (unauthorized, not_allowed) = (Some(UNAUTHORIZED), Some(TOPIC_NOT_ALLOWED));
    let mut client = kproxy.connect();
    let rows = [
        (orders.as_str(), Some(token.clone()), None),
        (orders, Some(digested), None),
        (orders, Some(ann.clone()), None),
        (orders, Some(bob.clone()), None),
        (audit, Some(ann), None),
        (audit, Some(bob.clone()), not_allowed),
        (other, Some(bob), not_allowed),
        (other, Some(token), not_allowed),
        (orders, None, unauthorized),
        (other, None, unauthorized),
        ("no/topic", None, unauthorized),
        (orders, Some(bearer("plain-t0keN")), unauthorized),
        (orders, Some(bearer(DIGEST)), unauthorized),
        (orders, Some(bearer("")), unauthorized),
        (orders, Some(basic("ann", "digested")), unauthorized),
        (orders, Some(basic("ann", "")), unauthorized),
        (orders, Some(basic("eve", "pa:ss")), unauthorized),
        (orders, Some("Basic !!".to_owned()), unauthorized),
        (orders, Some("plain-t0ken".to_owned()), unauthorized),
        (orders, Some("Digest username=\"ann\"".to_owned()), unauthorized),
    ];
    let mut texts = Vec::new();
    for (topic, authorization, refusal) in rows {
        let answer = post(&mut client, &format!("/commit?topic={topic}"), authorization.as_deref(), b"x");
        let when = format!("{topic} {authorization:?}");
        match refusal {
            Some(refusal) => assert_refused(&answer, refusal, &when),
            None => assert_eq!(answer.status, 200, "{when}"),
        }
        let challenge = "Bearer realm=\"kproxy\", Basic realm=\"kproxy\", charset=\"UTF-8\"";
        assert_eq!(answer.header("WWW-Authenticate"), (answer.status == 401).then_some(challenge), "{when}");
        texts.push(answer.text());
    }
    texts
}

/// Checks unusual requests: two credentials, a refusal before the body is read, a batch, a secret in the query.
fn check_unusual_requests(kproxy: &Kproxy, orders: &str, other: &str) {
    let [token, ann, bob] = [bearer("plain-t0ken"), basic("ann", "pa:ss"), basic("bob", "digested")];
    let path = format!("/commit?topic={orders}");
    let refused =
        |user: &str, password: &str| post(&mut kproxy.connect(), &path, Some(&basic(user, password)), b"x").text();
    assert_eq!(refused("ann", "wrong"), refused("nobody", "wrong"), "the answer does not reveal which users exist");

    // Two `Authorization` headers are refused, although each alone would be accepted.
    let mut client = kproxy.connect();
    let both = [("Authorization", token.as_str()), ("Authorization", ann.as_str())];
    assert_refused(&client.request("POST", &path, &both, b"x").unwrap(), UNAUTHORIZED, "two credentials");

    // kproxy answers before it asks for the body (100 Continue) or reads it.
    for (expect, authorization) in [("Expect: 100-continue\r\n", ""), ("", "Authorization: Bearer no\r\n")] {
        let mut client = kproxy.connect();
        let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n");
        client.send_raw(format!("{head}{expect}{authorization}\r\n").as_bytes()).unwrap();
        let (_, head) = client.read_head().unwrap();
        assert_eq!((head.status, head.header("Connection")), (401, Some("close")));
    }

    // A batch is checked in the same way.
    for (topic, authorization, status) in [(orders, None, 401), (other, Some(&bob), 403), (orders, Some(&bob), 200)] {
        let answer = post_batch(&mut client, topic, authorization.map(String::as_str), 2);
        assert_eq!(answer.status, status, "{}", answer.text());
    }

    // A secret in the query does not authorize the request. The caller checks that it is not logged.
    let path = format!("{path}&access_token=plain-t0ken");
    assert_eq!(post(&mut client, &path, None, b"x").status, 401);
    assert_eq!(post(&mut client, &path, Some(&token), b"x").status, 200);
}

/// Checks that on the client port /metrics needs a credential, and that /healthz and /readyz need none.
fn check_operations(kproxy: &Kproxy) {
    let mut client = kproxy.connect();
    for (path, status) in [("/metrics", 401), ("/healthz", 200), ("/readyz", 200)] {
        assert_eq!(client.get(path).unwrap().status, status, "{path}");
    }
    let bob = basic("bob", "digested");
    assert_eq!(client.request("GET", "/metrics", &[("Authorization", &bob)], b"").unwrap().status, 200);
}

#[test]
fn sighup_reloads_the_credentials_and_a_bad_file_keeps_the_old_ones() {
    let cluster = cluster();
    let topic = cluster.new_topic("reload", 1);
    let path = format!("/commit?topic={topic}");
    let credential = |name: &str| json!({"name": name, "token": format!("token-{name}")});
    let mut guarded = Guarded::start(configs::kproxy(cluster), json!([credential("a"), credential("b")]));
    let mut client = guarded.kproxy.connect();
    let mut statuses =
        || ["token-a", "token-b", "token-c"].map(|token| post(&mut client, &path, Some(&bearer(token)), b"x").status);
    assert_eq!(statuses(), [200, 200, 401]);

    // A rotation of the logs does not put a file into force that somebody is editing.
    fs::write(guarded.file.path(), credentials(json!([credential("c")]))).unwrap();
    guarded.kproxy.daemon.signal(libc::SIGUSR1);
    guarded.kproxy.daemon.wait_for_log("log files reopened", DEADLINE);
    assert_eq!(statuses(), [200, 200, 401]);

    guarded.reload(&credentials(json!([credential("b"), credential("c")])), " reloaded: 2 credentials");
    assert_eq!(statuses(), [401, 200, 200], "on a connection that is older than the reload");

    let bad = json!([credential("a"), {"name": "a", "token": "token-b", "tpics": ["x"]}]);
    guarded.reload(&credentials(bad), "stays in force");
    assert_eq!(statuses(), [401, 200, 200]);
    assert!(guarded.kproxy.has_metric("kproxy_credentials_stale 1"));
    fs::remove_file(guarded.file.path()).unwrap();
    guarded.kproxy.daemon.signal(libc::SIGHUP);
    wait_until(DEADLINE, "the missing file is logged", || guarded.kproxy.daemon.log().contains("cannot be read"));
    assert_eq!(statuses(), [401, 200, 200]);

    guarded.reload(&credentials(json!([credential("a")])), " reloaded: 1 credentials");
    assert_eq!(statuses(), [200, 401, 401]);
    assert!(guarded.kproxy.has_metric("kproxy_credentials_stale 0"));
    assert_eq!(cluster.message_count(&topic), 11);
    guarded.kproxy.daemon.stop(DEADLINE);
    let log = guarded.kproxy.daemon.log();
    let problem = "credentials[2].name: is the name of an earlier credential";
    assert!(log.contains(problem), "every problem of the file is logged");
    assert!(!log.contains("token-"), "no secret is logged");
}

/// Posts until the first 429; returns the number of 200s before it, and its `Retry-After` in seconds.
fn post_until_limited(client: &mut Client, path: &str, authorization: &str, body: &[u8]) -> (i64, u64) {
    let started = Instant::now();
    let mut passed = 0;
    while started.elapsed() < DEADLINE {
        let answer = post(client, path, Some(authorization), body);
        if answer.status != 200 {
            return (passed, retry_after(&answer));
        }
        passed += 1;
    }
    panic!("{passed} requests passed and none was limited");
}

/// Returns the `Retry-After` of a 429 in seconds; panics for any other answer.
fn retry_after(answer: &Response) -> u64 {
    assert_refused(answer, RATE_LIMITED, "over the rate");
    answer.header("Retry-After").unwrap().parse().unwrap()
}

/// Sleeps for `seconds`, as a client has to after a 429. Only time refills the token bucket.
fn wait_seconds(seconds: u64) {
    std::thread::sleep(Duration::from_secs(seconds));
}

/// Starts a kproxy with rate limits for topics and for the credential `slow`.
fn limited(cluster: &Cluster) -> Guarded {
    let limits = json!([
        {"topics": ["rate-requests*"], "requests_per_second": 1, "burst_seconds": 4},
        {"topics": ["rate-bytes*"], "bytes_per_second": 1000},
        {"topics": ["rate-batch*"], "requests_per_second": 10},
    ]);
    let list = json!([
        {"name": "quick", "token": "quick"},
        {"name": "slow", "token": "slow", "requests_per_second": 1, "burst_seconds": 2},
    ]);
    Guarded::start(configs::kproxy(cluster).set("rate_limits", limits), list)
}

#[test]
fn over_a_rate_429_names_the_time_after_which_a_retry_passes() {
    let cluster = cluster();
    let topics = ["rate-requests", "rate-bytes", "rate-batch", "free"].map(|prefix| cluster.new_topic(prefix, 1));
    let guarded = limited(cluster);
    let [requests, bytes, batch, free] = &topics;
    limit_a_topic_by_requests(&guarded.kproxy, cluster, requests);
    limit_a_topic_by_bytes(&guarded.kproxy, cluster, bytes);
    limit_a_topic_by_the_messages_of_batches(&guarded.kproxy, cluster, batch);
    limit_a_credential(&guarded.kproxy, cluster, free);
    assert!(guarded.kproxy.has_metric("kproxy_rate_limited_total{by=\"credential\"} 1"));
    assert!(guarded.kproxy.has_metric("kproxy_rate_limited_total{by=\"topic\"} 4"));
}

fn limit_a_topic_by_requests(kproxy: &Kproxy, cluster: &Cluster, topic: &str) {
    let (mut client, quick) = (kproxy.connect(), bearer("quick"));
    let path = format!("/commit?topic={topic}");
    let started = Instant::now();
    let (passed, wait) = post_until_limited(&mut client, &path, &quick, b"x");
    // The bucket refills by one request a second, so on a slow machine more than 4 requests pass.
    let max_passed = 4 + i64::try_from(started.elapsed().as_secs()).unwrap() + 1;
    assert!((4..=max_passed).contains(&passed), "{passed} of 4");
    assert_eq!(wait, 1);
    wait_seconds(wait);
    assert_eq!(post(&mut client, &path, Some(&quick), b"x").status, 200, "after Retry-After");
    assert_eq!(cluster.message_count(topic), passed + 1);
}

/// A message larger than `bytes_per_second` passes if the bucket is full. Later messages get 429 until the bucket has
/// refilled.
fn limit_a_topic_by_bytes(kproxy: &Kproxy, cluster: &Cluster, topic: &str) {
    let (mut client, quick) = (kproxy.connect(), bearer("quick"));
    let path = format!("/commit?topic={topic}");
    assert_eq!(post(&mut client, &path, Some(&quick), &[b'x'; 6000]).status, 200);
    let wait = retry_after(&post(&mut client, &path, Some(&quick), b"small"));
    assert!((1..=6).contains(&wait), "{wait}");
    // kproxy answers 429 before it asks for the body (100 Continue) or reads it.
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: h\r\nAuthorization: {quick}\r\nContent-Length: 9000000\r\n\
         Expect: 100-continue\r\n\r\n"
    );
    let mut expecting = kproxy.connect();
    expecting.send_raw(head.as_bytes()).unwrap();
    assert_eq!(expecting.read_head().unwrap().1.status, 429);
    wait_seconds(wait);
    assert_eq!(post(&mut client, &path, Some(&quick), b"small").status, 200);
    assert_eq!(cluster.message_count(topic), 2);
}

/// Each message of a batch counts as a request. A batch passes as a whole if the bucket is full, and a later batch gets
/// 429 until the bucket has refilled.
fn limit_a_topic_by_the_messages_of_batches(kproxy: &Kproxy, cluster: &Cluster, topic: &str) {
    let (mut client, quick) = (kproxy.connect(), bearer("quick"));
    assert_eq!(post_batch(&mut client, topic, Some(&quick), 100).status, 200);
    let answer = post_batch(&mut client, topic, Some(&quick), 1);
    let wait: u64 = answer.header("Retry-After").unwrap().parse().unwrap();
    assert!(answer.status == 429 && (2..=10).contains(&wait), "{wait} {}", answer.text());
    assert_eq!(cluster.message_count(topic), 100);
}

/// The rate limit of a credential holds for all topics, and other credentials are not limited by it.
fn limit_a_credential(kproxy: &Kproxy, cluster: &Cluster, topic: &str) {
    let (mut client, quick, slow) = (kproxy.connect(), bearer("quick"), bearer("slow"));
    let path = format!("/commit?topic={topic}");
    let (passed, wait) = post_until_limited(&mut client, &path, &slow, b"x");
    assert!(passed >= 2 && wait == 1, "{passed} {wait}");
    for _ in 0..20 {
        assert_eq!(post(&mut client, &path, Some(&quick), b"x").status, 200);
    }
    wait_seconds(wait);
    assert_eq!(post(&mut client, &path, Some(&slow), b"x").status, 200);
    assert_eq!(cluster.message_count(topic), passed + 21);
}

/// Runs `kproxy_bin -t` with this configuration and these credentials; returns the exit code and the output.
fn check_configuration(config: ConfigFile, list: Value) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let [who, main] = ["who.yaml", "kproxy.yaml"].map(|name| folder.path().join(name));
    fs::write(&who, credentials(list)).unwrap();
    fs::write(&main, config.set("credentials_file", &who).text()).unwrap();
    let mut daemon = Daemon::start_with_arguments(Program::Kproxy, &["-t", "-f", main.to_str().unwrap()]);
    (daemon.wait(DEADLINE).code(), daemon.output())
}

#[test]
fn a_check_of_the_configuration_reads_the_credentials_and_prints_no_secret() {
    let bad = ConfigFile::of("kproxy").set("allowed_topics", ["a["]).set("rate_limits", json!([{"topics": ["*"]}]));
    let list = json!([{"name": "a", "token": "SECRET SECRET"}, {"user": "SECRET"}]);
    let (code, text) = check_configuration(bad, list);
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

    let (code, text) = check_configuration(ConfigFile::of("kproxy"), json!([{"name": "a", "token": "SECRET"}]));
    assert!(code == Some(0) && !text.contains("SECRET"), "{text}");
}
