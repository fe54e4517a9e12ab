//! What a server and its threads have in common: whether it goes on, and how many connections there are.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use super::Handler;
use super::scan::Refused;
use crate::locks::{lock, wait_timeout_while};

/// What a server and its threads have in common.
#[derive(Default)]
pub(super) struct Control {
    deaf: AtomicBool,
    draining: AtomicBool,
    ended: AtomicBool,
    open: Mutex<Open>,
    closed: Condvar,
    /// Who words the answers that the server itself gives.
    pub(super) handler: OnceLock<Arc<dyn Handler>>,
}

/// The connections that are open.
#[derive(Default)]
struct Open {
    count: usize,
    /// By client; kept only where each client has a limit. No address is here without a connection, so that there are at
    /// most as many as connections.
    by_address: HashMap<IpAddr, usize>,
}

impl Control {
    pub(super) fn for_handler(handler: Arc<dyn Handler>) -> Self {
        Control { handler: handler.into(), ..Control::default() }
    }

    /// No connection is accepted any more.
    pub(super) fn is_deaf(&self) -> bool {
        self.deaf.load(Ordering::Acquire)
    }

    pub(super) fn stop_accepting(&self) {
        self.deaf.store(true, Ordering::Release);
    }

    /// Each answer is the last of its connection, and idle ones are closed.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// The threads end.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }

    /// Counts a new connection, unless there are `most`, or as many from this client as it may have.
    pub(super) fn connection_opened(
        &self,
        client: IpAddr,
        most: usize,
        most_each: Option<usize>,
    ) -> Result<(), Refused> {
        let mut open = self.open();
        if open.count >= most {
            return Err(Refused::beyond("connections", 503, "too many connections"));
        }
        if let Some(most_each) = most_each {
            let client = client.to_canonical();
            let count = open.by_address.get(&client).copied().unwrap_or(0);
            if count >= most_each {
                return Err(Refused::beyond("connections_per_ip", 503, "too many connections from this address"));
            }
            open.by_address.insert(client, count + 1);
        }
        open.count += 1;
        Ok(())
    }

    pub(super) fn connection_closed(&self, client: IpAddr) {
        let mut open = self.open();
        open.count -= 1;
        if let Entry::Occupied(mut entry) = open.by_address.entry(client.to_canonical()) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
        if open.count == 0 {
            self.closed.notify_all();
        }
    }

    /// Waits until no connection is open; the number that still are at the deadline.
    pub(super) fn wait_until_closed(&self, grace: Duration) -> usize {
        let (open, _) = wait_timeout_while(&self.closed, self.open(), grace, |open| open.count > 0);
        open.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_its_share_of_the_connections_and_leaves_nothing_behind() {
        let control = Control::default();
        let open = |address: &str, most_each| {
            let outcome = control.connection_opened(address.parse().unwrap(), 4, most_each);
            outcome.map_err(|refused| refused.limit.unwrap())
        };
        for (address, outcome) in [
            ("10.0.0.1", Ok(())),
            ("::ffff:10.0.0.1", Ok(())),
            ("10.0.0.1", Err("connections_per_ip")),
            ("::ffff:10.0.0.1", Err("connections_per_ip")),
            ("fe80::1", Ok(())),
            ("fe80::2", Ok(())),
            ("10.0.0.2", Err("connections")),
        ] {
            assert_eq!(open(address, Some(2)), outcome, "{address}");
        }
        control.connection_closed("::ffff:10.0.0.1".parse().unwrap());
        assert_eq!(open("10.0.0.1", Some(2)), Ok(()));
        for address in ["10.0.0.1", "10.0.0.1", "fe80::1", "fe80::2"] {
            control.connection_closed(address.parse().unwrap());
        }
        let left = control.open();
        assert_eq!((left.count, left.by_address.len()), (0, 0));
        drop(left);
        assert!((0..4).all(|_| open("10.0.0.1", None).is_ok()));
        assert_eq!(control.open().by_address.len(), 0, "without a limit nobody is noted");
    }
}
