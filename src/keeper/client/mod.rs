//! ZooKeeper through the zookeeper crate, made fit for daemons: every call has a deadline, every lost client is replaced.
//!
//! Calls are made on a few threads of the current client rather than on a single one or on the caller's: several
//! are in flight at once, which a monitor with 100,000 nodes needs, and a thread that hangs in the crate is never ours. Each call must be
//! answered within a third of the session timeout. Anything unclear (an overrun, any other state than connected, any error that is
//! not an answer about a node) ends the client as a whole; the manager makes the next one.
//!
//! Invariants: a session that is given up is not trusted from that moment on ([`Keeper::last_good`] is `None` before its nodes can vanish);
//! a call of an earlier client never counts for a later one; nothing here blocks longer than the deadline.

mod incarnation;
mod manager;
mod probe;

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use zookeeper::{Acl, CreateMode, ZkError, ZkResult, ZooKeeper};

use self::incarnation::{Incarnation, Outcome};
use self::manager::Manager;
use super::{Epoch, Keeper, KeeperConfig, KeeperError, Lifetime, Node, SharedKeeper, paths};
use crate::locks::lock;
use crate::supervise::Supervisor;

/// Begins to keep a session with the ensemble. Never fails and never blocks: while no server answers, calls fail as unreachable.
/// The session ends with [`Keeper::close`] or with the stop of `supervisor`, so that is to be triggered after everything that uses the keeper has ended.
pub fn connect(config: KeeperConfig, supervisor: &Supervisor) -> SharedKeeper {
    // One wake-up is enough: the manager looks at everything when it comes.
    let (wake, woken) = bounded(1);
    let state = State {
        current: None,
        epoch: 0,
        last_good: None,
        granted: None,
        trouble: "not connected yet".into(),
        closed: false,
    };
    let client = Client { config, state: Mutex::new(state), wake, living: Arc::new(AtomicUsize::new(0)) };
    let client = Arc::new(client);
    let manager = Manager::new(Arc::clone(&client), woken, supervisor.stop().clone());
    supervisor.spawn(format!("keeper@{}", supervisor.name()), move || manager.run());
    client
}

/// The keeper as callers and manager share it.
struct Client {
    config: KeeperConfig,
    /// Never held across a call.
    state: Mutex<State>,
    wake: Sender<()>,
    /// Clients of the crate whose threads live.
    living: Arc<AtomicUsize>,
}

struct State {
    current: Option<Current>,
    epoch: Epoch,
    /// Of `current`; `None` without one.
    last_good: Option<Instant>,
    /// Session timeout the latest server granted.
    granted: Option<Duration>,
    /// Why there is no current client, for people.
    trouble: String,
    closed: bool,
}

#[derive(Clone)]
struct Current {
    epoch: Epoch,
    incarnation: Arc<Incarnation>,
}

impl Client {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn call_timeout(&self) -> Duration {
        self.session_timeout() / 3
    }

    /// How long the session of a client that was given up is left open, about as long as it would have lasted without a sign of life:
    /// what was begun in trust of its claims has that much time to end before others may take them over.
    fn farewell(&self) -> Duration {
        self.session_timeout() * 2 / 3
    }

    fn full_path(&self, path: &str) -> String {
        match (self.config.chroot.as_str(), path) {
            ("", path) => path.to_owned(),
            (chroot, "/") => chroot.to_owned(),
            (chroot, path) => format!("{chroot}{path}"),
        }
    }

