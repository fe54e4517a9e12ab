//! Calls the logger as the `log` macros do, without making it the logger of the process.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, pipe};
use std::os::fd::OwnedFd;
use std::time::Instant;

use super::queue::MAX_QUEUED_BYTES;
use super::*;

const OWN: &str = concat!(env!("CARGO_CRATE_NAME"), "::kproxy");

/// A logger whose lines are written when the test asks for it.
struct Fixture {
    logger: Logger,
    writer: Writer,
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new(level: u8) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = LogConfig { dir: folder.path().join("new/log"), level };
        let (logger, writer) = Logger::open("kproxy", &config).unwrap();
        Fixture { logger, writer, folder }
    }

    /// Writes what is queued; returns the level word and the message of each line of a file.
    fn lines(&mut self, name: &str) -> Vec<String> {
        // A request to reopen, so that the writer does not wait if nothing is queued.
        self.logger.queue.reopen();
        self.writer.write_once(&self.logger.queue, Instant::now());
        let text = fs::read_to_string(self.folder.path().join("new/log").join(name)).unwrap();
        text.lines().map(message_of).collect()
    }
}

fn message_of(line: &str) -> String {
    let word = line.split(' ').nth(1).unwrap();
    let (_, message) = line.split_once("] ").unwrap();
    format!("{word} {message}")
}

fn log_line(logger: &Logger, level: Level, target: &str, text: &str) {
    logger.log(&Record::builder().level(level).target(target).args(format_args!("{text}")).build());
}

#[test]
fn each_level_writes_its_lines_to_its_files() {
    let all = ["FATAL a", "WARNING b", "NOTICE c", "TRACE d", "DEBUG e"];
    for (level, written) in [(1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4), (15, 4), (16, 5)] {
        let mut fixture = Fixture::new(level);
        for (level, text) in Level::iter().zip(["a", "b", "c", "d", "e"]) {
            log_line(&fixture.logger, level, OWN, text);
        }
        assert_eq!(fixture.lines("kproxy.log"), all[..written], "level {level}");
        assert_eq!(fixture.lines("kproxy.log.wf"), all[..written.min(2)], "level {level}");
    }
    let fixture = Fixture::new(0);
    log_line(&fixture.logger, Level::Error, OWN, "a");
    assert!(!fixture.folder.path().join("new").exists(), "level 0 creates no file");
}

#[test]
fn lines_of_libraries_become_warnings_and_are_limited() {
    let mut fixture = Fixture::new(16);
    log_line(&fixture.logger, Level::Info, "rustls::client", "chatter");
    for _ in 0..100 {
        log_line(&fixture.logger, Level::Error, "rustls::client", "broker down");
    }
    let lines = fixture.lines("kproxy.log");
    // The limit is 5 a second, and the hundred lines may fall into two seconds.
    assert!((1..=10).contains(&lines.len()), "{lines:?}");
    assert!(lines.iter().all(|line| line.starts_with("WARNING rustls: broker down")), "{lines:?}");
}

#[test]
fn threads_write_whole_lines_each_in_its_order() {
    let mut fixture = Fixture::new(4);
    let text = "x".repeat(3000);
    thread::scope(|scope| {
        for thread in 0..4 {
            let (logger, text) = (&fixture.logger, &text);
            scope.spawn(move || {
                (0..200).for_each(|n| log_line(logger, Level::Info, OWN, &format!("{thread} {n:03} {text}")));
            });
        }
    });
    let lines = fixture.lines("kproxy.log");
    assert_eq!(lines.len(), 800);
    assert!(lines.iter().all(|line| line.len() == "NOTICE 0 000 ".len() + text.len()));
    for thread in 0..4 {
        let prefix = format!("NOTICE {thread} ");
        let numbers: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix(&prefix)).collect();
        assert!(numbers.len() == 200 && numbers.is_sorted(), "thread {thread}");
    }
}

