//! The addresses of a module's backends, looked up on a thread of their own.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};
use log::warn;
use ureq::config::Config as AgentConfig;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use super::lookup_schedule::{Due, LookupSchedule};
use super::name_lookup::start;
use super::request::HTTPS;
use crate::ktransfer::unresolved_names::UnresolvedNames;
use crate::locks::{lock, wait_timeout_while};
use crate::shutdown::Stop;

/// Pause before the next look at the names while there is none.
const MAX_IDLE: Duration = Duration::from_secs(30);
/// Interval at which a look-up that keeps failing for the same reason is logged.
const REPEAT_WARNING_INTERVAL: Duration = Duration::from_secs(60);
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
    unresolved: UnresolvedNames,
    changed: Condvar,
    /// Wakes the thread that looks names up; holds one message at most.
    wake: (Sender<()>, Receiver<()>),
}

/// The backends by `host:port`.
struct Table {
    backends: HashMap<String, Entry>,
    /// The entries of `backend_servers`, each with its `host:port`.
    servers: Vec<(String, String)>,
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

/// The text and time of the last warning for each name, so that a name server that is down does not fill the log.
#[derive(Default)]
struct Warnings(HashMap<String, (String, Instant)>);

impl Warnings {
    fn warn(&mut self, name: &str, reason: &str) {
        let is_repeat = |(last, at): &(String, Instant)| last == reason && at.elapsed() <= REPEAT_WARNING_INTERVAL;
        if !self.0.get(name).is_some_and(is_repeat) {
            warn!("backend_servers: cannot resolve {name:?}: {reason}");
            self.0.insert(name.to_owned(), (reason.to_owned(), Instant::now()));
        }
    }
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
        self.first_lookup_until = now + FIRST_LOOKUP_TIMEOUT;
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

