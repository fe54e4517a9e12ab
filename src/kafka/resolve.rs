//! Looks up host names on threads of its own, so that a name server that hangs delays a caller until the caller's
//! deadline at the latest.
//!
//! `getaddrinfo` has no deadline and cannot be cancelled. Invariants: callers that want the same name share one
//! look-up; at most `MAX_THREADS` threads look names up; further names wait in a queue, which holds only names with a
//! waiting caller. No lock is held across a look-up.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};

use crate::locks::lock;
use crate::panics;
use crate::shutdown::Stop;
use crate::supervise::spawn_expendable;

/// Limit on the threads that look names up, each of which may hang.
const MAX_THREADS: usize = 4;
/// Addresses are used again without a look-up for this long.
const MAX_AGE: Duration = Duration::from_secs(10);
/// If a look-up hangs, addresses of an earlier look-up are used until they are this old.
const MAX_STALE_AGE: Duration = Duration::from_secs(300);
/// Time that a caller waits for a look-up if there are addresses of an earlier one.
const MAX_STALE_WAIT: Duration = Duration::from_secs(2);
/// Limit on the names whose addresses are kept.
const MAX_NAMES: usize = 1024;
/// Limit on the addresses of a name that are tried.
const MAX_ADDRESSES: usize = 16;

/// Looks up host names. Clones share threads and results.
#[derive(Clone)]
pub struct Resolver {
    shared: Arc<Shared>,
}

type LookUp = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;
/// The addresses of a name in the order of `getaddrinfo`, or why there are none.
type Outcome = Result<Arc<[IpAddr]>, Arc<str>>;

struct Shared {
    look_up: Box<LookUp>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    names: HashMap<Arc<str>, Name>,
    /// Names that wait for a thread.
    queue: VecDeque<Arc<str>>,
    threads: usize,
    /// Number of calls, which is the index of the address that a call begins with.
    calls: usize,
}

#[derive(Default)]
struct Name {
    /// Whether a thread looks the name up, or will.
    is_pending: bool,
    waiting: Vec<(usize, Sender<Outcome>)>,
    found: Option<(Arc<[IpAddr]>, Instant)>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Resolver")
    }
}

impl Resolver {
    /// Creates a resolver that uses the system's `getaddrinfo`.
    pub fn new() -> Self {
        Self::with(|host| Ok((host, 0).to_socket_addrs()?.map(|address| address.ip()).collect()))
    }

    fn with(look_up: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static) -> Self {
        Resolver { shared: Arc::new(Shared { look_up: Box::new(look_up), state: Mutex::default() }) }
    }

