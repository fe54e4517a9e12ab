//! Carries out the requests of operators, and replies when their result is known or their deadline has passed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::warn;

use super::Dispatcher;
use super::hold::DRAIN;
use super::partition::{ClaimedPartition, ReleaseState, shown};
use super::pending_request::PendingRequest;
use super::stop_phase::StopPhase;
use crate::broker::{Offset, PartitionId};
use crate::ktransfer::give_up::skip;
use crate::ktransfer::group::Generation;
use crate::ktransfer::job::{SkipOrder, WorkerMessage};
use crate::ktransfer::operations::{Action, PartitionResult, Refusal, Request, Settled};
use crate::ktransfer::turn::Turn;

const AWAITS_LETTER: &str = "the message was given up already, and is done when its dead letter is stored: add \
     \"dead_letter\": false (--no-dead-letter) to pass over it without one";

/// How long before its deadline a request is answered although it is not settled.
const REPLY_TIME: Duration = Duration::from_millis(500);

impl Dispatcher {
    /// Begins a request, or refuses it.
    pub(super) fn on_request(&mut self, request: Request) {
        if !request.turn.take() {
            // It was withdrawn.
            return;
        }
        match self.begin(&request) {
            Err(refusal) => drop(request.reply.send(Err(refusal))),
            Ok((claims, _)) if request.is_dry_run => {
                let result = |(partition, (_, from)): (&PartitionId, &(Generation, Option<Offset>))| {
                    PartitionResult::new(*partition, &Settled::WouldBeDone, *from, target(&request.action, *partition))
                };
                drop(request.reply.send(Ok(claims.iter().map(result).collect())));
            }
            Ok((claims, skip)) => self.pending_requests.push(PendingRequest { request, claims, skip }),
        }
    }

    /// Checks a request and begins it, unless it is a dry run. Returns the claims that it concerns.
    #[expect(clippy::type_complexity, reason = "the two parts of a pending request")]
    fn begin(
        &mut self,
        request: &Request,
    ) -> Result<(BTreeMap<PartitionId, (Generation, Option<Offset>)>, Option<Arc<SkipOrder>>), Refusal> {
        if self.phase != StopPhase::Working {
            return Err(Refusal::not_running());
        }
        let wanted: Vec<PartitionId> = match &request.action {
            Action::FollowPauses(Some(partition)) | Action::Skip { partition, .. } => vec![*partition],
            Action::FollowPauses(None) => self.partitions.keys().copied().collect(),
            Action::Seek(targets) => targets.keys().copied().collect(),
        };
        let mut claims = BTreeMap::new();
        for partition in wanted {
            let owned = |state: &&ClaimedPartition| state.release == ReleaseState::Owned;
            match self.partitions.get(&partition).filter(owned) {
                Some(state) => drop(claims.insert(partition, (state.generation(), state.window.commit_point()))),
                // The whole module is concerned, so the next owner follows the pause.
                None if request.action == Action::FollowPauses(None) => {}
                None => return Err(Refusal::not_owned(partition)),
            }
        }
        let mut skip = None;
        match &request.action {
            Action::FollowPauses(_) => {}
            Action::Skip { partition, offset, stores_letter } => {
                self.check_skip(*partition, *offset, *stores_letter)?;
            }
            Action::Seek(targets) => self.check_seek(targets)?,
        }
        if !request.is_dry_run {
            match &request.action {
                Action::FollowPauses(_) => self.follow_pauses(),
                Action::Skip { partition, offset, stores_letter } => {
                    skip = self.begin_skip(*partition, *offset, *stores_letter, &request.by);
                }
                Action::Seek(targets) => {
                    let cut_at = Instant::now() + DRAIN;
                    targets.iter().for_each(|(partition, to)| self.begin_seek(*partition, *to, cut_at));
                }
            }
        }
        Ok((claims, skip))
    }

