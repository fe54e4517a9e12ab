//! Starts every thread of this program.
//!
//! A [`Supervisor`] is a group of named threads that end together: a daemon, or one module of it. A thread that returns
//! before the group was stopped, or panics, is named in the log and stops the whole group. [`Supervisor::join`] returns
//! this thread as a [`Failure`], and the owner of the group starts a new group or ends the daemon. So no group
//! continues with a thread missing.
//!
//! `spawn_expendable` starts a thread outside of all groups, for a call that may hang.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use log::error;

use crate::locks::{lock, wait_timeout};
use crate::panics;
use crate::reload::Reloads;
use crate::shutdown::Stop;

/// A group of threads with one stop.
#[derive(Clone)]
pub struct Supervisor {
    group: Arc<Group>,
}

struct Group {
    name: String,
    stop: Stop,
    reloads: Reloads,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Names of the threads that have not ended.
    running: Vec<String>,
    /// The first thread that exited unexpectedly.
    failure: Option<Failure>,
    #[cfg(test)]
    failing_starts: usize,
}

/// A thread that returned before its group was stopped, that panicked, or that could not be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("thread {thread} {how}")]
pub struct Failure {
    /// Name of the thread.
    pub thread: String,
    /// "exited unexpectedly", "panicked: …" or "could not be started: …".
    pub how: String,
}

/// How a group ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Stopped on request: all threads ended after the stop.
    Stopped,
    /// A thread exited unexpectedly; the others were then stopped.
    Failed(Failure),
    /// These threads were still running at the deadline.
    StillRunning(Vec<String>),
}

impl Supervisor {
    /// Makes an empty group whose threads end when `stop` is triggered.
    pub fn new(name: impl Into<String>, stop: Stop) -> Self {
        let group = Group {
            name: name.into(),
            stop,
            reloads: Reloads::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        Supervisor { group: Arc::new(group) }
    }

    /// Returns the stop of this group.
    pub fn stop(&self) -> &Stop {
        &self.group.stop
    }

    /// Returns the reload actions of this group. SIGHUP runs only the actions of the daemon's own group.
    pub(crate) fn reloads(&self) -> &Reloads {
        &self.group.reloads
    }

    /// Returns the name of the group, for log lines.
    pub fn name(&self) -> &str {
        &self.group.name
    }

    /// Starts a thread of the group. It must return soon after the group's stop is triggered, or after a later stop
    /// that the group's owner triggers. A thread that returns before the group's stop, or panics, fails the group. The
    /// kernel shows the first 15 bytes of `name`.
    pub fn spawn(&self, name: impl Into<String>, body: impl FnOnce() + Send + 'static) {
        let stop = self.group.stop.clone();
        self.start(name.into(), move || {
            body();
            if stop.is_triggered() { Ok(()) } else { Err("exited unexpectedly".to_owned()) }
        });
    }

    /// Like [`spawn`](Self::spawn), for a thread that may return at any time; only a panic fails the group.
    pub fn spawn_task(&self, name: impl Into<String>, body: impl FnOnce() + Send + 'static) {
        self.spawn_fallible(name, move || {
            body();
            Ok(())
        });
    }

    /// Like [`spawn_task`](Self::spawn_task), but a thread that cannot be started does not fail the group: the machine
    /// may have too many threads for a moment.
    pub(crate) fn try_spawn_task(
        &self,
        name: impl Into<String>,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        self.try_start(name.into(), move || {
            body();
            Ok(())
        })
    }

    /// Like [`spawn_task`](Self::spawn_task); an error, which says how the thread ended, fails the group as well.
    pub(crate) fn spawn_fallible(
        &self,
        name: impl Into<String>,
        body: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) {
        self.start(name.into(), body);
    }

    fn start(&self, name: String, body: impl FnOnce() -> Result<(), String> + Send + 'static) {
        if let Err(cause) = self.try_start(name.clone(), body) {
            self.group.ended(&name, Some(format!("could not be started: {cause}")));
        }
    }

    fn try_start(&self, name: String, body: impl FnOnce() -> Result<(), String> + Send + 'static) -> io::Result<()> {
        self.group.lock().running.push(name.clone());
        let group = Arc::clone(&self.group);
        let thread_name = name.clone();
        let spawned = self.builder().name(name.clone()).spawn(move || {
            let how = match panics::catch(body) {
                Err(text) => Some(format!("panicked: {text}")),
                Ok(ended) => ended.err(),
            };
            group.ended(&thread_name, how);
        });
        spawned.map(drop).inspect_err(|_| self.group.ended(&name, None))
    }

    #[cfg(not(test))]
    fn builder(&self) -> thread::Builder {
        thread::Builder::new()
    }

    /// Returns a builder that fails as often as [`fail_starts`](Self::fail_starts) says.
    #[cfg(test)]
    fn builder(&self) -> thread::Builder {
        let builder = thread::Builder::new();
        let mut state = self.group.lock();
        if state.failing_starts == 0 {
            return builder;
        }
        state.failing_starts -= 1;
        builder.stack_size(1 << 60)
    }

    /// Makes the next `count` starts of threads fail: no memory has room for their stacks.
    #[cfg(test)]
    pub(crate) fn fail_starts(&self, count: usize) {
        self.group.lock().failing_starts = count;
    }

    /// Waits until every thread of the group has ended: first until the stop is triggered, without a limit, then at
    /// most `grace` for the threads.
    pub fn join(&self, grace: Duration) -> Ended {
        self.group.stop.wait();
        let deadline = Instant::now() + grace;
        let mut state = self.group.lock();
        loop {
            if state.running.is_empty() {
                return state.failure.clone().map_or(Ended::Stopped, Ended::Failed);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ended::StillRunning(state.running.clone());
            }
            state = wait_timeout(&self.group.changed, state, left);
        }
    }

    /// Returns the first thread that exited unexpectedly, if any.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.group.lock().failure.clone()
    }
}

