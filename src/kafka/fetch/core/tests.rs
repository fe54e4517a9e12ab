use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::super::FetchConfig;
use super::super::event::{FetchEvent, TopicPartition};
use super::super::outcome::{FetchOutcome, PartitionOutcome};
use super::super::record_set::{UnpackLimits, unpack};
use super::super::session::WantedPartition;
use super::state::BrokerState;
use super::*;
use crate::kafka::compression::Codec;
use crate::kafka::config::BrokerAddress;
use crate::kafka::metadata::{BrokerId, BrokerInfo, MetadataResponse, PartitionMetadata, TopicMetadata};
use crate::kafka::record_batch::{BatchBuilder, ProducerState, RecordView};

mod errors;

const VERSIONS: BrokerVersions = BrokerVersions { fetch: 17, has_epoch_ends: true };
const SECOND: Duration = Duration::from_secs(1);

fn name(partition: i32) -> TopicPartition {
    TopicPartition { topic: "t".into(), partition }
}

/// A core that reads these partitions, all led by broker 1, with connected workers for brokers 1 and 2.
fn core(prefetch_bytes: usize, partitions: i32, now: Instant) -> FetchCore {
    let max_wait = Duration::from_millis(250);
    let config =
        FetchConfig { prefetch_bytes, max_message_bytes: 1000, max_wait, client_rack: None, read_committed: true };
    let mut core = FetchCore::new(config, now);
    (0..partitions).for_each(|partition| core.assign(name(partition), 0, None, None, now));
    core.on_metadata(&["t".into()], &metadata(partitions, 1, 5), now);
    assert_eq!(core.missing_workers(now), [1]);
    core.brokers.insert(2, BrokerState::new(now));
    for id in [1, 2] {
        core.on_connected(id, VERSIONS);
    }
    core
}

fn metadata(partitions: i32, leader: BrokerId, leader_epoch: i32) -> MetadataResponse {
    let broker =
        |id| BrokerInfo { id, address: BrokerAddress { host: "h".into(), port: 9000 + id as u16 }, rack: None };
    let partition = |partition| PartitionMetadata {
        partition,
        error_code: 0,
        leader: Some(leader),
        leader_epoch,
        replicas: Vec::new(),
        in_sync: Vec::new(),
    };
    let partitions = (0..partitions).map(partition).collect();
    let topic = TopicMetadata { name: "t".into(), id: Some([1; 16]), error_code: 0, may_write: None, partitions };
    MetadataResponse { brokers: vec![broker(1), broker(2)], topics: vec![topic], ..MetadataResponse::default() }
}

fn fetch(core: &mut FetchCore, id: BrokerId, now: Instant) -> FetchPlan {
    match core.next_work(id, now) {
        Work::Fetch(plan) => plan,
        other => panic!("a fetch request is expected, not {other:?}"),
    }
}

/// A successful response with `count` messages of 100 bytes for each partition of the request.
fn respond(core: &mut FetchCore, id: BrokerId, plan: &FetchPlan, count: i64, now: Instant) {
    let partitions = plan.wanted.iter().map(|wanted| messages(wanted, count));
    let outcome = outcome(partitions.collect());
    core.on_fetched(id, plan, outcome, false, now);
}

/// `count` messages of 100 bytes.
fn messages(wanted: &WantedPartition, count: i64) -> PartitionOutcome {
    let mut builder = BatchBuilder::default();
    for _ in 0..count {
        builder.push(&RecordView { key: None, value: Some(&[7; 100]), headers: &[], timestamp_ms: 0 });
    }
    let mut data = Vec::new();
    if count > 0 {
        builder.finish(Codec::None, ProducerState::NONE, &mut data).unwrap();
        data[..8].copy_from_slice(&wanted.fetch.offset.to_be_bytes());
    }
    let limits = UnpackLimits { stop_bytes: 1 << 20, max_batch_bytes: 1 << 20 };
    PartitionOutcome {
        name: name(wanted.fetch.partition),
        unpacked: Some(unpack(&data, wanted.fetch.offset, &[], limits)),
        records_bytes: data.len(),
        ..empty(wanted.fetch.partition)
    }
}

fn outcome(partitions: Vec<PartitionOutcome>) -> FetchOutcome {
    FetchOutcome { throttle: Duration::ZERO, error_code: 0, session_id: 1, nodes: Vec::new(), partitions }
}

fn empty(partition: i32) -> PartitionOutcome {
    PartitionOutcome {
        name: name(partition),
        error_code: 0,
        preferred_replica: None,
        diverging: None,
        current_leader: None,
        records_bytes: 0,
        unpacked: Some(unpack(&[], 0, &[], UnpackLimits { stop_bytes: 1, max_batch_bytes: 1 })),
    }
}

