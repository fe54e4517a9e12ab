//! The session manager, a permanent thread of a keeper: connects with back-off, reads the responses of the present
//! connection, and keeps the session alive.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, select};

use super::handshake::{Established, Handshake, find_server, is_timeout};
use super::link::Link;
use super::protocol::{Connected, MAX_RESPONSE_BYTES, parse_response};
use crate::clock::BootTime;
use crate::random::random;
use crate::shutdown::Stop;
use crate::supervise::spawn_expendable;

/// First back-off between two attempts to connect. It doubles up to [`MAX_BACK_OFF`]; random jitter shortens each pause
/// by up to a half.
const MIN_BACK_OFF: Duration = Duration::from_millis(100);
/// Longest back-off between two attempts to connect.
const MAX_BACK_OFF: Duration = Duration::from_secs(2);
/// A connection that lasted this long shows that its server is healthy: the next attempt follows at once.
const HEALTHY_AFTER: Duration = Duration::from_secs(2);

/// Pause between two warnings of one outage.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Size of the buffer for reading responses.
const READ_BYTES: usize = 64 << 10;

/// The state of the session manager's loop.
pub(super) struct SessionManager {
    link: Arc<Link>,
    stop: Stop,
    /// Triggered when the thread ends: the sender ends then.
    ended: Stop,
    back_off: Duration,
    lost_server: Option<SocketAddr>,
    last_warning: Option<Instant>,
    /// When the latest connection was lost; the start of the thread before the first connection.
    disconnected_since: Instant,
}

/// The sender must end even if this thread panics.
impl Drop for SessionManager {
    fn drop(&mut self) {
        self.ended.trigger();
    }
}

impl SessionManager {
    pub(super) fn new(link: Arc<Link>, stop: Stop, ended: Stop) -> SessionManager {
        SessionManager {
            link,
            stop,
            ended,
            back_off: MIN_BACK_OFF,
            lost_server: None,
            last_warning: None,
            disconnected_since: Instant::now(),
        }
    }

    pub(super) fn run(mut self) {
        while !self.is_ending() {
            match self.connect() {
                Ok(Some((stream, address))) => self.serve(&stream, address),
                // The session has expired: the next attempt requests a new one.
                Ok(None) => {}
                Err(reason) => {
                    self.report(reason);
                    self.wait_back_off();
                }
            }
        }
        self.stop.wait();
        self.link.close(Duration::ZERO);
    }

    fn is_ending(&self) -> bool {
        self.stop.is_triggered() || self.link.is_closed()
    }

    /// Makes one attempt to connect. Returns the connection, or `None` if the session has expired.
    fn connect(&mut self) -> Result<Option<(Arc<TcpStream>, SocketAddr)>, String> {
        if self.disconnected_since.elapsed() > 4 * self.link.session_timeout() {
            // Every server may have lost changes that this client has seen: after a restore from a backup, none would
            // accept it. After this time no claim of the session is trusted, so an older state does no harm.
            self.link.forget_zxid();
        }
        let config = &self.link.config;
        let resumption = self.link.resumption();
        let handshake = Handshake {
            session: resumption.session,
            session_timeout: config.session_timeout,
            last_zxid: resumption.last_zxid,
            connect_timeout: config.connect_timeout,
            lost_server: self.lost_server,
        };
        // Taken before the handshake: the server starts the session timeout no earlier.
        let sent = BootTime::now();
        let Established { stream, address, connected } = self.search(handshake)?;
        let (key, granted) = match connected {
            Connected::Session(key, granted) => (key, granted),
            Connected::Expired => {
                let epoch = self.link.expire();
                log::warn!("ZooKeeper session {epoch} has expired, beginning a new one");
                return Ok(None);
            }
        };
        let tick = (granted / 12).clamp(Duration::from_millis(20), Duration::from_millis(250));
        let prepared = stream.set_read_timeout(Some(tick)).and_then(|()| stream.set_write_timeout(Some(granted / 3)));
        prepared.map_err(|cause| format!("{address}: {cause}"))?;
        let stream = Arc::new(stream);
        let (epoch, is_new) = self.link.attach(Arc::clone(&stream), key, granted, sent)?;
        self.last_warning = None;
        self.log_connection(epoch, is_new, address, granted);
        Ok(Some((stream, address)))
    }

    fn log_connection(&self, epoch: u64, is_new: bool, address: SocketAddr, granted: Duration) {
        let requested = self.link.config.session_timeout;
        let verb = if is_new { "established" } else { "continued" };
        let granted_ms = granted.as_millis();
        log::info!("ZooKeeper session {epoch} {verb} with {address}, session timeout {granted_ms} ms");
        if granted < requested {
            log::warn!(
                "ZooKeeper granted a session timeout of {granted_ms} ms instead of {} ms; its maxSessionTimeout is the \
                 limit",
                requested.as_millis()
            );
        }
    }

