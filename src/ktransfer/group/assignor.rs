//! The assignors: compute which member of a group pushes which partitions of a topic.
//!
//! Every member computes its own partitions from the same lists, so all members must use the same assignor. If all
//! members know it, this is the sticky assignor: a member that joins or leaves moves as few partitions as possible. The
//! range assignor is that of the original's Go group library: while the original is being replaced, its processes and
//! ktransfers are in the same group.

use std::collections::{BTreeMap, BTreeSet};

use crate::broker::{PartitionId, PartitionInfo};

/// Returns the partitions that the sticky assignor assigns to `member`; none if `member` is not among `members`.
///
/// `owners` has the present owner of each partition that has one. Owners that are not members do not count. Each member
/// gets `partitions / members` partitions, and `partitions % members` members get one more: first members that already
/// own that many, then the others, in the order of their ids. A member that owns too many keeps those with the lowest
/// numbers. The other partitions go to the members in the order of their ids, with ascending numbers.
///
/// While partitions move to their new owners, every intermediate state gives the same result. So members that read the
/// owners at different times agree.
pub(super) fn sticky_partitions(
    member: &str,
    members: &[String],
    partitions: &[PartitionId],
    owners: &BTreeMap<PartitionId, String>,
) -> BTreeSet<PartitionId> {
    let partitions: BTreeSet<PartitionId> = partitions.iter().copied().collect();
    let mut owned: BTreeMap<&str, Vec<PartitionId>> =
        members.iter().map(|member| (member.as_str(), Vec::new())).collect();
    if !owned.contains_key(member) {
        return BTreeSet::new();
    }
    for (partition, owner) in owners.iter().filter(|(partition, _)| partitions.contains(partition)) {
        if let Some(owned) = owned.get_mut(owner.as_str()) {
            owned.push(*partition);
        }
    }
    let (share, longer) = (partitions.len() / owned.len(), partitions.len() % owned.len());
    let mut by_need: Vec<&str> = owned.keys().copied().collect();
    by_need.sort_by_key(|member| owned[member].len() <= share);
    let has_longer: BTreeSet<&str> = by_need.into_iter().take(longer).collect();
    let share_of = |member: &str| share + usize::from(has_longer.contains(member));
    let mut free = partitions;
    for (member, owned) in &mut owned {
        owned.truncate(share_of(member));
        for kept in owned {
            free.remove(kept);
        }
    }
    let mut free = free.into_iter();
    for (name, mut assigned) in owned {
        let missing = share_of(name) - assigned.len();
        assigned.extend(free.by_ref().take(missing));
        if name == member {
            return assigned.into_iter().collect();
        }
    }
    BTreeSet::new()
}

