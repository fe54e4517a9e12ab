//! The memory of the messages of one module (`max_in_flight_bytes`): from the fetch loop until a message is done.
//!
//! The fetch loop takes the bytes of a batch before it queues the batch, and waits while the budget is used up. Each
//! message returns its bytes when its [`BudgetShare`] is dropped. Invariant: a batch of any size is admitted while
//! nothing else is held, so a message larger than the budget does not wait forever.
//!
//! While messages are held, more are read: one large message may wait for memory, one may be decoded and one received.
//! So a large message is admitted beside another large one only if the budget has room for three more of its size.
//! Small messages that are held for long do not prevent that a large one is admitted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};

/// A message above this size is a large one: three of them in transit take more memory than ktransfer needs anyway. A
/// batch has at most one of them, since it ends with the message that reaches this size.
const LARGE_MESSAGE_BYTES: usize = 1 << 20;
/// How many large messages may be in memory beside those held.
const MESSAGES_BEING_READ: usize = 3;

/// The bytes that the messages of a module may take. Clones share one budget.
#[derive(Clone, Debug)]
pub(super) struct MemoryBudget {
    shared: Arc<Shared>,
    freed: Receiver<()>,
}

#[derive(Debug)]
struct Shared {
    max_bytes: usize,
    used_bytes: AtomicUsize,
    /// The part of `used_bytes` that large messages take.
    large_bytes: AtomicUsize,
    /// Whether the fetch loop waits for bytes. Only then does a returned share send a wake-up.
    is_awaited: AtomicBool,
    wake: Sender<()>,
}

/// The bytes of one message. They return to the budget when the share is dropped.
#[derive(Debug)]
pub(super) struct BudgetShare {
    shared: Arc<Shared>,
    size_bytes: usize,
}

impl MemoryBudget {
    /// Creates a budget of `max_bytes`, of which nothing is used.
    pub(super) fn new(max_bytes: usize) -> MemoryBudget {
        let (wake, freed) = bounded(1);
        let (used_bytes, large_bytes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let shared = Arc::new(Shared { max_bytes, used_bytes, large_bytes, is_awaited: AtomicBool::new(false), wake });
        MemoryBudget { shared, freed }
    }

    /// Takes `size_bytes` and returns true, or returns false if the budget has no room; then [`freed`](Self::freed)
    /// gets a message after bytes were returned. `largest_bytes` is the size of the largest message among them, 0 if
    /// nothing is read meanwhile. Each byte taken must be covered by one [`share`](Self::share). One thread takes.
    pub(super) fn try_take(&self, size_bytes: usize, largest_bytes: usize) -> bool {
        // Announced before the test: a share that is returned after the test then sees the announcement.
        self.shared.is_awaited.store(true, Ordering::SeqCst);
        let large_bytes = if is_large(largest_bytes) { largest_bytes } else { 0 };
        let being_read = match self.shared.large_bytes.load(Ordering::SeqCst) {
            0 => 0,
            _ => large_bytes.saturating_mul(MESSAGES_BEING_READ),
        };
        let admit = |used: usize| {
            let total = used.saturating_add(size_bytes);
            let is_within = total.saturating_add(being_read) <= self.shared.max_bytes;
            (used == 0 || size_bytes == 0 || is_within).then_some(total)
        };
        let is_taken = self.shared.used_bytes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, admit).is_ok();
        if is_taken {
            self.shared.large_bytes.fetch_add(large_bytes, Ordering::SeqCst);
            self.shared.is_awaited.store(false, Ordering::SeqCst);
        }
        is_taken
    }

    /// Returns the share of one message whose bytes were taken with its batch.
    pub(super) fn share(&self, size_bytes: usize) -> BudgetShare {
        BudgetShare { shared: Arc::clone(&self.shared), size_bytes }
    }

    /// Returns the channel that gets a message when bytes were returned after a failed [`try_take`](Self::try_take).
    pub(super) fn freed(&self) -> &Receiver<()> {
        &self.freed
    }

    /// Whether the fetch loop waits for bytes.
    #[cfg(test)]
    pub(super) fn is_awaited(&self) -> bool {
        self.shared.is_awaited.load(Ordering::SeqCst)
    }

