//! The addresses of a module's backends, looked up on a thread of their own.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, at, bounded, select};
use log::warn;
use ureq::config::Config as AgentConfig;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use super::name_lookup::{EndedLookup, Found, NameLookups};
use super::request::HTTPS;
use crate::locks::{lock, wait_timeout_while};
use crate::shutdown::Stop;

/// Pause between two look-ups of all names.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);
/// Pause between two look-ups of all names after the look-up of a name has failed.
const RESOLVE_RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Interval at which a look-up that keeps failing for the same reason is logged.
const REPEAT_WARNING_INTERVAL: Duration = Duration::from_secs(60);
/// How long a look-up is waited for.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// After this time of a look-up the next one begins beside it.
const NEXT_LOOKUP_AFTER: Duration = Duration::from_millis(200);
/// How long after the start of the module requests wait for the first look-up of a name. A working name server answers
/// much faster.
const FIRST_LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit on the addresses of one name that are tried. The HTTP client cannot hold more.
const MAX_ADDRESSES: usize = 16;
/// Port of a backend without a port.
const HTTP_PORT: u16 = 80;
/// Port of an https backend without a port.
const HTTPS_PORT: u16 = 443;

/// How long a backend that a reload removed still has its addresses: a push that has chosen it may be about to connect.
const REMOVED_LIFETIME: Duration = Duration::from_secs(60);

/// The addresses of a module's backends. Backends configured by IP address need no look-up. Names are looked up by
/// [`run`](Self::run) on a thread of its own, so that a slow name server delays no push to another backend.
pub(crate) struct BackendResolver {
    /// The lock is never held across IO.
    table: Mutex<Table>,
    changed: Condvar,
    /// Wakes the thread that looks names up; holds one message at most.
    wake: (Sender<()>, Receiver<()>),
}

/// The backends by `host:port`.
struct Table {
    backends: HashMap<String, Entry>,
    /// Until then, requests wait for the first look-up of a name.
    first_lookup_until: Instant,
}

struct Entry {
    addresses: Addresses,
    /// When a reload removed the backend; `None` while it is configured.
    removed: Option<Instant>,
}

enum Addresses {
    /// The backend is configured by IP address.
    Literal(SocketAddr),
    /// Not looked up yet.
    Pending,
    /// The latest ones that were found.
    Resolved(Vec<SocketAddr>),
    /// The error of the first look-ups.
    Failed(String),
}

impl Table {
    fn entry(&mut self, name: &str) -> Option<&mut Entry> {
        self.backends.get_mut(name)
    }

    fn replace(&mut self, servers: &[String], now: Instant) {
        self.backends.retain(|_, entry| entry.removed.get_or_insert(now).elapsed() < REMOVED_LIFETIME);
        for server in servers {
            let authority = match server.strip_prefix(HTTPS) {
                Some(host) => with_port(host, HTTPS_PORT),
                None => with_port(server, HTTP_PORT),
            };
            let parsed = authority.parse().map_or(Addresses::Pending, Addresses::Literal);
            self.backends.entry(authority).or_insert(Entry { addresses: parsed, removed: None }).removed = None;
        }
        self.first_lookup_until = now + FIRST_LOOKUP_TIMEOUT;
    }

    /// Returns the names to be looked up.
    fn names(&self) -> Vec<String> {
        let is_name = |entry: &Entry| entry.removed.is_none() && !matches!(entry.addresses, Addresses::Literal(_));
        self.backends.iter().filter(|(_, entry)| is_name(entry)).map(|(name, _)| name.clone()).collect()
    }
}

impl BackendResolver {
    /// Creates a resolver for `servers`, the entries of `backend_servers`.
    pub(crate) fn new(servers: &[String]) -> Arc<BackendResolver> {
        let now = Instant::now();
        let mut table = Table { backends: HashMap::new(), first_lookup_until: now };
        table.replace(servers, now);
        Arc::new(BackendResolver { table: Mutex::new(table), changed: Condvar::new(), wake: bounded(1) })
    }

