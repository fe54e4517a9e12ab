//! The timeouts of a push, and of the system calls that wait for it.

use std::time::Duration;

use crate::ktransfer::config::ProtocolConfig;

/// The timeouts of a push; `None` means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timeouts {
    /// For connecting.
    pub(super) connect: Option<Duration>,
    /// From the first byte of the request to the last one.
    pub(super) write: Option<Duration>,
    /// From the last byte of the request to the end of the response's head.
    pub(super) read: Option<Duration>,
}

impl From<&ProtocolConfig> for Timeouts {
    fn from(protocol: &ProtocolConfig) -> Self {
        Timeouts { connect: protocol.connect_timeout, write: protocol.write_timeout, read: protocol.read_timeout }
    }
}

/// Returns the receive timeout to set on a socket that may wait for at most `wait`; `None` if the `current` one is good
/// enough. A good timeout is not longer than `wait` and not shorter than half of it, so that pushes whose limits differ
/// by microseconds need no system call for it.
pub(super) fn coarse_timeout(current: Duration, wait: Duration) -> Option<Duration> {
    const FINE: Duration = Duration::from_millis(4);
    if wait / 2 <= current && current <= wait && !current.is_zero() {
        return None;
    }
    // The kernel's resolution is a few milliseconds, and zero would mean no timeout.
    Some(if wait <= FINE { wait.max(Duration::from_millis(1)) } else { wait * 3 / 4 })
}
