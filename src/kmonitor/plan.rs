//! Which modules a cycle reads, within the budget of requests. Pure.
//!
//! Modules with messages that wait, or of which something is unknown, are read in every cycle. Those at rest need not
//! be: as long as the ends of their logs do not move, their delays stay 0. They are read in turn, as far as the budget
//! goes, and each at least every [`MAX_IDLE`]. What has to be read is read even beyond the budget; the poller then takes
//! longer for the cycle.

use std::cmp::Reverse;
use std::time::Duration;

/// Longest time between two readings of a module at rest.
const MAX_IDLE: Duration = Duration::from_secs(60);

/// A module that may be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate<K> {
    /// What it is.
    pub key: K,
    /// Number of requests that reading it takes.
    pub cost: u64,
    /// Something of it waits or is unknown.
    pub is_active: bool,
    /// Time since reading it was tried; `None` if it never was.
    pub age: Option<Duration>,
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

/// Splits modules into slices of at most `max` requests, but of at least one module.
pub(super) fn slices<K: Clone>(candidates: &[Candidate<K>], max: u64) -> Vec<Vec<K>> {
    let (mut slices, mut slice, mut sum) = (Vec::new(), Vec::new(), 0);
    for Candidate { key, cost, .. } in candidates {
        if !slice.is_empty() && max < sum + cost {
            slices.push(std::mem::take(&mut slice));
            sum = 0;
        }
        slice.push(key.clone());
        sum += cost;
    }
    if !slice.is_empty() {
        slices.push(slice);
    }
    slices
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CYCLE: Duration = Duration::from_secs(5);

    fn candidate(key: u32, is_active: bool, age: Option<u64>) -> Candidate<u32> {
        Candidate { key, cost: 10, is_active, age: age.map(Duration::from_secs) }
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
        assert_eq!(slices(&candidates, 10), [vec![0, 1, 2], vec![3], vec![4, 5], vec![6]]);
        assert!(slices(&[] as &[Candidate<u32>], 10).is_empty());
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
                    Candidate { key: index, cost: costs[index], is_active: active[index], age: ages[index] }
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
