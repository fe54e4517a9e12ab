//! The logger as the macros see it, without making it the process's own.

use std::fs;
use std::time::Instant;

use super::*;

const OWN: &str = concat!(env!("CARGO_CRATE_NAME"), "::kproxy");

fn logger(level: u8) -> (Logger, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let config = LogConfig { dir: folder.path().join("new/log"), level };
    (Logger::open("kproxy", &config).unwrap(), folder)
}

fn say(logger: &Logger, level: Level, target: &str, text: &str) {
    logger.log(&Record::builder().level(level).target(target).args(format_args!("{text}")).build());
}

/// Level words and messages of a file, one pair a line.
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
fn each_level_writes_what_the_contract_says_and_where() {
    let all = ["FATAL a", "WARNING b", "NOTICE c", "TRACE d", "DEBUG e"];
    for (level, written) in [(1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4), (15, 4), (16, 5)] {
        let (logger, folder) = logger(level);
        for (level, text) in Level::iter().zip(["a", "b", "c", "d", "e"]) {
            say(&logger, level, OWN, text);
        }
        assert_eq!(lines(&folder, "kproxy.log"), all[..written], "level {level}");
        assert_eq!(lines(&folder, "kproxy.log.wf"), all[..written.min(2)], "level {level}");
    }
    let (logger, folder) = logger(0);
    say(&logger, Level::Error, OWN, "a");
    assert!(!folder.path().join("new").exists(), "level 0 makes no file");
}

#[test]
fn libraries_are_warnings_limited_and_the_flooding_ones_silent() {
    let (logger, folder) = logger(16);
    say(&logger, Level::Error, "zookeeper::io", "flood");
    say(&logger, Level::Warn, "mio::poll", "flood");
    say(&logger, Level::Info, "rdkafka::client", "chatter");
    for _ in 0..100 {
        say(&logger, Level::Error, "rdkafka::client", "broker down");
    }
    let lines = lines(&folder, "kproxy.log");
    // Two seconds' worth at most, since the hundred may fall into two.
    assert!((1..=10).contains(&lines.len()), "{lines:?}");
    assert!(lines.iter().all(|line| line.starts_with("WARNING rdkafka: broker down")), "{lines:?}");
}

#[test]
fn dropped_lines_are_reported_when_writing_works_again() {
    let (logger, folder) = logger(4);
    logger.files[0].put_back(7);
    say(&logger, Level::Info, OWN, "works again");
    let lines = lines(&folder, "kproxy.log");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[1].starts_with("WARNING 7 lines could not be written here"), "{lines:?}");
    assert!(!logger.files[0].has_dropped());
}

#[test]
fn a_full_disk_costs_lines_and_nothing_else() {
    let full = LogFile::open(PathBuf::from("/dev/full")).unwrap();
    let logger = Logger { level: LevelFilter::Info, files: vec![full], reopening: Mutex::new(()) };
    for _ in 0..5 {
        say(&logger, Level::Info, OWN, "lost");
    }
    assert_eq!(logger.files[0].take_dropped().0, 5);
}

#[test]
fn threads_write_whole_lines() {
    let (logger, folder) = logger(4);
    let text = "x".repeat(3000);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..200).for_each(|_| say(&logger, Level::Info, OWN, &text)));
        }
    });
    let lines = lines(&folder, "kproxy.log");
    assert_eq!(lines.len(), 800);
    assert!(lines.iter().all(|line| line.len() == "NOTICE ".len() + text.len()));
}

#[test]
fn lines_said_together_are_written_by_and_by_and_what_matters_at_once() {
    let (logger, folder) = logger(4);
    let together = batch_lines();
    say(&logger, Level::Info, OWN, "one");
    say(&logger, Level::Warn, OWN, "two");
    assert_eq!(lines(&folder, "kproxy.log"), [""; 0]);
    assert_eq!(lines(&folder, "kproxy.log.wf"), ["WARNING two"]);
    let long = "x".repeat(MAX_BATCH_BYTES / 2);
    (0..2).for_each(|_| say(&logger, Level::Info, OWN, &long));
    assert_eq!(lines(&folder, "kproxy.log").len(), 4, "no more than so many bytes wait");
    say(&logger, Level::Info, OWN, "three");
    say(&logger, Level::Error, OWN, "four");
    assert_eq!(lines(&folder, "kproxy.log").len(), 6, "it may be the last line");
    // What is left goes to the logger of the process, which a unit test does not have; the stories look at that.
    drop(together);
    say(&logger, Level::Info, OWN, "five");
    let long = format!("NOTICE {long}");
    let expected = ["NOTICE one", "WARNING two", &long, &long, "NOTICE three", "FATAL four", "NOTICE five"];
    assert_eq!(lines(&folder, "kproxy.log"), expected);
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    let config = LogConfig { dir: "/proc/nowhere".into(), level: 4 };
    let error = Logger::open("kproxy", &config).map(|_| ()).unwrap_err().to_string();
    assert!(error.starts_with("log_dir: /proc/nowhere/kproxy.log cannot be opened for writing: "), "{error}");
}

/// Not a limit, a figure: `cargo test --release --lib logging -- --nocapture a_line_costs`.
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
