//! Which member of a group pushes which partitions of a topic.
//!
//! Every member works this out for itself from the same lists, so the rule may never change: it is the one of the Go
//! group library that the original used, and members of both kinds share a group during a swap.

use crate::broker::{PartitionId, PartitionInfo};

/// The partitions of the member `me`, in the order in which they are dealt; none if it is not among the members.
///
/// Members are sorted by id, partitions by leader, then number (a missing leader counts as -1). They are dealt in runs of
/// `partitions / members`; the first `partitions % members` runs are one longer.
pub fn share_of(me: &str, members: &[String], partitions: &[PartitionInfo]) -> Vec<PartitionId> {
    let mut members: Vec<&str> = members.iter().map(String::as_str).collect();
    members.sort_unstable();
    members.dedup();
    let Ok(place) = members.binary_search(&me) else { return Vec::new() };
    let mut dealt: Vec<(i32, PartitionId)> =
        partitions.iter().map(|known| (known.leader.unwrap_or(-1), known.partition)).collect();
    dealt.sort_unstable();
    let (run, longer) = (dealt.len() / members.len(), dealt.len() % members.len());
    let first = place * run + place.min(longer);
    let length = run + usize::from(place < longer);
    dealt[first..first + length].iter().map(|(_, partition)| *partition).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn partitions(leaders: &[i32]) -> Vec<PartitionInfo> {
        let known = |(partition, leader): (usize, &i32)| PartitionInfo {
            partition: PartitionId::try_from(partition).unwrap(),
            leader: (*leader >= 0).then_some(*leader),
        };
        leaders.iter().enumerate().map(known).collect()
    }

    #[test]
    fn shares_are_those_of_the_original() {
        // Worked out by hand from the original's rule: members, leader of partition 0, 1, …; share of each member in turn.
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
            // Sorting is by bytes, as Go's: capitals first.
            (&["B:1", "a:1", "a:10", "a:2"], &[0, 0, 0, 0, 0], &[&[0, 1], &[2], &[3], &[4]]),
        ];
        for (number, (members, leaders, shares)) in cases.iter().enumerate() {
            let mut listed = names(members);
            listed.reverse();
            for (member, share) in members.iter().zip(*shares) {
                let mut known = partitions(leaders);
                known.reverse();
                assert_eq!(share_of(member, &listed, &known), *share, "case {number}, member {member}");
            }
            assert!(share_of("nobody", &listed, &partitions(leaders)).is_empty(), "case {number}");
        }
    }

    proptest! {
        #[test]
        fn every_partition_belongs_to_exactly_one_member(members in 1usize..9, leaders in prop::collection::vec(-1i32..4, 0..40)) {
            let members: Vec<String> = (0..members).map(|member| format!("host:{member}")).collect();
            let known = partitions(&leaders);
            let shares: Vec<_> = members.iter().map(|member| share_of(member, &members, &known)).collect();
            let mut all: Vec<PartitionId> = shares.concat();
            all.sort_unstable();
            prop_assert_eq!(all, known.iter().map(|one| one.partition).collect::<Vec<_>>());
            let lengths = shares.iter().map(Vec::len);
            prop_assert!(lengths.clone().max().unwrap() - lengths.min().unwrap() <= 1);
        }
    }
}
