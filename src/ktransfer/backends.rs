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

    /// Returns the next backend. With two or more backends, a retry goes to another backend than the attempt before it.
    pub(super) fn next<'servers>(&mut self, servers: &'servers [String]) -> &'servers str {
        let chosen = self.next % servers.len();
        self.next = chosen + 1;
        &servers[chosen]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_worker_starts_its_round_robin_at_another_backend() {
        let servers = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        for (worker, expected) in [(0, "abcabc"), (1, "bcabca"), (5, "cabcab"), (usize::MAX, "abcabc")] {
            let mut rotation = BackendRotation::starting_at(worker);
            let order: String = (0..6).map(|_| rotation.next(&servers)).collect();
            assert_eq!(order, expected, "worker {worker}");
        }
        let mut alone = BackendRotation::starting_at(3);
        assert_eq!([alone.next(&servers[..1]), alone.next(&servers[..1])], ["a", "a"]);
    }
}
