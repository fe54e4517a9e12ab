//! The result of a batch that follows from its outcome in a Produce response: a table of error codes.
//!
//! The rule for "not stored": the broker checks the batch before it appends, and returns this code from that check
//! only. Every other code leaves open whether the batch is stored.

use std::time::Duration;

use super::message::AcksLevel;
use super::outcome::BatchResult;
use crate::kafka::error_code::{self as code, name};
use crate::kafka::produce::PartitionOutcome;

/// The first version of Produce after whose response the client must wait for the throttle time. With an earlier
/// version the broker has delayed the response by it (KIP-219).
pub(super) const FIRST_THROTTLED_PRODUCE: i16 = 6;
/// The same of InitProducerId.
pub(super) const FIRST_THROTTLED_INIT_PRODUCER_ID: i16 = 1;
/// Upper bound of the throttle time that is obeyed: a broker with a wrong value must not silence the producer for days,
/// and a new connection shows whether it still throttles.
pub(super) const MAX_THROTTLE: Duration = Duration::from_secs(60);

/// Returns the result of a batch from its outcome in the response.
pub(super) fn batch_result(outcome: &PartitionOutcome, level: AcksLevel) -> BatchResult {
    let error = outcome.error_code;
    match error {
        code::NONE => BatchResult::Stored((outcome.base_offset >= 0).then_some(outcome.base_offset)),
        code::DUPLICATE_SEQUENCE_NUMBER => BatchResult::Duplicate,
        code::NOT_LEADER_OR_FOLLOWER | code::UNKNOWN_TOPIC_OR_PARTITION => match level {
            // The leader waits for replicas after its append: it may lose the partition in the meantime, and then
            // returns the same code as a broker that never was the leader.
            AcksLevel::All => BatchResult::MaybeStored,
            AcksLevel::Leader | AcksLevel::None => BatchResult::NotStored,
        },
        code::LEADER_NOT_AVAILABLE
        | code::FENCED_LEADER_EPOCH
        | code::UNKNOWN_LEADER_EPOCH
        | code::UNKNOWN_TOPIC_ID
        | code::INCONSISTENT_TOPIC_ID
        | code::NOT_ENOUGH_REPLICAS
        | code::THROTTLING_QUOTA_EXCEEDED => BatchResult::NotStored,
        code::MESSAGE_TOO_LARGE | code::RECORD_LIST_TOO_LARGE => BatchResult::TooLarge(error),
        code::INVALID_RECORD | code::INVALID_TIMESTAMP | code::CORRUPT_MESSAGE => refused_records(outcome),
        code::OUT_OF_ORDER_SEQUENCE_NUMBER | code::UNKNOWN_PRODUCER_ID => BatchResult::UnknownProducer,
        code::INVALID_PRODUCER_EPOCH | code::PRODUCER_FENCED => BatchResult::InvalidProducerEpoch,
        code::TOPIC_AUTHORIZATION_FAILED
        | code::CLUSTER_AUTHORIZATION_FAILED
        | code::TRANSACTIONAL_ID_AUTHORIZATION_FAILED
        | code::INVALID_TOPIC_EXCEPTION
        | code::INVALID_REQUIRED_ACKS
        | code::UNSUPPORTED_FOR_MESSAGE_FORMAT
        | code::UNSUPPORTED_COMPRESSION_TYPE
        | code::UNSUPPORTED_VERSION
        | code::POLICY_VIOLATION => BatchResult::Rejected(Vec::new(), error),
        // Among them NOT_ENOUGH_REPLICAS_AFTER_APPEND and REQUEST_TIMED_OUT, and KAFKA_STORAGE_ERROR: a write that
        // fails may leave the batch in the file.
        _ if code::is_retriable(error) => BatchResult::MaybeStored,
        // UNKNOWN_SERVER_ERROR is any failure inside the broker, also one after the append.
        _ => BatchResult::Failed(error),
    }
}

/// Returns the time for which no request may be sent after a response; `first_version` is the first version of the
/// request for which this is the client's duty.
pub(super) fn throttle_time(throttle_time_ms: i32, version: i16, first_version: i16) -> Option<Duration> {
    let time = Duration::from_millis(u64::try_from(throttle_time_ms).unwrap_or(0));
    (version >= first_version && !time.is_zero()).then_some(time.min(MAX_THROTTLE))
}