    /// Whether a push to `authority` waits for the first look-up: none of the backends has an address yet.
    fn must_wait(&self, authority: &str) -> bool {
        let is_known = |entry: &Entry| entry.removed.is_none() && entry.addresses.is_known();
        let is_pending = |entry: &Entry| matches!(entry.addresses, Addresses::Pending);
        self.backends.get(authority).is_some_and(is_pending) && !self.backends.values().any(is_known)
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
        let mut table = Table { backends: HashMap::new(), servers: Vec::new(), first_lookup_until: now };
        table.replace(servers, now);
        let unresolved = UnresolvedNames::default();
        unresolved.set(table.unresolved());
        Arc::new(BackendResolver { table: Mutex::new(table), unresolved, changed: Condvar::new(), wake: bounded(1) })
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

    /// Looks all names up at intervals until the stop, all at the same time. If a look-up fails, the addresses found
    /// before stay in use.
    pub(crate) fn run(&self, stop: &Stop) {
        let (mut schedule, mut warnings) = (LookupSchedule::default(), Warnings::default());
        // Holds at most one result for each look-up that runs, and their number is limited.
        let (sender, found) = unbounded();
        loop {
            let (names, now) = (self.lock().names(), Instant::now());
            warnings.0.retain(|name, _| names.contains(name));
            schedule.set_names(&names, now);
            for due in schedule.take_due(now) {
                match due {
                    Due::TimedOut(name) => warnings.warn(&name, "the name server did not answer in time"),
                    Due::LookUp(name) => {
                        if let Err(reason) = start(&name, &sender) {
                            schedule.ended(&name, false, now);
                            warnings.warn(&name, &reason);
                        }
                    }
                }
            }
            // Without a name only a change of the backends makes a look-up due.
            let pause = schedule.next_due().map(|due| due.saturating_duration_since(Instant::now()));
            select! {
                recv(stop.closed()) -> _ => return,
                recv(self.wake.1) -> _ => {},
                recv(found) -> found => if let Ok((name, found)) = found {
                    let found = match found {
                        Ok(addresses) if addresses.is_empty() => Err("it has no address".to_owned()),
                        found => found,
                    };
                    schedule.ended(&name, found.is_ok(), Instant::now());
                    match &found {
                        Ok(_) => drop(warnings.0.remove(&name)),
                        Err(reason) => warnings.warn(&name, reason),
                    }
                    self.note(&name, found);
                },
                default(pause.unwrap_or(MAX_IDLE)) => {},
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
        drop(table);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    /// Returns the entries of `backend_servers` whose first look-up has not ended. It is kept up to date.
    pub(crate) fn unresolved(&self) -> &UnresolvedNames {
        &self.unresolved
    }

    /// Returns the addresses of `authority`, the `host:port` of a backend. Waits only while no backend has an address,
    /// shortly after the module's start or a change of the backends.
    fn addresses(&self, authority: &str) -> Result<Vec<SocketAddr>, LookupFailure> {
        let table = self.lock();
        let wait = table.first_lookup_until.saturating_duration_since(Instant::now());
        let (table, _) = wait_timeout_while(&self.changed, table, wait, |table| table.must_wait(authority));
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
mod tests {
    use super::*;
    use crate::ktransfer::test_backend::wait_until;

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
        assert!(resolver.addresses("127.0.0.1:81").unwrap_err().to_string().contains("not one of backend_servers"));
        assert!(resolver.has_names());
        assert!(!BackendResolver::new(&["10.0.0.1:80".into()]).has_names());
        let stop = Stop::new();
        std::thread::scope(|scope| {
            scope.spawn(|| resolver.run(&stop));
            wait_until("the names are looked up", || resolver.lock().unresolved().is_empty());
            assert!(resolver.addresses("localhost:82").unwrap().iter().all(|address| address.port() == 82));
            assert!(matches!(resolver.addresses("no.invalid:1"), Err(LookupFailure::Failed(_))));
            stop.trigger();
        });
    }

    #[test]
    fn requests_for_a_name_that_hangs_wait_only_after_the_start() {
        // Nothing looks the name up.
        let resolver = BackendResolver::new(&["hangs.invalid".into()]);
        resolver.lock().first_lookup_until = Instant::now();
        let began = Instant::now();
        let failure = resolver.addresses("hangs.invalid:80").unwrap_err();
        assert_eq!(failure.to_string(), "\"hangs.invalid:80\" is not resolved yet");
        assert!(began.elapsed() < FIRST_LOOKUP_TIMEOUT);
    }

    #[test]
    fn requests_for_a_name_that_hangs_do_not_wait_once_another_backend_has_an_address() {
        let resolver = BackendResolver::new(&["hangs.invalid".into(), "https://other.invalid".into()]);
        let is_unresolved = |server| resolver.unresolved().has(server);
        assert!(is_unresolved("hangs.invalid") && is_unresolved("https://other.invalid"));
        let began = Instant::now();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| resolver.addresses("hangs.invalid:80"));
            resolver.note("other.invalid:443", Ok(vec!["10.0.0.1:443".parse().unwrap()]));
            let pending = LookupFailure::Pending("hangs.invalid:80".to_owned());
            assert_eq!(waiting.join().unwrap(), Err(pending));
        });
        assert!(began.elapsed() < FIRST_LOOKUP_TIMEOUT);
        assert!(is_unresolved("hangs.invalid") && !is_unresolved("https://other.invalid"));
        resolver.replace(&["new.invalid".into()]);
        assert!(is_unresolved("new.invalid") && !is_unresolved("hangs.invalid"));
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
        assert!(resolver.addresses("goes:2").unwrap_err().to_string().contains("not one of backend_servers"));
        let stop = Stop::new();
        std::thread::scope(|scope| {
            scope.spawn(|| resolver.run(&stop));
            resolver.replace(&servers(&["localhost:82"]));
            assert!(resolver.addresses("localhost:82").is_ok(), "the thread is woken");
            stop.trigger();
        });
    }
}
