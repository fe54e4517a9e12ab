//! The messages of one partition that have not ended: those that wait, and the one batch that is in flight or may be
//! stored.
//!
//! A batch that is not stored and not in flight is dissolved: its messages wait again, in front of the others and to be
//! sent without them, and the next batch has the same sequence number. A batch that may be stored is kept until it is
//! confirmed or all its messages have ended; then its sequence number is not used again, because the partition
//! continues with the next epoch of the producer id.

use std::collections::VecDeque;
use std::time::Instant;

use super::batch_size::BatchSize;
use super::outcome::{BrokerId, EndedMessage, Limits, Outcome, QueuedMessage, Stored};
use crate::kafka::error_code::{INVALID_PRODUCER_EPOCH, OUT_OF_ORDER_SEQUENCE_NUMBER, UNKNOWN_PRODUCER_ID};
use crate::kafka::record_batch::ProducerState;

/// Capacity above which the memory of an empty queue is freed.
const MAX_IDLE_CAPACITY: usize = 1024;

/// A batch that is in flight or may be stored.
#[derive(Debug)]
pub(super) struct Batch<M> {
    /// `None` is a message that has ended since the first sending.
    pub(super) messages: Vec<Option<M>>,
    /// Upper bound of the size of the batch, ended messages included: a retry sends the same bytes.
    pub(super) bytes: usize,
    pub(super) producer: ProducerState,
    /// Whether an earlier sending may have stored the batch.
    pub(super) may_be_stored: bool,
    /// Number of the sending in flight; `None` if the batch is not in flight.
    pub(super) in_flight: Option<u64>,
}

impl<M> Batch<M> {
    /// Returns whether the messages of this batch may be stored, if they end now.
    fn stored(&self) -> Stored {
        if self.in_flight.is_some() || self.may_be_stored { Stored::Unknown } else { Stored::No }
    }
}

#[derive(Debug)]
pub(super) struct Partition<M> {
    pub(super) leader: Option<BrokerId>,
    pub(super) waiting: VecDeque<M>,
    pub(super) batch: Option<Batch<M>>,
    /// Number of the first waiting messages that are sent without the others: those of a dissolved batch. A batch with
    /// newer messages could be refused because of one of them, again and again.
    sent_alone: usize,
    /// Producer id, epoch and sequence number of the next batch: [`ProducerState::NONE`] without idempotence and before
    /// the first batch.
    pub(super) producer: ProducerState,
    /// Whether no batch may have the id in `producer`: its epochs are used up, or the broker has a higher epoch.
    pub(super) needs_new_id: bool,
    size: BatchSize,
    /// Upper bound of the records of a batch, from the configuration of the topic.
    pub(super) max_records_bytes: usize,
    /// Failures since a broker accepted or rejected a batch, and the time of the latest.
    failure_count: u32,
    failed_at: Option<Instant>,
    /// End of the back-off after a failure; no batch of the partition is sent earlier.
    pub(super) not_before: Option<Instant>,
    /// Time of the partition's entry in the index of deadlines; not after the earliest deadline of its messages.
    pub(super) indexed_deadline: Option<Instant>,
}

impl<M: QueuedMessage> Partition<M> {
    pub(super) fn new() -> Self {
        Partition {
            leader: None,
            waiting: VecDeque::new(),
            batch: None,
            sent_alone: 0,
            producer: ProducerState::NONE,
            needs_new_id: false,
            size: BatchSize::UNLIMITED,
            max_records_bytes: usize::MAX,
            failure_count: 0,
            failed_at: None,
            not_before: None,
            indexed_deadline: None,
        }
    }

    /// Whether a batch could be sent, were it not for a back-off or a missing producer id.
    pub(super) fn has_batch_to_send(&self) -> bool {
        match &self.batch {
            Some(batch) => batch.in_flight.is_none(),
            None => !self.waiting.is_empty(),
        }
    }

