//! The thread `kafka-metadata`: looks topics up, and checks whether a broker can be reached.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{never, select};

use super::gate::MetadataGate;
use super::reachability::CheckHistory;
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
/// Number of topics refreshed at a time.
const MAX_REFRESHED_AT_ONCE: usize = 16;
/// Number of topics whose rules are read at a time, and the longest time for it: appends may wait for a lookup.
const MAX_RULES_AT_ONCE: usize = 100;
const MAX_RULES_TIME: Duration = Duration::from_millis(500);
/// The pauses after rules could not be read.
const MIN_RULES_PAUSE: Duration = Duration::from_secs(1);
const MAX_RULES_PAUSE: Duration = Duration::from_secs(60);

/// The metadata thread of a gate.
pub(super) struct MetadataLoop<C: Completion, E, M> {
    gate: Arc<MetadataGate<C, E>>,
    client: M,
    max_wait: Duration,
    checks: CheckHistory,
    /// No rules are read earlier.
    next_rules: Instant,
    rules_pause: Duration,
}

impl<C: Completion, E: ProducerEngine<C>, M: MetadataClient> MetadataLoop<C, E, M> {
    pub(super) fn new(gate: Arc<MetadataGate<C, E>>, client: M, wait: Duration) -> Self {
        MetadataLoop {
            gate,
            client,
            max_wait: wait.min(MAX_LOOKUP_TIME),
            checks: CheckHistory::default(),
            next_rules: Instant::now(),
            rules_pause: MIN_RULES_PAUSE,
        }
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
                self.gate.state.apply_doubted();
                self.refresh_topics();
                self.read_rules();
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
        let (wait, started) = (self.lookup_time(), Instant::now());
        let outcome = self.client.check_reachable(wait);
        // A confirmed message is a better proof than a check: a broker may be slow to answer metadata requests, or
        // refuse a new connection.
        let outcome = if self.gate.state.has_confirmed.swap(false, Ordering::Relaxed) { Ok(()) } else { outcome };
        if outcome.is_ok() {
            self.checks.succeeded();
        } else if wait >= self.max_wait.min(MIN_CHECK_TIME) {
            self.checks.failed(started);
        }
        self.gate.reachability.set(outcome, self.checks.is_unreachable(Instant::now()));
    }

    /// Refreshes the partition counts of some known topics. Appends to these topics do not wait for it.
    fn refresh_topics(&mut self) {
        let stale = self.gate.state.read_topics().stale_topics(MAX_REFRESHED_AT_ONCE, Instant::now());
        for topic in stale {
            if self.must_look_up_first() {
                return;
            }
            let answer = self.client.refresh(&topic, self.lookup_time());
            if matches!(answer, LookupAnswer::Unreachable(_)) {
                // The lookups of the other topics would fail as well, one after another.
                return;
            }
            self.gate.state.write_topics().refreshed(&topic, answer, Instant::now());
        }
    }

    /// Reads the rules of some known topics. Appends to these topics do not wait for it.
    fn read_rules(&mut self) {
        let now = Instant::now();
        if now < self.next_rules || self.must_look_up_first() {
            return;
        }
        let topics = self.gate.state.read_topics().topics_with_stale_rules(MAX_RULES_AT_ONCE, now);
        if topics.is_empty() {
            return;
        }
        let found = self.client.rules(&topics, self.max_wait.min(MAX_RULES_TIME));
        if found.is_empty() {
            // Brokers that do not describe configs in time do not receive the request in each turn.
            self.next_rules = Instant::now() + self.rules_pause;
            self.rules_pause = (self.rules_pause * 2).min(MAX_RULES_PAUSE);
        } else {
            self.rules_pause = MIN_RULES_PAUSE;
        }
        let now = Instant::now();
        for topic in topics {
            let rules = found.get(&topic).copied();
            if let Some(rules) = rules {
                self.gate.engine.set_rules(&topic, rules);
            }
            self.gate.state.write_topics().set_rules(&topic, rules, now);
        }
    }

    /// Whether appends wait for a lookup that is due, or no broker responds.
    fn must_look_up_first(&self) -> bool {
        self.checks.has_failed() || self.gate.state.read_topics().next_due().is_some_and(|due| due <= Instant::now())
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
                    self.gate.state.lookup_count.fetch_add(1, Ordering::Relaxed);
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
