//! Errors of partitions and brokers, and their ends.

use super::*;

/// The partitions with an error, and those that have recovered, in these events.
pub(super) fn errors(events: &[FetchEvent]) -> (Vec<i32>, Vec<i32>) {
    let (mut failed, mut recovered) = (Vec::new(), Vec::new());
    for event in events {
        match event {
            FetchEvent::PartitionError { partition, .. } => failed.push(partition.partition),
            FetchEvent::Recovered { partition } => recovered.push(partition.partition),
            _ => {}
        }
    }
    failed.sort_unstable();
    (failed, recovered)
}

#[test]
fn the_end_of_an_error_is_returned_even_without_a_message() {
    let mut now = Instant::now();
    let mut core = core(100_000, 2, now);
    let mut read = |core: &mut FetchCore, error_code: i16| {
        now += 2 * SECOND;
        let plan = fetch(core, 1, now);
        let outcome = outcome(vec![PartitionOutcome { error_code, ..empty(0) }, empty(1)]);
        core.on_fetched(1, &plan, outcome, false, now);
    };
    let denied = crate::kafka::error_code::TOPIC_AUTHORIZATION_FAILED;
    for (codes, expected) in [
        (&[denied][..], (vec![0], vec![])),
        (&[denied], (vec![0], vec![])),
        (&[0], (vec![], vec![0])),
        // Once only.
        (&[0], (vec![], vec![])),
        // The error is over before a poll.
        (&[denied, 0], (vec![], vec![0])),
        (&[denied, 0, denied], (vec![0], vec![])),
    ] {
        codes.iter().for_each(|code| read(&mut core, *code));
        assert_eq!(errors(&core.take(10)), expected, "{codes:?}");
    }
}

#[test]
fn the_partitions_of_a_broker_that_fails_for_long_are_reported_while_others_are_read() {
    let now = Instant::now();
    let mut core = core(100_000, 2, now);
    core.on_metadata(&["t".into()], &metadata(1, 2, 6), now);
    let plan = fetch(&mut core, 2, now);
    respond(&mut core, 2, &plan, 0, now);
    let plan = fetch(&mut core, 1, now);
    core.take(10);
    core.on_failed(1, Some(plan.number), "reset".to_owned(), true, now);
    assert_eq!(errors(&core.take(10)), (vec![], vec![]), "an idle connection is closed");
    core.on_failed(1, None, "refused".to_owned(), false, now);
    assert_eq!(errors(&core.take(10)), (vec![], vec![]), "another leader may be elected");
    core.on_failed(1, None, "refused".to_owned(), false, now + 3 * SECOND);
    assert_eq!(errors(&core.take(10)), (vec![1], vec![]));
    core.on_connected(1, VERSIONS);
    let plan = fetch(&mut core, 1, now + 5 * SECOND);
    core.metadata_work(now + 10 * SECOND);
    assert_eq!(errors(&core.take(10)), (vec![1], vec![]), "it does not respond");
    respond(&mut core, 1, &plan, 0, now + 11 * SECOND);
    assert_eq!(errors(&core.take(10)), (vec![], vec![1]));
}

#[test]
fn the_end_of_an_error_is_returned_while_messages_take_all_the_room() {
    let mut now = Instant::now();
    let mut core = core(10_000, 2, now);
    let plan = fetch(&mut core, 1, now);
    let denied = || PartitionOutcome { error_code: crate::kafka::error_code::TOPIC_AUTHORIZATION_FAILED, ..empty(1) };
    let wanted = plan.wanted.iter().find(|wanted| wanted.fetch.partition == 0).expect("partition 0");
    let responses = vec![messages(wanted, 200), denied()];
    core.on_fetched(1, &plan, outcome(responses), false, now);
    assert_eq!(errors(&core.take_errors()), (vec![1], vec![]));
    for (response, expected) in [(denied(), (vec![1], vec![])), (empty(1), (vec![], vec![1]))] {
        now += 2 * SECOND;
        let plan = fetch(&mut core, 1, now);
        assert_eq!(plan.wanted.len(), 1, "only the partition with the error");
        core.on_fetched(1, &plan, outcome(vec![response]), false, now);
        assert_eq!(errors(&core.take_errors()), expected);
    }
    now += 2 * SECOND;
    assert!(matches!(core.next_work(1, now), Work::Wait(_)), "there is no room");
    assert_eq!(counts(&core.take(1000)), HashMap::from([(0, 200)]), "the messages were left");
}