/// A broker that lists no refused record (before version 8) refused the batch for an unknown one of its records: halves
/// are sent until the record is alone.
fn refused_records(outcome: &PartitionOutcome) -> BatchResult {
    let positions = outcome.record_errors.iter().filter_map(|(position, _)| usize::try_from(*position).ok());
    match positions.collect::<Vec<_>>() {
        positions if positions.is_empty() => BatchResult::TooLarge(outcome.error_code),
        positions => BatchResult::Rejected(positions, outcome.error_code),
    }
}

/// Returns the cause of a failure as the broker states it: the name of the code and the broker's own text.
pub(super) fn reason(outcome: &PartitionOutcome) -> String {
    let of_record = outcome.record_errors.iter().find_map(|(_, text)| text.as_deref());
    match of_record.or(outcome.error_message.as_deref()).filter(|text| !text.is_empty()) {
        Some(text) => format!("{}: {text}", name(outcome.error_code)),
        None => name(outcome.error_code).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(error_code: i16, record_errors: Vec<(i32, Option<String>)>) -> PartitionOutcome {
        PartitionOutcome {
            topic: "t".into(),
            partition: 0,
            error_code,
            base_offset: -1,
            log_append_time_ms: -1,
            record_errors,
            error_message: None,
            current_leader: None,
        }
    }

    #[test]
    fn not_stored_is_reported_only_for_codes_from_before_the_append() {
        use AcksLevel::{All, Leader};
        use BatchResult::{Failed, InvalidProducerEpoch, MaybeStored, NotStored, Rejected, TooLarge, UnknownProducer};
        for (error, level, expected) in [
            (6, All, MaybeStored),
            (6, Leader, NotStored),
            (3, All, MaybeStored),
            (56, All, MaybeStored),
            (56, Leader, MaybeStored),
            (5, All, NotStored),
            (7, Leader, MaybeStored),
            (19, All, NotStored),
            (20, All, MaybeStored),
            (10, All, TooLarge(10)),
            (18, Leader, TooLarge(18)),
            (29, All, Rejected(vec![], 29)),
            (45, All, UnknownProducer),
            (59, All, UnknownProducer),
            (47, All, InvalidProducerEpoch),
            (90, All, InvalidProducerEpoch),
            (-1, Leader, Failed(-1)),
            (13, All, MaybeStored),
            (8, All, Failed(8)),
            (999, All, Failed(999)),
        ] {
            assert_eq!(batch_result(&outcome(error, vec![]), level), expected, "{error} {level:?}");
        }
        let stored = PartitionOutcome { base_offset: 7, ..outcome(0, vec![]) };
        assert_eq!(batch_result(&stored, All), BatchResult::Stored(Some(7)));
        assert_eq!(batch_result(&outcome(46, vec![]), All), BatchResult::Duplicate);
    }

    #[test]
    fn refused_records_are_named_or_searched_by_halves() {
        let named = outcome(87, vec![(2, Some("no key".into())), (-1, None)]);
        assert_eq!(batch_result(&named, AcksLevel::All), BatchResult::Rejected(vec![2], 87));
        assert_eq!(reason(&named), "INVALID_RECORD: no key");
        assert_eq!(batch_result(&outcome(32, vec![]), AcksLevel::All), BatchResult::TooLarge(32));
        assert_eq!(reason(&outcome(32, vec![])), "INVALID_TIMESTAMP");
    }

    #[test]
    fn a_throttle_time_is_bounded_and_counts_from_the_version_in_which_clients_wait() {
        let of = |ms, version| throttle_time(ms, version, FIRST_THROTTLED_PRODUCE);
        assert_eq!(of(250, 6), Some(Duration::from_millis(250)));
        assert_eq!((of(250, 5), of(0, 9), of(-1, 9)), (None, None, None));
        assert_eq!(of(i32::MAX, 9), Some(MAX_THROTTLE));
        assert_eq!(throttle_time(1, 1, FIRST_THROTTLED_INIT_PRODUCER_ID), Some(Duration::from_millis(1)));
    }
}