/// Number of messages of each partition in these events.
fn counts(events: &[FetchEvent]) -> HashMap<i32, usize> {
    let mut counts = HashMap::new();
    for event in events {
        if let FetchEvent::Messages(messages) = event {
            *counts.entry(messages.partition().partition).or_default() += messages.len();
        }
    }
    counts
}

#[test]
fn no_request_is_sent_until_a_poll_makes_room() {
    let now = Instant::now();
    let mut core = core(10_000, 2, now);
    let plan = fetch(&mut core, 1, now);
    respond(&mut core, 1, &plan, 50, now);
    assert!(matches!(core.next_work(1, now), Work::Wait(None)), "both partitions have their shares");
    assert_eq!(counts(&core.take(90)), HashMap::from([(0, 45), (1, 45)]), "equal shares of a poll");
    assert!(core.take_waits_for_room());
    assert_eq!(fetch(&mut core, 1, now).wanted.len(), 2);
}

#[test]
fn paused_partitions_do_not_take_the_room_of_the_others() {
    let now = Instant::now();
    let mut core = core(10_000, 2, now);
    let plan = fetch(&mut core, 1, now);
    respond(&mut core, 1, &plan, 60, now);
    core.set_paused(&name(0), true);
    assert_eq!(counts(&core.take(1000)), HashMap::from([(1, 60)]));
    let plan = fetch(&mut core, 1, now);
    assert_eq!(plan.wanted.iter().map(|wanted| wanted.fetch.partition).collect::<Vec<_>>(), [1]);
    // What was dropped is fetched again.
    core.set_paused(&name(0), false);
    respond(&mut core, 1, &plan, 0, now);
    let plan = fetch(&mut core, 1, now);
    let again = plan.wanted.iter().find(|wanted| wanted.fetch.partition == 0).unwrap();
    assert_eq!(again.fetch.offset, 0);
}

#[test]
fn a_paused_partition_without_a_leader_is_reported_after_the_pause() {
    let now = Instant::now();
    let mut core = core(10_000, 1, now);
    core.set_paused(&name(0), true);
    let mut leaderless = metadata(1, 1, 5);
    leaderless.topics[0].partitions[0].leader = None;
    let errors_at = |core: &mut FetchCore, seconds| {
        core.on_metadata(&["t".into()], &leaderless, now + Duration::from_secs(seconds));
        let events = core.take(100);
        events.iter().filter(|event| matches!(event, FetchEvent::PartitionError { .. })).count()
    };
    assert_eq!([errors_at(&mut core, 1), errors_at(&mut core, 60)], [0, 0]);
    core.set_paused(&name(0), false);
    assert_eq!(errors_at(&mut core, 61), 1);
}

#[test]
fn nothing_is_returned_after_a_revocation_or_of_an_earlier_assignment() {
    let now = Instant::now();
    let mut core = core(100_000, 2, now);
    let plan = fetch(&mut core, 1, now);
    core.revoke(&name(0));
    core.assign(name(1), 30, None, None, now);
    respond(&mut core, 1, &plan, 10, now);
    assert!(core.take(100).is_empty());
    core.on_metadata(&["t".into()], &metadata(2, 1, 5), now);
    let plan = fetch(&mut core, 1, now);
    assert_eq!(plan.wanted.iter().map(|wanted| wanted.fetch.offset).collect::<Vec<_>>(), [30]);
    respond(&mut core, 1, &plan, 10, now);
    core.revoke(&name(1));
    assert!(core.take(100).is_empty());
}

#[test]
fn a_leader_that_does_not_respond_is_looked_up_and_left_before_its_request_times_out() {
    let now = Instant::now();
    let mut core = core(100_000, 1, now);
    let lost = fetch(&mut core, 1, now);
    assert!(matches!(core.metadata_work(now + SECOND), MetadataWork::Wait(_)));
    let later = now + 2 * SECOND;
    assert!(matches!(core.metadata_work(later), MetadataWork::Request(_)));
    core.on_metadata(&["t".into()], &metadata(1, 1, 5), later);
    // The metadata still has the old leader: it is requested again within half a second.
    assert!(matches!(core.metadata_work(later + SECOND / 2), MetadataWork::Request(_)));
    core.on_metadata(&["t".into()], &metadata(1, 2, 6), later + SECOND / 2);
    let plan = fetch(&mut core, 2, later + SECOND / 2);
    respond(&mut core, 2, &plan, 1, later + SECOND / 2);
    respond(&mut core, 1, &lost, 1, later + SECOND);
    assert_eq!(counts(&core.take(10)), HashMap::from([(0, 1)]), "the late response is ignored");
}

