//! Which records of one acks level go out next, and what becomes of them: values in, values out, no IO and no clock.
//!
//! Everything that has gathered for a broker goes out in one request, with at most one batch of each partition. **A partition has
//! at most one batch in flight**, at every acks level: so its order survives retries and changes of leader without further
//! means, a sequence number is never needed twice, and a refusal costs nobody else anything (the number is used again).
//!
//! A batch that may have been stored is sent again unchanged, with its sequence number, so that the broker recognises a repeat.
//! Where its fate can no longer be found out, its messages end as [`Stored::Unknown`], are never sent again, and the
//! partition goes on under a new producer id.
//!
//! Invariants: each message ends exactly once; [`Stored::No`] is said only of a message of which no byte was handed to a socket,
//! or whose batch a broker refused each time it was sent; with idempotence nothing is stored twice.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

use super::super::record_batch::ProducerState;

/// Number of a broker in its cluster.
pub type BrokerId = i32;

/// What a message is to the gathering.
pub trait Gathered {
    /// Bytes it adds to a batch, at most.
    fn cost_bytes(&self) -> usize;

    /// When it ends unconfirmed.
    fn deadline(&self) -> Instant;
}

/// Whether a message that was not confirmed may be in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It certainly is not.
    No,
    /// It may be.
    Unknown,
}

/// How a message ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The broker confirmed it; `None` where the broker gave no offset.
    Appended(Option<i64>),
    /// The broker refused it with this error code.
    Refused(i16, Stored),
    /// Its deadline passed.
    TimedOut(Stored),
}

/// What a broker's answer, or the lack of one, means for a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is stored, from this offset on; `None` where no offset is given (acks=0, or a repeat that was recognised).
    Stored(Option<i64>),
    /// It was not stored and may be sent again, after the pause: not the leader any more, and the like.
    NotNow,
    /// Nobody can tell: the connection ended, the request timed out, or the error code leaves it open. It is sent again.
    Unclear,
    /// It was not stored, because of these records (by their place in the batch; all of them where empty), with this error code.
    Refused(Vec<usize>, i16),
    /// It was not stored, being too large as a whole, with this error code.
    TooLarge(i16),
    /// The broker does not know the producer id, or misses a sequence number before it.
    UnknownProducer,
}

/// Bounds of what is gathered.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one batch; a single message may be larger.
    pub max_batch_bytes: usize,
    /// Bytes of one request; a single batch may be larger.
    pub max_request_bytes: usize,
    /// Pause before a batch is sent again.
    pub retry_pause: Duration,
    /// Whether batches carry a producer id and sequence numbers.
    pub is_idempotent: bool,
}

/// A message and how it ended.
pub type Ended<M> = (M, Outcome);

/// Names a partition to this gathering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PartitionIndex(usize);

/// A batch that has to be sent now.
#[derive(Debug)]
pub struct BatchToSend<'a, M> {
    /// Its partition; the answer is given under it.
    pub partition: PartitionIndex,
    /// Producer id, epoch and first sequence number.
    pub producer: ProducerState,
    /// Its messages; `None` is a message that has ended meanwhile in a batch that is sent again: it must be sent unchanged, so
    /// the caller keeps what it encoded the first time.
    pub messages: &'a [Option<M>],
    /// Whether it was sent before: then what was encoded then is sent again.
    pub is_repeat: bool,
}

#[derive(Debug)]
struct Batch<M> {
    messages: Vec<Option<M>>,
    producer: ProducerState,
    was_sent: bool,
    may_be_stored: bool,
    in_flight: bool,
}

#[derive(Debug)]
struct Partition<M> {
    leader: Option<BrokerId>,
    waiting: VecDeque<M>,
    batch: Option<Batch<M>>,
    /// Not sent before this instant, after a failure.
    not_before: Option<Instant>,
    /// In the list of its leader.
    is_listed: bool,
    /// Producer id and epoch of the last batch, and the number of the next one.
    producer: ProducerState,
    /// The id was lost track of: only a newer one will do.
    needs_new_producer: bool,
}

