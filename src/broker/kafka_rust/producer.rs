//! Appends through the `kafka` crate.
//!
//! A few workers, each with a client of its own. A partition always belongs to the same worker, which keeps the order
//! of its messages also when its leader changes; a leader that does not answer delays the partitions of its worker
//! only. What has gathered for a partition goes in one call. A batch whose fate is not known is not sent again: who
//! posted it is told so and decides.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroI32;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select};
use kafka::client::{ProduceMessage, RequiredAcks};
use kafka::error::{Error, KafkaCode};

use super::guarded_client::{CallError, GuardedClient};
use crate::broker::metadata_gate::{
    FailedAppend, GateState, MetadataClient, MetadataGate, PendingAppend, ProducerEngine, SharedCompletion, not_stored,
};
use crate::broker::partitioner::{Spread, fnv1a, partition_of};
use crate::broker::topics::LookupAnswer;
use crate::broker::{
    Acks, AppendError, AppendFailure, AppendResult, Appended, BrokerConfig, Completion, Offset, PartitionId,
    PartitionerKind, Producer, ProducerConfig, Record, Stored,
};
use crate::locks::lock;
use crate::shutdown::Stop;
use crate::supervise::Supervisor;

const WORKERS: u32 = 4;
/// Messages in one call.
const MAX_IN_BATCH: usize = 400;
/// Bytes in one call, unless one message alone is larger.
const MAX_BATCH_BYTES: usize = 512 * 1024;
/// How long the broker may take to confirm a call.
const MAX_CONFIRMING: Duration = Duration::from_secs(10);
/// Pause before a partition is tried again.
const PAUSE: Duration = Duration::from_millis(100);
/// Names asked for by one client, which keeps each.
const NAMES_PER_CLIENT: u32 = 1_000;

/// The producer of this engine.
pub(in crate::broker) struct KafkaRustProducer<C: Completion> {
    gate: Arc<MetadataGate<C, Workers<C>>>,
    abort: Stop,
}

/// The way to the workers.
struct Workers<C> {
    partitioner: PartitionerKind,
    spread: Spread,
    /// Each holds what one worker has not taken yet; when full, an append is refused as `Full`.
    jobs: Vec<Sender<Job<C>>>,
    outstanding: Arc<Outstanding>,
}

/// Appends handed to workers and not completed.
#[derive(Default)]
struct Outstanding {
    count: Mutex<usize>,
    changed: Condvar,
}

struct Job<C> {
    record: Record,
    acks: Acks,
    partition: PartitionId,
    completion: SharedCompletion<C>,
    deadline: Instant,
    /// A leader had it when it lost its office: the next one may have it, too.
    may_be_stored: bool,
}

impl Outstanding {
    fn add(&self) {
        *lock(&self.count) += 1;
    }

    fn done(&self) {
        *lock(&self.count) -= 1;
        self.changed.notify_all();
    }

    /// Waits until there are none, or for `wait`.
    fn wait_for_none(&self, wait: Duration) {
        let count = lock(&self.count);
        drop(self.changed.wait_timeout_while(count, wait, |count| *count > 0));
    }
}

impl<C: Completion> KafkaRustProducer<C> {
    /// Makes the producer and starts its threads; no broker need be reachable.
    pub(in crate::broker) fn new(broker: &BrokerConfig, config: &ProducerConfig, supervisor: &Supervisor) -> Self {
        let (state, abort, outstanding) = (GateState::new(config), Stop::new(), Arc::<Outstanding>::default());
        let start_worker = |number| {
            let (sender, jobs) = bounded(config.max_in_flight.max(1));
            let worker = Worker {
                caller: GuardedClient::new(broker, "kafka-call", abort.clone()),
                state: Arc::clone(&state),
                outstanding: Arc::clone(&outstanding),
                abort: abort.clone(),
                jobs,
                groups: HashMap::new(),
                most_held: config.max_in_flight.max(1),
                held: 0,
                wait: broker.request_timeout,
            };
            // It ends when the producer is closed; until then it completes what was handed over.
            supervisor.spawn_task(format!("kafka-work-{number}"), move || worker.run());
            sender
        };
        let workers = Workers {
            partitioner: config.partitioner,
            spread: Spread::default(),
            jobs: (0..WORKERS).map(start_worker).collect(),
            outstanding,
        };
        let asking = Asking { caller: GuardedClient::new(broker, "kafka-ask-call", abort.clone()), names: 0 };
        let gate = MetadataGate::new(workers, state, config, asking, broker.request_timeout, supervisor);
        KafkaRustProducer { gate, abort }
    }
}

