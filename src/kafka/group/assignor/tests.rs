use super::*;
use crate::kafka::group::TopicPartition;
use crate::kafka::group::subscription::{NO_GENERATION, Subscription};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;

fn on(topic: &str, partition: i32) -> TopicPartition {
    TopicPartition { topic: topic.into(), partition }
}

fn member(id: &str, topics: &[&str], owned: &[TopicPartition], generation: i32) -> GroupMember {
    let topics = topics.iter().map(|topic| Arc::from(*topic)).collect();
    let subscription = Subscription { topics, owned: owned.to_vec(), generation, ..Subscription::default() };
    GroupMember { member_id: id.into(), instance_id: None, subscription }
}

fn counts(topics: &[(&str, i32)]) -> PartitionCounts {
    topics.iter().map(|(topic, count)| (Arc::from(*topic), *count)).collect()
}

fn sizes(assignments: &Assignments) -> Vec<usize> {
    assignments.values().map(Vec::len).collect()
}

#[test]
fn range_splits_each_topic_and_puts_static_members_first() {
    let mut members = [member("a", &["t", "u"], &[], -1), member("b", &["t"], &[], -1), member("c", &["t"], &[], -1)];
    members[2].instance_id = Some("i".into());
    let assignments = range::assign(&members, &counts(&[("t", 4), ("u", 1), ("unread", 3)]));
    let of = |id: &str| &assignments[&Arc::from(id)][..];
    assert_eq!(of("c"), [on("t", 0), on("t", 1)]);
    assert_eq!(of("a"), [on("t", 2), on("u", 0)]);
    assert_eq!(of("b"), [on("t", 3)]);
}

#[test]
fn a_partition_that_moves_is_withheld_until_its_holder_has_released_it() {
    let owned: Vec<_> = (0..4).map(|partition| on("t", partition)).collect();
    let mut members = [member("a", &["t"], &owned, 3), member("b", &["t"], &[], NO_GENERATION)];
    let first = cooperative(&members, &counts(&[("t", 4)]));
    assert_eq!(sizes(&first), [2, 0]);
    members[0].subscription.owned = first[&Arc::from("a")].clone();
    let second = cooperative(&members, &counts(&[("t", 4)]));
    assert_eq!(sizes(&second), [2, 2]);
    assert_eq!(second[&Arc::from("a")], first[&Arc::from("a")]);
}

#[test]
fn claims_of_an_older_generation_lose_and_those_of_the_same_generation_contradict_each_other() {
    let both = [on("t", 0), on("t", 1)];
    let assign = |generations: [i32; 2]| {
        let members = [member("a", &["t"], &both, generations[0]), member("b", &["t"], &both[..1], generations[1])];
        cooperative(&members, &counts(&[("t", 2)]))
    };
    // b keeps what it was assigned last; a holds the other partition.
    assert_eq!(assign([4, 5]).into_values().collect::<Vec<_>>(), [vec![on("t", 1)], vec![on("t", 0)]]);
    // Balance moves one partition from a to b, which must wait for a.
    assert_eq!(sizes(&assign([5, 4])), [1, 0]);
    // Neither may go on with the contested partition.
    assert!(assign([4, 4]).values().all(|assigned| !assigned.contains(&on("t", 0))));
}

#[test]
fn java_members_with_the_generation_in_their_user_data_take_part() {
    let mut java = member("java", &["t"], &[on("t", 0), on("t", 1)], NO_GENERATION);
    java.subscription.user_data = Some(7_i32.to_be_bytes().to_vec());
    let stale = member("stale", &["t"], &[on("t", 0), on("t", 1)], 6);
    let assignments = cooperative(&[java, stale], &counts(&[("t", 2)]));
    assert_eq!(sizes(&assignments), [1, 0]);
}

#[test]
fn a_balance_that_needs_a_move_through_a_third_member_is_found() {
    // The counts 2, 1, 0: no direct move helps.
    let members = [
        member("a", &["t"], &[on("t", 0), on("t", 1)], 1),
        member("b", &["t", "u"], &[on("u", 0)], 1),
        member("c", &["u"], &[], NO_GENERATION),
    ];
    assert_eq!(sizes(&sticky::assign(&members, &counts(&[("t", 2), ("u", 1)]))), [1, 1, 1]);
}

#[test]
fn ten_thousand_partitions_and_a_hundred_members_are_balanced() {
    let topics: Vec<String> = (0..100).map(|topic| format!("t{topic}")).collect();
    let names: Vec<_> = topics.iter().map(String::as_str).collect();
    let all: Vec<_> = names.iter().flat_map(|topic| (0..100).map(|partition| on(topic, partition))).collect();
    let members: Vec<_> =
        (0..100).map(|index| member(&format!("m{index}"), &names, if index == 0 { &all } else { &[] }, 1)).collect();
    let counts = counts(&names.iter().map(|name| (*name, 100)).collect::<Vec<_>>());
    assert!(sizes(&sticky::assign(&members, &counts)).iter().all(|size| *size == 100));
}

/// The assignments without the flag.
fn cooperative(members: &[GroupMember], counts: &PartitionCounts) -> Assignments {
    let (assignments, is_withheld) = Assignor::CooperativeSticky.assign(members, counts);
    let assigned: usize = assignments.values().map(Vec::len).sum();
    assert_eq!(is_withheld, assigned < subscribed(members, counts).len());
    assignments
}

const TOPICS: [&str; 3] = ["t", "u", "v"];

