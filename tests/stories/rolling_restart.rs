//! A rolling restart under load: no client loses an answer when kproxy is stopped.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::harness::{Kproxy, STOP_DEADLINE, cluster, configs, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);
const CLIENTS: usize = 32;
/// The time between two requests of a client.
const PAUSE: Duration = Duration::from_millis(20);

/// Posts on one connection until an answer closes it; returns the number of answers. Each must be a 200.
fn post_until_closed(kproxy: &Kproxy, topic: &str, n_answers: &AtomicUsize) -> usize {
    let mut client = kproxy.connect();
    for count in 1.. {
        let answer = client.post(&format!("/commit?topic={topic}&acks=1"), b"x").expect("each request is answered");
        assert_eq!(answer.status, 200, "{}", answer.text());
        n_answers.fetch_add(1, Ordering::Relaxed);
        if answer.header("Connection") == Some("close") {
            return count;
        }
        // The connection is idle most of the time, so that most connections are idle when kproxy is stopped.
        std::thread::sleep(PAUSE);
    }
    unreachable!("kproxy is stopped")
}

#[test]
fn a_stop_under_load_answers_every_request_and_says_so_before_it_closes_a_connection() {
    let cluster = cluster();
    let topic = cluster.new_topic("rolling", 4);
    let mut kproxy = Kproxy::start_ready(configs::kproxy(cluster).set("read_timeout_ms", 30_000));
    let n_answers = AtomicUsize::new(0);
    let counts: Vec<usize> = std::thread::scope(|scope| {
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| scope.spawn(|| post_until_closed(&kproxy, &topic, &n_answers))).collect();
        wait_until(DEADLINE, "all clients post", || n_answers.load(Ordering::Relaxed) > 20 * CLIENTS);
        let pid = libc::pid_t::try_from(kproxy.daemon.pid()).expect("a process id");
        // SAFETY: a plain system call; the process is a child that was not waited for.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
        clients.into_iter().map(|client| client.join().expect("a client gets its answers")).collect()
    });
    assert_eq!(kproxy.daemon.wait(STOP_DEADLINE).code(), Some(0));
    let n_stored = usize::try_from(cluster.message_count(&topic)).expect("a count");
    assert_eq!(n_stored, counts.iter().sum::<usize>(), "each answered message is stored once");
}
