//! An operation, how it is refused, and how it ended for each partition.

use serde::Serialize;

use crate::broker::{Offset, PartitionId};

/// An operation on a module that an operator requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Push no message of a partition, or of the whole module, until the resume.
    Pause(Option<PartitionId>),
    /// End the pause of a partition, or all pauses of the module.
    Resume(Option<PartitionId>),
    /// Skip the message that holds the commit point of a partition.
    Skip {
        /// Number of the partition.
        partition: PartitionId,
        /// Offset of the message.
        offset: Offset,
        /// Whether its dead letter is stored first, if the module has a dead-letter topic.
        stores_letter: bool,
    },
    /// Continue at another offset in a partition, or in all partitions that this process has claimed.
    Seek {
        /// Number of the partition; `None` for all.
        partition: Option<PartitionId>,
        /// Where to continue.
        to: SeekTarget,
    },
}

/// Where a seek continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SeekTarget {
    /// At the oldest message that Kafka keeps.
    Earliest,
    /// Behind the newest message.
    End,
    /// At this offset.
    Offset(Offset),
    /// At the first message with this timestamp or a later one, in milliseconds since 1970; behind the newest message
    /// if there is none.
    TimeMs(i64),
}

impl Operation {
    /// Returns the last segment of the path of the operation.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Operation::Pause(_) => "pause",
            Operation::Resume(_) => "resume",
            Operation::Skip { .. } => "skip",
            Operation::Seek { .. } => "seek",
        }
    }
}

/// Why an operation was refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// HTTP status of the answer.
    pub(crate) status: u16,
    /// Fixed word for programs.
    pub(crate) code: &'static str,
    /// The reason.
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(status: u16, code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { status, code, message: message.into() }
    }

    /// The request cannot be read.
    pub(crate) fn invalid(message: impl Into<String>) -> Refusal {
        Refusal::new(400, "invalid_request", message)
    }

    /// This process has no claim on the partition.
    pub(crate) fn not_owned(partition: PartitionId) -> Refusal {
        let message = format!("partition {partition} is not pushed by this process: ask the instance that owns it");
        Refusal::new(409, "not_owned", message)
    }

    /// The module does not run at present.
    pub(crate) fn not_running() -> Refusal {
        Refusal::new(503, "not_running", "the module does not run at present, or is stopping; nothing was changed")
    }
}

/// How an operation ended for one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// It is done.
    Done,
    /// With `dry_run`: it would be done.
    WouldBeDone,
    /// It was not done and will not be done, for this reason.
    NotDone(String),
    /// Whether it is done, or will be done, is unknown, for this reason.
    Unknown(String),
}

impl Settled {
    /// Returns the word for the answer, and the reason.
    pub(crate) fn words(&self) -> (&'static str, Option<&str>) {
        match self {
            Settled::Done => ("done", None),
            Settled::WouldBeDone => ("would_be_done", None),
            Settled::NotDone(reason) => ("not_done", Some(reason)),
            Settled::Unknown(reason) => ("unknown", Some(reason)),
        }
    }
}

/// How an operation ended for one partition, with what it changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PartitionResult {
    /// Number of the partition.
    pub(crate) partition: PartitionId,
    /// `done`, `would_be_done`, `not_done` or `unknown`.
    pub(crate) result: &'static str,
    /// Why it is not done, or unknown; or a note.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// The commit point before the operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from: Option<Offset>,
    /// The commit point that the operation sets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) to: Option<Offset>,
}

impl PartitionResult {
    /// Creates the result of a partition.
    pub(crate) fn new(
        partition: PartitionId,
        settled: &Settled,
        from: Option<Offset>,
        to: Option<Offset>,
    ) -> PartitionResult {
        let (result, reason) = settled.words();
        PartitionResult { partition, result, reason: reason.map(str::to_owned), from, to }
    }
}
