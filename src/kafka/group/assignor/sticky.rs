//! The `cooperative-sticky` assignor.
//!
//! 1. Each partition goes to the member that claims it and subscribes to its topic. Of several claims the one with the
//!    newest generation wins: a member that missed a rebalance claims partitions that may have been assigned since.
//!    Two claims of the same generation contradict each other, so neither counts.
//! 2. The other partitions go to the subscriber with the fewest partitions.
//! 3. Partitions move from members with many to members with few partitions, directly or through other members, until
//!    no move brings two counts closer together. The result is balanced as well as the subscriptions allow; with equal
//!    subscriptions the counts differ by at most one, and no member loses more than it must.
//!
//! [`withhold_claimed`] then removes the partitions that another member still holds.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use super::assignment::{Assignments, GroupMember, PartitionCounts};
use crate::kafka::group::TopicPartition;

/// A partition during the assignment.
struct Slot {
    partition: TopicPartition,
    /// The member whose claim counts, by index.
    claimant: Option<usize>,
}

/// Topics with the same subscribers are of one class: their partitions can be held by the same members.
struct Balance {
    /// Member indices by class.
    subscribers: Vec<Vec<usize>>,
    /// The partitions of each member, by class. No list is empty.
    held: Vec<BTreeMap<usize, Vec<Slot>>>,
    counts: Vec<usize>,
}

/// Assigns every partition that has a subscriber to exactly one member, whether or not another member holds it.
pub(super) fn assign(members: &[GroupMember], counts: &PartitionCounts) -> Assignments {
    let mut members: Vec<_> = members.iter().collect();
    // The result must not depend on the order in which the coordinator lists the members.
    members.sort_by(|left, right| left.member_id.cmp(&right.member_id));
    let topics: Vec<BTreeSet<&Arc<str>>> = members.iter().map(|m| m.subscription.topics.iter().collect()).collect();
    let claimants = valid_claims(&members, &topics, counts);

    let mut balance = Balance {
        subscribers: Vec::new(),
        held: members.iter().map(|_| BTreeMap::new()).collect(),
        counts: vec![0; members.len()],
    };
    let mut classes: HashMap<Vec<usize>, usize> = HashMap::new();
    let mut unassigned = Vec::new();
    for (topic, count) in counts {
        let subscribers: Vec<_> = (0..members.len()).filter(|member| topics[*member].contains(topic)).collect();
        if subscribers.is_empty() {
            continue;
        }
        let class = *classes.entry(subscribers).or_insert_with_key(|subscribers| {
            balance.subscribers.push(subscribers.clone());
            balance.subscribers.len() - 1
        });
        for partition in 0..*count {
            let partition = TopicPartition { topic: Arc::clone(topic), partition };
            let claimant = claimants.get(&partition).copied();
            let slot = Slot { partition, claimant };
            match claimant {
                Some(member) => balance.give(member, class, slot),
                None => unassigned.push((class, slot)),
            }
        }
    }
    // Partitions with few possible members first: the others even out the differences.
    unassigned.sort_by_key(|(class, _)| balance.subscribers[*class].len());
    for (class, slot) in unassigned {
        let fewest = balance.subscribers[class].iter().min_by_key(|member| balance.counts[**member]).copied();
        if let Some(member) = fewest {
            balance.give(member, class, slot);
        }
    }
    while balance.improve() {}

    let partitions = balance.held.into_iter().map(|by_class| {
        let mut partitions: Vec<_> = by_class.into_values().flatten().map(|slot| slot.partition).collect();
        partitions.sort();
        partitions
    });
    members.iter().map(|member| Arc::clone(&member.member_id)).zip(partitions).collect()
}

/// Returns the member index of the claim that counts, for each claimed partition that exists.
fn valid_claims(
    members: &[&GroupMember],
    topics: &[BTreeSet<&Arc<str>>],
    counts: &PartitionCounts,
) -> HashMap<TopicPartition, usize> {
    let mut newest: HashMap<&TopicPartition, (i32, Option<usize>)> = HashMap::new();
    for (index, member) in members.iter().enumerate() {
        let generation = member.subscription.claim_generation();
        let owned: BTreeSet<_> = member.subscription.owned.iter().collect();
        for partition in owned {
            let claim = newest.entry(partition).or_insert((generation, Some(index)));
            if claim.0 < generation {
                *claim = (generation, Some(index));
            } else if claim.0 == generation && claim.1 != Some(index) {
                claim.1 = None;
            }
        }
    }
    let valid = newest.into_iter().filter_map(|(partition, (_, claimant))| {
        let claimant = claimant?;
        let exists = (0..*counts.get(&partition.topic)?).contains(&partition.partition);
        (exists && topics[claimant].contains(&partition.topic)).then(|| (partition.clone(), claimant))
    });
    valid.collect()
}

