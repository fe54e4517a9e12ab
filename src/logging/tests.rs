//! Calls the logger as the `log` macros do, without making it the logger of the process.

use std::fs;
use std::time::Instant;

use super::*;

const OWN: &str = concat!(env!("CARGO_CRATE_NAME"), "::kproxy");

fn logger(level: u8) -> (Logger, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let config = LogConfig { dir: folder.path().join("new/log"), level };
    (Logger::open("kproxy", &config).unwrap(), folder)
}

fn log_line(logger: &Logger, level: Level, target: &str, text: &str) {
    logger.log(&Record::builder().level(level).target(target).args(format_args!("{text}")).build());
}

/// Returns the level word and the message of each line of a file.
fn lines(folder: &tempfile::TempDir, name: &str) -> Vec<String> {
    let text = fs::read_to_string(folder.path().join("new/log").join(name)).unwrap();
    text.lines()
        .map(|line| {
            let word = line.split(' ').nth(1).unwrap();
            let (_, message) = line.split_once("] ").unwrap();
            format!("{word} {message}")
        })
        .collect()
}

#[test]
fn each_level_writes_its_lines_to_its_files() {
    let all = ["FATAL a", "WARNING b", "NOTICE c", "TRACE d", "DEBUG e"];
    for (level, written) in [(1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4), (15, 4), (16, 5)] {
        let (logger, folder) = logger(level);
        for (level, text) in Level::iter().zip(["a", "b", "c", "d", "e"]) {
            log_line(&logger, level, OWN, text);
        }
        assert_eq!(lines(&folder, "kproxy.log"), all[..written], "level {level}");
        assert_eq!(lines(&folder, "kproxy.log.wf"), all[..written.min(2)], "level {level}");
    }
    let (logger, folder) = logger(0);
    log_line(&logger, Level::Error, OWN, "a");
    assert!(!folder.path().join("new").exists(), "level 0 creates no file");
}

#[test]
fn lines_of_libraries_become_warnings_are_limited_and_those_of_flooding_libraries_are_ignored() {
    let (logger, folder) = logger(16);
    log_line(&logger, Level::Info, "rustls::client", "chatter");
    for _ in 0..100 {
        log_line(&logger, Level::Error, "rustls::client", "broker down");
    }
    let lines = lines(&folder, "kproxy.log");
    // The limit is 5 a second, and the hundred lines may fall into two seconds.
    assert!((1..=10).contains(&lines.len()), "{lines:?}");
    assert!(lines.iter().all(|line| line.starts_with("WARNING rustls: broker down")), "{lines:?}");
}

#[test]
fn dropped_lines_are_reported_when_writing_works_again() {
    let (logger, folder) = logger(4);
    logger.files[0].put_back(7);
    log_line(&logger, Level::Info, OWN, "works again");
    let lines = lines(&folder, "kproxy.log");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[1].starts_with("WARNING 7 lines could not be written to this file"), "{lines:?}");
    assert!(!logger.files[0].has_dropped());
}

#[test]
fn on_a_full_disk_lines_are_dropped_and_counted() {
    let full = LogFile::open(PathBuf::from("/dev/full")).unwrap();
    let logger = Logger { level: LevelFilter::Info, files: vec![full], reopening: Mutex::new(()) };
    for _ in 0..5 {
        log_line(&logger, Level::Info, OWN, "lost");
    }
    assert_eq!(logger.files[0].take_dropped().0, 5);
}

#[test]
fn threads_write_whole_lines() {
    let (logger, folder) = logger(4);
    let text = "x".repeat(3000);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..200).for_each(|_| log_line(&logger, Level::Info, OWN, &text)));
        }
    });
    let lines = lines(&folder, "kproxy.log");
    assert_eq!(lines.len(), 800);
    assert!(lines.iter().all(|line| line.len() == "NOTICE ".len() + text.len()));
}

#[test]
fn a_batch_is_written_when_it_is_full_and_errors_at_once() {
    let (logger, folder) = logger(4);
    let batch = batch_lines();
    log_line(&logger, Level::Info, OWN, "one");
    log_line(&logger, Level::Warn, OWN, "two");
    assert_eq!(lines(&folder, "kproxy.log"), [""; 0]);
    assert_eq!(lines(&folder, "kproxy.log.wf"), ["WARNING two"]);
    let long = "x".repeat(MAX_BATCH_BYTES / 2);
    (0..2).for_each(|_| log_line(&logger, Level::Info, OWN, &long));
    assert_eq!(lines(&folder, "kproxy.log").len(), 4, "a full batch is written");
    log_line(&logger, Level::Info, OWN, "three");
    log_line(&logger, Level::Error, OWN, "four");
    assert_eq!(lines(&folder, "kproxy.log").len(), 6, "an error may be the last line");
    // The end of a batch is written by the logger of the process, which a unit test does not have; a story covers it.
    drop(batch);
    log_line(&logger, Level::Info, OWN, "five");
    let long = format!("NOTICE {long}");
    let expected = ["NOTICE one", "WARNING two", &long, &long, "NOTICE three", "FATAL four", "NOTICE five"];
    assert_eq!(lines(&folder, "kproxy.log"), expected);
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
    let (logger, _folder) = logger(4);
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
