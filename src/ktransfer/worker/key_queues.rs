//! The jobs of one worker that are not on the wire: a queue for each key, and one for each job without a key.
//!
//! At most one job of a queue is out of it, taken by the worker for an attempt; the others of its key wait behind it. A
//! queue whose first job waits for its next attempt holds up nothing but itself. The queues take turns, so a key with
//! many jobs does not delay the other keys of the worker by more than one attempt. Queues whose first job needs no push
//! are apart from the others, so that they go on while nothing can be pushed.
//!
//! This module uses neither channels nor the clock. Invariant: the jobs of a queue are taken in the order in which they
//! were added.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

/// The requirement of the next step of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// A push, and before it a slot of the window: the job is taken with [`KeyQueues::take_fresh`].
    Slot,
    /// A push; the job has its slot.
    Push,
    /// No push: the job is taken with [`KeyQueues::take_unpushed`].
    NoPush,
}

/// A job as the queues see it.
pub(super) trait Queued {
    /// Returns what the next step of the job needs. It changes only while the job is taken.
    fn need(&self) -> Need;

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
    turns: AllTurns,
    last_number: u64,
}

/// The order in which the queues have their turns.
#[derive(Debug, Default)]
struct AllTurns {
    /// Of the queues whose first job needs a push.
    pushed: Turns,
    /// Of the queues whose first job needs none.
    unpushed: Turns,
}

impl AllTurns {
    fn of(&mut self, need: Need) -> &mut Turns {
        match need {
            Need::Slot | Need::Push => &mut self.pushed,
            Need::NoPush => &mut self.unpushed,
        }
    }
}

/// The order in which queues of one kind have their turns.
#[derive(Debug, Default)]
struct Turns {
    /// The queues whose first job does not wait. A job that needs a push has no slot of the window yet.
    fresh: VecDeque<QueueId>,
    /// The queues whose first job waits, by the end of the wait. The number makes equal times distinct.
    waiting: BTreeMap<(Instant, u64), QueueId>,
}

