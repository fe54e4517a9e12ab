//! The leader epochs of the log that was read: which epoch each offset has (the client's part of KIP-320). Pure.

use std::collections::VecDeque;

/// Upper bound of the epochs kept. Without the oldest, the point of a truncation that goes back behind them is found
/// too high; it never matters unless a partition had that many elections since its assignment.
const MAX_EPOCHS: usize = 64;

/// Epochs with their first offsets, both rising.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct EpochHistory {
    starts: VecDeque<(i32, i64)>,
}

impl EpochHistory {
    /// Returns the history of a log that is read from `offset` on; `epoch` is that of the message before it.
    pub(super) fn starting(offset: i64, epoch: Option<i32>) -> Self {
        let mut history = EpochHistory::default();
        if let Some(epoch) = epoch.filter(|epoch| *epoch >= 0 && offset > 0) {
            // The epoch began there or earlier.
            history.starts.push_back((epoch, offset - 1));
        }
        history
    }

    /// Adds epochs with their first offsets.
    pub(super) fn extend(&mut self, epochs: &[(i32, i64)]) {
        for (epoch, start) in epochs {
            if *epoch > self.last() {
                self.starts.push_back((*epoch, *start));
            }
        }
        while self.starts.len() > MAX_EPOCHS {
            self.starts.pop_front();
        }
    }

    /// Returns the last epoch; -1 if unknown.
    pub(super) fn last(&self) -> i32 {
        self.starts.back().map_or(-1, |(epoch, _)| *epoch)
    }

    /// Returns the epoch of the last message below `offset`.
    pub(super) fn before(&self, offset: i64) -> Option<i32> {
        self.starts.iter().rev().find(|(_, start)| *start < offset).map(|(epoch, _)| *epoch)
    }

    /// Forgets the epochs of the messages from `offset` on.
    pub(super) fn truncate(&mut self, offset: i64) {
        while self.starts.back().is_some_and(|(_, start)| *start >= offset) {
            self.starts.pop_back();
        }
    }

    /// Returns the largest offset up to which this log can be equal to a log in which `epoch` ends at `end_offset`, and
    /// that has no epoch between `epoch` and the last epoch of this log.
    pub(super) fn common_end(&self, epoch: i32, end_offset: i64) -> i64 {
        let later = self.starts.iter().find(|(known, _)| *known > epoch);
        later.map_or(end_offset, |(_, start)| end_offset.min(*start))
    }

    /// Forgets all epochs.
    pub(super) fn clear(&mut self) {
        self.starts.clear();
    }
}