impl Group {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn ended(&self, name: &str, how: Option<String>) {
        let mut state = self.lock();
        if let Some(index) = state.running.iter().position(|running| running == name) {
            state.running.swap_remove(index);
        }
        if let Some(how) = how {
            error!("thread {name} of {} {how}", self.name);
            let failure = Failure { thread: name.to_owned(), how };
            state.failure.get_or_insert(failure);
            // Unlocked before the trigger: each thread that ends takes this lock.
            drop(state);
            self.stop.trigger();
        }
        self.changed.notify_all();
    }
}

/// Starts a thread that belongs to no group and that no join waits for: its body calls a library without deadlines, so
/// the thread may have to be abandoned. The caller bounds the number of such threads. A panic is logged and ends only
/// that thread.
pub(crate) fn spawn_expendable(name: impl Into<String>, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let name = name.into();
    thread::Builder::new().name(name.clone()).spawn(move || {
        panics::caught(format_args!("thread {name}"), body);
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    #[test]
    fn a_thread_that_exits_unexpectedly_stops_the_group_and_is_named() {
        for (panics, how) in [(true, "panicked: in the body"), (false, "exited unexpectedly")] {
            let group = Supervisor::new("g", Stop::new());
            let stop = group.stop().clone();
            group.spawn("stays", move || stop.wait());
            group.spawn("exits", move || assert!(!panics, "in the body"));
            let failure = Failure { thread: "exits".into(), how: how.into() };
            assert_eq!(group.join(GRACE), Ended::Failed(failure));
        }
    }

    #[test]
    fn a_thread_that_cannot_be_started_fails_the_group_unless_the_caller_handles_it() {
        let group = Supervisor::new("g", Stop::new());
        group.fail_starts(2);
        group.try_spawn_task("tried", || ()).unwrap_err();
        assert_eq!(group.failure(), None);
        group.spawn_task("needed", || ());
        let Ended::Failed(failure) = group.join(GRACE) else { panic!("expected a failure") };
        assert!(failure.thread == "needed" && failure.how.starts_with("could not be started: "), "{failure}");
    }

    #[test]
    fn a_stop_is_not_a_failure_and_a_thread_that_hangs_is_named() {
        let group = Supervisor::new("g", Stop::new());
        let stop = group.stop().clone();
        group.spawn("stops", move || stop.wait());
        group.spawn_task("task", || ());
        group.spawn_fallible("also a task", || Ok(()));
        let held = Stop::new();
        let hold = held.clone();
        group.spawn("hangs", move || hold.wait());
        group.stop().trigger();
        assert_eq!(group.join(Duration::from_millis(50)), Ended::StillRunning(vec!["hangs".into()]));
        held.trigger();
        assert_eq!(group.join(GRACE), Ended::Stopped);
    }
}
