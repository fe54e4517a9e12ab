use super::log::{Log, cost_bytes};
use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const PARTITIONS: usize = 3;
const BROKERS: BrokerId = 2;

/// What happens to a batch in flight.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// The broker handles it and the client receives the response.
    Answered,
    /// The broker handles it and the response is lost. Also: the broker appends it and returns an error that leaves
    /// open whether the batch is stored, as NOT_ENOUGH_REPLICAS_AFTER_APPEND.
    ResponseLost,
    /// The client stops waiting; the broker may handle the request at any later time.
    TimedOut,
    /// No byte of the request was sent.
    NotWritten,
    /// The broker is not the leader.
    NotLeader,
    /// The broker rejects all records, by empty positions or by positions that are not in the batch.
    Rejected(bool),
    UnknownProducer,
    InvalidProducerEpoch,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Append(usize),
    /// The sender of this broker sends a request, if it was woken or the time has come.
    Take(BrokerId),
    /// The fate of one of the batches in flight.
    Broker(usize, Fate),
    /// The broker handles one of the requests that the client no longer waits for, or loses it.
    Late(usize, bool),
    Leader(usize, Option<BrokerId>),
    /// Batches that a leader change removes from the log.
    Truncate(usize, usize),
    ForgetProducers(usize),
    SetProducer,
    Wait(u16),
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        10 => Just(Fate::Answered),
        3 => Just(Fate::ResponseLost),
        3 => Just(Fate::TimedOut),
        1 => Just(Fate::NotWritten),
        1 => Just(Fate::NotLeader),
        1 => any::<bool>().prop_map(Fate::Rejected),
        1 => Just(Fate::UnknownProducer),
        1 => Just(Fate::InvalidProducerEpoch),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..PARTITIONS).prop_map(Step::Append),
        6 => (0..BROKERS).prop_map(Step::Take),
        8 => (0..8_usize, fate()).prop_map(|(which, fate)| Step::Broker(which, fate)),
        2 => (0..8_usize, any::<bool>()).prop_map(|(which, is_lost)| Step::Late(which, is_lost)),
        2 => (0..PARTITIONS, prop::option::weighted(0.8, 0..BROKERS))
            .prop_map(|(partition, leader)| Step::Leader(partition, leader)),
        1 => (0..PARTITIONS, 1..4_usize).prop_map(|(partition, count)| Step::Truncate(partition, count)),
        1 => (0..PARTITIONS).prop_map(Step::ForgetProducers),
        2 => Just(Step::SetProducer),
        3 => (0..500_u16).prop_map(Step::Wait),
        1 => (0..20_000_u16).prop_map(Step::Wait),
    ]
}

#[derive(Clone, Copy, Debug)]
struct Setup {
    is_idempotent: bool,
    is_old_broker: bool,
    /// `max.message.bytes` of the partitions.
    max_message_bytes: usize,
    /// First epoch of the producer ids: near `i16::MAX` the epochs are used up.
    first_epoch: i16,
    /// Whether the producer closes at the end, instead of sending everything.
    closes: bool,
}

fn setup() -> impl Strategy<Value = Setup> {
    let epoch = prop_oneof![Just(0), (i16::MAX - 2)..=i16::MAX];
    let max_message_bytes = prop_oneof![Just(1000), Just(60), Just(40), Just(25)];
    (any::<bool>(), any::<bool>(), max_message_bytes, epoch, prop::bool::weighted(0.3)).prop_map(
        |(is_idempotent, is_old_broker, max_message_bytes, first_epoch, closes)| Setup {
            is_idempotent,
            is_old_broker,
            max_message_bytes,
            first_epoch,
            closes,
        },
    )
}

/// A batch on its way to a broker.
struct Copy {
    sending: Sending,
    producer: ProducerState,
    ids: Vec<u32>,
}

impl Copy {
    fn position(&self) -> usize {
        self.sending.partition.0
    }
}

