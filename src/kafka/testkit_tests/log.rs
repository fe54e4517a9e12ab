//! The log of a partition, without sockets.

use super::*;
use crate::kafka::testkit::codes;
use crate::kafka::testkit::log::{AppendRules, PartitionLog};
use crate::kafka::testkit::producer_state::SequenceRules;

fn log() -> PartitionLog {
    let mut log = PartitionLog::default();
    log.begin_epoch(0);
    log
}

/// A batch of `count` records of producer 7.
fn batch(epoch: i16, sequence: i32, count: usize) -> BatchSpec {
    let records = BatchSpec::new().producer(7, epoch, sequence);
    (0..count).fold(records, |batch, index| batch.record(Some("k"), Some(&format!("{sequence}+{index}")), 1000))
}

fn append(log: &mut PartitionLog, batch: &BatchSpec) -> Result<i64, i16> {
    append_with(log, batch, &AppendRules::default())
}

fn append_with(log: &mut PartitionLog, batch: &BatchSpec, rules: &AppendRules) -> Result<i64, i16> {
    let appended = log.append(batch.encode().bytes(), rules, 5000).map(|appended| appended.base_offset);
    log.advance_high_watermark(i64::MAX);
    appended.map_err(|error| error.code)
}

#[test]
fn a_repeated_batch_is_answered_with_its_first_offset() {
    let mut log = log();
    for sequence in (0..14).step_by(2) {
        assert_eq!(append(&mut log, &batch(0, sequence, 2)), Ok(i64::from(sequence)));
    }
    // The last five batches are remembered, in any order.
    for sequence in [12, 4, 8, 6, 10] {
        assert_eq!(append(&mut log, &batch(0, sequence, 2)), Ok(i64::from(sequence)));
    }
    assert_eq!(append(&mut log, &batch(0, 2, 2)), Err(codes::OUT_OF_ORDER_SEQUENCE_NUMBER));
    // Another division into batches is no duplicate.
    assert_eq!(append(&mut log, &batch(0, 12, 1)), Err(codes::OUT_OF_ORDER_SEQUENCE_NUMBER));
    assert_eq!(append(&mut log, &batch(0, 15, 1)), Err(codes::OUT_OF_ORDER_SEQUENCE_NUMBER));
    assert_eq!(append(&mut log, &batch(0, 14, 1)), Ok(14));
    assert_eq!(log.end_offset(), 15);
}

#[test]
fn epochs_of_a_producer_only_rise_and_begin_at_0() {
    let mut log = log();
    assert_eq!(append(&mut log, &batch(3, 0, 2)), Ok(0));
    assert_eq!(append(&mut log, &batch(2, 2, 1)), Err(codes::INVALID_PRODUCER_EPOCH));
    assert_eq!(append(&mut log, &batch(4, 2, 1)), Err(codes::OUT_OF_ORDER_SEQUENCE_NUMBER));
    assert_eq!(append(&mut log, &batch(4, 0, 2)), Ok(2));
    assert_eq!(append(&mut log, &batch(3, 0, 2)), Err(codes::INVALID_PRODUCER_EPOCH));
}

#[test]
fn an_unknown_producer_may_begin_anywhere_since_kafka_2_5() {
    let old = AppendRules {
        sequences: SequenceRules { old_duplicate_has_own_code: true, unknown_producer_is_rejected: true },
        ..AppendRules::default()
    };
    let mut log = log();
    assert_eq!(append_with(&mut log, &batch(0, 5, 1), &old), Err(codes::UNKNOWN_PRODUCER_ID));
    assert_eq!(append(&mut log, &batch(0, 5, 1)), Ok(0));
    // Older releases have a code of their own for old duplicates.
    for sequence in 6..11 {
        append(&mut log, &batch(0, sequence, 1)).unwrap();
    }
    assert_eq!(append_with(&mut log, &batch(0, 5, 1), &old), Err(codes::DUPLICATE_SEQUENCE_NUMBER));
    log.expire_producer(7);
    assert_eq!(append_with(&mut log, &batch(0, 11, 1), &old), Err(codes::UNKNOWN_PRODUCER_ID));
    assert_eq!(append(&mut log, &batch(0, 11, 1)), Ok(6));
}

