//! Compares the messages that the backends received, as the journal records them, with the posted ones.

use std::time::Duration;

use super::backend::Journal;
use super::message::Message;
use super::oracle::{MessageId, check_pushes};
use super::wait_until;

/// Returns the messages whose pushes the backend answered with 200, in the order of arrival.
pub(crate) fn delivered(journal: &Journal) -> Vec<MessageId> {
    let records = journal.records();
    let done = records.iter().filter(|record| record.status == Some(200));
    done.map(|record| Message::decode(&record.request.body).expect("the body as it was posted").id).collect()
}

/// Waits until every posted message is delivered; returns the number of repeats. Panics at the deadline, or if a key
/// is out of order.
#[track_caller]
pub(crate) fn wait_until_delivered(journal: &Journal, posted: &[MessageId], deadline: Duration) -> usize {
    wait_until(deadline, "all messages are delivered", || {
        // The cheap condition comes first, because the exact one copies the records of thousands of requests.
        journal.n_requests() >= posted.len() && check_pushes(posted, &[], &delivered(journal)).lost.is_empty()
    });
    let check = check_pushes(posted, &[], &delivered(journal));
    assert!(check.is_good(), "{check:?}");
    check.n_repeats
}