impl<C: Completion> Producer<C> for KafkaRustProducer<C> {
    fn append(&self, record: Record, acks: Acks, completion: C) {
        self.gate.append(record, acks, completion);
    }

    fn close(&self, grace: Duration) {
        self.gate.close();
        self.gate.engine.outstanding.wait_for_none(grace);
        // The workers complete what is left, without waiting for any answer.
        self.abort.trigger();
        self.gate.engine.outstanding.wait_for_none(Duration::from_secs(5));
    }

    fn reachable(&self) -> Result<(), String> {
        self.gate.reachable()
    }

    fn topic_lookups(&self) -> u64 {
        self.gate.topic_lookups()
    }
}

impl<C: Completion> Drop for KafkaRustProducer<C> {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

impl<C: Completion> ProducerEngine<C> for Workers<C> {
    const CHOOSES_PARTITIONS: bool = true;

    fn submit(&self, waiting: PendingAppend<C>, partition_count: i32) -> Result<(), FailedAppend<C>> {
        let PendingAppend { record, acks, completion, deadline, .. } = waiting;
        if !record.headers.is_empty() || record.timestamp_ms.is_some() {
            let reason = "record headers and timestamps need kafka_client: librdkafka".to_owned();
            return Err((completion, not_stored(AppendFailure::Unsupported, reason)));
        }
        let Some(count) = NonZeroI32::new(partition_count) else {
            let reason = format!("topic {} has no partitions", record.topic);
            return Err((completion, not_stored(AppendFailure::UnknownTopic, reason)));
        };
        let partition = record.partition.unwrap_or_else(|| match &record.key {
            Some(key) => partition_of(self.partitioner, key, count),
            None => self.spread.next(count),
        });
        let worker = fnv1a(record.topic.as_bytes()).wrapping_add(partition.cast_unsigned()) % WORKERS;
        let job = Job { record, acks, partition, completion, deadline, may_be_stored: false };
        self.outstanding.add();
        self.jobs[worker as usize].try_send(job).map_err(|refused| {
            self.outstanding.done();
            match refused {
                TrySendError::Full(job) => {
                    (job.completion, not_stored(AppendFailure::Full, "the producer's queue is full".to_owned()))
                }
                TrySendError::Disconnected(job) => {
                    (job.completion, not_stored(AppendFailure::Closed, "the producer has ended".to_owned()))
                }
            }
        })
    }
}

/// Messages of one partition at one level of acks, in order.
type Key = (Arc<str>, PartitionId, Acks);

struct Group<C> {
    jobs: VecDeque<Job<C>>,
    not_before: Instant,
    /// Leaders are looked up again before the next call.
    reload: bool,
    /// Since when the broker has been saying that the partition does not exist.
    unknown_since: Option<Instant>,
    /// After a batch was too large: messages go alone, so that only the one which is too large fails.
    one_by_one: usize,
}

struct Worker<C: Completion> {
    caller: GuardedClient,
    state: Arc<GateState<C>>,
    outstanding: Arc<Outstanding>,
    abort: Stop,
    jobs: Receiver<Job<C>>,
    groups: HashMap<Key, Group<C>>,
    /// Jobs in `groups` at most; the rest waits in the channel.
    most_held: usize,
    held: usize,
    wait: Duration,
}

impl<C: Completion> Worker<C> {
    fn run(mut self) {
        while !self.abort.is_triggered() {
            self.take_what_is_there();
            if self.held == 0 {
                select! {
                    recv(self.jobs) -> job => match job {
                        Ok(job) => self.hold(job),
                        Err(_) => return,
                    },
                    recv(self.abort.closed()) -> _ => break,
                }
                continue;
            }
            let now = Instant::now();
            let ready = self.groups.iter().filter(|(_, group)| group.not_before <= now);
            // Who has waited longest goes first.
            let next = ready.min_by_key(|(_, group)| group.jobs.front().map(|job| job.deadline));
            match next.map(|(key, _)| key.clone()) {
                Some(key) => self.serve(&key),
                None => {
                    let soonest = self.groups.values().map(|group| group.not_before).min().unwrap_or(now);
                    let _ = self.abort.sleep(soonest.saturating_duration_since(now));
                }
            }
        }
        self.complete_all_as_closed();
    }