    /// One call on the current client. The error of the crate that comes back is an answer about the node.
    fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ZooKeeper) -> ZkResult<T> + Send + 'static,
    ) -> Result<ZkResult<T>, KeeperError> {
        let deadline = Instant::now() + self.call_timeout();
        let current = self.current()?;
        self.judge(current.epoch, current.incarnation.call(deadline, work))
    }

    /// The client that is trusted now.
    fn current(&self) -> Result<Current, KeeperError> {
        let current = {
            let state = self.lock();
            state.current.clone().ok_or_else(|| KeeperError::Unreachable(state.trouble.clone()))?
        };
        match current.incarnation.is_lost() {
            true => Err(self.give_up(current.epoch, "the connection was lost".into())),
            false => Ok(current),
        }
    }

    /// What an outcome of the client of `epoch` means for who asked, and for the client.
    fn judge<T>(&self, epoch: Epoch, outcome: Outcome<T>) -> Result<ZkResult<T>, KeeperError> {
        match outcome {
            Outcome::Answered(sent, outcome) if is_answer(&outcome) => match self.note_good(epoch, sent) {
                true => Ok(outcome),
                false => Err(KeeperError::Unreachable("the session was given up meanwhile".into())),
            },
            Outcome::Answered(_, Err(error)) => Err(self.give_up(epoch, format!("the client says {error:?}"))),
            Outcome::Answered(_, Ok(_)) => unreachable!("a good outcome is an answer"),
            Outcome::None(reason) => Err(self.give_up(epoch, reason.into())),
        }
    }

    /// Notes a good answer; false if it is not of the current client.
    fn note_good(&self, epoch: Epoch, sent: Instant) -> bool {
        let mut state = self.lock();
        let is_current = state.current.as_ref().is_some_and(|current| current.epoch == epoch);
        if is_current {
            state.last_good = state.last_good.max(Some(sent));
        }
        is_current
    }

    /// Ends the client of `epoch`, if it is still the current one, and returns the error for who asked.
    fn give_up(&self, epoch: Epoch, reason: String) -> KeeperError {
        let given_up = {
            let mut state = self.lock();
            match &state.current {
                Some(current) if current.epoch == epoch => {
                    // Distrusted first: the lease of every claim ends here.
                    state.last_good = None;
                    state.trouble.clone_from(&reason);
                    state.current.take()
                }
                _ => None,
            }
        };
        if let Some(current) = given_up {
            log::warn!("ZooKeeper session {epoch} is given up: {reason}");
            current.incarnation.end(self.farewell());
            let _ = self.wake.try_send(());
        }
        KeeperError::Unreachable(reason)
    }

    /// Makes the nodes of the chroot where they are missing, as the original does.
    fn make_chroot(&self) -> Result<(), KeeperError> {
        let ends = self.config.chroot.match_indices('/').skip(1).map(|(end, _)| end);
        for end in ends.chain([self.config.chroot.len()]) {
            let above = self.config.chroot[..end].to_owned();
            let acl = Acl::open_unsafe().clone();
            match self.call(move |client| client.create(&above, Vec::new(), acl, CreateMode::Persistent))? {
                Ok(_) | Err(ZkError::NodeExists) => {}
                Err(error) => return Err(about_node(error, "/")),
            }
        }
        Ok(())
    }
}

/// Whether the server answered the question. Every other error leaves open what the client is worth.
fn is_answer<T>(outcome: &ZkResult<T>) -> bool {
    use ZkError::{BadVersion, NoAuth, NoNode, NodeExists, NotEmpty};
    matches!(outcome, Ok(_) | Err(NoNode | NodeExists | BadVersion | NotEmpty | NoAuth))
}

fn as_node(answer: ZkResult<(Vec<u8>, zookeeper::Stat)>, path: &str) -> Result<Option<Node>, KeeperError> {
    match answer {
        Ok((data, stat)) => Ok(Some(Node { data, version: stat.version, ephemeral_owner: stat.ephemeral_owner })),
        Err(ZkError::NoNode) => Ok(None),
        Err(error) => Err(about_node(error, path)),
    }
}

fn about_node(error: ZkError, path: &str) -> KeeperError {
    match error {
        ZkError::NoNode => KeeperError::NoNode(path.to_owned()),
        ZkError::NodeExists => KeeperError::NodeExists(path.to_owned()),
        ZkError::BadVersion => KeeperError::BadVersion(path.to_owned()),
        ZkError::NotEmpty => KeeperError::NotEmpty(path.to_owned()),
        ZkError::NoAuth => KeeperError::Refused(path.to_owned()),
        other => KeeperError::Unreachable(format!("the client says {other:?}")),
    }
}

impl Keeper for Client {
    fn children(&self, path: &str) -> Result<Vec<String>, KeeperError> {
        let full = self.full_path(path);
        self.call(move |client| client.get_children(&full, false))?.map_err(|error| about_node(error, path))
    }

    fn read(&self, path: &str) -> Result<Option<Node>, KeeperError> {
        let full = self.full_path(path);
        as_node(self.call(move |client| client.get_data(&full, false))?, path)
    }

