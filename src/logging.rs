//! Writes the lines of the `log` macros to `NAME.log`, and warnings and errors also to `NAME.log.wf`.
//!
//! | macro | word in the line | written from `log_level` | files |
//! |---|---|---|---|
//! | `error!` | FATAL | 1 | `NAME.log` and `NAME.log.wf` |
//! | `warn!` | WARNING | 2 | `NAME.log` and `NAME.log.wf` |
//! | `info!` | NOTICE | 4 | `NAME.log` |
//! | `debug!` | TRACE | 8 | `NAME.log` |
//! | `trace!` | DEBUG | 16 | `NAME.log` |
//!
//! A `log_level` between two of these counts as the lower one; 0 writes nothing and creates no file.
//!
//! Invariants: a log call never panics, never waits until a disk or pipe has room, and writes whole lines, each with
//! one `write(2)`. A thread that logs many lines at once may write them as a batch (`batch_lines`): in the file these
//! lines may come after later lines of other threads, and on `kill -9` or a second SIGTERM they are lost. A line that
//! cannot be written is dropped and counted; the next line that is written is followed by a line with that count. Lines
//! that clients, messages or peers can cause go through [`log_limited!`](crate::log_limited).

mod file;
mod line;
mod rate;

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::AsRawFd;
use std::panic;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};
use std::thread;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::config::{Problems, Section};
use crate::locks::lock;
use crate::panics::panic_text;

use file::LogFile;
pub use rate::{LIMITED_LINES_PER_SECOND, RateLimit};

/// Limits the lines of all libraries together to 5 a second; log calls inside libraries cannot be limited one by one.
static LIBRARY_LIMIT: RateLimit = RateLimit::new(5);

/// The logger of this process, from [`start`] on.
static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Keys `log_dir` and `log_level`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Folder of the log files; created if it does not exist. Relative to the folder in which the daemon was started.
    pub dir: PathBuf,
    /// The level, 0 to 16; the table at the head of this module lists them.
    pub level: u8,
}

impl LogConfig {
    /// Takes the keys `log_dir` (default `./log`) and `log_level` (default 4).
    pub fn from_section(section: &mut Section, problems: &mut Problems) -> Self {
        let dir = section.string("log_dir", Some("./log"), problems);
        if dir.is_empty() {
            section.note("log_dir", "is empty, but must be a folder, as in ./log", problems);
        }
        let level = section.integer("log_level", Some(4), 0..=16, problems);
        LogConfig { dir: dir.into(), level: u8::try_from(level).unwrap_or(4) }
    }

    fn filter(&self) -> LevelFilter {
        match self.level {
            0 => LevelFilter::Off,
            1 => LevelFilter::Error,
            2..4 => LevelFilter::Warn,
            4..8 => LevelFilter::Info,
            8..16 => LevelFilter::Debug,
            16.. => LevelFilter::Trace,
        }
    }
}

/// Why logging cannot start. The daemon then does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// A log file cannot be opened.
    #[error("log_dir: {path} cannot be opened for writing: {cause}")]
    Open {
        /// The log file.
        path: PathBuf,
        /// The error of the system.
        cause: io::Error,
    },
    /// This process has a logger already.
    #[error("logging was started twice")]
    StartedTwice,
}

/// Opens the files of the daemon `name`; from now on all lines of the process, and its panics, go there.
pub(crate) fn start(name: &str, config: &LogConfig) -> Result<(), LogError> {
    let logger = Logger::open(name, config)?;
    LOGGER.set(logger).map_err(|_| LogError::StartedTwice)?;
    let logger = LOGGER.get().ok_or(LogError::StartedTwice)?;
    log::set_logger(logger).map_err(|_| LogError::StartedTwice)?;
    log::set_max_level(config.filter());
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(String::new, |place| format!(" at {}:{}", place.file(), place.line()));
        let text = panic_text(panic.payload());
        to_stderr(&format!("thread {} panicked{place}: {text}\n", thread::current().name().unwrap_or("?")));
        log::error!("panicked{place}: {text}");
    }));
    Ok(())
}

/// Number of bytes from which a batch is written; a batch can exceed it by one line.
const MAX_BATCH_BYTES: usize = 16 << 10;