    /// Returns the addresses of a host, at least one and at most 16. They are to be tried in this order: IPv6 and IPv4
    /// alternate, and the first one changes from call to call. `host`: a name, or an IP address without brackets.
    /// Waits until `deadline` or `stop` at the latest.
    pub fn addresses(&self, host: &str, port: u16, deadline: Instant, stop: &Stop) -> Result<Vec<SocketAddr>, String> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let failed = |reason: &str| format!("cannot look up the host name {host:?}: {reason}");
        let (call, found) = self.look_up(host, deadline, stop);
        let found = found.map_err(|reason| failed(&reason))?;
        Ok(in_order_of_trial(&found, call).into_iter().map(|address| SocketAddr::new(address, port)).collect())
    }

    /// Returns the number of this call and the outcome.
    fn look_up(&self, host: &str, deadline: Instant, stop: &Stop) -> (usize, Outcome) {
        let now = Instant::now();
        let (call, stale, outcome) = {
            let mut state = self.shared.lock();
            state.calls = state.calls.wrapping_add(1);
            let call = state.calls;
            let known = state.names.get(host).and_then(|name| name.found.clone());
            if let Some((addresses, at)) = &known
                && now.duration_since(*at) < MAX_AGE
            {
                return (call, Ok(Arc::clone(addresses)));
            }
            let stale = known.filter(|(_, at)| now.duration_since(*at) < MAX_STALE_AGE).map(|(found, _)| found);
            (call, stale, self.begin(&mut state, host, call))
        };
        let deadline = if stale.is_some() { deadline.min(now + MAX_STALE_WAIT) } else { deadline };
        let left = deadline.saturating_duration_since(now);
        let reason = select! {
            recv(outcome) -> outcome => match outcome {
                Ok(outcome) => return (call, outcome),
                Err(_) => "the look-up panicked",
            },
            recv(stop.closed()) -> _ => "the client was stopped",
            default(left) => "the name server did not answer in time",
        };
        let is_queued = self.shared.lock().forget(host, call);
        if let (Some(stale), false) = (stale, stop.is_triggered()) {
            return (call, Ok(stale));
        }
        let hanging = format!("the name server has not answered {MAX_THREADS} earlier look-ups");
        (call, Err(if is_queued { hanging.into() } else { reason.into() }))
    }

    /// Adds a waiting call to the look-up of `host`; starts the look-up if there is none.
    fn begin(&self, state: &mut State, host: &str, call: usize) -> Receiver<Outcome> {
        let (sender, outcome) = bounded(1);
        state.make_room();
        let host: Arc<str> = host.into();
        let name = state.names.entry(Arc::clone(&host)).or_default();
        name.waiting.push((call, sender));
        if !name.is_pending {
            name.is_pending = true;
            if state.threads < MAX_THREADS {
                state.threads += 1;
                let (shared, first) = (Arc::clone(&self.shared), Arc::clone(&host));
                if let Err(cause) = spawn_expendable("kafka-resolver", move || shared.run(first)) {
                    state.threads -= 1;
                    state.settle(&host, &Err(format!("cannot start a thread: {cause}").into()));
                }
            } else {
                state.queue.push_back(host);
            }
        }
        outcome
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Looks up a name, then those that wait in the queue.
    fn run(&self, first: Arc<str>) {
        let mut next = Some(first);
        while let Some(host) = next {
            let found = panics::catch(|| (self.look_up)(&host));
            let outcome: Outcome = match found {
                Ok(Ok(addresses)) if addresses.is_empty() => Err("the name has no address".into()),
                Ok(Ok(addresses)) => Ok(addresses.into()),
                Ok(Err(cause)) => Err(cause.to_string().into()),
                Err(panic) => Err(panic.into()),
            };
            let mut state = self.lock();
            state.settle(&host, &outcome);
            next = state.queue.pop_front();
            if next.is_none() {
                state.threads -= 1;
            }
        }
    }
}

impl State {
    /// Passes the outcome of a look-up to the waiting calls.
    fn settle(&mut self, host: &str, outcome: &Outcome) {
        let Some(name) = self.names.get_mut(host) else { return };
        name.is_pending = false;
        for (_, waiting) in name.waiting.drain(..) {
            // The channel has room for one outcome, and this is the only one.
            let _ = waiting.try_send(outcome.clone());
        }
        match outcome {
            Ok(addresses) => name.found = Some((Arc::clone(addresses), Instant::now())),
            // The name server answered: the earlier addresses are no longer those of the name.
            Err(_) => drop(self.names.remove(host)),
        }
    }

    /// Removes a call that no longer waits. Returns whether the look-up has not begun.
    fn forget(&mut self, host: &str, call: usize) -> bool {
        let Some(name) = self.names.get_mut(host) else { return false };
        name.waiting.retain(|(waiting, _)| *waiting != call);
        let Some(index) = self.queue.iter().position(|queued| **queued == *host) else { return false };
        if name.waiting.is_empty() {
            name.is_pending = false;
            self.queue.remove(index);
            if name.found.is_none() {
                self.names.remove(host);
            }
        }
        true
    }

    /// Removes the oldest addresses if the number of names has reached its limit.
    fn make_room(&mut self) {
        if self.names.len() < MAX_NAMES {
            return;
        }
        let unused = self.names.iter().filter(|(_, name)| !name.is_pending);
        let oldest = unused.min_by_key(|(_, name)| name.found.as_ref().map(|(_, at)| *at)).map(|(host, _)| host);
        if let Some(host) = oldest.cloned() {
            self.names.remove(&host);
        }
    }
}

