//! The HTTP client of the pushes, with every setting that its defaults get wrong for us.
//!
//! Invariants: a request is sent once (the client never repeats one by itself), a redirect is an answer
//! like any other, no proxy is used whatever the environment says, and no thread is started for a request.

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

/// Idle connections are closed before the backend closes them: five seconds is the shortest usual keep-alive time, and a
/// request that crosses the backend's closing is lost and repeated.
const MAX_IDLE_AGE: Duration = Duration::from_secs(4);
/// Names are resolved anew after this time …
const RESOLVE_EVERY: Duration = Duration::from_secs(30);
/// … or, while one could not be resolved, after this.
const RESOLVE_AGAIN: Duration = Duration::from_secs(2);
/// A look-up that fails in the same way is told only so often.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// How long a request waits for the first look-up of a name. Long enough for a good server, no more.
const FIRST_LOOKUP: Duration = Duration::from_secs(5);
/// Addresses of one name that are tried; the client has no room for more.
const MAX_ADDRESSES: usize = 16;

/// The client of one module: one pool, a connection for each worker.
pub(super) fn agent(protocol: &ProtocolConfig, worker_num: usize, names: Arc<Names>) -> Agent {
    Agent::with_parts(agent_config(protocol, worker_num), TcpConnector, NameTable(names))
}

fn agent_config(protocol: &ProtocolConfig, worker_num: usize) -> AgentConfig {
    // Only the timeouts of phases: any of global, per call and resolve would start a thread for each request.
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

/// The addresses of a module's backends. IP addresses are there from the start; names are looked up by
/// [`run`](Self::run) on one thread, so that a slow name server holds up no push to another backend.
pub struct Names {
    /// By `host:port` as in the uri; fixed at the start. Overwritten and read, never held across IO.
    table: Mutex<HashMap<String, Known>>,
    changed: Condvar,
}

enum Known {
    NotYet,
    Addresses(Vec<SocketAddr>),
    Failed(String),
}

impl Names {
    /// The table for these servers, `host` or `host:port` each.
    pub fn new(servers: &[String]) -> Arc<Names> {
        let entry = |server: &String| {
            let authority = with_port(server);
            let known = authority.parse().map_or(Known::NotYet, |address| Known::Addresses(vec![address]));
            (authority, known)
        };
        Arc::new(Names { table: Mutex::new(servers.iter().map(entry).collect()), changed: Condvar::new() })
    }

    /// Whether there is anything to look up, so whether [`run`](Self::run) is needed.
    pub fn has_names(&self) -> bool {
        !self.names().is_empty()
    }

    /// Looks names up again and again until the stop. A look-up that fails keeps the addresses known before.
    pub fn run(&self, stop: &Stop) {
        // By name: what was said last, and when, so that a name server that is away does not fill the log.
        let mut said: HashMap<String, (String, Instant)> = HashMap::new();
        loop {
            let mut all_are_known = true;
            for name in self.names() {
                let found = name.to_socket_addrs().map(Iterator::collect::<Vec<_>>);
                let mut table = self.lock();
                match found {
                    Ok(addresses) if !addresses.is_empty() => {
                        said.remove(&name);
                        table.insert(name, Known::Addresses(addresses));
                    }
                    failed => {
                        let reason = failed.err().map_or("it has no address".to_owned(), |cause| cause.to_string());
                        all_are_known = false;
                        if said.get(&name).is_none_or(|(known, at)| *known != reason || SAY_AGAIN < at.elapsed()) {
                            warn!("backend {name} cannot be looked up: {reason}");
                            said.insert(name.clone(), (reason.clone(), Instant::now()));
                        }
                        if !matches!(table.get(&name), Some(Known::Addresses(_))) {
                            table.insert(name, Known::Failed(reason));
                        }
                    }
                }
                drop(table);
                self.changed.notify_all();
            }
            if !stop.sleep(if all_are_known { RESOLVE_EVERY } else { RESOLVE_AGAIN }) {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        lock(&self.table)
    }

    fn names(&self) -> Vec<String> {
        self.lock().keys().filter(|name| name.parse::<SocketAddr>().is_err()).cloned().collect()
    }

    fn addresses(&self, authority: &str) -> Result<Vec<SocketAddr>, String> {
        let is_pending = |table: &mut HashMap<String, Known>| matches!(table.get(authority), Some(Known::NotYet));
        let (table, _) = wait_timeout_while(&self.changed, self.lock(), FIRST_LOOKUP, is_pending);
        match table.get(authority) {
            Some(Known::Addresses(addresses)) => Ok(addresses.clone()),
            Some(Known::Failed(reason)) => Err(format!("{authority} cannot be looked up: {reason}")),
            Some(Known::NotYet) => Err(format!("{authority} is still being looked up")),
            None => Err(format!("{authority} is not a backend")),
        }
    }
}

fn with_port(server: &str) -> String {
    let has_port = server.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    if has_port { server.to_owned() } else { format!("{server}:80") }
}

/// The table as the client asks it.
struct NameTable(Arc<Names>);

impl std::fmt::Debug for NameTable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("NameTable")
    }
}

impl Resolver for NameTable {
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
    use crate::ktransfer::template::Template;

    #[test]
    fn every_setting_that_matters_is_ours() {
        let protocol = ProtocolConfig {
            uri: Template::parse("/").unwrap(),
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
    fn addresses_are_known_at_once_and_names_after_the_first_look_up() {
        let names = Names::new(&["127.0.0.1".into(), "[::1]:81".into(), "localhost:82".into(), "no.invalid:1".into()]);
        assert_eq!(names.addresses("127.0.0.1:80").unwrap(), ["127.0.0.1:80".parse().unwrap()]);
        assert_eq!(names.addresses("[::1]:81").unwrap(), ["[::1]:81".parse().unwrap()]);
        assert!(names.addresses("127.0.0.1:81").unwrap_err().contains("not a backend"));
        assert!(names.has_names());
        assert!(!Names::new(&["10.0.0.1:80".into()]).has_names());
        let stop = Stop::new();
        std::thread::scope(|scope| {
            scope.spawn(|| names.run(&stop));
            // A request waits for the first look-up.
            assert!(names.addresses("localhost:82").unwrap().iter().all(|address| address.port() == 82));
            assert!(names.addresses("no.invalid:1").is_err());
            stop.trigger();
        });
    }
}
