//! The messages between dispatcher and workers: jobs to the workers, reports to the dispatcher.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};

use super::group::{Claim, Generation, TimedFence};
use super::memory_budget::BudgetShare;
use super::method::NoMethod;
use super::turn::Turn;
use crate::broker::{Header, Message, Offset, PartitionId};

/// The claim on a partition as the workers see it. One is created for each `Gained` event and shared by its jobs.
///
/// A claim ends in two steps, so that a hand-over repeats few messages: in the first step each job below the highest
/// offset that was pushed still gets one attempt, in the second step no attempt begins. When another log is read, each
/// job of the log before gets one attempt. While an operator has paused
/// the partition, no attempt begins, but a message that was given up still gets its dead letter.
pub(super) struct Assignment {
    /// The claimed partition.
    pub(super) partition: PartitionId,
    /// Number of this claim. Each claim of the partition has another number.
    pub(super) generation: Generation,
    /// The time until which pushes of this claim may begin or continue.
    pub(super) fence: Arc<TimedFence>,
    /// Fencing token of the claim, see [`Claim::token`].
    pub(super) token: u64,
    phase: AtomicU8,
    is_paused: AtomicBool,
    /// The highest offset of the present log of which an attempt began.
    highest_started: AtomicI64,
    /// The first window of the present log: the offsets of earlier windows are those of another log.
    log_since: AtomicU64,
}

/// The steps in which a claim ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ClaimPhase {
    /// The partition is pushed.
    Held,
    /// The release has begun: no job is retried, and a job is attempted only if a later message was attempted before.
    Draining,
    /// The release takes too long, or the claim has ended: no attempt begins.
    Ended,
}

impl Assignment {
    /// Creates a claim that has not ended.
    pub(super) fn new(claim: &Claim) -> Self {
        Assignment {
            partition: claim.partition,
            generation: claim.generation,
            fence: Arc::clone(&claim.fence),
            token: claim.token,
            phase: AtomicU8::new(ClaimPhase::Held as u8),
            is_paused: AtomicBool::new(false),
            highest_started: AtomicI64::new(Offset::MIN),
            log_since: AtomicU64::new(0),
        }
    }

    /// From this window on, another log is read: no message of it was attempted. Then the dispatcher must send
    /// [`WorkerMessage::Recheck`] to the workers: jobs of the log before get one attempt each.
    pub(super) fn begin_log(&self, window: WindowId) {
        self.log_since.store(window.0, Ordering::SeqCst);
        self.highest_started.store(Offset::MIN, Ordering::SeqCst);
    }

    /// Whether the messages of this window are of the log that is read. Others cannot be read again.
    pub(super) fn is_of_present_log(&self, window: WindowId) -> bool {
        self.log_since.load(Ordering::SeqCst) <= window.0
    }

    /// Moves the claim on to `phase`; a claim never moves back. The dispatcher must then send
    /// [`WorkerMessage::Recheck`] to the workers.
    pub(super) fn enter(&self, phase: ClaimPhase) {
        self.phase.fetch_max(phase as u8, Ordering::SeqCst);
    }

    /// Returns the present phase.
    pub(super) fn phase(&self) -> ClaimPhase {
        match self.phase.load(Ordering::SeqCst) {
            0 => ClaimPhase::Held,
            1 => ClaimPhase::Draining,
            _ => ClaimPhase::Ended,
        }
    }

    /// Returns what identifies the claim within its module.
    pub(super) fn id(&self) -> (PartitionId, Generation) {
        (self.partition, self.generation)
    }

    /// Ends the claim: takes both steps at once.
    pub(super) fn end(&self) {
        self.enter(ClaimPhase::Ended);
    }

    /// Begins or ends a pause of the partition. After the begin the dispatcher must send [`WorkerMessage::Recheck`] to
    /// the workers; it ends a pause only when no job of the claim is to be pushed.
    pub(super) fn set_paused(&self, is_paused: bool) {
        self.is_paused.store(is_paused, Ordering::SeqCst);
    }

    /// Whether an attempt may begin now.
    pub(super) fn may_push(&self) -> bool {
        self.may_store_letters() && !self.is_paused.load(Ordering::SeqCst)
    }

    /// Whether dead letters may be stored now.
    pub(super) fn may_store_letters(&self) -> bool {
        self.phase() != ClaimPhase::Ended && self.fence.is_valid()
    }

    /// Notes that an attempt of the message at `offset`, which was read for `window`, begins.
    pub(super) fn note_started(&self, window: WindowId, offset: Offset) {
        // The read avoids most of the writes to a value that all workers share.
        if self.highest_started.load(Ordering::Relaxed) < offset && self.is_of_present_log(window) {
            self.highest_started.fetch_max(offset, Ordering::SeqCst);
        }
    }