struct Play {
    setup: Setup,
    queue: TestQueue,
    logs: Vec<Log>,
    /// Ids of the messages in the order in which they were appended, by partition; all deadlines.
    appended: Vec<Vec<u32>>,
    deadlines: BTreeMap<u32, Instant>,
    outcomes: BTreeMap<u32, Outcome>,
    in_flight: Vec<Copy>,
    late: Vec<Copy>,
    completed: Vec<Sending>,
    /// Message ids that the caller encoded for the latest batch of each partition, which an unchanged retry repeats.
    encoded: Vec<(ProducerState, Vec<u32>)>,
    /// Partitions whose latest result leaves open whether the batch is stored.
    is_unclear: [bool; PARTITIONS],
    /// Partitions whose log was truncated below a confirmed message.
    has_lost: [bool; PARTITIONS],
    /// Partitions with batches of more than one producer id.
    has_other_id: [bool; PARTITIONS],
    awake: BTreeSet<BrokerId>,
    due: BTreeMap<BrokerId, Instant>,
    next_producer_id: i64,
}

impl Play {
    fn new(setup: Setup) -> Play {
        let mut queue = TestQueue::new(setup.is_idempotent);
        queue.accumulator.limits.max_batch_bytes = 60;
        queue.accumulator.limits.max_request_bytes = 100;
        for name in 0..PARTITIONS {
            queue.accumulator.partition(name as u32);
        }
        Play {
            setup,
            queue,
            logs: (0..PARTITIONS).map(|_| Log::new(setup.max_message_bytes, setup.is_old_broker)).collect(),
            appended: vec![Vec::new(); PARTITIONS],
            deadlines: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            in_flight: Vec::new(),
            late: Vec::new(),
            completed: Vec::new(),
            encoded: vec![(ProducerState::NONE, Vec::new()); PARTITIONS],
            is_unclear: [false; PARTITIONS],
            has_lost: [false; PARTITIONS],
            has_other_id: [false; PARTITIONS],
            awake: BTreeSet::new(),
            due: BTreeMap::new(),
            next_producer_id: 0,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Append(position) => {
                let id = self.deadlines.len() as u32;
                // The messages of a partition have the same time-out, those of other partitions another.
                let deadline = self.queue.now + DELIVERY_TIMEOUT / (1 + position as u32);
                let message = Message { id, deadline, cost_bytes: cost_bytes(id) };
                self.deadlines.insert(id, deadline);
                self.appended[position].push(id);
                self.awake.extend(self.queue.accumulator.append(PartitionIndex(position), message));
            }
            Step::Take(broker) => self.take(broker),
            Step::Broker(which, fate) if !self.in_flight.is_empty() => {
                let copy = self.in_flight.remove(which % self.in_flight.len());
                self.broker(copy, fate);
            }
            Step::Late(which, is_lost) if !self.late.is_empty() => {
                let copy = self.late.remove(which % self.late.len());
                if !is_lost {
                    let _ = self.logs[copy.position()].append(copy.producer, &copy.ids);
                }
            }
            Step::Broker(..) | Step::Late(..) => {}
            Step::Leader(position, leader) => {
                self.awake.extend(self.queue.accumulator.set_leader(PartitionIndex(position), leader));
            }
            Step::Truncate(position, count) => {
                let log = &mut self.logs[position];
                let min_end = if self.setup.is_idempotent { log.confirmed_end } else { 0 };
                log.truncate(count, min_end);
                self.has_lost[position] |= log.ids.len() < log.confirmed_end;
            }
            Step::ForgetProducers(position) => {
                // A broker keeps the state for a day, longer than any batch is under way.
                let mut under_way = self.in_flight.iter().chain(&self.late);
                if !self.is_unclear[position] && under_way.all(|copy| copy.position() != position) {
                    self.logs[position].forget_producers();
                }
            }
            Step::SetProducer => self.set_producer(),
            Step::Wait(millis) => {
                self.queue.now += Duration::from_millis(millis.into());
                if self.queue.accumulator.next_deadline().is_some_and(|deadline| deadline <= self.queue.now) {
                    self.queue.expire();
                }
                self.collect();
                let now = self.queue.now;
                let late = self.deadlines.iter().find(|(id, at)| **at <= now && !self.outcomes.contains_key(id));
                assert!(late.is_none(), "the deadline of a message passed: {late:?}");
            }
        }
        self.collect();
        self.check_wake_ups();
    }

    fn set_producer(&mut self) {
        if self.queue.accumulator.needs_producer() {
            self.awake.extend(self.queue.accumulator.set_producer(self.next_producer_id, self.setup.first_epoch));
            self.next_producer_id += 1;
        }
    }

