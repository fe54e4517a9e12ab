//! The slots of the window, as one worker takes and returns them.

use std::sync::Arc;

use crossbeam_channel::Sender;

use crate::ktransfer::job::WorkerMessage;
use crate::ktransfer::window_slots::{Acquired, Left};
use crate::ktransfer::worker_context::WorkerContext;

/// Whether a worker waits for a slot of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotRequest {
    /// It does not.
    None,
    /// It is registered, or the grant was sent and has not arrived.
    Waiting,
    /// It has a slot for its next first attempt.
    Granted,
}

/// The requests of one worker for slots.
pub(super) struct WorkerSlots {
    number: usize,
    context: Arc<WorkerContext>,
    /// The inboxes of all workers of the module, by number.
    workers: Arc<[Sender<WorkerMessage>]>,
    request: SlotRequest,
    /// Whether this worker has given up a slot, or its registration for one, because of a retry.
    has_left_queue: bool,
    /// Number of grants that were sent and have not arrived, and whose slot was returned already.
    void_grants: usize,
}

impl WorkerSlots {
    /// Creates the requests of worker number `number`, counted from 0.
    pub(super) fn new(number: usize, context: Arc<WorkerContext>, workers: Arc<[Sender<WorkerMessage>]>) -> Self {
        let request = SlotRequest::None;
        WorkerSlots { number, context, workers, request, has_left_queue: false, void_grants: 0 }
    }

    /// Whether the worker waits for a slot.
    pub(super) fn is_waiting(&self) -> bool {
        self.request == SlotRequest::Waiting
    }

    /// A grant has arrived.
    pub(super) fn granted(&mut self) {
        if self.void_grants > 0 {
            self.void_grants -= 1;
        } else {
            self.request = SlotRequest::Granted;
        }
    }

    /// Takes a slot for a first attempt; `false` if the worker has to wait for one.
    pub(super) fn acquire(&mut self) -> bool {
        match self.request {
            SlotRequest::Granted => self.request = SlotRequest::None,
            SlotRequest::Waiting => return false,
            SlotRequest::None => {
                let is_back = std::mem::take(&mut self.has_left_queue);
                if let Acquired::Registered(granted) = self.context.slots.acquire(self.number, is_back) {
                    self.wake(granted);
                    self.request = SlotRequest::Waiting;
                    return false;
                }
            }
        }
        true
    }

    /// Returns a slot that was granted and ends the wait for one. Must be called before this worker does anything that
    /// takes long, since the slot would be unused meanwhile. `has_fresh`: whether the worker has a job for the slot.
    pub(super) fn withdraw(&mut self, has_fresh: bool) {
        self.has_left_queue |= self.request != SlotRequest::None && has_fresh;
        let was_granted = match std::mem::replace(&mut self.request, SlotRequest::None) {
            SlotRequest::None => false,
            SlotRequest::Granted => true,
            SlotRequest::Waiting => {
                let left = self.context.slots.leave(self.number);
                self.void_grants += usize::from(left == Left::Granted);
                left == Left::Granted
            }
        };
        if was_granted {
            self.release();
        }
    }

    /// Returns the slot of a job.
    pub(super) fn release(&self) {
        self.wake(self.context.slots.release());
    }

    fn wake(&self, worker: Option<usize>) {
        if let Some(worker) = worker {
            // Fails only if that worker has ended, and then the module ends.
            let _ = self.workers[worker].send(WorkerMessage::SlotGranted);
        }
    }
}
