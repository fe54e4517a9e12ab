//! The range assignor: computes which member of a group pushes which partitions of a topic.
//!
//! Every member computes its own partitions from the same lists, so all members must use the same rule. It is the rule
//! of the original's Go group library: while the original is being replaced, its processes and ktransfers are in the
//! same group.

use crate::broker::{PartitionId, PartitionInfo};

/// Returns the partitions assigned to `member`, sorted by leader, then number; none if `member` is not among `members`.
///
/// Members are sorted by id, partitions by leader, then number; a partition without a leader counts as leader -1. Each
/// member gets a range of `partitions / members` partitions; the first `partitions % members` ranges are one longer.
pub(super) fn assigned_partitions(member: &str, members: &[String], partitions: &[PartitionInfo]) -> Vec<PartitionId> {
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

    #[test]
    fn assigned_partitions_are_those_of_the_original() {
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
                assert_eq!(assigned_partitions(member, &listed, &infos), *share, "case {number}, member {member}");
            }
            assert!(assigned_partitions("nobody", &listed, &partitions(leaders)).is_empty(), "case {number}");
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
            let shares: Vec<_> = members.iter().map(|member| assigned_partitions(member, &members, &infos)).collect();
            let mut all: Vec<PartitionId> = shares.concat();
            all.sort_unstable();
            prop_assert_eq!(all, infos.iter().map(|info| info.partition).collect::<Vec<_>>());
            let lengths = shares.iter().map(Vec::len);
            prop_assert!(lengths.clone().max().unwrap() - lengths.min().unwrap() <= 1);
        }
    }
}
