//! Reads a whole regular file, with a bound on its size: configuration, credentials, certificates.
//!
//! Anything else is refused, because reading it could block or never end: a named pipe, a terminal, `/dev/zero`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Why a file is not read. The texts follow the name of the file, as in "is not a regular file".
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The system returned an error.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is a folder.
    #[error("is a folder, not a file")]
    Folder,
    /// It is a named pipe, a device or a socket; the text says which.
    #[error("is {0}, but must be a regular file")]
    NotRegular(&'static str),
    /// The file is longer than the limit.
    #[error("has more than {0} bytes, which is the maximum")]
    TooLarge(usize),
}

/// Returns the bytes of a regular file, or of the regular file that a link points to.
pub(crate) fn read(path: &Path, max_bytes: usize) -> Result<Vec<u8>, ReadError> {
    let file = open(path)?;
    let mut bytes = Vec::new();
    file.take(max_bytes as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max_bytes { Err(ReadError::TooLarge(max_bytes)) } else { Ok(bytes) }
}

/// Opens a regular file for reading. Never waits for another process, as opening a named pipe does.
pub(crate) fn open(path: &Path) -> Result<File, ReadError> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let kind = file.metadata()?.file_type();
    match () {
        () if kind.is_file() => Ok(file),
        () if kind.is_dir() => Err(ReadError::Folder),
        () if kind.is_fifo() => Err(ReadError::NotRegular("a pipe")),
        () => Err(ReadError::NotRegular("a device")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_regular_files_up_to_the_limit_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let content = |name: &str| {
            let outcome = read(&path(name), 4);
            outcome.map(|bytes| String::from_utf8(bytes).unwrap()).map_err(|problem| problem.to_string())
        };
        fs::write(path("four"), "four").unwrap();
        fs::write(path("five+"), "five+").unwrap();
        symlink("four", path("link")).unwrap();
        symlink("/dev/zero", path("zero")).unwrap();
        fs::create_dir(path("folder")).unwrap();
        let pipe = CString::new(path("pipe").into_os_string().into_encoded_bytes()).unwrap();
        // SAFETY: the name is a valid string for the call.
        assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
        symlink("pipe", path("link to pipe")).unwrap();
        for (name, expected) in [
            ("four", Ok("four")),
            ("link", Ok("four")),
            ("five+", Err("has more than 4 bytes, which is the maximum")),
            ("folder", Err("is a folder, not a file")),
            ("pipe", Err("is a pipe, but must be a regular file")),
            ("link to pipe", Err("is a pipe, but must be a regular file")),
            ("zero", Err("is a device, but must be a regular file")),
            ("none", Err("cannot be read: No such file or directory (os error 2)")),
        ] {
            assert_eq!(content(name), expected.map(str::to_owned).map_err(str::to_owned), "{name}");
        }
    }
}
