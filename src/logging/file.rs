//! One log file: any thread appends whole lines, with one `write(2)` for each append, without a lock or blocking.

use std::ffi::c_int;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

/// A file that is only appended to. Lines that cannot be written (full disk) are dropped and counted.
///
/// The file descriptor keeps its number for the life of the process: reopening replaces the file behind it.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    /// Number of lines that were dropped and have not been reported yet.
    dropped: AtomicU64,
    /// `errno` of the last failed write; 0 before the first.
    last_error: AtomicI32,
    /// Whether the last write ended in the middle of a line.
    is_torn: AtomicBool,
}

impl LogFile {
    /// Opens the file, or creates it and its folder.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let file = open(&path)?;
        Ok(LogFile {
            path,
            file,
            dropped: AtomicU64::new(0),
            last_error: AtomicI32::new(0),
            is_torn: AtomicBool::new(false),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes lines; each ends with a newline.
    pub(super) fn append(&self, lines: &[u8]) {
        if self.is_torn.load(Ordering::Relaxed) && self.is_torn.swap(false, Ordering::Relaxed) {
            // Ends the half line, so that the next line starts on a line of its own.
            let _ = (&self.file).write(b"\n");
        }
        match (&self.file).write(lines) {
            Ok(written) if written == lines.len() => {}
            Ok(written) => {
                let (before, rest) = lines.split_at(written);
                self.is_torn.store(before.last().is_some_and(|&last| last != b'\n'), Ordering::Relaxed);
                self.drop_lines(rest, libc::ENOSPC);
            }
            Err(cause) => self.drop_lines(lines, cause.raw_os_error().unwrap_or(0)),
        }
    }

    fn drop_lines(&self, lines: &[u8], error: c_int) {
        self.last_error.store(error, Ordering::Relaxed);
        let count = lines.iter().filter(|byte| **byte == b'\n').count();
        self.dropped.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Returns whether lines were dropped that have not been reported yet.
    pub(super) fn has_dropped(&self) -> bool {
        self.dropped.load(Ordering::Relaxed) != 0
    }

    /// Resets the number of dropped lines; returns this number and the error of the last dropped line.
    pub(super) fn take_dropped(&self) -> (u64, io::Error) {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        (dropped, io::Error::from_raw_os_error(self.last_error.load(Ordering::Relaxed)))
    }

    /// Adds a number of dropped lines whose report could not be written.
    pub(super) fn put_back(&self, dropped: u64) {
        self.dropped.fetch_add(dropped, Ordering::Relaxed);
    }

    /// Reopens the path (after a rotation). On an error the old file stays in use.
    pub(super) fn reopen(&self) -> io::Result<()> {
        let fresh = open(&self.path)?;
        // SAFETY: both descriptors are open and owned here; dup3 replaces the old file under its number atomically.
        let outcome = unsafe { libc::dup3(fresh.as_raw_fd(), self.file.as_raw_fd(), libc::O_CLOEXEC) };
        if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).create(folder)?;
    }
    // Non-blocking, in case the path is a named pipe.
    OpenOptions::new().append(true).create(true).custom_flags(libc::O_NONBLOCK).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_reopened_file_is_a_new_one_and_a_failed_reopen_keeps_the_old() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/x.log");
        let log = LogFile::open(path.clone()).unwrap();
        log.append(b"one\n");
        let rotated = folder.path().join("deep/er/x.log.1");
        fs::rename(&path, &rotated).unwrap();
        log.append(b"two\n");
        log.reopen().unwrap();
        log.append(b"three\n");
        assert_eq!(fs::read_to_string(&rotated).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(log.reopen().is_err());
        log.append(b"four\n");
        assert!(!log.has_dropped());
    }

    #[test]
    fn lines_that_a_full_disk_refuses_are_counted() {
        let log = LogFile::open(PathBuf::from("/dev/full")).unwrap();
        log.append(b"one\n");
        log.append(b"two\nthree\n");
        let (dropped, cause) = log.take_dropped();
        assert_eq!((dropped, cause.raw_os_error()), (3, Some(libc::ENOSPC)));
        assert!(!log.has_dropped());
        log.put_back(dropped);
        assert!(log.has_dropped());
    }
}