/// The messages of one acks level that are not confirmed.
#[derive(Debug)]
pub struct Gather<K, M> {
    limits: Limits,
    partitions: Vec<Partition<M>>,
    by_name: HashMap<K, PartitionIndex>,
    /// Partitions that may have something to send, each once, by leader.
    listed: HashMap<BrokerId, VecDeque<PartitionIndex>>,
    /// Id and epoch to be used from now on; `None` until the broker gave one out, without idempotence never asked for.
    producer: Option<(i64, i16)>,
}

impl<K: Eq + Hash, M: Gathered> Gather<K, M> {
    /// Nothing gathered.
    pub fn new(limits: Limits) -> Self {
        Gather {
            limits,
            partitions: Vec::new(),
            by_name: HashMap::new(),
            listed: HashMap::new(),
            producer: (!limits.is_idempotent).then_some((-1, -1)),
        }
    }

    /// The partition of this name, made when it is new.
    pub fn partition(&mut self, name: K) -> PartitionIndex {
        let next = PartitionIndex(self.partitions.len());
        let index = *self.by_name.entry(name).or_insert(next);
        if index == next {
            self.partitions.push(Partition {
                leader: None,
                waiting: VecDeque::new(),
                batch: None,
                not_before: None,
                is_listed: false,
                producer: ProducerState::NONE,
                needs_new_producer: false,
            });
        }
        index
    }

    /// From now on `leader` is sent what the partition has; returns the broker that has something to send now. A batch in
    /// flight at the former leader is waited for.
    pub fn set_leader(&mut self, index: PartitionIndex, leader: Option<BrokerId>) -> Option<BrokerId> {
        let partition = &mut self.partitions[index.0];
        if partition.leader == leader {
            return None;
        }
        // The former leader's list may still name it; `take` passes it over.
        partition.leader = leader;
        partition.is_listed = false;
        self.list(index)
    }

    /// Adds a message; returns the broker that has something to send now.
    pub fn append(&mut self, index: PartitionIndex, message: M) -> Option<BrokerId> {
        self.partitions[index.0].waiting.push_back(message);
        self.list(index)
    }

    /// Takes over a new producer id; returns the brokers that may have something to send now. A partition changes to it as soon as
    /// it has no batch under the former one.
    pub fn set_producer(&mut self, producer_id: i64, epoch: i16) -> Vec<BrokerId> {
        self.producer = Some((producer_id, epoch));
        for index in 0..self.partitions.len() {
            self.list(PartitionIndex(index));
        }
        self.listed.keys().copied().collect()
    }

    /// Whether a new producer id has to be asked for.
    pub fn needs_producer(&self) -> bool {
        self.producer.is_none()
            || self.partitions.iter().any(|partition| {
                partition.needs_new_producer
                    && Some((partition.producer.producer_id, partition.producer.epoch)) == self.producer
            })
    }

    fn list(&mut self, index: PartitionIndex) -> Option<BrokerId> {
        let partition = &mut self.partitions[index.0];
        let leader = partition.leader?;
        let in_flight = partition.batch.as_ref().is_some_and(|batch| batch.in_flight);
        if partition.is_listed || in_flight || (partition.batch.is_none() && partition.waiting.is_empty()) {
            return None;
        }
        partition.is_listed = true;
        self.listed.entry(leader).or_default().push_back(index);
        Some(leader)
    }

    /// Marks as in flight what `broker` is sent now in one request, gives each batch to `send`, and returns when something else
    /// will be due for it because a pause is over.
    pub fn take(&mut self, broker: BrokerId, now: Instant, mut send: impl FnMut(BatchToSend<M>)) -> Option<Instant> {
        let mut listed = self.listed.remove(&broker).unwrap_or_default();
        let (mut kept, mut next_due, mut request_bytes) = (VecDeque::new(), None::<Instant>, 0);
        while let Some(index) = listed.pop_front() {
            let partition = &mut self.partitions[index.0];
            // It went to another leader, or is listed there again.
            if partition.leader != Some(broker) || !partition.is_listed {
                continue;
            }
            if let Some(due) = partition.not_before.filter(|due| *due > now) {
                next_due = Some(next_due.map_or(due, |next| next.min(due)));
                kept.push_back(index);
                continue;
            }
            if partition.batch.is_none() && !partition.form_batch(self.limits, self.producer) {
                // Without a producer id it waits for one; without messages it is not listed any more.
                if partition.waiting.is_empty() {
                    partition.is_listed = false;
                } else {
                    kept.push_back(index);
                }
                continue;
            }
            let Some(batch) = &mut partition.batch else { continue };
            let bytes: usize = batch.messages.iter().flatten().map(Gathered::cost_bytes).sum();
            if request_bytes > 0 && request_bytes + bytes > self.limits.max_request_bytes {
                // First in the next request, so that nobody is passed over twice.
                kept.push_front(index);
                kept.extend(listed);
                break;
            }
            request_bytes += bytes;
            partition.is_listed = false;
            partition.not_before = None;
            let is_repeat = std::mem::replace(&mut batch.was_sent, true);
            batch.in_flight = true;
            send(BatchToSend { partition: index, producer: batch.producer, messages: &batch.messages, is_repeat });
        }
        if !kept.is_empty() {
            self.listed.insert(broker, kept);
        }
        next_due
    }

