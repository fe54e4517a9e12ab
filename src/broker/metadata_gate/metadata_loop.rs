//! The thread `kafka-metadata`: looks topics up, and checks whether a broker can be reached.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{never, select};

use super::gate::MetadataGate;
use super::state::{MAX_LOOKUP_TIME, MetadataClient, ProducerEngine};
use crate::broker::Completion;
use crate::broker::topics::LookupAnswer;
use crate::shutdown::Stop;

/// Longest time of one lookup after the daemon's stop.
const MAX_LOOKUP_TIME_AT_CLOSE: Duration = Duration::from_millis(500);
/// A lookup is shortened to the earliest pending deadline, but never below this; an append may complete late by this
/// time.
const MIN_LOOKUP_TIME: Duration = Duration::from_millis(50);
/// A check that was shortened below this does not count as a failure.
const MIN_CHECK_TIME: Duration = Duration::from_millis(500);
/// Interval of the checks whether a broker can be reached.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Least pause between two checks.
const MIN_PAUSE: Duration = Duration::from_millis(100);
/// Failed checks in a row after which appends are refused at once.
const FAILURES_TO_REFUSE: u32 = 2;
/// Age at which the partition count of a known topic is refreshed, and the number of topics refreshed at a time.
const REFRESH_AGE: Duration = Duration::from_secs(10);
const MAX_REFRESHED_AT_ONCE: usize = 16;

/// The metadata thread of a gate.
pub(super) struct MetadataLoop<C: Completion, E, M> {
    gate: Arc<MetadataGate<C, E>>,
    client: M,
    max_wait: Duration,
    /// Failed checks in a row.
    failures: u32,
}

impl<C: Completion, E: ProducerEngine<C>, M: MetadataClient> MetadataLoop<C, E, M> {
    pub(super) fn new(gate: Arc<MetadataGate<C, E>>, client: M, wait: Duration) -> Self {
        MetadataLoop { gate, client, max_wait: wait.min(MAX_LOOKUP_TIME), failures: 0 }
    }

    /// Runs until the producer is closed.
    pub(super) fn run(mut self, stop: &Stop) {
        let mut next_check = Instant::now();
        let mut stopped = stop.closed().clone();
        while !self.gate.state.is_closed() {
            if stop.is_triggered() {
                // `/readyz` is not served any more, and a lookup must not delay the end.
                (stopped, self.max_wait) = (never(), self.max_wait.min(MAX_LOOKUP_TIME_AT_CLOSE));
                next_check = Instant::now() + CHECK_INTERVAL;
            } else if Instant::now() >= next_check {
                let started = Instant::now();
                self.check_reachable();
                // While no broker answers, nearly always a check is under way, so that the first answer counts.
                next_check = (started + CHECK_INTERVAL).max(Instant::now() + MIN_PAUSE);
            }
            self.look_up_topics();
            if !stop.is_triggered() {
                self.refresh_topics();
            }
            let next = {
                let topics = self.gate.state.read_topics();
                [topics.next_due(), topics.next_deadline()].into_iter().flatten().min()
            };
            let next = next.map_or(next_check, |next| next.min(next_check));
            select! {
                recv(self.gate.state.woken) -> _ => {},
                recv(stopped) -> _ => {},
                default(next.saturating_duration_since(Instant::now())) => {},
            }
        }
    }

    fn check_reachable(&mut self) {
        let wait = self.lookup_time();
        let outcome = self.client.check_reachable(wait);
        if outcome.is_ok() {
            self.failures = 0;
        } else if wait >= self.max_wait.min(MIN_CHECK_TIME) {
            self.failures = self.failures.saturating_add(1);
        }
        self.gate.reachability.set(outcome, self.failures >= FAILURES_TO_REFUSE);
    }

    /// Refreshes the partition counts of some known topics. Appends to these topics do not wait for it.
    fn refresh_topics(&mut self) {
        let stale = self.gate.state.read_topics().stale_topics(REFRESH_AGE, MAX_REFRESHED_AT_ONCE, Instant::now());
        for topic in stale {
            // Appends that wait for a lookup have priority.
            if self.failures > 0 || self.gate.state.read_topics().next_due().is_some_and(|due| due <= Instant::now()) {
                return;
            }
            let count = match self.client.refresh(&topic, self.lookup_time()) {
                LookupAnswer::Exists(count) => Some(count),
                // The lookups of the other topics would fail as well, one after another.
                LookupAnswer::Unreachable(_) => return,
                LookupAnswer::DoesNotExist | LookupAnswer::NotYet | LookupAnswer::Refused(_) => None,
            };
            self.gate.state.write_topics().refreshed(&topic, count, Instant::now());
        }
    }

    /// Returns the longest time of the next lookup: less if an append has an earlier deadline.
    fn lookup_time(&self) -> Duration {
        let until = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        let longest = self.gate.state.read_topics().next_deadline().map_or(self.max_wait, until);
        longest.max(MIN_LOOKUP_TIME).min(self.max_wait)
    }

    fn look_up_topics(&mut self) {
        self.gate.state.apply_invalidated();
        let due = self.gate.state.read_topics().due(Instant::now());
        let mut unreachable = None;
        for topic in due {
            if self.gate.state.is_closed() {
                return;
            }
            self.gate.expire(Instant::now());
            if self.gate.state.read_topics().is_overdue(&topic, Instant::now()) {
                let reason = "the brokers respond slowly to the lookups of other topics".to_owned();
                self.gate.handle_answer(&topic, LookupAnswer::Unreachable(reason));
                continue;
            }
            // One lookup without an answer is enough for all topics that are due.
            let answer = match unreachable.clone() {
                Some(answer) => answer,
                None => {
                    let (wait, started) = (self.lookup_time(), Instant::now());
                    self.gate.state.lookup_count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let answer = self.client.look_up(&topic, wait);
                    let was_shortened = wait < self.max_wait && started.elapsed() >= wait;
                    if was_shortened && matches!(answer, LookupAnswer::Unreachable(_)) {
                        // Appends with later deadlines may still get an answer.
                        continue;
                    }
                    answer
                }
            };
            if matches!(answer, LookupAnswer::Unreachable(_)) {
                unreachable = Some(answer.clone());
            }
            self.gate.handle_answer(&topic, answer);
        }
        self.gate.expire(Instant::now());
    }
}
