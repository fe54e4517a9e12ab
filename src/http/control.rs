//! State that a server shares with its threads: whether the server accepts, drains or has ended, and the number of open
//! connections.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use super::message::Response;
use super::refusal::Refusal;
use crate::locks::{lock, wait_timeout_while};

/// Limit on the open connections that exceed a limit and get a response for it.
const MAX_REFUSED_CONNECTIONS: usize = 64;

/// Builds the response with which the server itself answers a request that the handler has processed; gets the address
/// of the client.
type RefusalResponse = Box<dyn Fn(Refusal, &str) -> Response + Send + Sync>;

/// State that a server shares with its threads.
#[derive(Default)]
pub(super) struct Control {
    stopped_accepting: AtomicBool,
    /// Set when the server drains: the time at which the readers close idle connections.
    closes_idle_at: OnceLock<Instant>,
    ended: AtomicBool,
    open: Mutex<OpenConnections>,
    all_closed: Condvar,
    /// `None` answers with a plain text.
    refusal: Option<RefusalResponse>,
}

/// Counts of the open connections.
#[derive(Default)]
struct OpenConnections {
    count: usize,
    /// Open connections that exceed a limit, which do not count otherwise.
    refused_count: usize,
    /// Open connections by client address; empty if there is no limit for each address. Only addresses with an open
    /// connection have an entry, so there are at most as many entries as connections.
    by_address: HashMap<IpAddr, usize>,
}

impl Control {
    /// Creates the state; `refusal` builds the response with which the server itself answers a request that the handler
    /// has processed.
    pub(super) fn new(refusal: impl Fn(Refusal, &str) -> Response + Send + Sync + 'static) -> Self {
        Control { refusal: Some(Box::new(refusal)), ..Control::default() }
    }

    /// Returns whether connections are accepted; false when the listening socket is to be closed.
    pub(super) fn is_accepting(&self) -> bool {
        !self.stopped_accepting.load(Ordering::Acquire)
    }

    pub(super) fn stop_accepting(&self) {
        self.stopped_accepting.store(true, Ordering::Release);
    }

    /// Returns whether the server drains: each connection is closed after its next response.
    pub(super) fn is_draining(&self) -> bool {
        self.closes_idle_at.get().is_some()
    }

    /// Returns, while the server drains, the time from which idle connections are closed and requests refused.
    pub(super) fn closes_idle_at(&self) -> Option<Instant> {
        self.closes_idle_at.get().copied()
    }

    /// Begins to drain; idle connections stay open for `idle_time`. Later calls have no effect.
    pub(super) fn drain(&self, idle_time: Duration) {
        let _ = self.closes_idle_at.set(Instant::now() + idle_time);
    }

    /// Returns whether the threads must end.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Returns the response with which the server itself answers a request of `peer` that the handler has processed.
    pub(super) fn refusal(&self, refusal: Refusal, peer: &str) -> Response {
        let plain = || Response::text(refusal.status, refusal.reason);
        self.refusal.as_ref().map_or_else(plain, |build| build(refusal, peer))
    }

    fn open(&self) -> MutexGuard<'_, OpenConnections> {
        lock(&self.open)
    }

    /// Counts a new connection. Fails if `max` connections are open, or `max_per_ip` of this client's address.
    pub(super) fn connection_opened(
        &self,
        client: IpAddr,
        max: usize,
        max_per_ip: Option<usize>,
    ) -> Result<(), Refusal> {
        let mut open = self.open();
        if open.count >= max {
            return Err(Refusal::over_limit("connections", 503, "too many connections"));
        }
        if let Some(max_per_ip) = max_per_ip {
            let count = open.by_address.get(&client).copied().unwrap_or(0);
            if count >= max_per_ip {
                return Err(Refusal::over_limit("connections_per_ip", 503, "too many connections from this address"));
            }
            open.by_address.insert(client, count + 1);
        }
        open.count += 1;
        Ok(())
    }

    pub(super) fn connection_closed(&self, client: IpAddr) {
        let mut open = self.open();
        open.count -= 1;
        if let Entry::Occupied(mut entry) = open.by_address.entry(client) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
        if open.count == 0 {
            self.all_closed.notify_all();
        }
    }

    /// Counts a connection that exceeds a limit; returns false if there are too many of them.
    pub(super) fn refused_connection_opened(&self) -> bool {
        let mut open = self.open();
        let has_room = open.refused_count < MAX_REFUSED_CONNECTIONS;
        open.refused_count += usize::from(has_room);
        has_room
    }

    pub(super) fn refused_connection_closed(&self) {
        self.open().refused_count -= 1;
    }

    /// Waits until no connection is open, but at most `grace`; returns the number of connections still open.
    pub(super) fn wait_until_closed(&self, grace: Duration) -> usize {
        let (open, _) = wait_timeout_while(&self.all_closed, self.open(), grace, |open| open.count > 0);
        open.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_limited_by_address_and_closed_ones_leave_no_entry() {
        let control = Control::default();
        let open = |address: &str, max_per_ip| {
            let outcome = control.connection_opened(address.parse().unwrap(), 4, max_per_ip);
            outcome.map_err(|refusal| refusal.limit.unwrap())
        };
        for (address, outcome) in [
            ("10.0.0.1", Ok(())),
            ("10.0.0.1", Ok(())),
            ("10.0.0.1", Err("connections_per_ip")),
            ("fe80::1", Ok(())),
            ("fe80::2", Ok(())),
            ("10.0.0.2", Err("connections")),
        ] {
            assert_eq!(open(address, Some(2)), outcome, "{address}");
        }
        control.connection_closed("10.0.0.1".parse().unwrap());
        assert_eq!(open("10.0.0.1", Some(2)), Ok(()));
        for address in ["10.0.0.1", "10.0.0.1", "fe80::1", "fe80::2"] {
            control.connection_closed(address.parse().unwrap());
        }
        let remaining = control.open();
        assert_eq!((remaining.count, remaining.by_address.len()), (0, 0));
        drop(remaining);
        assert!((0..4).all(|_| open("10.0.0.1", None).is_ok()));
        assert_eq!(control.open().by_address.len(), 0, "no entry for an address without a limit");
    }
}