    pub(super) fn check_skip(
        &self,
        partition: PartitionId,
        offset: Offset,
        stores_letter: bool,
    ) -> Result<(), Refusal> {
        let Some(state) = self.partitions.get(&partition) else { return Err(Refusal::not_owned(partition)) };
        if state.interruption.is_some() {
            let message = format!("partition {partition} is paused: resume it first, or seek to the offset behind");
            return Err(Refusal::new(409, "paused", message));
        }
        match state.window.first() {
            Some(first) if first == offset && stores_letter && state.awaits_letter(offset) => {
                Err(Refusal::new(409, "awaits_dead_letter", AWAITS_LETTER))
            }
            Some(first) if first == offset => Ok(()),
            first => {
                let message = format!(
                    "offset {offset} does not hold the commit point of partition {partition}: the first message that \
                     is not done is {}",
                    first.map_or("not read yet".to_owned(), |first| format!("at offset {first}"))
                );
                Err(Refusal::new(409, "not_at_head", message))
            }
        }
    }

    fn check_seek(&self, targets: &BTreeMap<PartitionId, Offset>) -> Result<(), Refusal> {
        let is_busy =
            |partition: &&PartitionId| self.partitions.get(partition).is_some_and(ClaimedPartition::is_seeking);
        match targets.keys().find(is_busy) {
            Some(partition) => {
                Err(Refusal::new(409, "busy", format!("an earlier seek of partition {partition} is not settled yet")))
            }
            None => self.check_begun(targets),
        }
    }

    /// Refuses a seek of a partition whose start offset is still looked up: the found offset is stored when it is
    /// known, which may be after that of the seek.
    fn check_begun(&self, targets: &BTreeMap<PartitionId, Offset>) -> Result<(), Refusal> {
        let begins = |partition: &&PartitionId| {
            self.partitions.get(partition).is_some_and(|state| state.window.commit_point().is_none())
        };
        match targets.keys().find(begins) {
            Some(partition) => {
                Err(Refusal::new(409, "busy", format!("where partition {partition} begins is not known yet")))
            }
            None => Ok(()),
        }
    }

    /// Sends the order to the workers, or skips the message at once if no worker has it yet.
    pub(super) fn begin_skip(
        &mut self,
        partition: PartitionId,
        offset: Offset,
        stores_letter: bool,
        by: &Arc<str>,
    ) -> Option<Arc<SkipOrder>> {
        let state = self.partitions.get_mut(&partition)?;
        let generation = state.generation();
        let window = state.job_window(offset);
        let (by, turn) = (Arc::clone(by), Turn::default());
        let order = Arc::new(SkipOrder { partition, generation, window, offset, by, stores_letter, turn });
        let unsent = match self.context.dead_letters.as_ref().filter(|_| stores_letter) {
            None => self.outbox.take_unsent(&order),
            Some(_) => {
                self.outbox.send_unsent(&order);
                None
            }
        };
        if let Some(job) = unsent {
            order.turn.take();
            skip(&self.context, &job, 0, &order);
            state.in_flight -= 1;
            state.window.close(offset);
            drop(job);
            let now = Instant::now();
            // No acknowledgement follows that would do it.
            self.hand_out_held_back(partition, now);
            self.note_progress(partition, now);
        } else {
            for worker in &*self.channels.workers {
                let _ = worker.send(WorkerMessage::Skip(Arc::clone(&order)));
            }
            // The worker that has the message on the wire receives the order next, since it was sent before.
            self.context.http_client.cut_message(partition, generation, offset);
        }
        Some(order)
    }

    /// Answers the requests that are settled, or whose time is over.
    pub(super) fn settle_requests(&mut self, now: Instant) {
        if self.pending_requests.is_empty() {
            return;
        }
        let pending = std::mem::take(&mut self.pending_requests);
        for pending in pending {
            let is_over = pending.request.deadline <= now + REPLY_TIME;
            let settled: Option<Vec<PartitionResult>> =
                pending.claims.iter().map(|claim| self.settle(&pending, claim, is_over)).collect();
            match settled {
                Some(results) => drop(pending.request.reply.send(Ok(results))),
                None => self.pending_requests.push(pending),
            }
        }
    }

