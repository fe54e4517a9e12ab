//! The jobs of one worker that are not on the wire: a queue for each key, and one for each job without a key.
//!
//! At most one job of a queue is out of it, taken by the worker for an attempt; the others of its key wait behind it. A
//! queue whose first job waits for its next attempt holds up nothing but itself. The queues take turns, so a key with
//! many jobs does not delay the other keys of the worker by more than one attempt.
//!
//! This module uses neither channels nor the clock. Invariant: the jobs of a queue are taken in the order in which they
//! were added.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

/// A job as the queues see it.
pub(super) trait Queued {
    /// Whether the job needs no further slot of the window: it has one, or it is not to be pushed any more. Otherwise it
    /// is taken with [`KeyQueues::take_fresh`].
    fn has_slot(&self) -> bool;

    /// Called when the job is added behind another job of its key.
    fn note_behind(&mut self);
}

/// Identifies a queue: by the hash of its key, or by a number for a job without a key. Two keys with the same hash
/// share a queue, which only makes one wait for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum QueueId {
    Key(u64),
    Single(u64),
}

/// The queues of one worker.
#[derive(Debug)]
pub(super) struct KeyQueues<J> {
    queues: HashMap<QueueId, KeyQueue<J>>,
    /// The queues whose first job may be attempted now and has no slot of the window, in the order of their turns.
    fresh: VecDeque<QueueId>,
    /// The queues whose first job waits, by the end of the wait. The number makes equal times distinct.
    waiting: BTreeMap<(Instant, u64), QueueId>,
    last_number: u64,
}

#[derive(Debug)]
struct KeyQueue<J> {
    state: QueueState,
    /// Apart from `later`, so that a key with one job needs no allocation.
    first: Option<J>,
    later: VecDeque<J>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QueueState {
    /// In `fresh`.
    Fresh,
    /// The job before `first` is out for an attempt.
    Taken,
    /// In `waiting` under this key.
    Waiting(Instant, u64),
}

impl<J> KeyQueue<J> {
    fn pop(&mut self) -> Option<J> {
        let job = self.first.take();
        self.first = self.later.pop_front();
        job
    }

    fn push(&mut self, job: J) {
        if self.first.is_none() {
            self.first = Some(job);
        } else {
            self.later.push_back(job);
        }
    }

    /// Moves the jobs for which `is_ended` returns true to `removed`. Returns whether the first job is one of them.
    fn remove_where(&mut self, is_ended: &mut impl FnMut(&J, bool) -> bool, removed: &mut Vec<J>) -> bool {
        let (mut is_first, mut first_is_removed) = (true, false);
        let mut left = VecDeque::new();
        while let Some(job) = self.pop() {
            if is_ended(&job, is_first) {
                first_is_removed |= is_first;
                removed.push(job);
            } else {
                left.push_back(job);
            }
            is_first = false;
        }
        self.first = left.pop_front();
        self.later = left;
        first_is_removed
    }

    fn push_front(&mut self, job: J) {
        if let Some(second) = self.first.replace(job) {
            self.later.push_front(second);
        }
    }
}

impl<J: Queued> KeyQueues<J> {
    /// Creates queues without jobs.
    pub(super) fn new() -> KeyQueues<J> {
        KeyQueues { queues: HashMap::new(), fresh: VecDeque::new(), waiting: BTreeMap::new(), last_number: 0 }
    }

    /// Adds a job to the queue of its key; `None` gives it a queue of its own. Returns whether the job waits behind
    /// another job.
    pub(super) fn push(&mut self, key_hash: Option<u64>, mut job: J) -> bool {
        let id = match key_hash {
            Some(hash) => QueueId::Key(hash),
            None => QueueId::Single(self.new_number()),
        };
        if let Some(queue) = self.queues.get_mut(&id) {
            job.note_behind();
            queue.push(job);
            return true;
        }
        self.queues.insert(id, KeyQueue { state: QueueState::Fresh, first: Some(job), later: VecDeque::new() });
        self.fresh.push_back(id);
        false
    }

    /// Whether [`take_fresh`](Self::take_fresh) returns a job.
    pub(super) fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// Takes the first job of the next queue whose first job has no slot. [`park`](Self::park) or
    /// [`finish`](Self::finish) must follow.
    pub(super) fn take_fresh(&mut self) -> Option<(QueueId, J)> {
        let id = self.fresh.pop_front()?;
        self.take(id)
    }

