//! The round robin of one worker over the backends.

/// The round robin of one worker. Workers start at different backends, so the load is spread evenly.
#[derive(Clone, Debug)]
pub(crate) struct BackendRotation {
    next: usize,
}

impl BackendRotation {
    /// Creates the round robin of worker number `worker`, which starts at the backend of that index.
    pub(crate) fn starting_at(worker: usize) -> Self {
        BackendRotation { next: worker }
    }

    /// Returns the indices of `count` backends in the order in which it is their turn.
    pub(super) fn order(&self, count: usize) -> impl Iterator<Item = usize> + use<> {
        let first = self.next % count;
        (first..count).chain(0..first)
    }

    /// Notes that the backend at `index` was chosen: next is the turn of the one behind it.
    pub(super) fn chose(&mut self, index: usize) {
        self.next = index + 1;
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
            let chosen = [(); 4].map(|()| {
                let first = rotation.order(3).next().unwrap();
                rotation.chose(first);
                first
            });
            assert_eq!(chosen, expected, "worker {worker}");
        }
        assert_eq!(BackendRotation::starting_at(4).order(3).collect::<Vec<_>>(), [1, 2, 0]);
    }
}
