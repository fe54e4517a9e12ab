//! Changes of the pauses of a group in Kafka: only the loop of a member can commit, so it stores them and reports what
//! is stored to the table.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::pause::{PauseChange, PauseStoreError};
use crate::ktransfer::turn::Turn;

/// How long the loop may try to store a change: a rebalance makes commits fail for some seconds.
const MAX_STORE: Duration = Duration::from_secs(8);
/// How long to wait for the answer of the loop after its deadline: longer than its calls may take.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);
/// Bound of the requests. Only the thread `operations` sends them, one after the other; those that are left were
/// withdrawn while the module did not run.
const QUEUED_REQUESTS: usize = 4;

/// A change that the loop of a group is to store.
#[derive(Debug)]
pub(crate) struct PauseRequest {
    /// The change.
    pub(crate) change: PauseChange,
    /// Whether only to answer what the change would be answered with.
    pub(crate) is_dry_run: bool,
    /// The loop answers soon after, whatever happens.
    pub(crate) deadline: Instant,
    /// Decides between the begin and the withdrawal of the request.
    pub(crate) turn: Arc<Turn>,
    /// Receives the answer; it has room for it.
    pub(crate) answer: Sender<Result<(), PauseStoreError>>,
}

/// Both ends of the requests to the loop of a group, which may be restarted meanwhile. Clones share them.
#[derive(Clone)]
pub(super) struct GroupRequests {
    sender: Sender<PauseRequest>,
    pub(super) receiver: Receiver<PauseRequest>,
}

impl GroupRequests {
    pub(super) fn new() -> GroupRequests {
        let (sender, receiver) = bounded(QUEUED_REQUESTS);
        GroupRequests { sender, receiver }
    }

    /// Requests the loop to store a change, and waits for its answer.
    pub(super) fn change(&self, change: &PauseChange) -> Result<(), PauseStoreError> {
        self.request(change, false, MAX_STORE, ANSWER_MARGIN)
    }

    /// Returns what `change` would return.
    pub(super) fn check(&self, change: &PauseChange) -> Result<(), PauseStoreError> {
        self.request(change, true, MAX_STORE, ANSWER_MARGIN)
    }

    /// As [`change`](Self::change); the loop may try it for `max_store`.
    #[cfg(test)]
    pub(super) fn change_within(&self, change: &PauseChange, max_store: Duration) -> Result<(), PauseStoreError> {
        self.request(change, false, max_store, ANSWER_MARGIN)
    }

    fn request(
        &self,
        change: &PauseChange,
        is_dry_run: bool,
        max_store: Duration,
        answer_margin: Duration,
    ) -> Result<(), PauseStoreError> {
        let not_running = || PauseStoreError::NotStored("the group of the module does not run at present".to_owned());
        let (answer, answers) = bounded(1);
        let (deadline, turn) = (Instant::now() + max_store, Arc::new(Turn::default()));
        let request = PauseRequest { change: change.clone(), is_dry_run, deadline, turn: Arc::clone(&turn), answer };
        self.sender.try_send(request).map_err(|_| not_running())?;
        match answers.recv_deadline(deadline + answer_margin) {
            Ok(answer) => answer,
            Err(_) if is_dry_run || turn.cancel() => Err(not_running()),
            Err(_) => Err(PauseStoreError::Unknown("the group of the module did not report the end of it".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn a_request_that_nobody_takes_is_withdrawn_and_one_that_is_taken_without_an_answer_is_unknown() {
        let requests = GroupRequests::new();
        let change = PauseChange::Resume(None);
        let not_taken = requests.request(&change, false, Duration::ZERO, Duration::ZERO);
        assert!(matches!(not_taken, Err(PauseStoreError::NotStored(_))), "{not_taken:?}");
        assert!(!requests.receiver.try_recv().unwrap().turn.take(), "it was withdrawn");
        let receiver = requests.receiver.clone();
        let taker = std::thread::spawn(move || {
            for answer in [Some(Ok(())), None] {
                let request = receiver.recv_timeout(PATIENCE).unwrap();
                assert!(request.turn.take());
                // Without an answer: the loop ends.
                answer.map(|answer| request.answer.send(answer));
            }
        });
        assert_eq!(requests.request(&change, false, PATIENCE, PATIENCE), Ok(()));
        let unanswered = requests.request(&change, false, PATIENCE, PATIENCE);
        assert!(matches!(unanswered, Err(PauseStoreError::Unknown(_))), "{unanswered:?}");
        taker.join().unwrap();
        for _ in 0..QUEUED_REQUESTS + 1 {
            requests.request(&change, false, Duration::ZERO, Duration::ZERO).unwrap_err();
        }
        assert_eq!(requests.receiver.len(), QUEUED_REQUESTS, "the queue is bounded");
    }
}
