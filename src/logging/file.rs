//! One log file: whole lines, one or some with one `write(2)`, from any thread, without a lock and without ever blocking.

use std::ffi::c_int;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

/// A file that is only appended to. What cannot be written (full disk) is dropped and counted, never waited for.
///
/// The file descriptor keeps its number for the life of the process: reopening puts the new file under it.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    /// Lines that could not be written and have not been reported yet.
    dropped: AtomicU64,
    /// `errno` of the last failed write; 0 before the first.
    last_error: AtomicI32,
    /// The last write ended in the middle of a line.
    torn: AtomicBool,
}

impl LogFile {
    /// Opens or makes the file, and its folder.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let file = open(&path)?;
        Ok(LogFile {
            path,
            file,
            dropped: AtomicU64::new(0),
            last_error: AtomicI32::new(0),
            torn: AtomicBool::new(false),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes lines, each of which ends with a newline.
    pub(super) fn append(&self, lines: &[u8]) {
        if self.torn.load(Ordering::Relaxed) && self.torn.swap(false, Ordering::Relaxed) {
            // Ends the half line, so that the next begins on its own.
            let _ = (&self.file).write(b"\n");
        }
        match (&self.file).write(lines) {
            Ok(written) if written == lines.len() => {}
            Ok(written) => {
                let (before, rest) = lines.split_at(written);
                self.torn.store(before.last().is_some_and(|&last| last != b'\n'), Ordering::Relaxed);
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

    /// Whether lines were dropped that nobody reported so far.
    pub(super) fn has_dropped(&self) -> bool {
        self.dropped.load(Ordering::Relaxed) != 0
    }

    /// Takes the number of dropped lines, to report them, and why the last one was.
    pub(super) fn take_dropped(&self) -> (u64, io::Error) {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        (dropped, io::Error::from_raw_os_error(self.last_error.load(Ordering::Relaxed)))
    }

    /// Gives a number back that could not be reported.
    pub(super) fn put_back(&self, dropped: u64) {
        self.dropped.fetch_add(dropped, Ordering::Relaxed);
    }

    /// Opens the path anew (after a rotation). On an error the old file stays in use.
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
    // Non-blocking for the case that somebody put a named pipe there.
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
    fn what_a_full_disk_refuses_is_counted() {
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
