//! Claims assigned partitions: reads their start offsets, and commits the fencing token of the claim.
//!
//! Kafka stores no state for a partition without an offset. So each commit contains the number of partitions that the
//! topic had when the group committed its first offset: `start_from` applies to those, and a partition that was added
//! later is read from its beginning, since all of its messages are newer than the group. All partitions of a topic that
//! is younger than the group are such partitions. If the number is unknown, because other tools set the offsets, every
//! partition without an offset is taken as added later: messages may be repeated, never skipped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::metadata::{self, CommitMetadata};
use super::pause_fields::PauseFields;
use super::{ClaimStage, HeldPartition, KafkaGroup, RETRY_PAUSE, StepResult};
use crate::broker::membership::{CommitError, CommittedOffset};
use crate::broker::{LogIdentity, PartitionId};
use crate::ktransfer::group::mailbox::DoneAhead;
use crate::ktransfer::group::progress::Progress;
use crate::ktransfer::group::{Claim, Generation, GroupEvent, StoredPosition, TimedFence};

/// What is committed for a partition that is to be claimed.
struct Found {
    committed: Option<CommittedOffset>,
    metadata: CommitMetadata,
    /// The fencing token of the claim.
    token: u64,
}

impl KafkaGroup {
    /// Claims the assigned partitions, unless the dispatcher has not received all events.
    pub(super) fn claim_assigned(&mut self) -> StepResult {
        if self.to_claim.is_empty() || !self.pending_events.is_empty() || Instant::now() < self.next_claim {
            return Ok(());
        }
        self.next_claim = Instant::now() + RETRY_PAUSE;
        let deadline = self.begin_call();
        let committed = self.membership.committed(deadline)?;
        self.find_first_partitions(&committed)?;
        // Before the claims are reported: a partition that was paused before is not pushed.
        self.take_pauses(&committed);
        let mut found = self.found(committed);
        let deadline = self.begin_call();
        found.retain(|partition, _| self.to_claim.contains(partition));
        // What has no offset has no place for a token; the first store has it.
        let (with_offset, without): (BTreeMap<_, _>, BTreeMap<_, _>) =
            found.into_iter().partition(|(_, found)| found.committed.is_some());
        without.into_iter().for_each(|(partition, found)| self.hold(partition, found));
        let (mut outcome, mut is_too_long) = (Ok(()), false);
        let (mut commits, mut claims) = (Vec::new(), Vec::new());
        for (partition, found) in with_offset {
            match self.claim_commit(&found) {
                Some(commit) => {
                    commits.push(commit);
                    claims.push((partition, found));
                }
                None => outcome = outcome.and(Err(self.no_room_for_pause(partition))),
            }
        }
        if commits.is_empty() {
            return outcome;
        }
        let results = self.membership.commit(&commits, deadline);
        for ((partition, found), result) in claims.into_iter().zip(results) {
            match result {
                Ok(()) => {
                    self.has_stored = true;
                    self.hold(partition, found);
                }
                Err(CommitError::MetadataTooLong) => is_too_long = true,
                Err(failure) => {
                    outcome = outcome.and(Err(format!("cannot claim partition {partition} yet, retrying: {failure}")));
                }
            }
        }
        // Once for all partitions of a commit.
        if is_too_long { outcome.and(self.shorten_metadata()) } else { outcome }
    }

    /// Finds out how many partitions existed when the group began.
    fn find_first_partitions(&mut self, committed: &[CommittedOffset]) -> StepResult {
        let known = committed.iter().filter_map(|of| metadata::decode(of.offset, &of.metadata)?.first_partitions).min();
        if let Some(known) = known {
            self.first_partitions = Some(self.first_partitions.map_or(known, |count| count.min(known)));
            return Ok(());
        }
        if !committed.is_empty() {
            self.first_partitions = Some(0);
            return Ok(());
        }
        // The brokers delete the offsets of a topic that is deleted. A group that had stored some reads a new topic.
        if self.topic_was_missing || self.has_stored {
            self.first_partitions = Some(0);
        }
        if self.first_partitions.is_some() {
            return Ok(());
        }
        let deadline = self.begin_call();
        self.first_partitions = self.membership.n_partitions(deadline)?;
        Ok(())
    }

