//! Looks up the names of backends, each on a thread of its own: `getaddrinfo` has no deadline, so a thread may hang.

use std::collections::BTreeSet;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, unbounded};
use log::warn;

use crate::supervise::spawn_expendable;

/// Limit on the look-ups of the process that run at the same time.
const MAX_LOOKUPS: usize = 64;
/// Number of look-ups that run at present.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// The addresses of a name, or the reason why they are not known.
pub(super) type Found = Result<Vec<SocketAddr>, String>;

/// The end of a look-up.
pub(super) struct EndedLookup {
    pub(super) name: String,
    pub(super) found: Found,
}

/// The look-ups of one module.
pub(super) struct NameLookups {
    look_up: Arc<dyn Fn(&str) -> Found + Send + Sync>,
    sender: Sender<EndedLookup>,
    /// Look-ups that have ended. [`MAX_LOOKUPS`] bounds their number.
    pub(super) ended: Receiver<EndedLookup>,
    in_flight: BTreeSet<String>,
}

impl NameLookups {
    /// Looks names up with `getaddrinfo`.
    pub(super) fn new() -> NameLookups {
        Self::with(|name| name.to_socket_addrs().map(Iterator::collect).map_err(|cause| cause.to_string()))
    }

    /// Looks names up with this function.
    pub(super) fn with(look_up: impl Fn(&str) -> Found + Send + Sync + 'static) -> NameLookups {
        let (sender, ended) = unbounded();
        NameLookups { look_up: Arc::new(look_up), sender, ended, in_flight: BTreeSet::new() }
    }

    /// Begins to look up `host:port`, unless an earlier look-up of it has not ended: one that hangs has one thread.
    /// Returns whether one is in progress now: if the limit on look-ups is reached, or no thread can be started, none
    /// is, which says nothing about the name.
    pub(super) fn begin(&mut self, name: &str) -> bool {
        if !self.in_flight.insert(name.to_owned()) {
            return true;
        }
        if RUNNING.fetch_add(1, Ordering::Relaxed) >= MAX_LOOKUPS {
            RUNNING.fetch_sub(1, Ordering::Relaxed);
            self.in_flight.remove(name);
            return false;
        }
        let (look_up, sender, name) = (Arc::clone(&self.look_up), self.sender.clone(), name.to_owned());
        let started = spawn_expendable("names-look-up", {
            let name = name.clone();
            move || {
                let _running = Running;
                let found = look_up(&name);
                // Fails only after the module has ended.
                let _ = sender.send(EndedLookup { name, found });
            }
        });
        if let Err(cause) = started {
            RUNNING.fetch_sub(1, Ordering::Relaxed);
            self.in_flight.remove(&name);
            warn!("the name {name} cannot be looked up, retrying: a thread cannot be started: {cause}");
            return false;
        }
        true
    }

    /// Notes that the end of a look-up was received: the name may be looked up again.
    pub(super) fn note_ended(&mut self, name: &str) {
        self.in_flight.remove(name);
    }
}

/// Counts a look-up until its thread ends.
struct Running;

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn a_name_is_looked_up_or_the_reason_is_returned() {
        let mut lookups = NameLookups::new();
        lookups.begin("localhost:82");
        let EndedLookup { name, found } = lookups.ended.recv_timeout(PATIENCE).unwrap();
        assert_eq!(name, "localhost:82");
        let found = found.unwrap();
        assert!(!found.is_empty() && found.iter().all(|address| address.ip().is_loopback() && address.port() == 82));
        lookups.begin("no port");
        assert!(lookups.ended.recv_timeout(PATIENCE).unwrap().found.is_err());
    }

    #[test]
    fn a_name_that_hangs_has_one_thread_until_it_ends() {
        let (begun, begins) = unbounded();
        let (release, released) = unbounded::<()>();
        let mut lookups = NameLookups::with(move |_| {
            begun.send(()).unwrap();
            let _ = released.recv();
            Ok(Vec::new())
        });
        for _ in 0..100 {
            lookups.begin("hangs:1");
        }
        begins.recv_timeout(PATIENCE).unwrap();
        drop(release);
        lookups.ended.recv_timeout(PATIENCE).unwrap();
        assert!(begins.is_empty(), "one thread");
        lookups.note_ended("hangs:1");
        lookups.begin("hangs:1");
        begins.recv_timeout(PATIENCE).unwrap();
    }
}