    fn take_what_is_there(&mut self) {
        while self.held < self.most_held
            && let Ok(job) = self.jobs.try_recv()
        {
            self.hold(job);
        }
    }

    fn hold(&mut self, job: Job<C>) {
        let key = (Arc::clone(&job.record.topic), job.partition, job.acks);
        let group = self.groups.entry(key).or_insert_with(|| Group {
            jobs: VecDeque::new(),
            not_before: Instant::now(),
            reload: false,
            unknown_since: None,
            one_by_one: 0,
        });
        group.jobs.push_back(job);
        self.held += 1;
    }

    fn complete_all_as_closed(&mut self) {
        let groups = std::mem::take(&mut self.groups).into_values().flat_map(|group| group.jobs);
        let left: Vec<_> = groups.chain(self.jobs.try_iter()).collect();
        for job in left {
            let reason = "the producer was closed before the message was sent".to_owned();
            self.complete(job, Err(not_stored(AppendFailure::Closed, reason)));
        }
    }

    fn complete(&self, job: Job<C>, mut outcome: AppendResult) {
        if job.may_be_stored
            && let Err(error) = &mut outcome
        {
            error.stored = Stored::Unknown;
            if error.kind == AppendFailure::Unreachable {
                error.kind = AppendFailure::TimedOut;
            }
        }
        job.completion.complete(outcome);
        self.outstanding.done();
    }

    /// Sends the next batch of a partition.
    fn serve(&mut self, key: &Key) {
        let Some(mut group) = self.groups.remove(key) else { return };
        let now = Instant::now();
        while group.jobs.front().is_some_and(|job| job.deadline <= now) {
            if let Some(job) = group.jobs.pop_front() {
                self.held -= 1;
                let reason = format!("the leader of {}/{} could not be reached in time", key.0, key.1);
                self.complete(job, Err(not_stored(AppendFailure::Unreachable, reason)));
            }
        }
        let batch = next_batch(&mut group);
        if let Some(first) = batch.front() {
            self.held -= batch.len();
            let left = first.deadline.saturating_duration_since(now);
            self.send(key, &mut group, batch, left);
        }
        if !group.jobs.is_empty() {
            self.groups.insert(key.clone(), group);
        }
    }

    fn send(&mut self, key: &Key, group: &mut Group<C>, mut batch: VecDeque<Job<C>>, left: Duration) {
        let records: Vec<KeyAndValue> =
            batch.iter_mut().map(|job| (job.record.key.take(), std::mem::take(&mut job.record.value))).collect();
        let sending = Arc::<Sending>::default();
        let records = Arc::new(records);
        let call = produce(key, Arc::clone(&records), std::mem::take(&mut group.reload), left, Arc::clone(&sending));
        match self.caller.call(left.min(MAX_CONFIRMING + self.wait), call) {
            Ok(first_offset) => {
                group.unknown_since = None;
                for (place, job) in batch.into_iter().enumerate() {
                    let offset = first_offset.map(|first| first + place as Offset);
                    self.complete(job, Ok(Appended { partition: key.1, offset }));
                }
            }
            Err(CallError::Code(code)) => self.refused(key, group, Unsent { batch, records }, code),
            Err(CallError::Unreachable(_)) => self.again(group, Unsent { batch, records }),
            Err(error) if !sending.prevent() => {
                let kind = match self.abort.is_triggered() {
                    true => AppendFailure::Closed,
                    false => AppendFailure::TimedOut,
                };
                for job in batch {
                    let reason = format!("no acknowledgement for {}/{}: {}", key.0, key.1, error.in_words());
                    self.complete(job, Err(AppendError { kind, stored: Stored::Unknown, reason }));
                }
                group.not_before = Instant::now() + PAUSE;
            }
            Err(_) => self.again(group, Unsent { batch, records }),
        }
    }

