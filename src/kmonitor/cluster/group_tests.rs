//! Tests of the poller with groups in Kafka.

use std::time::Instant;

use super::tests::rig;
use super::*;
use crate::broker::{
    CommittedOffset, GroupDescription, GroupListing, GroupReader, GroupState, ListedGroup, MetadataError, PartitionId,
    TopicPartition,
};
use crate::kmonitor::facts::Verdict;
use crate::kmonitor::places::Times;

/// One group, which has committed an offset of `t`, and whose member also has a partition of `new`.
struct OneGroup;

fn at(topic: &str, partition: PartitionId) -> TopicPartition {
    TopicPartition { topic: topic.into(), partition }
}

impl GroupReader for OneGroup {
    fn list(&mut self, _: &BTreeSet<i32>, _: Instant) -> GroupListing {
        let groups = vec![ListedGroup { name: "m".into(), state: GroupState::Active }];
        GroupListing { groups, ..GroupListing::default() }
    }

    fn coordinators(&mut self, groups: &[Arc<str>], _: &BTreeSet<i32>, _: Instant) -> Vec<Option<i32>> {
        groups.iter().map(|_| Some(1)).collect()
    }

    fn committed(&mut self, groups: &[Arc<str>], _: Instant) -> Vec<Result<Vec<CommittedOffset>, MetadataError>> {
        let offset = || CommittedOffset { at: at("t", 0), offset: 1, metadata: String::new() };
        groups.iter().map(|_| Ok(vec![offset()])).collect()
    }

    fn describe(&mut self, groups: &[Arc<str>], _: Instant) -> Vec<Result<GroupDescription, MetadataError>> {
        let owners = || [at("t", 0), at("t", 1), at("new", 0)].map(|at| (at, Arc::from("client@host"))).to_vec();
        groups.iter().map(|_| Ok(GroupDescription { member_count: 1, owners: Some(owners()) })).collect()
    }
}

#[test]
fn a_topic_that_a_description_names_is_known_in_the_same_view() {
    let mut rig = rig();
    rig.broker.create_topic("new", 1);
    for topic in ["t", "new", "t", "new", "t", "new"] {
        rig.broker.put(topic, 0, None, b"x");
    }
    let times = Times { forget_after: None, left_behind_after: Duration::from_secs(600) };
    rig.poller.keeper = None;
    rig.poller.places = Places::new("c".into(), vec![Source::Kafka], times);
    rig.poller.groups = Some((KafkaSource::new(Box::new(|_| Ok(Box::new(OneGroup)))), NameFilter::of(&["*"])));
    for poll in 0..2 {
        assert_eq!(rig.poller.poll(Extent::Whole, &Stop::new()), Ok("complete"));
        let view = rig.store.view().clusters.remove(0);
        let found: Vec<_> = view.modules.iter().map(|module| (&*module.topic, module.delay, module.verdict)).collect();
        assert_eq!(found, [("new", Some(3), Verdict::Ok), ("t", Some(2), Verdict::Ok)], "poll {poll}");
        assert!(view.modules.iter().all(|module| !module.delay_is_partial && module.owners == Some(1)), "poll {poll}");
    }
}
