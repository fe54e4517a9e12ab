//! The state of the current session of a keeper: begins a session, confirms it by responses, gives it up and closes it.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use zookeeper::{ZkError, ZkResult, ZooKeeper};

use super::instance::{CallOutcome, ClientInstance};
use crate::keeper::api::{Epoch, KeeperError};
use crate::keeper::config::KeeperConfig;
use crate::locks::lock;

/// The session state that all callers and the session manager share.
pub(super) struct Sessions {
    pub(super) config: KeeperConfig,
    /// The lock is never held across a call.
    state: Mutex<SessionState>,
    /// Sends a wake-up to the session manager.
    pub(super) wake: Sender<()>,
    /// Number of client instances whose threads have not ended yet.
    pub(super) instance_count: Arc<AtomicUsize>,
}

struct SessionState {
    current: Option<CurrentSession>,
    /// Epoch of the latest session.
    epoch: Epoch,
    /// Send time of the latest request whose response confirmed the current session; `None` without a current session.
    last_confirmed: Option<Instant>,
    /// Session timeout that the server of the latest session granted; `None` before the first session.
    granted_timeout: Option<Duration>,
    /// Why there is no current session, as text for the errors that callers get.
    unreachable_reason: String,
    closed: bool,
}

#[derive(Clone)]
pub(super) struct CurrentSession {
    pub(super) epoch: Epoch,
    pub(super) instance: Arc<ClientInstance>,
}

/// The state that decides the next step of the session manager.
pub(super) enum Phase {
    Connected(CurrentSession),
    Disconnected,
    /// [`Sessions::close`] was called: no further session begins.
    Closed,
}

impl Sessions {
    pub(super) fn new(config: KeeperConfig, wake: Sender<()>) -> Sessions {
        let state = SessionState {
            current: None,
            epoch: 0,
            last_confirmed: None,
            granted_timeout: None,
            unreachable_reason: "not connected yet".into(),
            closed: false,
        };
        Sessions { config, state: Mutex::new(state), wake, instance_count: Arc::new(AtomicUsize::new(0)) }
    }