impl Balance {
    fn give(&mut self, member: usize, class: usize, slot: Slot) {
        self.held[member].entry(class).or_default().push(slot);
        self.counts[member] += 1;
    }

    /// Moves one partition away from each member that has too many; returns whether any moved.
    fn improve(&mut self) -> bool {
        let mut donors: Vec<_> = (0..self.counts.len()).collect();
        donors.sort_by_key(|member| std::cmp::Reverse(self.counts[*member]));
        for donor in donors {
            let path = self.path_from(donor);
            if !path.is_empty() {
                for (from, class, to) in path {
                    self.pass(from, class, to);
                }
                // The next donor must again be the member with the most partitions, so that nobody loses too many.
                return true;
            }
        }
        false
    }

    /// Returns moves `(from, class, to)` that take one partition from `donor` and give one to the member with the
    /// fewest partitions that can be reached, last move first; empty if that member has at most one fewer.
    fn path_from(&self, donor: usize) -> Vec<(usize, usize, usize)> {
        let mut reached_by: Vec<Option<(usize, usize)>> = vec![None; self.counts.len()];
        let mut is_class_seen = vec![false; self.subscribers.len()];
        let mut queue = VecDeque::from([donor]);
        let mut best = donor;
        while let Some(from) = queue.pop_front() {
            for class in self.held[from].keys() {
                if std::mem::replace(&mut is_class_seen[*class], true) {
                    continue;
                }
                for to in &self.subscribers[*class] {
                    if *to == donor || reached_by[*to].is_some() {
                        continue;
                    }
                    reached_by[*to] = Some((from, *class));
                    queue.push_back(*to);
                    if self.counts[*to] < self.counts[best] {
                        best = *to;
                    }
                }
            }
        }
        let mut path = Vec::new();
        if self.counts[best] + 1 < self.counts[donor] {
            let mut to = best;
            while let Some((from, class)) = reached_by[to] {
                path.push((from, class, to));
                to = from;
            }
        }
        path
    }

    /// Moves one partition of `class`: preferably one that the receiver claims, then one that the giver does not.
    fn pass(&mut self, from: usize, class: usize, to: usize) {
        let Some(slots) = self.held[from].get_mut(&class) else { return };
        let best = (0..slots.len()).max_by_key(|index| match slots[*index].claimant {
            Some(claimant) if claimant == to => 2,
            Some(claimant) if claimant == from => 0,
            _ => 1,
        });
        let Some(index) = best else { return };
        let slot = slots.swap_remove(index);
        if slots.is_empty() {
            self.held[from].remove(&class);
        }
        self.counts[from] -= 1;
        self.give(to, class, slot);
    }
}

/// Removes each partition that a member other than the assigned one claims: it holds the partition until it has seen
/// its assignment without it, and joins again when it has released the partition. A claim that is older than the
/// claim of the assigned member does not count: the assigned member holds the partition since. Returns whether any was
/// removed.
pub(super) fn withhold_claimed(assignments: &mut Assignments, members: &[GroupMember]) -> bool {
    let mut claims: HashMap<&TopicPartition, Vec<(&Arc<str>, i32)>> = HashMap::new();
    for GroupMember { member_id, subscription, .. } in members {
        for partition in &subscription.owned {
            claims.entry(partition).or_default().push((member_id, subscription.claim_generation()));
        }
    }
    let mut is_withheld = false;
    for (member_id, assigned) in assignments {
        let before = assigned.len();
        assigned.retain(|partition| {
            let claims = claims.get(partition).map_or(&[][..], Vec::as_slice);
            let own = claims.iter().filter(|claim| claim.0 == member_id).map(|claim| claim.1).max();
            claims.iter().all(|claim| claim.0 == member_id || own.is_some_and(|own| own > claim.1))
        });
        is_withheld |= assigned.len() < before;
    }
    is_withheld
}