    /// Takes a job that has a slot and whose wait is over by `now`, as [`take_fresh`](Self::take_fresh) does. A queue
    /// whose wait is over and whose first job has no slot becomes fresh.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(QueueId, J)> {
        loop {
            let (&(until, number), &id) = self.waiting.first_key_value()?;
            if now < until {
                return None;
            }
            self.waiting.remove(&(until, number));
            let queue = self.queues.get_mut(&id)?;
            if queue.first.as_ref().is_some_and(Queued::has_slot) {
                return self.take(id);
            }
            queue.state = QueueState::Fresh;
            self.fresh.push_back(id);
        }
    }

    /// Takes the job for which `is_wanted` returns true, as [`take_fresh`](Self::take_fresh) does, if it is the first of
    /// its queue and the job before it is not out.
    pub(super) fn take_where(&mut self, is_wanted: impl Fn(&J) -> bool) -> Option<(QueueId, J)> {
        let is_free = |queue: &KeyQueue<J>| queue.state != QueueState::Taken;
        let found =
            self.queues.iter().find(|(_, queue)| is_free(queue) && queue.first.as_ref().is_some_and(&is_wanted));
        let (id, state) = found.map(|(id, queue)| (*id, queue.state))?;
        match state {
            QueueState::Fresh => self.fresh.retain(|fresh| *fresh != id),
            QueueState::Waiting(until, number) => drop(self.waiting.remove(&(until, number))),
            QueueState::Taken => {}
        }
        self.take(id)
    }

    /// Returns the time at which the wait of a queue ends next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((until, _), _)| *until)
    }

    /// Ends the waits of all queues at `now`, if they would end later.
    pub(super) fn end_waits(&mut self, now: Instant) {
        let after_now = self.waiting.split_off(&(now, u64::MAX));
        for ((_, number), id) in after_now {
            if let Some(queue) = self.queues.get_mut(&id) {
                queue.state = QueueState::Waiting(now, number);
                self.waiting.insert((now, number), id);
            }
        }
    }

    /// Puts a taken job back to the front of its queue, which waits until `until`.
    pub(super) fn park(&mut self, id: QueueId, job: J, until: Instant) {
        let number = self.new_number();
        let Some(queue) = self.queues.get_mut(&id) else { return };
        queue.push_front(job);
        queue.state = QueueState::Waiting(until, number);
        self.waiting.insert((until, number), id);
    }

    /// Ends the turn of a queue whose taken job is done: its next job may be attempted. Returns whether it has one.
    pub(super) fn finish(&mut self, id: QueueId) -> bool {
        let Some(queue) = self.queues.get_mut(&id) else { return false };
        if queue.first.is_none() {
            self.queues.remove(&id);
            return false;
        }
        queue.state = QueueState::Fresh;
        self.fresh.push_back(id);
        true
    }

    /// Removes the jobs for which `is_ended` returns true, and returns them. It is called for the jobs of one queue in
    /// their order, with whether the job is the first of its queue.
    pub(super) fn remove_where(&mut self, mut is_ended: impl FnMut(&J, bool) -> bool) -> Vec<J> {
        let mut removed = Vec::new();
        let (fresh, waiting) = (&mut self.fresh, &mut self.waiting);
        self.queues.retain(|id, queue| {
            let first_is_gone = queue.remove_where(&mut is_ended, &mut removed);
            if queue.state == QueueState::Taken {
                return true;
            }
            if let QueueState::Waiting(until, number) = queue.state
                && first_is_gone
            {
                waiting.remove(&(until, number));
                queue.state = QueueState::Fresh;
                fresh.push_back(*id);
            }
            queue.first.is_some()
        });
        let queues = &self.queues;
        fresh.retain(|id| queues.contains_key(id));
        removed
    }

    /// Removes the jobs behind a taken job for which `is_ended` returns true, and returns them.
    pub(super) fn remove_behind(&mut self, id: QueueId, mut is_ended: impl FnMut(&J) -> bool) -> Vec<J> {
        let mut removed = Vec::new();
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.remove_where(&mut |job, _| is_ended(job), &mut removed);
        }
        removed
    }

    fn take(&mut self, id: QueueId) -> Option<(QueueId, J)> {
        let queue = self.queues.get_mut(&id)?;
        queue.state = QueueState::Taken;
        queue.pop().map(|job| (id, job))
    }

    fn new_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }
}

#[cfg(test)]
mod tests;