    /// Searches for an available server on a separate thread, because name resolution has no deadline. Fails with the
    /// reasons if no server is available, or if the keeper is closed or stopped during the search.
    fn search(&self, handshake: Handshake) -> Result<Established, String> {
        let (found, result) = bounded(1);
        let hosts = self.link.config.hosts.clone();
        let body = move || drop(found.send(find_server(&hosts, &handshake)));
        spawn_expendable("zk-search", body).map_err(|cause| format!("cannot start a thread: {cause}"))?;
        // The next search begins only after this one has ended, so at most one search thread remains when the daemon
        // stops.
        loop {
            select! {
                recv(result) -> server => return server.unwrap_or_else(|_| Err("the search thread failed".into())),
                recv(self.stop.closed()) -> _ => return Err("stopped".into()),
                default(Duration::from_millis(100)) => if self.link.is_closed() { return Err("closed".into()) },
            }
        }
    }

    /// Reads responses until the connection is lost or the keeper ends.
    fn serve(&mut self, stream: &TcpStream, address: SocketAddr) {
        let began = Instant::now();
        let mut reason = self.read_responses(stream, None);
        if self.stop.is_triggered() && !self.link.is_closed() {
            let deadline = Instant::now() + self.link.call_timeout();
            if self.link.begin_close(deadline).is_some() {
                // The server closes the connection after the session.
                reason = self.read_responses(stream, Some(deadline));
            }
        }
        self.link.detach(&reason);
        if self.is_ending() {
            return;
        }
        log::warn!("ZooKeeper connection to {address} lost, reconnecting: {reason}");
        self.lost_server = Some(address);
        self.disconnected_since = Instant::now();
        if began.elapsed() < HEALTHY_AFTER {
            // A server that accepts connections and soon drops them needs the same pause as one that is down.
            self.wait_back_off();
        } else {
            self.back_off = MIN_BACK_OFF;
        }
    }

    /// Reads responses until the connection is lost, or until the stop or `until`. Returns the reason.
    fn read_responses(&self, mut stream: &TcpStream, until: Option<Instant>) -> String {
        let (ping_interval, max_silence) = (self.link.session_timeout() / 6, self.link.call_timeout());
        let (mut received, mut chunk) = (Vec::new(), vec![0; READ_BYTES]);
        let mut last_read = Instant::now();
        loop {
            match until {
                Some(until) if until <= Instant::now() => return "no response by the deadline".into(),
                None if self.stop.is_triggered() => return "stopped".into(),
                _ => {}
            }
            match stream.read(&mut chunk) {
                Ok(0) => return "closed by the server".into(),
                Ok(read) => {
                    last_read = Instant::now();
                    received.extend_from_slice(&chunk[..read]);
                    if let Err(reason) = self.take_responses(&mut received) {
                        return reason;
                    }
                }
                Err(error) if is_timeout(&error) => {}
                Err(error) => return error.to_string(),
            }
            self.link.ping_if_idle(ping_interval);
            let silence = self.link.oldest_pending().map(|pending| pending.min(last_read.elapsed()));
            if let Some(silence) = silence.filter(|silence| *silence > max_silence) {
                return format!("no response for {} ms", silence.as_millis());
            }
        }
    }

    /// Removes the complete responses from `received` and hands them to their callers.
    fn take_responses(&self, received: &mut Vec<u8>) -> Result<(), String> {
        let mut begin = 0;
        while let Some((length, rest)) = received[begin..].split_first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            if length > MAX_RESPONSE_BYTES {
                return Err(format!("a response of {length} bytes is longer than {MAX_RESPONSE_BYTES}"));
            }
            let Some(frame) = rest.get(..length) else { break };
            let (head, body) = parse_response(frame).ok_or("a response is too short")?;
            self.link.on_response(head, body)?;
            begin += 4 + length;
        }
        received.drain(..begin);
        if received.is_empty() && received.capacity() > 16 * READ_BYTES {
            // A long list of children should not keep its memory.
            *received = Vec::new();
        }
        Ok(())
    }

    fn wait_back_off(&mut self) {
        let shortened = self.back_off.mul_f64(1.0 - 0.5 * (random() % 1000) as f64 / 1000.0);
        self.back_off = (self.back_off * 2).min(MAX_BACK_OFF);
        let until = Instant::now() + shortened;
        // In steps, because the keeper may be closed meanwhile.
        while !self.is_ending() && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            self.stop.sleep(left.min(MIN_BACK_OFF));
        }
    }

    /// Makes `reason` the error that callers get, and logs it at the start of an outage and then every
    /// [`WARN_INTERVAL`].
    fn report(&mut self, reason: String) {
        if self.is_ending() {
            return;
        }
        if self.last_warning.is_none_or(|last| last.elapsed() >= WARN_INTERVAL) {
            self.last_warning = Some(Instant::now());
            log::warn!("no ZooKeeper server available, retrying: {reason}");
        }
        self.link.set_unreachable_reason(reason);
    }
}
