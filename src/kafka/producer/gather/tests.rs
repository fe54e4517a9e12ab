use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    id: u32,
    deadline: Instant,
}

impl Gathered for Message {
    fn cost_bytes(&self) -> usize {
        10
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }
}

fn limits(is_idempotent: bool) -> Limits {
    Limits { max_batch_bytes: 30, max_request_bytes: 50, retry_pause: PAUSE, is_idempotent }
}

/// A batch as a test sees it: partition, producer id, sequence number, ids.
type Sent = (PartitionIndex, i64, i32, Vec<u32>);

struct Rig {
    gather: Gather<u32, Message>,
    now: Instant,
    ended: Vec<(u32, Outcome)>,
}

impl Rig {
    fn new(is_idempotent: bool) -> Rig {
        Rig { gather: Gather::new(limits(is_idempotent)), now: Instant::now(), ended: Vec::new() }
    }

    fn append(&mut self, partition: PartitionIndex, ids: impl IntoIterator<Item = u32>) {
        for id in ids {
            self.gather.append(partition, Message { id, deadline: self.now + PATIENCE });
        }
    }

    fn take(&mut self, broker: BrokerId) -> Vec<Sent> {
        let mut sent = Vec::new();
        self.gather.take(broker, self.now, |batch| {
            let ids = batch.messages.iter().flatten().map(|message| message.id).collect();
            sent.push((batch.partition, batch.producer.producer_id, batch.producer.base_sequence, ids));
        });
        sent
    }

    fn answer(&mut self, partition: PartitionIndex, answer: Answer) {
        let ended = &mut self.ended;
        self.gather.answer(partition, answer, self.now, &mut |(message, outcome)| ended.push((message.id, outcome)));
    }

    fn expire(&mut self) {
        let ended = &mut self.ended;
        self.gather.expire(self.now, &mut |(message, outcome)| ended.push((message.id, outcome)));
    }

    fn ended(&mut self) -> Vec<(u32, Outcome)> {
        std::mem::take(&mut self.ended)
    }
}

#[test]
fn all_partitions_of_a_broker_share_a_request_with_one_batch_each() {
    let mut rig = Rig::new(false);
    let partitions: Vec<_> = (0..4).map(|name| rig.gather.partition(name)).collect();
    for (place, &partition) in partitions.iter().enumerate() {
        assert_eq!(rig.gather.set_leader(partition, Some(place as BrokerId % 2)), None);
    }
    assert_eq!(rig.gather.append(partitions[0], Message { id: 1, deadline: rig.now + PATIENCE }), Some(0));
    rig.append(partitions[0], [2, 3, 4]);
    rig.append(partitions[2], [20, 21]);
    rig.append(partitions[1], [10]);
    assert_eq!(rig.take(0), [(partitions[0], -1, -1, vec![1, 2, 3]), (partitions[2], -1, -1, vec![20, 21])]);
    assert_eq!(rig.take(0), [], "a partition with a batch in flight sends no other");
    assert_eq!(rig.take(1), [(partitions[1], -1, -1, vec![10])]);
    rig.answer(partitions[0], Answer::Stored(Some(100)));
    assert_eq!(rig.ended(), [1, 2, 3].map(|id| (id, Outcome::Appended(Some(99 + i64::from(id))))));
    assert_eq!(rig.take(0), [(partitions[0], -1, -1, vec![4])]);
    // A request is full with 50 bytes; who did not fit is first in the next one.
    for partition in [partitions[0], partitions[2]] {
        rig.answer(partition, Answer::Stored(None));
    }
    rig.append(partitions[2], [22, 23, 24]);
    rig.append(partitions[0], [5, 6, 7]);
    assert_eq!(rig.take(0), [(partitions[2], -1, -1, vec![22, 23, 24])]);
    assert_eq!(rig.take(0), [(partitions[0], -1, -1, vec![5, 6, 7])]);
}

