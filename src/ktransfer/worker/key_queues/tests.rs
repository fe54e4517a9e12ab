//! Tests of the queues by key: single cases, and random steps against a model.

use super::*;
use proptest::prelude::*;
use std::time::Duration;

/// A job with a number that rises within its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TestJob {
    key: Option<u64>,
    number: u32,
    need: Need,
}

impl Queued for TestJob {
    fn need(&self) -> Need {
        self.need
    }

    fn note_behind(&mut self) {}
}

fn job(key: impl Into<Option<u64>>, number: u32) -> TestJob {
    TestJob { key: key.into(), number, need: Need::Slot }
}

fn is_empty(queues: &KeyQueues<TestJob>) -> bool {
    let are_empty = |turns: &Turns| turns.fresh.is_empty() && turns.waiting.is_empty();
    queues.queues.is_empty() && are_empty(&queues.turns.pushed) && are_empty(&queues.turns.unpushed)
}

fn numbers(queues: &mut KeyQueues<TestJob>) -> Vec<u32> {
    std::iter::from_fn(|| {
        queues.take_fresh().map(|(id, job)| {
            queues.finish(id);
            job.number
        })
    })
    .collect()
}

#[test]
fn the_keys_take_turns_and_the_jobs_of_a_key_keep_their_order() {
    let mut queues = KeyQueues::new();
    let behind: Vec<bool> = [(1, 10), (1, 11), (1, 12), (2, 20), (2, 21), (3, 30)]
        .map(|(key, number)| queues.push(Some(key), job(key, number)))
        .into();
    assert_eq!(behind, [false, true, true, false, true, false]);
    assert_eq!(numbers(&mut queues), [10, 20, 30, 11, 21, 12]);
    assert!(is_empty(&queues));
}

#[test]
fn waits_that_are_ended_leave_the_order_of_each_key() {
    let (mut queues, start) = (KeyQueues::new(), Instant::now());
    for number in 0..2 {
        queues.push(Some(1), job(1, number));
        queues.push(Some(2), job(2, 10 + number));
    }
    for (number, pause_s) in [(0, 3600), (10, 0)] {
        let (id, taken) = queues.take_fresh().unwrap();
        assert_eq!(taken.number, number);
        queues.park(id, TestJob { need: Need::Push, ..taken }, start + Duration::from_secs(pause_s));
    }
    let now = start + Duration::from_secs(1);
    queues.end_waits(now);
    assert_eq!(queues.next_due(), Some(start), "what was due is due as before");
    let mut due = || queues.take_due(now).map(|(id, job)| (job.number, queues.finish(id)));
    assert_eq!([due(), due(), due()], [Some((10, true)), Some((0, true)), None]);
    assert_eq!(numbers(&mut queues), [11, 1]);
}

#[test]
fn a_waiting_key_holds_up_itself_alone() {
    let mut queues = KeyQueues::new();
    let start = Instant::now();
    for number in 0..3 {
        queues.push(Some(1), job(1, number));
        queues.push(Some(2), job(2, 10 + number));
        queues.push(None, job(None, 20 + number));
    }
    let (id, stuck) = queues.take_fresh().unwrap();
    assert!(queues.take_due(start).is_none());
    queues.park(id, TestJob { need: Need::Push, ..stuck }, start + Duration::from_secs(1));
    assert_eq!(numbers(&mut queues), [10, 20, 21, 22, 11, 12]);
    assert_eq!(queues.next_due(), Some(start + Duration::from_secs(1)));
    assert!(queues.take_due(start).is_none());
    let (id, again) = queues.take_due(start + Duration::from_secs(1)).unwrap();
    assert_eq!(again.number, 0);
    assert!(queues.finish(id));
    assert_eq!(numbers(&mut queues), [1, 2]);
    assert_eq!(queues.next_due(), None);
}

