//! Files that hang: a log file that takes no bytes. They cost log lines and reloads, but no answer and no signal.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use crate::harness::{Kmonitor, Kproxy, STOP_DEADLINE, cluster, configs, process, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);
/// Bytes of the queue of log lines: the queue of 4 MiB, and the 4 MiB that may be taken from it.
const QUEUED_BYTES: usize = 8 << 20;
/// Largest number of bytes of a query in a log line.
const LOGGED_QUERY_BYTES: usize = 300;

/// Creates a named pipe.
fn make_fifo(path: &Path) {
    let name = CString::new(path.as_os_str().as_encoded_bytes()).expect("a path without NUL");
    // SAFETY: the name is a valid string for the call.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0, "{}", path.display());
}

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