    fn lock(&self) -> MutexGuard<'_, SessionState> {
        lock(&self.state)
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.lock().epoch
    }

    pub(super) fn last_confirmed(&self) -> Option<Instant> {
        self.lock().last_confirmed
    }

    pub(super) fn session_timeout(&self) -> Duration {
        let requested = self.config.session_timeout;
        self.lock().granted_timeout.map_or(requested, |granted| granted.min(requested))
    }

    pub(super) fn call_timeout(&self) -> Duration {
        self.session_timeout() / 3
    }

    /// Returns how long the session of an instance that was given up stays open: about as long as it would have lasted
    /// without heartbeats. Pushes that began under the claims of the session have that time to end before another
    /// member can claim the partitions.
    fn close_delay(&self) -> Duration {
        self.session_timeout() * 2 / 3
    }

    pub(super) fn reachable(&self) -> Result<(), String> {
        let half = self.session_timeout() / 2;
        let state = self.lock();
        match state.last_confirmed {
            Some(confirmed) if confirmed.elapsed() <= half => Ok(()),
            Some(confirmed) => Err(format!("no response for {} ms", confirmed.elapsed().as_millis())),
            None => Err(state.unreachable_reason.clone()),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        let state = self.lock();
        match &state.current {
            _ if state.closed => Phase::Closed,
            Some(current) => Phase::Connected(current.clone()),
            None => Phase::Disconnected,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub(super) fn set_unreachable_reason(&self, reason: String) {
        self.lock().unreachable_reason = reason;
    }

    /// Makes `instance` the current one and returns its epoch. Its session was confirmed by the response to a request
    /// sent at `sent`. Fails if the keeper is closed.
    pub(super) fn begin(&self, instance: ClientInstance, sent: Instant, granted: Duration) -> Result<Epoch, String> {
        let instance = Arc::new(instance);
        let mut state = self.lock();
        if state.closed {
            return Err("closed".into());
        }
        state.epoch += 1;
        state.last_confirmed = Some(sent);
        state.granted_timeout = Some(granted);
        let epoch = state.epoch;
        state.current = Some(CurrentSession { epoch, instance });
        Ok(epoch)
    }

    /// Makes one call on the current instance. An error inside `Ok` is a response of the server about the node; the
    /// outer error is `Unreachable`.
    pub(super) fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ZooKeeper) -> ZkResult<T> + Send + 'static,
    ) -> Result<ZkResult<T>, KeeperError> {
        let deadline = Instant::now() + self.call_timeout();
        let current = self.current()?;
        self.record(current.epoch, current.instance.call(deadline, work))
    }

    /// Confirms the session with a read of the root node. [`Self::call`] records the outcome, so nothing is returned.
    pub(super) fn heartbeat(&self) {
        let root = self.config.full_path("/");
        let _ = self.call(move |client| client.get_data(&root, false));
    }

    /// Returns the current session. Fails with `Unreachable` if there is none or its connection is lost.
    pub(super) fn current(&self) -> Result<CurrentSession, KeeperError> {
        let current = {
            let state = self.lock();
            state.current.clone().ok_or_else(|| KeeperError::Unreachable(state.unreachable_reason.clone()))?
        };
        match current.instance.is_lost() {
            true => Err(self.give_up(current.epoch, "connection lost".into())),
            false => Ok(current),
        }
    }

    /// Records the outcome of a call in the session of `epoch`: confirms the session or gives it up.
    pub(super) fn record<T>(&self, epoch: Epoch, outcome: CallOutcome<T>) -> Result<ZkResult<T>, KeeperError> {
        match outcome {
            CallOutcome::Response(sent, result) if is_about_node(&result) => match self.confirm(epoch, sent) {
                true => Ok(result),
                // The response is valid, but its session may have ended, so the caller must not rely on it.
                false => Err(KeeperError::Unreachable("the session was given up during the call".into())),
            },
            CallOutcome::Response(_, Err(error)) => Err(self.give_up(epoch, format!("request failed: {error:?}"))),
            CallOutcome::Response(_, Ok(_)) => unreachable!("a success is about the node"),
            CallOutcome::NoResponse(reason) => Err(self.give_up(epoch, reason.into())),
        }
    }

    /// Records a response to a request sent at `sent`. Returns false if `epoch` is not the epoch of the current
    /// session.
    fn confirm(&self, epoch: Epoch, sent: Instant) -> bool {
        let mut state = self.lock();
        let is_current = state.current.as_ref().is_some_and(|current| current.epoch == epoch);
        if is_current {
            // `max`, because responses may arrive in another order than their requests were sent.
            state.last_confirmed = state.last_confirmed.max(Some(sent));
        }
        is_current
    }

    /// Gives the session of `epoch` up if it is still the current one. Returns the error for the caller.
    pub(super) fn give_up(&self, epoch: Epoch, reason: String) -> KeeperError {
        let given_up = {
            let mut state = self.lock();
            match &state.current {
                Some(current) if current.epoch == epoch => {
                    // This ends the lease of every claim, before the session is closed below.
                    state.last_confirmed = None;
                    state.unreachable_reason.clone_from(&reason);
                    state.current.take()
                }
                _ => None,
            }
        };
        if let Some(current) = given_up {
            log::warn!("ZooKeeper session {epoch} given up, reconnecting: {reason}");
            current.instance.close_after(self.close_delay());
            let _ = self.wake.try_send(());
        }
        KeeperError::Unreachable(reason)
    }

    /// Closes the current session and waits until it is closed, at most for `grace`. No further session begins.
    pub(super) fn close(&self, grace: Duration) {
        let current = {
            let mut state = self.lock();
            state.closed = true;
            state.last_confirmed = None;
            state.unreachable_reason = "closed".into();
            state.current.take()
        };
        let _ = self.wake.try_send(());
        if let Some(current) = current {
            current.instance.close_after(Duration::ZERO);
            if !current.instance.wait_closed(grace) {
                log::warn!(
                    "ZooKeeper session not closed within {} ms, its ephemeral nodes vanish after the session timeout",
                    grace.as_millis()
                );
            }
        }
    }
}

/// Whether the result is a response about the node. Any other error does not show whether the session still exists.
fn is_about_node<T>(result: &ZkResult<T>) -> bool {
    use ZkError::{BadVersion, NoAuth, NoNode, NodeExists, NotEmpty};
    matches!(result, Ok(_) | Err(NoNode | NodeExists | BadVersion | NotEmpty | NoAuth))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_about_a_node_does_not_give_up_the_session() {
        for (error, about_node) in [
            (ZkError::NoNode, true),
            (ZkError::NodeExists, true),
            (ZkError::BadVersion, true),
            (ZkError::NotEmpty, true),
            // If NoAuth gave the session up, one group with an ACL would repeatedly end the session of all modules.
            (ZkError::NoAuth, true),
            (ZkError::SessionExpired, false),
            (ZkError::ConnectionLoss, false),
        ] {
            assert_eq!(is_about_node::<()>(&Err(error)), about_node, "{error:?}");
        }
    }
}
