use super::*;
use crate::kafka::metadata::BrokerInfo;

const NAME: &str = "t";

fn address(port: u16) -> BrokerAddress {
    BrokerAddress { host: "kafka".into(), port }
}

/// Metadata of one topic; `partitions` are number, leader and epoch.
fn metadata(id: Option<u8>, partitions: &[(i32, Option<BrokerId>, i32)]) -> MetadataResponse {
    let partition = |(partition, leader, leader_epoch): &(i32, Option<BrokerId>, i32)| PartitionMetadata {
        partition: *partition,
        error_code: 0,
        leader: *leader,
        leader_epoch: *leader_epoch,
        replicas: vec![],
        in_sync: vec![],
    };
    let topic = TopicMetadata {
        name: NAME.into(),
        id: id.map(|byte| [byte; 16]),
        error_code: 0,
        may_write: None,
        partitions: partitions.iter().map(partition).collect(),
    };
    let brokers = [1, 2].map(|id| BrokerInfo { id, address: address(id as u16), rack: None });
    MetadataResponse { brokers: brokers.to_vec(), topics: vec![topic], ..MetadataResponse::default() }
}

fn leaders_after(view: &mut ClusterView, metadata: &MetadataResponse, now: Instant) -> Vec<Option<BrokerId>> {
    view.update(metadata, now);
    view.leaders(NAME).unwrap()
}

#[test]
fn a_leader_with_an_older_epoch_is_ignored() {
    let (mut view, now) = (ClusterView::default(), Instant::now());
    let new = metadata(Some(1), &[(1, Some(2), 5), (0, Some(1), 5)]);
    assert_eq!(leaders_after(&mut view, &new, now), [Some(1), Some(2)]);
    let old = metadata(Some(1), &[(0, Some(2), 4), (1, None, 6)]);
    assert_eq!(leaders_after(&mut view, &old, now), [Some(1), None]);
    // Brokers before 2.1 return no epoch.
    assert_eq!(leaders_after(&mut view, &metadata(None, &[(0, Some(2), -1)]), now), [Some(2), None]);
}

#[test]
fn a_topic_recreated_has_the_leaders_of_the_new_topic() {
    let (mut view, now) = (ClusterView::default(), Instant::now());
    leaders_after(&mut view, &metadata(Some(1), &[(0, Some(1), 5), (1, Some(1), 5)]), now);
    assert_eq!(leaders_after(&mut view, &metadata(Some(2), &[(0, Some(2), 0)]), now), [Some(2)]);
}

#[test]
fn without_topic_ids_older_epochs_are_believed_after_a_while() {
    let (mut view, start) = (ClusterView::default(), Instant::now());
    let (before, recreated) = (metadata(None, &[(0, Some(1), 5)]), metadata(None, &[(0, Some(2), 0)]));
    leaders_after(&mut view, &before, start);
    assert_eq!(leaders_after(&mut view, &recreated, start), [Some(1)]);
    // Another broker still has the newer epoch: the time begins again.
    assert_eq!(leaders_after(&mut view, &before, start + DISBELIEF_TIME / 2), [Some(1)]);
    let again = start + DISBELIEF_TIME;
    assert_eq!(leaders_after(&mut view, &recreated, again), [Some(1)]);
    assert_eq!(leaders_after(&mut view, &recreated, again + DISBELIEF_TIME), [Some(2)]);
    assert_eq!(leaders_after(&mut view, &recreated, again + DISBELIEF_TIME), [Some(2)]);
}

#[test]
fn a_response_with_fewer_partitions_removes_none_and_one_with_more_adds_them() {
    let (mut view, now) = (ClusterView::default(), Instant::now());
    leaders_after(&mut view, &metadata(Some(1), &[(0, Some(1), 0), (1, Some(2), 0)]), now);
    assert_eq!(leaders_after(&mut view, &metadata(Some(1), &[(0, Some(1), 0)]), now), [Some(1), Some(2)]);
    let more = metadata(Some(1), &[(0, Some(1), 0), (1, Some(2), 0), (2, Some(1), 0)]);
    assert_eq!(leaders_after(&mut view, &more, now), [Some(1), Some(2), Some(1)]);
    // A number without those before it, and a negative one.
    let odd = metadata(Some(1), &[(9, Some(1), 0), (-1, Some(1), 0)]);
    assert_eq!(leaders_after(&mut view, &odd, now), [Some(1), Some(2), Some(1)]);
}

#[test]
fn a_count_is_that_of_the_broker_that_knows_most_unless_the_topic_was_recreated() {
    let (mut view, now) = (ClusterView::default(), Instant::now());
    let (one, two) = ([(0, Some(1), 0)], [(0, Some(1), 0), (1, Some(2), 0)]);
    for (id, lagging_id, expected) in [(Some(1), Some(1), Some(2)), (Some(1), Some(2), None), (None, None, None)] {
        view.topics.clear();
        view.update(&metadata(id, &two), now);
        assert!(view.higher_counts(&metadata(id, &two)).is_empty());
        let lagging = metadata(lagging_id, &one);
        view.update(&lagging, now);
        assert_eq!(view.higher_counts(&lagging).get(NAME).copied(), expected, "{id:?} {lagging_id:?}");
    }
}

