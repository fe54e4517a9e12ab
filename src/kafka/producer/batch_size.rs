//! The batch size that the topic of a partition accepts (`max.message.bytes`), learnt from the batches that were
//! stored and those that were too large.
//!
//! One message that is too large must not make the batches of the other messages small: a size that was stored is kept,
//! and a smaller size grows with each stored batch.

/// Stored batches after which a size that was too large is tried again: the limit of the topic may have been raised.
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
        self.max_bytes = half_bytes.max(self.stored_bytes).max(1);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends batches as large as allowed, at most 1 MB, to a topic with the limit `limit`; returns how many were
    /// refused, and the size of the last.
    fn send(size: &mut BatchSize, limit: usize, batches: usize) -> (usize, usize) {
        let (mut refused, mut last) = (0, 0);
        for _ in 0..batches {
            last = size.max_bytes().min(1_000_000);
            if last > limit {
                refused += 1;
                size.record_refused(last, last.div_ceil(2));
            } else {
                size.record_stored(last);
            }
        }
        (refused, last)
    }

    #[test]
    fn the_size_approaches_the_limit_of_the_topic_with_few_refusals() {
        let mut size = BatchSize::UNLIMITED;
        for limit in [100_000, 7_000, 999_000, 100_000] {
            let (refused, last) = send(&mut size, limit, 900);
            assert!(refused <= 20, "{refused} refusals of 900 batches at the limit {limit}");
            assert!(last <= limit, "{last}");
            // A limit that was raised is noticed later.
            send(&mut size, limit, 1000);
        }
        let (refused, last) = send(&mut size, 100_000, 10_000);
        assert!(refused <= 100, "{refused}");
        assert!((80_000..=100_000).contains(&last), "{last}");
        send(&mut size, 1_000_000, 2000);
        assert_eq!(send(&mut size, 1_000_000, 1000), (0, 1_000_000), "a limit that is raised is found");
    }

    #[test]
    fn one_message_that_is_too_large_does_not_make_other_batches_small() {
        let mut size = BatchSize::UNLIMITED;
        size.record_stored(50_000);
        size.record_refused(800_000, 100);
        assert_eq!(size.max_bytes(), 50_000, "a size that was stored");
        let mut fresh = BatchSize::UNLIMITED;
        fresh.record_refused(800_000, 100);
        assert_eq!(fresh.max_bytes(), 100);
        send(&mut fresh, 1_000_000, 15);
        assert!(fresh.max_bytes() > 500_000, "{}", fresh.max_bytes());
    }

    #[test]
    fn each_refusal_makes_the_next_batch_smaller() {
        let mut size = BatchSize::UNLIMITED;
        size.record_stored(1000);
        let mut bytes = 1000;
        while bytes > 1 {
            size.record_refused(bytes, bytes / 2);
            assert!(size.max_bytes() < bytes);
            bytes = size.max_bytes();
        }
    }
}