#[test]
fn sequence_numbers_continue_at_0_after_the_largest() {
    let mut log = log();
    assert_eq!(append(&mut log, &batch(0, i32::MAX - 1, 4)), Ok(0));
    let sequences: Vec<_> = log.records().iter().map(|record| record.sequence).collect();
    assert_eq!(sequences, [i32::MAX - 1, i32::MAX, 0, 1]);
    assert_eq!(append(&mut log, &batch(0, 2, 1)), Ok(4));
    assert_eq!(append(&mut log, &batch(0, i32::MAX - 1, 4)), Ok(0));
}

#[test]
fn damaged_data_is_rejected() {
    let mut log = log();
    let whole = batch(0, 0, 2).encode().bytes().to_vec();
    let rules = AppendRules::default();
    for position in (0..whole.len()).filter(|position| *position >= 8 && !(12..16).contains(position)) {
        let mut damaged = whole.clone();
        damaged[position] ^= 1;
        let error = log.append(&damaged, &rules, 0).unwrap_err();
        assert!([codes::CORRUPT_MESSAGE, codes::INVALID_RECORD].contains(&error.code), "{position}");
    }
    for length in 0..whole.len() {
        assert!(log.append(&whole[..length], &rules, 0).is_err(), "{length}");
    }
    let twice = [whole.clone(), whole].concat();
    assert_eq!(log.append(&twice, &rules, 0).unwrap_err().code, codes::INVALID_RECORD);
    assert_eq!(log.end_offset(), 0);
}

#[test]
fn sizes_and_timestamps_have_bounds() {
    let mut log = log();
    let size = one("x").encode().bytes().len();
    let rules = |change: fn(&mut AppendRules, usize)| {
        let mut rules = AppendRules::default();
        change(&mut rules, size);
        rules
    };
    let outcomes = [
        (rules(|rules, size| rules.max_message_bytes = size), Ok(0)),
        (rules(|rules, size| rules.max_message_bytes = size - 1), Err(codes::MESSAGE_TOO_LARGE)),
        (rules(|rules, size| rules.segment_bytes = size - 1), Err(codes::RECORD_LIST_TOO_LARGE)),
        (rules(|rules, _| rules.timestamp_before_max_ms = 4000), Ok(1)),
        (rules(|rules, _| rules.timestamp_before_max_ms = 3999), Err(codes::INVALID_TIMESTAMP)),
        (rules(|rules, _| rules.timestamp_after_max_ms = -4001), Err(codes::INVALID_TIMESTAMP)),
    ];
    for (rules, expected) in outcomes {
        assert_eq!(append_with(&mut log, &one("x"), &rules), expected);
    }
}

#[test]
fn log_append_time_replaces_the_timestamps() {
    let mut log = log();
    let rules = AppendRules { has_log_append_time: true, ..AppendRules::default() };
    let appended = log.append(one("x").encode().bytes(), &rules, 5000).unwrap();
    assert_eq!(appended.log_append_time_ms, 5000);
    assert_eq!(log.records()[0].timestamp_ms, 5000);
    // The changed batch has a right CRC.
    let stored = log.batches()[0].bytes().clone();
    assert!(crate::kafka::testkit::batch::Batch::parse(&stored).is_ok());
}

#[test]
fn a_truncated_log_forgets_the_sequence_numbers_after_the_cut() {
    let mut log = log();
    for sequence in 0..4 {
        append(&mut log, &batch(0, sequence, 1)).unwrap();
    }
    log.truncate(2);
    log.begin_epoch(1);
    assert_eq!((log.end_offset(), log.high_watermark()), (2, 2));
    assert_eq!(append(&mut log, &batch(0, 3, 1)), Err(codes::OUT_OF_ORDER_SEQUENCE_NUMBER));
    assert_eq!(append(&mut log, &batch(0, 2, 1)), Ok(2));
    assert_eq!(log.records()[2].leader_epoch, 1);
    assert_eq!((log.epoch_end(0), log.epoch_end(1), log.epoch_end(2)), ((0, 2), (1, 3), (-1, -1)));
}