/// Returns the partitions that the range assignor assigns to `member`, sorted by leader, then number; none if `member`
/// is not among `members`.
///
/// Members are sorted by id, partitions by leader, then number; a partition without a leader counts as leader -1. Each
/// member gets a range of `partitions / members` partitions; the first `partitions % members` ranges are one longer.
pub(super) fn range_partitions(member: &str, members: &[String], partitions: &[PartitionInfo]) -> Vec<PartitionId> {
    let mut members: Vec<&str> = members.iter().map(String::as_str).collect();
    members.sort_unstable();
    members.dedup();
    let Ok(index) = members.binary_search(&member) else { return Vec::new() };
    let mut sorted: Vec<(i32, PartitionId)> =
        partitions.iter().map(|info| (info.leader.unwrap_or(-1), info.partition)).collect();
    sorted.sort_unstable();
    let (range, longer) = (sorted.len() / members.len(), sorted.len() % members.len());
    let first = index * range + index.min(longer);
    let length = range + usize::from(index < longer);
    sorted[first..first + length].iter().map(|(_, partition)| *partition).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn partitions(leaders: &[i32]) -> Vec<PartitionInfo> {
        let info = |(partition, leader): (usize, &i32)| PartitionInfo {
            partition: PartitionId::try_from(partition).unwrap(),
            leader: (*leader >= 0).then_some(*leader),
        };
        leaders.iter().enumerate().map(info).collect()
    }

    /// Owners with numbers from 9 on are no members; 11 means that a partition has no owner.
    fn owned_by(owners: &[usize]) -> BTreeMap<PartitionId, String> {
        let named = owners.iter().map(|owner| format!("host:{owner}"));
        (0..).zip(named).filter(|(_, owner)| owner != "host:11").collect()
    }

    fn sticky_shares(
        members: &[String],
        partitions: &[PartitionId],
        owners: &BTreeMap<PartitionId, String>,
    ) -> BTreeMap<String, BTreeSet<PartitionId>> {
        let share = |member: &String| (member.clone(), sticky_partitions(member, members, partitions, owners));
        members.iter().map(share).collect()
    }

    #[test]
    fn a_join_and_a_leave_move_only_what_must_move() {
        let partitions: Vec<PartitionId> = (0..8).collect();
        let share = |member: &str, members: &[&str], owners: &[(PartitionId, &str)]| {
            let owners = owners.iter().map(|(partition, owner)| (*partition, (*owner).to_owned())).collect();
            let mut listed = names(members);
            listed.reverse();
            sticky_partitions(member, &listed, &partitions, &owners).into_iter().collect::<Vec<_>>()
        };
        let two: Vec<_> = (0..4).map(|number| (number, "x")).chain((4..8).map(|number| (number, "y"))).collect();
        assert_eq!(share("w", &["w", "x", "y"], &two), [3, 7], "the new member gets one of each");
        assert_eq!(share("x", &["w", "x", "y"], &two), [0, 1, 2]);
        assert_eq!(share("y", &["w", "x", "y"], &two), [4, 5, 6]);
        assert_eq!(share("x", &["x"], &two), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(share("y", &["x", "y"], &two), [4, 5, 6, 7]);
        assert_eq!(share("a", &["a", "b"], &[]), [0, 1, 2, 3]);
        assert!(share("z", &["a", "b"], &two).is_empty(), "no member");
    }

    #[test]
    fn range_partitions_are_those_of_the_original() {
        // Each case has the members, the leaders of partitions 0, 1, … and the partitions of each member, computed by
        // hand from the original's rule.
        type Case<'a> = (&'a [&'a str], &'a [i32], &'a [&'a [PartitionId]]);
        let cases: [Case<'_>; 9] = [
            (&["a"], &[1, 1, 1], &[&[0, 1, 2]]),
            (&["a", "b"], &[1, 1, 1, 1], &[&[0, 1], &[2, 3]]),
            (&["a", "b"], &[2, 1, 2, 1], &[&[1, 3], &[0, 2]]),
            (&["a", "b", "c"], &[1, 2, 3, 1, 2, 3, 1, 2], &[&[0, 3, 6], &[1, 4, 7], &[2, 5]]),
            (&["a", "b", "c"], &[1, 1, 1, 1], &[&[0, 1], &[2], &[3]]),
            (&["a", "b", "c"], &[1, 1], &[&[0], &[1], &[]]),
            (&["a", "b"], &[], &[&[], &[]]),
            (&["a", "b"], &[1, -1, 0], &[&[1, 2], &[0]]),
            // Ids are sorted by bytes, as Go sorts strings: capital letters come first.
            (&["B:1", "a:1", "a:10", "a:2"], &[0, 0, 0, 0, 0], &[&[0, 1], &[2], &[3], &[4]]),
        ];
        for (number, (members, leaders, shares)) in cases.iter().enumerate() {
            let mut listed = names(members);
            listed.reverse();
            for (member, share) in members.iter().zip(*shares) {
                let mut infos = partitions(leaders);
                infos.reverse();
                assert_eq!(range_partitions(member, &listed, &infos), *share, "case {number}, member {member}");
            }
            assert!(range_partitions("nobody", &listed, &partitions(leaders)).is_empty(), "case {number}");
        }
    }

    proptest! {
        #[test]
        fn every_partition_is_assigned_to_exactly_one_member(
            members in 1usize..9,
            leaders in prop::collection::vec(-1i32..4, 0..40),
        ) {
            let members: Vec<String> = (0..members).map(|member| format!("host:{member}")).collect();
            let infos = partitions(&leaders);
            let shares: Vec<_> = members.iter().map(|member| range_partitions(member, &members, &infos)).collect();
            let mut all: Vec<PartitionId> = shares.concat();
            all.sort_unstable();
            prop_assert_eq!(all, infos.iter().map(|info| info.partition).collect::<Vec<_>>());
            let lengths = shares.iter().map(Vec::len);
            prop_assert!(lengths.clone().max().unwrap() - lengths.min().unwrap() <= 1);
        }

        #[test]
        fn sticky_shares_are_balanced_and_as_few_partitions_as_possible_move(
            members in 1usize..9,
            owners in prop::collection::vec(0usize..12, 0..40),
        ) {
            let members: Vec<String> = (0..members).map(|member| format!("host:{member}")).collect();
            let partitions: Vec<PartitionId> = (0..).take(owners.len()).collect();
            let owned = owned_by(&owners);
            let shares = sticky_shares(&members, &partitions, &owned);
            let mut all: Vec<PartitionId> = shares.values().flatten().copied().collect();
            all.sort_unstable();
            prop_assert_eq!(&all, &partitions);
            let lengths = shares.values().map(BTreeSet::len);
            prop_assert!(lengths.clone().max().unwrap() - lengths.min().unwrap() <= 1);

            let (share, longer) = (partitions.len() / members.len(), partitions.len() % members.len());
            let counts = members.iter().map(|member| owned.values().filter(|owner| *owner == member).count());
            let n_above = counts.clone().filter(|count| *count > share).count();
            let surplus: usize = counts.map(|count| count.saturating_sub(share)).sum();
            let moved = owned.iter().filter(|(partition, owner)| {
                shares.get(*owner).is_some_and(|share| !share.contains(partition))
            });
            prop_assert_eq!(moved.count(), surplus - n_above.min(longer));
        }

        #[test]
        fn every_state_between_two_sticky_assignments_has_the_same_result(
            members in 1usize..9,
            owners in prop::collection::vec(0usize..12, 1..40),
            steps in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        ) {
            let members: Vec<String> = (0..members).map(|member| format!("host:{member}")).collect();
            let partitions: Vec<PartitionId> = (0..).take(owners.len()).collect();
            let mut owned = owned_by(&owners);
            let shares = sticky_shares(&members, &partitions, &owned);
            for step in steps {
                let partition = partitions[step.index(partitions.len())];
                let target = members.iter().find(|member| shares[*member].contains(&partition)).unwrap();
                // A release by the present owner, or else the claim of the next one.
                match owned.get(&partition) {
                    Some(owner) if owner != target => drop(owned.remove(&partition)),
                    Some(_) => {}
                    None => drop(owned.insert(partition, target.clone())),
                }
                prop_assert_eq!(&sticky_shares(&members, &partitions, &owned), &shares);
            }
        }
    }
}