#[test]
fn a_job_that_waited_before_its_first_attempt_becomes_fresh() {
    let mut queues = KeyQueues::new();
    let start = Instant::now();
    queues.push(Some(1), job(1, 0));
    let (id, waits_for_lease) = queues.take_fresh().unwrap();
    queues.park(id, waits_for_lease, start);
    assert!(!queues.has_fresh());
    assert!(queues.take_due(start).is_none(), "it needs a slot of the window first");
    assert_eq!(numbers(&mut queues), [0]);
}

#[test]
fn jobs_that_need_no_push_have_turns_of_their_own() {
    let mut queues = KeyQueues::new();
    let start = Instant::now();
    let unpushed = |key: u64, number| TestJob { need: Need::NoPush, ..job(key, number) };
    queues.push(Some(1), job(1, 10));
    queues.push(Some(1), unpushed(1, 11));
    queues.push(Some(2), unpushed(2, 20));
    queues.push(Some(2), job(2, 21));
    assert_eq!((queues.next_unpushed(start), queues.next_due()), (Some(start), None));
    let (second, letter) = queues.take_unpushed(start).unwrap();
    assert_eq!((letter.number, queues.has_unpushed()), (20, false));
    let later = start + Duration::from_secs(1);
    queues.park(second, letter, later);
    assert_eq!((queues.next_unpushed(start), queues.next_due(), queues.has_unpushed()), (Some(later), None, true));
    assert!(queues.take_unpushed(start).is_none());
    let (first, pushed) = queues.take_fresh().unwrap();
    assert_eq!((pushed.number, queues.has_fresh()), (10, false));
    // It ends without a push.
    queues.park(first, TestJob { need: Need::NoPush, ..pushed }, start);
    assert_eq!(queues.take_unpushed(start).map(|(id, job)| (queues.finish(id), job.number)), Some((true, 10)));
    assert_eq!(queues.take_unpushed(start).map(|(id, job)| (queues.finish(id), job.number)), Some((false, 11)));
    // The one that waits is removed: the next job of its key needs a push.
    assert_eq!(queues.remove_where(|job, _| job.number == 20).len(), 1);
    assert_eq!((numbers(&mut queues), is_empty(&queues)), (vec![21], true));
}

#[test]
fn removed_jobs_leave_no_queue_behind() {
    let mut queues = KeyQueues::new();
    let start = Instant::now();
    for number in 0..4 {
        queues.push(Some(1), job(1, number));
        queues.push(Some(2), job(2, number));
    }
    let (id, first) = queues.take_fresh().unwrap();
    queues.park(id, TestJob { need: Need::Push, ..first }, start);
    let mut places = Vec::new();
    let removed = queues.remove_where(|job, is_first| {
        places.push((job.key, job.number, is_first));
        job.key == Some(1) && job.number < 2
    });
    assert_eq!(removed.iter().map(|job| job.number).collect::<Vec<_>>(), [0, 1]);
    assert!(places.contains(&(Some(1), 0, true)) && places.contains(&(Some(1), 1, false)));
    assert_eq!(queues.next_due(), None, "the next job of the key does not wait");
    let (id, taken) = queues.take_fresh().unwrap();
    assert_eq!((taken.key, taken.number), (Some(2), 0));
    assert_eq!(queues.remove_behind(id, |job| job.number != 2).len(), 2);
    assert!(queues.finish(id));
    assert_eq!(numbers(&mut queues), [2, 2, 3]);
    queues.push(None, job(None, 0));
    assert_eq!(queues.remove_where(|_, _| true).len(), 1);
    assert!(is_empty(&queues));
}

