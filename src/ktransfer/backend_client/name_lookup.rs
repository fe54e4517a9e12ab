//! Looks up the names of backends without waiting longer than a deadline or the stop.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{bounded, select};

use crate::shutdown::Stop;
use crate::supervise::spawn_expendable;

/// How long a caller waits for one look-up.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit on the look-ups of the process that run at the same time. More than one for a module means that they hang.
const MAX_LOOKUPS: usize = 64;

/// Looks up `host:port` on a thread of its own, since `getaddrinfo` has no deadline; the thread is abandoned while it
/// hangs. Returns `None` after the stop.
pub(super) fn look_up(name: &str, stop: &Stop) -> Option<Result<Vec<SocketAddr>, String>> {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    if THREADS.fetch_add(1, Ordering::Relaxed) >= MAX_LOOKUPS {
        THREADS.fetch_sub(1, Ordering::Relaxed);
        return Some(Err(format!("{MAX_LOOKUPS} earlier look-ups have not ended")));
    }
    let (sender, outcome) = bounded(1);
    let host = name.to_owned();
    let started = spawn_expendable("names-look-up", move || {
        // The channel has room for the only outcome.
        let _ = sender.send(host.to_socket_addrs().map(Iterator::collect).map_err(|cause| cause.to_string()));
        THREADS.fetch_sub(1, Ordering::Relaxed);
    });
    if let Err(cause) = started {
        THREADS.fetch_sub(1, Ordering::Relaxed);
        return Some(Err(format!("a thread cannot be started: {cause}")));
    }
    select! {
        recv(outcome) -> outcome => Some(outcome.unwrap_or_else(|_| Err("the look-up panicked".to_owned()))),
        recv(stop.closed()) -> _ => None,
        default(LOOKUP_TIMEOUT) => Some(Err("the name server did not answer in time".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_up_or_the_reason_is_returned() {
        let stop = Stop::new();
        let found = look_up("localhost:82", &stop).expect("not stopped").unwrap();
        assert!(!found.is_empty() && found.iter().all(|address| address.ip().is_loopback() && address.port() == 82));
        assert!(look_up("no port", &stop).expect("not stopped").is_err());
    }
}
