//! Stores before the store interval: how many partitions a second.

use super::*;

#[test]
fn the_more_partitions_an_early_store_has_the_later_is_the_next_one() {
    for (n_partitions, pause_ms) in [(1, 200), (20, 200), (300, 3000)] {
        let brokers = Rig::brokers(Some(n_partitions));
        let at = |partition| (partition, offset(partition, 7, "kt1;o=7;t=1"));
        brokers.lock().unwrap().offsets = (0..n_partitions).map(at).collect();
        let (script, events) = unbounded();
        let member = ScriptedMember { brokers: Arc::clone(&brokers), events };
        let mut group = KafkaGroup::new(config(), Box::new(member));
        script.send(MembershipEvent::Assigned((0..n_partitions).collect())).unwrap();
        group.take_events();
        group.claim_assigned().unwrap();
        for held in group.held.values_mut() {
            held.progress.committed = Some(1000);
        }
        let before = Instant::now();
        group.next_early_store = before;
        group.turn().unwrap();
        assert!(brokers.lock().unwrap().offsets.values().all(|of| of.offset == 1000), "all are stored");
        let pause = Duration::from_millis(pause_ms);
        let next = group.next_early_store;
        assert!(before + pause <= next && next <= Instant::now() + pause, "{n_partitions}: {:?}", next - before);
    }
}

#[test]
fn a_commit_that_is_refused_at_once_is_repeated_soon() {
    let brokers = Rig::brokers(Some(1));
    brokers.lock().unwrap().offsets = [(0, offset(0, 0, "kt1;o=0;t=1"))].into();
    let (members, events) = unbounded();
    let mut group = Rig::group(&brokers, events);
    members.send(MembershipEvent::Assigned(vec![0])).unwrap();
    group.take_events();
    group.turn().unwrap();
    group.held.get_mut(&0).expect("it is claimed").progress.committed = Some(10);
    brokers.lock().unwrap().refusal = Some(CommitError::Failed("REBALANCE_IN_PROGRESS".to_owned()));
    let before = Instant::now();
    assert!(group.store(StoreScope::All).is_err());
    // A rebalance is over within milliseconds; what is done until the next commit is repeated after a crash.
    let wait = group.next_early_store - before;
    assert!(EARLY_INTERVAL <= wait && wait < MAX_CALL / 2, "{wait:?}");
    brokers.lock().unwrap().refusal = None;
    group.store(StoreScope::All).unwrap();
    assert_eq!(brokers.lock().unwrap().offsets[&0].offset, 10);
}
