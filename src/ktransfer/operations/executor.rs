//! The thread `operations`: carries out the operations one after the other, answers each and logs it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded, select};
use log::{info, warn};
use prometheus::IntCounterVec;
use serde_json::json;

use super::MAX_WAIT;
use super::answer::{answer_of, unknown_module};
use super::operation::{Operation, PartitionResult, Refusal, SeekTarget};
use super::registry::{ModuleHandle, Operations};
use super::request::{Action, Reply, Request};
use crate::broker::{LogRange, MetadataError, Offset, PartitionId, TopicPartition};
use crate::http::{self, Response};
use crate::ktransfer::pauses::{PauseChange, PauseMark, PauseStoreError};
use crate::ktransfer::turn::Turn;
use crate::shutdown::Stop;

/// Time limit for the offsets of a seek.
const OFFSETS_WAIT: Duration = Duration::from_secs(5);
/// How long after its deadline the reply of a dispatcher is waited for.
const REPLY_MARGIN: Duration = Duration::from_secs(1);

/// An operation to carry out.
pub(crate) struct Task {
    pub(super) module: Arc<str>,
    pub(super) operation: Operation,
    pub(super) is_dry_run: bool,
    /// Name of the operator's credential.
    pub(super) by: Arc<str>,
    /// Address of the operator.
    pub(super) peer: Option<Arc<str>>,
    pub(super) reply: http::Reply,
}

/// How an operation ended.
enum Outcome {
    Refused(Refusal),
    Settled(Vec<PartitionResult>),
    /// Whether it was or will be carried out is unknown.
    Unknown(String),
}

impl From<Reply> for Outcome {
    fn from(reply: Reply) -> Self {
        reply.map_or_else(Outcome::Refused, Outcome::Settled)
    }
}

/// Carries out operations.
pub(crate) struct Executor {
    operations: Operations,
    tasks: Receiver<Task>,
    counter: IntCounterVec,
}

impl Executor {
    /// `counter` counts operations by `operation` and `result`.
    pub(crate) fn new(operations: Operations, tasks: Receiver<Task>, counter: IntCounterVec) -> Executor {
        Executor { operations, tasks, counter }
    }

    /// Carries out operations until the stop.
    pub(crate) fn run(self, stop: &Stop) {
        loop {
            select! {
                recv(self.tasks) -> task => match task {
                    Ok(task) => self.carry_out(task),
                    Err(_) => return stop.wait(),
                },
                recv(stop.closed()) -> _ => return,
            }
        }
    }

    fn carry_out(&self, task: Task) {
        let outcome = match self.operations.get(&task.module) {
            Some(handle) => outcome(&handle, &task),
            None => Outcome::Refused(unknown_module(&task.module)),
        };
        let (word, answer) = answer(&task, &outcome);
        self.counter.with_label_values(&[task.operation.name(), word]).inc();
        log(&task, word, &outcome);
        task.reply.send(answer);
    }
}

fn outcome(handle: &ModuleHandle, task: &Task) -> Outcome {
    match &task.operation {
        Operation::Pause(partition) => {
            let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
            let mark = PauseMark { by: task.by.to_string(), at_ms: u64::try_from(at_ms).unwrap_or(u64::MAX) };
            change_pauses(handle, task, *partition, &PauseChange::Pause(*partition, mark))
        }
        Operation::Resume(partition) => change_pauses(handle, task, *partition, &PauseChange::Resume(*partition)),
        Operation::Skip { partition, offset, stores_letter } => {
            let (partition, offset, stores_letter) = (*partition, *offset, *stores_letter);
            request(handle, task, Action::Skip { partition, offset, stores_letter }, task.is_dry_run)
        }
        Operation::Seek { partition, to } => match seek_offsets(handle, *partition, *to) {
            Ok(offsets) => request(handle, task, Action::Seek(offsets), task.is_dry_run),
            Err(refusal) => Outcome::Refused(refusal),
        },
    }
}

