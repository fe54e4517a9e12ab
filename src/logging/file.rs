//! One log file, which one thread writes: appends lines, and counts those that it cannot write.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use log::Level;

use super::line;

/// A file that is only appended to. Lines that cannot be written (full disk) are dropped and counted. The next line
/// that is written is followed by a line with their number.
///
/// The file descriptor keeps its number for the life of the process: reopening replaces the file behind it.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    /// Number of lines that were dropped and have not been reported yet.
    dropped: u64,
    /// Why the last line was dropped.
    last_error: Option<io::Error>,
    /// Whether the last write ended in the middle of a line.
    is_torn: bool,
}

impl LogFile {
    /// Opens the file, or creates it and its folder.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let file = open(&path)?;
        Ok(Self::of(path, file))
    }

    pub(super) fn of(path: PathBuf, file: File) -> Self {
        LogFile { path, file, dropped: 0, last_error: None, is_torn: false }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes lines, each of which ends with a newline; returns the number of lines that were dropped. Blocks while the
    /// disk or pipe takes no bytes.
    pub(super) fn append(&mut self, lines: &[u8]) -> u64 {
        match self.write(lines) {
            Err(dropped) => dropped,
            Ok(()) => {
                if self.dropped > 0 {
                    self.report_dropped();
                }
                0
            }
        }
    }

    /// Counts lines that were dropped before they reached the file.
    pub(super) fn count_dropped(&mut self, count: u64, cause: io::Error) {
        self.dropped += count;
        self.last_error = Some(cause);
    }

    fn report_dropped(&mut self) {
        let (dropped, cause) = (self.dropped, self.last_error.take());
        let cause = cause.unwrap_or_else(|| ErrorKind::Other.into());
        let mut report = Vec::new();
        let text = format_args!("{dropped} lines could not be written to this file: {cause}");
        line::format_line(&mut report, Level::Warn, "log", None, text);
        self.dropped = 0;
        if self.write(&report).is_err() {
            // The report is no line that was lost.
            self.dropped = dropped;
        }
    }

    /// Writes all of `lines`, or fails with the number of lines that were dropped and counted.
    fn write(&mut self, lines: &[u8]) -> Result<(), u64> {
        if self.is_torn && self.file.write(b"\n").is_ok() {
            // The half line has ended, so that the next line starts on a line of its own.
            self.is_torn = false;
        }
        let mut rest = lines;
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(self.drop_lines(lines, rest, ErrorKind::WriteZero.into())),
                Ok(written) => rest = &rest[written..],
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(cause) => return Err(self.drop_lines(lines, rest, cause)),
            }
        }
        Ok(())
    }

    fn drop_lines(&mut self, lines: &[u8], rest: &[u8], cause: io::Error) -> u64 {
        let before = &lines[..lines.len() - rest.len()];
        self.is_torn |= before.last().is_some_and(|&last| last != b'\n');
        let count = rest.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.count_dropped(count, cause);
        count
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
    // Non-blocking, because opening a named pipe would wait for a reader; without a reader it fails at once.
    let file = OpenOptions::new().append(true).create(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    // Writing then waits for room in the pipe, so that a slow reader of a pipe gets every line.
    // SAFETY: a plain system call on an open descriptor.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_APPEND) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_reopened_file_is_a_new_one_and_a_failed_reopen_keeps_the_old() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/x.log");
        let mut log = LogFile::open(path.clone()).unwrap();
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
        assert_eq!(log.dropped, 0);
    }

    #[test]
    fn lines_that_a_full_disk_refuses_are_counted_and_the_count_is_written_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let mut log = LogFile::open(path.clone()).unwrap();
        log.append(b"one\n");
        log.append(b"two\nthree\n");
        assert_eq!((log.dropped, log.last_error.as_ref().unwrap().raw_os_error()), (3, Some(libc::ENOSPC)));
        fs::remove_file(&path).unwrap();
        log.reopen().unwrap();
        log.append(b"four\n");
        log.append(b"five\n");
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!((lines[0], lines[2], lines.len()), ("four", "five", 3), "{text}");
        let report = "WARNING [log] 3 lines could not be written to this file: No space left on device (os error 28)";
        assert!(lines[1].ends_with(report), "{text}");
    }

    #[test]
    fn a_line_after_a_torn_one_starts_on_a_line_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        let mut log = LogFile::open(path.clone()).unwrap();
        log.file.write_all(b"ha").unwrap();
        assert_eq!(log.drop_lines(b"half\nnext\n", b"lf\nnext\n", ErrorKind::StorageFull.into()), 2);
        log.append(b"new\n");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("ha\nnew\n") && text.contains(" 2 lines could not be written"), "{text}");
    }
}
