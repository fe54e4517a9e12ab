//! Looks up the names of backends, each on a thread of its own.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::Sender;

use crate::supervise::spawn_expendable;

/// Limit on the look-ups of the process that run at the same time. Those that hang count, too.
const MAX_LOOKUPS: usize = 64;

/// The addresses of a name, or why it has none.
pub(super) type Found = Result<Vec<SocketAddr>, String>;

/// Starts to look up `host:port`, and returns at once: `getaddrinfo` has no deadline. The name and the result are sent
/// to `found`, which has room for them. Fails if no look-up can be started.
pub(super) fn start(name: &str, found: &Sender<(String, Found)>) -> Result<(), String> {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    if THREADS.fetch_add(1, Ordering::Relaxed) >= MAX_LOOKUPS {
        THREADS.fetch_sub(1, Ordering::Relaxed);
        return Err(format!("{MAX_LOOKUPS} earlier look-ups have not ended"));
    }
    let (host, found) = (name.to_owned(), found.clone());
    let started = spawn_expendable("names-look-up", move || {
        let addresses = host.to_socket_addrs().map(Iterator::collect).map_err(|cause| cause.to_string());
        // Fails only after the module has ended.
        let _ = found.send((host, addresses));
        THREADS.fetch_sub(1, Ordering::Relaxed);
    });
    started.map_err(|cause| {
        THREADS.fetch_sub(1, Ordering::Relaxed);
        format!("a thread cannot be started: {cause}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::unbounded;

    #[test]
    fn a_name_is_looked_up_or_the_reason_is_returned() {
        let (sender, found) = unbounded();
        start("localhost:82", &sender).unwrap();
        let (name, addresses) = found.recv().unwrap();
        let addresses = addresses.unwrap();
        assert!(name == "localhost:82" && !addresses.is_empty());
        assert!(addresses.iter().all(|address| address.ip().is_loopback() && address.port() == 82));
        start("no port", &sender).unwrap();
        assert!(found.recv().unwrap().1.is_err());
    }
}
