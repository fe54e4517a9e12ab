//! The session and its present connection, shared by callers, the sender and the session manager.
//!
//! A caller queues a call for the sender, which gives it an xid, notes it as pending and writes it to the connection.
//! The session manager reads the responses, which arrive in the order of the requests, and hands each to its caller.

use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::protocol::{self, PING_XID, Request, Response, ResponseHead, SessionKey, error};
use crate::clock::BootTime;
use crate::keeper::api::{Epoch, KeeperError};
use crate::keeper::config::KeeperConfig;
use crate::locks::{lock, wait_timeout_while};

/// Limit on the calls that wait for the sender. While it is reached, callers wait, at most until their deadline.
pub(super) const MAX_QUEUED_CALLS: usize = 256;

/// A request on its way to the server.
pub(super) struct Call {
    request: Request,
    kind: CallKind,
    /// A call that is not written by then has failed for its caller, so it is not sent.
    deadline: Instant,
    response: Sender<Response>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallKind {
    Read,
    /// A write that succeeded proves that the session exists.
    Write,
    Multi,
    Ping,
    CloseSession,
}

/// A request that was written, or is being written, and has no response yet.
struct Pending {
    xid: i32,
    kind: CallKind,
    sent: BootTime,
    response: Sender<Response>,
}

struct Connection {
    stream: Arc<TcpStream>,
    pending: VecDeque<Pending>,
    last_sent: Instant,
    last_xid: i32,
}

struct LinkState {
    connection: Option<Connection>,
    /// Number of connections so far.
    connection_count: u64,
    /// The session to continue; `None` before the first one and after the end of a session.
    session: Option<SessionKey>,
    /// Epoch of the latest session.
    epoch: Epoch,
    /// Send time of the latest write of the session that succeeded.
    last_confirmed: Option<BootTime>,
    /// Time of the latest response.
    last_response: Option<Instant>,
    /// Number of the latest change of the ensemble that a response showed.
    last_zxid: i64,
    /// Session timeout that the server of the latest session granted; `None` before the first session.
    granted_timeout: Option<Duration>,
    /// Why there is no connection, as text for the errors that callers get.
    unreachable_reason: String,
    closed: bool,
}

/// The state that callers, the sender and the session manager share. Its lock is never held across IO.
pub(super) struct Link {
    pub(super) config: KeeperConfig,
    state: Mutex<LinkState>,
    /// Notified when there is another connection, and when the keeper is closed.
    attached: Condvar,
    calls: Sender<Call>,
}

/// The parameters of the next handshake that resume the session.
pub(super) struct Resumption {
    pub(super) session: SessionKey,
    pub(super) last_zxid: i64,
}

impl Link {
    /// Creates the state of a keeper without a session. The sender receives the calls.
    pub(super) fn new(config: KeeperConfig, calls: Sender<Call>) -> Link {
        let state = LinkState {
            connection: None,
            connection_count: 0,
            session: None,
            epoch: 0,
            last_confirmed: None,
            last_response: None,
            last_zxid: 0,
            granted_timeout: None,
            unreachable_reason: "not connected yet".into(),
            closed: false,
        };
        Link { config, state: Mutex::new(state), attached: Condvar::new(), calls }
    }

    fn lock(&self) -> MutexGuard<'_, LinkState> {
        lock(&self.state)
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.lock().epoch
    }

    pub(super) fn session_id(&self) -> Option<i64> {
        self.lock().session.map(|session| session.id)
    }

    pub(super) fn last_confirmed(&self) -> Option<BootTime> {
        self.lock().last_confirmed
    }

    pub(super) fn session_timeout(&self) -> Duration {
        self.lock().granted_timeout.unwrap_or(self.config.session_timeout)
    }

    /// Time limit of one call. A connection with pending calls on which nothing arrives for this time is given up.
    pub(super) fn call_timeout(&self) -> Duration {
        self.session_timeout() / 3
    }

