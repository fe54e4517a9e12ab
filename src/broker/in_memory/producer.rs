//! The producer of a [`MemoryBroker`](super::MemoryBroker).

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::state::{HeldCompletion, Release, SharedBroker};
use crate::broker::{Acks, AppendError, AppendFailure, Completion, PartitionerKind, Producer, Record, Stored};
use crate::locks::wait_timeout;

/// Appends to a [`MemoryBroker`](super::MemoryBroker). Completions run before `append` returns, unless they are held.
pub struct MemoryProducer<C> {
    pub(super) shared: Arc<SharedBroker>,
    pub(super) partitioner: PartitionerKind,
    pub(super) number: u64,
    pub(super) closed: AtomicBool,
    pub(super) completion: PhantomData<fn(C)>,
}

impl<C: Completion> Producer<C> for MemoryProducer<C> {
    fn append(&self, record: Record, acks: Acks, completion: C) {
        if self.closed.load(Ordering::Acquire) {
            let reason = "the producer is being closed".to_owned();
            return completion.complete(Err(AppendError { kind: AppendFailure::Closed, stored: Stored::No, reason }));
        }
        let mut state = self.shared.lock();
        let outcome = state.append(record, acks, self.partitioner, &self.shared.spread);
        if state.holds_completions {
            let finish = Box::new(|release| match release {
                Release::Confirmed => completion.complete(outcome),
                Release::Closed => {
                    let reason = "the producer was closed before the broker confirmed".to_owned();
                    let (kind, stored) = (AppendFailure::Closed, Stored::Unknown);
                    completion.complete(Err(AppendError { kind, stored, reason }));
                }
            });
            state.held.push(HeldCompletion { producer: self.number, finish });
            drop(state);
        } else {
            drop(state);
            completion.complete(outcome);
        }
        self.shared.changed.notify_all();
    }

    fn close(&self, grace: Duration) {
        self.closed.store(true, Ordering::Release);
        let deadline = Instant::now() + grace;
        let mut state = self.shared.lock();
        while state.held.iter().any(|held| held.producer == self.number) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = wait_timeout(&self.shared.changed, state, left);
        }
        let abandoned: Vec<_> = state.held.extract_if(.., |held| held.producer == self.number).collect();
        drop(state);
        for held in abandoned {
            (held.finish)(Release::Closed);
        }
    }

    fn reachable(&self) -> Result<(), String> {
        match self.shared.lock().unreachable {
            true => Err("no broker can be reached".to_owned()),
            false => Ok(()),
        }
    }

    fn topic_lookups(&self) -> u64 {
        0
    }
}
