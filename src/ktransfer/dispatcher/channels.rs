//! The ends of the channels that the dispatcher holds. `module.rs` creates the channels and explains each bound.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use crate::ktransfer::fetcher::{FetchCommand, Fetched};
use crate::ktransfer::group::{CommandSender, GroupEvent};
use crate::ktransfer::job::{WorkerMessage, WorkerReport};
use crate::ktransfer::memory_budget::MemoryBudget;
use crate::ktransfer::operations::OperatorLink;

/// All channels of a dispatcher.
pub(crate) struct Channels {
    /// Events from the group.
    pub(crate) group_events: Receiver<GroupEvent>,
    /// Commands to the group. Sending never blocks.
    pub(crate) group_commands: CommandSender,
    /// Commands to the fetch loop. When the channel is full the dispatcher blocks until the fetch loop's next turn.
    /// That is no deadlock: the fetch loop receives commands even while the channel of batches is full.
    pub(crate) fetch_commands: Sender<FetchCommand>,
    /// Messages and reports from the fetch loop. The dispatcher receives from it only while a worker can use further
    /// messages, and the module is not stopping.
    pub(crate) fetched: Receiver<Fetched>,
    /// The memory that the fetch loop took for the messages in `fetched`.
    pub(crate) memory: MemoryBudget,
    /// The inbox of each worker. Sending never blocks.
    pub(crate) workers: Arc<[Sender<WorkerMessage>]>,
    /// Reports from the workers.
    pub(crate) reports: Receiver<WorkerReport>,
    /// The state that the dispatcher shares with operators.
    pub(crate) operator: OperatorLink,
}
