//! The requests of the thread `operations` to a dispatcher, and the state that both share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};

use super::operation::{PartitionResult, Refusal};
use super::status::StatusBoard;
use crate::broker::{Offset, PartitionId};
use crate::ktransfer::group::StoreReceipts;
use crate::ktransfer::pauses::PauseTable;
use crate::ktransfer::read_errors::ReadErrors;
use crate::ktransfer::turn::Turn;

/// The part of an operation that a dispatcher carries out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Follow the pauses of the table in a partition, or in all.
    FollowPauses(Option<PartitionId>),
    /// Skip the message at this offset, if it holds the commit point.
    Skip {
        /// Number of the partition.
        partition: PartitionId,
        /// Offset of the message.
        offset: Offset,
        /// Whether its dead letter is stored first, if the module has a dead-letter topic.
        stores_letter: bool,
    },
    /// Continue at these offsets.
    Seek(BTreeMap<PartitionId, Offset>),
}

/// The answer of a dispatcher.
pub(crate) type Reply = Result<Vec<PartitionResult>, Refusal>;

/// A request to a dispatcher.
pub(crate) struct Request {
    /// The action to carry out.
    pub(crate) action: Action,
    /// Whether to report only what would be done.
    pub(crate) is_dry_run: bool,
    /// Name of the operator's credential, for the log.
    pub(crate) by: Arc<str>,
    /// The dispatcher replies before.
    pub(crate) deadline: Instant,
    /// Receives one reply; it has room for it.
    pub(crate) reply: Sender<Reply>,
    /// Decides between the begin and the withdrawal of the request.
    pub(crate) turn: Arc<Turn>,
}

/// The dispatcher's end of what it shares with operators.
#[derive(Clone, Default)]
pub(crate) struct OperatorLink {
    /// Requests; `None` in tests that have none.
    pub(crate) requests: Option<Receiver<Request>>,
    /// The pauses of the module.
    pub(crate) pauses: PauseTable,
    /// The status that operators see.
    pub(crate) status: StatusBoard,
    /// Which positions the group has stored.
    pub(crate) receipts: StoreReceipts,
    /// Which partitions cannot be read; the fetch loop writes it.
    pub(crate) read_errors: ReadErrors,
}