#[test]
fn what_a_refusal_means_for_the_neighbours() {
    let mut rig = Rig::new(true);
    let partition = rig.gather.partition(0);
    rig.gather.set_leader(partition, Some(1));
    rig.append(partition, 1..=4);
    assert!(rig.gather.needs_producer());
    assert_eq!(rig.take(1), [], "no producer id yet");
    assert_eq!(rig.gather.set_producer(7, 0), [1]);
    assert_eq!(rig.take(1), [(partition, 7, 0, vec![1, 2, 3])]);
    rig.answer(partition, Answer::Refused(vec![1], 87));
    assert_eq!(rig.ended(), [(2, Outcome::Refused(87, Stored::No))]);
    assert_eq!(rig.take(1), [(partition, 7, 0, vec![1, 3, 4])], "the number was not used");
    rig.answer(partition, Answer::TooLarge(10));
    assert_eq!(rig.take(1), [(partition, 7, 0, vec![1, 3])]);
    rig.answer(partition, Answer::Stored(Some(0)));
    assert_eq!(rig.take(1), [(partition, 7, 2, vec![4])]);
    rig.answer(partition, Answer::TooLarge(10));
    assert_eq!(rig.ended().last(), Some(&(4, Outcome::Refused(10, Stored::No))));
    assert!(rig.gather.is_empty() && !rig.gather.needs_producer());
}

#[test]
fn what_may_be_stored_is_sent_again_unchanged_and_a_lost_number_costs_the_id() {
    let mut rig = Rig::new(true);
    let partition = rig.gather.partition(0);
    rig.gather.set_leader(partition, Some(1));
    rig.gather.set_producer(7, 0);
    rig.append(partition, [1, 2]);
    assert_eq!(rig.take(1), [(partition, 7, 0, vec![1, 2])]);
    rig.append(partition, [3]);
    rig.answer(partition, Answer::Unclear);
    assert_eq!(rig.take(1), [], "not before the pause is over");
    rig.now += PAUSE;
    rig.gather.set_leader(partition, Some(2));
    assert_eq!(rig.take(1), []);
    assert_eq!(rig.take(2), [(partition, 7, 0, vec![1, 2])]);
    rig.answer(partition, Answer::Unclear);
    rig.now += PATIENCE;
    rig.expire();
    let unknown = Outcome::TimedOut(Stored::Unknown);
    assert_eq!(rig.ended(), [(3, Outcome::TimedOut(Stored::No)), (1, unknown.clone()), (2, unknown)]);
    assert!(rig.gather.needs_producer(), "nobody knows which number the broker expects");
    rig.append(partition, [4]);
    assert_eq!(rig.take(2), []);
    assert_eq!(rig.gather.set_producer(8, 0), [2]);
    assert_eq!(rig.take(2), [(partition, 8, 0, vec![4])]);
    assert!(!rig.gather.needs_producer());
}

/// A log that recognises repeats as a broker does: by producer id and sequence number.
#[derive(Default)]
struct Log {
    ids: Vec<u32>,
    /// By producer id: number of the last batch, its size and offset.
    last: BTreeMap<i64, (i32, usize, usize)>,
}

impl Log {
    fn append(&mut self, producer: i64, sequence: i32, ids: &[u32]) -> Result<usize, Answer> {
        if producer >= 0 {
            match self.last.get(&producer) {
                Some(&(last, count, offset)) if (last, count) == (sequence, ids.len()) => return Ok(offset),
                Some(&(last, count, _)) if last + count as i32 != sequence => return Err(Answer::UnknownProducer),
                None if sequence != 0 => return Err(Answer::UnknownProducer),
                _ => {}
            }
            self.last.insert(producer, (sequence, ids.len(), self.ids.len()));
        }
        let offset = self.ids.len();
        self.ids.extend(ids);
        Ok(offset)
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Append(usize),
    Take(BrokerId),
    /// Answers the oldest request in flight: what the broker does, and whether the answer is lost.
    Broker(u8, bool),
    Leader(usize, Option<BrokerId>),
    Wait(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..3_usize).prop_map(Step::Append),
        6 => (0..2).prop_map(Step::Take),
        6 => (0..12_u8, prop::bool::weighted(0.2)).prop_map(|(what, lost)| Step::Broker(what, lost)),
        2 => (0..3_usize, prop::option::weighted(0.8, 0..2)).prop_map(|(partition, leader)| Step::Leader(partition, leader)),
        1 => (0..20_000_u16).prop_map(Step::Wait),
    ]
}

