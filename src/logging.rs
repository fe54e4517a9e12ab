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
//! Invariants: a log call never panics, and never waits for a disk or a pipe. It copies the line into a bounded queue,
//! from which the thread `log` writes whole lines, those of one thread in their order. A line for which the queue has
//! no room, or that cannot be written, is dropped and counted; the next line that is written is followed by a line with
//! that count. `flush` waits for the queue for a bounded time; the end of the process and a panic do so. On `kill -9`
//! the lines of the last 10 ms are lost. Lines that clients, messages or peers can cause go through
//! [`log_limited!`](crate::log_limited).

mod file;
mod line;
mod queue;
mod rate;
mod writer;

use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;
use std::panic;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::config::{Problems, Section};
use crate::metrics::Registry;
use crate::panics::panic_text;
use crate::supervise;

use file::LogFile;
use queue::{DROPPED_LINES, Queue};
pub use rate::{LIMITED_LINES_PER_SECOND, RateLimit};
use writer::Writer;

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
    /// The thread that writes the files cannot be started.
    #[error("the thread log cannot be started: {0}")]
    Thread(io::Error),
    /// This process has a logger already.
    #[error("logging was started twice")]
    StartedTwice,
}

/// Opens the files of the daemon `name`; from now on all lines of the process, and its panics, go there.
pub(crate) fn start(name: &str, config: &LogConfig) -> Result<(), LogError> {
    let (logger, writer) = Logger::open(name, config)?;
    let queue = Arc::clone(&logger.queue);
    LOGGER.set(logger).map_err(|_| LogError::StartedTwice)?;
    let logger = LOGGER.get().ok_or(LogError::StartedTwice)?;
    log::set_logger(logger).map_err(|_| LogError::StartedTwice)?;
    supervise::spawn_expendable("log", move || writer.run(&queue)).map_err(LogError::Thread)?;
    log::set_max_level(config.filter());
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(String::new, |place| format!(" at {}:{}", place.file(), place.line()));
        let text = panic_text(panic.payload());
        to_stderr(&format!("thread {} panicked{place}: {text}\n", thread::current().name().unwrap_or("?")));
        log::error!("panicked{place}: {text}");
        // Some panics end the process at once, such as one in a destructor during another panic.
        flush(PANIC_FLUSH);
    }));
    Ok(())
}

/// Longest wait for the lines of a panic to be written.
const PANIC_FLUSH: Duration = Duration::from_millis(100);

/// Waits until all lines that were logged before are written, at most for `timeout`.
pub(crate) fn flush(timeout: Duration) {
    if let Some(logger) = LOGGER.get() {
        logger.queue.flush(timeout);
    }
}

/// Requests that the files are reopened, after a rotation; does not wait for it. If one cannot be opened, the old file
/// stays in use and a warning is logged.
pub(crate) fn reopen() {
    if let Some(logger) = LOGGER.get() {
        logger.queue.reopen();
    }
}

/// Adds the number of dropped lines to the metrics of the daemon.
pub(crate) fn register_metrics(registry: &Registry) {
    registry.shared_counter(&DROPPED_LINES);
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

/// Formats lines and queues them for the files of one daemon.
struct Logger {
    level: LevelFilter,
    queue: Arc<Queue>,
}

impl Logger {
    /// Opens `NAME.log` and `NAME.log.wf`, or no file at level 0.
    fn open(name: &str, config: &LogConfig) -> Result<(Self, Writer), LogError> {
        let level = config.filter();
        let names =
            if level == LevelFilter::Off { vec![] } else { vec![format!("{name}.log"), format!("{name}.log.wf")] };
        let open = |name: String| {
            let path = config.dir.join(name);
            LogFile::open(path.clone()).map_err(|cause| LogError::Open { path, cause })
        };
        let files = names.into_iter().map(open).collect::<Result<_, _>>()?;
        Ok((Logger { level, queue: Arc::default() }, Writer::new(files)))
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
        line::format_line(&mut buffer, level, current.name().unwrap_or("?"), origin, text);
        let n_files = if level <= Level::Warn { queue::FILE_COUNT } else { 1 };
        self.queue.push(&buffer, n_files, level == Level::Error);
        let _ = BUFFER.try_with(|place| place.set(buffer));
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

#[cfg(test)]
mod tests;
