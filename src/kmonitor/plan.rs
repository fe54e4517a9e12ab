//! Plans which modules a cycle reads within the budget, and which of them together. Pure.
//!
//! Modules with waiting messages or unknown numbers are read in every cycle. Idle modules need not be: as long as their
//! log ends do not move, their delays stay 0. They are read in turn, as far as the budget permits, and each at least
//! every [`MAX_IDLE`]. Required reads are made even beyond the budget; the cycle then takes longer.

use std::cmp::Reverse;
use std::time::Duration;

/// Longest time between two readings of a module at rest.
const MAX_IDLE: Duration = Duration::from_secs(60);
/// After this number of failures a module was alone in its slice.
pub(super) const ALONE_AFTER: u32 = 4;

/// A module that may be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate<K> {
    /// What it is.
    pub key: K,
    /// What reading it takes: nodes of ZooKeeper, or groups of Kafka.
    pub cost: u64,
    /// Something of it waits or is unknown.
    pub is_active: bool,
    /// Time since reading it was tried; `None` if it never was.
    pub age: Option<Duration>,
    /// How often in a row reading it failed.
    pub failures: u32,
}

/// Returns the modules to read, the longest unread first. `cycle`: time until the next plan.
pub(super) fn plan<K>(mut candidates: Vec<Candidate<K>>, budget: u64, cycle: Duration) -> Vec<Candidate<K>> {
    // With the next cycle it would be too late.
    let is_due = |candidate: &Candidate<K>| candidate.age.is_none_or(|age| MAX_IDLE <= age + cycle);
    let must = |candidate: &Candidate<K>| candidate.is_active || is_due(candidate);
    let needed: u64 = candidates.iter().filter(|candidate| must(candidate)).map(|candidate| candidate.cost).sum();
    let mut left = budget.saturating_sub(needed);
    candidates.sort_by_key(|candidate| Reverse(candidate.age.unwrap_or(Duration::MAX)));
    candidates.retain(|candidate| {
        if must(candidate) {
            return true;
        }
        let fits = candidate.cost <= left;
        left -= if fits { candidate.cost } else { 0 };
        fits
    });
    candidates
}

/// Splits modules into slices of at most `max` cost, but of at least one module.
///
/// Modules that failed come last, apart from the others, so that one which always fails costs the others nothing. With
/// `narrows` there are fewer in a slice with each failure: a read that ends the connection fails all that are in flight
/// with it, and in the end it is alone.
pub(super) fn slices<K: Clone>(candidates: &[Candidate<K>], max: u64, narrows: bool) -> Vec<Vec<K>> {
    let rank = |candidate: &Candidate<K>| if narrows { candidate.failures } else { candidate.failures.min(1) };
    let mut ordered: Vec<&Candidate<K>> = candidates.iter().collect();
    ordered.sort_by_key(|candidate| rank(candidate));
    let (mut slices, mut slice, mut sum) = (Vec::new(), Vec::new(), 0);
    let mut last = 0;
    for candidate in ordered {
        let rank = rank(candidate);
        let max_count = if narrows { max_count(rank) } else { usize::MAX };
        if !slice.is_empty() && (max < sum + candidate.cost || max_count <= slice.len() || rank != last) {
            slices.push(std::mem::take(&mut slice));
            sum = 0;
        }
        slice.push(candidate.key.clone());
        sum += candidate.cost;
        last = rank;
    }
    if !slice.is_empty() {
        slices.push(slice);
    }
    slices
}

