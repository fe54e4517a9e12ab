//! Stores the messages that a module gives up in its dead-letter topic.
//!
//! ```text
//!  push-…@M ───────letters───────▶ dead-letters ──append, acks=-1──▶ producer (its threads)
//!     ▲                                                                   │
//!     └──────────────────────── stored, or why not ───────────────────────┘
//! ```
//!
//! All modules share one thread and one producer, which is made with the first letter. Neither blocks a worker: a
//! letter that does not fit into the module's share is sent later. A worker retries a letter that could not be stored;
//! its message is done only when the letter is stored.
//!
//! `record` converts a message to a dead letter and back, `letter` is a letter in flight, `status` shows the letters
//! that wait.

mod letter;
mod record;
mod status;

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, select, unbounded};

use super::memory_budget::MemoryBudget;
use super::metrics::ModuleMetrics;
use crate::admin::Component;
use crate::broker::{Acks, Producer};
use crate::shutdown::Stop;

pub(super) use letter::{Letter, LetterCompletion, LetterReply, PendingLetter};
pub(super) use record::{DeadLetter, DeadLetterCause};
use status::LetterStatus;

/// Memory of the letters of one module that are being stored. A larger letter is sent when no other one is.
const MAX_BYTES: usize = 8 << 20;
/// Each letter counts with this many bytes at least, which bounds the number of letters of a module.
const MIN_LETTER_BYTES: usize = 64 << 10;
/// Largest number of letters of one module that are being stored.
pub(super) const MAX_LETTERS: usize = MAX_BYTES / MIN_LETTER_BYTES;

/// Creates the channel to the thread that stores letters. It needs no bound of its own: each module has at most
/// [`MAX_LETTERS`] letters in flight.
pub(super) fn channel() -> (Sender<Letter>, Receiver<Letter>) {
    unbounded()
}

/// The dead letters of one module. Clones share the bounds and the status.
#[derive(Clone)]
pub(super) struct ModuleLetters {
    letters: Sender<Letter>,
    module: Arc<str>,
    topic: Arc<str>,
    budget: MemoryBudget,
    metrics: ModuleMetrics,
    status: LetterStatus,
}

impl ModuleLetters {
    /// Creates the dead letters of `module`, which are stored in `topic`. `health` shows whether they can be stored.
    pub(super) fn new(
        letters: Sender<Letter>,
        module: Arc<str>,
        topic: Arc<str>,
        metrics: ModuleMetrics,
        health: Component,
    ) -> ModuleLetters {
        let status = LetterStatus::new(metrics.letters_waiting.clone(), health);
        ModuleLetters { letters, module, topic, budget: MemoryBudget::new(MAX_BYTES), metrics, status }
    }

    /// Begins the dead letter of a message that was given up for this cause.
    pub(super) fn begin(&self, cause: DeadLetterCause) -> PendingLetter {
        PendingLetter::new(self.clone(), cause)
    }
}

/// Stores letters until the stop, then closes the producer. `make` makes the producer, or returns why that is not
/// possible yet; it may wait for ZooKeeper.
pub(super) fn store_letters(
    letters: &Receiver<Letter>,
    stop: &Stop,
    make: impl Fn() -> Result<Arc<dyn Producer<LetterCompletion>>, String>,
) {
    let mut producer: Option<Arc<dyn Producer<LetterCompletion>>> = None;
    loop {
        let letter = select! {
            recv(stop.closed()) -> _ => break,
            recv(letters) -> letter => match letter {
                Ok(letter) => letter,
                // No module is left that could send one.
                Err(_) => { stop.wait(); break }
            },
        };
        let made = match &producer {
            Some(producer) => Ok(Arc::clone(producer)),
            None => make(),
        };
        match made {
            Ok(made) => {
                made.append(letter.record, Acks::All, letter.completion);
                producer = Some(made);
            }
            Err(reason) => letter.completion.fail(reason),
        }
    }
    // Every worker has ended: a letter that is still in flight marks no message done.
    if let Some(producer) = producer {
        producer.close(Duration::ZERO);
    }
}

#[cfg(test)]
mod tests;
