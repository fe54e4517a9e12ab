//! Stores and follows the pauses of operators: a change is committed at once, and what other members committed is read
//! at intervals.
//!
//! A change is done when a commit has it: a pause is reported to the dispatcher after that, and so is a resume. Every
//! later commit of the member has it again. For the pause of the whole module one commit is enough, because each claim
//! and each reading looks at all partitions; the other partitions of this member get it with the next store.
//!
//! A commit without a response may be carried out, also after the pauses were read again. Then it is not known what is
//! stored for the partition (`stored_pauses` is `None`): the next store commits what the member follows, and the next
//! change is committed even if it changes nothing of that.

use std::time::{Duration, Instant};

use log::info;

use super::metadata;
use super::pause_fields::GroupPauses;
use super::pause_state::PendingChange;
use super::{ClaimStage, HeldPartition, KafkaGroup, RETRY_PAUSE, StepResult};
use crate::broker::PartitionId;
use crate::broker::membership::CommittedOffset;
use crate::ktransfer::pauses::{ModulePaused, PauseChange, PauseStoreError};

/// Interval at which the pauses of other members are read.
const READ_INTERVAL: Duration = Duration::from_secs(2);
/// The interval is longer for topics with many partitions: a response has up to 4 KiB for each of them.
const READ_INTERVAL_PER_PARTITION: Duration = Duration::from_millis(10);

/// Why an attempt to store a change failed.
enum Failure {
    /// A later attempt may succeed.
    NotYet(String),
    /// No attempt will.
    Final(String),
    /// The change has no effect while the whole module is paused.
    ModulePaused,
}

impl KafkaGroup {
    /// Takes the pauses of all commits of the topic.
    pub(super) fn take_pauses(&mut self, committed: &[CommittedOffset]) {
        let fields = |of: &CommittedOffset| Some((of.partition, metadata::decode(of.offset, &of.metadata)?.pauses));
        let decoded: Vec<_> = committed.iter().filter_map(fields).collect();
        self.pausing.stored_module = decoded.iter().map(|(_, fields)| fields.module.number).max().unwrap_or_default();
        let (held, before) = (&self.held, self.pausing.known.clone());
        let commits = decoded.iter().map(|(partition, fields)| (*partition, fields));
        self.pausing.known.take(commits, |partition| held.contains_key(&partition));
        self.report_pauses(&before);
        self.pausing.next_read = Instant::now() + self.read_interval();
    }

    fn report_pauses(&self, before: &GroupPauses) {
        let pauses = self.pausing.known.pauses();
        if pauses != before.pauses() {
            let (group, partitions) = (&self.config.group, pauses.partitions.keys().collect::<Vec<_>>());
            match &pauses.module {
                Some(mark) => info!("group {group}: the module is paused by {}", mark.by),
                None if partitions.is_empty() => info!("group {group}: nothing is paused"),
                None => info!("group {group}: partitions {partitions:?} are paused"),
            }
        }
        self.observers.pauses.set_stored(pauses);
    }

    fn read_interval(&self) -> Duration {
        let n_partitions = u32::try_from(self.n_partitions.unwrap_or_default()).unwrap_or_default();
        READ_INTERVAL.max(READ_INTERVAL_PER_PARTITION * n_partitions)
    }

    /// Reads what other members changed, if that is due. A member that holds all partitions is the only one that can
    /// change something.
    pub(super) fn read_pauses(&mut self) -> StepResult {
        let now = Instant::now();
        if now < self.pausing.next_read {
            return Ok(());
        }
        self.pausing.next_read = now + self.read_interval();
        let n_partitions = self.n_partitions.and_then(|count| usize::try_from(count).ok());
        if !self.has_joined || n_partitions == Some(self.held.len()) {
            return Ok(());
        }
        self.read_committed().map_err(|reason| format!("cannot read the pauses: {reason}"))
    }

    fn read_committed(&mut self) -> StepResult {
        let deadline = self.begin_call();
        let committed = self.membership.committed(deadline)?;
        self.take_pauses(&committed);
        Ok(())
    }

    /// Returns when pauses are to be read or a change is to be attempted next.
    pub(super) fn next_pausing(&self) -> [Instant; 2] {
        let next_read = self.pausing.next_read;
        [next_read, self.pausing.change.as_ref().map_or(next_read, |change| change.next_attempt)]
    }