    /// Takes the answer to a batch in flight. Returns the broker that has something to send now or after the pause; the messages
    /// that have ended are given to `end`.
    pub fn answer(
        &mut self,
        index: PartitionIndex,
        answer: Answer,
        now: Instant,
        end: &mut impl FnMut(Ended<M>),
    ) -> Option<BrokerId> {
        let pause = now + self.limits.retry_pause;
        let partition = &mut self.partitions[index.0];
        let mut batch = partition.batch.take_if(|batch| batch.in_flight)?;
        batch.in_flight = false;
        match answer {
            Answer::Stored(base) => {
                partition.advance_sequence(&batch);
                for (place, message) in batch.messages.into_iter().enumerate() {
                    if let Some(message) = message {
                        end((message, Outcome::Appended(base.map(|base| base + place as i64))));
                    }
                }
            }
            Answer::NotNow => partition.send_again(batch, Some(pause)),
            Answer::Unclear => {
                batch.may_be_stored = true;
                partition.send_again(batch, Some(pause));
            }
            Answer::Refused(records, code) => partition.refuse(batch, &records, code, end),
            Answer::TooLarge(code) if batch.messages.len() == 1 => partition.refuse(batch, &[], code, end),
            Answer::TooLarge(code) => partition.split(batch, code, end),
            Answer::UnknownProducer => {
                partition.needs_new_producer = true;
                partition.unsure(batch, end);
            }
        }
        partition.give_up_on_nobody();
        self.list(index)
    }

    /// Ends what has waited until its deadline. Batches in flight stay until they are answered.
    pub fn expire(&mut self, now: Instant, end: &mut impl FnMut(Ended<M>)) {
        for partition in &mut self.partitions {
            // Deadlines of one level rise, since every message waits for the same time.
            while let Some(message) = partition.waiting.pop_front_if(|message| message.deadline() <= now) {
                end((message, Outcome::TimedOut(Stored::No)));
            }
            if let Some(batch) = &mut partition.batch {
                let stored = if batch.in_flight || batch.may_be_stored { Stored::Unknown } else { Stored::No };
                for slot in &mut batch.messages {
                    if let Some(message) = slot.take_if(|message| message.deadline() <= now) {
                        end((message, Outcome::TimedOut(stored)));
                    }
                }
                if stored == Stored::No {
                    // It was refused each time: it may change its form, and its number is free.
                    partition.unsend();
                }
            }
            partition.give_up_on_nobody();
        }
    }

    /// The earliest deadline of all messages.
    pub fn next_deadline(&self) -> Option<Instant> {
        let of = |partition: &Partition<M>| {
            let batch = partition.batch.as_ref().map(|batch| batch.messages.iter().flatten());
            let batch = batch.into_iter().flatten().map(Gathered::deadline).min();
            partition.waiting.front().map(Gathered::deadline).into_iter().chain(batch).min()
        };
        self.partitions.iter().filter_map(of).min()
    }

    /// Whether no message is left.
    pub fn is_empty(&self) -> bool {
        self.partitions.iter().all(|partition| partition.waiting.is_empty() && partition.batch.is_none())
    }
}

