//! What all three daemons share, told with kmonitor: options, configuration problems, signals, exit codes, log files.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::{Daemon, Program, free_port, http, wait_until};

const SOON: Duration = Duration::from_secs(20);

/// A configuration whose ZooKeeper is not there, which is no reason not to run.
fn config(port: u16) -> String {
    format!(
        "base:\n log_dir: ./log\n log_level: 8\n clusters: [c]\n shutdown_grace_ms: 3000\n\
         http_server:\n port: {port}\n read_timeout_ms: 1000\n write_timeout_ms: 1000\n\
         c:\n chroot: ''\n zk_connect_timeout_ms: 500\n zk_session_timeout_ms: 2000\n zk_hosts: ['127.0.0.1:{}']\n",
        free_port()
    )
}

fn running() -> Daemon {
    let daemon = Daemon::start(Program::Kmonitor, &[("kmonitor.yaml", &config(free_port()))]);
    daemon.wait_for_log("http listens on", SOON);
    daemon
}

/// Runs it to its end: exit code, and what it wrote to stdout and stderr.
fn outcome(arguments: &[&str]) -> (i32, String) {
    let mut daemon = Daemon::start_with_arguments(Program::Kmonitor, arguments);
    let status = daemon.wait(SOON);
    (status.code().expect("it ended by itself"), daemon.output())
}

#[test]
fn the_options_say_what_they_say() {
    let (code, output) = outcome(&["-h"]);
    assert_eq!(code, 0);
    for option in ["-f", "-t", "-V", "-h", "./conf/kmonitor.yaml"] {
        assert!(output.contains(option), "{output}");
    }
    assert_eq!(outcome(&["-V"]), (0, concat!("kmonitor ", env!("CARGO_PKG_VERSION")).to_owned()));
    for wrong in [&["-x"][..], &["-f"], &["stray"], &["-f", "a", "-f", "b"]] {
        let (code, output) = outcome(wrong);
        assert_eq!(code, 2, "{wrong:?}: {output}");
        assert!(output.starts_with("kmonitor: "), "{wrong:?}: {output}");
    }
    let (code, output) = outcome(&[]);
    assert_eq!(code, 1, "{output}");
    assert!(output.contains("./conf/kmonitor.yaml"), "the default file is named: {output}");
}

#[test]
fn a_test_of_the_configuration_lists_every_problem_and_leaves_nothing_behind() {
    let text = config(1).replace("log_level: 8", "log_level: 99").replace("port: 1", "prot: 1") + "stray: 1\n";
    let daemon = Daemon::start(Program::Kmonitor, &[("bad.yaml", &text), ("good.yaml", &config(1))]);
    let path = |name: &str| daemon.folder().join(name).display().to_string();
    let (code, output) = outcome(&["-t", "-f", &path("bad.yaml")]);
    assert_eq!(code, 1, "{output}");
    let bad = path("bad.yaml");
    for start in ["base.log_level: is 99", "http_server.port: is missing", "http_server.prot: ", "stray: "] {
        assert!(output.lines().any(|line| line.starts_with(&format!("{bad}: {start}"))), "{start}: {output}");
    }
    assert!(output.contains("4 problems"), "{output}");
    let (code, output) = outcome(&["-t", "-f", &path("good.yaml")]);
    assert_eq!((code, output), (0, format!("{}: the configuration is good", path("good.yaml"))));
    assert!(!daemon.folder().join("log").exists(), "neither a test nor a wrong configuration makes a log");
}

#[test]
fn what_keeps_it_from_starting_is_said_and_is_1() {
    let taken = std::net::TcpListener::bind("0.0.0.0:0").expect("a free port");
    let port = taken.local_addr().expect("it is bound").port();
    let mut daemon = Daemon::start(Program::Kmonitor, &[("k.yaml", &config(port))]);
    assert_eq!(daemon.wait(SOON).code(), Some(1));
    assert!(
        daemon.output().contains(&format!("http_server.port: cannot listen on port {port}")),
        "{}",
        daemon.output()
    );
    assert!(daemon.log().contains("FATAL [main] cannot start: "), "{}", daemon.log());

    let unwritable = config(free_port()).replace("./log", "/proc/nowhere");
    let mut daemon = Daemon::start(Program::Kmonitor, &[("k.yaml", &unwritable)]);
    assert_eq!(daemon.wait(SOON).code(), Some(1));
    assert!(daemon.output().contains("log_dir: /proc/nowhere/kmonitor.log"), "{}", daemon.output());
}

