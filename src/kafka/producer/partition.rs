//! The messages of one partition that have not ended: those that wait, and the one batch that was formed of them.

use std::collections::VecDeque;
use std::time::Instant;

use super::outcome::{BrokerId, EndedMessage, Gathered, Limits, Outcome, Stored};
use crate::kafka::record_batch::ProducerState;

#[derive(Debug)]
pub(super) struct Batch<M> {
    pub(super) messages: Vec<Option<M>>,
    pub(super) producer: ProducerState,
    pub(super) was_sent: bool,
    pub(super) may_be_stored: bool,
    /// Number of the sending in flight; `None` if the batch is not in flight.
    pub(super) in_flight: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Partition<M> {
    pub(super) leader: Option<BrokerId>,
    pub(super) waiting: VecDeque<M>,
    pub(super) batch: Option<Batch<M>>,
    /// End of the back-off after a failure; no batch of the partition is sent earlier.
    pub(super) not_before: Option<Instant>,
    /// Whether the partition is in the `listed` queue of its leader.
    pub(super) is_listed: bool,
    /// Producer id and epoch of the latest batch, and the sequence number of the next batch.
    pub(super) producer: ProducerState,
    /// Whether the sequence number that the broker expects is unknown: the next batch needs a newer producer id or
    /// epoch.
    pub(super) needs_new_producer: bool,
}

impl<M: Gathered> Partition<M> {
    /// Forms a batch of the waiting messages; returns false if no message waits or a new producer id is needed first.
    pub(super) fn form_batch(&mut self, limits: Limits, producer: Option<(i64, i16)>) -> bool {
        let Some((producer_id, epoch)) = producer else { return false };
        let is_current = (self.producer.producer_id, self.producer.epoch) == (producer_id, epoch);
        if limits.is_idempotent {
            if self.needs_new_producer && is_current {
                return false;
            }
            if !is_current {
                self.producer = ProducerState { producer_id, epoch, base_sequence: 0 };
                self.needs_new_producer = false;
            }
        }
        let (mut messages, mut bytes) = (Vec::new(), 0);
        while let Some(message) = self.waiting.front() {
            bytes += message.cost_bytes();
            if !messages.is_empty() && bytes > limits.max_batch_bytes {
                break;
            }
            messages.push(self.waiting.pop_front());
        }
        if messages.is_empty() {
            return false;
        }
        let producer = self.producer;
        self.batch = Some(Batch { messages, producer, was_sent: false, may_be_stored: false, in_flight: None });
        true
    }

    pub(super) fn advance_sequence(&mut self, batch: &Batch<M>) {
        if self.producer.base_sequence >= 0 {
            // After `i32::MAX` the sequence numbers continue at 0 (Kafka: DefaultRecordBatch.incrementSequence).
            let next = (i64::from(batch.producer.base_sequence) + batch.messages.len() as i64) & i64::from(i32::MAX);
            self.producer.base_sequence = next as i32;
        }
    }

    pub(super) fn retry(&mut self, batch: Batch<M>, not_before: Option<Instant>) {
        let may_be_stored = batch.may_be_stored;
        self.batch = Some(batch);
        self.not_before = not_before;
        if !may_be_stored {
            self.requeue();
        }
    }

    /// Dissolves a batch that is not stored and puts its messages back at the front of the queue.
    pub(super) fn requeue(&mut self) {
        let Some(batch) = self.batch.take_if(|batch| batch.in_flight.is_none() && !batch.may_be_stored) else { return };
        for message in batch.messages.into_iter().rev().flatten() {
            self.waiting.push_front(message);
        }
    }

    pub(super) fn reject(
        &mut self,
        batch: Batch<M>,
        records: &[usize],
        code: i16,
        end: &mut impl FnMut(EndedMessage<M>),
    ) {
        if batch.may_be_stored {
            // The rejection concerns the latest attempt; an earlier attempt may be stored.
            self.needs_new_producer = self.producer.base_sequence >= 0;
            for message in batch.messages.into_iter().flatten() {
                end((message, Outcome::Rejected(code, Stored::Unknown)));
            }
            return;
        }
        let mut rest = Vec::new();
        for (position, message) in batch.messages.into_iter().enumerate() {
            match message {
                Some(message) if records.is_empty() || records.contains(&position) => {
                    end((message, Outcome::Rejected(code, Stored::No)));
                }
                message => rest.push(message),
            }
        }
        self.batch = Some(Batch { messages: rest, ..unsent_batch(batch.producer) });
        self.requeue();
    }

    /// Halves a batch: the first half becomes the next batch, the second half the front of the queue.
    pub(super) fn split(&mut self, batch: Batch<M>, code: i16, end: &mut impl FnMut(EndedMessage<M>)) {
        if batch.may_be_stored {
            return self.reject(batch, &[], code, end);
        }
        // The halves are encoded again, without the messages that have ended since.
        let mut messages: Vec<_> = batch.messages.into_iter().filter(Option::is_some).collect();
        let second = messages.split_off(messages.len().div_ceil(2));
        for message in second.into_iter().rev().flatten() {
            self.waiting.push_front(message);
        }
        // The half stays a batch: `form_batch` would form the same large batch again.
        self.batch = Some(Batch { messages, ..unsent_batch(batch.producer) });
    }

    /// Handles [`BatchResult::UnknownProducer`]: messages that may be stored end, because a retry under a new producer
    /// id would not be recognised as a duplicate.
    pub(super) fn end_if_maybe_stored(&mut self, batch: Batch<M>, end: &mut impl FnMut(EndedMessage<M>)) {
        if batch.may_be_stored {
            const OUT_OF_ORDER_SEQUENCE_NUMBER: i16 = 45;
            for message in batch.messages.into_iter().flatten() {
                end((message, Outcome::Rejected(OUT_OF_ORDER_SEQUENCE_NUMBER, Stored::Unknown)));
            }
        } else {
            self.batch = Some(batch);
            self.requeue();
        }
    }

    /// Drops a batch whose messages have all ended. If the batch may be stored, the next sequence number is unknown.
    pub(super) fn drop_ended_batch(&mut self) {
        let has_ended = |batch: &mut Batch<M>| batch.in_flight.is_none() && batch.messages.iter().all(Option::is_none);
        if let Some(batch) = self.batch.take_if(has_ended)
            && batch.may_be_stored
        {
            self.needs_new_producer = self.producer.base_sequence >= 0;
        }
    }
}

/// Returns a batch without messages that was never sent.
fn unsent_batch<M>(producer: ProducerState) -> Batch<M> {
    Batch { messages: Vec::new(), producer, was_sent: false, may_be_stored: false, in_flight: None }
}
