//! The session manager, the only permanent thread of a keeper: reconnects with back-off, and sends the heartbeats of
//! the current session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, select};

use super::handshake::{AvailableServer, find_server};
use super::instance::{CallOutcome, ClientInstance};
use super::sessions::{CurrentSession, Phase, Sessions};
use crate::random::random;
use crate::shutdown::Stop;
use crate::supervise::spawn_expendable;

/// First back-off between two attempts to connect. It doubles up to [`MAX_BACK_OFF`]; random jitter shortens each pause
/// by up to a half.
const MIN_BACK_OFF: Duration = Duration::from_millis(100);
/// Longest back-off between two attempts to connect.
const MAX_BACK_OFF: Duration = Duration::from_secs(2);

/// Pause between two warnings of one outage.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// The state of the session manager's loop.
pub(super) struct SessionManager {
    sessions: Arc<Sessions>,
    woken: Receiver<()>,
    stop: Stop,
    back_off: Duration,
    /// When the current session began, or the last session if there is no current one.
    session_began: Option<Instant>,
    last_warning: Option<Instant>,
}

impl SessionManager {
    pub(super) fn new(sessions: Arc<Sessions>, woken: Receiver<()>, stop: Stop) -> SessionManager {
        SessionManager { sessions, woken, stop, back_off: MIN_BACK_OFF, session_began: None, last_warning: None }
    }

    pub(super) fn run(mut self) {
        while !self.stop.is_triggered() {
            match self.sessions.phase() {
                Phase::Closed => self.stop.wait(),
                Phase::Connected(current) => self.keep_alive(&current),
                Phase::Disconnected => self.reconnect(),
            }
        }
        self.sessions.close(self.sessions.call_timeout());
    }

    /// Sends a heartbeat if one is due; otherwise waits until one is due or the state may have changed. Gives the
    /// session up if its connection is lost.
    fn keep_alive(&mut self, current: &CurrentSession) {
        let session_timeout = self.sessions.session_timeout();
        // A session that lasted this long shows that the server is healthy.
        if self.session_began.is_some_and(|began| began.elapsed() >= session_timeout) {
            self.back_off = MIN_BACK_OFF;
        }
        if current.instance.is_lost() {
            self.sessions.give_up(current.epoch, "connection lost".into());
            return;
        }
        let age = self.sessions.last_confirmed().map_or(Duration::ZERO, |confirmed| confirmed.elapsed());
        match (session_timeout / 6).checked_sub(age) {
            Some(left) if !left.is_zero() => self.wait(left),
            _ => self.sessions.heartbeat(),
        }
    }

    /// Makes one attempt to connect, and backs off if it fails. Also backs off before the attempt if the last session
    /// lasted less than a session timeout, because a server that grants sessions and soon drops them needs the same
    /// pause as one that is down.
    fn reconnect(&mut self) {
        if self.session_began.take().is_some_and(|began| began.elapsed() < self.sessions.session_timeout()) {
            self.wait_back_off();
        }
        match self.search().and_then(|server| self.connect_to(server)) {
            Ok(()) => (self.session_began, self.last_warning) = (Some(Instant::now()), None),
            Err(reason) => {
                self.report(reason);
                self.wait_back_off();
            }
        }
    }

    fn wait_back_off(&mut self) {
        let shortened = self.back_off.mul_f64(1.0 - 0.5 * (random() % 1000) as f64 / 1000.0);
        self.back_off = (self.back_off * 2).min(MAX_BACK_OFF);
        let until = Instant::now() + shortened;
        // The loop waits again after a wake-up, such as a late state change of an instance that was given up.
        while !self.is_ending() && Instant::now() < until {
            self.wait(until.saturating_duration_since(Instant::now()));
        }
    }

    /// Searches for an available server on a separate thread, because name resolution has no deadline. Fails with the
    /// reasons if no server is available, or if the keeper is closed or stopped during the search.
    fn search(&self) -> Result<AvailableServer, String> {
        let config = &self.sessions.config;
        let (found, result) = bounded(1);
        let (hosts, session, connect) = (config.hosts.clone(), config.session_timeout, config.connect_timeout);
        let body = move || drop(found.send(find_server(&hosts, session, connect)));
        spawn_expendable("zk-search", body).map_err(|cause| format!("cannot start a thread: {cause}"))?;
        // The next search begins only after this one has ended, so at most one search thread remains when the daemon
        // stops.
        loop {
            select! {
                recv(result) -> server => return server.unwrap_or_else(|_| Err("the search thread failed".into())),
                recv(self.woken) -> _ => if self.is_ending() { return Err("closed".into()) },
                recv(self.stop.closed()) -> _ => return Err("stopped".into()),
            }
        }
    }

    /// Creates a client instance for `server` and makes it the current one after its first call has succeeded. Fails
    /// with the reason if that call fails.
    fn connect_to(&self, server: AvailableServer) -> Result<(), String> {
        let (address, granted) = (server.address, server.granted_timeout);
        let requested = self.sessions.config.session_timeout;
        let session_timeout = requested.min(granted);
        let (count, wake) = (&self.sessions.instance_count, self.sessions.wake.clone());
        let instance = ClientInstance::start(address, requested, count, wake)?;
        let first_deadline = Instant::now() + session_timeout / 3;
        let sent = match instance.call(first_deadline, |client| client.exists("/", false)) {
            CallOutcome::Response(sent, Ok(Some(_))) if !instance.is_lost() => sent,
            CallOutcome::Response(_, result) => return Err(format!("{address}: first request: {result:?}")),
            CallOutcome::NoResponse(reason) => return Err(format!("{address}: first request: {reason}")),
        };
        let epoch = self.sessions.begin(instance, sent, granted)?;
        log::info!(
            "ZooKeeper session {epoch} established with {address}, session timeout {} ms",
            session_timeout.as_millis()
        );
        if granted < requested {
            log::warn!(
                "ZooKeeper granted a session timeout of {} ms instead of {} ms; its maxSessionTimeout is the limit",
                granted.as_millis(),
                requested.as_millis()
            );
        }
        Ok(())
    }

    /// Waits until `pause` has passed, a wake-up arrives or the stop is triggered.
    fn wait(&self, pause: Duration) {
        select! {
            recv(self.woken) -> _ => {}
            recv(self.stop.closed()) -> _ => {}
            default(pause) => {}
        }
    }

    fn is_ending(&self) -> bool {
        self.stop.is_triggered() || self.sessions.is_closed()
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
        self.sessions.set_unreachable_reason(reason);
    }
}