#[test]
fn the_epochs_of_another_cluster_count_at_once() {
    let (mut view, now) = (ClusterView::default(), Instant::now());
    assert!(!view.enter_cluster(Some("a")), "the first cluster");
    view.update(&metadata(None, &[(0, Some(1), 5)]), now);
    assert!(!view.enter_cluster(Some("a")) && !view.enter_cluster(None));
    assert!(view.enter_cluster(Some("b")));
    assert_eq!(leaders_after(&mut view, &metadata(None, &[(0, Some(2), 0)]), now), [Some(2)]);
    assert!(!view.enter_cluster(Some("b")) && view.enter_cluster(Some("a")));
}

#[test]
fn a_hint_counts_if_its_epoch_is_newer_and_its_broker_has_an_address() {
    let (mut view, now) = (ClusterView::default(), Instant::now());
    leaders_after(&mut view, &metadata(Some(1), &[(0, Some(1), 5)]), now);
    let hint = |leader, epoch| [(Arc::from(NAME), 0, Some((leader, epoch)))];
    assert!(view.apply_hints(&hint(2, 5), &[]).is_empty(), "not newer");
    assert!(view.apply_hints(&hint(7, 6), &[]).is_empty(), "no address");
    let invalid = NodeAddress { id: 7, host: "kafka".into(), port: -1 };
    assert!(view.apply_hints(&hint(7, 6), &[invalid]).is_empty(), "no valid address");
    assert!(view.apply_hints(&[(Arc::from(NAME), 3, Some((2, 9)))], &[]).is_empty(), "no such partition");
    let node = NodeAddress { id: 7, host: "kafka".into(), port: 70 };
    assert_eq!(view.apply_hints(&hint(7, 6), &[node]), [NAME.into()]);
    assert_eq!((view.leaders(NAME), view.address_of(7)), (Some(vec![Some(7)]), Some(address(70))));
    // Metadata from before the hint.
    assert_eq!(leaders_after(&mut view, &metadata(Some(1), &[(0, Some(1), 5)]), now), [Some(7)]);
}

#[test]
fn only_what_changed_is_passed_on() {
    let (mut view, now) = (ClusterView::default(), Instant::now());
    let first = metadata(Some(1), &[(0, Some(1), 5)]);
    assert_eq!(view.update(&first, now), [NAME.into()]);
    assert!(view.update(&first, now).is_empty());
    assert_eq!(view.update(&metadata(Some(1), &[(0, Some(1), 5), (1, Some(1), 0)]), now), [NAME.into()]);
    assert_eq!(view.update(&metadata(Some(1), &[(0, Some(2), 6)]), now), [NAME.into()]);
    // Batches that were made smaller may grow again.
    assert!(view.change_limit(NAME, |limit| limit.record_closed(2_000, now)));
    assert!(!view.change_limit(NAME, |limit| limit.record_closed(20_000, now)));
    assert!(!view.change_limit("other", |limit| limit.record_closed(2_000, now)));
    let later = now + Duration::from_secs(3_600);
    assert_eq!(view.update(&metadata(Some(1), &[(0, Some(2), 6)]), later), [NAME.into()]);
}

#[test]
fn a_topic_is_named_once_however_many_of_its_partitions_have_a_hint() {
    let (mut view, now) = (ClusterView::default(), Instant::now());
    let partitions: Vec<_> = (0..1_000).map(|partition| (partition, Some(1), 5)).collect();
    leaders_after(&mut view, &metadata(Some(1), &partitions), now);
    let hints: Vec<LeaderHint> = (0..1_000).map(|partition| (NAME.into(), partition, Some((2, 6)))).collect();
    assert_eq!(view.apply_hints(&hints, &[]), [NAME.into()]);
    assert_eq!(view.leaders(NAME), Some(vec![Some(2); 1_000]));
}

#[test]
fn a_topic_is_missing_for_long_if_every_response_says_so_for_a_minute() {
    let (mut view, now) = (ClusterView::default(), Instant::now());
    let known = metadata(Some(1), &[(0, Some(1), 5)]);
    let mut missing = metadata(None, &[]);
    missing.topics[0].error_code = error_code::UNKNOWN_TOPIC_OR_PARTITION;
    view.update(&missing, now);
    view.update(&known, now);
    assert!(view.long_missing(now + MISSING_FOR).is_empty(), "it was not known when it was missing");
    view.update(&missing, now);
    assert!(view.long_missing(now + MISSING_FOR / 2).is_empty());
    view.update(&known, now + MISSING_FOR / 2);
    view.update(&missing, now + MISSING_FOR / 2);
    assert!(view.long_missing(now + MISSING_FOR).is_empty());
    let later = now + MISSING_FOR * 2;
    assert_eq!(view.long_missing(later), [NAME.into()]);
    // A response with the topic comes before it is forgotten.
    view.update(&known, later);
    assert!(!view.remove_missing(NAME, later));
    assert_eq!(view.leaders(NAME), Some(vec![Some(1)]));
    view.update(&missing, later);
    assert!(!view.remove_missing(NAME, later) && view.remove_missing(NAME, later + MISSING_FOR));
    assert_eq!((view.leaders(NAME), view.long_missing(later + MISSING_FOR)), (None, vec![]));
}