impl<M: Gathered> Partition<M> {
    /// Makes a batch of what waits; false where nothing waits or no producer id is to be had.
    fn form_batch(&mut self, limits: Limits, producer: Option<(i64, i16)>) -> bool {
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
        self.batch = Some(Batch { messages, producer, was_sent: false, may_be_stored: false, in_flight: false });
        true
    }

    fn advance_sequence(&mut self, batch: &Batch<M>) {
        if self.producer.base_sequence >= 0 {
            // Numbers go on at 0 after the largest (Kafka: DefaultRecordBatch.incrementSequence).
            let next = (i64::from(batch.producer.base_sequence) + batch.messages.len() as i64) & i64::from(i32::MAX);
            self.producer.base_sequence = next as i32;
        }
    }

    fn send_again(&mut self, batch: Batch<M>, not_before: Option<Instant>) {
        let may_be_stored = batch.may_be_stored;
        self.batch = Some(batch);
        self.not_before = not_before;
        if !may_be_stored {
            self.unsend();
        }
    }

    /// Puts the messages of a batch that is certainly not stored back in front, so that the next one may be formed anew.
    fn unsend(&mut self) {
        let Some(batch) = self.batch.take_if(|batch| !batch.in_flight && !batch.may_be_stored) else { return };
        for message in batch.messages.into_iter().rev().flatten() {
            self.waiting.push_front(message);
        }
    }

    fn refuse(&mut self, batch: Batch<M>, records: &[usize], code: i16, end: &mut impl FnMut(Ended<M>)) {
        if batch.may_be_stored {
            // An earlier attempt may have been taken: the refusal speaks of the last one only.
            self.needs_new_producer = self.producer.base_sequence >= 0;
            for message in batch.messages.into_iter().flatten() {
                end((message, Outcome::Refused(code, Stored::Unknown)));
            }
            return;
        }
        let mut rest = Vec::new();
        for (place, message) in batch.messages.into_iter().enumerate() {
            match message {
                Some(message) if records.is_empty() || records.contains(&place) => {
                    end((message, Outcome::Refused(code, Stored::No)));
                }
                message => rest.push(message),
            }
        }
        self.batch = Some(Batch { messages: rest, ..batch_of(batch.producer) });
        self.unsend();
    }

    /// Halves a batch: the first half is the next batch, the second waits behind it.
    fn split(&mut self, batch: Batch<M>, code: i16, end: &mut impl FnMut(Ended<M>)) {
        if batch.may_be_stored {
            return self.refuse(batch, &[], code, end);
        }
        // What has ended meanwhile is not encoded again, so it takes no place.
        let mut messages: Vec<_> = batch.messages.into_iter().filter(Option::is_some).collect();
        let second = messages.split_off(messages.len().div_ceil(2));
        for message in second.into_iter().rev().flatten() {
            self.waiting.push_front(message);
        }
        // Kept as a batch, else the next one would be as large again.
        self.batch = Some(Batch { messages, ..batch_of(batch.producer) });
    }

    /// The broker lost track of the producer: what may be stored is not sent again.
    fn unsure(&mut self, batch: Batch<M>, end: &mut impl FnMut(Ended<M>)) {
        if batch.may_be_stored {
            const OUT_OF_ORDER_SEQUENCE_NUMBER: i16 = 45;
            for message in batch.messages.into_iter().flatten() {
                end((message, Outcome::Refused(OUT_OF_ORDER_SEQUENCE_NUMBER, Stored::Unknown)));
            }
        } else {
            self.batch = Some(batch);
            self.unsend();
        }
    }

    /// Drops a batch that nobody waits for any more. Where it may be stored, its numbers may be used up.
    fn give_up_on_nobody(&mut self) {
        let is_over = |batch: &mut Batch<M>| !batch.in_flight && batch.messages.iter().all(Option::is_none);
        if let Some(batch) = self.batch.take_if(is_over)
            && batch.may_be_stored
        {
            self.needs_new_producer = self.producer.base_sequence >= 0;
        }
    }
}

/// A batch without messages that was never sent.
fn batch_of<M>(producer: ProducerState) -> Batch<M> {
    Batch { messages: Vec::new(), producer, was_sent: false, may_be_stored: false, in_flight: false }
}

#[cfg(test)]
mod tests;