    /// Returns the bytes in use.
    pub(super) fn used_bytes(&self) -> usize {
        self.shared.used_bytes.load(Ordering::SeqCst)
    }
}

fn is_large(size_bytes: usize) -> bool {
    size_bytes > LARGE_MESSAGE_BYTES
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        if is_large(self.size_bytes) {
            // Letters are not counted as large.
            let less = |large: usize| Some(large.saturating_sub(self.size_bytes));
            let _ = self.shared.large_bytes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        }
        self.shared.used_bytes.fetch_sub(self.size_bytes, Ordering::SeqCst);
        if self.shared.is_awaited.load(Ordering::SeqCst) {
            // A full channel means that a wake-up is pending.
            let _ = self.shared.wake.try_send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_never_exceeded_except_by_a_batch_that_is_alone() {
        let budget = MemoryBudget::new(100);
        assert!(budget.try_take(1000, 0), "a batch of any size is admitted while nothing else is held");
        assert!(!budget.try_take(1, 0));
        drop(budget.share(1000));
        assert_eq!(budget.used_bytes(), 0);
        assert!(budget.try_take(60, 0) && budget.try_take(40, 0) && !budget.try_take(1, 0));
        drop(budget.share(30));
        assert!(!budget.try_take(31, 0) && budget.try_take(30, 0));
        assert_eq!(budget.used_bytes(), 100);
        drop(budget.share(100));
    }

    #[test]
    fn a_large_message_leaves_room_for_what_is_read_meanwhile() {
        const MIB: usize = 1 << 20;
        let budget = MemoryBudget::new(256 * MIB);
        let take = |mib: usize| budget.try_take(mib * MIB, mib * MIB);
        assert!(take(64) && !take(64), "64 MiB held, up to 192 MiB being read");
        assert!(take(48), "48 MiB more held, up to 144 MiB being read");
        assert!(!take(40));
        for _ in 0..144 {
            assert!(take(1), "messages of usual size fill the budget");
        }
        assert!(!budget.try_take(1, 1));
        drop((budget.share(64 * MIB), budget.share(48 * MIB)));
        assert!(take(64), "no other large message is held");
        // Nothing is read while letters are stored.
        let letters = MemoryBudget::new(8 * MIB);
        assert!(letters.try_take(100, 0) && letters.try_take(3 * MIB, 0) && letters.try_take(3 * MIB, 0));
    }

    #[test]
    fn a_small_message_that_is_held_for_ever_keeps_no_large_one_out() {
        let budget = MemoryBudget::new(64 << 20);
        assert!(budget.try_take(1 << 10, 1 << 10));
        for _ in 0..3 {
            assert!(budget.try_take(20 << 20, 20 << 20) && !budget.try_take(20 << 20, 20 << 20));
            drop(budget.share(20 << 20));
        }
    }

    #[test]
    fn a_returned_share_wakes_the_fetch_loop_only_while_it_waits() {
        let budget = MemoryBudget::new(10);
        assert!(budget.try_take(10, 0));
        drop(budget.share(1));
        assert!(budget.freed().try_recv().is_err());
        assert!(!budget.try_take(5, 0));
        drop(budget.share(1));
        drop(budget.share(1));
        assert!(budget.freed().try_recv().is_ok());
        assert!(budget.freed().try_recv().is_err(), "one wake-up is enough");
    }

    #[test]
    fn no_wake_up_is_lost_between_threads() {
        let budget = MemoryBudget::new(1);
        let (shares, receiver) = crossbeam_channel::unbounded();
        let returning = std::thread::spawn(move || receiver.iter().for_each(drop::<BudgetShare>));
        for _ in 0..20_000 {
            while !budget.try_take(1, 0) {
                budget.freed().recv_timeout(std::time::Duration::from_secs(30)).expect("a wake-up was lost");
            }
            shares.send(budget.share(1)).unwrap();
        }
        drop(shares);
        returning.join().unwrap();
        assert_eq!(budget.used_bytes(), 0);
    }
}
