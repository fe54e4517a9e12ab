//! The batch size that the topic of a partition accepts (`max.message.bytes`), learnt from the batches that were
//! stored and those that were too large.
//!
//! One message that is too large must not make the batches of the other messages small: a size that was stored is kept,
//! and a smaller size grows with each stored batch.

/// Stored batches after which a size that was too large is tried again, since the limit of the topic may be higher then.
const RETRY_AFTER_BATCHES: u32 = 1000;

/// Upper bound of the batches of a partition. All sizes are in bytes before compression.
#[derive(Debug)]
pub(super) struct BatchSize {
    max_bytes: usize,
    /// Largest batch that was stored; 0 if the topic has since refused a batch of that size.
    stored_bytes: usize,
    /// The latest batch that was too large; `usize::MAX` if there is none.
    refused_bytes: usize,
    /// Stored batches since `max_bytes` reached its value.
    steady_batches: u32,
}

impl BatchSize {
    pub(super) const UNLIMITED: BatchSize =
        BatchSize { max_bytes: usize::MAX, stored_bytes: 0, refused_bytes: usize::MAX, steady_batches: 0 };

    pub(super) fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Records that a batch of `bytes` was too large. The next batch has `half_bytes` or the largest stored size; both
    /// are less than `bytes`, so the retries end.
    pub(super) fn record_refused(&mut self, bytes: usize, half_bytes: usize) {
        if self.stored_bytes >= bytes {
            self.stored_bytes = 0;
        }
        self.refused_bytes = bytes;
        self.max_bytes = half_bytes.max(self.stored_bytes);
        self.steady_batches = 0;
    }

    /// Records that a batch of `bytes` was stored, and enlarges the next batches towards the refused size.
    pub(super) fn record_stored(&mut self, bytes: usize) {
        self.stored_bytes = self.stored_bytes.max(bytes);
        if self.max_bytes == usize::MAX {
            return;
        }
        let step = self.max_bytes.min(self.refused_bytes.saturating_sub(self.max_bytes) / 2);
        if step > self.max_bytes / 8 {
            self.max_bytes = self.max_bytes.saturating_add(step);
            self.steady_batches = 0;
            return;
        }
        self.steady_batches += 1;
        if self.steady_batches >= RETRY_AFTER_BATCHES {
            *self = BatchSize { stored_bytes: self.stored_bytes, ..BatchSize::UNLIMITED };
        }
    }
}
