//! The bounded queue between the threads that log and the one thread that writes the files.
//!
//! A thread that logs copies its line into memory under a short lock; it makes no system call for a file. The writer
//! takes all queued lines at once. When it hangs in a write, the queue fills, and further lines are dropped and
//! counted.

use std::mem;
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use prometheus::IntCounter;

use crate::locks::{lock, wait_timeout, wait_timeout_while};

/// Bound of the bytes that are queued for one file, and of the bytes that are taken from the queue and being written.
pub(super) const MAX_QUEUED_BYTES: usize = 4 << 20;
/// After a write the writer waits for further lines, so that it writes many lines with one call: at most for this time,
/// or until this number of bytes is queued.
pub(super) const GATHER_TIME: Duration = Duration::from_millis(10);
const GATHER_BYTES: usize = 64 << 10;
/// Capacity of a buffer that is kept after a burst of lines.
const KEPT_CAPACITY: usize = 256 << 10;
/// Longest wait of a writer that has nothing to do; then it waits again.
const IDLE_WAIT: Duration = Duration::from_secs(3600);
/// `NAME.log` and `NAME.log.wf`.
pub(super) const FILE_COUNT: usize = 2;

/// Number of lines of this process that were dropped, in all files.
pub(super) static DROPPED_LINES: LazyLock<IntCounter> = LazyLock::new(|| {
    IntCounter::new(
        "log_lines_dropped_total",
        "Log lines dropped because a file could not be written, or not fast enough.",
    )
    .expect("metric names are constants")
});

/// The queued lines of all files.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// The writer waits for it.
    has_work: Condvar,
    /// Callers of [`Queue::flush`] wait for it.
    has_written: Condvar,
}

#[derive(Debug, Default)]
struct State {
    files: [Lines; FILE_COUNT],
    writer: WriterState,
    /// Number of lines that were pushed, also those that were dropped.
    pushed: u64,
    /// The value of `pushed` up to which the writer has finished.
    finished: u64,
    must_reopen: bool,
    must_flush: bool,
}

/// The lines of one file.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pub(super) bytes: Vec<u8>,
    /// Number of lines that were dropped because the queue was full.
    pub(super) dropped: u64,
}

/// The state of the writer, which decides whether a new line must wake it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum WriterState {
    /// It writes, or was woken: it looks at the queue before it waits again.
    #[default]
    Busy,
    /// It waits for more lines for at most [`GATHER_TIME`].
    Gathering,
    /// It waits for the first line.
    Idle,
}

/// The lines that the writer takes from the queue at once.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) files: [Lines; FILE_COUNT],
    /// The value of `pushed` when the lines were taken.
    pushed: u64,
    pub(super) must_reopen: bool,
}

impl Queue {
    /// Queues a line for the first `n_files` files; drops it where the queue is full. An urgent line is written without
    /// waiting for further lines.
    pub(super) fn push(&self, line: &[u8], n_files: usize, is_urgent: bool) {
        let mut state = lock(&self.state);
        state.pushed += 1;
        for lines in state.files.iter_mut().take(n_files) {
            if lines.bytes.len() + line.len() <= MAX_QUEUED_BYTES {
                lines.bytes.extend_from_slice(line);
            } else {
                lines.dropped += 1;
                DROPPED_LINES.inc();
            }
        }
        let must_wake = match state.writer {
            WriterState::Idle => true,
            WriterState::Gathering => is_urgent || state.files[0].bytes.len() >= GATHER_BYTES,
            WriterState::Busy => false,
        };
        if must_wake {
            self.wake(state);
        }
    }

    /// Requests that the writer reopens the files. Lines that are still queued may go to the new files.
    pub(super) fn reopen(&self) {
        let mut state = lock(&self.state);
        state.must_reopen = true;
        self.wake(state);
    }

    /// Waits until all lines that were pushed before are written or dropped, at most for `timeout`.
    pub(super) fn flush(&self, timeout: Duration) -> bool {
        let mut state = lock(&self.state);
        let target = state.pushed;
        state.must_flush = true;
        self.wake(state);
        let (state, _) =
            wait_timeout_while(&self.has_written, lock(&self.state), timeout, |state| state.finished < target);
        state.finished >= target
    }

    fn wake(&self, mut state: MutexGuard<'_, State>) {
        // A wake-up costs a system call, so only the first one after a wait is sent.
        state.writer = WriterState::Busy;
        drop(state);
        self.has_work.notify_one();
    }

    /// Fills `batch` with all queued lines. Blocks while there is nothing to do, and before `not_before` while few
    /// lines are queued.
    pub(super) fn take(&self, batch: &mut Batch, not_before: Instant) {
        let mut state = lock(&self.state);
        loop {
            let has_lines = state.files.iter().any(|lines| !lines.bytes.is_empty() || lines.dropped > 0);
            let left = not_before.saturating_duration_since(Instant::now());
            let is_due = left.is_zero() || state.files[0].bytes.len() >= GATHER_BYTES;
            if state.must_reopen || state.must_flush || (has_lines && is_due) {
                break;
            }
            let (writer, wait) =
                if left.is_zero() { (WriterState::Idle, IDLE_WAIT) } else { (WriterState::Gathering, left) };
            state.writer = writer;
            state = wait_timeout(&self.has_work, state, wait);
        }
        state.writer = WriterState::Busy;
        state.must_flush = false;
        batch.must_reopen = mem::take(&mut state.must_reopen);
        batch.pushed = state.pushed;
        mem::swap(&mut state.files, &mut batch.files);
    }

    /// Empties a batch that was written, and ends each flush that waited for it.
    pub(super) fn finish(&self, batch: &mut Batch) {
        for lines in &mut batch.files {
            lines.dropped = 0;
            lines.bytes.clear();
            lines.bytes.shrink_to(KEPT_CAPACITY);
        }
        lock(&self.state).finished = batch.pushed;
        self.has_written.notify_all();
    }
}