    /// Whether the work on a job ends without a (further) attempt. `is_started` says whether an attempt was made.
    pub(super) fn is_over_for(&self, window: WindowId, offset: Offset, is_started: bool) -> bool {
        match self.phase() {
            // A message of a log that is gone must not hold up those of its key in the present log for ever.
            ClaimPhase::Held if is_started && !self.is_of_present_log(window) => true,
            ClaimPhase::Held => self.is_paused.load(Ordering::SeqCst),
            ClaimPhase::Draining if is_started || self.is_paused.load(Ordering::SeqCst) => true,
            // A message that would only add to the messages ahead of the commit point is left to the next owner. One of
            // a log that is gone cannot be: it gets its attempt now.
            ClaimPhase::Draining => {
                self.is_of_present_log(window) && self.highest_started.load(Ordering::SeqCst) < offset
            }
            ClaimPhase::Ended => true,
        }
    }
}

/// Identifies a window of a dispatcher. An id is never reused, so a late batch or acknowledgement never matches a later
/// window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct WindowId(pub u64);

/// A message to be pushed.
pub(super) struct Job {
    /// The claim under which the message was read.
    pub(super) assignment: Arc<Assignment>,
    /// The window that has an open slot for the message.
    pub(super) window: WindowId,
    /// The message as read from Kafka.
    pub(super) message: Message,
    /// The method of the message; `None` if the module configures no `methods`, and for a tombstone.
    pub(super) method: Option<Arc<str>>,
    /// Why the message ends with a dead letter without a push; `None` if it is to be pushed.
    pub(super) unpushable: Option<Unpushable>,
    /// The memory of the message; it returns to the module's budget with the job.
    pub(super) _memory: Option<BudgetShare>,
}

/// Why a message ends with a dead letter without a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unpushable {
    /// `methods` is configured, but the message has no readable method.
    Undecodable(NoMethod),
    /// The method of the message is not configured.
    Filtered,
}

/// Identifies claims of a module.
pub(super) type ClaimIds = HashSet<(PartitionId, Generation)>;

/// A message to a worker.
pub(super) enum WorkerMessage {
    /// Push this.
    Job(Box<Job>),
    /// The phase of these claims has changed: abandon their jobs that are over. It follows the last job of each of
    /// them. Jobs of other claims must not be abandoned now, whatever their phase: later jobs may still be on their
    /// way.
    Recheck(Arc<ClaimIds>),
    /// The worker has a slot of the window, which it was registered for.
    SlotGranted,
    /// Skip this message, if this worker has it and it is not on the wire.
    Skip(Arc<SkipOrder>),
    /// A backend is in use again, after the worker waited because none was.
    BackendReturned,
    /// A reload has changed the settings.
    SettingsChanged(SettingsChange),
    /// An attempt to store a dead letter has ended. Sent once for each.
    LetterEnded {
        /// Identifies the letter.
        ticket: u64,
        /// Whether the letter is stored, or why not.
        result: Result<(), LetterError>,
    },
    /// The dispatcher has ended, so the worker ends too.
    End,
}

/// The effects of a change of the settings on workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SettingsChange {
    /// The permits of the former limit on pushes are void.
    pub(super) has_new_rate: bool,
    /// Messages that wait for their next attempt are attempted now: the backends that refused them may be removed, or
    /// the pauses shorter.
    pub(super) retries_now: bool,
}

/// An operator's order to skip one message.
#[derive(Debug)]
pub(super) struct SkipOrder {
    /// Number of the partition.
    pub(super) partition: PartitionId,
    /// The claim under which the message was read.
    pub(super) generation: Generation,
    /// The window that has an open slot for the message.
    pub(super) window: WindowId,
    /// Offset of the message.
    pub(super) offset: Offset,
    /// Name of the operator's credential.
    pub(super) by: Arc<str>,
    /// Whether a dead letter is stored before the message is done, if the module has a dead-letter topic.
    pub(super) stores_letter: bool,
    /// Taken by the worker that skips the message; cancelled by the dispatcher when that takes too long.
    pub(super) turn: Turn,
}

impl SkipOrder {
    /// Whether the order is for this job.
    pub(super) fn is_for(&self, job: &Job) -> bool {
        let claim = (job.assignment.partition, job.assignment.generation, job.window);
        claim == (self.partition, self.generation, self.window) && job.message.offset == self.offset
    }
}

/// Why a dead letter is not stored, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LetterError {
    /// Too many letters are being stored.
    Busy,
    /// The append failed for this reason.
    Failed(String),
}

/// Returns approximately how many bytes a message takes in memory, from the fetch loop until it is done.
pub(super) fn message_size_bytes(message: &Message) -> usize {
    /// The message itself, its slot in the window and in queues, its job, and what the allocator adds.
    const MESSAGE_BYTES: usize = 400;
    /// What the allocator adds to the name and to the value of a header.
    const HEADER_BYTES: usize = 32;
    let bytes = |field: &Option<Vec<u8>>| field.as_ref().map_or(0, Vec::capacity);
    let headers = message.headers.iter().map(|header| HEADER_BYTES + header.name.capacity() + bytes(&header.value));
    MESSAGE_BYTES
        + bytes(&message.key)
        + bytes(&message.value)
        + message.headers.capacity() * size_of::<Header>()
        + headers.sum::<usize>()
}

