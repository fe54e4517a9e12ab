//! The addresses of a module's backends, looked up on a thread of their own.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, at, bounded, select};
use log::warn;
use ureq::config::Config as AgentConfig;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use super::name_lookup::{EndedLookup, Found, NameLookups};
use super::request::HTTPS;
use crate::ktransfer::unresolved_names::UnresolvedNames;
use crate::locks::lock;
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
    unresolved: UnresolvedNames,
    /// Wakes the thread that looks names up; holds one message at most.
    wake: (Sender<()>, Receiver<()>),
}

/// The backends by `host:port`.
struct Table {
    backends: HashMap<String, Entry>,
    /// The entries of `backend_servers`, each with its `host:port`.
    servers: Vec<(String, String)>,
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

impl Addresses {
    fn is_known(&self) -> bool {
        matches!(self, Addresses::Literal(_) | Addresses::Resolved(_))
    }
}

/// Why a backend has no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LookupFailure {
    /// Its first look-up has not ended: no attempt was made.
    #[error("{0:?} is not resolved yet")]
    Pending(String),
    /// Its look-up has failed, or it is no backend.
    #[error("{0}")]
    Failed(String),
}

impl Table {
    fn entry(&mut self, name: &str) -> Option<&mut Entry> {
        self.backends.get_mut(name)
    }

    fn replace(&mut self, servers: &[String], now: Instant) {
        self.backends.retain(|_, entry| entry.removed.get_or_insert(now).elapsed() < REMOVED_LIFETIME);
        self.servers.clear();
        for server in servers {
            let authority = match server.strip_prefix(HTTPS) {
                Some(host) => with_port(host, HTTPS_PORT),
                None => with_port(server, HTTP_PORT),
            };
            self.servers.push((server.clone(), authority.clone()));
            let parsed = authority.parse().map_or(Addresses::Pending, Addresses::Literal);
            self.backends.entry(authority).or_insert(Entry { addresses: parsed, removed: None }).removed = None;
        }
    }

    /// Returns the entries of `backend_servers` whose first look-up has not ended, and while there are any, those whose
    /// look-up has failed: pushes would go to these alone.
    fn unresolved(&self) -> BTreeSet<String> {
        let of = |authority: &String| self.backends.get(authority).map(|entry| &entry.addresses);
        let are_unresolved =
            self.servers.iter().filter(|(_, authority)| !of(authority).is_some_and(Addresses::is_known));
        let has_pending =
            are_unresolved.clone().any(|(_, authority)| matches!(of(authority), Some(Addresses::Pending)));
        are_unresolved.filter(|_| has_pending).map(|(server, _)| server.clone()).collect()
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
        let mut table = Table { backends: HashMap::new(), servers: Vec::new() };
        table.replace(servers, Instant::now());
        let unresolved = UnresolvedNames::default();
        unresolved.set(table.unresolved());
        Arc::new(BackendResolver { table: Mutex::new(table), unresolved, wake: bounded(1) })
    }

    /// Replaces the backends. What is known of those that stay is kept.
    pub(super) fn replace(&self, servers: &[String]) {
        let mut table = self.lock();
        table.replace(servers, Instant::now());
        self.unresolved.set(table.unresolved());
        drop(table);
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
        let mut table = self.lock();
        if let Some(entry) = table.entry(name) {
            match found {
                Ok(addresses) => entry.addresses = Addresses::Resolved(addresses),
                Err(reason) if !matches!(entry.addresses, Addresses::Resolved(_)) => {
                    entry.addresses = Addresses::Failed(reason);
                }
                Err(_) => {}
            }
        }
        self.unresolved.set(table.unresolved());
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    /// Returns the entries of `backend_servers` that have no address yet. It is kept up to date.
    pub(crate) fn unresolved(&self) -> &UnresolvedNames {
        &self.unresolved
    }

    /// Returns the addresses of `authority`, the `host:port` of a backend. Never waits: a push that waited here could
    /// not be cut.
    fn addresses(&self, authority: &str) -> Result<Vec<SocketAddr>, LookupFailure> {
        let table = self.lock();
        match table.backends.get(authority).map(|entry| &entry.addresses) {
            Some(Addresses::Literal(address)) => Ok(vec![*address]),
            Some(Addresses::Resolved(addresses)) => Ok(addresses.clone()),
            Some(Addresses::Failed(reason)) => {
                Err(LookupFailure::Failed(format!("cannot resolve {authority:?}: {reason}")))
            }
            Some(Addresses::Pending) => Err(LookupFailure::Pending(authority.to_owned())),
            None => Err(LookupFailure::Failed(format!("{authority:?} is not one of backend_servers"))),
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
                if self.lookups.begin(&name, now) {
                    pending.insert(name, now + LOOKUP_TIMEOUT);
                } else {
                    all_resolved = false;
                    self.warn(&name, "too many look-ups are in progress");
                }
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
                        // Not a result: the look-up may still end well.
                        self.warn(&name, "the name server did not answer in time");
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
        let is_latest = self.lookups.note_ended(&ended);
        let EndedLookup { name, found, .. } = ended;
        if !is_latest {
            return found.is_ok();
        }
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
            Err(reason) => self.warn(name, reason),
        }
        self.resolver.note(name, found);
    }

    fn warn(&mut self, name: &str, reason: &str) {
        let is_repeat = |(last, at): &(String, Instant)| last == reason && at.elapsed() <= REPEAT_WARNING_INTERVAL;
        if !self.warnings.get(name).is_some_and(is_repeat) {
            warn!("backend_servers: cannot resolve {name:?}: {reason}");
            self.warnings.insert(name.to_owned(), (reason.to_owned(), Instant::now()));
        }
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
        let failed = |cause: LookupFailure| ureq::Error::Io(std::io::Error::new(std::io::ErrorKind::NotFound, cause));
        let mut resolved = self.empty();
        for address in self.0.addresses(&authority).map_err(failed)?.into_iter().take(MAX_ADDRESSES) {
            resolved.push(address);
        }
        Ok(resolved)
    }
}

#[cfg(test)]
mod tests;