#[test]
fn epochs_without_records_have_the_end_of_the_earlier_one() {
    let mut log = PartitionLog::default();
    log.begin_epoch(2);
    log.append_unchecked(&one("a").encode());
    log.begin_epoch(5);
    log.append_unchecked(&one("b").encode());
    assert_eq!((log.epoch_end(1), log.epoch_end(3), log.epoch_end(5)), ((1, 0), (2, 1), (5, 2)));
}

#[test]
fn compaction_leaves_gaps_and_the_sequence_numbers() {
    let mut log = log();
    append(&mut log, &batch(0, 0, 3)).unwrap();
    append(&mut log, &batch(0, 3, 1)).unwrap();
    log.compact(|record| record.offset == 1);
    let left: Vec<_> = log.records().iter().map(|record| (record.offset, record.sequence)).collect();
    assert_eq!(left, [(1, 1)]);
    let batch_left = &log.batches()[0];
    assert_eq!((batch_left.base_offset, batch_left.last_offset()), (0, 2));
    assert_eq!(append(&mut log, &batch(0, 4, 1)), Ok(4));
}

#[test]
fn open_transactions_bound_the_last_stable_offset() {
    let mut log = log();
    let transactional = |id: i64, sequence| one("t").producer(id, 0, sequence).transactional();
    append(&mut log, &one("plain")).unwrap();
    append(&mut log, &transactional(1, 0)).unwrap();
    append(&mut log, &transactional(2, 0)).unwrap();
    assert_eq!(log.last_stable_offset(), 1);
    assert_eq!(append(&mut log, &one("x").producer(1, 0, 1)), Err(codes::INVALID_TXN_STATE));
    log.end_transaction(1, 0, false, 5000);
    // The marker counts once it is replicated.
    assert_eq!(log.last_stable_offset(), 1);
    log.advance_high_watermark(i64::MAX);
    assert_eq!(log.last_stable_offset(), 2);
    log.end_transaction(2, 0, true, 5000);
    log.advance_high_watermark(i64::MAX);
    assert_eq!(log.last_stable_offset(), 5);
    let aborted: Vec<_> = log.aborted(0, 5).iter().map(|ended| (ended.producer_id, ended.first_offset)).collect();
    assert_eq!(aborted, [(1, 1)]);
    assert_eq!(log.aborted(4, 5), []);
}

#[test]
fn a_read_is_cut_at_its_limit_but_not_within_the_first_batch() {
    let mut log = log();
    let size = one("a").encode().bytes().len();
    (0..3).for_each(|_| {
        append(&mut log, &one("a")).unwrap();
    });
    let bytes = |from, bound, max, is_first| log.read(from, bound, max, is_first).len();
    assert_eq!(bytes(0, 3, usize::MAX, true), 3 * size);
    assert_eq!(bytes(1, 3, usize::MAX, true), 2 * size);
    assert_eq!(bytes(0, 2, usize::MAX, true), 2 * size);
    assert_eq!(bytes(0, 3, size + 1, false), size + 1);
    assert_eq!(bytes(0, 3, size - 1, true), size);
    assert_eq!(bytes(0, 3, size - 1, false), 0);
    assert_eq!(bytes(3, 3, usize::MAX, true), 0);
}

#[test]
fn records_have_all_their_fields() {
    let headers = [("a", Some("1")), ("a", None)];
    let spec = BatchSpec::new().producer(3, 1, 9).record_with_headers(None, Some("v"), 77, &headers);
    let record = spec.encode().stored_at(40, 6, None).records().unwrap().remove(0);
    assert_eq!((record.offset, record.leader_epoch, record.timestamp_ms), (40, 6, 77));
    assert_eq!((record.producer_id, record.producer_epoch, record.sequence), (3, 1, 9));
    assert_eq!((record.key, record.value.as_deref()), (None, Some(&b"v"[..])));
    assert_eq!(record.headers, [("a".into(), Some("1".into())), ("a".into(), None)]);
}
