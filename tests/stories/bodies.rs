//! kproxy: what the body of a request becomes in Kafka when it is empty on purpose, or compressed.

use std::io::Write;
use std::time::Duration;

use crate::harness::engine::read_partition;
use crate::harness::kproxy::assert_refused;
use crate::harness::{Backend, Kproxy, Ktransfer, STOP_DEADLINE, cluster, configs, unique};

const DEADLINE: Duration = Duration::from_secs(60);

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

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn compressed_batches_are_decoded_and_a_bomb_costs_no_memory() {
    const BUDGET: usize = 30_000_000;
    let topic = cluster().new_topic("compressed", 1);
    let config = configs::kproxy(cluster()).set("max_in_flight_bytes", BUDGET).set("read_timeout_ms", 10_000);
    let mut kproxy = Kproxy::start_ready(config);
    let path = format!("/commit_batch?topic={topic}&acks=-1");
    let plain = b"{\"value\":\"one\"}\n{\"value\":\"two\"}\n";
    let zlib = {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    };
    let mut zstd = Vec::new();
    ruzstd::encoding::compress(&plain[..], &mut zstd, ruzstd::encoding::CompressionLevel::Fastest);
    let mut client = kproxy.connect();
    let mut post = |coding: &str, body: &[u8]| {
        client.request("POST", &path, &[NDJSON, ("Content-Encoding", coding)], body).unwrap()
    };
    for (coding, body) in [("gzip", &gzip(plain)), ("X-Gzip", &gzip(plain)), ("deflate", &zlib), ("zstd", &zstd)] {
        let answer = post(coding, body);
        assert_eq!((answer.status, answer.text().lines().count()), (200, 2), "{coding}: {}", answer.text());
    }
    let whole = gzip(plain);
    assert_refused(&post("gzip", &whole[..whole.len() - 4]), (400, "bad_coding", "no", false), "truncated");
    assert_refused(&post("gzip", plain), (400, "bad_coding", "no", false), "not compressed");
    let refused = post("br", &whole);
    assert_refused(&refused, (415, "unsupported_coding", "no", false), "br");
    assert_eq!(refused.header("Accept-Encoding"), Some("gzip, deflate, zstd"));

    // 256 MiB in a small body: each request is refused, and the memory of requests stays within its budget.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    (0..256).for_each(|_| encoder.write_all(&[b' '; 1 << 20]).unwrap());
    let bomb = encoder.finish().unwrap();
    assert!(bomb.len() < 3_000_000, "{}", bomb.len());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = kproxy.connect();
                let fields = [NDJSON, ("Content-Encoding", "gzip")];
                let answer = client.request("POST", &path, &fields, &bomb).unwrap();
                assert!(matches!(answer.status, 413 | 503), "{}", answer.text());
            });
        }
    });
    let peak = kproxy.daemon.peak_resident_bytes();
    eprintln!("with 8 bombs kproxy had at most {} MB resident", peak >> 20);
    assert!(peak < 3 * BUDGET as u64, "{peak}");
    kproxy.wait_for_metric("kproxy_in_flight_bytes 0", DEADLINE);
    assert_eq!(cluster().message_count(&topic), 8);
    kproxy.daemon.stop(STOP_DEADLINE);
}

#[test]
fn the_coding_of_a_commit_reaches_the_backend_unless_it_is_decoded() {
    let topic = cluster().new_topic("coded", 1);
    let (module, backend) = (unique("coded"), Backend::start());
    let body = gzip(b"hello");
    for (choice, fields) in [
        ("keep", &[("Content-Encoding", "gzip")][..]),
        ("keep", &[("X-Kafka-Header-Content-Encoding", "rot13")]),
        ("decode", &[("Content-Encoding", "gzip")]),
    ] {
        let mut kproxy = Kproxy::start_ready(configs::kproxy(cluster()).set("content_encoding", choice));
        let path = format!("/commit?topic={topic}&key=k");
        let answer = kproxy.connect().request("POST", &path, fields, &body).unwrap();
        assert_eq!(answer.status, 200, "{choice}: {}", answer.text());
        kproxy.daemon.stop(STOP_DEADLINE);
    }
    let mut kproxy = Kproxy::start_ready(configs::kproxy(cluster()).set("content_encoding", "refuse"));
    let fields = [("Content-Encoding", "gzip")];
    let refused = kproxy.connect().request("POST", &format!("/commit?topic={topic}"), &fields, &body).unwrap();
    assert_refused(&refused, (415, "unsupported_coding", "no", false), "refuse");
    assert_eq!(refused.header("Accept-Encoding"), Some("identity"));
    kproxy.daemon.stop(STOP_DEADLINE);

    let module_file = configs::module(&topic, &[backend.address()]);
    let mut ktransfer = Ktransfer::start_ready(cluster(), &[(&module, module_file)]);
    backend.wait_for_requests(3, DEADLINE);
    let pushed: Vec<_> = backend
        .records()
        .iter()
        .map(|record| (record.request.header("Content-Encoding").map(str::to_owned), record.request.body.clone()))
        .collect();
    let expected = [(Some("gzip".to_owned()), body.clone()), (None, body), (None, b"hello".to_vec())];
    assert_eq!(pushed, expected);
    assert_eq!(cluster().message_count(&topic), 3);
    ktransfer.daemon.stop(STOP_DEADLINE);
}
