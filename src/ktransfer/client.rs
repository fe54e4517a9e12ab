//! The HTTP client for pushes: its settings, and the resolution of the backends' names.
//!
//! Invariants: a request is sent once (the client never retries by itself), a redirect is not followed, no proxy is
//! used even if the environment names one, and no thread is started for a request.

use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use log::warn;
use ureq::Agent;
use ureq::config::Config as AgentConfig;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use super::config::ProtocolConfig;
use super::socket::TcpConnector;
use crate::locks::{lock, wait_timeout_while};
use crate::shutdown::Stop;

/// Idle timeout of a connection. It is below five seconds, the shortest keep-alive timeout in common use, because a
/// request that is sent while the backend closes the connection fails and needs a retry.
const MAX_IDLE_AGE: Duration = Duration::from_secs(4);
/// Pause between two look-ups of all names.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);
/// Pause between two look-ups of all names after the look-up of a name has failed.
const RESOLVE_RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Interval at which a look-up that keeps failing for the same reason is logged.
const REPEAT_WARNING_INTERVAL: Duration = Duration::from_secs(60);
/// How long a request waits for the first look-up of a name. A working name server answers much faster.
const FIRST_LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit on the addresses of one name that are tried. The HTTP client cannot hold more.
const MAX_ADDRESSES: usize = 16;

/// Creates the HTTP client of one module, with a pool of one idle connection for each worker.
pub(super) fn agent(protocol: &ProtocolConfig, worker_num: usize, resolver: Arc<BackendResolver>) -> Agent {
    Agent::with_parts(agent_config(protocol, worker_num), TcpConnector, AgentResolver(resolver))
}

fn agent_config(protocol: &ProtocolConfig, worker_num: usize) -> AgentConfig {
    // Only the timeouts of single phases are set: with a global, per-call or resolve timeout the client starts a thread
    // for each request.
    Agent::config_builder()
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .timeout_connect(protocol.connect_timeout)
        .timeout_send_request(protocol.write_timeout)
        .timeout_send_body(protocol.write_timeout)
        .timeout_recv_response(protocol.read_timeout)
        .timeout_recv_body(protocol.read_timeout)
        .max_idle_connections(worker_num)
        .max_idle_connections_per_host(worker_num)
        .max_idle_age(MAX_IDLE_AGE)
        .user_agent(concat!("ktransfer/", env!("CARGO_PKG_VERSION")))
        .accept("")
        .accept_encoding("")
        .build()
}

/// The addresses of a module's backends. Backends configured by IP address need no look-up. Names are looked up by
/// [`run`](Self::run) on a thread of its own, so that a slow name server delays no push to another backend.
pub(super) struct BackendResolver {
    /// The key is `host:port`; the set of keys never changes. The lock is never held across IO.
    table: Mutex<HashMap<String, LookupState>>,
    changed: Condvar,
}

/// The addresses of a backend: not looked up yet, the latest ones found, or the error of the first look-ups.
enum LookupState {
    Pending,
    Resolved(Vec<SocketAddr>),
    Failed(String),
}

impl BackendResolver {
    /// Creates a resolver for `servers`, each `host` or `host:port`.
    pub(super) fn new(servers: &[String]) -> Arc<BackendResolver> {
        let entry = |server: &String| {
            let authority = with_port(server);
            let state = authority.parse().map_or(LookupState::Pending, |address| LookupState::Resolved(vec![address]));
            (authority, state)
        };
        Arc::new(BackendResolver { table: Mutex::new(servers.iter().map(entry).collect()), changed: Condvar::new() })
    }

    /// Whether a backend is configured by name, so that [`run`](Self::run) is needed.
    pub(super) fn has_names(&self) -> bool {
        !self.names().is_empty()
    }

