//! kproxy: what load balancers and browsers see.

use serde_json::json;

use crate::harness::http::{Client, Response};
use crate::harness::{Kmonitor, Kproxy, Ktransfer, STOP_DEADLINE, cluster, configs, unique};

/// Sends bytes on a new connection; returns the response, and whether the connection stays open after it.
fn exchange(address: &str, request: &str) -> (Response, bool) {
    let mut client = Client::connect(address).unwrap();
    client.send_raw(request.as_bytes()).unwrap();
    let answer = client.read_response().unwrap();
    let stays_open = client.get("/healthz").is_ok_and(|next| next.status == 200);
    (answer, stays_open)
}

#[test]
fn load_balancers_probe_every_daemon_without_a_warning() {
    let cluster = cluster();
    let mut kproxy = Kproxy::start_usual(cluster);
    let module_file = configs::module(&cluster.new_topic("probed", 1), &["127.0.0.1:1".to_owned()]);
    let mut ktransfer = Ktransfer::start_ready(cluster, &[(&unique("probed"), module_file)]);
    let mut kmonitor = Kmonitor::start(&configs::kmonitor(cluster));
    for address in [&kproxy.address, &kproxy.admin, &ktransfer.admin, &kmonitor.address] {
        for probe in [
            "OPTIONS / HTTP/1.0\r\n\r\n",
            "OPTIONS * HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "OPTIONS /healthz HTTP/1.0\r\n\r\n",
        ] {
            let (answer, stays_open) = exchange(address, probe);
            assert_eq!((answer.status, stays_open), (200, false), "{address} {probe}: {}", answer.text());
            assert_eq!(answer.header("Connection"), Some("close"));
            assert_eq!(answer.header("Keep-Alive"), None);
        }
        let (answer, stays_open) = exchange(address, "GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!((answer.status, stays_open), (200, true), "{address}");
        assert_eq!(answer.header("Connection"), Some("keep-alive"));
        assert_eq!(answer.header("Keep-Alive"), Some("timeout=70"));
    }
    let kept = "GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    let (answer, stays_open) = exchange(&kproxy.address, kept);
    assert_eq!((answer.header("Keep-Alive"), stays_open), (Some("timeout=70"), true));
    for daemon in [&mut kproxy.daemon, &mut ktransfer.daemon, &mut kmonitor.daemon] {
        daemon.stop(STOP_DEADLINE);
        let log = daemon.log();
        assert!(!log.contains("OPTIONS") && !log.contains("GET ") && !log.contains("refused"), "{log}");
    }
}

#[test]
fn a_page_of_an_allowed_origin_may_post_and_read_every_answer() {
    const ORIGIN: (&str, &str) = ("Origin", "https://app.example");
    let topic = cluster().new_topic("browser", 1);
    let config = configs::kproxy(cluster())
        .set("allowed_origins", ["https://app.example", "http://localhost:3000"])
        .set("allowed_topics", [&topic])
        .set("max_request_size_bytes", 1000)
        .set("rate_limits", json!([{"topics": ["*"], "requests_per_second": 1, "burst_seconds": 5}]));
    let mut kproxy = Kproxy::start_ready(config);
    let path = format!("/commit?topic={topic}");
    let send = |method: &str, path: &str, fields: &[(&str, &str)], body: &[u8]| {
        kproxy.connect().request(method, path, fields, body).unwrap()
    };
    let asks = [
        ORIGIN,
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "authorization,x-kafka-header-tenant"),
    ];
    let preflight = send("OPTIONS", &path, &asks, b"");
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.header("Access-Control-Allow-Methods"), Some("POST"));
    assert_eq!(preflight.header("Access-Control-Allow-Origin"), Some(ORIGIN.1));
    let fields = preflight.header("Access-Control-Allow-Headers").unwrap();
    assert!(fields.contains("Authorization") && fields.ends_with("x-kafka-header-tenant"), "{fields}");
    for (method, path, body, status) in [
        ("POST", &*path, &b"x"[..], 200),
        ("POST", "/commit", b"x", 400),
        ("POST", "/commit?topic=other", b"x", 403),
        ("POST", "/nowhere", b"x", 404),
        ("PUT", &path, b"x", 405),
        ("POST", &path, &[b'x'; 2000], 413),
        ("POST", &path, &[b'x'; 200_000], 413),
        ("GET", "/healthz", b"", 200),
        ("GET", "/metrics", b"", 200),
    ] {
        let answer = send(method, path, &[ORIGIN], body);
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        assert_eq!(answer.header("Access-Control-Allow-Origin"), Some(ORIGIN.1), "{method} {path}");
        assert_eq!(
            (answer.header("Vary"), answer.header("Access-Control-Expose-Headers")),
            (Some("Origin"), Some("Retry-After"))
        );
    }
    let limited = (0..100).map(|_| send("POST", &path, &[ORIGIN], b"x")).find(|answer| answer.status == 429).unwrap();
    assert_eq!(limited.header("Access-Control-Allow-Origin"), Some(ORIGIN.1));
    assert!(limited.header("Retry-After").is_some());

    let other = send("OPTIONS", &path, &[&[("Origin", "https://evil.example")], &asks[1..]].concat(), b"");
    assert_eq!((other.status, other.header("Access-Control-Allow-Origin")), (200, None));
    let without = send("GET", "/healthz", &[], b"");
    assert_eq!((without.header("Vary"), without.header("Access-Control-Allow-Origin")), (Some("Origin"), None));
    kproxy.daemon.stop(STOP_DEADLINE);

    let mut usual = Kproxy::start_usual(cluster());
    let answer = usual.connect().request("POST", &path, &[ORIGIN], b"x").unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    for name in ["Vary", "Access-Control-Allow-Origin", "Access-Control-Expose-Headers"] {
        assert_eq!(answer.header(name), None, "nothing changes without allowed_origins");
    }
    usual.daemon.stop(STOP_DEADLINE);
}
