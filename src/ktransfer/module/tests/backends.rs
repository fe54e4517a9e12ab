//! Modules with several backends, some of which are dead, and the limit on pushes.

use super::*;
use std::net::TcpListener;

/// An address at which nothing listens.
fn closed_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

impl ModuleRig {
    /// Returns the value of a metric of one backend; `labels` are the other labels.
    fn backend_metric(&self, name: &str, server: &str, labels: &str) -> i64 {
        let line_start = format!("{name}{{backend=\"{server}\",module=\"m\"{labels}}} ");
        let metrics = self.metrics();
        // The series appear when the module has started.
        metrics.lines().find_map(|line| line.strip_prefix(&line_start)).map_or(0, |value| value.parse().unwrap())
    }
}

#[test]
fn a_backend_that_refuses_connections_costs_single_attempts_and_no_order() {
    let dead = closed_port();
    let also_dead = dead.clone();
    let rig = ModuleRig::start(1, move |config| config.backend_servers.insert(0, also_dead), |_| 200);
    for number in 0..2000_u32 {
        rig.broker.put("t", 0, Some(format!("key-{}", number % 50).as_bytes()), b"x");
    }
    rig.gain(0, 1, Some(0));
    wait_until("all are committed", || rig.commit_point(0) == Some(2000));
    assert_eq!(rig.backend.received().len(), 2000);
    assert_one_at_a_time_in_order(rig.backend.received());
    let failed: i64 = {
        let metrics = rig.metrics();
        let line =
            metrics.lines().find(|line| line.starts_with("ktransfer_pushes_total{module=\"m\",outcome=\"failed\"}"));
        line.unwrap().split(' ').next_back().unwrap().parse().unwrap()
    };
    let ejections = rig.backend_metric("ktransfer_backend_ejections_total", &dead, ",rule=\"failures\"");
    let probes = rig.backend_metric("ktransfer_backend_probes_total", &dead, ",outcome=\"failed\"");
    assert_eq!((ejections, rig.backend_metric("ktransfer_backend_ejected", &dead, "")), (1, 1));
    assert!(failed <= probes + 4 + 8, "{failed} attempts, of these {probes} probes; 5 failures eject, of 8 workers");
}

#[test]
fn while_all_backends_fail_only_probes_are_made_and_a_good_one_ends_the_wait() {
    let is_healed = Arc::new(AtomicBool::new(false));
    let answer = |is_healed: &Arc<AtomicBool>| {
        let is_healed = Arc::clone(is_healed);
        move |_: &ReceivedRequest| if is_healed.load(Ordering::SeqCst) { 200 } else { 503 }
    };
    let second = TestBackend::start(answer(&is_healed));
    let second_server = second.server.clone();
    let rig = ModuleRig::start(
        1,
        move |config| {
            config.backend_servers.push(second_server);
            config.window_size = NonZeroUsize::new(100).unwrap();
            // A message that fails twice is given up: waiting for a backend must use up no attempts.
            config.retry.max_retry_times = Some(1);
        },
        answer(&is_healed),
    );
    for number in 0..500_u32 {
        rig.broker.put("t", 0, Some(format!("key-{number}").as_bytes()), b"x");
    }
    rig.gain(0, 1, Some(0));
    let servers = [rig.backend.server.clone(), second.server.clone()];
    let ejected =
        || servers.iter().map(|server| rig.backend_metric("ktransfer_backend_ejected", server, "")).sum::<i64>();
    wait_until("both are ejected", || ejected() == 2);
    let probes = || {
        let of = |server: &String| rig.backend_metric("ktransfer_backend_probes_total", server, ",outcome=\"failed\"");
        servers.iter().map(of).sum::<i64>()
    };
    wait_until("both are probed", || probes() >= 6);
    assert!(rig.metric("ktransfer_window_in_use") < 100, "messages that wait for a backend have no slot");
    is_healed.store(true, Ordering::SeqCst);
    wait_until("all are committed", || rig.commit_point(0) == Some(500));
    let n_failed = rig.backend.received().len() + second.received().len();
    let n_delivered = rig.backend.delivered().len() + second.delivered().len();
    let n_failed = i64::try_from(n_failed - n_delivered).unwrap();
    assert!(n_failed <= probes() + 2 * (5 + 8), "{n_failed} refused pushes, {} probes", probes());
    assert!(n_delivered >= 470, "{n_delivered} of 500");
}

#[test]
fn pushes_are_limited_to_the_configured_rate() {
    let limit = |config: &mut ModuleConfig| config.max_pushes_per_second = std::num::NonZeroU64::new(200);
    let rig = ModuleRig::start(1, limit, |request| if request.number("x-kafka-attempt") == 1 { 500 } else { 200 });
    for number in 0..50_u32 {
        rig.broker.put("t", 0, Some(format!("key-{number}").as_bytes()), b"x");
    }
    rig.gain(0, 1, Some(0));
    wait_until("all are committed", || rig.commit_point(0) == Some(50));
    let mut began: Vec<Instant> = rig.backend.received().iter().map(|request| request.began).collect();
    began.sort_unstable();
    assert_eq!(began.len(), 100, "a retry counts");
    // 20 pushes are the burst. The permits of the first pushes may be older than the pushes.
    let took = began[99].duration_since(began[0]);
    assert!(took >= Duration::from_millis(300), "100 pushes at 200 a second took {took:?}");
}
