//! A server: its settings, its threads, its end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::warn;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::Handler;
use super::acceptor::Acceptor;
use super::budget::{ByteBudget, ByteLease};
use super::control::Control;
use super::inbox::Inbox;
use super::listen::Listen;
use super::poller::Poller;
use super::reader::Reader;
use super::scan::HeadLimits;
use super::tls::Tls;
use crate::metrics::Registry;
use crate::supervise::Supervisor;

/// Bounds of one server.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// From the first byte of a request to its last.
    pub read_timeout: Duration,
    /// From an answer to its last byte being taken.
    pub write_timeout: Duration,
    /// From an answer to the first byte of the next request.
    pub idle_timeout: Duration,
    /// Connections at the same time; one more is told 503 and closed.
    pub max_connections: usize,
    /// The same for each client's address, an IPv4 address in IPv6 clothes being the IPv4 address.
    pub max_connections_per_ip: Option<usize>,
    /// Sizes of request line and headers.
    pub head: HeadLimits,
    /// Memory of requests, from their arrival until the handler drops [`super::Request::lease`]; beyond it 503.
    pub body_budget: Option<ByteBudget>,
}

impl Default for ServerLimits {
    /// What suits an endpoint of operations.
    fn default() -> Self {
        ServerLimits {
            read_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
            max_connections: 256,
            max_connections_per_ip: None,
            head: HeadLimits::default(),
            body_budget: None,
        }
    }
}

impl ServerLimits {
    pub(super) fn lease(&self) -> ByteLease {
        self.body_budget.as_ref().map_or_else(ByteLease::default, ByteBudget::lease)
    }
}

/// What a server is made of.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where it listens.
    pub listen: Listen,
    /// Its threads are called NAME-0, NAME-1 …, and NAME-accept; its metrics have it as the label `server`.
    pub name: &'static str,
    /// Reader threads, at least one.
    pub readers: usize,
    /// Bounds.
    pub limits: ServerLimits,
    /// Certificates: then it speaks TLS only. `None`: plain HTTP.
    pub tls: Option<Tls>,
}

/// Counters of all servers of a daemon, told apart by the label `server`.
#[derive(Clone)]
pub struct ServerMetrics {
    connections: IntGaugeVec,
    accepted: IntCounterVec,
    accept_failures: IntCounterVec,
    refused: IntCounterVec,
    limits: IntCounterVec,
    timeouts: IntCounterVec,
    handshakes: IntCounterVec,
}

impl ServerMetrics {
    /// Registers them; once a registry.
    pub fn new(registry: &Registry) -> Self {
        ServerMetrics {
            connections: registry.gauge("http_connections", "Connections that are open.", &["server"]),
            accepted: registry.counter("http_accepted_total", "Connections accepted.", &["server"]),
            accept_failures: registry.counter(
                "http_accept_failures_total",
                "Times that accepting had to pause for want of descriptors or memory.",
                &["server"],
            ),
            refused: registry.counter(
                "http_refused_total",
                "Requests and connections the server itself refused, by status.",
                &["server", "status"],
            ),
            limits: registry.counter(
                "http_limits_total",
                "Requests and connections refused because a limit was reached, by limit: connections, connections_per_ip, \
                 uri, headers, header_fields, request_size, chunks, in_flight_bytes.",
                &["server", "limit"],
            ),
            timeouts: registry.counter(
                "http_timeouts_total",
                "Deadlines that passed: read, write, idle, linger.",
                &["server", "deadline"],
            ),
            handshakes: registry.counter(
                "http_tls_handshakes_total",
                "TLS handshakes: ok, failed, timeout.",
                &["server", "outcome"],
            ),
        }
    }

    pub(super) fn of(&self, server: &'static str) -> Counters {
        Counters {
            connections: self.connections.with_label_values(&[server]),
            accepted: self.accepted.with_label_values(&[server]),
            accept_failures: self.accept_failures.with_label_values(&[server]),
            families: self.clone(),
            server,
        }
    }
}