#[test]
fn a_throttled_response_says_nothing_about_the_partitions_it_leaves_out() {
    let now = Instant::now();
    let mut core = core(100_000, 1, now);
    let has_id = |core: &mut FetchCore| core.take(10).iter().any(|event| matches!(event, FetchEvent::TopicId { .. }));
    let plan = fetch(&mut core, 1, now);
    core.on_fetched(1, &plan, FetchOutcome { throttle: SECOND, ..outcome(Vec::new()) }, true, now);
    assert!(!has_id(&mut core), "the broker has not compared the id");
    let plan = fetch(&mut core, 1, now + SECOND);
    core.on_fetched(1, &plan, outcome(Vec::new()), true, now + SECOND);
    assert!(has_id(&mut core));
}

#[test]
fn a_preferred_replica_is_read_until_it_fails() {
    let now = Instant::now();
    let mut core = core(100_000, 1, now);
    let plan = fetch(&mut core, 1, now);
    let preferred = PartitionOutcome { preferred_replica: Some(2), ..empty(0) };
    core.on_fetched(1, &plan, outcome(vec![preferred]), false, now);
    let plan = fetch(&mut core, 2, now);
    assert!(core.take_leader_news(), "the worker of the replica is woken");
    let failed = PartitionOutcome { error_code: crate::kafka::error_code::OFFSET_OUT_OF_RANGE, ..empty(0) };
    core.on_fetched(2, &plan, outcome(vec![failed]), false, now);
    let plan = fetch(&mut core, 1, now + SECOND);
    assert_eq!(plan.wanted.len(), 1);
}

#[test]
fn a_preferred_replica_that_the_metadata_lacks_is_looked_up_with_pauses() {
    let mut now = Instant::now();
    let mut core = core(100_000, 1, now);
    let (mut n_fetches, mut n_requests, start) = (0, 0, now);
    while now < start + 30 * SECOND {
        if let Work::Fetch(plan) = core.next_work(1, now) {
            n_fetches += 1;
            let preferred = PartitionOutcome { preferred_replica: Some(9), ..empty(0) };
            core.on_fetched(1, &plan, outcome(vec![preferred]), false, now);
            assert!(matches!(core.next_work(1, now), Work::Wait(Some(_))), "no immediate fetch");
        }
        if let MetadataWork::Request(topics) = core.metadata_work(now) {
            n_requests += 1;
            core.on_metadata(&topics, &metadata(1, 1, 5), now);
        }
        now += Duration::from_millis(10);
    }
    assert!((20..60).contains(&n_fetches) && n_requests > 20, "{n_fetches} fetches, {n_requests} of metadata");
    assert!(errors::errors(&core.take(10)).0.contains(&0), "it is reported, too");
}

#[test]
fn a_leader_hint_moves_a_partition_without_metadata() {
    let now = Instant::now();
    let mut core = core(100_000, 1, now);
    let plan = fetch(&mut core, 1, now);
    let moved = PartitionOutcome {
        error_code: crate::kafka::error_code::NOT_LEADER_OR_FOLLOWER,
        current_leader: Some((2, 6)),
        ..empty(0)
    };
    core.on_fetched(1, &plan, outcome(vec![moved]), false, now);
    let plan = fetch(&mut core, 2, now);
    assert_eq!(plan.wanted[0].fetch.leader_epoch, 6);
}

#[test]
fn paused_partitions_keep_at_most_a_mebibyte() {
    let now = Instant::now();
    let mut core = core(16 << 20, 3, now);
    let plan = fetch(&mut core, 1, now);
    respond(&mut core, 1, &plan, 5_000, now);
    let ready = |core: &FetchCore, partition| core.partitions[&name(partition)].ready_bytes;
    assert!(ready(&core, 0) > 600_000, "{}", ready(&core, 0));
    core.set_paused(&name(0), true);
    core.set_paused(&name(1), true);
    core.next_work(1, now);
    let kept = [0, 1].map(|partition| ready(&core, partition));
    assert!((600_000..=1 << 20).contains(&(kept[0] + kept[1])), "{kept:?}");
    assert!(ready(&core, 2) > 600_000, "this one is not paused");
}