    fn found(&self, committed: Vec<CommittedOffset>) -> BTreeMap<PartitionId, Found> {
        let mut by_partition: BTreeMap<_, _> = committed.into_iter().map(|of| (of.partition, of)).collect();
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let now_ms = u64::try_from(now_ms).unwrap_or_default();
        let find = |partition: &PartitionId| {
            let committed = by_partition.remove(partition);
            let known = committed.as_ref().and_then(|of| metadata::decode(of.offset, &of.metadata));
            let pauses = self.pausing.fields(*partition);
            let metadata = CommitMetadata { pauses, ..known.unwrap_or_default() };
            let token = now_ms.max(metadata.token.saturating_add(1));
            (*partition, Found { committed, metadata, token })
        };
        self.to_claim.iter().map(find).collect()
    }

    /// Returns the commit that changes nothing but the token and what others changed of the pauses; `None` without room
    /// for a pause.
    fn claim_commit(&self, found: &Found) -> Option<CommittedOffset> {
        let committed = found.committed.as_ref()?;
        let first_partitions = self.first_partitions;
        let metadata = CommitMetadata { token: found.token, first_partitions, ..found.metadata.clone() };
        let metadata = metadata::encode(committed.offset, &metadata, self.max_metadata_bytes)?;
        Some(CommittedOffset { metadata, ..committed.clone() })
    }

    fn hold(&mut self, partition: PartitionId, found: Found) {
        let Found { committed, metadata, token } = found;
        self.to_claim.remove(&partition);
        self.last_generation += 1;
        let generation = Generation(self.last_generation);
        let fence = TimedFence::until(self.lease.until());
        let leader_epoch = committed.as_ref().and_then(|of| of.leader_epoch);
        let CommitMetadata { topic_id, ranges, read_epoch, pauses, .. } = metadata;
        let stored_pauses = Some(if committed.is_some() { pauses } else { PauseFields::default() });
        let ahead = DoneAhead { topic_id, leader_epoch, ranges: Arc::clone(&ranges), read_epoch };
        let stored = committed.map(|of| of.offset);
        let mut progress = Progress::new(stored, ahead);
        let is_added_later = stored.is_none() && self.first_partitions.is_some_and(|first| first <= partition);
        if is_added_later {
            progress.start_at(0, LogIdentity::default());
        }
        let position = match stored {
            Some(next) => Some(StoredPosition { next, topic_id, leader_epoch, done_ahead: ranges, read_epoch }),
            None => is_added_later.then(|| StoredPosition::at(0)),
        };
        let claim = Claim { partition, generation, fence: Arc::clone(&fence), token, position };
        let stage = ClaimStage::Active;
        self.held.insert(partition, HeldPartition { generation, fence, token, progress, stored_pauses, stage });
        self.pending_events.push_back(GroupEvent::Gained(claim));
    }

    /// Makes the text beside offsets shorter, after the brokers refused it; the next turn commits again.
    pub(super) fn shorten_metadata(&mut self) -> StepResult {
        if self.max_metadata_bytes == 0 {
            return Err("the brokers refuse offsets even without metadata: OFFSET_METADATA_TOO_LARGE".to_owned());
        }
        self.max_metadata_bytes = match self.max_metadata_bytes / 2 {
            bytes @ 64.. => bytes,
            _ => 0,
        };
        log::warn!(
            "group {}: offset.metadata.max.bytes of the brokers is too small for the messages done ahead of the stored \
             offsets; trying {} bytes, after a crash more messages are pushed again",
            self.config.group,
            self.max_metadata_bytes
        );
        self.next_claim = Instant::now();
        self.next_early_store = Instant::now();
        Ok(())
    }
}