#[test]
fn both_stop_signals_end_it_in_order_with_0() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut daemon = running();
        daemon.signal(signal);
        assert_eq!(daemon.wait(SOON).code(), Some(0), "signal {signal}");
        daemon.wait_for_log("kmonitor ends with exit code 0", SOON);
    }
}

/// A running daemon whose stop waits, for `grace_ms`, for the rest of a request that never comes.
fn slow_to_stop(grace_ms: u32) -> (Daemon, TcpStream) {
    let port = free_port();
    let text = config(port)
        .replace("shutdown_grace_ms: 3000", &format!("shutdown_grace_ms: {grace_ms}"))
        .replace("read_timeout_ms: 1000", "read_timeout_ms: 600000");
    let mut daemon = Daemon::start(Program::Kmonitor, &[("k.yaml", &text)]);
    daemon.wait_for_log("http listens on", SOON);
    let mut client = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    client.write_all(b"GET /delay HTTP/1.1\r\nHost: a\r\n").expect("it reads");
    // An answer on a later connection: the half request was seen.
    http::get(&format!("http://127.0.0.1:{port}/healthz")).expect("it answers");
    daemon.terminate();
    daemon.wait_for_log("stopping", SOON);
    (daemon, client)
}

#[test]
fn a_second_signal_ends_a_stop_that_takes_long() {
    let (mut daemon, _client) = slow_to_stop(600_000);
    daemon.signal(libc::SIGINT);
    assert_eq!(daemon.wait(SOON).code(), Some(5));
    assert!(daemon.log().contains("WARNING [signals] a second signal"), "{}", daemon.log());
}

#[test]
fn a_stop_takes_no_longer_than_the_grace() {
    let (mut daemon, _client) = slow_to_stop(500);
    let began = Instant::now();
    assert_eq!(daemon.wait(SOON).code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn a_hang_up_opens_the_logs_anew() {
    let mut daemon = running();
    let log = daemon.folder().join("log/kmonitor.log");
    let rotated = daemon.folder().join("log/kmonitor.log.1");
    fs::rename(&log, &rotated).expect("it is there");
    daemon.signal(libc::SIGHUP);
    wait_until(SOON, "a new log file", || fs::read_to_string(&log).is_ok_and(|text| text.contains("SIGHUP")));
    let old = fs::read_to_string(&rotated).expect("it was moved");
    assert!(old.contains("kmonitor") && !old.contains("SIGHUP"), "{old}");
    // Still there, and still the same process.
    daemon.end_well(SOON);
    assert!(fs::read_to_string(&log).is_ok_and(|text| text.contains("ends with exit code 0")));
}

#[test]
fn lines_carry_time_level_and_thread_and_warnings_are_in_both_files() {
    let daemon = running();
    // ZooKeeper is not there, and the log says so.
    daemon.wait_for_log("WARNING [poll@c] cluster c: ", SOON);
    let read = |name: &str| fs::read_to_string(daemon.folder().join("log").join(name)).expect("it is there");
    let (all, important) = (read("kmonitor.log"), read("kmonitor.log.wf"));
    assert!(all.contains(" NOTICE [main] kmonitor "), "{all}");
    for line in important.lines() {
        assert!(all.contains(line) && (line.contains(" WARNING [") || line.contains(" FATAL [")), "{line}");
    }
    assert!(important.contains("cluster c: "), "{important}");
}

#[test]
fn a_full_disk_costs_log_lines_and_nothing_else() {
    let port = free_port();
    let text = config(port).replace("log_level: 8", "log_level: 16");
    let mut daemon = Daemon::start(Program::Kmonitor, &[("k.yaml", &text)]);
    daemon.wait_for_log("http listens on", SOON);
    let log = daemon.folder().join("log/kmonitor.log");
    let ask = || http::get(&format!("http://127.0.0.1:{port}/delay")).expect("it answers").status;
    fs::remove_file(&log).expect("it is there");
    std::os::unix::fs::symlink("/dev/full", &log).expect("the place is free");
    daemon.signal(libc::SIGHUP);
    wait_until(SOON, "the log is on a full disk", || {
        let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("it runs");
        open.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|target| target == Path::new("/dev/full")))
    });
    assert!((0..20).all(|_| ask() == 200));
    fs::remove_file(&log).expect("it is there");
    daemon.signal(libc::SIGHUP);
    daemon.wait_for_log("lines could not be written here: No space left on device", SOON);
    daemon.end_well(SOON);
}