/// Stores a change of the pauses, then waits until the dispatcher follows it. A partition must be ours; a change of the
/// whole module reaches the other instances through the store.
fn change_pauses(handle: &ModuleHandle, task: &Task, partition: Option<PartitionId>, change: &PauseChange) -> Outcome {
    let dry = request(handle, task, Action::FollowPauses(partition), true);
    let may_be_stored = match &dry {
        Outcome::Settled(_) => true,
        // The pause of a module that does not run at present takes effect when it starts.
        Outcome::Refused(refusal) => partition.is_none() && *refusal == Refusal::not_running(),
        Outcome::Unknown(_) => false,
    };
    if !may_be_stored {
        return dry;
    }
    let stored = if task.is_dry_run { handle.pauses.check(change) } else { handle.pauses.change(change) };
    match stored {
        Ok(()) => {}
        Err(PauseStoreError::ModulePaused) => return module_paused(),
        Err(PauseStoreError::NotStored(reason)) => {
            return Outcome::Refused(Refusal::new(503, "not_stored", format!("nothing was changed: {reason}")));
        }
        Err(PauseStoreError::Unknown(reason)) => return Outcome::Unknown(reason),
    }
    let followed = if task.is_dry_run { dry } else { request(handle, task, Action::FollowPauses(partition), false) };
    match followed {
        Outcome::Refused(refusal) if refusal == Refusal::not_running() => Outcome::Settled(Vec::new()),
        Outcome::Refused(refusal) => Outcome::Unknown(format!("it is stored, but {}", refusal.message)),
        outcome => outcome,
    }
}

fn module_paused() -> Outcome {
    let message = "the whole module is paused: resume the module, then pause single partitions";
    Outcome::Refused(Refusal::new(409, "module_paused", message))
}

/// Sends a request to the dispatcher of the module and waits for its reply.
fn request(handle: &ModuleHandle, task: &Task, action: Action, is_dry_run: bool) -> Outcome {
    let (reply, replies) = bounded(1);
    let turn = Arc::new(Turn::default());
    let deadline = Instant::now() + MAX_WAIT;
    let request = Request { action, is_dry_run, by: Arc::clone(&task.by), deadline, reply, turn: Arc::clone(&turn) };
    if handle.status.latest().is_none() || handle.requests.try_send(request).is_err() {
        return Outcome::Refused(Refusal::not_running());
    }
    match replies.recv_deadline(deadline + REPLY_MARGIN) {
        Ok(reply) => reply.into(),
        Err(_) if turn.cancel() => Outcome::Refused(Refusal::not_running()),
        Err(RecvTimeoutError::Timeout) => Outcome::Unknown("the module did not report the end of it".to_owned()),
        Err(RecvTimeoutError::Disconnected) => Outcome::Unknown("the module was stopped or restarted".to_owned()),
    }
}

