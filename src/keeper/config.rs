//! The configuration of a ZooKeeper client: hosts, chroot and timeouts.

use std::time::Duration;

use super::paths;
use crate::config::{Problems, Section};

/// The configuration of a ZooKeeper client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeeperConfig {
    /// `host:port` of the servers; at least one.
    pub hosts: Vec<String>,
    /// Prefix of every path, `/a/b` or empty. The keeper adds it to each path before it calls the crate.
    pub chroot: String,
    /// Requested session timeout (`zk_timeout_ms`, `zk_session_timeout_ms`).
    pub session_timeout: Duration,
    /// Time limit for connecting to one server, handshake included (`zk_connect_timeout_ms`).
    pub connect_timeout: Duration,
}

impl KeeperConfig {
    /// Returns `path` with the chroot as prefix.
    pub(super) fn full_path(&self, path: &str) -> String {
        match (self.chroot.as_str(), path) {
            ("", path) => path.to_owned(),
            (chroot, "/") => chroot.to_owned(),
            (chroot, path) => format!("{chroot}{path}"),
        }
    }
}

/// Reads the chroot from `key` and returns it without a slash at the end; empty if the key is empty or absent.
pub fn chroot(key: &str, section: &mut Section, problems: &mut Problems) -> String {
    let chroot = section.string(key, Some(""), problems);
    paths::normalise_chroot(&chroot).unwrap_or_else(|wrong| {
        section.note(key, format!("{wrong}; it is empty or a path, as in /mq/test_cluster"), problems);
        String::new()
    })
}