    /// Looks all names up at intervals until the stop. If a look-up fails, the addresses found before stay in use.
    pub(super) fn run(&self, stop: &Stop) {
        // The text and time of the last warning for each name, so that a name server that is down does not fill the
        // log.
        let mut warned: HashMap<String, (String, Instant)> = HashMap::new();
        loop {
            let mut all_resolved = true;
            for name in self.names() {
                let found = name.to_socket_addrs().map(Iterator::collect::<Vec<_>>);
                let mut table = self.lock();
                match found {
                    Ok(addresses) if !addresses.is_empty() => {
                        warned.remove(&name);
                        table.insert(name, LookupState::Resolved(addresses));
                    }
                    failed => {
                        let reason = failed.err().map_or("it has no address".to_owned(), |cause| cause.to_string());
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
        lock(&self.table)
    }

    fn names(&self) -> Vec<String> {
        self.lock().keys().filter(|name| name.parse::<SocketAddr>().is_err()).cloned().collect()
    }

    fn addresses(&self, authority: &str) -> Result<Vec<SocketAddr>, String> {
        let is_pending =
            |table: &mut HashMap<String, LookupState>| matches!(table.get(authority), Some(LookupState::Pending));
        let (table, _) = wait_timeout_while(&self.changed, self.lock(), FIRST_LOOKUP_TIMEOUT, is_pending);
        match table.get(authority) {
            Some(LookupState::Resolved(addresses)) => Ok(addresses.clone()),
            Some(LookupState::Failed(reason)) => Err(format!("cannot resolve {authority:?}: {reason}")),
            Some(LookupState::Pending) => Err(format!("{authority:?} is not resolved yet")),
            None => Err(format!("{authority:?} is not one of backend_servers")),
        }
    }
}

fn with_port(server: &str) -> String {
    let has_port = server.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    if has_port { server.to_owned() } else { format!("{server}:80") }
}

/// Implements the HTTP client's resolver interface with a [`BackendResolver`].
struct AgentResolver(Arc<BackendResolver>);

impl std::fmt::Debug for AgentResolver {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("AgentResolver")
    }
}

impl Resolver for AgentResolver {
    fn resolve(&self, uri: &Uri, _: &AgentConfig, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let authority = uri.authority().ok_or(ureq::Error::HostNotFound)?.as_str();
        let failed = |reason: String| ureq::Error::Io(std::io::Error::other(reason));
        let mut resolved = self.empty();
        for address in self.0.addresses(&with_port(authority)).map_err(failed)?.into_iter().take(MAX_ADDRESSES) {
            resolved.push(address);
        }
        Ok(resolved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ktransfer::template::UriTemplate;

    #[test]
    fn proxy_redirects_timeouts_and_pool_are_set_explicitly() {
        let protocol = ProtocolConfig {
            uri: UriTemplate::parse("/").unwrap(),
            headers: Vec::new(),
            connect_timeout: Some(Duration::from_millis(1)),
            write_timeout: Some(Duration::from_millis(2)),
            read_timeout: None,
        };
        let config = agent_config(&protocol, 7);
        assert!(config.proxy().is_none());
        assert_eq!((config.max_redirects(), config.max_redirects_will_error()), (0, false));
        assert!(!config.http_status_as_error());
        let timeouts = config.timeouts();
        assert_eq!((timeouts.global, timeouts.per_call, timeouts.resolve), (None, None, None));
        assert_eq!(timeouts.connect, Some(Duration::from_millis(1)));
        assert_eq!(timeouts.send_request, Some(Duration::from_millis(2)));
        assert_eq!(timeouts.send_body, Some(Duration::from_millis(2)));
        assert_eq!((timeouts.recv_response, timeouts.recv_body), (None, None));
        assert_eq!((config.timeout_per_read(), config.timeout_per_write()), (None, None));
        assert_eq!((config.max_idle_connections(), config.max_idle_connections_per_host()), (7, 7));
        assert_eq!(config.max_idle_age(), MAX_IDLE_AGE);
    }

    #[test]
    fn ip_addresses_resolve_at_once_and_names_after_the_first_look_up() {
        let resolver = BackendResolver::new(&[
            "127.0.0.1".into(),
            "[::1]:81".into(),
            "localhost:82".into(),
            "no.invalid:1".into(),
        ]);
        assert_eq!(resolver.addresses("127.0.0.1:80").unwrap(), ["127.0.0.1:80".parse().unwrap()]);
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
}