/// How the work on a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JobEnd {
    /// The message is delivered, dropped, or stored as a dead letter: the commit point may move past it.
    Done,
    /// The claim ended before the message was done: the next owner of the partition pushes it.
    Abandoned,
}

/// A report of a worker to the dispatcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WorkerReport {
    /// A job waits: for its next attempt, or behind a job of its key. Sent at most once for each job.
    Waits {
        /// Number of the worker.
        worker: usize,
    },
    /// The message of a job was given up, and waits for its dead letter. Sent at most once for each job.
    AwaitsLetter(JobPlace),
    /// The work on a job has ended. Sent exactly once for each job.
    Ack(Ack),
}

/// Which job a report is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JobPlace {
    /// Partition of the message.
    pub(super) partition: PartitionId,
    /// Number of the claim under which the message was read.
    pub(super) generation: Generation,
    /// The window that has an open slot for the message.
    pub(super) window: WindowId,
    /// Offset of the message.
    pub(super) offset: Offset,
}

/// A worker's acknowledgement of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ack {
    /// Number of the worker.
    pub(super) worker: usize,
    /// Whether [`WorkerReport::Waits`] was sent for the job.
    pub(super) has_waited: bool,
    /// Partition of the message.
    pub(super) partition: PartitionId,
    /// Number of the claim under which the message was read.
    pub(super) generation: Generation,
    /// The window that has an open slot for the message.
    pub(super) window: WindowId,
    /// Offset of the message.
    pub(super) offset: Offset,
    /// How the job ended.
    pub(super) end: JobEnd,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ktransfer::test_fixtures::{claim, job};

    #[test]
    fn headers_count_with_at_least_64_bytes_each() {
        let plain = message_size_bytes(&job(Some(b"k"), Some(b"v"), &[]).message);
        let empty: Vec<(&str, Option<&[u8]>)> = vec![("", None); 1000];
        let with_headers = message_size_bytes(&job(Some(b"k"), Some(b"v"), &empty).message);
        assert!(plain + 64_000 <= with_headers, "{plain} {with_headers}");
    }

    #[test]
    fn while_a_partition_is_paused_dead_letters_go_on_and_no_push_begins() {
        let assignment = Assignment::new(&claim(0, 1, None));
        assert!(assignment.may_push() && !assignment.is_over_for(WindowId(1), 3, true));
        assignment.set_paused(true);
        assert!(
            !assignment.may_push() && assignment.is_over_for(WindowId(1), 3, false) && assignment.may_store_letters()
        );
        assignment.set_paused(false);
        assert!(assignment.may_push());
        assignment.note_started(WindowId(1), 7);
        assignment.enter(ClaimPhase::Draining);
        assert!(!assignment.is_over_for(WindowId(1), 3, false));
        assignment.set_paused(true);
        assert!(assignment.is_over_for(WindowId(1), 3, false), "no attempt may follow, so nothing is waited for");
        assignment.end();
        assert!(!assignment.may_push() && !assignment.may_store_letters());
    }

    #[test]
    fn a_claim_ends_in_two_steps_and_never_moves_back() {
        let assignment = Assignment::new(&claim(0, 1, None));
        let window = WindowId(1);
        assignment.note_started(window, 7);
        assignment.note_started(window, 5);
        for (phase, over) in [
            // For an attempted job, and for jobs at and above the highest attempted offset.
            (ClaimPhase::Held, [false, false, false]),
            (ClaimPhase::Draining, [true, false, true]),
            (ClaimPhase::Ended, [true, true, true]),
            (ClaimPhase::Draining, [true, true, true]),
        ] {
            assignment.enter(phase);
            let is_over = |(offset, is_started)| assignment.is_over_for(window, offset, is_started);
            assert_eq!([(3, true), (7, false), (8, false)].map(is_over), over, "{phase:?}");
        }
    }

    #[test]
    fn offsets_of_the_log_before_say_nothing_about_the_new_one() {
        let assignment = Assignment::new(&claim(0, 1, None));
        let (old, new) = (WindowId(1), WindowId(2));
        assignment.note_started(old, 1000);
        assignment.begin_log(new);
        // A retry of a message that was read before.
        assignment.note_started(old, 2000);
        assignment.note_started(new, 3);
        for (window, is_started, is_over) in
            [(old, false, false), (old, true, true), (new, false, false), (new, true, false)]
        {
            assert_eq!(assignment.is_over_for(window, 3, is_started), is_over, "{window:?} {is_started}");
        }
        assignment.enter(ClaimPhase::Draining);
        for (window, offset, is_started, is_over) in [
            (new, 3, false, false),
            (new, 4, false, true),
            (new, 2, true, true),
            (old, 5000, false, false),
            (old, 5000, true, true),
        ] {
            assert_eq!(assignment.is_over_for(window, offset, is_started), is_over, "{window:?} {offset}");
        }
    }
}
