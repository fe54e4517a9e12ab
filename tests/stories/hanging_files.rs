//! Files that hang: a log file that takes no bytes, and named pipes in the place of files that are read. They cost log
//! lines and reloads, but no answer and no signal.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::harness::kproxy::{UNAUTHORIZED, assert_refused};
use crate::harness::process::make_fifo;
use crate::harness::{
    ConfigFile, Daemon, Kmonitor, Kproxy, Program, STOP_DEADLINE, cluster, configs, process, wait_until,
};

const DEADLINE: Duration = Duration::from_secs(60);
/// Bytes of the queue of log lines: the queue of 4 MiB, and the 4 MiB that may be taken from it.
const QUEUED_BYTES: usize = 8 << 20;
/// Largest number of bytes of a query in a log line.
const LOGGED_QUERY_BYTES: usize = 300;

/// Creates a named pipe that is open and full, so that a write to it blocks as on a frozen disk. Nobody reads it.
fn full_fifo(path: &Path) -> File {
    make_fifo(path);
    let mut file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
    loop {
        match file.write(&[b'x'; 4096]) {
            Ok(_) => {}
            Err(cause) if cause.kind() == ErrorKind::WouldBlock => return file,
            Err(cause) => panic!("{cause}"),
        }
    }
}

#[test]
fn a_frozen_log_file_stops_no_answer_and_no_stop() {
    let cluster = cluster();
    let topic = cluster.new_topic("frozen_log", 1);
    let logs = process::folder("frozen-log");
    let _full = full_fifo(&logs.join("kproxy.log"));
    let mut kproxy = Kproxy::start_ready(configs::kproxy(cluster).set("log_dir", &logs));
    // Each answer has a log line, longer than this query.
    let path = format!("/commit?topic={topic}&key={}", "k".repeat(LOGGED_QUERY_BYTES));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = kproxy.connect();
                for _ in 0..QUEUED_BYTES / LOGGED_QUERY_BYTES / 8 {
                    let answer = client.post(&path, b"value").unwrap();
                    assert_eq!(answer.status, 200, "{}", answer.text());
                }
            });
        }
    });
    assert!(kproxy.metric("log_lines_dropped_total") > 0, "the lines exceed the queue");
    assert_eq!(kproxy.connect().get("/healthz").unwrap().status, 200);
    // Reopening the file hangs behind the write, but holds up no later signal.
    kproxy.daemon.signal(libc::SIGHUP);
    kproxy.daemon.stop(STOP_DEADLINE);
}

#[test]
fn a_frozen_log_file_does_not_delay_a_second_signal() {
    let logs = process::folder("frozen-log");
    let _full = full_fifo(&logs.join("kmonitor.log"));
    let config = configs::kmonitor_for("/frozen_log", &[("c", "127.0.0.1:1")])
        .set("base.log_dir", &logs)
        .set("base.shutdown_grace_ms", 600_000)
        .set("http_server.read_timeout_ms", 600_000);
    let mut kmonitor = Kmonitor::start(&config);
    let mut client = TcpStream::connect(&kmonitor.address).unwrap();
    client.write_all(b"GET /delay HTTP/1.1\r\nHost: a\r\n").unwrap();
    // An answer on a later connection shows that kmonitor has read the half request, which makes its stop slow.
    kmonitor.get("/healthz");
    kmonitor.daemon.terminate();
    wait_until(DEADLINE, "kmonitor stops", || TcpStream::connect(&kmonitor.address).is_err());
    kmonitor.daemon.terminate();
    assert_eq!(kmonitor.daemon.wait(STOP_DEADLINE).code(), Some(5));
}

#[test]
fn a_pipe_in_the_place_of_a_file_is_refused_at_the_start_and_by_a_test_of_the_configuration() {
    let folder = process::folder("pipes");
    let pipe = folder.join("pipe");
    make_fifo(&pipe);
    let config = || configs::kproxy_for(&["127.0.0.1:1"]);
    let kafka = json!({"security.protocol": "ssl", "ssl.ca.location": &pipe});
    let mut rows = vec![("credentials_file", config().set("credentials_file", &pipe))];
    if cfg!(feature = "tls") {
        let tls = json!({"certificate_file": &pipe, "key_file": &pipe});
        rows.push(("tls.key_file", config().set("tls", tls)));
        rows.push(("kafka.ssl.ca.location", config().set("kafka", kafka)));
    }
    for (key, config) in rows {
        let mut daemon = Daemon::start(Program::Kproxy, &[("kproxy.yaml", &config.text())]);
        assert_eq!(daemon.wait(DEADLINE).code(), Some(1), "{key}: {}", daemon.output());
        let output = daemon.output();
        let is_named = |line: &str| line.contains(key) && line.contains("pipe, but must be a regular file");
        assert!(key == "credentials_file" || output.lines().any(is_named), "{key}: {output}");
        assert!(output.contains("is a pipe, but must be a regular file"), "{key}: {output}");
    }
    let path = pipe.display().to_string();
    for arguments in [&["-f", &*path][..], &["-t", "-f", &*path]] {
        let mut daemon = Daemon::start_with_arguments(Program::Kproxy, arguments);
        assert_eq!(daemon.wait(DEADLINE).code(), Some(1), "{arguments:?}");
        assert!(daemon.output().contains("is a pipe, but must be a regular file"), "{}", daemon.output());
    }
}

#[test]
fn a_pipe_in_the_place_of_a_credentials_file_neither_replaces_it_nor_delays_a_stop() {
    let file = process::folder("pipes").join("credentials.yaml");
    let list = json!([{"name": "a", "token": "token-a"}]);
    fs::write(&file, ConfigFile::of("credentials").set("credentials", list).text()).unwrap();
    let mut kproxy = Kproxy::start(configs::kproxy_for(&["127.0.0.1:1"]).set("credentials_file", &file));
    fs::remove_file(&file).unwrap();
    make_fifo(&file);
    kproxy.daemon.signal(libc::SIGHUP);
    kproxy.daemon.wait_for_log("is a pipe, but must be a regular file", DEADLINE);
    kproxy.wait_for_metric("kproxy_credentials_stale 1", DEADLINE);
    let mut client = kproxy.connect();
    let mut status = |token: &str| {
        let headers = [("Authorization", &*format!("Bearer {token}"))];
        client.request("POST", "/commit?topic=a&acks=2", &headers, b"x").unwrap()
    };
    assert_eq!(status("token-a").status, 400, "the credentials are those from before, and acks is wrong");
    assert_refused(&status("token-b"), UNAUTHORIZED, "another token");
    kproxy.daemon.stop(STOP_DEADLINE);
}