/// Returns how many modules that failed so often are read together.
fn max_count(failures: u32) -> usize {
    match failures {
        0 => usize::MAX,
        1 => 16,
        2 => 4,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CYCLE: Duration = Duration::from_secs(5);

    fn candidate(key: u32, is_active: bool, age: Option<u64>) -> Candidate<u32> {
        Candidate { key, cost: 10, is_active, age: age.map(Duration::from_secs), failures: 0 }
    }

    #[test]
    fn active_modules_come_always_and_those_at_rest_in_turn() {
        let candidates = vec![
            candidate(1, false, Some(5)),
            candidate(2, true, Some(5)),
            candidate(3, false, Some(30)),
            candidate(4, false, Some(57)),
            candidate(5, false, None),
            candidate(6, false, Some(10)),
        ];
        let chosen = |budget| -> Vec<u32> {
            plan(candidates.clone(), budget, CYCLE).into_iter().map(|candidate| candidate.key).collect()
        };
        assert_eq!(chosen(1_000), [5, 4, 3, 6, 1, 2]);
        assert_eq!(chosen(40), [5, 4, 3, 2]);
        assert_eq!(chosen(0), [5, 4, 2], "new, due and active");
        assert!(plan(Vec::<Candidate<u32>>::new(), 0, CYCLE).is_empty());
    }

    #[test]
    fn a_slice_is_no_larger_than_its_bound_unless_one_module_is() {
        let costs = [3, 3, 3, 20, 1, 9, 1];
        let candidates: Vec<_> =
            (0..).zip(costs).map(|(key, cost)| Candidate { cost, ..candidate(key, true, None) }).collect();
        assert_eq!(slices(&candidates, 10, true), [vec![0, 1, 2], vec![3], vec![4, 5], vec![6]]);
        assert!(slices(&[] as &[Candidate<u32>], 10, true).is_empty());
    }

    #[test]
    fn a_module_that_always_fails_is_alone_in_the_end() {
        let failing = |key, failures| Candidate { cost: 4, failures, ..candidate(key, true, None) };
        let candidates: Vec<_> = (0..).zip([0, 1, 1, 0, 1, 2, 3, 9]).map(|(key, count)| failing(key, count)).collect();
        let expected = [vec![0, 3], vec![1, 2, 4], vec![5], vec![6], vec![7]];
        assert_eq!(slices(&candidates, 40, true), expected);
        assert_eq!(slices(&candidates, 40, false), [vec![0, 3], vec![1, 2, 4, 5, 6, 7]]);
        // However many fail together with it: after three failures each is alone.
        for (failures, sizes) in [(0, vec![100]), (1, vec![16, 16, 16, 16, 16, 16, 4]), (2, vec![4; 25])] {
            let together: Vec<_> = (0..100).map(|key| failing(key, failures)).collect();
            let found: Vec<_> = slices(&together, 1_000, true).iter().map(Vec::len).collect();
            assert_eq!(found, sizes);
        }
        let alone: Vec<_> = (0..9).map(|key| failing(key, ALONE_AFTER - 1)).collect();
        assert_eq!(slices(&alone, 1_000, true).len(), 9);
    }

    proptest! {
        #[test]
        fn the_budget_holds_and_every_module_is_read_within_a_minute(
            costs in proptest::collection::vec(1..50_u64, 1..60),
            active in proptest::collection::vec(any::<bool>(), 60),
        ) {
            // A twelfth of all costs in each cycle of 5 s is enough for all modules in a minute.
            let total: u64 = costs.iter().sum();
            let busy: u64 = costs.iter().zip(&active).filter(|(_, active)| **active).map(|(cost, _)| cost).sum();
            let budget = busy + (total - busy).div_ceil(8) + 50;
            let mut ages = vec![Some(Duration::ZERO); costs.len()];
            for cycle in 0..40 {
                let candidate = |index: usize| {
                    let (cost, is_active, age) = (costs[index], active[index], ages[index]);
                    Candidate { key: index, cost, is_active, age, failures: 0 }
                };
                let read = plan((0..costs.len()).map(candidate).collect(), budget, CYCLE);
                let cost: u64 = read.iter().map(|candidate| candidate.cost).sum();
                let read: Vec<usize> = read.iter().map(|candidate| candidate.key).collect();
                prop_assert!(cost <= budget, "{cost} of {budget} in cycle {cycle}");
                for (index, age) in ages.iter_mut().enumerate() {
                    *age = Some(if read.contains(&index) { Duration::ZERO } else { age.unwrap() + CYCLE });
                    prop_assert!(age.unwrap() <= MAX_IDLE);
                }
            }
        }
    }
}
