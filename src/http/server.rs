//! One HTTP server: its settings, and how it starts, drains and ends.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::warn;

use super::acceptor::Acceptor;
use super::control::Control;
use super::handler::Handler;
use super::inbox::Inbox;
use super::limits::ServerLimits;
use super::listen::Listen;
use super::metrics::ServerMetrics;
use super::poller::Poller;
use super::reader::Reader;
use super::tls::Tls;
use crate::supervise::Supervisor;

/// Longest time for which idle connections stay open in a drain.
const MAX_IDLE_TIME: Duration = Duration::from_millis(500);

/// The settings of one server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Address and port on which the server listens.
    pub listen: Listen,
    /// Name of the server, and value of the label `server` of its metrics. Its threads are called NAME-0, NAME-1 … for
    /// the readers, and NAME-accept.
    pub name: &'static str,
    /// Number of reader threads; 0 counts as 1.
    pub readers: usize,
    /// Limits: timeouts, connections, sizes and memory.
    pub limits: ServerLimits,
    /// TLS settings: the port then accepts only TLS. `None` serves plain HTTP.
    pub tls: Option<Tls>,
}

/// A running server. Dropping the server closes its connections at once. For a graceful end, call [`Server::drain`]
/// first.
pub struct Server {
    address: SocketAddr,
    control: Arc<Control>,
    acceptor: Arc<Poller>,
    readers: Vec<Arc<Inbox>>,
}

impl Server {
    /// Listens and starts the threads, which end at [`Server::close`]. Trigger the stop of `supervisor` before `close`:
    /// otherwise the supervisor counts the end of these threads as a failure. Fails if a socket or a poller cannot be
    /// created.
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
        let (refusing, counters) = (Arc::clone(&handler), metrics.clone());
        let control = Arc::new(Control::new(move |refusal, peer| {
            if let Some(limit) = refusal.limit {
                counters.refused(refusal.status);
                counters.limit_reached(limit);
            }
            refusing.refusal(refusal.status, refusal.reason, peer)
        }));
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
            has_tls: tls.is_some(),
            handler,
            metrics,
            last_warning: None,
        };
        supervisor.spawn(format!("{name}-accept"), move || accepts.run());
        Ok(Server { address, control, acceptor, readers: inboxes })
    }

    /// Returns the address of the listening socket; if the configured port is 0, with the port that the system chose.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Closes the listening socket; open connections stay open.
    pub fn stop_accepting(&self) {
        self.control.stop_accepting();
        self.wake();
    }

    /// Stops accepting and answers requests with `Connection: close`, also those that arrive within the next half
    /// second (a quarter of a shorter `grace`) on connections that are idle now: closing these at once would reset the
    /// requests that are on their way. After this time, closes idle connections and answers new requests with 503.
    /// Returns when no connection is open or `grace` has passed, with the number of open connections.
    pub fn drain(&self, grace: Duration) -> usize {
        self.drain_idle_within(MAX_IDLE_TIME.min(grace / 4), grace)
    }

    /// [`Self::drain`], with the time for which idle connections stay open.
    pub(super) fn drain_idle_within(&self, idle_time: Duration, grace: Duration) -> usize {
        self.control.drain(idle_time);
        self.stop_accepting();
        let started = Instant::now();
        let open = self.control.wait_until_closed(grace);
        if open > 0 {
            warn!("{open} connections were still open after {} ms of draining", started.elapsed().as_millis());
        }
        open
    }

    /// Makes the threads end; open connections are closed without a response.
    pub fn close(&self) {
        self.control.stop_accepting();
        self.control.end();
        self.wake();
    }

    fn wake(&self) {
        self.readers.iter().for_each(|reader| reader.wake());
        if let Err(cause) = self.acceptor.wake() {
            warn!("cannot wake the acceptor thread: {cause}");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
    }
}
