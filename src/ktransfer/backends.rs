//! Which backend gets the next attempt.

/// A worker's own walk round the backends. Workers begin at different ones, so that together they spread evenly.
#[derive(Clone, Debug)]
pub struct Rotation {
    next: usize,
}

impl Rotation {
    /// The walk of worker number `worker`.
    pub fn starting_at(worker: usize) -> Self {
        Rotation { next: worker }
    }

    /// The next backend. Never the same twice in a row while there is another: a retry moves on.
    pub fn next<'servers>(&mut self, servers: &'servers [String]) -> &'servers str {
        let chosen = self.next % servers.len();
        self.next = chosen + 1;
        &servers[chosen]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_walks_round_from_its_own_start() {
        let servers = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        for (worker, expected) in [(0, "abcabc"), (1, "bcabca"), (5, "cabcab"), (usize::MAX, "abcabc")] {
            let mut rotation = Rotation::starting_at(worker);
            let walk: String = (0..6).map(|_| rotation.next(&servers)).collect();
            assert_eq!(walk, expected, "worker {worker}");
        }
        let mut alone = Rotation::starting_at(3);
        assert_eq!([alone.next(&servers[..1]), alone.next(&servers[..1])], ["a", "a"]);
    }
}