    /// Takes the next change of an operator, or attempts the present one again, and answers it when it is stored or
    /// cannot be.
    pub(super) fn change_pauses(&mut self) {
        let Some(mut pending) = self.pausing.change.take().or_else(|| self.next_change()) else { return };
        let now = Instant::now();
        if now < pending.next_attempt {
            self.pausing.change = Some(pending);
            return;
        }
        let answer = match self.attempt(&mut pending) {
            Ok(()) => Ok(()),
            Err(Failure::NotYet(_)) if Instant::now() + RETRY_PAUSE < pending.request.deadline => {
                pending.next_attempt = Instant::now() + RETRY_PAUSE;
                self.pausing.change = Some(pending);
                return;
            }
            Err(Failure::ModulePaused) => Err(PauseStoreError::ModulePaused),
            Err(Failure::NotYet(reason) | Failure::Final(reason)) => Err(match pending.is_uncertain {
                true => PauseStoreError::Unknown(reason),
                false => PauseStoreError::NotStored(reason),
            }),
        };
        // Fails only if nobody waits for the answer any more.
        let _ = pending.request.answer.send(answer);
    }

    fn next_change(&self) -> Option<PendingChange> {
        let request = self.observers.pauses.requests()?.try_iter().find(|request| request.turn.take())?;
        Some(PendingChange { request, next_attempt: Instant::now(), is_uncertain: false })
    }

    /// Stores a change on top of what is stored now; a dry run ends before the commit.
    fn attempt(&mut self, pending: &mut PendingChange) -> Result<(), Failure> {
        if !self.has_joined {
            return Err(Failure::NotYet("the group is not joined at present".to_owned()));
        }
        self.read_committed().map_err(|reason| Failure::NotYet(format!("cannot read the pauses: {reason}")))?;
        let change = &pending.request.change;
        let (PauseChange::Pause(only, _) | PauseChange::Resume(only)) = *change;
        let mut changed = self.pausing.known.clone();
        let lowest = self.pausing.lowest_number();
        changed.apply(change, lowest).map_err(|ModulePaused| Failure::ModulePaused)?;
        if changed == self.pausing.known {
            if self.is_stored(only) {
                return Ok(());
            }
            // Of an attempt before this one, something else may be stored.
            if only.is_none() {
                changed.restate_module(lowest);
            }
        }
        if let Some(partition) = only
            && self.held.get(&partition).is_none_or(|held| held.stage != ClaimStage::Active)
        {
            return Err(Failure::Final(format!("partition {partition} is not pushed by this process any more")));
        }
        let stores = self.stores_of(|partition| only.is_none_or(|only| partition == only), &changed);
        if stores.is_empty() {
            let reason = "this process owns no partition with a stored offset, beside which it could be kept: ask an \
                          instance that does";
            let is_standby = self.held.is_empty() && self.to_claim.is_empty();
            return Err(if is_standby { Failure::Final } else { Failure::NotYet }(reason.to_owned()));
        }
        if stores.iter().any(|store| self.commit_of(store).is_none_or(|commit| commit.metadata.is_empty())) {
            return Err(Failure::Final(self.no_room_for_pause(stores[0].partition)));
        }
        if pending.request.is_dry_run {
            return Ok(());
        }
        self.pausing.note_attempt(&changed);
        let deadline = self.begin_call();
        let done = self.commit(stores, deadline);
        pending.is_uncertain |= done.is_uncertain;
        if done.n_stored == 0 {
            return Err(Failure::NotYet(
                done.outcome.err().unwrap_or_else(|| "the brokers refuse the text".to_owned()),
            ));
        }
        self.pausing.stored_module = changed.module_number();
        let before = std::mem::replace(&mut self.pausing.known, changed);
        self.report_pauses(&before);
        Ok(())
    }

    /// Whether it is certain that what is known of the pause of a partition, or of the whole module, is stored. The
    /// commits were read just now, but one of this member without a response may be carried out later.
    fn is_stored(&self, only: Option<PartitionId>) -> bool {
        let stored = |held: &HeldPartition| held.stored_pauses.as_ref().map(|stored| stored.partition.clone());
        match only {
            Some(partition) => {
                let known = self.pausing.fields(partition).partition;
                self.held.get(&partition).is_none_or(|held| stored(held) == Some(known))
            }
            None => self.pausing.is_module_stored() && self.held.values().all(|held| stored(held).is_some()),
        }
    }
}