/// Members with any subscriptions and claims, also of partitions that do not exist or that others claim.
fn groups(equal: bool) -> impl Strategy<Value = (Vec<GroupMember>, PartitionCounts)> {
    let claims = proptest::collection::vec((0..3_usize, 0..12_i32), 0..12);
    let members = proptest::collection::vec((1..8_usize, claims, -1..4_i32), 1..6);
    (members, proptest::collection::vec(0..9_i32, 3)).prop_map(move |(members, sizes)| {
        let members = members.into_iter().enumerate().map(|(index, (topics, claims, generation))| {
            let mask = if equal { 7 } else { topics };
            let topics: Vec<_> = (0..3).filter(|topic| mask >> topic & 1 == 1).map(|topic| TOPICS[topic]).collect();
            let owned: Vec<_> = claims.into_iter().map(|(topic, partition)| on(TOPICS[topic], partition)).collect();
            member(&format!("m{index}"), &topics, &owned, generation)
        });
        (members.collect(), TOPICS.iter().zip(sizes).map(|(topic, size)| (Arc::from(*topic), size)).collect())
    })
}

/// All partitions of the topics that have a subscriber.
fn subscribed(members: &[GroupMember], counts: &PartitionCounts) -> BTreeSet<TopicPartition> {
    let has_subscriber = |topic: &Arc<str>| members.iter().any(|member| member.subscription.topics.contains(topic));
    let topics = counts.iter().filter(|(topic, _)| has_subscriber(topic));
    topics.flat_map(|(topic, count)| (0..*count).map(|partition| on(topic, partition))).collect()
}

/// What a member keeps of its claims after the assignment.
fn apply(members: &mut [GroupMember], assignments: &Assignments, generation: i32) -> bool {
    let mut is_final = true;
    for member in members {
        let assigned = &assignments[&member.member_id];
        is_final &= member.subscription.owned.iter().all(|partition| assigned.contains(partition));
        member.subscription.owned = assigned.clone();
        member.subscription.generation = generation;
    }
    is_final
}

fn check_each_has_at_most_one_subscriber(members: &[GroupMember], assignments: &Assignments) {
    let mut seen = BTreeSet::new();
    for member in members {
        for partition in &assignments[&member.member_id] {
            assert!(member.subscription.topics.contains(&partition.topic), "{partition} has no subscriber");
            assert!(seen.insert(partition.clone()), "{partition} is assigned twice");
        }
    }
}

fn check_balanced(members: &[GroupMember], assignments: &Assignments) {
    for giver in members {
        for receiver in members {
            let (given, received) = (&assignments[&giver.member_id], &assignments[&receiver.member_id]);
            let could_move = given.iter().any(|partition| receiver.subscription.topics.contains(&partition.topic));
            assert!(!could_move || given.len() <= received.len() + 1, "{assignments:?}");
        }
    }
}

proptest! {
    #[test]
    fn no_partition_has_two_holders_and_all_are_assigned_in_the_end(
        (mut members, counts) in prop_oneof![groups(true), groups(false)],
    ) {
        let all = subscribed(&members, &counts);
        for generation in 4..10 {
            let assignments = cooperative(&members, &counts);
            check_each_has_at_most_one_subscriber(&members, &assignments);
            // A partition that another member claims is not assigned, unless the claim is an older one.
            for member in &members {
                for other in members.iter().filter(|other| other.member_id != member.member_id) {
                    for partition in assignments[&member.member_id].iter()
                        .filter(|partition| other.subscription.owned.contains(partition))
                    {
                        prop_assert!(member.subscription.owned.contains(partition));
                        prop_assert!(member.subscription.generation > other.subscription.generation);
                    }
                }
            }
            if apply(&mut members, &assignments, generation) {
                let assigned: BTreeSet<_> = assignments.values().flatten().cloned().collect();
                prop_assert_eq!(assigned, all);
                check_balanced(&members, &assignments);
                // Another rebalance changes nothing.
                prop_assert_eq!(cooperative(&members, &counts), assignments);
                return Ok(());
            }
            prop_assert!(generation < 6, "no more than two follow-up rebalances");
        }
    }

    #[test]
    fn equal_subscriptions_are_balanced_and_keep_as_much_as_balance_allows((members, counts) in groups(true)) {
        let assignments = sticky::assign(&members, &counts);
        let sizes = sizes(&assignments);
        let (min, max) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
        prop_assert!(max - min <= 1);
        // The claims that count: those of the only member with the newest generation.
        let all = subscribed(&members, &counts);
        let claims = |member: &GroupMember| -> BTreeSet<TopicPartition> {
            let is_newest = |partition: &&TopicPartition| members.iter().all(|other| {
                other.member_id == member.member_id
                    || !other.subscription.owned.contains(partition)
                    || other.subscription.generation < member.subscription.generation
            });
            let owned = member.subscription.owned.iter();
            owned.filter(|partition| all.contains(partition)).filter(is_newest).cloned().collect()
        };
        let claimed: Vec<_> = members.iter().map(claims).collect();
        let kept: usize = members.iter().zip(&claimed)
            .map(|(member, claims)| assignments[&member.member_id].iter().filter(|p| claims.contains(p)).count())
            .sum();
        // Every member may keep the lower share, and as many members as there are longer shares one more.
        let (share, longer) = (all.len() / members.len(), all.len() % members.len());
        let with_more = claimed.iter().filter(|claims| claims.len() > share).count();
        let possible: usize = claimed.iter().map(|claims| claims.len().min(share)).sum();
        prop_assert_eq!(kept, possible + with_more.min(longer));
    }

    #[test]
    fn range_assigns_everything_once((members, counts) in groups(false)) {
        let assignments = range::assign(&members, &counts);
        check_each_has_at_most_one_subscriber(&members, &assignments);
        let assigned: BTreeSet<_> = assignments.values().flatten().cloned().collect();
        prop_assert_eq!(assigned, subscribed(&members, &counts));
    }
}
