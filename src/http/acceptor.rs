//! The thread that accepts connections and deals them to the readers in turn.
//!
//! What cannot be accepted now (descriptors or memory used up) is tried again after a pause; connections wait in the
//! kernel meanwhile. A connection beyond `max_connections`, or beyond those of one address, is told 503 (with TLS: an alert)
//! and closed.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, warn};

use super::Handler;
use super::control::Control;
use super::encode::{Form, encode};
use super::inbox::{Inbox, Message};
use super::listen::accept;
use super::poller::{Events, Interest, Poller};
use super::scan::Refused;
use super::server::Counters;
use super::tls;

/// After an accept that failed for want of something.
const PAUSE: Duration = Duration::from_millis(50);
/// Accept failures are logged at most so often.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);
/// Connections accepted before the poller is asked again.
const BATCH: usize = 64;
const LISTENER_KEY: usize = 0;

pub(super) struct Acceptor {
    pub(super) listener: TcpListener,
    pub(super) poller: Arc<Poller>,
    pub(super) control: Arc<Control>,
    pub(super) readers: Vec<Arc<Inbox>>,
    pub(super) next_reader: usize,
    pub(super) max_connections: usize,
    pub(super) max_connections_per_ip: Option<usize>,
    pub(super) speaks_tls: bool,
    pub(super) handler: Arc<dyn Handler>,
    pub(super) metrics: Counters,
    pub(super) last_complaint: Option<Instant>,
}

impl Acceptor {
    /// Returns when the server ends; the listener is closed earlier, when it stops accepting.
    pub(super) fn run(mut self) {
        let added = self.poller.add(&self.listener, LISTENER_KEY, Interest::Bytes);
        if let Err(cause) = added {
            error!("the listening socket cannot be watched: {cause}");
            return;
        }
        let ended = self.accept_until_deaf();
        // Fails only when the poller is beyond use, and then nothing is reported for it any more.
        let _ = self.poller.remove(&self.listener);
        let Acceptor { listener, poller, control, .. } = self;
        drop(listener);
        let mut events = Events::default();
        while ended.is_ok() && !control.has_ended() {
            if let Err(cause) = poller.wait(&mut events, None) {
                error!("the acceptor cannot wait: {cause}");
                return;
            }
        }
    }

    fn accept_until_deaf(&mut self) -> io::Result<()> {
        let mut events = Events::default();
        let mut is_pausing = false;
        while !self.control.is_deaf() {
            self.poller.wait(&mut events, is_pausing.then_some(PAUSE)).inspect_err(|cause| {
                error!("the acceptor cannot wait: {cause}");
            })?;
            if is_pausing || events.keys().next().is_some() {
                let must_pause = !self.accept_some();
                if must_pause != is_pausing {
                    is_pausing = must_pause;
                    let interest = if is_pausing { Interest::Breaks } else { Interest::Bytes };
                    self.poller.modify(&self.listener, LISTENER_KEY, interest)?;
                }
            }
        }
        Ok(())
    }

    /// Accepts what is there; false when it has to wait for descriptors or memory.
    fn accept_some(&mut self) -> bool {
        for _ in 0..BATCH {
            match accept(&self.listener) {
                Ok((socket, peer)) => self.deal(socket, peer),
                Err(cause) => match cause.kind() {
                    ErrorKind::WouldBlock => return true,
                    // The client went away before it was accepted; others may be there.
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                    _ if is_of_one_connection(&cause) => {}
                    _ => {
                        self.metrics.accept_failures.inc();
                        let now = Instant::now();
                        if self.last_complaint.is_none_or(|last| now.duration_since(last) >= COMPLAINT_INTERVAL) {
                            self.last_complaint = Some(now);
                            warn!("no connection can be accepted now, trying on: {cause}");
                        }
                        return false;
                    }
                },
            }
        }
        true
    }

    fn deal(&mut self, socket: TcpStream, peer: SocketAddr) {
        let (most, most_each) = (self.max_connections, self.max_connections_per_ip);
        if let Err(refused) = self.control.connection_opened(peer.ip(), most, most_each) {
            self.metrics.refused(refused.status);
            self.metrics.limited(refused.limit.unwrap_or_default());
            self.turn_away(socket, refused);
            return;
        }
        self.metrics.accepted.inc();
        self.metrics.connections.inc();
        let reader = &self.readers[self.next_reader];
        self.next_reader = (self.next_reader + 1) % self.readers.len();
        reader.post(Message::New(socket, peer));
    }

    /// Answers 503 as well as it can be done without waiting for the client.
    fn turn_away(&self, mut socket: TcpStream, refused: Refused) {
        let mut bytes = Vec::new();
        if self.speaks_tls {
            // The status could be told after a handshake only, which is what is to be spared.
            bytes.extend(tls::TURNED_AWAY);
        } else {
            let response = self.handler.refusal(refused.status, refused.reason);
            encode(&response, Form { head_only: false, keep_alive: false, is_http10: false }, &mut bytes);
        }
        // Unread bytes would make the kernel reset the connection and the answer be lost.
        let _ = socket.read(&mut [0; 4096]);
        let _ = socket.write(&bytes);
        let _ = socket.shutdown(Shutdown::Write);
    }
}

/// Errors of the network that accept reports for a connection that is not ours any more (accept(2)).
fn is_of_one_connection(cause: &io::Error) -> bool {
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