impl Turns {
    fn next_due(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((until, _), _)| *until)
    }

    /// Takes the queue whose wait ended first, if it ended by `now`.
    fn take_due(&mut self, now: Instant) -> Option<QueueId> {
        let first = self.waiting.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    /// Removes a queue in this state.
    fn remove(&mut self, id: QueueId, state: QueueState) {
        match state {
            QueueState::Fresh => self.fresh.retain(|fresh| *fresh != id),
            QueueState::Waiting(until, number) => drop(self.waiting.remove(&(until, number))),
            QueueState::Taken => {}
        }
    }
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

impl<J: Queued> KeyQueue<J> {
    /// Returns what the first job needs; `None` if there is none.
    fn need(&self) -> Option<Need> {
        self.first.as_ref().map(Queued::need)
    }
}

impl<J: Queued> KeyQueues<J> {
    /// Creates queues without jobs.
    pub(super) fn new() -> KeyQueues<J> {
        KeyQueues { queues: HashMap::new(), turns: AllTurns::default(), last_number: 0 }
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
        self.turns.of(job.need()).fresh.push_back(id);
        self.queues.insert(id, KeyQueue { state: QueueState::Fresh, first: Some(job), later: VecDeque::new() });
        false
    }

    /// Whether [`take_fresh`](Self::take_fresh) returns a job.
    pub(super) fn has_fresh(&self) -> bool {
        !self.turns.pushed.fresh.is_empty()
    }

    /// Takes the first job of the next queue whose first job needs a push and has no slot. [`park`](Self::park) or
    /// [`finish`](Self::finish) must follow.
    pub(super) fn take_fresh(&mut self) -> Option<(QueueId, J)> {
        let id = self.turns.pushed.fresh.pop_front()?;
        self.take(id)
    }

    /// Takes a job that has a slot and whose wait is over by `now`, as [`take_fresh`](Self::take_fresh) does. A queue
    /// whose wait is over and whose first job has no slot becomes fresh.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(QueueId, J)> {
        while let Some(id) = self.turns.pushed.take_due(now) {
            let queue = self.queues.get_mut(&id)?;
            if queue.need() == Some(Need::Push) {
                return self.take(id);
            }
            queue.state = QueueState::Fresh;
            self.turns.pushed.fresh.push_back(id);
        }
        None
    }

    /// Takes a job that needs no push and does not wait, as [`take_fresh`](Self::take_fresh) does.
    pub(super) fn take_unpushed(&mut self, now: Instant) -> Option<(QueueId, J)> {
        let id = self.turns.unpushed.fresh.pop_front().or_else(|| self.turns.unpushed.take_due(now))?;
        self.take(id)
    }

    /// Whether a job that needs no push does not wait.
    #[cfg(test)]
    pub(super) fn has_fresh_unpushed(&self) -> bool {
        !self.turns.unpushed.fresh.is_empty()
    }

    /// Whether there is a job that needs no push.
    pub(super) fn has_unpushed(&self) -> bool {
        !(self.turns.unpushed.fresh.is_empty() && self.turns.unpushed.waiting.is_empty())
    }

    /// Returns from when [`take_unpushed`](Self::take_unpushed) returns a job; `None` if there is none.
    pub(super) fn next_unpushed(&self, now: Instant) -> Option<Instant> {
        if self.turns.unpushed.fresh.is_empty() { self.turns.unpushed.next_due() } else { Some(now) }
    }

    /// Takes the job for which `is_wanted` returns true, as [`take_fresh`](Self::take_fresh) does, if it is the first
    /// of its queue and the job before it is not out.
    pub(super) fn take_where(&mut self, is_wanted: impl Fn(&J) -> bool) -> Option<(QueueId, J)> {
        let is_free = |queue: &KeyQueue<J>| queue.state != QueueState::Taken;
        let found =
            self.queues.iter().find(|(_, queue)| is_free(queue) && queue.first.as_ref().is_some_and(&is_wanted));
        let (id, state, need) = found.and_then(|(id, queue)| Some((*id, queue.state, queue.need()?)))?;
        self.turns.of(need).remove(id, state);
        self.take(id)
    }

    /// Returns the time at which the wait of a queue ends next whose first job needs a push.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.turns.pushed.next_due()
    }

    /// Ends the waits of all queues at `now`, if they would end later.
    pub(super) fn end_waits(&mut self, now: Instant) {
        for turns in [&mut self.turns.pushed, &mut self.turns.unpushed] {
            for ((_, number), id) in turns.waiting.split_off(&(now, u64::MAX)) {
                if let Some(queue) = self.queues.get_mut(&id) {
                    queue.state = QueueState::Waiting(now, number);
                    turns.waiting.insert((now, number), id);
                }
            }
        }
    }

    /// Puts a taken job back to the front of its queue, which waits until `until`.
    pub(super) fn park(&mut self, id: QueueId, job: J, until: Instant) {
        let (number, need) = (self.new_number(), job.need());
        let Some(queue) = self.queues.get_mut(&id) else { return };
        queue.push_front(job);
        queue.state = QueueState::Waiting(until, number);
        self.turns.of(need).waiting.insert((until, number), id);
    }

    /// Ends the turn of a queue whose taken job is done: its next job may be attempted. Returns whether it has one.
    pub(super) fn finish(&mut self, id: QueueId) -> bool {
        let Some(queue) = self.queues.get_mut(&id) else { return false };
        let Some(need) = queue.need() else {
            self.queues.remove(&id);
            return false;
        };
        queue.state = QueueState::Fresh;
        self.turns.of(need).fresh.push_back(id);
        true
    }

    /// Removes the jobs for which `is_ended` returns true, and returns them. It is called for the jobs of one queue in
    /// their order, with whether the job is the first of its queue.
    pub(super) fn remove_where(&mut self, mut is_ended: impl FnMut(&J, bool) -> bool) -> Vec<J> {
        let mut removed = Vec::new();
        let turns = &mut self.turns;
        self.queues.retain(|id, queue| {
            let (before, state) = (queue.need(), queue.state);
            let first_is_gone = queue.remove_where(&mut is_ended, &mut removed);
            if state == QueueState::Taken {
                return true;
            }
            let (Some(before), true) = (before, first_is_gone) else { return queue.first.is_some() };
            if let QueueState::Waiting(until, number) = state {
                turns.of(before).waiting.remove(&(until, number));
                queue.state = QueueState::Fresh;
            }
            let Some(need) = queue.need() else { return false };
            let is_in_its_place = state == QueueState::Fresh && (before == Need::NoPush) == (need == Need::NoPush);
            if !is_in_its_place {
                turns.of(need).fresh.push_back(*id);
            }
            true
        });
        let has_need = |id: &QueueId, needs: fn(Need) -> bool| {
            self.queues.get(id).and_then(|queue| queue.need()).is_some_and(needs)
        };
        turns.pushed.fresh.retain(|id| has_need(id, |need| need != Need::NoPush));
        turns.unpushed.fresh.retain(|id| has_need(id, |need| need == Need::NoPush));
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
