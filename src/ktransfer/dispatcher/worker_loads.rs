//! Counts the jobs that each worker could push but has not pushed yet. The counts decide which worker gets a message
//! without a key, and whether to read further.
//!
//! A job counts from the time it is sent to its worker until it is done, or until it waits: for its next attempt, or
//! behind a job of its key. Invariant: `order` is sorted by load, so each operation takes constant time.

/// The loads of all workers of a module.
#[derive(Debug)]
pub(super) struct WorkerLoads {
    /// The load of each worker.
    loads: Vec<usize>,
    /// All workers, those with the lowest load first.
    order: Vec<usize>,
    /// Where each worker is in `order`.
    position: Vec<usize>,
    /// `first[n]`: the number of workers with a load below `n`, which is where those with load `n` begin in `order`.
    first: Vec<usize>,
}

impl WorkerLoads {
    /// Creates the loads of `workers` idle workers.
    pub(super) fn new(workers: usize) -> WorkerLoads {
        let all: Vec<usize> = (0..workers).collect();
        WorkerLoads { loads: vec![0; workers], order: all.clone(), position: all, first: vec![0, workers] }
    }

    /// Returns the worker with the lowest load, and this load.
    pub(super) fn least(&self) -> (usize, usize) {
        let worker = self.order[0];
        (worker, self.loads[worker])
    }

    /// Counts one more job of `worker`.
    pub(super) fn add(&mut self, worker: usize) {
        let load = self.loads[worker];
        if self.first.len() <= load + 2 {
            self.first.push(self.order.len());
        }
        // The worker becomes the last of its load, and then the first of the next.
        let last = self.first[load + 1] - 1;
        self.swap(self.position[worker], last);
        self.first[load + 1] = last;
        self.loads[worker] = load + 1;
    }

    /// Counts one job of `worker` less.
    pub(super) fn remove(&mut self, worker: usize) {
        let load = self.loads[worker];
        let first = self.first[load];
        self.swap(self.position[worker], first);
        self.first[load] = first + 1;
        self.loads[worker] = load - 1;
    }

    fn swap(&mut self, one: usize, other: usize) {
        self.order.swap(one, other);
        self.position[self.order[one]] = one;
        self.position[self.order[other]] = other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_least_loaded_worker_is_known_after_any_steps(
            workers in 1usize..6, steps in prop::collection::vec((0usize..6, any::<bool>()), 0..300)
        ) {
            let mut loads = WorkerLoads::new(workers);
            let mut expected = vec![0; workers];
            for (worker, adds) in steps {
                let worker = worker % workers;
                if adds {
                    expected[worker] += 1;
                    loads.add(worker);
                } else if expected[worker] > 0 {
                    expected[worker] -= 1;
                    loads.remove(worker);
                }
                let (least, load) = loads.least();
                prop_assert_eq!(Some(&load), expected.iter().min());
                prop_assert_eq!(expected[least], load);
                prop_assert_eq!(&loads.loads, &expected);
                prop_assert!(loads.order.windows(2).all(|pair| expected[pair[0]] <= expected[pair[1]]));
            }
        }
    }

    #[test]
    fn jobs_without_a_key_are_spread_evenly() {
        let mut loads = WorkerLoads::new(3);
        let chosen: Vec<usize> = (0..6)
            .map(|_| {
                let (worker, _) = loads.least();
                loads.add(worker);
                worker
            })
            .collect();
        assert_eq!((0..3).map(|worker| chosen.iter().filter(|it| **it == worker).count()).max(), Some(2));
    }
}