    fn take(&mut self, broker: BrokerId) {
        let now = self.queue.now;
        let is_due = self.due.get(&broker).is_some_and(|due| *due <= now);
        if !self.awake.remove(&broker) && !is_due {
            return;
        }
        self.due.remove(&broker);
        let (in_flight, encoded) = (&mut self.in_flight, &mut self.encoded);
        let (is_unclear, has_other_id) = (&mut self.is_unclear, &mut self.has_other_id);
        let due = self.queue.accumulator.take(broker, now, usize::MAX, |batch| {
            let position = batch.sending.partition.0;
            if batch.is_unchanged_retry {
                assert_eq!(encoded[position].0, batch.producer, "a retry has the same sequence number");
                assert_eq!(encoded[position].1.len(), batch.messages.len());
            } else {
                let ids = batch.messages.iter().flatten().map(|message| message.id).collect();
                has_other_id[position] |= ![-1, batch.producer.producer_id].contains(&encoded[position].0.producer_id);
                encoded[position] = (batch.producer, ids);
                is_unclear[position] = false;
            }
            assert!(in_flight.iter().all(|copy| copy.position() != position), "two batches of a partition in flight");
            assert!(!batch.messages.iter().all(Option::is_none), "a batch without messages");
            let ids = encoded[position].1.clone();
            in_flight.push(Copy { sending: batch.sending, producer: batch.producer, ids });
        });
        match due {
            Some(due) if due <= now => {
                assert!(!self.in_flight.is_empty(), "a request without batches is never full");
                self.awake.insert(broker);
            }
            Some(due) => {
                self.due.insert(broker, due);
            }
            None => {}
        }
    }

    fn broker(&mut self, copy: Copy, fate: Fate) {
        let position = copy.position();
        // Late responses to earlier sendings have no effect.
        for late in self.completed.clone() {
            let result = BatchResult::Stored(Some(0));
            assert_eq!(
                self.queue.accumulator.complete(late, result, self.queue.now, &mut |_| panic!("ended twice")),
                None
            );
        }
        let log = &mut self.logs[position];
        let result = match fate {
            Fate::Answered => match log.append(copy.producer, &copy.ids) {
                Ok(offset) => {
                    log.confirmed_end = log.confirmed_end.max(offset + copy.ids.len());
                    BatchResult::Stored(Some(offset as i64))
                }
                Err(result) => result,
            },
            Fate::ResponseLost => {
                let _ = log.append(copy.producer, &copy.ids);
                BatchResult::MaybeStored
            }
            Fate::TimedOut => BatchResult::MaybeStored,
            Fate::NotWritten => BatchResult::NotStored,
            // At acks=-1 the code does not exclude that the batch is stored.
            Fate::NotLeader if self.setup.is_idempotent => BatchResult::MaybeStored,
            Fate::NotLeader => BatchResult::NotStored,
            Fate::Rejected(is_empty) => BatchResult::Rejected(if is_empty { vec![] } else { vec![copy.ids.len()] }, 29),
            Fate::UnknownProducer => BatchResult::UnknownProducer,
            Fate::InvalidProducerEpoch => BatchResult::InvalidProducerEpoch,
        };
        self.is_unclear[position] =
            result == BatchResult::MaybeStored || (self.is_unclear[position] && result == BatchResult::NotStored);
        self.completed.push(copy.sending);
        self.queue.sendings.insert(copy.sending.partition, copy.sending);
        let woken = self.queue.complete(copy.sending.partition, result);
        self.awake.extend(woken);
        if matches!(fate, Fate::TimedOut) {
            self.late.push(copy);
        }
    }

    fn collect(&mut self) {
        for (id, outcome) in self.queue.ended() {
            assert_eq!(self.outcomes.insert(id, outcome), None, "message {id} ends once");
        }
        let remaining = self.deadlines.len() - self.outcomes.len();
        assert_eq!(self.queue.accumulator.message_count(), remaining);
        assert_eq!(self.queue.accumulator.is_empty(), remaining == 0 && self.in_flight.is_empty());
    }

