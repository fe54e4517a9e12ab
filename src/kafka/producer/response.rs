//! What the error codes of a Produce response say about a batch: a table.
//!
//! The rule for "not stored": the broker checks the batch before it appends, and returns this code from that check
//! only. Every other code leaves open whether the batch is stored.

use super::message::AcksLevel;
use super::outcome::BatchResult;
use crate::kafka::error_code::{self as code, name};
use crate::kafka::produce::PartitionOutcome;

/// What to do after the outcome of one batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Judged {
    pub(super) result: BatchResult,
    /// Whether the leader of the partition may be another broker: metadata is needed.
    pub(super) is_leader_doubtful: bool,
}

/// Derives the result of a batch from the outcome in the response.
pub(super) fn judge(outcome: &PartitionOutcome, level: AcksLevel) -> Judged {
    let error = outcome.error_code;
    let maybe_after_append = match level {
        // The leader waits for replicas after its append: it may lose the partition in the meantime, and then returns
        // the same code as a broker that never was the leader.
        AcksLevel::All => BatchResult::MaybeStored,
        AcksLevel::Leader | AcksLevel::None => BatchResult::NotStored,
    };
    let (result, is_leader_doubtful) = match error {
        code::NONE => (BatchResult::Stored((outcome.base_offset >= 0).then_some(outcome.base_offset)), false),
        code::DUPLICATE_SEQUENCE_NUMBER => (BatchResult::Stored(None), false),
        code::NOT_LEADER_OR_FOLLOWER | code::UNKNOWN_TOPIC_OR_PARTITION | code::KAFKA_STORAGE_ERROR => {
            (maybe_after_append, true)
        }
        code::LEADER_NOT_AVAILABLE
        | code::FENCED_LEADER_EPOCH
        | code::UNKNOWN_LEADER_EPOCH
        | code::UNKNOWN_TOPIC_ID
        | code::INCONSISTENT_TOPIC_ID => (BatchResult::NotStored, true),
        code::NOT_ENOUGH_REPLICAS | code::THROTTLING_QUOTA_EXCEEDED => (BatchResult::NotStored, false),
        code::NOT_ENOUGH_REPLICAS_AFTER_APPEND | code::REQUEST_TIMED_OUT => (BatchResult::MaybeStored, false),
        code::MESSAGE_TOO_LARGE | code::RECORD_LIST_TOO_LARGE => (BatchResult::TooLarge(error), false),
        code::INVALID_RECORD | code::INVALID_TIMESTAMP | code::CORRUPT_MESSAGE => (refused_records(outcome), false),
        code::OUT_OF_ORDER_SEQUENCE_NUMBER | code::UNKNOWN_PRODUCER_ID => (BatchResult::UnknownProducer, false),
        code::INVALID_PRODUCER_EPOCH | code::PRODUCER_FENCED => (BatchResult::InvalidProducerEpoch, false),
        code::TOPIC_AUTHORIZATION_FAILED
        | code::CLUSTER_AUTHORIZATION_FAILED
        | code::TRANSACTIONAL_ID_AUTHORIZATION_FAILED
        | code::INVALID_TOPIC_EXCEPTION
        | code::INVALID_REQUIRED_ACKS
        | code::UNSUPPORTED_FOR_MESSAGE_FORMAT
        | code::UNSUPPORTED_COMPRESSION_TYPE
        | code::UNSUPPORTED_VERSION
        | code::POLICY_VIOLATION => (BatchResult::Rejected(Vec::new(), error), false),
        // UNKNOWN_SERVER_ERROR is any failure inside the broker, also one after the append.
        _ => (BatchResult::Failed(error), false),
    };
    Judged { result, is_leader_doubtful }
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
            (13, All, Failed(13)),
            (999, All, Failed(999)),
        ] {
            assert_eq!(judge(&outcome(error, vec![]), level).result, expected, "{error} {level:?}");
        }
        let stored = PartitionOutcome { base_offset: 7, ..outcome(0, vec![]) };
        assert_eq!(judge(&stored, All).result, BatchResult::Stored(Some(7)));
        assert_eq!(judge(&outcome(46, vec![]), All).result, BatchResult::Stored(None));
    }

    #[test]
    fn refused_records_are_named_or_searched_by_halves() {
        let named = outcome(87, vec![(2, Some("no key".into())), (-1, None)]);
        assert_eq!(judge(&named, AcksLevel::All).result, BatchResult::Rejected(vec![2], 87));
        assert_eq!(reason(&named), "INVALID_RECORD: no key");
        assert_eq!(judge(&outcome(32, vec![]), AcksLevel::All).result, BatchResult::TooLarge(32));
        assert_eq!(reason(&outcome(32, vec![])), "INVALID_TIMESTAMP");
    }

    #[test]
    fn only_codes_about_the_leader_need_metadata() {
        for (error, expected) in [(6, true), (3, true), (5, true), (56, true), (0, false), (7, false), (19, false)] {
            assert_eq!(judge(&outcome(error, vec![]), AcksLevel::Leader).is_leader_doubtful, expected, "{error}");
        }
    }
}