    /// Puts a batch that was certainly not stored back to the gate.
    fn again(&mut self, group: &mut Group<C>, unsent: Unsent<C>) {
        let batch = unsent.jobs();
        self.held += batch.len();
        for job in batch.into_iter().rev() {
            group.jobs.push_front(job);
        }
        group.reload = true;
        group.not_before = Instant::now() + PAUSE;
    }

    fn refused(&mut self, key: &Key, group: &mut Group<C>, mut unsent: Unsent<C>, code: KafkaCode) {
        let (topic, partition, acks) = key;
        // Also said of what was appended and not yet replicated. Sent again it may be there twice, but nothing is lost.
        if code == KafkaCode::NotLeaderForPartition && *acks == Acks::All {
            unsent.batch.iter_mut().for_each(|job| job.may_be_stored = true);
        }
        let now = Instant::now();
        let (kind, stored, reason) = match code {
            KafkaCode::LeaderNotAvailable
            | KafkaCode::NotLeaderForPartition
            | KafkaCode::BrokerNotAvailable
            | KafkaCode::NotEnoughReplicas => return self.again(group, unsent),
            KafkaCode::UnknownTopicOrPartition => {
                // Also what the crate says of a partition without a leader.
                if now.duration_since(*group.unknown_since.get_or_insert(now)) < Duration::from_secs(2) {
                    return self.again(group, unsent);
                }
                (AppendFailure::UnknownTopic, Stored::No, format!("{topic}/{partition} does not exist"))
            }
            KafkaCode::MessageSizeTooLarge | KafkaCode::InvalidMessageSize | KafkaCode::RecordListTooLarge => {
                if unsent.batch.len() > 1 {
                    group.one_by_one = unsent.batch.len();
                    self.again(group, unsent);
                    group.not_before = now;
                    group.reload = false;
                    return;
                }
                let reason =
                    format!("larger than the broker (message.max.bytes) or topic {topic} (max.message.bytes) takes");
                (AppendFailure::TooLarge, Stored::No, reason)
            }
            code => {
                let (kind, stored) = failure(code);
                (kind, stored, format!("not confirmed for {topic}/{partition}: {code:?}"))
            }
        };
        let error = self.state.reconsider(topic, AppendError { kind, stored, reason });
        for job in unsent.batch {
            self.complete(job, Err(error.clone()));
        }
    }
}

/// Whether a batch is sent, between the call that does it and the worker that may have given that call up.
#[derive(Default)]
struct Sending(Mutex<Option<bool>>);

impl Sending {
    /// The call is about to send; false when it must not any more.
    fn begin(&self) -> bool {
        *lock(&self.0).get_or_insert(true)
    }

