//! The addresses of a module's backends, looked up on a thread of their own.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use log::warn;
use ureq::config::Config as AgentConfig;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use super::name_lookup::look_up;
use super::request::HTTPS;
use crate::locks::{lock, wait_timeout_while};
use crate::shutdown::Stop;

/// Pause between two look-ups of all names.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);
/// Pause between two look-ups of all names after the look-up of a name has failed.
const RESOLVE_RETRY_INTERVAL: Duration = Duration::from_secs(2);
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

/// The addresses of a module's backends. Backends configured by IP address need no look-up. Names are looked up by
/// [`run`](Self::run) on a thread of its own, so that a slow name server delays no push to another backend.
pub(crate) struct BackendResolver {
    /// The backends that are configured by IP address. The key is `host:port`.
    literals: HashMap<String, SocketAddr>,
    /// The other backends. The key is `host:port`; the set of keys never changes. The lock is never held across IO.
    names: Mutex<HashMap<String, LookupState>>,
    changed: Condvar,
    /// Until then, requests wait for the first look-up of a name.
    first_lookup_until: Instant,
}

/// The addresses of a backend: not looked up yet, the latest ones found, or the error of the first look-ups.
enum LookupState {
    Pending,
    Resolved(Vec<SocketAddr>),
    Failed(String),
}

impl BackendResolver {
    /// Creates a resolver for `servers`, the entries of `backend_servers`.
    pub(crate) fn new(servers: &[String]) -> Arc<BackendResolver> {
        let (mut literals, mut names) = (HashMap::new(), HashMap::new());
        for server in servers {
            let authority = match server.strip_prefix(HTTPS) {
                Some(host) => with_port(host, HTTPS_PORT),
                None => with_port(server, HTTP_PORT),
            };
            match authority.parse() {
                Ok(address) => drop(literals.insert(authority, address)),
                Err(_) => drop(names.insert(authority, LookupState::Pending)),
            }
        }
        let first_lookup_until = Instant::now() + FIRST_LOOKUP_TIMEOUT;
        Arc::new(BackendResolver { literals, names: Mutex::new(names), changed: Condvar::new(), first_lookup_until })
    }

    /// Whether a backend is configured by name, so that [`run`](Self::run) is needed.
    pub(crate) fn has_names(&self) -> bool {
        !self.lock().is_empty()
    }

    /// Looks all names up at intervals until the stop. If a look-up fails, the addresses found before stay in use.
    pub(crate) fn run(&self, stop: &Stop) {
        // The text and time of the last warning for each name, so that a name server that is down does not fill the
        // log.
        let mut warned: HashMap<String, (String, Instant)> = HashMap::new();
        loop {
            let mut all_resolved = true;
            let names: Vec<String> = self.lock().keys().cloned().collect();
            for name in names {
                let Some(found) = look_up(&name, stop) else { return };
                let mut table = self.lock();
                match found {
                    Ok(addresses) if !addresses.is_empty() => {
                        warned.remove(&name);
                        table.insert(name, LookupState::Resolved(addresses));
                    }
                    failed => {
                        let reason = failed.err().unwrap_or_else(|| "it has no address".to_owned());
                        all_resolved = false;
                        let is_repeat =
                            |(last, at): &(String, Instant)| *last == reason && at.elapsed() <= REPEAT_WARNING_INTERVAL;
                        if !warned.get(&name).is_some_and(is_repeat) {
                            warn!("backend_servers: cannot resolve {name:?}: {reason}");
                            warned.insert(name.clone(), (reason.clone(), Instant::now()));
                        }
                        if !matches!(table.get(&name), Some(LookupState::Resolved(_))) {
                            table.insert(name, LookupState::Failed(reason));
                        }
                    }
                }
                drop(table);
                self.changed.notify_all();
            }
            if !stop.sleep(if all_resolved { RESOLVE_INTERVAL } else { RESOLVE_RETRY_INTERVAL }) {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, LookupState>> {
        lock(&self.names)
    }

    /// Returns the addresses of `authority`, the `host:port` of a backend. Waits only shortly after the module's start.
    fn addresses(&self, authority: &str) -> Result<Vec<SocketAddr>, String> {
        if let Some(address) = self.literals.get(authority) {
            return Ok(vec![*address]);
        }
        let wait = self.first_lookup_until.saturating_duration_since(Instant::now());
        let is_pending =
            |table: &mut HashMap<String, LookupState>| matches!(table.get(authority), Some(LookupState::Pending));
        let (table, _) = wait_timeout_while(&self.changed, self.lock(), wait, is_pending);
        match table.get(authority) {
            Some(LookupState::Resolved(addresses)) => Ok(addresses.clone()),
            Some(LookupState::Failed(reason)) => Err(format!("cannot resolve {authority:?}: {reason}")),
            Some(LookupState::Pending) => Err(format!("{authority:?} is not resolved yet")),
            None => Err(format!("{authority:?} is not one of backend_servers")),
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
        let mut resolver = BackendResolver::new(&["hangs.invalid".into()]);
        Arc::get_mut(&mut resolver).unwrap().first_lookup_until = Instant::now();
        let began = Instant::now();
        assert_eq!(resolver.addresses("hangs.invalid:80").unwrap_err(), "\"hangs.invalid:80\" is not resolved yet");
        assert!(began.elapsed() < FIRST_LOOKUP_TIMEOUT);
    }
}