    /// Chooses the producer id of the next batch: the one in use, else `current`, the latest that a broker assigned.
    /// Returns false if that id cannot be used, so that a new one is needed.
    pub(super) fn choose_producer(&mut self, current: Option<(i64, i16)>) -> bool {
        if self.producer.producer_id >= 0 && !self.needs_new_id {
            return true;
        }
        match current {
            Some((producer_id, epoch)) if !self.needs_new_id || producer_id != self.producer.producer_id => {
                self.producer = ProducerState { producer_id, epoch, base_sequence: 0 };
                self.needs_new_id = false;
                true
            }
            _ => false,
        }
    }

    /// Returns the number of waiting messages that the next batch takes, and their bytes: at most `max_bytes`, unless
    /// it is one message.
    pub(super) fn next_batch(&self, limits: &Limits, max_bytes: usize) -> (usize, usize) {
        let max_bytes = max_bytes.min(limits.max_batch_bytes).min(self.max_records_bytes).min(self.size.max_bytes());
        let (mut count, mut bytes) = (0, 0_usize);
        let max_count = if self.sent_alone > 0 { self.sent_alone } else { usize::MAX };
        for message in self.waiting.iter().take(max_count) {
            let with_message = bytes.saturating_add(cost_of(message));
            if count > 0 && with_message > max_bytes {
                break;
            }
            (count, bytes) = (count + 1, with_message);
        }
        (count, bytes)
    }

    /// Makes the first `count` waiting messages the batch; `messages` is an empty vector to reuse.
    pub(super) fn form_batch(&mut self, count: usize, bytes: usize, mut messages: Vec<Option<M>>) {
        messages.extend(self.waiting.drain(..count).map(Some));
        self.sent_alone = self.sent_alone.saturating_sub(count);
        if self.waiting.is_empty() && self.waiting.capacity() > MAX_IDLE_CAPACITY {
            self.waiting = VecDeque::new();
        }
        self.batch = Some(Batch { messages, bytes, producer: self.producer, may_be_stored: false, in_flight: None });
    }

    /// Ends the messages of a stored batch; `base` is the offset of the first. Returns the emptied vector.
    pub(super) fn confirm(
        &mut self,
        mut batch: Batch<M>,
        base: Option<i64>,
        end: &mut impl FnMut(EndedMessage<M>),
    ) -> Vec<Option<M>> {
        if self.producer.base_sequence >= 0 {
            // After `i32::MAX` the sequence numbers continue at 0 (Kafka: DefaultRecordBatch.incrementSequence).
            let next = (i64::from(self.producer.base_sequence) + batch.messages.len() as i64) & i64::from(i32::MAX);
            self.producer.base_sequence = next as i32;
        }
        self.size.record_stored(batch.bytes);
        self.reset_backoff();
        for (position, message) in batch.messages.drain(..).enumerate() {
            if let Some(message) = message {
                end((message, Outcome::Appended(base.map(|base| base.saturating_add(position as i64)))));
            }
        }
        batch.messages
    }

    /// Begins a back-off. Keeps a batch that may be stored, so that it is retried unchanged, unless all its messages
    /// have ended or its producer id was forgotten; dissolves another batch. Returns the emptied vector of a batch that
    /// is not kept.
    pub(super) fn retry(
        &mut self,
        batch: Batch<M>,
        limits: &Limits,
        now: Instant,
        end: &mut impl FnMut(EndedMessage<M>),
    ) -> Vec<Option<M>> {
        self.begin_backoff(limits, now);
        if !batch.may_be_stored {
            return self.dissolve(batch);
        }
        if batch.messages.iter().all(Option::is_none) {
            return self.abandon(batch);
        }
        if batch.producer.producer_id != self.producer.producer_id {
            return self.end_maybe_stored(batch, UNKNOWN_PRODUCER_ID, end);
        }
        self.batch = Some(batch);
        Vec::new()
    }

    /// Forgets the producer id. Ends the messages of a batch that may be stored; returns its emptied vector. A batch in
    /// flight stays until its result is known.
    pub(super) fn forget_producer(&mut self, end: &mut impl FnMut(EndedMessage<M>)) -> Vec<Option<M>> {
        (self.producer, self.needs_new_id) = (ProducerState::NONE, false);
        match self.batch.take_if(|batch| batch.in_flight.is_none()) {
            Some(batch) => self.end_maybe_stored(batch, UNKNOWN_PRODUCER_ID, end),
            None => Vec::new(),
        }
    }