#[derive(Clone, Debug)]
enum Step {
    /// A job with a key, and whether it needs no push.
    Push(Option<u64>, bool),
    TakeUnpushed {
        done: bool,
        wait_ms: u64,
    },
    TakeFresh {
        done: bool,
        wait_ms: u64,
    },
    TakeDue {
        done: bool,
        wait_ms: u64,
    },
    Pass(u64),
    Remove(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let (wait, done) = (0u64..50, any::<bool>());
    prop_oneof![
        4 => (prop::option::weighted(0.8, 0u64..5), prop::bool::weighted(0.3))
            .prop_map(|(key, is_unpushed)| Step::Push(key, is_unpushed)),
        2 => (done, wait.clone()).prop_map(|(done, wait_ms)| Step::TakeUnpushed { done, wait_ms }),
        4 => (done, wait.clone()).prop_map(|(done, wait_ms)| Step::TakeFresh { done, wait_ms }),
        3 => (done, wait.clone()).prop_map(|(done, wait_ms)| Step::TakeDue { done, wait_ms }),
        2 => wait.prop_map(Step::Pass),
        1 => (0u64..5).prop_map(Step::Remove),
    ]
}

proptest! {
    /// No job is lost or taken twice, the jobs of a key are done in order, and no job is taken while it waits.
    #[test]
    fn the_queues_agree_with_a_model(steps in prop::collection::vec(step(), 0..300)) {
        let mut queues = KeyQueues::new();
        let (mut now, mut next) = (Instant::now(), 0);
        let mut open: Vec<(TestJob, Option<Instant>)> = Vec::new();
        for step in steps {
            let is_unpushed_step = matches!(step, Step::TakeUnpushed { .. });
            let (taken, done, wait_ms) = match step {
                Step::Push(key, is_unpushed) => {
                    next += 1;
                    let need = if is_unpushed { Need::NoPush } else { Need::Slot };
                    let behind = queues.push(key, TestJob { need, ..job(key, next) });
                    prop_assert_eq!(behind, key.is_some() && open.iter().any(|(open, _)| open.key == key));
                    open.push((job(key, next), None));
                    continue;
                }
                Step::Pass(ms) => {
                    now += Duration::from_millis(ms);
                    continue;
                }
                Step::Remove(key) => {
                    let removed = queues.remove_where(|job, _| job.key == Some(key));
                    prop_assert_eq!(removed.len(), open.iter().filter(|(open, _)| open.key == Some(key)).count());
                    open.retain(|(open, _)| open.key != Some(key));
                    continue;
                }
                Step::TakeUnpushed { done, wait_ms } => (queues.take_unpushed(now), done, wait_ms),
                Step::TakeFresh { done, wait_ms } => (queues.take_fresh(), done, wait_ms),
                Step::TakeDue { done, wait_ms } => (queues.take_due(now), done, wait_ms),
            };
            let Some((id, taken)) = taken else { continue };
            let of_key = |(open, _): &(TestJob, Option<Instant>)| open.number == taken.number
                || taken.key.is_some() && open.key == taken.key;
            let index = open.iter().position(of_key).unwrap();
            prop_assert_eq!(open[index].0.number, taken.number, "not the first of its key");
            prop_assert!(open[index].1.is_none_or(|until| until <= now), "taken while it waits");
            prop_assert_eq!(is_unpushed_step, taken.need == Need::NoPush);
            if done {
                open.remove(index);
                queues.finish(id);
            } else {
                let until = now + Duration::from_millis(wait_ms);
                open[index].1 = Some(until);
                // Every third attempt ends with a dead letter.
                let need = if taken.number % 3 == 0 || taken.need == Need::NoPush { Need::NoPush } else { Need::Push };
                queues.park(id, TestJob { need, ..taken }, until);
            }
        }
        // Everything left comes out at the end.
        now += Duration::from_secs(60);
        while let Some((id, taken)) =
            queues.take_due(now).or_else(|| queues.take_fresh()).or_else(|| queues.take_unpushed(now))
        {
            queues.finish(id);
            open.retain(|(open, _)| open.number != taken.number);
        }
        prop_assert!(open.is_empty(), "lost: {:?}", open);
        prop_assert!(is_empty(&queues));
    }
}
