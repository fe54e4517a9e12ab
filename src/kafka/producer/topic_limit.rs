//! The largest batch of a topic at acks=0, where no response refuses a batch that is too large: the broker closes the
//! connection, and the messages on their way are lost. Without IO and without a clock.
//!
//! The configured limit of the topic counts (`max.message.bytes`), if the client knows it. Otherwise batches are small.
//! They become larger after the topic has stored larger ones at other acks levels, and smaller after a broker refused
//! one there, or closed a connection with acks=0 soon after a batch. A single message may be larger: it is sent alone.

use std::time::{Duration, Instant};

/// Upper bound of a batch while nothing is known of the limit: the default of `batch.size` of the Java client.
pub(super) const UNKNOWN_LIMIT_BYTES: usize = 16 * 1024;
/// A batch that was too large makes the next ones no smaller than this.
const MIN_BYTES: usize = 1024;
/// Time after which batches that were made smaller grow again: most connections are closed for another reason.
const SMALLER_FOR: Duration = Duration::from_secs(600);

/// The largest batch of a topic, as far as it is known. All sizes are in bytes; those of batches before compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TopicLimit {
    /// Largest batch that the topic accepts, as it is sent; `usize::MAX` if unknown.
    pub(super) configured_bytes: usize,
    /// Upper bound of a batch while that is unknown.
    assumed_bytes: usize,
    /// When `assumed_bytes` grows.
    larger_at: Option<Instant>,
}

impl TopicLimit {
    pub(super) const UNKNOWN: TopicLimit =
        TopicLimit { configured_bytes: usize::MAX, assumed_bytes: UNKNOWN_LIMIT_BYTES, larger_at: None };

    /// Returns the upper bound of a batch at acks=0.
    pub(super) fn unconfirmed_batch_bytes(&self) -> usize {
        if self.configured_bytes == usize::MAX { self.assumed_bytes } else { self.configured_bytes }
    }

    /// A broker has stored a batch of this size. Small steps are ignored, since each one changes all partitions.
    pub(super) fn record_stored(&mut self, bytes: usize) {
        if bytes > self.assumed_bytes + self.assumed_bytes / 8 {
            (self.assumed_bytes, self.larger_at) = (bytes, None);
        }
    }

    /// A broker has refused a batch of this size because of its size, or perhaps because of its size.
    pub(super) fn record_refused(&mut self, bytes: usize, now: Instant) {
        if bytes <= self.assumed_bytes {
            self.assumed_bytes = (bytes / 2).max(MIN_BYTES);
            self.larger_at = Some(now + SMALLER_FOR);
        }
    }

    /// Lets batches grow that have been small for long.
    pub(super) fn grow(&mut self, now: Instant) {
        if self.larger_at.is_some_and(|time| time <= now) {
            self.assumed_bytes = self.assumed_bytes.saturating_mul(2).min(UNKNOWN_LIMIT_BYTES.max(self.assumed_bytes));
            self.larger_at = (self.assumed_bytes < UNKNOWN_LIMIT_BYTES).then(|| now + SMALLER_FOR);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configured_limit_counts_if_it_is_known() {
        let mut limit = TopicLimit::UNKNOWN;
        assert_eq!(limit.unconfirmed_batch_bytes(), 16_384);
        limit.configured_bytes = 1_048_588;
        limit.record_refused(500, Instant::now());
        assert_eq!(limit.unconfirmed_batch_bytes(), 1_048_588);
    }

    #[test]
    fn an_unknown_limit_follows_what_other_levels_stored_and_what_was_refused() {
        let (mut limit, now) = (TopicLimit::UNKNOWN, Instant::now());
        limit.record_stored(17_000);
        assert_eq!(limit.unconfirmed_batch_bytes(), 16_384, "a small step");
        limit.record_stored(300_000);
        assert_eq!(limit.unconfirmed_batch_bytes(), 300_000);
        limit.record_refused(400_000, now);
        assert_eq!(limit.unconfirmed_batch_bytes(), 300_000, "larger than what was stored");
        limit.record_refused(6_000, now);
        assert_eq!(limit.unconfirmed_batch_bytes(), 3_000);
        (0..9).for_each(|_| limit.record_refused(1_000, now));
        assert_eq!(limit.unconfirmed_batch_bytes(), MIN_BYTES);
    }

    #[test]
    fn batches_that_were_made_smaller_grow_after_a_while() {
        let (mut limit, now) = (TopicLimit::UNKNOWN, Instant::now());
        limit.record_refused(9_000, now);
        let mut sizes = Vec::new();
        for round in 1..=4 {
            limit.grow(now + SMALLER_FOR * round - Duration::from_secs(1));
            limit.grow(now + SMALLER_FOR * round);
            sizes.push(limit.unconfirmed_batch_bytes());
        }
        assert_eq!(sizes, [9_000, 16_384, 16_384, 16_384]);
        // What was stored stays.
        limit.record_stored(50_000);
        limit.grow(now + SMALLER_FOR * 9);
        assert_eq!(limit.unconfirmed_batch_bytes(), 50_000);
    }
}
