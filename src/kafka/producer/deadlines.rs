//! The thread that watches the time: it ends each message at its deadline, whatever the senders wait for, and watches
//! for brokers that do not answer. It also starts the senders whose threads could not be started before.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::level::Level;
use super::message::ProducerMessage;
use super::sender_handle::due_starts;
use super::shared::Shared;

/// Deadlines that are as close to each other are handled at the same time, so that a message may end later by this.
const RESOLUTION: Duration = Duration::from_millis(1);

impl<M: ProducerMessage> Shared<M> {
    /// Runs until the producer is closed. The caller has set the handle of this thread.
    pub(super) fn watch_time(self: &Arc<Self>) {
        while !self.is_closed() {
            let next = self.levels().iter().map(|level| self.look(level)).min();
            let left = next.map(|next| next.saturating_duration_since(Instant::now()));
            thread::park_timeout(left.unwrap_or(self.config.timeout) + RESOLUTION);
        }
    }

    /// Does what is due in a level; returns when to look again.
    fn look(self: &Arc<Self>, level: &Arc<Level<M>>) -> Instant {
        let ending = self.ending();
        let now = Instant::now();
        let mut state = level.lock();
        let expired = state.expire(now);
        let (silent, check_at) = state.check_senders(now);
        let (startable, start_at) = due_starts(&mut state.senders, now);
        let next = [state.accumulator.next_deadline(), check_at, start_at].into_iter().flatten();
        state.next_look = next.fold(now + self.config.timeout, Instant::min);
        drop(state);
        for broker in silent {
            self.mark_topics_of(broker);
        }
        for broker in startable {
            self.start_sender(level, broker);
        }
        ending.end_all(expired);
        level.lock().next_look
    }
}
