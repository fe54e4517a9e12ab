//! Opens the connections of pushes: to the first address of a backend that accepts one, within `conn_timeout_ms`. For
//! an https backend that includes the TLS handshake.
//!
//! The client's own connector cannot enable TCP keep-alive, and its attempts to connect cannot be aborted.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use ureq::Error;
use ureq::unversioned::transport::{ConnectionDetails, Connector};

use super::connection::BackendConnection;
use super::exchange::Exchange;
use super::stream::{HandshakeFailure, Stream};
use super::timeouts::Timeouts;
use super::tls::BackendTls;
use crate::ktransfer::outcomes::TransportError;

/// TCP keep-alive: time without traffic before the first probe, also while a response is awaited.
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(30);
/// TCP keep-alive: interval between two probes.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// TCP keep-alive: number of probes without a reply after which the connection is closed. That is 90 s after the last
/// traffic: 30 s + 6 × 10 s.
const KEEP_ALIVE_PROBES: u32 = 6;
/// The connection is closed if the peer does not acknowledge sent bytes for this time, the same 90 s as for keep-alive.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(90);
/// Stands for no timeout. The operating system gives up an attempt to connect after about two minutes.
const NO_TIMEOUT: Duration = Duration::from_secs(86_400);

/// Time limit of a TLS handshake if connecting has none.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens the connections of one worker.
pub(super) struct BackendConnector {
    exchange: Arc<Exchange>,
    timeouts: Timeouts,
    /// The TLS of https backends; `None` if the module has none.
    tls: Option<BackendTls>,
}

/// Why there is no connection to an address.
enum ConnectFailure {
    Socket(io::Error),
    Handshake(HandshakeFailure),
}

impl From<io::Error> for ConnectFailure {
    fn from(cause: io::Error) -> Self {
        ConnectFailure::Socket(cause)
    }
}

impl BackendConnector {
    pub(super) fn new(exchange: Arc<Exchange>, timeouts: Timeouts, tls: Option<BackendTls>) -> BackendConnector {
        BackendConnector { exchange, timeouts, tls }
    }

    /// Connects to one address. `host`: the host of an https backend.
    fn connect_to(
        &self,
        address: SocketAddr,
        host: Option<&str>,
        timeout: Duration,
    ) -> Result<BackendConnection, ConnectFailure> {
        let began = Instant::now();
        let socket = self.socket_to(address, timeout)?;
        let deadline = match self.timeouts.connect {
            Some(_) => began + timeout,
            None => Instant::now() + HANDSHAKE_TIMEOUT,
        };
        let stream = match (host, &self.tls) {
            (Some(host), Some(tls)) => tls.connect(socket, host, deadline).map_err(ConnectFailure::Handshake)?,
            _ => Stream::plain(socket),
        };
        Ok(BackendConnection::new(stream, Arc::clone(&self.exchange), self.timeouts))
    }

    fn socket_to(&self, address: SocketAddr, timeout: Duration) -> io::Result<Arc<Socket>> {
        let socket = Arc::new(Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?);
        // From here on, a cut ends the attempt to connect.
        self.exchange.attach(&socket)?;
        socket.connect_timeout(&address.into(), timeout)?;
        socket.set_tcp_nodelay(true)?;
        let keep_alive = TcpKeepalive::new()
            .with_time(KEEP_ALIVE_AFTER)
            .with_interval(KEEP_ALIVE_INTERVAL)
            .with_retries(KEEP_ALIVE_PROBES);
        let options = SockRef::from(&*socket);
        options.set_tcp_keepalive(&keep_alive)?;
        options.set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT))?;
        Ok(socket)
    }

    fn failure(&self, cause: &ConnectFailure) -> String {
        match (self.timeouts.connect, cause) {
            (Some(timeout), ConnectFailure::Socket(cause)) if cause.kind() == ErrorKind::TimedOut => {
                format!("timeout: no connection within conn_timeout_ms, {} ms", timeout.as_millis())
            }
            (_, ConnectFailure::Socket(cause)) => format!("cannot connect: {cause}"),
            (timeout, ConnectFailure::Handshake(HandshakeFailure::TimedOut)) => format!(
                "timeout: no TLS handshake within conn_timeout_ms, {} ms",
                timeout.unwrap_or(HANDSHAKE_TIMEOUT).as_millis()
            ),
            (_, ConnectFailure::Handshake(HandshakeFailure::Lost(reason))) => format!("cannot connect: {reason}"),
            (_, ConnectFailure::Handshake(HandshakeFailure::Tls(reason))) => format!("tls: {reason}"),
        }
    }
}

impl ConnectFailure {
    /// Returns the kind of the failure; `None` if this machine is the cause.
    fn error(&self) -> Option<TransportError> {
        let cause = match self {
            ConnectFailure::Socket(cause) => cause,
            ConnectFailure::Handshake(HandshakeFailure::TimedOut) => return Some(TransportError::ConnectTimeout),
            ConnectFailure::Handshake(HandshakeFailure::Lost(_)) => return Some(TransportError::ConnectFailed),
            ConnectFailure::Handshake(HandshakeFailure::Tls(_)) => return Some(TransportError::Tls),
        };
        match (cause.kind(), cause.raw_os_error()) {
            (_, Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)) => None,
            // The system has no free local port; without a number of the system, the name has no address.
            (ErrorKind::AddrNotAvailable, Some(_)) => None,
            (ErrorKind::AddrNotAvailable, None) => Some(TransportError::NameLookup),
            (ErrorKind::ConnectionRefused, _) => Some(TransportError::ConnectRefused),
            (ErrorKind::TimedOut, _) => Some(TransportError::ConnectTimeout),
            _ => Some(TransportError::ConnectFailed),
        }
    }
}

impl Connector for BackendConnector {
    type Out = BackendConnection;

    fn connect(&self, details: &ConnectionDetails, _chained: Option<()>) -> Result<Option<BackendConnection>, Error> {
        let deadline = Instant::now() + self.timeouts.connect.unwrap_or(NO_TIMEOUT);
        let host = details.uri.host().filter(|_| details.needs_tls());
        let no_address = io::Error::new(ErrorKind::AddrNotAvailable, "the backend's name has no address");
        let mut failure = ConnectFailure::Socket(no_address);
        for (index, address) in details.addrs.iter().enumerate() {
            let addresses_left = u32::try_from(details.addrs.len() - index).unwrap_or(u32::MAX);
            // Each remaining address gets an equal share of the remaining time. A timeout of zero would be an error.
            let share = deadline.saturating_duration_since(Instant::now()) / addresses_left;
            match self.connect_to(*address, host, share.max(Duration::from_millis(1))) {
                Ok(connection) => return Ok(Some(connection)),
                Err(cause) if self.exchange.is_cut() => {
                    failure = cause;
                    break;
                }
                Err(cause) => failure = cause,
            }
        }
        self.exchange.report_failure(failure.error(), self.failure(&failure), false);
        Err(Error::ConnectionFailed)
    }
}

impl std::fmt::Debug for BackendConnector {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("BackendConnector").field("timeouts", &self.timeouts).finish_non_exhaustive()
    }
}
