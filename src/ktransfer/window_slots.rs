//! The `window_size` slots of a module: how many messages may be pushed but not done at the same time.
//!
//! A worker takes a slot before the first attempt of a message and keeps it until the message is done or abandoned, so
//! also while the message waits for its next attempt. Messages that were never pushed have no slot. If every slot
//! belongs to a message that backends refuse, these messages are still retried, and only first attempts wait.
//!
//! A worker never blocks for a slot: it registers, goes on with what has a slot, and is woken over its own channel.
//! Invariant: while a slot is free and a worker is registered, a wake-up is on its way to a worker.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::locks::lock;

/// The slots of one module; all its workers share them.
#[derive(Debug)]
pub(super) struct WindowSlots {
    size: usize,
    free: AtomicUsize,
    /// Length of `waiting`. Read without the lock, so that a return of a slot that nobody waits for takes no lock.
    waiting_count: AtomicUsize,
    /// Workers that wait for a slot, each at most once, the longest-waiting first.
    waiting: Mutex<VecDeque<usize>>,
}

impl WindowSlots {
    /// Creates `size` free slots.
    pub(super) fn new(size: usize) -> WindowSlots {
        let (free, waiting_count) = (AtomicUsize::new(size), AtomicUsize::new(0));
        WindowSlots { size, free, waiting_count, waiting: Mutex::default() }
    }

    /// Takes a slot for `worker` and returns true. Returns false if none is free; then a later return of a slot wakes
    /// the worker.
    pub(super) fn try_acquire(&self, worker: usize) -> bool {
        if self.take_free() {
            return true;
        }
        let mut waiting = lock(&self.waiting);
        if !waiting.contains(&worker) {
            waiting.push_back(worker);
            self.waiting_count.store(waiting.len(), Ordering::SeqCst);
        }
        // A slot that was returned before the registration woke nobody.
        if !self.take_free() {
            return false;
        }
        waiting.retain(|registered| *registered != worker);
        self.waiting_count.store(waiting.len(), Ordering::SeqCst);
        true
    }

    /// Returns a slot. The caller must wake the worker that this returns.
    #[must_use]
    pub(super) fn release(&self) -> Option<usize> {
        self.free.fetch_add(1, Ordering::SeqCst);
        self.next_to_wake()
    }

    /// Removes the registration of `worker`. If it was woken already, the wake-up passes on: the caller must wake the
    /// worker that this returns.
    #[must_use]
    pub(super) fn leave(&self, worker: usize) -> Option<usize> {
        let mut waiting = lock(&self.waiting);
        waiting.retain(|registered| *registered != worker);
        self.waiting_count.store(waiting.len(), Ordering::SeqCst);
        drop(waiting);
        self.next_to_wake()
    }

    /// Removes and returns the next registered worker if a slot is free.
    fn next_to_wake(&self) -> Option<usize> {
        if self.waiting_count.load(Ordering::SeqCst) == 0 || self.free.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let mut waiting = lock(&self.waiting);
        let worker = waiting.pop_front();
        self.waiting_count.store(waiting.len(), Ordering::SeqCst);
        worker
    }

    /// Returns the number of messages that are pushed but not done.
    pub(super) fn in_use(&self) -> usize {
        self.size.saturating_sub(self.free.load(Ordering::SeqCst))
    }

    fn take_free(&self) -> bool {
        self.free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |free| free.checked_sub(1)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn slots_are_bounded_and_a_return_wakes_the_longest_waiting_worker() {
        let slots = WindowSlots::new(2);
        assert!(slots.try_acquire(0) && slots.try_acquire(1));
        assert!(!slots.try_acquire(2) && !slots.try_acquire(3) && !slots.try_acquire(2));
        assert_eq!(slots.in_use(), 2);
        assert_eq!(slots.release(), Some(2));
        assert!(slots.try_acquire(2));
        assert_eq!(slots.release(), Some(3));
        assert_eq!(slots.release(), None);
        assert_eq!((slots.in_use(), slots.leave(0)), (0, None));
    }

    #[test]
    fn a_worker_that_was_woken_and_needs_no_slot_passes_its_wake_up_on() {
        let slots = WindowSlots::new(1);
        assert!(slots.try_acquire(0));
        assert!(!slots.try_acquire(1) && !slots.try_acquire(2));
        assert_eq!(slots.release(), Some(1));
        assert_eq!(slots.leave(1), Some(2));
        assert!(slots.try_acquire(2) && !slots.try_acquire(3) && !slots.try_acquire(1));
        assert_eq!(slots.leave(3), None, "no slot is free");
        assert_eq!(slots.release(), Some(1));
    }

    #[test]
    fn no_wake_up_is_lost_between_threads() {
        let slots = Arc::new(WindowSlots::new(3));
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..8).map(|_| crossbeam_channel::unbounded::<()>()).unzip();
        let held = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = receivers
            .into_iter()
            .enumerate()
            .map(|(worker, wake_ups)| {
                let (slots, senders, held) = (Arc::clone(&slots), senders.clone(), Arc::clone(&held));
                std::thread::spawn(move || {
                    for _ in 0..3_000 {
                        while !slots.try_acquire(worker) {
                            wake_ups.recv_timeout(Duration::from_secs(30)).expect("a wake-up was lost");
                        }
                        assert!(held.fetch_add(1, Ordering::SeqCst) < 3);
                        held.fetch_sub(1, Ordering::SeqCst);
                        if let Some(woken) = slots.release() {
                            senders[woken].send(()).unwrap();
                        }
                    }
                    // A wake-up for this worker may be on its way; it must reach a worker that needs it.
                    if let Some(woken) = slots.leave(worker) {
                        senders[woken].send(()).unwrap();
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(slots.in_use(), 0);
    }
}
