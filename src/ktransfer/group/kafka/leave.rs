//! Leaves the group: commits all offsets, and reports what could not be committed.

use std::time::{Duration, Instant};

use log::{info, warn};

use super::{ClaimStage, KafkaGroup};
use crate::ktransfer::group::Mailbox;
use crate::ktransfer::group::held_claims;
use crate::ktransfer::group::progress::{StoreScope, unstored};

/// Pause between two attempts to commit.
const LEAVE_RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Longest time of one attempt.
const MAX_ATTEMPT: Duration = Duration::from_secs(1);
/// Least time that is left for the request to leave.
const MIN_LEAVE: Duration = Duration::from_millis(500);

impl KafkaGroup {
    /// Commits all offsets and leaves the group, with retries until the leave timeout. What is not possible by then is
    /// reported; the claims end with the session.
    pub(super) fn leave(mut self: Box<Self>, commands: &Mailbox) {
        let deadline = Instant::now() + self.config.leave_timeout;
        held_claims::apply(commands.take(), &mut self.held);
        self.to_claim.clear();
        for held in self.held.values_mut() {
            held.stage = ClaimStage::Released(Instant::now());
            held.fence.end();
        }
        if let Err(reason) = self.commit_until(deadline) {
            let group = &self.config.group;
            let held = self.held.iter().map(|(partition, held)| (*partition, &held.progress));
            let unstored = format!("{}{}", unstored(held), self.unstored_at_loss);
            warn!("group {group} could not leave: {unstored}{reason}");
            // Without offsets, only the membership is left, which ends with the session.
            if !unstored.is_empty() {
                self.observers.report.add(format!("group {group} could not leave: {unstored}{reason}"));
            }
        }
        let KafkaGroup { config, membership, .. } = *self;
        membership.leave(deadline.max(Instant::now() + MIN_LEAVE));
        match config.instance_id {
            None => info!("group {}: left", config.group),
            Some(id) => info!(
                "group {}: stopped; other members take over after session_timeout_ms unless instance_id {id} comes back",
                config.group
            ),
        }
    }

    fn commit_until(&mut self, deadline: Instant) -> Result<(), String> {
        loop {
            self.take_events();
            if !self.unstored_at_loss.is_empty() {
                return Err("the membership was lost".to_owned());
            }
            let outcome = self.store_until(StoreScope::Urgent, deadline.min(Instant::now() + MAX_ATTEMPT));
            let is_stored = |progress: &super::Progress| !progress.has_new_offset() && !progress.has_new_ahead();
            if self.held.values().all(|held| is_stored(&held.progress)) {
                return Ok(());
            }
            let is_over = deadline <= Instant::now() + LEAVE_RETRY_PAUSE;
            if let Err(reason) = outcome
                && (is_over || !self.observers.report.wait(LEAVE_RETRY_PAUSE))
            {
                return Err(reason);
            }
        }
    }
}