    /// Replaces the backends. What is known of those that stay is kept.
    pub(super) fn replace(&self, servers: &[String]) {
        self.lock().replace(servers, Instant::now());
        // If the channel is full, the thread looks at the table later anyway.
        let _ = self.wake.0.try_send(());
    }

    /// Whether a backend is configured by name, so that [`run`](Self::run) is needed.
    pub(crate) fn has_names(&self) -> bool {
        !self.lock().names().is_empty()
    }

    /// Looks all names up at intervals until the stop. If a look-up fails, the addresses found before stay in use.
    pub(crate) fn run(&self, stop: &Stop) {
        self.run_with(NameLookups::new(), stop);
    }

    fn run_with(&self, lookups: NameLookups, stop: &Stop) {
        let mut round = Round { resolver: self, lookups, warnings: HashMap::new() };
        while let Some(all_resolved) = round.look_up_all(stop) {
            let pause = if all_resolved { RESOLVE_INTERVAL } else { RESOLVE_RETRY_INTERVAL };
            if !round.pause(Instant::now() + pause, stop) {
                return;
            }
        }
    }

    fn note(&self, name: &str, found: Result<Vec<SocketAddr>, String>) {
        if let Some(entry) = self.lock().entry(name) {
            match found {
                Ok(addresses) => entry.addresses = Addresses::Resolved(addresses),
                Err(reason) if !matches!(entry.addresses, Addresses::Resolved(_)) => {
                    entry.addresses = Addresses::Failed(reason);
                }
                Err(_) => {}
            }
        }
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    /// Returns the addresses of `authority`, the `host:port` of a backend. Waits only shortly after the module's start
    /// or a change of the backends.
    fn addresses(&self, authority: &str) -> Result<Vec<SocketAddr>, String> {
        let table = self.lock();
        let wait = table.first_lookup_until.saturating_duration_since(Instant::now());
        let is_pending =
            |table: &mut Table| matches!(table.entry(authority), Some(Entry { addresses: Addresses::Pending, .. }));
        let (table, _) = wait_timeout_while(&self.changed, table, wait, is_pending);
        match table.backends.get(authority).map(|entry| &entry.addresses) {
            Some(Addresses::Literal(address)) => Ok(vec![*address]),
            Some(Addresses::Resolved(addresses)) => Ok(addresses.clone()),
            Some(Addresses::Failed(reason)) => Err(format!("cannot resolve {authority:?}: {reason}")),
            Some(Addresses::Pending) => Err(format!("{authority:?} is not resolved yet")),
            None => Err(format!("{authority:?} is not one of backend_servers")),
        }
    }
}

/// The thread that looks names up, and what it keeps from round to round.
struct Round<'a> {
    resolver: &'a BackendResolver,
    lookups: NameLookups,
    /// The text and time of the last warning for each name, so that a name server that is down does not fill the log.
    warnings: HashMap<String, (String, Instant)>,
}