    /// Each partition that has a batch to send is sent one: its leader's sender is awake, or wakes at the latest at the
    /// end of the back-off, or a producer id will be requested.
    fn check_wake_ups(&self) {
        for (position, partition) in self.queue.accumulator.partitions.iter().enumerate() {
            let Some(leader) = partition.leader.filter(|_| partition.has_batch_to_send()) else { continue };
            if self.queue.accumulator.schedule.is_awaiting_producer(PartitionIndex(position)) {
                assert!(self.queue.accumulator.needs_producer(), "partition {position} waits for a producer id");
                continue;
            }
            let is_awake = self.awake.contains(&leader)
                || self.due.get(&leader).is_some_and(|due| *due <= partition.not_before.unwrap_or(self.queue.now));
            assert!(is_awake, "no sender sends the batch of partition {position}");
        }
    }

    /// Sends all messages without faults.
    fn finish(&mut self) {
        for position in 0..PARTITIONS {
            self.step(Step::Leader(position, Some(position as BrokerId % BROKERS)));
        }
        let (started, mut rounds) = (self.queue.now, 0);
        while !self.queue.accumulator.is_empty() {
            rounds += 1;
            assert!(rounds < 2000, "the retries end");
            self.set_producer();
            (0..BROKERS).for_each(|broker| self.step(Step::Take(broker)));
            if self.in_flight.is_empty() && self.awake.is_empty() {
                self.queue.now = *self.due.values().min().expect("messages wait and no sender has a time to wake");
                assert!(self.queue.now - started < 100 * BACKOFF, "the retries end");
            }
            while !self.in_flight.is_empty() {
                self.step(Step::Broker(0, Fate::Answered));
            }
        }
    }

    /// Ends all messages, and the requests in flight.
    fn close(&mut self) {
        let ended = &mut self.queue.ended;
        self.queue.accumulator.drain_all(&mut |(message, outcome)| ended.push((message.id, outcome)));
        while !self.in_flight.is_empty() {
            self.step(Step::Broker(0, Fate::TimedOut));
        }
        self.collect();
        assert!(self.queue.accumulator.is_empty());
        assert_eq!(self.queue.accumulator.next_deadline(), None);
    }

    fn check(&mut self) {
        // Every request that the client no longer waits for may still arrive.
        while !self.late.is_empty() {
            self.step(Step::Late(0, false));
        }
        assert_eq!(self.outcomes.len(), self.deadlines.len(), "each message ends");
        for position in 0..PARTITIONS {
            self.check_partition(position);
        }
    }

    fn check_partition(&self, position: usize) {
        let log = &self.logs[position];
        let is_confirmed = |id: &u32| matches!(self.outcomes[id], Outcome::Appended(_));
        for id in &self.appended[position] {
            let stored = log.ids.iter().filter(|stored| *stored == id).count();
            match &self.outcomes[id] {
                Outcome::Appended(Some(offset)) => assert!(
                    self.has_lost[position] || log.ids[*offset as usize] == *id,
                    "message {id} was confirmed at offset {offset}"
                ),
                Outcome::Appended(None) => panic!("the log returns offsets"),
                Outcome::Rejected(_, Stored::No) | Outcome::TimedOut(Stored::No) => {
                    assert!(!log.history.contains(id), "a message with Stored::No is in the log");
                }
                Outcome::Rejected(_, Stored::Unknown) | Outcome::TimedOut(Stored::Unknown) => {}
                Outcome::QueueFull | Outcome::Throttled(_) | Outcome::Closed(_) => panic!("no outcome of a queue"),
            }
            assert!(!self.setup.is_idempotent || stored <= 1, "stored twice: {id} in {:?}", log.ids);
        }
        let mut first_appends = Vec::new();
        for id in log.history.iter().filter(|id| is_confirmed(id)) {
            if !first_appends.contains(id) {
                first_appends.push(*id);
            }
        }
        assert!(first_appends.is_sorted(), "confirmed messages out of order: {:?}", log.history);
        // The broker rejects delayed copies of earlier epochs, as long as the id remains.
        let is_fenced = self.setup.is_idempotent && !self.has_other_id[position];
        assert!(!is_fenced || log.ids.is_sorted(), "a delayed copy is behind later messages: {:?}", log.ids);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn outcomes_agree_with_the_log_and_the_order_is_kept_under_random_faults(
        setup in setup(),
        steps in prop::collection::vec(step(), 0..150),
    ) {
        let mut play = Play::new(setup);
        for position in 0..PARTITIONS {
            play.step(Step::Leader(position, Some(0)));
        }
        steps.into_iter().for_each(|step| play.step(step));
        if setup.closes { play.close() } else { play.finish() }
        play.check();
    }
}