#[test]
fn lines_beyond_the_bound_of_the_queue_are_dropped_and_counted() {
    let mut fixture = Fixture::new(4);
    let before = DROPPED_LINES.get();
    let text = "x".repeat(10_000);
    for _ in 0..MAX_QUEUED_BYTES / text.len() + 10 {
        log_line(&fixture.logger, Level::Info, OWN, &text);
    }
    log_line(&fixture.logger, Level::Warn, OWN, &text);
    let lines = fixture.lines("kproxy.log");
    let dropped = MAX_QUEUED_BYTES / text.len() + 11 - (lines.len() - 1);
    assert!((10..100).contains(&dropped), "{dropped}");
    let report = format!("WARNING {dropped} lines could not be written to this file: the log queue of 4 MiB was full");
    assert_eq!(lines.last(), Some(&report));
    assert!(DROPPED_LINES.get() - before >= dropped as u64, "other tests drop lines as well");
    assert_eq!(fixture.lines("kproxy.log.wf").len(), 1, "the warning had room in the other file");
    log_line(&fixture.logger, Level::Info, OWN, "flows again");
    assert_eq!(fixture.lines("kproxy.log").last().unwrap(), "NOTICE flows again");
}

/// The pipe stands for a disk that is frozen: a write to it blocks until the test reads.
#[test]
fn a_file_that_takes_no_bytes_blocks_no_thread_that_logs_and_loses_only_what_exceeds_the_queue() {
    let (reader, pipe_writer) = pipe().unwrap();
    let file = LogFile::of("pipe".into(), File::from(OwnedFd::from(pipe_writer)));
    let queue = Arc::<Queue>::default();
    let logger = Logger { level: LevelFilter::Info, queue: Arc::clone(&queue) };
    // The thread outlives the test, as it outlives a daemon.
    thread::spawn(move || Writer::new(vec![file]).run(&queue));
    let text = "x".repeat(10_000);
    let n_lines = 3 * MAX_QUEUED_BYTES / text.len();
    (0..n_lines).for_each(|_| log_line(&logger, Level::Info, OWN, &text));
    assert!(!logger.queue.flush(Duration::from_millis(20)), "nobody reads");
    // Reading stands for the disk that works again.
    let reading = thread::spawn(move || {
        let lines = BufReader::new(reader).lines();
        lines.take_while(|line| !line.as_ref().unwrap().contains(" lines could not be written to this file: ")).count()
    });
    let n_read = reading.join().unwrap();
    assert!(n_read < n_lines && n_read >= MAX_QUEUED_BYTES / text.len() / 2, "{n_read} of {n_lines}");
    assert!(logger.queue.flush(Duration::from_secs(60)));
}

#[test]
fn a_flush_waits_for_the_lines_before_it_and_not_longer() {
    let Fixture { logger, mut writer, .. } = Fixture::new(4);
    log_line(&logger, Level::Info, OWN, "one");
    assert!(!logger.queue.flush(Duration::from_millis(1)), "nobody writes");
    thread::scope(|scope| {
        let flushing = scope.spawn(|| logger.queue.flush(Duration::from_secs(60)));
        // A flush that begins later than this write finds the line written.
        writer.write_once(&logger.queue, Instant::now() + Duration::from_secs(3600));
        assert!(flushing.join().unwrap());
    });
}

#[test]
fn an_error_to_open_a_file_names_it() {
    let config = LogConfig { dir: "/proc/nowhere".into(), level: 4 };
    let error = Logger::open("kproxy", &config).map(|_| ()).unwrap_err().to_string();
    assert!(error.starts_with("log_dir: /proc/nowhere/kproxy.log cannot be opened for writing: "), "{error}");
}

/// Asserts only that a line costs less than 1 ms; prints the measurement with
/// `cargo test --release --lib logging -- --nocapture a_line_costs`.
#[test]
fn a_line_costs_about_a_microsecond() {
    let Fixture { logger, .. } = Fixture::new(4);
    let began = Instant::now();
    let lines = 20_000_u32;
    for number in 0..lines {
        let text = format_args!("topic=events key=user-{number} partition=3 offset={number} acks=1 us=612 code=200");
        logger.log(&Record::builder().level(Level::Info).target(OWN).args(text).build());
    }
    let each = began.elapsed() / lines;
    println!("{each:?} a line");
    assert!(each.as_millis() < 1, "{each:?}");
}
