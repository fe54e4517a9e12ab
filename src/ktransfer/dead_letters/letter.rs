//! A dead letter in flight: from the worker that gave up the message to the result of the append.

use crossbeam_channel::Sender;
use log::Level;

use super::record::{DeadLetterCause, record};
use super::status::WaitingLetter;
use super::{MIN_LETTER_BYTES, ModuleLetters};
use crate::broker::{AppendFailure, AppendResult, Completion, Message, Record};
use crate::ktransfer::job::{LetterError, WorkerMessage, message_size_bytes};
use crate::ktransfer::memory_budget::BudgetShare;
use crate::ktransfer::metrics::ModuleMetrics;
use crate::log_limited;

/// The dead letter of a message, from the decision to give the message up until the letter is stored.
pub(crate) struct PendingLetter {
    letters: ModuleLetters,
    cause: DeadLetterCause,
    /// Number of attempts to store it that have failed.
    n_failures: u32,
    waiting: WaitingLetter,
}

/// A letter to be stored.
pub(crate) struct Letter {
    pub(in crate::ktransfer) record: Record,
    pub(in crate::ktransfer) completion: LetterCompletion,
}

/// Where the result of an attempt to store a letter goes.
pub(crate) struct LetterReply {
    /// The inbox of the worker.
    pub(crate) worker: Sender<WorkerMessage>,
    /// Identifies the letter for the worker.
    pub(crate) ticket: u64,
}

/// Receives the result of an append.
pub(crate) struct LetterCompletion {
    reply: LetterReply,
    metrics: ModuleMetrics,
    /// Returns to the module's budget when the letter has ended.
    _memory: BudgetShare,
}

impl PendingLetter {
    pub(super) fn new(letters: ModuleLetters, cause: DeadLetterCause) -> PendingLetter {
        let waiting = letters.status.wait();
        PendingLetter { letters, cause, n_failures: 0, waiting }
    }

    /// Sends the letter of `message` to be stored; never blocks. Returns false if the module's share is used up.
    pub(crate) fn send(&self, message: &Message, reply: LetterReply) -> bool {
        let ModuleLetters { letters, module, topic, budget, metrics, .. } = &self.letters;
        let size_bytes = message_size_bytes(message).max(MIN_LETTER_BYTES);
        if !budget.try_take(size_bytes, 0) {
            return false;
        }
        let completion = LetterCompletion { reply, metrics: metrics.clone(), _memory: budget.share(size_bytes) };
        let record = record(topic, module, message, &self.cause);
        // Never blocks, because the channel is unbounded. Fails only after the thread has ended.
        letters.send(Letter { record, completion }).is_ok()
    }

    /// Returns the name of the dead-letter topic.
    pub(crate) fn topic(&self) -> &str {
        &self.letters.topic
    }

    /// Notes that an attempt to store the letter has failed. Returns the number of failures.
    pub(crate) fn note_failed(&mut self, reason: &str) -> u32 {
        self.waiting.fail(&self.letters.topic, reason);
        self.n_failures = self.n_failures.saturating_add(1);
        self.n_failures
    }

    /// Counts and logs that the letter of `message` is stored.
    pub(crate) fn note_stored(&self, message: &Message) {
        self.letters.metrics.dead_lettered.inc();
        // Rate limited: the record of the message is the letter.
        log_limited!(
            Level::Warn,
            "module [{}]: stored a dead letter in {}: topic={}, partition={}, transid={}, datalen={}, {}",
            self.letters.module,
            self.letters.topic,
            message.from.topic,
            message.from.partition,
            message.offset,
            message.value.as_ref().map_or(0, Vec::len),
            self.cause
        );
    }
}

impl LetterCompletion {
    /// Completes the letter as not stored.
    pub(super) fn fail(self, reason: String) {
        self.metrics.letters_failed.inc();
        self.end(Err(LetterError::Failed(reason)));
    }

    fn end(self, result: Result<(), LetterError>) {
        let LetterReply { worker, ticket } = self.reply;
        // Fails only after the worker has ended; then the next owner of the partition repeats the message.
        let _ = worker.send(WorkerMessage::LetterEnded { ticket, result });
    }
}

impl Completion for LetterCompletion {
    fn complete(self, outcome: AppendResult) {
        match outcome {
            Ok(_) => {
                self.metrics.letters_stored.inc();
                self.end(Ok(()));
            }
            Err(error) if error.kind == AppendFailure::Full => self.end(Err(LetterError::Busy)),
            Err(error) => self.fail(error.reason),
        }
    }
}