    fn read_all(&self, paths: &[String]) -> Vec<Result<Option<Node>, KeeperError>> {
        let current = match self.current() {
            Ok(current) => current,
            Err(error) => return vec![Err(error); paths.len()],
        };
        let read = |path: &String| {
            let full = self.full_path(path);
            move |client: &ZooKeeper| client.get_data(&full, false)
        };
        let outcomes = current.incarnation.call_all(self.call_timeout(), paths.iter().map(read).collect());
        let judged = paths
            .iter()
            .zip(outcomes)
            .map(|(path, outcome)| self.judge(current.epoch, outcome).and_then(|answer| as_node(answer, path)));
        let mut nodes: Vec<_> = judged.collect();
        nodes.resize(paths.len(), Err(KeeperError::Unreachable("an earlier question got no answer".into())));
        nodes
    }

    fn create(&self, path: &str, data: &[u8], lifetime: Lifetime) -> Result<(), KeeperError> {
        let mode = match lifetime {
            Lifetime::Persistent => CreateMode::Persistent,
            Lifetime::Ephemeral => CreateMode::Ephemeral,
        };
        let create = || {
            let (full, data, acl) = (self.full_path(path), data.to_vec(), Acl::open_unsafe().clone());
            self.call(move |client| client.create(&full, data, acl, mode))
        };
        let mut outcome = create()?;
        // The chroot is the caller's root: nobody but us can make it.
        let under_root = !self.config.chroot.is_empty() && paths::parent_of(path) == Some("/");
        if under_root && matches!(outcome, Err(ZkError::NoNode)) {
            self.make_chroot()?;
            outcome = create()?;
        }
        outcome.map(drop).map_err(|error| about_node(error, path))
    }

    fn write(&self, path: &str, data: &[u8], version: i32) -> Result<i32, KeeperError> {
        if version < 0 {
            // To the server a negative one would mean any.
            return Err(KeeperError::BadVersion(path.to_owned()));
        }
        let (full, data) = (self.full_path(path), data.to_vec());
        let outcome = self.call(move |client| client.set_data(&full, data, Some(version)))?;
        outcome.map(|stat| stat.version).map_err(|error| about_node(error, path))
    }

    fn delete(&self, path: &str, version: i32) -> Result<(), KeeperError> {
        if version < 0 {
            return Err(KeeperError::BadVersion(path.to_owned()));
        }
        let full = self.full_path(path);
        self.call(move |client| client.delete(&full, Some(version)))?.map_err(|error| about_node(error, path))
    }

    fn epoch(&self) -> Epoch {
        self.lock().epoch
    }

    fn last_good(&self) -> Option<Instant> {
        self.lock().last_good
    }

    fn session_timeout(&self) -> Duration {
        let asked = self.config.session_timeout;
        self.lock().granted.map_or(asked, |granted| granted.min(asked))
    }

    fn reachable(&self) -> Result<(), String> {
        let half = self.session_timeout() / 2;
        let state = self.lock();
        match state.last_good {
            Some(good) if good.elapsed() <= half => Ok(()),
            Some(good) => Err(format!("no answer for {} ms", good.elapsed().as_millis())),
            None => Err(state.trouble.clone()),
        }
    }

    fn close(&self, grace: Duration) {
        let current = {
            let mut state = self.lock();
            state.closed = true;
            state.last_good = None;
            state.trouble = "closed".into();
            state.current.take()
        };
        let _ = self.wake.try_send(());
        if let Some(current) = current {
            current.incarnation.end(Duration::ZERO);
            if !current.incarnation.await_end(grace) {
                log::warn!("ZooKeeper did not end the session in time; it ends by its timeout");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_node_is_no_trouble_of_the_session() {
        let path = || "/a".to_owned();
        for (error, said) in [
            (ZkError::NoNode, Some(KeeperError::NoNode(path()))),
            (ZkError::NodeExists, Some(KeeperError::NodeExists(path()))),
            (ZkError::BadVersion, Some(KeeperError::BadVersion(path()))),
            (ZkError::NotEmpty, Some(KeeperError::NotEmpty(path()))),
            // Else one group with an access list would end the session of all modules again and again.
            (ZkError::NoAuth, Some(KeeperError::Refused(path()))),
            (ZkError::SessionExpired, None),
            (ZkError::ConnectionLoss, None),
        ] {
            assert_eq!(is_answer::<()>(&Err(error)), said.is_some(), "{error:?}");
            if let Some(said) = said {
                assert_eq!(about_node(error, "/a"), said);
            }
        }
    }
}