    /// Puts the messages of a batch that is not stored back in front of those that wait. Returns the emptied vector.
    fn dissolve(&mut self, mut batch: Batch<M>) -> Vec<Option<M>> {
        for message in batch.messages.drain(..).rev().flatten() {
            self.waiting.push_front(message);
            self.sent_alone += 1;
        }
        batch.messages
    }

    /// Drops a batch without messages that may be stored: the sequence number that the broker expects is unknown, and a
    /// delayed copy of the batch may arrive. Under the next epoch, the first batch has the sequence number 0, and the
    /// broker then rejects copies of batches of earlier epochs. Brokers keep the epoch of a producer id by partition
    /// (Kafka: ProducerAppendInfo.checkProducerEpoch), so other partitions are not concerned. Returns the emptied
    /// vector.
    fn abandon(&mut self, mut batch: Batch<M>) -> Vec<Option<M>> {
        self.begin_epoch();
        batch.messages.clear();
        batch.messages
    }

    fn begin_epoch(&mut self) {
        if self.producer.base_sequence < 0 {
            return;
        }
        match self.producer.epoch.checked_add(1) {
            Some(epoch) => self.producer = ProducerState { epoch, base_sequence: 0, ..self.producer },
            None => self.needs_new_id = true,
        }
    }

    /// Ends the messages at `positions`; all messages if no position is in the batch, since a retry would be rejected
    /// again. Returns the emptied vector.
    pub(super) fn reject(
        &mut self,
        mut batch: Batch<M>,
        positions: &[usize],
        code: i16,
        end: &mut impl FnMut(EndedMessage<M>),
    ) -> Vec<Option<M>> {
        self.reset_backoff();
        if batch.may_be_stored {
            // The rejection concerns the latest sending; an earlier one may be stored.
            return self.end_maybe_stored(batch, code, end);
        }
        let mut has_position = false;
        for position in positions {
            if let Some(slot) = batch.messages.get_mut(*position) {
                has_position = true;
                if let Some(message) = slot.take() {
                    end((message, Outcome::Rejected(code, Stored::No)));
                }
            }
        }
        if !has_position {
            for message in batch.messages.drain(..).flatten() {
                end((message, Outcome::Rejected(code, Stored::No)));
            }
        }
        self.dissolve(batch)
    }

    fn end_maybe_stored(
        &mut self,
        mut batch: Batch<M>,
        code: i16,
        end: &mut impl FnMut(EndedMessage<M>),
    ) -> Vec<Option<M>> {
        for message in batch.messages.drain(..).flatten() {
            end((message, Outcome::Rejected(code, Stored::Unknown)));
        }
        self.abandon(batch)
    }

    /// Handles [`BatchResult::TooLarge`](super::outcome::BatchResult::TooLarge): the next batch is smaller; a message
    /// that was alone in its batch is rejected. Returns the emptied vector.
    pub(super) fn shrink(
        &mut self,
        batch: Batch<M>,
        code: i16,
        end: &mut impl FnMut(EndedMessage<M>),
    ) -> Vec<Option<M>> {
        if batch.may_be_stored || batch.messages.len() == 1 {
            return self.reject(batch, &[], code, end);
        }
        self.reset_backoff();
        let remaining = batch.messages.iter().flatten().count();
        let half_bytes = batch.messages.iter().flatten().take(remaining.div_ceil(2)).map(cost_of).sum();
        self.size.record_refused(batch.bytes, half_bytes);
        self.dissolve(batch)
    }

