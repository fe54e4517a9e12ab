use super::*;

fn reader(offset: i64, epoch: Option<i32>) -> PartitionReader {
    PartitionReader::new(TopicPartition { topic: "t".into(), partition: 0 }, offset, epoch, Instant::now())
}

fn read(reader: &mut PartitionReader, next_offset: i64, epochs: &[(i32, i64)]) {
    reader.accept(Unpacked { next_offset, epochs: epochs.to_vec(), ..Unpacked::default() });
}

#[test]
fn positions_without_messages_are_returned_once_with_their_epoch() {
    let mut reader = reader(5, None);
    read(&mut reader, 7, &[(2, 5)]);
    read(&mut reader, 9, &[(3, 7)]);
    let Some(FetchEvent::Position { next_offset, leader_epoch, .. }) = reader.take(1) else { panic!("a position") };
    assert_eq!((next_offset, leader_epoch), (9, Some(3)));
    assert!(reader.take(1).is_none());
}

#[test]
fn the_point_of_a_truncation_is_searched_epoch_by_epoch() {
    let mut reader = reader(0, None);
    read(&mut reader, 60, &[(1, 0), (2, 50)]);
    reader.take(1);
    read(&mut reader, 100, &[(4, 60)]);
    reader.take(1);
    // The leader has epoch 3 instead of epoch 4; its epoch 2 is missing as well.
    reader.diverged(3, 80);
    assert_eq!((reader.next, reader.epochs.last()), (60, 2));
    reader.diverged(1, 55);
    assert_eq!((reader.next, reader.epochs.last()), (50, 1));
    assert!(reader.take(1).is_none(), "nothing is reported before the logs are known to be equal");
    reader.validated();
    let Some(FetchEvent::Truncated { position, divergence, .. }) = reader.take(1) else { panic!("a truncation") };
    assert_eq!((position, divergence), (100, Divergence { epoch: 1, end_offset: 50 }));
    assert!(!reader.is_due(Instant::now()), "it is not read any further");
}

#[test]
fn a_truncation_that_concerns_no_returned_message_is_not_reported() {
    let mut reader = reader(0, None);
    read(&mut reader, 10, &[(1, 0)]);
    reader.take(1);
    read(&mut reader, 20, &[]);
    reader.diverged(1, 15);
    reader.validated();
    assert_eq!((reader.next, reader.is_stopped), (10, false));
    assert!(reader.take(1).is_none());
}

#[test]
fn the_epoch_of_the_assigned_offset_detects_a_truncation() {
    let mut reader = reader(100, Some(3));
    assert_eq!(reader.epochs.last(), 3);
    reader.diverged(2, 80);
    reader.validated();
    let Some(FetchEvent::Truncated { position, divergence, .. }) = reader.take(1) else { panic!("a truncation") };
    assert_eq!((position, divergence), (100, Divergence { epoch: 2, end_offset: 80 }));
}

#[test]
fn an_error_that_lasts_is_reported_once_a_second_and_after_its_grace() {
    let (mut reader, now) = (reader(0, None), Instant::now());
    assert!(reader.failed("x".into(), MENDABLE_GRACE, now).is_none());
    assert!(reader.failed("x".into(), MENDABLE_GRACE, now + MENDABLE_GRACE).is_some());
    assert!(reader.failed("x".into(), MENDABLE_GRACE, now + MENDABLE_GRACE).is_none());
    assert!(reader.failed("x".into(), MENDABLE_GRACE, now + MENDABLE_GRACE + REPORT_INTERVAL).is_some());
}

#[test]
fn without_topic_ids_another_end_of_the_current_epoch_is_another_log_and_not_a_truncation() {
    for (topic_id, is_truncation) in [(None, false), (Some([1; 16]), true)] {
        let mut reader = reader(100, Some(3));
        reader.topic_id = topic_id;
        reader.set_leader(1, 3, Instant::now());
        reader.diverged(3, 50);
        assert_eq!((reader.phase == Phase::CheckingRange, reader.is_truncating()), (!is_truncation, is_truncation));
        assert_eq!(reader.next, if is_truncation { 50 } else { 100 });
    }
}
