//! The partitions that a member holds, and those that its owner must release.
//!
//! Invariant: a partition is held from [`Holdings::take_added`] until its release is reported or the lease ends; the
//! partitions of a release that has not been reported are held.

use std::collections::{BTreeMap, BTreeSet};

use super::{ReleaseToken, TopicPartition};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    /// Partitions that the owner may be working on.
    held: BTreeSet<TopicPartition>,
    /// Partitions that the owner must release.
    releasing: BTreeMap<ReleaseToken, BTreeSet<TopicPartition>>,
    next_token: u64,
    /// The partitions of the last sync; empty after a loss.
    assigned: BTreeSet<TopicPartition>,
}

impl Holdings {
    /// Returns the held partitions: the claims of a join.
    pub(super) fn held(&self) -> &BTreeSet<TopicPartition> {
        &self.held
    }

    /// Whether the owner has not reported every release.
    pub(super) fn is_releasing(&self) -> bool {
        !self.releasing.is_empty()
    }

    /// Takes the assignment of a sync; returns what the owner must release, if anything.
    pub(super) fn assign(&mut self, assigned: BTreeSet<TopicPartition>) -> Option<(ReleaseToken, Vec<TopicPartition>)> {
        self.assigned = assigned;
        let in_release = self.in_release();
        let revoked = self.held.iter().filter(|p| !self.assigned.contains(*p) && !in_release.contains(*p));
        let revoked: BTreeSet<_> = revoked.cloned().collect();
        self.release(revoked)
    }

    /// Makes the assigned partitions held that are not, and returns them. A partition whose release has not been
    /// reported is added after that.
    pub(super) fn take_added(&mut self) -> Vec<TopicPartition> {
        let in_release = self.in_release();
        let added = self.assigned.iter().filter(|p| !self.held.contains(*p) && !in_release.contains(*p));
        let added: Vec<_> = added.cloned().collect();
        self.held.extend(added.iter().cloned());
        added
    }

    /// Forgets what is assigned but not held, because a join does not claim it: others may get it.
    pub(super) fn forget_unclaimed(&mut self) {
        self.assigned.retain(|partition| self.held.contains(partition));
    }

    /// Forgets the assignment and returns everything held, to be released; earlier releases become part of this one.
    pub(super) fn release_all(&mut self) -> Option<(ReleaseToken, Vec<TopicPartition>)> {
        self.assigned.clear();
        self.releasing.clear();
        self.release(self.held.clone())
    }

    /// The owner has released the partitions of this token; returns whether the token was valid.
    pub(super) fn released(&mut self, token: ReleaseToken) -> bool {
        let Some(partitions) = self.releasing.remove(&token) else { return false };
        self.held.retain(|partition| !partitions.contains(partition));
        true
    }

    /// Nothing is held any longer, and nothing has to be released.
    pub(super) fn clear(&mut self) {
        self.assigned.clear();
        self.held.clear();
        self.releasing.clear();
    }

    fn in_release(&self) -> BTreeSet<TopicPartition> {
        self.releasing.values().flatten().cloned().collect()
    }

    fn release(&mut self, partitions: BTreeSet<TopicPartition>) -> Option<(ReleaseToken, Vec<TopicPartition>)> {
        if partitions.is_empty() {
            return None;
        }
        let token = ReleaseToken(self.next_token);
        self.next_token += 1;
        let listed = partitions.iter().cloned().collect();
        self.releasing.insert(token, partitions);
        Some((token, listed))
    }
}