/// The counters of one server.
#[derive(Clone)]
pub(super) struct Counters {
    pub(super) connections: IntGauge,
    pub(super) accepted: IntCounter,
    pub(super) accept_failures: IntCounter,
    families: ServerMetrics,
    server: &'static str,
}

impl Counters {
    pub(super) fn refused(&self, status: u16) {
        self.families.refused.with_label_values(&[self.server, &status.to_string()]).inc();
    }

    pub(super) fn limited(&self, limit: &str) {
        self.families.limits.with_label_values(&[self.server, limit]).inc();
    }

    pub(super) fn handshake(&self, outcome: &str) {
        self.families.handshakes.with_label_values(&[self.server, outcome]).inc();
    }

    pub(super) fn timed_out(&self, deadline: &str) {
        self.families.timeouts.with_label_values(&[self.server, deadline]).inc();
    }
}

/// A running server. Dropping it ends it at once; [`Server::drain`] does it gently.
pub struct Server {
    address: SocketAddr,
    control: Arc<Control>,
    acceptor: Arc<Poller>,
    readers: Vec<Arc<Inbox>>,
}

impl Server {
    /// Listens and starts the threads. They end with [`Server::close`], which must come after the group's stop.
    pub fn start(
        config: ServerConfig,
        handler: Arc<dyn Handler>,
        supervisor: &Supervisor,
        metrics: &ServerMetrics,
    ) -> io::Result<Server> {
        let ServerConfig { listen, name, readers, limits, tls } = config;
        let listener = listen.open()?;
        let address = listener.local_addr()?;
        let metrics = metrics.of(name);
        let control = Arc::new(Control::for_handler(Arc::clone(&handler)));
        let acceptor = Arc::new(Poller::new()?);
        let inboxes: Vec<_> =
            (0..readers.max(1)).map(|_| Inbox::new(Arc::clone(&control)).map(Arc::new)).collect::<io::Result<_>>()?;
        for (number, inbox) in inboxes.iter().enumerate() {
            let reader =
                Reader::new(Arc::clone(inbox), Arc::clone(&handler), limits.clone(), metrics.clone(), tls.clone());
            supervisor.spawn(format!("{name}-{number}"), move || reader.run());
        }
        let accepts = Acceptor {
            listener,
            poller: Arc::clone(&acceptor),
            control: Arc::clone(&control),
            readers: inboxes.clone(),
            next_reader: 0,
            max_connections: limits.max_connections,
            max_connections_per_ip: limits.max_connections_per_ip,
            speaks_tls: tls.is_some(),
            handler,
            metrics,
            last_complaint: None,
        };
        supervisor.spawn(format!("{name}-accept"), move || accepts.run());
        Ok(Server { address, control, acceptor, readers: inboxes })
    }

    /// Where it listens, with the port the system chose.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Closes the listening socket; connections stay.
    pub fn stop_accepting(&self) {
        self.control.stop_accepting();
        self.wake();
    }

    /// Stops accepting, closes idle connections, answers what is in progress with `Connection: close` and what begins
    /// with 503. Returns when no connection is left, or after `grace` with the number that are.
    pub fn drain(&self, grace: Duration) -> usize {
        self.control.drain();
        self.stop_accepting();
        let started = Instant::now();
        let left = self.control.wait_until_closed(grace);
        if left > 0 {
            warn!("{left} connections were still open after {} ms", started.elapsed().as_millis());
        }
        left
    }

    /// Ends the threads; open connections are cut.
    pub fn close(&self) {
        self.control.stop_accepting();
        self.control.end();
        self.wake();
    }

    fn wake(&self) {
        self.readers.iter().for_each(|reader| reader.wake());
        if let Err(cause) = self.acceptor.wake() {
            warn!("the acceptor cannot be woken: {cause}");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
    }
}
