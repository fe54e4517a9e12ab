//! The writer of the log files. Only its thread can hang on a frozen disk or on a pipe without a reader.

use std::io;
use std::mem;
use std::time::Instant;

use log::{info, warn};

use super::file::LogFile;
use super::queue::{Batch, DROPPED_LINES, GATHER_TIME, Queue};

/// Writes the lines of the queue to the files.
pub(super) struct Writer {
    files: Vec<LogFile>,
    batch: Batch,
}

impl Writer {
    pub(super) fn new(files: Vec<LogFile>) -> Self {
        Writer { files, batch: Batch::default() }
    }

    /// Writes the lines of the queue for the rest of the process.
    pub(super) fn run(mut self, queue: &Queue) {
        let mut not_before = Instant::now();
        loop {
            self.write_once(queue, not_before);
            not_before = Instant::now() + GATHER_TIME;
        }
    }

    /// Waits until something is queued, and writes it.
    pub(super) fn write_once(&mut self, queue: &Queue, not_before: Instant) {
        queue.take(&mut self.batch, not_before);
        // Lines that were queued before the rotation go to the new file: the old one may be compressed already.
        if mem::take(&mut self.batch.must_reopen) {
            self.reopen();
        }
        for (file, lines) in self.files.iter_mut().zip(&self.batch.files) {
            if lines.dropped > 0 {
                file.count_dropped(lines.dropped, io::Error::other("the log queue of 4 MiB was full"));
            }
            DROPPED_LINES.inc_by(file.append(&lines.bytes));
        }
        queue.finish(&mut self.batch);
    }

    fn reopen(&mut self) {
        let mut has_failed = false;
        for file in &self.files {
            if let Err(cause) = file.reopen() {
                has_failed = true;
                warn!("cannot reopen {}, the old file stays in use: {cause}", file.path().display());
            }
        }
        if !has_failed {
            info!("log files reopened");
        }
    }
}
