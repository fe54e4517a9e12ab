//! Chooses the backend for the next attempt.

/// The round robin of one worker over the backends. Workers start at different backends, so the load is spread evenly.
#[derive(Clone, Debug)]
pub(super) struct BackendRotation {
    next: usize,
}

impl BackendRotation {
    /// Creates the round robin of worker number `worker`, which starts at the backend of that index.
    pub(super) fn starting_at(worker: usize) -> Self {
        BackendRotation { next: worker }
    }

    /// Returns the index of the next of `count` backends. If there are several, it is another one than `last`, which is
    /// where the message was pushed before: the worker may have pushed other messages since.
    pub(super) fn next(&mut self, count: usize, last: Option<usize>) -> usize {
        let mut chosen = self.next % count;
        if last == Some(chosen) {
            chosen = (chosen + 1) % count;
        }
        self.next = chosen + 1;
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_worker_starts_its_round_robin_at_another_backend() {
        for (worker, expected) in [(0, [0, 1, 2, 0]), (1, [1, 2, 0, 1]), (5, [2, 0, 1, 2]), (usize::MAX, [0, 1, 2, 0])]
        {
            let mut rotation = BackendRotation::starting_at(worker);
            assert_eq!([(); 4].map(|()| rotation.next(3, None)), expected, "worker {worker}");
        }
    }

    #[test]
    fn a_retry_goes_to_another_backend_if_there_is_one() {
        let mut rotation = BackendRotation::starting_at(1);
        assert_eq!([rotation.next(2, Some(1)), rotation.next(2, Some(1)), rotation.next(2, Some(0))], [0, 0, 1]);
        assert_eq!([rotation.next(1, Some(0)), rotation.next(1, Some(0))], [0, 0]);
    }
}
