//! Sends the requests of many items (partitions or groups) to the brokers that are responsible for them, all brokers at
//! the same time, and retries the items with a transient error until the deadline.
//!
//! Each round has half of the time that is left: after a round in which a broker hangs, there is time to find the
//! broker that replaces it.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use super::error::{OffsetError, OffsetErrorKind};
use crate::kafka::broker_pool::{BrokerPool, PooledBroker, new_backoff, sleep_until};
use crate::kafka::config::BrokerAddress;
use crate::kafka::metadata::BrokerId;
use crate::locks::{into_inner, lock};

/// Upper bound of the brokers that are contacted at the same time.
const MAX_THREADS: usize = 32;
/// Time that must be left after the back-off for another round.
const MIN_LEFT: Duration = Duration::from_millis(20);
/// Shortest time of a round, unless the deadline is nearer.
const MIN_ROUND: Duration = Duration::from_millis(100);

/// The result of an item.
pub(super) type ItemResult<T> = Result<T, OffsetError>;

/// The result of an item in one round.
#[derive(Debug, PartialEq)]
pub(super) enum Attempt<T> {
    /// The result of the item.
    Final(ItemResult<T>),
    /// The result of the item if the deadline passes before there is another.
    Retry(ItemResult<T>),
}

impl<T> Attempt<T> {
    /// An error, which is final unless it is transient.
    pub(super) fn failed(failure: OffsetError) -> Self {
        if failure.is_transient() { Attempt::Retry(Err(failure)) } else { Attempt::Final(Err(failure)) }
    }
}

/// Where the request of an item goes.
pub(super) enum Route<I, T> {
    /// To this broker; the value is passed on to the call.
    Broker(BrokerId, BrokerAddress, I),
    /// Nowhere.
    Failed(Attempt<T>),
}

/// Finds the brokers of the items: takes their indices, whether this is a retry, and the time at which it must return.
/// After a failure the route of an item may have changed.
pub(super) trait Router<I, T> {
    /// Returns a route for each of these items.
    fn route(&mut self, items: &[usize], is_retry: bool, until: Instant) -> Vec<(usize, Route<I, T>)>;
}

/// Receives the result of an item as soon as it is final: a broker that does not respond delays the results of its own
/// items only.
pub(super) type ResultSink<'a, T> = dyn FnMut(usize, &ItemResult<T>) + Send + 'a;

/// Returns the results of the items 0 to `count - 1`, see [`run_into`].
pub(super) fn run<I: Send, T: Send>(
    pool: &mut BrokerPool,
    count: usize,
    deadline: Instant,
    router: &mut impl Router<I, T>,
    call: impl Fn(&mut PooledBroker, Vec<(usize, I)>, Instant) -> Vec<(usize, Attempt<T>)> + Sync,
) -> Vec<ItemResult<T>> {
    run_into(pool, count, deadline, router, call, &mut |_, _| {})
}

/// Returns the results of the items 0 to `count - 1`, after `sink` has received each of them once. `call` sends the
/// requests of the items of one broker and returns a result for each; it runs on several threads, and must return at
/// the time that it is passed.
pub(super) fn run_into<I: Send, T: Send>(
    pool: &mut BrokerPool,
    count: usize,
    deadline: Instant,
    router: &mut impl Router<I, T>,
    call: impl Fn(&mut PooledBroker, Vec<(usize, I)>, Instant) -> Vec<(usize, Attempt<T>)> + Sync,
    sink: &mut ResultSink<'_, T>,
) -> Vec<ItemResult<T>> {
    let sink = Mutex::new(sink);
    let pass_final = |attempts: &[(usize, Attempt<T>)]| {
        for (item, attempt) in attempts {
            if let Attempt::Final(result) = attempt {
                lock(&sink)(*item, result);
            }
        }
    };
    let mut results: Vec<Option<ItemResult<T>>> = (0..count).map(|_| None).collect();
    let mut pending: Vec<usize> = (0..count).collect();
    let mut backoff = new_backoff();
    let mut is_retry = false;
    while !pending.is_empty() {
        let mut by_broker = BTreeMap::new();
        let mut attempts = Vec::new();
        for (item, route) in router.route(&pending, is_retry, round_end(deadline)) {
            match route {
                Route::Broker(id, address, value) => {
                    by_broker.entry(id).or_insert_with(|| (address, Vec::new())).1.push((item, value));
                }
                Route::Failed(attempt) => attempts.push((item, attempt)),
            }
        }
        pass_final(&attempts);
        let until = round_end(deadline);
        let tasks = by_broker.into_iter().map(|(id, (address, items))| (id, pool.take(id, &address), items));
        let returned = at_once(tasks.collect(), |(id, mut broker, items)| {
            let attempts = call(&mut broker, items, until);
            pass_final(&attempts);
            (id, broker, attempts)
        });
        for (id, broker, mut more) in returned {
            pool.put(id, broker);
            attempts.append(&mut more);
        }
        pending = record(&mut results, attempts);
        is_retry = true;
        // A round without enough time would only replace the reasons of the failures.
        let retry_at = Instant::now() + backoff.next();
        if pending.is_empty() || retry_at + MIN_LEFT >= deadline {
            break;
        }
        sleep_until(retry_at, deadline);
    }
    let unanswered = || Err(OffsetError::new(OffsetErrorKind::Unreachable, "no attempt was made before the deadline"));
    let results: Vec<ItemResult<T>> = results.into_iter().map(|result| result.unwrap_or_else(unanswered)).collect();
    // What was retried until the deadline.
    pending.into_iter().for_each(|item| lock(&sink)(item, &results[item]));
    results
}

