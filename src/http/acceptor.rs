//! The thread that accepts connections and distributes them over the readers in turn.
//!
//! When accept(2) fails because the process has no descriptors or memory left, it is retried after a pause; new
//! connections wait in the kernel's backlog during the pause. A connection beyond `max_connections` or
//! `max_connections_per_ip` gets a 503 (with TLS: an alert) and is closed. A reader sends the 503 and lets the client
//! send its request, since closing the connection at once may reset it before the client has read the 503. If very many
//! such connections are open, a further one is closed at once.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, warn};

use super::control::Control;
use super::encode::{EncodeOptions, encode};
use super::handler::Handler;
use super::inbox::{Inbox, InboxMessage};
use super::listen::{BACKLOG, accept};
use super::metrics::ServerCounters;
use super::poller::{Events, Interest, Poller};
use super::refusal::Refusal;
use super::tls;

/// Pause after an accept that failed because the process had no descriptors or memory left.
const PAUSE: Duration = Duration::from_millis(50);
/// At most one accept failure is logged in this time.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);
/// Limit on the connections accepted after one event of the listening socket.
const MAX_ACCEPTS_PER_EVENT: usize = 64;
const LISTENER_KEY: usize = 0;

/// Which of the pending connections were accepted.
#[derive(PartialEq, Eq)]
enum Accepted {
    All,
    /// More may be pending.
    Some,
    /// The process has no descriptors or memory left.
    Failed,
}

pub(super) struct Acceptor {
    pub(super) listener: TcpListener,
    pub(super) poller: Arc<Poller>,
    pub(super) control: Arc<Control>,
    pub(super) readers: Vec<Arc<Inbox>>,
    pub(super) next_reader: usize,
    pub(super) max_connections: usize,
    pub(super) max_connections_per_ip: Option<usize>,
    pub(super) has_tls: bool,
    pub(super) handler: Arc<dyn Handler>,
    pub(super) metrics: ServerCounters,
    pub(super) last_warning: Option<Instant>,
}

impl Acceptor {
    /// Accepts connections until the server stops accepting, closes the listening socket, and returns when the server
    /// ends.
    pub(super) fn run(mut self) {
        let added = self.poller.add(&self.listener, LISTENER_KEY, Interest::Readable);
        if let Err(cause) = added {
            error!("cannot register the listening socket with epoll, no connections are accepted: {cause}");
            return;
        }
        let accepted = self.accept_until_stopped();
        // Connections in the kernel's backlog, which closing the listening socket would reset.
        for _ in 0..BACKLOG.div_ceil(MAX_ACCEPTS_PER_EVENT) {
            if self.accept_pending() != Accepted::Some {
                break;
            }
        }
        // This fails only when the poller is unusable, and such a poller reports no further event of the socket.
        let _ = self.poller.remove(&self.listener);
        let Acceptor { listener, poller, control, .. } = self;
        drop(listener);
        // The supervisor counts a thread that returns early as failed, so this thread waits until the server ends.
        let mut events = Events::default();
        while accepted.is_ok() && !control.has_ended() {
            if let Err(cause) = poller.wait(&mut events, None) {
                error!("the acceptor thread cannot wait for events: {cause}");
                return;
            }
        }
    }

    fn accept_until_stopped(&mut self) -> io::Result<()> {
        let mut events = Events::default();
        let mut is_pausing = false;
        while self.control.is_accepting() {
            self.poller.wait(&mut events, is_pausing.then_some(PAUSE)).inspect_err(|cause| {
                error!("the acceptor thread cannot wait for events: {cause}");
            })?;
            if is_pausing || events.keys().next().is_some() {
                let must_pause = self.accept_pending() == Accepted::Failed;
                if must_pause != is_pausing {
                    is_pausing = must_pause;
                    // The poller is level-triggered: pending connections would end each pause at once.
                    let interest = if is_pausing { Interest::ErrorsOnly } else { Interest::Readable };
                    self.poller.modify(&self.listener, LISTENER_KEY, interest)?;
                }
            }
        }
        Ok(())
    }

    /// Accepts pending connections.
    fn accept_pending(&mut self) -> Accepted {
        for _ in 0..MAX_ACCEPTS_PER_EVENT {
            match accept(&self.listener) {
                Ok((socket, peer)) => self.dispatch(socket, peer),
                Err(cause) => match cause.kind() {
                    ErrorKind::WouldBlock => return Accepted::All,
                    // A signal, or a client that disconnected before the accept; other connections may be pending.
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                    _ if is_error_of_one_connection(&cause) => {}
                    _ => {
                        self.metrics.accept_failures.inc();
                        let now = Instant::now();
                        if self.last_warning.is_none_or(|last| now.duration_since(last) >= WARNING_INTERVAL) {
                            self.last_warning = Some(now);
                            warn!("cannot accept connections, retrying: {cause}");
                        }
                        return Accepted::Failed;
                    }
                },
            }
        }
        Accepted::Some
    }

    fn dispatch(&mut self, socket: TcpStream, peer: SocketAddr) {
        let (max, max_per_ip) = (self.max_connections, self.max_connections_per_ip);
        if let Err(refusal) = self.control.connection_opened(peer.ip(), max, max_per_ip) {
            // With TLS there is no response whose arrival matters.
            if !self.has_tls && self.control.refused_connection_opened() {
                self.next_reader().post(InboxMessage::RefusedConnection(socket, peer, refusal));
            } else {
                self.metrics.refused(refusal.status);
                self.metrics.limit_reached(refusal.limit.unwrap_or_default());
                self.refuse_and_close(socket, peer, refusal);
            }
            return;
        }
        self.metrics.accepted.inc();
        self.metrics.connections.inc();
        self.next_reader().post(InboxMessage::NewConnection(socket, peer));
    }

    fn next_reader(&mut self) -> &Inbox {
        let reader = self.next_reader;
        self.next_reader = (reader + 1) % self.readers.len();
        &self.readers[reader]
    }

    /// Sends the 503 (with TLS: the alert) without blocking, and closes the connection.
    fn refuse_and_close(&self, mut socket: TcpStream, peer: SocketAddr, refusal: Refusal) {
        let mut bytes = Vec::new();
        if self.has_tls {
            // A status could be sent only after a handshake, and the limit exists to save such work.
            bytes.extend(tls::REFUSAL_ALERT);
        } else {
            let mut response = self.handler.refusal(refusal.status, refusal.reason, &peer.to_string());
            response.headers.extend(self.handler.response_headers(None));
            encode(
                &response,
                EncodeOptions { head_only: false, keep_alive: false, keep_alive_seconds: 0, is_http10: false },
                &mut bytes,
            );
        }
        // The kernel resets a connection that is closed with unread bytes, and the client loses the response.
        let _ = socket.read(&mut [0; 4096]);
        let _ = socket.write(&bytes);
        let _ = socket.shutdown(Shutdown::Write);
    }
}

/// Whether accept(2) returned an error of the new connection, not of the listening socket; the next accept may succeed.
fn is_error_of_one_connection(cause: &io::Error) -> bool {
    matches!(
        cause.raw_os_error(),
        Some(
            libc::ENETDOWN
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
                | libc::EPERM
        )
    )
}
