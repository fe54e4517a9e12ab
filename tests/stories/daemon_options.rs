//! Options, configuration errors, signals, exit codes and logs. All three daemons share this code; the stories run
//! kmonitor as the example.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::metrics::Metrics;
use crate::harness::{ConfigFile, Daemon, Kmonitor, Program, configs, free_port, http, wait_until};

const DEADLINE: Duration = Duration::from_secs(20);

/// Returns a configuration that names a ZooKeeper server which does not exist; kmonitor runs without it.
fn config() -> ConfigFile {
    configs::kmonitor_for("", &[("c", &format!("127.0.0.1:{}", free_port()))])
        .set("base.log_level", 8)
        .set("base.shutdown_grace_ms", 3000)
        .set("http_server.read_timeout_ms", 1000)
        .set("http_server.write_timeout_ms", 1000)
        .set("c.zk_connect_timeout_ms", 500)
        .set("c.zk_session_timeout_ms", 2000)
}

/// Runs kmonitor until it exits; returns its exit code, and the text of its stdout and stderr.
fn run(arguments: &[&str]) -> (i32, String) {
    let mut daemon = Daemon::start_with_arguments(Program::Kmonitor, arguments);
    let status = daemon.wait(DEADLINE);
    (status.code().expect("kmonitor was not killed"), daemon.output())
}

/// Runs kmonitor with a configuration with which it cannot start; panics unless it exits with 1.
fn run_and_fail(config: &ConfigFile) -> Daemon {
    let mut daemon = Daemon::start(Program::Kmonitor, &[("k.yaml", &config.text())]);
    assert_eq!(daemon.wait(DEADLINE).code(), Some(1));
    daemon
}

#[test]
fn each_option_does_what_the_help_says() {
    let (code, output) = run(&["-h"]);
    assert_eq!(code, 0);
    for option in ["-f", "-t", "-V", "-h", "./conf/kmonitor.yaml"] {
        assert!(output.contains(option), "{output}");
    }
    assert_eq!(run(&["-V"]), (0, concat!("kmonitor ", env!("CARGO_PKG_VERSION")).to_owned()));
    for wrong in [&["-x"][..], &["-f"], &["stray"], &["-f", "a", "-f", "b"]] {
        let (code, output) = run(wrong);
        assert_eq!(code, 2, "{wrong:?}: {output}");
        assert!(output.starts_with("kmonitor: "), "{wrong:?}: {output}");
    }
    let (code, output) = run(&[]);
    assert_eq!(code, 1, "{output}");
    assert!(output.contains("./conf/kmonitor.yaml"), "the error names the default file: {output}");
}

#[test]
fn a_test_of_the_configuration_lists_every_problem_and_creates_no_log() {
    let bad = config()
        .set("base.log_level", 99)
        .remove("http_server.port")
        .set_unknown("http_server.prot", 1)
        .set_unknown("stray", 1);
    let files = [("bad.yaml", bad.text()), ("good.yaml", config().text())];
    let daemon = Daemon::start(Program::Kmonitor, &files.each_ref().map(|(name, text)| (*name, text.as_str())));
    let path = |name: &str| daemon.folder().join(name).display().to_string();
    let (code, output) = run(&["-t", "-f", &path("bad.yaml")]);
    assert_eq!(code, 1, "{output}");
    let bad = path("bad.yaml");
    for start in ["base.log_level: is 99", "http_server.port: is missing", "http_server.prot: ", "stray: "] {
        assert!(output.lines().any(|line| line.starts_with(&format!("{bad}: {start}"))), "{start}: {output}");
    }
    assert!(output.contains("4 problems"), "{output}");
    let (code, output) = run(&["-t", "-f", &path("good.yaml")]);
    assert_eq!((code, output), (0, format!("{}: the configuration is valid", path("good.yaml"))));
    assert!(!daemon.folder().join("log").exists(), "neither -t nor a wrong configuration creates a log");
}

#[test]
fn a_port_in_use_or_an_unwritable_log_is_named_and_exits_with_1() {
    let taken = std::net::TcpListener::bind("0.0.0.0:0").expect("a free port");
    let port = taken.local_addr().expect("it is bound").port();
    let daemon = run_and_fail(&config().set("http_server.port", port));
    let output = daemon.output();
    assert!(output.contains(&format!("http_server.port: cannot listen on port {port}")), "{output}");
    assert!(daemon.log().contains("FATAL [main] cannot start: "), "{}", daemon.log());

    let output = run_and_fail(&config().set("base.log_dir", "/proc/nowhere")).output();
    assert!(output.contains("log_dir: /proc/nowhere/kmonitor.log"), "{output}");
}

