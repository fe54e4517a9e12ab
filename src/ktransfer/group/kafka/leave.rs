//! Leaves the group: commits all offsets, and reports what could not be committed.

use std::time::{Duration, Instant};

use log::{info, warn};

use super::{ClaimStage, KafkaGroup};
use crate::ktransfer::group::Mailbox;
use crate::ktransfer::group::held_claims;
use crate::ktransfer::group::leave_limit::LeaveLimit;
use crate::ktransfer::group::progress::{StoreScope, unstored};

/// Pause between two attempts to commit.
const LEAVE_RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Longest time of one attempt.
const MAX_ATTEMPT: Duration = Duration::from_secs(1);
/// Least time that is left for the request to leave.
const MIN_LEAVE: Duration = Duration::from_millis(500);

impl KafkaGroup {
    /// Commits all offsets and leaves the group, with retries until the leave timeout. What is not possible by then is
    /// reported; the claims end with the session. While a reload stops the module there is no timeout.
    pub(super) fn leave(mut self: Box<Self>, commands: &Mailbox) {
        let mut limit = LeaveLimit::new(&self.observers.report, self.config.leave_timeout);
        held_claims::apply(commands.take(), &mut self.held);
        self.to_claim.clear();
        for held in self.held.values_mut() {
            held.stage = ClaimStage::Released(Instant::now());
            held.fence.end();
        }
        if let Err(reason) = self.commit_until(&mut limit) {
            let group = &self.config.group;
            let held = self.held.iter().map(|(partition, held)| (*partition, &held.progress));
            let unstored = format!("{}{}", unstored(held), self.unstored_at_loss);
            warn!("group {group} could not leave: {unstored}{reason}");
            // Without offsets, only the membership is left, which ends with the session.
            if !unstored.is_empty() {
                self.observers.report.add(format!("group {group} could not leave: {unstored}{reason}"));
            }
        }
        let KafkaGroup { config, membership, observers, .. } = *self;
        let for_good = observers.report.is_removal();
        let now = Instant::now();
        let deadline = limit.deadline().unwrap_or(now + config.leave_timeout);
        membership.leave(for_good, deadline.max(now + MIN_LEAVE));
        match config.instance_id.filter(|_| !for_good) {
            None => info!("group {}: left", config.group),
            Some(id) => info!(
                "group {}: stopped; other members take over after session_timeout_ms unless instance_id {id} comes back",
                config.group
            ),
        }
    }

    fn commit_until(&mut self, limit: &mut LeaveLimit) -> Result<(), String> {
        loop {
            self.take_events();
            if !self.unstored_at_loss.is_empty() {
                return Err("the membership was lost".to_owned());
            }
            let attempt_end = Instant::now() + MAX_ATTEMPT;
            let attempt_end = limit.deadline().map_or(attempt_end, |deadline| deadline.min(attempt_end));
            let outcome = self.store_until(StoreScope::Urgent, attempt_end);
            let is_stored = |progress: &super::Progress| !progress.has_new_offset() && !progress.has_new_ahead();
            if self.held.values().all(|held| is_stored(&held.progress)) {
                return Ok(());
            }
            if let Err(reason) = outcome {
                if !limit.wait(LEAVE_RETRY_PAUSE) {
                    return Err(reason);
                }
                self.warnings.warn(&self.config.group, format!("cannot leave yet, retrying: {reason}"));
            }
        }
    }
}
