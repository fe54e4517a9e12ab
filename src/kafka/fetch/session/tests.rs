use super::*;
use crate::kafka::error_code::INVALID_FETCH_SESSION_EPOCH;

fn wanted(id: u8, partition: i32, offset: i64) -> WantedPartition {
    let fetch = FetchPartition { partition, leader_epoch: 1, offset, last_fetched_epoch: -1, max_bytes: 100 };
    WantedPartition { topic: "t".into(), topic_id: [id; 16], fetch }
}

/// Session id and number of a request, its partitions with their offsets, and the partitions it removes.
fn prepared(session: &mut FetchSession, version: i16, wanted: &[WantedPartition]) -> Prepared {
    let mut request = FetchRequest::default();
    session.prepare(version, wanted, &mut request);
    let sent = request.topics.iter().flat_map(|topic| topic.partitions.iter().map(|one| (one.partition, one.offset)));
    let forgotten = request.forgotten.iter().flat_map(|topic| topic.partitions.iter().map(|one| (topic.id[0], *one)));
    (request.session_id, request.session_epoch, sent.collect(), forgotten.collect())
}

type Prepared = (i32, i32, Vec<(i32, i64)>, Vec<(u8, i32)>);

#[test]
fn a_session_sends_only_what_changed() {
    let mut session = FetchSession::default();
    let both = [wanted(1, 0, 5), wanted(1, 1, 7)];
    assert_eq!(prepared(&mut session, 13, &both), (0, 0, vec![(0, 5), (1, 7)], vec![]));
    session.responded(0, 42);
    assert_eq!(prepared(&mut session, 13, &both), (42, 1, vec![], vec![]));
    session.responded(0, 42);
    let moved = [wanted(1, 0, 6), wanted(1, 1, 7)];
    assert_eq!(prepared(&mut session, 13, &moved), (42, 2, vec![(0, 6)], vec![]));
    session.responded(0, 42);
    // The topic was created again: the partition of the old id is removed.
    let other = [wanted(2, 0, 0)];
    assert_eq!(prepared(&mut session, 13, &other), (42, 3, vec![(0, 0)], vec![(1, 0), (1, 1)]));
}

#[test]
fn a_new_session_follows_an_error_a_lost_response_and_another_way_to_name_topics() {
    let one = [wanted(1, 0, 5)];
    let started = || {
        let mut session = FetchSession::default();
        prepared(&mut session, 13, &one);
        session.responded(0, 42);
        session
    };
    let full = |id| (id, 0, vec![(0, 5)], vec![]);
    let mut session = started();
    session.responded(FETCH_SESSION_ID_NOT_FOUND, 0);
    assert_eq!(prepared(&mut session, 13, &one), full(0));
    let mut session = started();
    session.responded(INVALID_FETCH_SESSION_EPOCH, 0);
    assert_eq!(prepared(&mut session, 13, &one), full(42), "the old session is closed");
    let mut session = started();
    session.lost();
    assert_eq!(prepared(&mut session, 13, &one), full(42));
    assert_eq!(prepared(&mut started(), 12, &one), full(42));
    // The broker made no session: every request names all partitions.
    let mut session = FetchSession::default();
    prepared(&mut session, 13, &one);
    session.responded(0, 0);
    assert_eq!(prepared(&mut session, 13, &one), full(0));
    assert_eq!(prepared(&mut FetchSession::default(), 6, &one), (0, -1, vec![(0, 5)], vec![]));
}

#[test]
fn the_numbers_of_requests_start_again_after_the_largest() {
    let mut session = FetchSession { id: 42, epoch: i32::MAX, ..FetchSession::default() };
    session.responded(0, 42);
    assert_eq!(session.epoch, 1);
}
