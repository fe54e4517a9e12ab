//! The `window_size` slots of a module: how many messages may be pushed but not done at the same time.
//!
//! A worker takes a slot before the first attempt of a message and keeps it until the message is done or abandoned, so
//! also while the message waits for its next attempt. Messages that were never pushed have no slot. If every slot
//! belongs to a message that backends refuse, these messages are still retried, and only first attempts wait.
//!
//! A worker never blocks for a slot: it registers, and continues with jobs that have a slot. A returned slot is granted
//! to the worker that has waited longest, with a message over its own channel. So all workers get their turn even if
//! few slots become free. Invariant: no slot is free while a worker is registered, except for the moment until it is
//! granted.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::locks::lock;

/// The slots of one module; all its workers share them.
#[derive(Debug)]
pub(super) struct WindowSlots {
    size: usize,
    free: AtomicUsize,
    /// Length of `waiting`. Read without the lock, so that returning a slot takes no lock if no worker waits.
    waiting_count: AtomicUsize,
    /// Workers that wait for a slot, each at most once, the longest-waiting first.
    waiting: Mutex<VecDeque<usize>>,
}

/// The result of [`WindowSlots::acquire`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acquired {
    /// The worker has a slot.
    Slot,
    /// The worker is registered. If a slot was granted to another worker meanwhile, the caller must send `SlotGranted`
    /// to that worker.
    Registered(Option<usize>),
}

/// The result of [`WindowSlots::leave`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// The worker is not registered any more and will not be granted a slot.
    Unregistered,
    /// The worker was granted a slot: the message is on its way. The worker has to return the slot.
    Granted,
}

impl WindowSlots {
    /// Creates `size` free slots.
    pub(super) fn new(size: usize) -> WindowSlots {
        let (free, waiting_count) = (AtomicUsize::new(size), AtomicUsize::new(0));
        WindowSlots { size, free, waiting_count, waiting: Mutex::default() }
    }

    /// Takes a slot for `worker`, or registers the worker, which must not be registered yet. `is_back`: the worker has
    /// left its registration and is the first to be granted a slot now.
    pub(super) fn acquire(&self, worker: usize, is_back: bool) -> Acquired {
        if self.waiting_count.load(Ordering::SeqCst) == 0 && self.take_free() {
            return Acquired::Slot;
        }
        let mut waiting = lock(&self.waiting);
        if is_back {
            waiting.push_front(worker);
        } else {
            waiting.push_back(worker);
        }
        self.waiting_count.store(waiting.len(), Ordering::SeqCst);
        drop(waiting);
        // A slot that was returned before the registration was granted to nobody.
        match self.grant() {
            Some(granted) if granted == worker => Acquired::Slot,
            granted => Acquired::Registered(granted),
        }
    }

    /// Returns a slot to the free ones. If it is granted to a waiting worker, this returns the worker, to which the
    /// caller must send `SlotGranted`.
    #[must_use]
    pub(super) fn release(&self) -> Option<usize> {
        self.free.fetch_add(1, Ordering::SeqCst);
        self.grant()
    }

    /// Ends the registration of `worker`.
    #[must_use]
    pub(super) fn leave(&self, worker: usize) -> Left {
        let mut waiting = lock(&self.waiting);
        let before = waiting.len();
        waiting.retain(|registered| *registered != worker);
        self.waiting_count.store(waiting.len(), Ordering::SeqCst);
        if waiting.len() < before { Left::Unregistered } else { Left::Granted }
    }

    /// Returns the number of messages that are pushed but not done.
    pub(super) fn in_use(&self) -> usize {
        self.size.saturating_sub(self.free.load(Ordering::SeqCst))
    }

    /// Takes a free slot for the longest-waiting worker, and returns this worker.
    fn grant(&self) -> Option<usize> {
        if self.waiting_count.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let mut waiting = lock(&self.waiting);
        if waiting.is_empty() || !self.take_free() {
            return None;
        }
        let worker = waiting.pop_front();
        self.waiting_count.store(waiting.len(), Ordering::SeqCst);
        worker
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

    const WAITS: Acquired = Acquired::Registered(None);

    #[test]
    fn slots_are_bounded_and_a_returned_slot_goes_to_the_longest_waiting_worker() {
        let slots = WindowSlots::new(2);
        assert_eq!([slots.acquire(0, false), slots.acquire(1, false)], [Acquired::Slot; 2]);
        assert_eq!([slots.acquire(2, false), slots.acquire(3, false)], [WAITS; 2]);
        assert_eq!(slots.in_use(), 2);
        assert_eq!(slots.release(), Some(2));
        assert_eq!((slots.in_use(), slots.acquire(0, false)), (2, WAITS), "the returned slot is granted already");
        assert_eq!([slots.release(), slots.release()], [Some(3), Some(0)]);
        assert_eq!([slots.release(), slots.release()], [None, None]);
        assert_eq!((slots.in_use(), slots.acquire(5, false)), (0, Acquired::Slot));
    }

    #[test]
    fn a_worker_that_leaves_is_granted_no_slot_or_has_to_return_it() {
        let slots = WindowSlots::new(1);
        assert_eq!(slots.acquire(0, false), Acquired::Slot);
        assert_eq!([slots.acquire(1, false), slots.acquire(2, false), slots.acquire(3, false)], [WAITS; 3]);
        assert_eq!(slots.leave(1), Left::Unregistered);
        assert_eq!(slots.release(), Some(2));
        assert_eq!((slots.leave(2), slots.release()), (Left::Granted, Some(3)));
        assert_eq!((slots.release(), slots.in_use()), (None, 0));
        assert_eq!([slots.acquire(0, false), slots.acquire(1, false)], [Acquired::Slot, WAITS]);
        assert_eq!((slots.acquire(2, true), slots.release()), (WAITS, Some(2)), "worker 2 was there before");
    }

    #[test]
    fn no_slot_is_lost_or_used_twice_between_threads() {
        let slots = Arc::new(WindowSlots::new(3));
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..8).map(|_| crossbeam_channel::unbounded::<()>()).unzip();
        let held = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = receivers
            .into_iter()
            .enumerate()
            .map(|(worker, grants)| {
                let (slots, senders, held) = (Arc::clone(&slots), senders.clone(), Arc::clone(&held));
                let wake = move |granted: Option<usize>| granted.map(|worker| senders[worker].send(()).unwrap());
                std::thread::spawn(move || {
                    for round in 0..3_000 {
                        if let Acquired::Registered(other) = slots.acquire(worker, false) {
                            wake(other);
                            // Some workers give up now and then.
                            if round % 7 == worker && slots.leave(worker) == Left::Unregistered {
                                continue;
                            }
                            grants.recv_timeout(Duration::from_secs(30)).expect("a grant was lost");
                        }
                        assert!(held.fetch_add(1, Ordering::SeqCst) < 3);
                        held.fetch_sub(1, Ordering::SeqCst);
                        wake(slots.release());
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