/// Orders the addresses of a name for connection attempts. The family that `getaddrinfo` prefers is first; then the
/// families alternate, so that a family without a route costs one attempt (as in RFC 8305). Within a family the first
/// address changes with `start`, so that the connections of a client spread over the addresses.
fn in_order_of_trial(found: &[IpAddr], start: usize) -> Vec<IpAddr> {
    let Some(preferred) = found.first().map(IpAddr::is_ipv6) else { return Vec::new() };
    let family = |is_preferred: bool| {
        let mut addresses: Vec<IpAddr> = Vec::new();
        for address in found.iter().filter(|address| (address.is_ipv6() == preferred) == is_preferred) {
            // The look-up returns an address once for each socket type on some systems.
            if !addresses.contains(address) && addresses.len() < MAX_ADDRESSES {
                addresses.push(*address);
            }
        }
        let count = addresses.len().max(1);
        addresses.rotate_left(start % count);
        addresses.into_iter()
    };
    let (mut first, mut second) = (family(true), family(false));
    let mut order = Vec::new();
    while order.len() < MAX_ADDRESSES {
        let before = order.len();
        order.extend(first.next());
        order.extend(second.next());
        if order.len() == before {
            break;
        }
    }
    order.truncate(MAX_ADDRESSES);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const PATIENCE: Duration = Duration::from_secs(60);

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    fn later() -> Instant {
        Instant::now() + PATIENCE
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A name server that answers with 10.0.0.1 after `gate` is triggered, and the number of its look-ups.
    fn gated() -> (Resolver, Stop, Arc<AtomicUsize>) {
        let (gate, count) = (Stop::new(), Arc::new(AtomicUsize::new(0)));
        let (closed, counter) = (gate.clone(), Arc::clone(&count));
        let resolver = Resolver::with(move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
            closed.wait();
            Ok(vec![ip("10.0.0.1")])
        });
        (resolver, gate, count)
    }

    #[test]
    fn ip_addresses_need_no_look_up() {
        let resolver = Resolver::with(|_| panic!("looked up"));
        for (host, shown) in [("127.0.0.1", "127.0.0.1:9092"), ("::1", "[::1]:9092")] {
            let found = resolver.addresses(host, 9092, Instant::now(), &Stop::new()).unwrap();
            assert_eq!(found, [shown.parse().unwrap()]);
        }
    }

    #[test]
    fn localhost_is_found_and_a_bad_name_is_an_error_that_names_it() {
        let resolver = Resolver::new();
        let found = resolver.addresses("localhost", 1, later(), &Stop::new()).unwrap();
        assert!(!found.is_empty() && found.iter().all(|address| address.ip().is_loopback()), "{found:?}");
        for name in ["", "a\0b", "no such.invalid"] {
            let error = resolver.addresses(name, 1, later(), &Stop::new()).unwrap_err();
            assert!(error.starts_with(&format!("cannot look up the host name {name:?}: ")), "{error}");
        }
    }

    #[test]
    fn a_look_up_that_hangs_ends_with_the_deadline_or_the_stop_and_is_joined() {
        let (resolver, gate, count) = gated();
        let error = resolver.addresses("a", 1, soon(), &Stop::new()).unwrap_err();
        assert!(error.contains("did not answer in time"), "{error}");
        let stop = Stop::new();
        std::thread::scope(|scope| {
            let stopped = scope.spawn(|| resolver.addresses("a", 1, later(), &stop));
            let joined = scope.spawn(|| resolver.addresses("a", 2, later(), &Stop::new()));
            stop.trigger();
            assert!(stopped.join().unwrap().unwrap_err().contains("stopped"));
            gate.trigger();
            assert_eq!(joined.join().unwrap().unwrap(), ["10.0.0.1:2".parse().unwrap()]);
        });
        assert_eq!(resolver.addresses("a", 3, later(), &Stop::new()).unwrap(), ["10.0.0.1:3".parse().unwrap()]);
        assert_eq!(count.load(Ordering::SeqCst), 1, "joined and cached");
    }

    #[test]
    fn threads_are_bounded_and_abandoned_names_leave_the_queue() {
        let (resolver, gate, count) = gated();
        for name in ["a", "b", "c", "d"] {
            assert!(resolver.addresses(name, 1, soon(), &Stop::new()).is_err());
        }
        for name in 0..20 {
            let error = resolver.addresses(&format!("n{name}"), 1, soon(), &Stop::new()).unwrap_err();
            assert!(error.contains("has not answered 4 earlier look-ups"), "{error}");
        }
        {
            let state = resolver.shared.lock();
            assert_eq!((state.threads, state.queue.len(), state.names.len()), (MAX_THREADS, 0, 4));
        }
        std::thread::scope(|scope| {
            let queued = scope.spawn(|| resolver.addresses("e", 1, later(), &Stop::new()));
            while resolver.shared.lock().queue.is_empty() {
                std::thread::yield_now();
            }
            gate.trigger();
            assert!(queued.join().unwrap().is_ok());
        });
        assert_eq!(count.load(Ordering::SeqCst), 5);
        while resolver.shared.lock().threads > 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_failed_look_up_is_repeated_and_a_panic_is_an_error() {
        let count = AtomicUsize::new(0);
        let resolver = Resolver::with(move |_| match count.fetch_add(1, Ordering::SeqCst) {
            0 => Err(io::Error::other("no such host")),
            1 => Ok(Vec::new()),
            2 => panic!("broken"),
            _ => Ok(vec![ip("::1")]),
        });
        for text in ["no such host", "has no address", "broken"] {
            let error = resolver.addresses("a", 1, later(), &Stop::new()).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
        assert_eq!(resolver.addresses("a", 1, later(), &Stop::new()).unwrap(), ["[::1]:1".parse().unwrap()]);
    }

    #[test]
    fn addresses_of_an_earlier_look_up_are_used_while_the_name_server_hangs() {
        let (resolver, _gate, _) = gated();
        let aged = |age: Duration| Name {
            found: Some((vec![ip("10.0.0.9")].into(), Instant::now().checked_sub(age).unwrap())),
            ..Name::default()
        };
        resolver.shared.lock().names.insert("a".into(), aged(MAX_AGE));
        assert_eq!(resolver.addresses("a", 1, soon(), &Stop::new()).unwrap(), ["10.0.0.9:1".parse().unwrap()]);
        resolver.shared.lock().names.insert("b".into(), aged(MAX_STALE_AGE));
        assert!(resolver.addresses("b", 1, soon(), &Stop::new()).is_err());
    }

    #[test]
    fn the_number_of_names_is_bounded() {
        let resolver = Resolver::with(|_| Ok(vec![ip("10.0.0.1")]));
        for name in 0..MAX_NAMES + 10 {
            resolver.addresses(&format!("n{name}"), 1, later(), &Stop::new()).unwrap();
        }
        let state = resolver.shared.lock();
        assert_eq!(state.names.len(), MAX_NAMES);
        assert!(!state.names.contains_key("n0") && state.names.contains_key(&*format!("n{}", MAX_NAMES + 9)));
    }

    #[test]
    fn families_alternate_and_the_first_address_changes() {
        let found = ["::1", "::2", "1.0.0.1", "::1", "1.0.0.2", "1.0.0.3"].map(ip);
        assert_eq!(in_order_of_trial(&found, 0), ["::1", "1.0.0.1", "::2", "1.0.0.2", "1.0.0.3"].map(ip));
        assert_eq!(in_order_of_trial(&found, 1), ["::2", "1.0.0.2", "::1", "1.0.0.3", "1.0.0.1"].map(ip));
        assert!(in_order_of_trial(&[], 1).is_empty());
        let many: Vec<IpAddr> = (0..40).map(|last| ip(&format!("10.0.0.{last}"))).collect();
        assert_eq!(in_order_of_trial(&many, usize::MAX).len(), MAX_ADDRESSES);
    }
}
