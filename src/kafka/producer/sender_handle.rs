//! The handle with which other threads use a sender: how to wake it, what it waits for, and since when.

use std::collections::HashMap;
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::outcome::BrokerId;
use super::quota::Quota;
use crate::kafka::connection::Disconnect;

/// A broker that has not answered for this long may have lost its partitions: metadata is requested, again and again at
/// this interval.
pub(super) const SILENT_AFTER: Duration = Duration::from_secs(1);

/// Time for which a response is waited for if a partition of the request got another leader meanwhile. The former
/// leader may hang; while its request is in flight, the new leader is not sent the messages of the partition.
const MAX_WAIT_FOR_FORMER_LEADER: Duration = Duration::from_secs(1);

/// Time for which messages without a key avoid a broker after a failure. Then one of them tries it again.
const AVOIDED_TIME: Duration = Duration::from_secs(10);

/// What a sender waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Activity {
    /// Nothing, or a back-off.
    #[default]
    Idle,
    Connecting,
    /// The broker or the token endpoint, on a connection that is in use.
    Authenticating,
    RequestingProducerId,
    /// The response to a Produce request, or until the socket takes the request.
    Producing,
}

/// The thread that sends to one broker.
#[derive(Default)]
pub(super) struct SenderHandle {
    /// `None` until the thread runs.
    pub(super) thread: Option<Thread>,
    /// When the thread is started, after an attempt that failed.
    pub(super) start_at: Option<Instant>,
    /// Closes the connection of the thread; `None` without a connection.
    pub(super) disconnect: Option<Disconnect>,
    /// Cause of the latest failure; empty while the connection works.
    pub(super) last_failure: String,
    /// When `last_failure` was set; `None` while the connection works.
    pub(super) failed_at: Option<Instant>,
    /// The quota by which the broker throttles this client; `None` if it does not.
    pub(super) quota: Option<Quota>,
    /// Whether messages were refused because of `quota` since the sender last looked at it.
    pub(super) has_refused: bool,
    activity: Activity,
    /// When the activity began.
    since: Option<Instant>,
    /// Metadata is requested at this time if the activity has not ended.
    silent_at: Option<Instant>,
    /// The connection is closed at this time if the activity has not ended.
    abandon_at: Option<Instant>,
}

impl SenderHandle {
    /// Begins to wait for the broker; returns when [`check`](Self::check) is due.
    pub(super) fn begin(&mut self, activity: Activity, now: Instant) -> Instant {
        let silent_at = now + SILENT_AFTER;
        self.activity = activity;
        (self.since, self.silent_at, self.abandon_at) = (Some(now), Some(silent_at), None);
        silent_at
    }

    /// The broker is not waited for.
    pub(super) fn end(&mut self, activity: Activity) {
        self.activity = activity;
        (self.since, self.silent_at, self.abandon_at) = (None, None, None);
    }

    /// Returns what the broker is waited for, and since when; `None` if it is not.
    pub(super) fn waits(&self) -> Option<(Activity, Instant)> {
        self.since.map(|since| (self.activity, since))
    }

    /// A partition of the request in flight has another leader; returns when [`check`](Self::check) is due.
    pub(super) fn limit_wait(&mut self) -> Option<Instant> {
        let limit = self.since? + MAX_WAIT_FOR_FORMER_LEADER;
        self.abandon_at = Some(limit);
        Some(limit)
    }

    /// Whether a message that any broker can store should be sent to another one: the broker failed a short while ago,
    /// has not answered for long, or throttles this client.
    pub(super) fn is_avoided(&self, now: Instant) -> bool {
        let is_hung = self.since.is_some_and(|since| now.saturating_duration_since(since) >= SILENT_AFTER);
        let is_throttled = self.quota.is_some_and(|quota| quota.until() > now);
        is_hung
            || is_throttled
            || self.failed_at.is_some_and(|failed| now.saturating_duration_since(failed) < AVOIDED_TIME)
    }

    /// Closes the connection if its time has come. Returns whether metadata is needed, and when to check again.
    fn check(&mut self, now: Instant) -> (bool, Option<Instant>) {
        if self.abandon_at.is_some_and(|limit| limit <= now) {
            self.abandon_at = None;
            self.disconnect.iter().for_each(Disconnect::disconnect);
        }
        let is_silent = self.silent_at.is_some_and(|silent_at| silent_at <= now);
        if is_silent {
            self.silent_at = Some(now + SILENT_AFTER);
        }
        (is_silent, [self.abandon_at, self.silent_at].into_iter().flatten().min())
    }