    /// From now on the call sends nothing; false when it has begun to.
    fn prevent(&self) -> bool {
        !*lock(&self.0).get_or_insert(false)
    }
}

/// What became of a batch for which a broker gave this code, where it is no use to try again.
fn failure(code: KafkaCode) -> (AppendFailure, Stored) {
    match code {
        KafkaCode::RequestTimedOut | KafkaCode::NotEnoughReplicasAfterAppend | KafkaCode::NetworkException => {
            (AppendFailure::TimedOut, Stored::Unknown)
        }
        KafkaCode::Unknown => (AppendFailure::Refused, Stored::Unknown),
        _ => (AppendFailure::Refused, Stored::No),
    }
}

type KeyAndValue = (Option<Vec<u8>>, Vec<u8>);

/// A batch and what the call had of it.
struct Unsent<C> {
    batch: VecDeque<Job<C>>,
    records: Arc<Vec<KeyAndValue>>,
}

impl<C> Unsent<C> {
    /// The jobs, whole again.
    fn jobs(self) -> VecDeque<Job<C>> {
        // The call has ended, unless it was abandoned; then they are copied.
        let records = Arc::try_unwrap(self.records).unwrap_or_else(|shared| (*shared).clone());
        let whole = |(mut job, (key, value)): (Job<C>, _)| {
            (job.record.key, job.record.value) = (key, value);
            job
        };
        self.batch.into_iter().zip(records).map(whole).collect()
    }
}

fn next_batch<C>(group: &mut Group<C>) -> VecDeque<Job<C>> {
    let most = if group.one_by_one > 0 { 1 } else { MAX_IN_BATCH };
    let mut bytes = 0;
    let mut batch = VecDeque::new();
    while batch.len() < most
        && let Some(job) = group.jobs.front()
    {
        bytes += job.record.value.len() + job.record.key.as_ref().map_or(0, Vec::len);
        if !batch.is_empty() && bytes > MAX_BATCH_BYTES {
            break;
        }
        batch.extend(group.jobs.pop_front());
    }
    group.one_by_one = group.one_by_one.saturating_sub(batch.len());
    batch
}

/// The call for one batch; gives the offset of its first message where there is one.
fn produce(
    key: &Key,
    records: Arc<Vec<KeyAndValue>>,
    reload: bool,
    left: Duration,
    sending: Arc<Sending>,
) -> impl FnOnce(&mut kafka::client::KafkaClient) -> kafka::Result<Option<Offset>> + Send + 'static {
    let (topic, partition, acks) = key.clone();
    move |client| {
        if reload || !client.topics().contains(&topic) {
            client.load_metadata(&[&*topic])?;
        }
        let required = match acks {
            Acks::None => RequiredAcks::None,
            Acks::Leader => RequiredAcks::One,
            Acks::All => RequiredAcks::All,
        };
        let messages = records.iter().map(|(key, value)| ProduceMessage {
            key: key.as_deref(),
            value: Some(value),
            topic: &topic,
            partition,
        });
        if !sending.begin() {
            // Nobody waits for this call any more, and the messages go another way.
            return Err(Error::NoHostReachable);
        }
        let confirms = client.produce_messages(required, left.min(MAX_CONFIRMING), messages)?;
        if acks == Acks::None {
            return Ok(None);
        }
        // An answer about anything else belongs to another question.
        let [confirm] = &confirms[..] else { return Err(Error::CodecError) };
        let [confirmed] = &confirm.partition_confirms[..] else { return Err(Error::CodecError) };
        if confirm.topic != *topic || confirmed.partition != partition {
            return Err(Error::CodecError);
        }
        confirmed.offset.map(Some).map_err(Error::Kafka)
    }
}

/// Asks for metadata on a client of its own.
struct Asking {
    caller: GuardedClient,
    names: u32,
}

impl MetadataClient for Asking {
    fn check_reachable(&mut self, wait: Duration) -> Result<(), String> {
        // The crate asks for all topics when it is given none; one that cannot exist keeps the answer small.
        let outcome = self.caller.call(wait, |client| client.load_metadata(&["."]));
        outcome.or_else(|error| match error {
            CallError::Code(_) => Ok(()),
            error => Err(error.in_words()),
        })
    }