/// Returns the offsets at which a seek continues, by partition.
fn seek_offsets(
    handle: &ModuleHandle,
    partition: Option<PartitionId>,
    to: SeekTarget,
) -> Result<BTreeMap<PartitionId, Offset>, Refusal> {
    let Some((_, status)) = handle.status.latest() else { return Err(Refusal::not_running()) };
    let owned: Vec<PartitionId> = status.partitions.iter().map(|status| status.partition).collect();
    let partitions = match partition {
        Some(partition) if !owned.contains(&partition) => return Err(Refusal::not_owned(partition)),
        Some(partition) => vec![partition],
        None if owned.is_empty() => {
            return Err(Refusal::new(409, "not_owned", "this process pushes no partition of the module"));
        }
        None => owned,
    };
    let unreachable = |cause: String| Refusal::new(503, "kafka_unreachable", format!("nothing was changed: {cause}"));
    let refused = |name: &TopicPartition, error: &MetadataError| match error {
        MetadataError::Unreachable(cause) => unreachable(format!("{name}: {cause}")),
        error => Refusal::new(422, "no_offset", format!("nothing was changed: {name}: {error}")),
    };
    let mut log_ends = (handle.connect)().map_err(unreachable)?;
    let names: Vec<_> = partitions
        .iter()
        .map(|partition| TopicPartition { topic: Arc::clone(&handle.topic), partition: *partition })
        .collect();
    let deadline = Instant::now() + OFFSETS_WAIT;
    let ranges = log_ends.range_of_all(&names, deadline);
    let times = match to {
        SeekTarget::TimeMs(time_ms) => log_ends.at_time(&names, time_ms, deadline),
        _ => Vec::new(),
    };
    let mut offsets = BTreeMap::new();
    for (index, (name, range)) in names.iter().zip(ranges).enumerate() {
        let range = range.map_err(|error| refused(name, &error))?;
        let offset = match to {
            SeekTarget::Earliest => range.oldest,
            SeekTarget::End => range.stable,
            SeekTarget::Offset(offset) => offset,
            SeekTarget::TimeMs(_) => match times.get(index) {
                Some(Ok(found)) => found.unwrap_or(range.stable),
                Some(Err(error)) => return Err(refused(name, error)),
                None => return Err(unreachable(format!("{name}: no response"))),
            },
        };
        if offset < range.oldest || range.newest < offset {
            let LogRange { oldest, newest, .. } = range;
            let message = format!("offset {offset} is outside of {name}: Kafka keeps {oldest} to {newest}");
            return Err(Refusal::new(422, "out_of_range", message));
        }
        offsets.insert(name.partition, offset);
    }
    Ok(offsets)
}

/// Returns the word of the outcome, and the answer.
fn answer(task: &Task, outcome: &Outcome) -> (&'static str, Response) {
    let (status, word, partitions, reason) = match outcome {
        Outcome::Refused(refusal) => return ("refused", answer_of(refusal)),
        Outcome::Unknown(reason) => (504, "unknown", &[][..], Some(reason)),
        Outcome::Settled(results) => {
            let has = |word| results.iter().any(|result| result.result == word);
            let (status, word) = if has("unknown") {
                (504, "unknown")
            } else if has("not_done") {
                // Where some partitions are done, each has its own result.
                (409, if has("done") { "partly_done" } else { "not_done" })
            } else if task.is_dry_run {
                (200, "would_be_done")
            } else {
                (200, "done")
            };
            (status, word, &results[..], None)
        }
    };
    let answer = json!({
        "result": word,
        "module": &*task.module,
        "operation": task.operation.name(),
        "error": reason,
        "partitions": partitions,
    });
    (word, Response::json(status, answer.to_string()))
}

/// Writes one line for each operation, and one for each partition that it changed.
fn log(task: &Task, word: &str, outcome: &Outcome) {
    let Task { module, operation, by, .. } = task;
    let peer = task.peer.as_deref().unwrap_or("unknown");
    let dry_run = if task.is_dry_run { ", dry run" } else { "" };
    let what = format!("operation {} of module [{module}] by {by} from {peer}{dry_run}", operation.name());
    match outcome {
        Outcome::Refused(refusal) => warn!("{what}: refused with {}: {}", refusal.status, refusal.message),
        Outcome::Unknown(reason) => warn!("{what}: {word}: {reason}"),
        Outcome::Settled(_) if task.is_dry_run => info!("{what}: {operation:?}: {word}"),
        Outcome::Settled(results) => {
            warn!("{what}: {operation:?}: {word}");
            for PartitionResult { partition, result, reason, from, to } in results {
                let shown = |offset: &Option<Offset>| offset.map_or("-".to_owned(), |offset| offset.to_string());
                let reason = reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
                info!("{what}: partition {partition} {result}{reason}, from {} to {}", shown(from), shown(to));
            }
        }
    }
}

#[cfg(test)]
mod tests;