    /// Returns why messages wait for this sender, as an error text.
    pub(super) fn reason(&self, broker: BrokerId) -> String {
        if !self.last_failure.is_empty() {
            return self.last_failure.clone();
        }
        if self.quota.is_some_and(|quota| quota.until() > Instant::now()) {
            return format!("a quota of broker {broker} delays the next request");
        }
        match self.activity {
            Activity::Connecting => format!("there is no connection to broker {broker} yet"),
            Activity::Authenticating => format!("the connection to broker {broker} is being authenticated again"),
            Activity::RequestingProducerId => format!("broker {broker} has not assigned a producer id"),
            Activity::Producing => format!("broker {broker} has not answered an earlier request"),
            Activity::Idle => format!("broker {broker} has not confirmed the message"),
        }
    }
}

/// Returns the brokers whose threads must be started now, and when the next one must be.
pub(super) fn due_starts(
    senders: &mut HashMap<BrokerId, SenderHandle>,
    now: Instant,
) -> (Vec<BrokerId>, Option<Instant>) {
    let is_due = |sender: &mut SenderHandle| sender.start_at.take_if(|start_at| *start_at <= now).is_some();
    let due = senders.iter_mut().filter_map(|(broker, sender)| is_due(sender).then_some(*broker)).collect();
    (due, senders.values().filter_map(|sender| sender.start_at).min())
}

/// Closes the connections whose request has been in flight for too long after a change of leaders. Returns the brokers
/// that have not answered for so long that metadata is needed, and the time of the next check.
pub(super) fn check_all(
    senders: &mut HashMap<BrokerId, SenderHandle>,
    now: Instant,
) -> (Vec<BrokerId>, Option<Instant>) {
    let (mut silent, mut next) = (Vec::new(), None::<Instant>);
    for (broker, sender) in senders {
        let (is_silent, due) = sender.check(now);
        silent.extend(is_silent.then_some(*broker));
        next = next.into_iter().chain(due).min();
    }
    (silent, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_requested_at_intervals_while_a_broker_does_not_answer() {
        let start = Instant::now();
        let mut senders = HashMap::from([(1, SenderHandle::default()), (2, SenderHandle::default())]);
        assert_eq!(check_all(&mut senders, start), (vec![], None));
        let due = senders.get_mut(&2).unwrap().begin(Activity::Connecting, start);
        assert_eq!(due, start + SILENT_AFTER);
        assert_eq!(check_all(&mut senders, start), (vec![], Some(due)));
        let again = due + SILENT_AFTER;
        assert_eq!(check_all(&mut senders, due), (vec![2], Some(again)));
        assert_eq!(check_all(&mut senders, due), (vec![], Some(again)));
        assert_eq!(check_all(&mut senders, again), (vec![2], Some(again + SILENT_AFTER)));
        senders.get_mut(&2).unwrap().end(Activity::Idle);
        assert_eq!(check_all(&mut senders, again + SILENT_AFTER), (vec![], None));
    }

    #[test]
    fn a_broker_is_avoided_while_it_hangs_and_for_a_while_after_a_failure() {
        let start = Instant::now();
        let mut sender = SenderHandle::default();
        assert!(!sender.is_avoided(start));
        sender.begin(Activity::Producing, start);
        assert!(!sender.is_avoided(start));
        assert!(sender.is_avoided(start + SILENT_AFTER));
        sender.end(Activity::Idle);
        assert!(!sender.is_avoided(start + SILENT_AFTER));
        sender.failed_at = Some(start);
        assert!(sender.is_avoided(start));
        assert!(!sender.is_avoided(start + AVOIDED_TIME));
    }

    #[test]
    fn the_request_to_a_former_leader_has_a_limit_from_its_start() {
        let start = Instant::now();
        let mut sender = SenderHandle { disconnect: Some(Disconnect::new()), ..SenderHandle::default() };
        assert_eq!(sender.limit_wait(), None, "no request is in flight");
        sender.begin(Activity::Producing, start);
        let limit = start + MAX_WAIT_FOR_FORMER_LEADER;
        assert_eq!(sender.limit_wait(), Some(limit));
        sender.check(limit - Duration::from_millis(1));
        assert!(!sender.disconnect.as_ref().unwrap().stop().is_triggered());
        sender.check(limit);
        assert!(sender.disconnect.as_ref().unwrap().stop().is_triggered());
        // The limit ends with the request.
        sender.begin(Activity::Producing, start);
        sender.limit_wait();
        sender.begin(Activity::Producing, limit);
        assert_eq!(sender.check(limit), (false, Some(limit + SILENT_AFTER)));
    }
}