    /// Returns the result for one partition; `None` if it is not settled yet.
    fn settle(
        &mut self,
        pending: &PendingRequest,
        claim: (&PartitionId, &(Generation, Option<Offset>)),
        is_over: bool,
    ) -> Option<PartitionResult> {
        let (partition, (generation, from)) = (*claim.0, *claim.1);
        let action = &pending.request.action;
        let is_held = |state: &&mut ClaimedPartition| state.generation() == generation;
        let settled = match self.partitions.get_mut(&partition).filter(is_held) {
            None => lost(action, pending.skip.as_deref()),
            Some(state) => match action {
                Action::FollowPauses(_) => settle_pause(state, is_over)?,
                Action::Skip { offset, .. } => settle_skip(state, *offset, pending.skip.as_deref(), is_over)?,
                Action::Seek(_) => settle_seek(state, is_over)?,
            },
        };
        if let Settled::NotDone(reason) | Settled::Unknown(reason) = &settled {
            let module = &self.context.config.name;
            warn!("module [{module}]: operation on partition {partition} at offset {}: {reason}", shown(from));
        }
        Some(PartitionResult::new(partition, &settled, from, target(action, partition)))
    }
}

fn target(action: &Action, partition: PartitionId) -> Option<Offset> {
    match action {
        Action::Seek(targets) => targets.get(&partition).copied(),
        Action::Skip { offset, .. } => Some(offset.saturating_add(1)),
        Action::FollowPauses(_) => None,
    }
}

/// The claim has ended before the operation was settled.
fn lost(action: &Action, skip: Option<&SkipOrder>) -> Settled {
    let reason = "the claim on the partition ended meanwhile";
    match action {
        // The pause is stored, and the next owner follows it.
        Action::FollowPauses(_) => Settled::Done,
        Action::Skip { .. } if skip.is_some_and(|order| order.turn.cancel()) => Settled::NotDone(reason.to_owned()),
        Action::Skip { .. } | Action::Seek(_) => Settled::Unknown(reason.to_owned()),
    }
}

fn settle_pause(state: &ClaimedPartition, is_over: bool) -> Option<Settled> {
    match (state.is_held_by_operator, &state.interruption) {
        // It waits for its start offset, and is not pushed before.
        (true, None) => Some(Settled::Done),
        (true, Some(_)) if state.n_awaited() == 0 => Some(Settled::Done),
        (true, Some(_)) if is_over => {
            let reason = format!("no further push begins, but {} pushes are still on the wire", state.n_awaited());
            Some(Settled::Unknown(reason))
        }
        (false, None) => Some(Settled::Done),
        (false, Some(_)) if is_over => {
            Some(Settled::Unknown("it goes on when the pushes on the wire have ended, or a seek is stored".to_owned()))
        }
        _ => None,
    }
}

fn settle_skip(state: &ClaimedPartition, offset: Offset, order: Option<&SkipOrder>, is_over: bool) -> Option<Settled> {
    let order = order?;
    if !state.is_job_of(order.window, offset) || state.window.first() != Some(offset) {
        return Some(match order.turn.is_taken() {
            true => Settled::Done,
            false => Settled::NotDone("the message was done by a push meanwhile".to_owned()),
        });
    }
    // Interrupted meanwhile: no worker has the message any more.
    let has_no_worker = state.interruption.is_some() && state.in_flight == 0;
    // Its last attempt ended meanwhile, and gave it up.
    let was_given_up = order.stores_letter && state.awaits_letter(offset) && order.turn.cancel();
    if was_given_up {
        return Some(Settled::NotDone(AWAITS_LETTER.to_owned()));
    }
    if !is_over && !has_no_worker {
        return None;
    }
    Some(match order.turn.cancel() {
        true => Settled::NotDone(
            "no worker could pass it over in time: its worker is busy with another push, or it waits behind another \
             message of its key; it stays at the head"
                .to_owned(),
        ),
        false => Settled::Unknown(format!("it is passed over as soon as its dead letter is stored; {AWAITS_LETTER}")),
    })
}

fn settle_seek(state: &mut ClaimedPartition, is_over: bool) -> Option<Settled> {
    let Some(seek) = state.interruption.as_mut().and_then(|interruption| interruption.seek.as_mut()) else {
        return Some(Settled::Done);
    };
    if !is_over {
        return None;
    }
    if seek.is_sent {
        let reason = "the new position is not stored yet; the partition is not pushed before it is";
        return Some(Settled::Unknown(reason.to_owned()));
    }
    let on_wire = state.in_flight;
    if let Some(interruption) = &mut state.interruption {
        interruption.seek = None;
    }
    Some(Settled::NotDone(format!("{on_wire} pushes are still on the wire; the partition continues where it was")))
}