    /// Handles a sending that stored nothing because the broker does not accept the sequence number or the epoch
    /// (`is_fenced`). Messages that may be stored by an earlier sending end, because a retry under another epoch would
    /// not be recognised as a duplicate. Returns the emptied vector.
    pub(super) fn restart_sequence(
        &mut self,
        batch: Batch<M>,
        is_fenced: bool,
        limits: &Limits,
        now: Instant,
        end: &mut impl FnMut(EndedMessage<M>),
    ) -> Vec<Option<M>> {
        self.begin_backoff(limits, now);
        // A broker accepts the sequence number 0 in a new epoch. If it does not accept that either, the epoch is not
        // new to the broker, or the broker does not follow the rule: only another id can help.
        let needs_new_id = is_fenced || batch.producer.base_sequence == 0;
        let messages = if batch.may_be_stored {
            let code = if is_fenced { INVALID_PRODUCER_EPOCH } else { OUT_OF_ORDER_SEQUENCE_NUMBER };
            self.end_maybe_stored(batch, code, end)
        } else {
            self.begin_epoch();
            self.dissolve(batch)
        };
        self.needs_new_id |= needs_new_id;
        messages
    }

    /// Ends each message whose deadline is not after `now`, in order. Returns the emptied vector of a batch that
    /// contains no other message.
    pub(super) fn expire(&mut self, now: Instant, end: &mut impl FnMut(EndedMessage<M>)) -> Vec<Option<M>> {
        self.end_while(|message| message.deadline() <= now, end)
    }

    /// Ends each message that is in no batch and has a deadline before `limit`.
    pub(super) fn expire_waiting(&mut self, limit: Instant, end: &mut impl FnMut(EndedMessage<M>)) {
        while let Some(message) = self.waiting.pop_front_if(|message| message.deadline() < limit) {
            self.sent_alone = self.sent_alone.saturating_sub(1);
            end((message, Outcome::TimedOut(Stored::No)));
        }
    }

    /// Ends all messages, in order. Returns the emptied vector of a batch that is not in flight.
    pub(super) fn drain_all(&mut self, end: &mut impl FnMut(EndedMessage<M>)) -> Vec<Option<M>> {
        self.end_while(|_| true, end)
    }

    fn end_while(&mut self, is_ended: impl Fn(&M) -> bool, end: &mut impl FnMut(EndedMessage<M>)) -> Vec<Option<M>> {
        if let Some(batch) = &mut self.batch {
            let stored = batch.stored();
            for slot in batch.messages.iter_mut().filter(|slot| slot.is_some()) {
                let Some(message) = slot.take_if(|message| is_ended(message)) else { break };
                end((message, Outcome::TimedOut(stored)));
            }
        }
        while let Some(message) = self.waiting.pop_front_if(|message| is_ended(message)) {
            self.sent_alone = self.sent_alone.saturating_sub(1);
            end((message, Outcome::TimedOut(Stored::No)));
        }
        let has_ended = |batch: &mut Batch<M>| batch.in_flight.is_none() && batch.messages.iter().all(Option::is_none);
        match self.batch.take_if(has_ended) {
            Some(batch) => self.abandon(batch),
            None => Vec::new(),
        }
    }

    /// Returns the earliest deadline of the messages, `None` without messages.
    pub(super) fn earliest_deadline(&self) -> Option<Instant> {
        let batch = self.batch.as_ref().and_then(|batch| batch.messages.iter().flatten().next());
        batch.or(self.waiting.front()).map(QueuedMessage::deadline)
    }

    fn begin_backoff(&mut self, limits: &Limits, now: Instant) {
        let factor = 2_u32.saturating_pow(self.failure_count);
        self.failure_count = self.failure_count.saturating_add(1);
        self.failed_at = Some(now);
        self.not_before = Some(now + limits.retry_backoff.saturating_mul(factor).min(limits.max_retry_backoff));
    }

    fn reset_backoff(&mut self) {
        self.failure_count = 0;
        (self.failed_at, self.not_before) = (None, None);
    }

    /// Shortens a back-off to that of a first failure, because the partition has another leader. Not to nothing: the
    /// leader may change as often as a batch fails, if two brokers name each other.
    pub(super) fn shorten_backoff(&mut self, limits: &Limits) {
        self.failure_count = self.failure_count.min(1);
        if let (Some(failed_at), Some(due)) = (self.failed_at, self.not_before) {
            self.not_before = Some(due.min(failed_at + limits.retry_backoff));
        }
    }
}

/// Returns the size of a message for the limits. At least one byte, so that a smaller batch has fewer messages.
fn cost_of(message: &impl QueuedMessage) -> usize {
    message.cost_bytes().max(1)
}
