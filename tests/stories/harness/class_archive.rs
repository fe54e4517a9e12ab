//! Archives of the classes of a server (class data sharing, JEP 350): with one, its JVM starts in about half of the
//! time, and takes half of the processor time. The stories start more than a hundred JVMs.
//!
//! A JVM writes its archive when it ends in order, so the first start of a server on a machine is a rehearsal. An
//! archive fits one JVM and one class path, which its name has; a JVM that cannot use it ignores it. A rehearsal that
//! fails costs only the time that the archive would have saved.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use super::jars::{Edition, cache, jars};
use super::process::random;

/// The archive of one kind of server; made to be a static.
pub(crate) struct ClassArchive {
    name: &'static str,
    edition: Edition,
    options: OnceLock<Vec<String>>,
}

impl ClassArchive {
    pub(crate) const fn new(name: &'static str, edition: Edition) -> ClassArchive {
        ClassArchive { name, edition, options: OnceLock::new() }
    }

    /// Returns the JVM options that use the archive; none if there is no archive. If it is missing, `rehearse` runs the
    /// server with the JVM options that it gets, and ends it with SIGTERM.
    pub(crate) fn options(&self, rehearse: impl FnOnce(&[String])) -> &[String] {
        self.options.get_or_init(|| {
            let path = cache().join(format!("{}-{:016x}.jsa", self.name, fingerprint(jars(self.edition))));
            if !path.exists() {
                eprintln!("archiving the classes of {} (once) ...", self.name);
                let unfinished = path.with_extension(format!("{:016x}", random()));
                rehearse(&[format!("-XX:ArchiveClassesAtExit={}", unfinished.display())]);
                if fs::rename(&unfinished, &path).is_err() {
                    eprintln!("this JVM archives no classes of {}", self.name);
                    return Vec::new();
                }
            }
            vec![format!("-XX:SharedArchiveFile={}", path.display())]
        })
    }
}

/// Returns a number that differs between JVMs and between class paths.
fn fingerprint(jars: &Path) -> u64 {
    let version = Command::new("java").arg("-version").output().expect("java is installed (make tools)");
    let mut hasher = DefaultHasher::new();
    (version.stderr, jars).hash(&mut hasher);
    hasher.finish()
}