    pub(super) fn reachable(&self) -> Result<(), String> {
        let half = self.session_timeout() / 2;
        let state = self.lock();
        match (&state.connection, state.last_response) {
            (Some(_), Some(last)) if last.elapsed() <= half => Ok(()),
            (Some(_), Some(last)) => Err(format!("no response for {} ms", last.elapsed().as_millis())),
            _ => Err(state.unreachable_reason.clone()),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub(super) fn set_unreachable_reason(&self, reason: String) {
        self.lock().unreachable_reason = reason;
    }

    /// Returns what to request in the next handshake.
    pub(super) fn resumption(&self) -> Resumption {
        let state = self.lock();
        Resumption { session: state.session.unwrap_or_default(), last_zxid: state.last_zxid }
    }

    /// Forgets which changes the ensemble has seen, so that a server with an older state accepts the connection.
    pub(super) fn forget_zxid(&self) {
        self.lock().last_zxid = 0;
    }

    /// Ends the session: the server does not know it any more. Returns its epoch.
    pub(super) fn expire(&self) -> Epoch {
        let mut state = self.lock();
        (state.session, state.last_confirmed) = (None, None);
        state.epoch
    }

    /// Makes `stream` the present connection, of the session `key`, whose handshake was sent at `sent`. Returns the
    /// epoch, and whether the session is new. Fails if the keeper is closed.
    pub(super) fn attach(
        &self,
        stream: Arc<TcpStream>,
        key: SessionKey,
        granted: Duration,
        sent: BootTime,
    ) -> Result<(Epoch, bool), String> {
        let mut state = self.lock();
        if state.closed {
            return Err("closed".into());
        }
        let is_new = state.session.is_none_or(|session| session.id != key.id);
        if is_new {
            state.epoch += 1;
            // The creation of a session is a write that passes the leader; its continuation need not be one.
            state.last_confirmed = Some(sent);
        }
        (state.session, state.granted_timeout) = (Some(key), Some(granted));
        let now = Instant::now();
        state.last_response = Some(now);
        let pending = VecDeque::new();
        state.connection = Some(Connection { stream, pending, last_sent: now, last_xid: 0 });
        state.connection_count += 1;
        self.attached.notify_all();
        Ok((state.epoch, is_new))
    }

    /// Drops the present connection. The callers that wait for a response get an error with `reason`.
    pub(super) fn detach(&self, reason: &str) {
        let mut state = self.lock();
        reason.clone_into(&mut state.unreachable_reason);
        if let Some(connection) = state.connection.take() {
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
    }

    /// Returns the number of connections so far.
    pub(super) fn connection_count(&self) -> u64 {
        self.lock().connection_count
    }

    /// Waits until there has been a connection after the first `count` ones, at most for the call timeout.
    pub(super) fn wait_for_connection_after(&self, count: u64) {
        let timeout = self.call_timeout();
        let is_missing = |state: &mut LinkState| state.connection_count <= count && !state.closed;
        drop(wait_timeout_while(&self.attached, self.lock(), timeout, is_missing));
    }

    /// Makes one call and waits for its response until the call timeout.
    pub(super) fn call(&self, request: Request, kind: CallKind) -> Result<Response, KeeperError> {
        let deadline = Instant::now() + self.call_timeout();
        let response = self.submit(request, kind, deadline)?;
        self.wait(&response, deadline)
    }

    /// Makes several calls, at most `max_in_flight` and [`MAX_QUEUED_CALLS`] in flight. Each must get its response
    /// within the call timeout after the call before it got one. The results have the order of `requests`; after the
    /// first call without a response, all later calls fail at once.
    pub(super) fn call_all(
        &self,
        mut requests: impl ExactSizeIterator<Item = Request>,
        kind: CallKind,
        max_in_flight: usize,
    ) -> Vec<Result<Response, KeeperError>> {
        let timeout = self.call_timeout();
        let count = requests.len();
        let mut in_flight: VecDeque<Receiver<Response>> = VecDeque::new();
        let mut results = Vec::with_capacity(count);
        // Once a request could not be sent, none after it is: the results would belong to other requests.
        let mut failure = None;
        while results.len() < count {
            let deadline = Instant::now() + timeout;
            while failure.is_none()
                && in_flight.len() < max_in_flight.min(MAX_QUEUED_CALLS)
                && let Some(request) = requests.next()
            {
                match self.submit(request, kind, deadline) {
                    Ok(response) => in_flight.push_back(response),
                    Err(error) => failure = Some(error),
                }
            }
            let result = match in_flight.pop_front() {
                Some(oldest) => self.wait(&oldest, deadline),
                None => match failure.take() {
                    Some(error) => Err(error),
                    None => break,
                },
            };
            let is_last = result.is_err();
            results.push(result);
            if is_last {
                break;
            }
        }
        let skipped = || Err(KeeperError::Unreachable("an earlier request got no response".into()));
        results.resize_with(count, skipped);
        results
    }

    fn submit(&self, request: Request, kind: CallKind, deadline: Instant) -> Result<Receiver<Response>, KeeperError> {
        {
            let state = self.lock();
            if state.connection.is_none() || state.closed {
                return Err(KeeperError::Unreachable(state.unreachable_reason.clone()));
            }
        }
        let (sender, response) = bounded(1);
        let call = Call { request, kind, deadline, response: sender };
        match self.calls.send_deadline(call, deadline) {
            Ok(()) => Ok(response),
            Err(_) => Err(KeeperError::Unreachable("too many requests wait for a response".into())),
        }
    }

    fn wait(&self, response: &Receiver<Response>, deadline: Instant) -> Result<Response, KeeperError> {
        match response.recv_deadline(deadline) {
            Ok(response) => Ok(response),
            Err(RecvTimeoutError::Timeout) => Err(KeeperError::Unreachable("no response by the deadline".into())),
            Err(RecvTimeoutError::Disconnected) => {
                let reason = self.lock().unreachable_reason.clone();
                Err(KeeperError::Unreachable(format!("no response: {reason}")))
            }
        }
    }

    /// Queues a ping if nothing was sent for `interval`.
    pub(super) fn ping_if_idle(&self, interval: Duration) {
        let is_due =
            self.lock().connection.as_ref().is_some_and(|connection| interval <= connection.last_sent.elapsed());
        if is_due {
            let (response, _) = bounded(1);
            let deadline = Instant::now() + interval;
            // A full queue means that other requests are sent.
            let _ = self.calls.try_send(Call { request: Request::ping(), kind: CallKind::Ping, deadline, response });
        }
    }

    /// Returns for how long the oldest pending request has had no response; `None` if none is pending.
    pub(super) fn oldest_pending(&self) -> Option<Duration> {
        let state = self.lock();
        let oldest = state.connection.as_ref()?.pending.front()?;
        Some(BootTime::now().saturating_since(oldest.sent))
    }

    /// Notes `call` as pending. Returns the connection to write to and the frame to write; `None` if the call fails,
    /// because there is no connection or its deadline has passed.
    pub(super) fn prepare(&self, call: Call) -> Option<(Arc<TcpStream>, Vec<u8>)> {
        let mut state = self.lock();
        let is_sendable = !state.closed || call.kind == CallKind::CloseSession;
        let connection = state.connection.as_mut().filter(|_| is_sendable && Instant::now() < call.deadline)?;
        let xid = match call.kind {
            CallKind::Ping => PING_XID,
            _ => {
                connection.last_xid = connection.last_xid.checked_add(1).unwrap_or(1);
                connection.last_xid
            }
        };
        connection.last_sent = Instant::now();
        // Taken before the write: the server restarts the session timeout no earlier.
        let sent = BootTime::now();
        connection.pending.push_back(Pending { xid, kind: call.kind, sent, response: call.response });
        Some((Arc::clone(&connection.stream), call.request.frame(xid)))
    }

    /// Hands a response to its caller. Fails if it is not the response to the oldest pending request.
    pub(super) fn on_response(&self, head: ResponseHead, body: &[u8]) -> Result<(), String> {
        let mut state = self.lock();
        state.last_response = Some(Instant::now());
        state.last_zxid = state.last_zxid.max(head.zxid);
        let Some(connection) = &mut state.connection else { return Ok(()) };
        if head.xid == protocol::NOTIFICATION_XID {
            return Ok(());
        }
        let pending = connection.pending.pop_front().filter(|pending| pending.xid == head.xid);
        let pending = pending.ok_or_else(|| format!("unexpected response with xid {}", head.xid))?;
        let is_proof = head.error == error::OK
            && match pending.kind {
                CallKind::Write => true,
                CallKind::Multi => !protocol::is_failed_multi(body),
                CallKind::Read | CallKind::Ping | CallKind::CloseSession => false,
            };
        if is_proof {
            // `max`, because a new session begins with the time of its handshake.
            state.last_confirmed = state.last_confirmed.max(Some(pending.sent));
        }
        drop(state);
        // Fails if the caller has stopped waiting.
        let _ = pending.response.try_send(Response { error: head.error, body: body.to_vec() });
        Ok(())
    }

    /// Requests the end of the session; no further session begins. Returns the channel of the response; `None` if there
    /// is nothing to wait for, because no session exists or no connection to close it with.
    pub(super) fn begin_close(&self, deadline: Instant) -> Option<Receiver<Response>> {
        let (had_session, is_connected) = {
            let mut state = self.lock();
            state.closed = true;
            self.attached.notify_all();
            state.last_confirmed = None;
            state.unreachable_reason = "closed".into();
            (state.session.take().is_some(), state.connection.is_some())
        };
        if !had_session {
            return None;
        }
        let (response, closed) = bounded(1);
        let call = Call { request: Request::close_session(), kind: CallKind::CloseSession, deadline, response };
        if !is_connected || self.calls.send_deadline(call, deadline).is_err() {
            warn_not_closed();
            return None;
        }
        Some(closed)
    }

    /// Closes the session and waits until it is closed, at most for `grace`.
    pub(super) fn close(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        if let Some(closed) = self.begin_close(deadline)
            && closed.recv_deadline(deadline).is_err()
        {
            warn_not_closed();
        }
        self.detach("closed");
    }
}

fn warn_not_closed() {
    log::warn!("ZooKeeper session not closed, its ephemeral nodes vanish after the session timeout");
}

#[cfg(test)]
mod tests;