#[test]
fn the_id_of_the_topic_comes_once_before_the_messages() {
    let now = Instant::now();
    let mut core = core(100_000, 1, now);
    assert!(core.take(10).is_empty(), "an id from metadata alone may be outdated");
    let plan = fetch(&mut core, 1, now);
    respond(&mut core, 1, &plan, 2, now);
    let events = core.take(10);
    assert!(
        matches!(events[..], [FetchEvent::TopicId { topic_id, .. }, FetchEvent::Messages(_)] if topic_id == [1; 16])
    );
    core.assign(name(0), 1, None, Some([1; 16]), now);
    core.on_metadata(&["t".into()], &metadata(1, 1, 5), now);
    let plan = fetch(&mut core, 1, now);
    respond(&mut core, 1, &plan, 1, now);
    assert!(matches!(core.take(10)[..], [FetchEvent::Messages(_)]), "the owner knows the id");
}

#[test]
fn only_the_failure_of_all_brokers_in_use_is_total() {
    let now = Instant::now();
    let mut core = core(100_000, 1, now);
    let plan = fetch(&mut core, 1, now);
    respond(&mut core, 1, &plan, 0, now);
    assert!(matches!(core.next_work(2, now), Work::Wait(_)), "it leads no partition");
    core.take(10);
    let mut fails = |id| {
        core.on_failed(id, None, "refused".to_owned(), false, now);
        match core.take(10)[..] {
            [FetchEvent::Unreachable { is_total, .. }] => is_total,
            ref other => panic!("{other:?}"),
        }
    };
    assert_eq!((fails(2), fails(1)), (false, true));
}

/// The response for a partition whose data, gzip of zeros, exceeds the limit when it is decoded.
fn too_large(partition: i32, data: &[u8]) -> PartitionOutcome {
    let limits = UnpackLimits { stop_bytes: 1 << 20, max_batch_bytes: 1 << 10 };
    let unpacked = Some(unpack(data, 0, &[], limits));
    PartitionOutcome { name: name(partition), unpacked, records_bytes: data.len(), ..empty(partition) }
}

#[test]
fn data_that_can_never_be_decoded_is_requested_about_once_a_minute_and_delays_no_other_partition() {
    let mut builder = BatchBuilder::default();
    builder.push(&RecordView { key: None, value: Some(&[0; 1 << 20]), headers: &[], timestamp_ms: 0 });
    let mut data = Vec::new();
    builder.finish(Codec::Gzip, ProducerState::NONE, &mut data).unwrap();
    let mut damaged = data.clone();
    *damaged.last_mut().unwrap() ^= 1;
    for (data, text) in [(data, "larger than 1024 bytes"), (damaged, "its CRC is")] {
        let mut now = Instant::now();
        let mut core = core(100_000, 2, now);
        let (end, mut n_decoded, mut n_others, mut n_errors) = (now + 600 * SECOND, 0, 0, 0);
        while now < end {
            now += SECOND / 10;
            let Work::Fetch(plan) = core.next_work(1, now) else { continue };
            let has = |partition| plan.wanted.iter().any(|wanted| wanted.fetch.partition == partition);
            if has(0) {
                n_decoded += 1;
                core.on_fetched(1, &plan, outcome(vec![too_large(0, &data), empty(1)]), false, now);
            } else {
                respond(&mut core, 1, &plan, 1, now);
            }
            let events = core.take(10);
            n_others += counts(&events).get(&1).copied().unwrap_or(0);
            for event in events {
                if let FetchEvent::PartitionError { reason, .. } = event {
                    assert!(reason.contains(text), "{reason}");
                    n_errors += 1;
                }
            }
        }
        assert!((10..25).contains(&n_decoded), "{n_decoded} times in ten minutes");
        assert!(n_errors > 8 && n_others > 5_000, "{n_errors} errors, {n_others} messages of the other partition");
    }
}

#[test]
fn data_that_was_damaged_on_the_way_is_requested_again_soon() {
    let now = Instant::now();
    let mut core = core(100_000, 1, now);
    let mut builder = BatchBuilder::default();
    builder.push(&RecordView { key: None, value: Some(&[7; 100]), headers: &[], timestamp_ms: 0 });
    let mut data = Vec::new();
    builder.finish(Codec::None, ProducerState::NONE, &mut data).unwrap();
    for (number, flipped) in [80, 90, 100].into_iter().enumerate() {
        let mut damaged = data.clone();
        damaged[flipped] ^= 1;
        let at = now + SECOND * number as u32;
        let plan = fetch(&mut core, 1, at);
        core.on_fetched(1, &plan, outcome(vec![too_large(0, &damaged)]), false, at);
    }
    let plan = fetch(&mut core, 1, now + 3 * SECOND);
    respond(&mut core, 1, &plan, 1, now + 3 * SECOND);
    assert_eq!(counts(&core.take(10)), HashMap::from([(0, 1)]));
}
