//! Leaves the group: stores all offsets, releases all claims, and reports what could not be done.

use std::time::Duration;

use log::{info, warn};

use super::{ClaimStage, HeldPartition, RoundResult, ZookeeperGroup, to_reason};
use crate::broker::PartitionId;
use crate::keeper::paths;
use crate::ktransfer::group::Mailbox;
use crate::ktransfer::group::held_claims;
use crate::ktransfer::group::leave_limit::LeaveLimit;
use crate::ktransfer::group::progress::unstored;

/// Pause between two attempts to leave.
const LEAVE_RETRY_PAUSE: Duration = Duration::from_millis(100);

impl ZookeeperGroup {
    /// Releases all claims and leaves the group, with retries until the leave timeout. What is not possible by then is
    /// reported; the nodes vanish when the session ends. While a reload stops the module there is no timeout.
    pub(super) fn leave(&mut self, commands: &Mailbox) {
        let mut limit = LeaveLimit::new(&self.observers.report, self.config.leave_timeout);
        held_claims::apply(commands.take(), &mut self.held);
        self.assigned.clear();
        self.to_claim.clear();
        for held in self.held.values_mut() {
            held.stage = ClaimStage::Released;
            held.fence.end();
        }
        while let Some(member) = &self.member {
            if member.epoch != self.keeper.epoch() {
                self.report_failure("the ZooKeeper session has ended");
                break;
            }
            match self.leave_once() {
                Ok(()) => {
                    info!("group {}: left", self.config.group);
                    break;
                }
                Err(reason) => {
                    if !limit.wait(LEAVE_RETRY_PAUSE) {
                        self.report_failure(&reason);
                        break;
                    }
                    self.warn_rate_limited(format!("cannot leave yet, retrying: {reason}"));
                }
            }
        }
        if let Some(member) = self.member.take() {
            self.leases.remove_registration(&paths::group_id(&self.config.group, &member.id));
        }
    }

    fn leave_once(&mut self) -> RoundResult {
        self.finish_released()?;
        self.delete_stray_claims()?;
        let Some(member) = &self.member else { return Ok(()) };
        self.claimant(member).unregister(&member.id).map_err(to_reason)
    }

    /// Reports the partitions whose offset is not stored or whose claim is not released.
    fn report_failure(&self, reason: &str) {
        let group = &self.config.group;
        let unfinished = unfinished(self.held.iter());
        warn!("group {group} could not leave: {unfinished}{reason}");
        // Without partitions, only the registration is left, which vanishes with the session.
        if !unfinished.is_empty() {
            self.observers.report.add(format!("group {group} could not leave: {unfinished}{reason}"));
        }
    }
}

/// Lists the offsets that are not stored, and the partitions that are not released.
fn unfinished<'a>(held: impl Iterator<Item = (&'a PartitionId, &'a HeldPartition)> + Clone) -> String {
    let unreleased: Vec<String> = held.clone().map(|(partition, _)| partition.to_string()).collect();
    let mut text = unstored(held.map(|(partition, held)| (*partition, &held.progress)));
    if !unreleased.is_empty() {
        text += &format!("claims not released before the session ends: {}; ", unreleased.join(", "));
    }
    text
}