thread_local! {
    /// The lines of `NAME.log` in this thread's batch; `None` makes this thread write each line at once.
    static BATCHED_LINES: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// While this value exists, its thread writes its lines to `NAME.log` in batches: one system call for some hundred
/// lines instead of one for each. For work that logs many lines in a short time without blocking. Must not be nested.
#[must_use]
pub(crate) struct LineBatch(());

/// Begins a [`LineBatch`] of the calling thread.
pub(crate) fn batch_lines() -> LineBatch {
    let _ = BATCHED_LINES.try_with(|lines| {
        lines.borrow_mut().get_or_insert_default();
    });
    LineBatch(())
}

impl Drop for LineBatch {
    fn drop(&mut self) {
        let lines = BATCHED_LINES.try_with(RefCell::take).ok().flatten();
        if let (Some(lines), Some(logger)) = (lines, LOGGER.get()) {
            logger.append_batch(&lines);
        }
    }
}

/// Reopens the files, after a rotation. If one cannot be opened, the old file stays in use and a warning is logged.
pub(crate) fn reopen() {
    if let Some(logger) = LOGGER.get() {
        logger.reopen();
    }
}

/// Writes to stderr; drops the text if that would block or fails. For errors that occur before the log is open, and for
/// errors that a user at a terminal should see too.
pub(crate) fn to_stderr(text: &str) {
    // A pipe that reports room takes up to PIPE_BUF bytes at once.
    for part in text.as_bytes().chunks(libc::PIPE_BUF) {
        let mut ready = libc::pollfd { fd: io::stderr().as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: one valid pollfd; a zero timeout never waits.
        let has_room = unsafe { libc::poll(&raw mut ready, 1, 0) } == 1 && ready.revents & libc::POLLOUT != 0;
        if has_room {
            // Not through std's stderr, which would wait for its lock: a blocked thread may hold it.
            // SAFETY: the pointer and length are those of `part`.
            unsafe { libc::write(ready.fd, part.as_ptr().cast(), part.len()) };
        }
    }
}

/// The files of one daemon.
struct Logger {
    level: LevelFilter,
    /// `NAME.log`, then `NAME.log.wf`; none at level 0.
    files: Vec<LogFile>,
    /// Held while the files are reopened.
    reopening: Mutex<()>,
}

impl Logger {
    fn open(name: &str, config: &LogConfig) -> Result<Self, LogError> {
        let level = config.filter();
        let names =
            if level == LevelFilter::Off { vec![] } else { vec![format!("{name}.log"), format!("{name}.log.wf")] };
        let open = |name: String| {
            let path = config.dir.join(name);
            LogFile::open(path.clone()).map_err(|cause| LogError::Open { path, cause })
        };
        let files = names.into_iter().map(open).collect::<Result<_, _>>()?;
        Ok(Logger { level, files, reopening: Mutex::new(()) })
    }

    fn reopen(&self) {
        let _one_at_a_time = lock(&self.reopening);
        for file in &self.files {
            if let Err(cause) = file.reopen() {
                self.write(
                    Level::Warn,
                    None,
                    format_args!("cannot reopen {}, the old file stays in use: {cause}", file.path().display()),
                );
            }
        }
    }

    fn write(&self, level: Level, origin: Option<&str>, text: std::fmt::Arguments) {
        thread_local! {
            /// Reused for each line. It is taken out while a line is formatted: a value whose `Display` itself logs
            /// then uses a new buffer.
            static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
        }
        let mut buffer = BUFFER.try_with(Cell::take).unwrap_or_default();
        buffer.clear();
        let current = thread::current();
        line::format_line(&mut buffer, level_word(level), current.name().unwrap_or("?"), origin, text);
        let files = if level <= Level::Warn { self.files.len() } else { 1.min(self.files.len()) };
        let is_batched = self.add_to_batch(level, &buffer);
        for file in &self.files[usize::from(is_batched).min(files)..files] {
            append(file, &buffer);
        }
        let _ = BUFFER.try_with(|place| place.set(buffer));
    }

    /// Adds a line of `NAME.log` to this thread's batch; returns false if the thread has no batch. An error may be the
    /// last line of the process, so an error makes the whole batch be written at once.
    fn add_to_batch(&self, level: Level, line: &[u8]) -> bool {
        BATCHED_LINES
            .try_with(|lines| {
                let mut lines = lines.borrow_mut();
                let Some(lines) = &mut *lines else { return false };
                lines.extend_from_slice(line);
                if lines.len() >= MAX_BATCH_BYTES || level == Level::Error {
                    self.append_batch(lines);
                    lines.clear();
                }
                true
            })
            .unwrap_or(false)
    }

    fn append_batch(&self, lines: &[u8]) {
        if let (Some(file), false) = (self.files.first(), lines.is_empty()) {
            append(file, lines);
        }
    }
}

/// Writes lines, then a line with the number of lines dropped before, if any.
fn append(file: &LogFile, lines: &[u8]) {
    file.append(lines);
    if file.has_dropped() {
        report_dropped(file);
    }
}

/// Tries to write a line with the number of dropped lines.
fn report_dropped(file: &LogFile) {
    let (dropped, cause) = file.take_dropped();
    if dropped == 0 {
        return;
    }
    let mut report = Vec::new();
    let text = format_args!("{dropped} lines could not be written to this file: {cause}");
    line::format_line(&mut report, level_word(Level::Warn), "log", None, text);
    file.append(&report);
    if file.has_dropped() {
        // The report could not be written and was counted too; the count must not include it.
        let (with_report, _) = file.take_dropped();
        file.put_back(dropped + with_report.saturating_sub(1));
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.level && (is_own(metadata.target()) || metadata.level() <= Level::Warn)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        if is_own(record.target()) {
            return self.write(record.level(), None, *record.args());
        }
        // An error of a library is logged as a warning: only the daemon knows which errors are fatal to it.
        let library = record.target().split("::").next().unwrap_or_default();
        if self.level < LevelFilter::Warn {
            return;
        }
        match LIBRARY_LIMIT.admit() {
            None => {}
            Some(0) => self.write(Level::Warn, Some(library), *record.args()),
            Some(suppressed) => {
                let text = format_args!("{} ({suppressed} more lines of libraries suppressed)", record.args());
                self.write(Level::Warn, Some(library), text);
            }
        }
    }

    fn flush(&self) {}
}

fn is_own(target: &str) -> bool {
    target.starts_with(env!("CARGO_CRATE_NAME"))
}

fn level_word(level: Level) -> &'static str {
    match level {
        Level::Error => "FATAL",
        Level::Warn => "WARNING",
        Level::Info => "NOTICE",
        Level::Debug => "TRACE",
        Level::Trace => "DEBUG",
    }
}

#[cfg(test)]
mod tests;
