//! The largest batch of a topic at acks=0, where no response refuses a batch that is too large: the broker closes the
//! connection, and the messages on their way are lost. Without IO and without a clock.
//!
//! The configured limit of the topic counts (`max.message.bytes`), if the client knows it. Otherwise batches are small.
//! They become larger after the topic has stored larger ones at other acks levels. They are made smaller for a while
//! after a broker refused one there, or closed a connection with acks=0 after a batch: for seconds at first, because
//! most connections are closed for another reason, and longer if it happens again. A single message may be larger: it
//! is sent alone.

use std::time::{Duration, Instant};

/// Upper bound of a batch while nothing is known of the limit: the default of `batch.size` of the Java client.
pub(super) const UNKNOWN_LIMIT_BYTES: usize = 16 * 1024;
/// A batch that was too large makes the next ones no smaller than this.
const MIN_BYTES: usize = 1024;
/// Time for which batches are smaller after a connection was closed; it doubles each time. A broker that refuses each
/// large batch thus loses few of them.
const MIN_SMALLER_FOR: Duration = Duration::from_secs(5);
/// Upper bound of that time, and the time after a broker refused a batch because of its size. If nothing happens for as
/// long afterwards, the time begins with the minimum again.
const MAX_SMALLER_FOR: Duration = Duration::from_secs(600);

/// The largest batch of a topic, as far as it is known. All sizes are in bytes; those of batches before compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TopicLimit {
    /// Largest batch that the topic accepts, as it is sent; `usize::MAX` if unknown.
    pub(super) configured_bytes: usize,
    /// Upper bound of a batch while that is unknown.
    assumed_bytes: usize,
    /// Why batches are smaller at present, or were a while ago.
    reduction: Option<Reduction>,
}

/// Batches are smaller for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reduction {
    /// Upper bound of a batch; `usize::MAX` once the time has passed.
    max_bytes: usize,
    until: Instant,
    time: Duration,
}

impl TopicLimit {
    pub(super) const UNKNOWN: TopicLimit =
        TopicLimit { configured_bytes: usize::MAX, assumed_bytes: UNKNOWN_LIMIT_BYTES, reduction: None };

    /// Returns the upper bound of a batch at acks=0.
    pub(super) fn unconfirmed_batch_bytes(&self) -> usize {
        if self.configured_bytes == usize::MAX { self.max_assumed_bytes() } else { self.configured_bytes }
    }

    fn max_assumed_bytes(&self) -> usize {
        self.reduction.map_or(self.assumed_bytes, |reduction| self.assumed_bytes.min(reduction.max_bytes))
    }

    /// A broker has stored a batch of this size. Small steps are ignored, since each one changes all partitions.
    pub(super) fn record_stored(&mut self, bytes: usize) {
        if bytes > self.max_assumed_bytes() + self.max_assumed_bytes() / 8 {
            self.assumed_bytes = self.assumed_bytes.max(bytes);
            self.reduction.iter_mut().for_each(|reduction| reduction.max_bytes = reduction.max_bytes.max(bytes));
        }
    }

    /// A broker has refused a batch of this size because of its size.
    pub(super) fn record_refused(&mut self, bytes: usize, now: Instant) {
        if bytes <= self.max_assumed_bytes() {
            self.assumed_bytes = self.assumed_bytes.min(UNKNOWN_LIMIT_BYTES);
            self.reduce(bytes, MAX_SMALLER_FOR, now);
        }
    }

    /// A broker has closed a connection with acks=0, perhaps because it refused a batch of this size.
    pub(super) fn record_closed(&mut self, bytes: usize, now: Instant) {
        if bytes <= self.max_assumed_bytes() {
            let latest = self.reduction.filter(|latest| now < latest.until + MAX_SMALLER_FOR);
            let time = latest.map_or(MIN_SMALLER_FOR, |latest| (latest.time * 2).min(MAX_SMALLER_FOR));
            self.reduce(bytes, time, now);
        }
    }

    fn reduce(&mut self, bytes: usize, time: Duration, now: Instant) {
        self.reduction = Some(Reduction { max_bytes: (bytes / 2).max(MIN_BYTES), until: now + time, time });
    }

    /// Ends a reduction whose time has passed.
    pub(super) fn grow(&mut self, now: Instant) {
        if let Some(reduction) = self.reduction.as_mut().filter(|reduction| reduction.until <= now) {
            reduction.max_bytes = usize::MAX;
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
        limit.grow(now + MAX_SMALLER_FOR - Duration::from_millis(1));
        assert_eq!(limit.unconfirmed_batch_bytes(), MIN_BYTES);
        limit.grow(now + MAX_SMALLER_FOR);
        assert_eq!(limit.unconfirmed_batch_bytes(), 16_384, "the size that was stored does not count any more");
        limit.record_refused(6_000, now);
        limit.record_stored(4_000);
        assert_eq!(limit.unconfirmed_batch_bytes(), 4_000);
        limit.record_stored(40_000);
        assert_eq!(limit.unconfirmed_batch_bytes(), 40_000, "the limit was raised");
    }

    #[test]
    fn a_closed_connection_makes_batches_smaller_for_seconds_and_for_longer_if_it_happens_again() {
        let (mut limit, mut now) = (TopicLimit::UNKNOWN, Instant::now());
        limit.record_stored(300_000);
        let mut seconds = Vec::new();
        for _ in 0..9 {
            limit.record_closed(200_000, now);
            assert_eq!(limit.unconfirmed_batch_bytes(), 100_000);
            let start = now;
            while limit.unconfirmed_batch_bytes() == 100_000 {
                now += MIN_SMALLER_FOR;
                limit.grow(now);
            }
            assert_eq!(limit.unconfirmed_batch_bytes(), 300_000);
            seconds.push((now - start).as_secs());
        }
        assert_eq!(seconds, [5, 10, 20, 40, 80, 160, 320, 600, 600]);
        now += MAX_SMALLER_FOR;
        limit.record_closed(2_000, now);
        limit.record_closed(2_000, now);
        assert_eq!(limit.unconfirmed_batch_bytes(), MIN_BYTES, "a larger batch says nothing of smaller ones");
        limit.grow(now + MIN_SMALLER_FOR);
        assert_eq!(limit.unconfirmed_batch_bytes(), 300_000);
    }
}
