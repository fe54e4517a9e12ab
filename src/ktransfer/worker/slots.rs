//! The slots of the window: a worker requests one for each first attempt, and returns it when the job is done, abandoned
//! or waits for its dead letter.

use super::key_queues::QueueId;
use super::pending_job::PendingJob;
use super::{SlotRequest, Worker};
use crate::ktransfer::job::WorkerMessage;
use crate::ktransfer::window_slots::{Acquired, Left};

impl Worker {
    /// Takes a job for its first attempt, with a slot of the window.
    pub(super) fn take_fresh(&mut self) -> Option<(QueueId, PendingJob)> {
        if !self.queues.has_fresh() {
            return None;
        }
        match self.slot {
            SlotRequest::Granted => self.slot = SlotRequest::None,
            SlotRequest::Waiting => return None,
            SlotRequest::None => {
                let is_back = std::mem::take(&mut self.has_left_slot_queue);
                if let Acquired::Registered(granted) = self.context.slots.acquire(self.number, is_back) {
                    self.tell_granted(granted);
                    self.slot = SlotRequest::Waiting;
                    return None;
                }
            }
        }
        let (queue, mut pending) = self.queues.take_fresh()?;
        pending.has_slot = true;
        self.context.show_window();
        Some((queue, pending))
    }

    /// Returns a slot that was granted and ends the wait for one. Must be called before this worker does anything that
    /// takes long, since the slot would be unused meanwhile.
    pub(super) fn withdraw_slot_request(&mut self) {
        self.has_left_slot_queue |= self.slot != SlotRequest::None && self.queues.has_fresh();
        let was_granted = match std::mem::replace(&mut self.slot, SlotRequest::None) {
            SlotRequest::None => false,
            SlotRequest::Granted => true,
            SlotRequest::Waiting => {
                let left = self.context.slots.leave(self.number);
                self.void_grants += usize::from(left == Left::Granted);
                left == Left::Granted
            }
        };
        if was_granted {
            self.tell_granted(self.context.slots.release());
        }
    }

    pub(super) fn release_slot(&self, pending: &mut PendingJob) {
        if std::mem::take(&mut pending.has_slot) {
            self.tell_granted(self.context.slots.release());
        }
    }

    fn tell_granted(&self, worker: Option<usize>) {
        if let Some(worker) = worker {
            // Fails only if that worker has ended, and then the module ends.
            let _ = self.channels.workers[worker].send(WorkerMessage::SlotGranted);
        }
    }
}