#[test]
fn both_stop_signals_end_in_order_with_0() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut daemon = Kmonitor::start(&config()).daemon;
        daemon.signal(signal);
        assert_eq!(daemon.wait(DEADLINE).code(), Some(0), "signal {signal}");
        daemon.wait_for_log("kmonitor ends with exit code 0", DEADLINE);
    }
}

/// Starts kmonitor, sends half a request and then SIGTERM. kmonitor waits up to `grace_ms` for the rest of the request,
/// which never arrives. Returns kmonitor and the connection.
fn slow_to_stop(grace_ms: u32) -> (Daemon, TcpStream) {
    let config = config().set("base.shutdown_grace_ms", grace_ms).set("http_server.read_timeout_ms", 600_000);
    let mut kmonitor = Kmonitor::start(&config);
    let mut client = TcpStream::connect(&kmonitor.address).expect("it listens");
    client.write_all(b"GET /delay HTTP/1.1\r\nHost: a\r\n").expect("it reads");
    // An answer on a later connection shows that kmonitor has read the half request.
    kmonitor.get("/healthz");
    kmonitor.daemon.terminate();
    kmonitor.daemon.wait_for_log("stopping", DEADLINE);
    (kmonitor.daemon, client)
}

#[test]
fn a_second_signal_ends_a_slow_stop() {
    let (mut daemon, _client) = slow_to_stop(600_000);
    daemon.signal(libc::SIGINT);
    assert_eq!(daemon.wait(DEADLINE).code(), Some(5));
    assert!(daemon.log().contains("WARNING [signals] a second signal"), "{}", daemon.log());
}

#[test]
fn a_stop_takes_no_longer_than_the_grace() {
    let (mut daemon, _client) = slow_to_stop(500);
    let started = Instant::now();
    assert_eq!(daemon.wait(DEADLINE).code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn sighup_and_sigusr1_reopen_the_log_files() {
    const REOPENED: &str = "log files reopened";
    let mut daemon = Kmonitor::start(&config()).daemon;
    let log = daemon.folder().join("log/kmonitor.log");
    for (signal, count) in [(libc::SIGHUP, 0), (libc::SIGUSR1, 1)] {
        let rotated = daemon.folder().join(format!("log/kmonitor.log.{count}"));
        fs::rename(&log, &rotated).expect("the log exists");
        daemon.signal(signal);
        wait_until(DEADLINE, "kmonitor writes to a new log file", || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains(REOPENED))
        });
        let old = fs::read_to_string(&rotated).expect("it was renamed");
        assert_eq!(old.matches(REOPENED).count(), count, "{old}");
    }
    // The same process still runs and writes to the new file.
    daemon.stop(DEADLINE);
    assert!(fs::read_to_string(&log).is_ok_and(|text| text.contains("ends with exit code 0")));
}

#[test]
fn log_lines_have_time_level_and_thread_and_warnings_are_in_both_files() {
    let daemon = Kmonitor::start(&config()).daemon;
    // No ZooKeeper answers, which kmonitor logs as a warning.
    daemon.wait_for_log("WARNING [poll@c] cluster c: ", DEADLINE);
    let read = |name: &str| fs::read_to_string(daemon.folder().join("log").join(name)).expect("the log exists");
    // A line is written to `kmonitor.log` first.
    let important = read("kmonitor.log.wf");
    let all = read("kmonitor.log");
    assert!(all.contains(" NOTICE [main] kmonitor "), "{all}");
    for line in important.lines() {
        assert!(all.contains(line) && (line.contains(" WARNING [") || line.contains(" FATAL [")), "{line}");
    }
    assert!(important.contains("cluster c: "), "{important}");
}

#[test]
fn a_full_disk_costs_log_lines_and_nothing_else() {
    let kmonitor = Kmonitor::start(&config().set("base.log_level", 16));
    let mut daemon = kmonitor.daemon;
    let log = daemon.folder().join("log/kmonitor.log");
    let status = || http::get(&format!("http://{}/delay", kmonitor.address)).expect("it answers").status;
    fs::remove_file(&log).expect("the log exists");
    std::os::unix::fs::symlink("/dev/full", &log).expect("the name is free");
    daemon.signal(libc::SIGHUP);
    wait_until(DEADLINE, "the log is on a full disk", || {
        let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("it runs");
        open.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|target| target == Path::new("/dev/full")))
    });
    assert!((0..20).all(|_| status() == 200));
    wait_until(DEADLINE, "lines cannot be written", || {
        Metrics::scrape(&kmonitor.address).value("log_lines_dropped_total") > Some(0)
    });
    fs::remove_file(&log).expect("the link exists");
    daemon.signal(libc::SIGHUP);
    daemon.wait_for_log("lines could not be written to this file: No space left on device", DEADLINE);
    daemon.stop(DEADLINE);
}
