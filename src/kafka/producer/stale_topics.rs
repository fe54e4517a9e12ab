//! The topics whose metadata is needed, and the thread that requests it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::thread::{self, Thread};

use crate::locks::lock;

/// The topics whose metadata is needed.
#[derive(Default)]
pub(super) struct StaleTopics {
    topics: Mutex<HashSet<Arc<str>>>,
    thread: Mutex<Option<Thread>>,
}

impl StaleTopics {
    pub(super) fn add(&self, topics: impl IntoIterator<Item = Arc<str>>) {
        let mut stale = lock(&self.topics);
        let before = stale.len();
        stale.extend(topics);
        let is_more = stale.len() > before;
        drop(stale);
        // For each message without a leader this method is called again: only the first time the thread is woken.
        if is_more {
            self.wake();
        }
    }

    pub(super) fn wake(&self) {
        lock(&self.thread).iter().for_each(Thread::unpark);
    }

    /// Takes all topics.
    pub(super) fn take(&self) -> HashSet<Arc<str>> {
        std::mem::take(&mut *lock(&self.topics))
    }

    /// Makes this thread the one that [`add`](Self::add) wakes.
    pub(super) fn become_woken_thread(&self) {
        *lock(&self.thread) = Some(thread::current());
    }
}