    fn look_up(&mut self, topic: &str, wait: Duration) -> LookupAnswer {
        self.names += 1;
        if self.names > NAMES_PER_CLIENT {
            self.caller.abandon();
            self.names = 1;
        }
        let asked = topic.to_owned();
        let found = self.caller.call(wait, move |client| {
            client.load_metadata(&[&asked])?;
            Ok(client.topics().partitions(&asked).map_or(0, |found| found.len()))
        });
        match found {
            // Version 0 of the answer, as the crate reads it, cannot tell "being made" from "does not exist".
            Ok(0) => LookupAnswer::DoesNot,
            Ok(count) => LookupAnswer::Exists(count as i32),
            Err(CallError::Code(code)) => LookupAnswer::Refused(format!("{code:?}")),
            Err(error) => LookupAnswer::Unreachable(error.in_words()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_code_that_does_not_tell_is_not_taken_for_a_refusal() {
        for (code, kind, stored) in [
            (KafkaCode::RequestTimedOut, AppendFailure::TimedOut, Stored::Unknown),
            (KafkaCode::NotEnoughReplicasAfterAppend, AppendFailure::TimedOut, Stored::Unknown),
            (KafkaCode::NetworkException, AppendFailure::TimedOut, Stored::Unknown),
            // Also what the crate makes of every code above 35, that of a disk error among them.
            (KafkaCode::Unknown, AppendFailure::Refused, Stored::Unknown),
            (KafkaCode::TopicAuthorizationFailed, AppendFailure::Refused, Stored::No),
            (KafkaCode::CorruptMessage, AppendFailure::Refused, Stored::No),
        ] {
            assert_eq!(failure(code), (kind, stored), "{code:?}");
        }
    }

    /// The next request, or nothing when the client closes.
    fn request(client: &mut TcpStream) -> Option<Vec<u8>> {
        let mut length = [0; 4];
        client.read_exact(&mut length).ok()?;
        let mut request = vec![0; u32::from_be_bytes(length) as usize];
        client.read_exact(&mut request).ok()?;
        Some(request)
    }

    /// Answers a request for metadata: topic `t` has one partition, led by the broker at `port`.
    fn metadata(request: &[u8], port: u16) -> Vec<u8> {
        let mut answer = request[4..8].to_vec();
        let numbers = |answer: &mut Vec<u8>, numbers: &[i32]| {
            numbers.iter().for_each(|number| answer.extend(number.to_be_bytes()));
        };
        numbers(&mut answer, &[1, 0]);
        answer.extend(b"\0\x09127.0.0.1");
        numbers(&mut answer, &[i32::from(port), 1]);
        answer.extend(b"\0\0\0\x01t");
        numbers(&mut answer, &[1]);
        answer.extend(b"\0\0");
        numbers(&mut answer, &[0, 0, 1, 0, 1, 0]);
        [&(answer.len() as u32).to_be_bytes(), &answer[..]].concat()
    }

    #[test]
    fn a_call_that_was_given_up_before_it_sent_sends_nothing_later() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let port = listener.local_addr().expect("it is bound").port();
        let (go_on, late) = bounded::<()>(1);
        // Answers late; then tells which kind of request came next, if any.
        let broker = std::thread::spawn(move || {
            let (mut client, asked) = loop {
                let (mut client, _) = listener.accept().expect("a client comes");
                // The first connection only finds out whether there is a broker.
                if let Some(asked) = request(&mut client) {
                    break (client, asked);
                }
            };
            late.recv().expect("the test goes on");
            client.write_all(&metadata(&asked, port)).expect("the client is there");
            let mut next = request(&mut client);
            listener.set_nonblocking(true).expect("a listener can be");
            if next.is_none()
                && let Ok((mut client, _)) = listener.accept()
            {
                client.set_nonblocking(false).expect("a socket can be");
                next = request(&mut client);
            }
            next.map(|request| request[..2].to_vec())
        });
        let config = BrokerConfig {
            hosts: vec![format!("127.0.0.1:{port}")],
            engine: Default::default(),
            client_id: "t".into(),
            request_timeout: Duration::from_secs(5),
            settings: Default::default(),
        };
        let mut caller = GuardedClient::new(&config, "t", Stop::new());
        let (sending, records) = (Arc::<Sending>::default(), Arc::new(vec![(None, b"v".to_vec())]));
        let key = (Arc::from("t"), 0, Acks::Leader);
        let call = produce(&key, records, true, Duration::from_secs(5), Arc::clone(&sending));
        let outcome = caller.call(Duration::from_millis(200), call);
        assert!(matches!(outcome, Err(CallError::Unclear(_))), "{outcome:?}");
        assert!(sending.prevent(), "it waits for the metadata and has not begun to send");
        go_on.send(()).expect("the broker waits");
        assert_eq!(broker.join().expect("the broker does not panic"), None, "what is said not to be sent is not sent");
    }
}
