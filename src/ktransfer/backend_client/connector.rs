//! Opens the TCP connections of pushes: to the first address of a backend that accepts one, within `conn_timeout_ms`.
//!
//! The client's own connector cannot enable TCP keep-alive, and nobody could end its attempt to connect.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use ureq::Error;
use ureq::unversioned::transport::{ConnectionDetails, Connector};

use super::connection::{TcpConnection, Timeouts};
use super::exchange::Exchange;
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
/// Stands for no timeout. The operating system gives an attempt to connect up after about two minutes.
const NO_TIMEOUT: Duration = Duration::from_secs(86_400);

/// Opens the connections of one worker.
pub(super) struct TcpConnector {
    exchange: Arc<Exchange>,
    timeouts: Timeouts,
}

impl TcpConnector {
    pub(super) fn new(exchange: Arc<Exchange>, timeouts: Timeouts) -> TcpConnector {
        TcpConnector { exchange, timeouts }
    }

    fn connect_to(&self, address: SocketAddr, timeout: Duration) -> io::Result<TcpConnection> {
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
        Ok(TcpConnection::new(socket, Arc::clone(&self.exchange), self.timeouts))
    }

    fn failure(&self, cause: &io::Error) -> String {
        match (self.timeouts.connect, cause.kind()) {
            (Some(timeout), ErrorKind::TimedOut) => {
                format!("timeout: no connection within conn_timeout_ms, {} ms", timeout.as_millis())
            }
            _ => format!("cannot connect: {cause}"),
        }
    }
}

/// Returns the kind of a failed connect; `None` if this machine is the cause.
fn error_of(cause: &io::Error) -> Option<TransportError> {
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

impl Connector for TcpConnector {
    type Out = TcpConnection;

    fn connect(&self, details: &ConnectionDetails, _chained: Option<()>) -> Result<Option<TcpConnection>, Error> {
        let deadline = Instant::now() + self.timeouts.connect.unwrap_or(NO_TIMEOUT);
        let mut failure = io::Error::new(ErrorKind::AddrNotAvailable, "the backend's name has no address");
        for (index, address) in details.addrs.iter().enumerate() {
            let addresses_left = u32::try_from(details.addrs.len() - index).unwrap_or(u32::MAX);
            // Each remaining address gets an equal share of the remaining time. A timeout of zero would be an error.
            let share = deadline.saturating_duration_since(Instant::now()) / addresses_left;
            match self.connect_to(*address, share.max(Duration::from_millis(1))) {
                Ok(connection) => return Ok(Some(connection)),
                Err(cause) if self.exchange.is_cut() => {
                    failure = cause;
                    break;
                }
                Err(cause) => failure = cause,
            }
        }
        self.exchange.report_failure(error_of(&failure), self.failure(&failure), false);
        Err(Error::Io(failure))
    }
}

impl std::fmt::Debug for TcpConnector {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("TcpConnector").field("timeouts", &self.timeouts).finish_non_exhaustive()
    }
}