/// Plays a schedule of faults, then lets everything end well; checks what the outcomes promise.
fn play(is_idempotent: bool, steps: &[Step]) {
    let mut rig = Rig::new(is_idempotent);
    let partitions: Vec<PartitionIndex> = (0..3).map(|name| rig.gather.partition(name)).collect();
    let mut logs: Vec<Log> = (0..3).map(|_| Log::default()).collect();
    let mut appended: Vec<Vec<u32>> = vec![Vec::new(); 3];
    let mut in_flight: VecDeque<(usize, i64, i32, Vec<u32>)> = VecDeque::new();
    // What was encoded first is what is sent again, whatever has ended since.
    let mut encoded: Vec<Vec<u32>> = vec![Vec::new(); 3];
    let (mut next_id, mut next_producer) = (0, 0);
    let finish = (0..400).flat_map(|_| [Step::Take(0), Step::Broker(0, false), Step::Take(1), Step::Wait(200)]);
    let leaders = (0..3).map(|partition| Step::Leader(partition, Some(0)));
    for step in steps.iter().copied().chain(leaders).chain(finish) {
        if is_idempotent && rig.gather.needs_producer() {
            rig.gather.set_producer(next_producer, 0);
            next_producer += 1;
        }
        match step {
            Step::Append(partition) => {
                rig.append(partitions[partition], [next_id]);
                appended[partition].push(next_id);
                next_id += 1;
            }
            Step::Take(broker) => {
                let now = rig.now;
                rig.gather.take(broker, now, |batch| {
                    let place = batch.partition.0;
                    if !batch.is_repeat {
                        encoded[place] = batch.messages.iter().flatten().map(|message| message.id).collect();
                    }
                    let ProducerState { producer_id, base_sequence, .. } = batch.producer;
                    assert!(in_flight.iter().all(|sent| sent.0 != place), "one batch a partition");
                    in_flight.push_back((place, producer_id, base_sequence, encoded[place].clone()));
                });
            }
            Step::Broker(what, lost) => {
                let Some((place, producer, sequence, ids)) = in_flight.pop_front() else { continue };
                let answer = match what {
                    0..=5 => match logs[place].append(producer, sequence, &ids) {
                        Ok(offset) => Answer::Stored(Some(offset as i64)),
                        Err(answer) => answer,
                    },
                    6 => Answer::NotNow,
                    7 => Answer::Unclear,
                    8 => Answer::Refused(vec![ids.len() / 2], 87),
                    9 => Answer::Refused(Vec::new(), 29),
                    10 => Answer::TooLarge(10),
                    _ => Answer::UnknownProducer,
                };
                // Without idempotence no broker says that.
                let answer = if answer == Answer::UnknownProducer && !is_idempotent { Answer::NotNow } else { answer };
                rig.answer(partitions[place], if lost { Answer::Unclear } else { answer });
            }
            Step::Leader(partition, leader) => {
                rig.gather.set_leader(partitions[partition], leader);
            }
            Step::Wait(millis) => {
                rig.now += Duration::from_millis(millis.into());
                rig.expire();
            }
        }
    }
    assert!(rig.gather.is_empty(), "everything ends");
    let ended = rig.ended();
    assert_eq!(ended.len(), next_id as usize, "each message ends once");
    let outcomes: BTreeMap<u32, Outcome> = ended.into_iter().collect();
    assert_eq!(outcomes.len(), next_id as usize);
    for (place, log) in logs.iter().enumerate() {
        for id in &appended[place] {
            let stored = log.ids.iter().filter(|stored| *stored == id).count();
            match &outcomes[id] {
                Outcome::Appended(Some(offset)) => {
                    assert_eq!(log.ids[*offset as usize], *id, "it is where it was said to be")
                }
                Outcome::Appended(None) => panic!("the log gives offsets"),
                Outcome::Refused(_, Stored::No) | Outcome::TimedOut(Stored::No) => assert_eq!(stored, 0, "no is true"),
                Outcome::Refused(_, Stored::Unknown) | Outcome::TimedOut(Stored::Unknown) => {}
            }
            assert!(!is_idempotent || stored <= 1, "stored twice: {id} in {:?}", log.ids);
        }
        let mut first = Vec::new();
        log.ids.iter().for_each(|id| {
            if !first.contains(id) {
                first.push(*id)
            }
        });
        assert!(first.is_sorted(), "out of order: {:?}", log.ids);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn whatever_happens_outcomes_are_true_and_the_order_is_kept(
        is_idempotent: bool,
        steps in prop::collection::vec(step(), 0..120),
    ) {
        play(is_idempotent, &steps);
    }
}
