//! From librdkafka's word about a failed append to ours: a table.
//!
//! Whether the message may be in the topic is told by librdkafka's status of the message, never guessed from the
//! error; the error tells what the caller does differently.

use rdkafka::error::RDKafkaErrorCode as Code;

use super::native::Persisted;
use crate::broker::{AppendError, AppendFailure, Stored};

/// What became of an append that ended with `code`.
pub(super) fn append_error(code: Code, persisted: Persisted, topic: &str) -> AppendError {
    let stored = match persisted {
        Persisted::No => Stored::No,
        // With an error, "confirmed" is said of what was appended and then not replicated.
        Persisted::Possibly | Persisted::Yes => Stored::Unknown,
    };
    let (kind, stored) = match code {
        Code::UnknownTopic | Code::UnknownTopicOrPartition => (AppendFailure::UnknownTopic, stored),
        Code::UnknownPartition => (AppendFailure::UnknownPartition, stored),
        // What was sent before was not too large then; it is now that more goes with it.
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge if stored == Stored::Unknown => {
            (AppendFailure::TimedOut, stored)
        }
        Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::MessageBatchTooLarge => {
            (AppendFailure::TooLarge, stored)
        }
        Code::QueueFull => (AppendFailure::Full, Stored::No),
        Code::PurgeQueue => (AppendFailure::Closed, stored),
        Code::PurgeInflight => (AppendFailure::Closed, Stored::Unknown),
        Code::NotEnoughReplicasAfterAppend => (AppendFailure::TimedOut, Stored::Unknown),
        Code::NotEnoughReplicas => (AppendFailure::TimedOut, stored),
        Code::MessageTimedOut
        | Code::OperationTimedOut
        | Code::RequestTimedOut
        | Code::TimedOutQueue
        | Code::BrokerTransportFailure
        | Code::NetworkException
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::BrokerDestroy
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::BrokerNotAvailable
        // Another message of its batch was refused, this one was not looked at.
        | Code::InvalidDifferentRecord
        // The idempotent producer lost count; another takes its place.
        | Code::Fatal
        | Code::OutOfOrderSequenceNumber
        | Code::UnknownProducerId
        | Code::InvalidProducerEpoch => match stored {
            Stored::No => (AppendFailure::Unreachable, Stored::No),
            Stored::Unknown => (AppendFailure::TimedOut, Stored::Unknown),
        },
        _ => (AppendFailure::Refused, stored),
    };
    let reason = match kind {
        AppendFailure::UnknownTopic => format!("topic {topic} does not exist"),
        AppendFailure::UnknownPartition => format!("topic {topic} has no such partition"),
        AppendFailure::TooLarge => {
            format!("larger than the limit of the broker (message.max.bytes) or of topic {topic} (max.message.bytes)")
        }
        AppendFailure::Full => "the producer's queue is full".to_owned(),
        AppendFailure::Closed => "the producer was closed before the broker confirmed the message".to_owned(),
        AppendFailure::Unreachable => format!("not sent to the leader of the partition of topic {topic}: {code}"),
        AppendFailure::TimedOut => format!("no acknowledgement for topic {topic}: {code}"),
        AppendFailure::Unsupported | AppendFailure::Refused => format!("refused for topic {topic}: {code}"),
    };
    AppendError { kind, stored, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_kind_and_the_truth_about_storage() {
        use AppendFailure as F;
        use Persisted::{No, Possibly, Yes};
        for (number, (code, persisted, kind, stored)) in [
            (Code::MessageTimedOut, No, F::Unreachable, Stored::No),
            (Code::MessageTimedOut, Possibly, F::TimedOut, Stored::Unknown),
            (Code::BrokerTransportFailure, No, F::Unreachable, Stored::No),
            (Code::BrokerTransportFailure, Possibly, F::TimedOut, Stored::Unknown),
            (Code::AllBrokersDown, No, F::Unreachable, Stored::No),
            (Code::UnknownTopic, No, F::UnknownTopic, Stored::No),
            (Code::UnknownTopicOrPartition, No, F::UnknownTopic, Stored::No),
            (Code::UnknownPartition, No, F::UnknownPartition, Stored::No),
            (Code::MessageSizeTooLarge, No, F::TooLarge, Stored::No),
            // A batch that was sent before, and is too large now that more goes with it.
            (Code::MessageSizeTooLarge, Possibly, F::TimedOut, Stored::Unknown),
            (Code::QueueFull, No, F::Full, Stored::No),
            (Code::PurgeQueue, No, F::Closed, Stored::No),
            // It waited to be sent again.
            (Code::PurgeQueue, Possibly, F::Closed, Stored::Unknown),
            (Code::PurgeInflight, Possibly, F::Closed, Stored::Unknown),
            (Code::NotEnoughReplicas, No, F::TimedOut, Stored::No),
            (Code::NotEnoughReplicasAfterAppend, Yes, F::TimedOut, Stored::Unknown),
            (Code::NotEnoughReplicasAfterAppend, No, F::TimedOut, Stored::Unknown),
            (Code::TopicAuthorizationFailed, No, F::Refused, Stored::No),
            (Code::InvalidTimestamp, No, F::Refused, Stored::No),
            (Code::Fatal, Possibly, F::TimedOut, Stored::Unknown),
            (Code::Fatal, No, F::Unreachable, Stored::No),
            (Code::OutOfOrderSequenceNumber, Possibly, F::TimedOut, Stored::Unknown),
            (Code::UnknownProducerId, Possibly, F::TimedOut, Stored::Unknown),
        ]
        .into_iter()
        .enumerate()
        {
            let error = append_error(code, persisted, "t");
            assert_eq!((error.kind, error.stored), (kind, stored), "{number}: {code:?}, {persisted:?}");
            assert!(!error.reason.is_empty() && !error.reason.ends_with('.'), "{number}: {}", error.reason);
        }
    }
}