impl Round<'_> {
    /// Looks all names up, one after the other, but none behind one that takes longer than [`NEXT_LOOKUP_AFTER`].
    /// Returns whether all have addresses; `None` after the stop.
    fn look_up_all(&mut self, stop: &Stop) -> Option<bool> {
        let (mut all_resolved, mut next_begin) = (true, Instant::now());
        let mut seen = BTreeSet::new();
        let mut to_begin = VecDeque::new();
        self.add_names(&mut seen, &mut to_begin);
        self.warnings.retain(|name, _| seen.contains(name));
        // The names that are waited for, with the end of the wait.
        let mut pending: BTreeMap<String, Instant> = BTreeMap::new();
        loop {
            let now = Instant::now();
            if (pending.is_empty() || next_begin <= now)
                && let Some(name) = to_begin.pop_front()
            {
                self.lookups.begin(&name);
                pending.insert(name, now + LOOKUP_TIMEOUT);
                next_begin = now + NEXT_LOOKUP_AFTER;
            }
            let next = (!to_begin.is_empty()).then_some(next_begin);
            let Some(until) = pending.values().copied().chain(next).min() else { return Some(all_resolved) };
            select! {
                recv(stop.closed()) -> _ => return None,
                recv(self.resolver.wake.1) -> _ => self.add_names(&mut seen, &mut to_begin),
                recv(self.lookups.ended) -> ended => {
                    let ended = ended.ok()?;
                    pending.remove(&ended.name);
                    all_resolved &= self.take(ended);
                    next_begin = Instant::now();
                }
                recv(at(until)) -> _ => {
                    let is_over = |(_, until): &(&String, &Instant)| **until <= Instant::now();
                    let overdue: Vec<String> = pending.iter().filter(is_over).map(|(name, _)| name.clone()).collect();
                    for name in overdue {
                        pending.remove(&name);
                        all_resolved = false;
                        self.note(&name, Err("the name server did not answer in time".to_owned()));
                    }
                }
            }
        }
    }

    /// Adds the names that are configured and not seen yet in this round.
    fn add_names(&self, seen: &mut BTreeSet<String>, to_begin: &mut VecDeque<String>) {
        for name in self.resolver.lock().names() {
            if seen.insert(name.clone()) {
                to_begin.push_back(name);
            }
        }
    }

    /// Waits until the next round, and takes look-ups that end late. Returns false after the stop.
    fn pause(&mut self, until: Instant, stop: &Stop) -> bool {
        loop {
            select! {
                recv(stop.closed()) -> _ => return false,
                recv(self.resolver.wake.1) -> _ => return true,
                recv(self.lookups.ended) -> ended => {
                    if let Ok(ended) = ended {
                        self.take(ended);
                    }
                }
                recv(at(until)) -> _ => return true,
            }
        }
    }

    /// Takes the end of a look-up. Returns whether the name has addresses.
    fn take(&mut self, ended: EndedLookup) -> bool {
        let EndedLookup { name, found } = ended;
        self.lookups.note_ended(&name);
        let found = match found {
            Ok(addresses) if addresses.is_empty() => Err("it has no address".to_owned()),
            found => found,
        };
        let is_resolved = found.is_ok();
        self.note(&name, found);
        is_resolved
    }

    fn note(&mut self, name: &str, found: Found) {
        match &found {
            Ok(_) => drop(self.warnings.remove(name)),
            Err(reason) => {
                let is_repeat =
                    |(last, at): &(String, Instant)| last == reason && at.elapsed() <= REPEAT_WARNING_INTERVAL;
                if !self.warnings.get(name).is_some_and(is_repeat) {
                    warn!("backend_servers: cannot resolve {name:?}: {reason}");
                    self.warnings.insert(name.to_owned(), (reason.clone(), Instant::now()));
                }
            }
        }
        self.resolver.note(name, found);
    }
}

fn with_port(server: &str, default: u16) -> String {
    let has_port = server.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    if has_port { server.to_owned() } else { format!("{server}:{default}") }
}

/// Implements the HTTP client's resolver interface with a [`BackendResolver`].
pub(super) struct AgentResolver(pub(super) Arc<BackendResolver>);

impl std::fmt::Debug for AgentResolver {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("AgentResolver")
    }
}

