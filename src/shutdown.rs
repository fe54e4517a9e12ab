//! A request to stop is a channel that closes, not a flag that is polled.
//!
//! Every loop and every wait holds a [`Stop`]. Triggering it closes its channel, which all its clones share, and the
//! channels of all its children; a closed channel stays closed. The order in which threads stop is decided where they
//! are started (each daemon's `mod.rs`), by giving them different stops.

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use crate::locks::lock;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

/// The type of the values in a [`Stop`]'s channel. It has no value: the channel only closes.
#[derive(Debug)]
pub enum Never {}

/// A request to stop, triggered once. Clones share the request.
#[derive(Clone, Debug)]
pub struct Stop {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    closed: Receiver<Never>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The sender; [`Stop::trigger`] drops it, which closes the channel.
    open: Option<Sender<Never>>,
    children: Vec<Weak<Inner>>,
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}

impl Stop {
    /// Makes a stop that is not triggered.
    pub fn new() -> Self {
        let (open, closed) = bounded(0);
        let state = Mutex::new(State { open: Some(open), children: Vec::new() });
        Stop { inner: Arc::new(Inner { closed, state }) }
    }

    /// Makes a stop that is triggered when this stop is, and that can also be triggered alone.
    pub fn child(&self) -> Self {
        let child = Stop::new();
        let mut state = self.inner.lock();
        if state.open.is_none() {
            drop(state);
            child.trigger();
        } else {
            // Each start of a module makes a child: without this, the children of earlier starts would accumulate.
            state.children.retain(|known| known.strong_count() > 0);
            state.children.push(Arc::downgrade(&child.inner));
        }
        child
    }

    /// Triggers this stop and all its children. Idempotent.
    pub fn trigger(&self) {
        self.inner.trigger();
    }

    /// Returns whether the stop was triggered.
    pub fn is_triggered(&self) -> bool {
        self.inner.lock().open.is_none()
    }

    /// Returns the channel that closes when the stop is triggered; for `select!`.
    pub fn closed(&self) -> &Receiver<Never> {
        &self.inner.closed
    }

    /// Sleeps for `pause` and returns true, or returns false as soon as the stop is triggered.
    pub fn sleep(&self, pause: Duration) -> bool {
        matches!(self.inner.closed.recv_timeout(pause), Err(RecvTimeoutError::Timeout))
    }

    /// Blocks until the stop is triggered.
    pub fn wait(&self) {
        // No value is ever sent, so this returns only when the channel is closed.
        let _ = self.inner.closed.recv();
    }
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn trigger(&self) {
        let children = {
            let mut state = self.lock();
            state.open = None;
            std::mem::take(&mut state.children)
        };
        for child in children.iter().filter_map(Weak::upgrade) {
            child.trigger();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_trigger_reaches_children_but_not_the_parent() {
        let parent = Stop::new();
        let first = parent.child();
        let second = parent.child();
        first.trigger();
        assert!(first.is_triggered());
        assert!(!parent.is_triggered());
        assert!(!second.is_triggered());
        parent.trigger();
        assert!(second.is_triggered());
        assert!(parent.child().is_triggered(), "a child of a triggered parent is triggered from the start");
    }

    #[test]
    fn a_sleep_ends_with_the_trigger() {
        let stop = Stop::new();
        assert!(stop.sleep(Duration::from_millis(1)));
        let sleeper = stop.clone();
        let started = Instant::now();
        let thread = std::thread::spawn(move || sleeper.sleep(Duration::from_secs(60)));
        stop.trigger();
        assert!(!thread.join().expect("the sleeper does not panic"));
        assert!(started.elapsed() < Duration::from_secs(30));
    }
}