/// Returns the different keys, and for each key its position among them.
pub(super) fn unique<K: Clone + Eq + Hash>(keys: &[K]) -> (Vec<K>, Vec<usize>) {
    let mut positions = HashMap::with_capacity(keys.len());
    let mut different = Vec::with_capacity(keys.len());
    let order = keys.iter().map(|key| {
        *positions.entry(key).or_insert_with(|| {
            different.push(key.clone());
            different.len() - 1
        })
    });
    let order = order.collect();
    (different, order)
}

/// Keeps the results of a round; returns the items to retry.
fn record<T>(results: &mut [Option<ItemResult<T>>], attempts: Vec<(usize, Attempt<T>)>) -> Vec<usize> {
    let mut retried = Vec::new();
    for (item, attempt) in attempts {
        let result = match attempt {
            Attempt::Final(result) => result,
            Attempt::Retry(result) => {
                retried.push(item);
                // An error does not replace what is incomplete.
                if result.is_err() && matches!(results[item], Some(Ok(_))) {
                    continue;
                }
                result
            }
        };
        results[item] = Some(result);
    }
    retried
}

/// Returns when a round that begins now ends.
fn round_end(deadline: Instant) -> Instant {
    let now = Instant::now();
    deadline.min(now + (deadline.saturating_duration_since(now) / 2).max(MIN_ROUND))
}

/// Does `work` for all tasks at the same time, on this thread and on others that end before the function returns.
fn at_once<I: Send, O: Send>(tasks: Vec<I>, work: impl Fn(I) -> O + Sync) -> Vec<O> {
    let threads = tasks.len().min(MAX_THREADS);
    let (queue, results) = (Mutex::new(tasks.into_iter()), Mutex::new(Vec::new()));
    let worker = || {
        loop {
            let task = lock(&queue).next();
            let Some(task) = task else { return };
            let result = work(task);
            lock(&results).push(result);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            let thread = thread::Builder::new().name("kafka-offsets".into());
            // If the system has no thread left, the threads that there are do the work.
            let _ = thread.spawn_scoped(scope, worker);
        }
        worker();
    });
    into_inner(results)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::error_code;
    use std::sync::Barrier;

    fn transient(text: &str) -> OffsetError {
        OffsetError::new(OffsetErrorKind::NoLeader, text)
    }

    #[test]
    fn all_tasks_run_at_the_same_time() {
        // Fails to end unless each task has a thread.
        let barrier = Barrier::new(MAX_THREADS);
        let mut results = at_once((0..MAX_THREADS).collect(), |task| {
            barrier.wait();
            task
        });
        results.sort_unstable();
        assert_eq!(results, (0..MAX_THREADS).collect::<Vec<_>>());
        let mut results = at_once((0..1_000).collect(), |task| task);
        results.sort_unstable();
        assert_eq!(results, (0..1_000).collect::<Vec<_>>());
        assert!(at_once(Vec::<()>::new(), |()| ()).is_empty());
    }

    #[test]
    fn a_transient_error_is_retried_and_does_not_replace_an_incomplete_result() {
        let mut results = vec![None; 4];
        let final_error = OffsetError::refused("x", error_code::TOPIC_AUTHORIZATION_FAILED);
        let attempts = vec![
            (0, Attempt::Final(Ok(1))),
            (1, Attempt::Retry(Ok(2))),
            (2, Attempt::failed(transient("a"))),
            (3, Attempt::failed(final_error.clone())),
        ];
        assert_eq!(record(&mut results, attempts), [1, 2]);
        let attempts = vec![(1, Attempt::Retry(Err(transient("b")))), (2, Attempt::Retry(Err(transient("c"))))];
        assert_eq!(record(&mut results, attempts), [1, 2]);
        let expected = [Some(Ok(1)), Some(Ok(2)), Some(Err(transient("c"))), Some(Err(final_error))];
        assert_eq!(results, expected);
        assert!(record(&mut results, vec![(2, Attempt::Final(Ok(7)))]).is_empty());
        assert_eq!(results[2], Some(Ok(7)));
    }
}
