//! kproxy: what the body of a request becomes in Kafka when it is empty on purpose, or compressed.

use crate::harness::engine::read_partition;
use crate::harness::{Kproxy, STOP_DEADLINE, cluster, configs};

const NDJSON: (&str, &str) = ("Content-Type", "application/x-ndjson");
const BINARY: (&str, &str) = ("Content-Type", "application/octet-stream");

#[test]
fn a_tombstone_is_null_in_a_compacted_topic_and_an_accidental_empty_body_is_refused() {
    let topic = cluster().new_topic_with("compacted", 1, 1, &[("cleanup.policy", "compact")]);
    let mut kproxy = Kproxy::start_usual(cluster());
    let mut client = kproxy.connect();
    let [one, many] = ["commit", "commit_batch"].map(|endpoint| format!("/{endpoint}?topic={topic}&acks=-1"));
    let (alice, bob) = (format!("{one}&key=alice"), format!("{one}&key=bob"));
    let deletes_alice = format!("{alice}&tombstone=1");
    let null_of_bob = b"\0\0\0\x03bob\0\0\xff\xff\xff\xff";
    for (path, fields, body, status, error) in [
        (&*alice, &[][..], &b"here"[..], 200, None),
        (&*bob, &[], b"here", 200, None),
        (&*alice, &[], b"", 400, Some("empty_body")),
        (&*deletes_alice, &[], b"x", 400, Some("bad_tombstone")),
        (&*format!("{one}&tombstone=1"), &[], b"", 400, Some("bad_tombstone")),
        (&*many, &[NDJSON], br#"{"key":"bob"}"#, 400, Some("bad_batch")),
        (&*many, &[NDJSON], br#"{"key":"bob","value":""}"#, 400, Some("bad_batch")),
        (&*many, &[NDJSON], br#"{"value":null}"#, 400, Some("bad_batch")),
        (&*deletes_alice, &[], b"", 200, None),
        (&*many, &[NDJSON], br#"{"key":"bob","value":null,"headers":{"why":"erased"}}"#, 200, None),
        (&*many, &[BINARY], null_of_bob, 200, None),
    ] {
        let answer = client.request("POST", path, fields, body).unwrap();
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        if let Some(error) = error {
            assert_eq!(answer.json()["error"], error, "{path}");
        }
    }
    let found = read_partition(&cluster().brokers, &topic, 0, 5);
    let seen: Vec<_> = found
        .iter()
        .map(|message| (message.key.as_deref().unwrap_or_default(), message.value.as_deref(), message.headers.len()))
        .collect();
    let (alice, bob, here) = (&b"alice"[..], &b"bob"[..], Some(&b"here"[..]));
    let expected = [(alice, here, 0), (bob, here, 0), (alice, None, 0), (bob, None, 1), (bob, None, 0)];
    assert_eq!(seen, expected, "a consumer sees null, not an empty value");
    assert_eq!(cluster().message_count(&topic), 5, "refused requests store nothing");
    kproxy.daemon.stop(STOP_DEADLINE);
}

#[test]
fn kafka_rust_writes_tombstones_too() {
    let topic = cluster().new_topic("old_tombstones", 1);
    let mut kproxy = Kproxy::start_ready(configs::kproxy(cluster()).set("kafka_client", "kafka-rust"));
    let answer = kproxy.post(&format!("/commit?topic={topic}&key=k&tombstone=1"), b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let found = read_partition(&cluster().brokers, &topic, 0, 1);
    assert_eq!((found[0].key.as_deref(), found[0].value.as_deref()), (Some(&b"k"[..]), None));
    kproxy.daemon.stop(STOP_DEADLINE);
}