impl Resolver for AgentResolver {
    fn resolve(&self, uri: &Uri, _: &AgentConfig, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let default = if uri.scheme_str() == Some("https") { HTTPS_PORT } else { HTTP_PORT };
        let authority = with_port(uri.authority().ok_or(ureq::Error::HostNotFound)?.as_str(), default);
        let failed = |reason: String| ureq::Error::Io(std::io::Error::new(std::io::ErrorKind::NotFound, reason));
        let mut resolved = self.empty();
        for address in self.0.addresses(&authority).map_err(failed)?.into_iter().take(MAX_ADDRESSES) {
            resolved.push(address);
        }
        Ok(resolved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ip_addresses_resolve_at_once_and_names_after_the_first_look_up() {
        let resolver = BackendResolver::new(&[
            "127.0.0.1".into(),
            "https://127.0.0.2".into(),
            "[::1]:81".into(),
            "localhost:82".into(),
            "no.invalid:1".into(),
        ]);
        assert_eq!(resolver.addresses("127.0.0.1:80").unwrap(), ["127.0.0.1:80".parse().unwrap()]);
        assert_eq!(resolver.addresses("127.0.0.2:443").unwrap(), ["127.0.0.2:443".parse().unwrap()]);
        assert_eq!(resolver.addresses("[::1]:81").unwrap(), ["[::1]:81".parse().unwrap()]);
        assert!(resolver.addresses("127.0.0.1:81").unwrap_err().contains("not one of backend_servers"));
        assert!(resolver.has_names());
        assert!(!BackendResolver::new(&["10.0.0.1:80".into()]).has_names());
        let stop = Stop::new();
        std::thread::scope(|scope| {
            scope.spawn(|| resolver.run(&stop));
            // A request waits for the first look-up.
            assert!(resolver.addresses("localhost:82").unwrap().iter().all(|address| address.port() == 82));
            assert!(resolver.addresses("no.invalid:1").is_err());
            stop.trigger();
        });
    }

    #[test]
    fn requests_for_a_name_that_hangs_wait_only_after_the_start() {
        // Nothing looks the name up.
        let resolver = BackendResolver::new(&["hangs.invalid".into()]);
        resolver.lock().first_lookup_until = Instant::now();
        let began = Instant::now();
        assert_eq!(resolver.addresses("hangs.invalid:80").unwrap_err(), "\"hangs.invalid:80\" is not resolved yet");
        assert!(began.elapsed() < FIRST_LOOKUP_TIMEOUT);
    }

    #[test]
    fn names_that_hang_delay_no_other_name() {
        let names: Vec<String> = (0..6).map(|number| format!("hangs-{number}:1")).chain(["good:1".into()]).collect();
        let (release, released) = bounded::<()>(0);
        let address: SocketAddr = "10.0.0.9:1".parse().unwrap();
        let lookups = NameLookups::with(move |name| {
            if name.starts_with("hangs") {
                let _ = released.recv();
            }
            Ok(vec![address])
        });
        let (resolver, stop) = (BackendResolver::new(&names), Stop::new());
        std::thread::scope(|scope| {
            scope.spawn(|| resolver.run_with(lookups, &stop));
            let good = resolver.addresses("good:1");
            // One that a reload adds is not behind them either.
            let names: Vec<String> = names.iter().cloned().chain(["added:1".into()]).collect();
            resolver.replace(&names);
            let added = resolver.addresses("added:1");
            stop.trigger();
            assert_eq!((good, added), (Ok(vec![address]), Ok(vec![address])));
        });
        drop(release);
    }

    #[test]
    fn a_change_keeps_what_is_known_and_what_pushes_under_way_need() {
        let servers = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let resolver = BackendResolver::new(&servers(&["stays:1", "goes:2", "10.0.0.1:3"]));
        let address: SocketAddr = "10.0.0.9:1".parse().unwrap();
        for name in ["stays:1", "goes:2"] {
            resolver.note(name, Ok(vec![address]));
        }
        resolver.replace(&servers(&["stays:1", "10.0.0.2:4"]));
        assert_eq!(resolver.addresses("stays:1"), Ok(vec![address]));
        assert_eq!(resolver.addresses("goes:2"), Ok(vec![address]), "a push may have chosen it");
        assert_eq!(resolver.addresses("10.0.0.1:3").unwrap().len(), 1);
        assert_eq!(resolver.addresses("10.0.0.2:4").unwrap().len(), 1);
        assert_eq!(resolver.lock().names(), ["stays:1"], "what is gone is looked up no more");
        resolver.lock().entry("goes:2").unwrap().removed = Instant::now().checked_sub(REMOVED_LIFETIME);
        resolver.replace(&servers(&["no.invalid:5"]));
        assert!(resolver.addresses("goes:2").unwrap_err().contains("not one of backend_servers"));
        let stop = Stop::new();
        std::thread::scope(|scope| {
            scope.spawn(|| resolver.run(&stop));
            resolver.replace(&servers(&["localhost:82"]));
            assert!(resolver.addresses("localhost:82").is_ok(), "the thread is woken");
            stop.trigger();
        });
    }
}
