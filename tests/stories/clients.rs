//! kproxy: what load balancers and browsers see.

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
