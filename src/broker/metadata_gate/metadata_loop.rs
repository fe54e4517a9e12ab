//! The thread `kafka-metadata`: looks topics up, and checks whether a broker can be reached.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{never, select};

use super::gate::MetadataGate;
use super::reachability::CheckHistory;
use super::state::{MAX_LOOKUP_TIME, MetadataClient, ProducerEngine, TopicAnswer};
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
/// Bounds of the number of topics that are refreshed at a time. It becomes smaller when no broker answers, because the
/// response may be too large or take too long.
const MIN_REFRESHED_AT_ONCE: usize = 16;
const MAX_REFRESHED_AT_ONCE: usize = 2_000;
/// Bound of the number of topics that are looked up with one request. It becomes smaller in the same way.
const MAX_LOOKED_UP_AT_ONCE: usize = 256;
/// Number of topics whose rules are read with one request, and the time for all requests of a turn: appends may wait
/// for a lookup. It doubles after rules could not be read, up to that of a lookup.
const MAX_RULES_AT_ONCE: usize = 100;
const RULES_TIME: Duration = Duration::from_millis(500);
/// Refreshes take at most this part of the time while lookups are due without a break.
const REFRESH_SHARE: u32 = 4;
/// The pauses after rules could not be read.
const MIN_RULES_PAUSE: Duration = Duration::from_secs(1);
const MAX_RULES_PAUSE: Duration = Duration::from_secs(60);

/// The metadata thread of a gate.
pub(super) struct MetadataLoop<C: Completion, E, M> {
    gate: Arc<MetadataGate<C, E>>,
    client: M,
    max_wait: Duration,
    checks: CheckHistory,
    /// Number of topics that the next lookup names.
    lookup_size: usize,
    /// Number of topics that the next refresh names.
    refresh_count: usize,
    /// Until then a refresh waits for lookups that are due; the same of the rules. Lookups may be due all the time,
    /// since anyone can name topics that do not exist.
    refresh_first_at: Instant,
    rules_first_at: Instant,
    /// No rules are read earlier.
    next_rules: Instant,
    rules_pause: Duration,
    rules_time: Duration,
}

impl<C: Completion, E: ProducerEngine<C>, M: MetadataClient> MetadataLoop<C, E, M> {
    pub(super) fn new(gate: Arc<MetadataGate<C, E>>, client: M, wait: Duration) -> Self {
        MetadataLoop {
            gate,
            client,
            max_wait: wait.min(MAX_LOOKUP_TIME),
            checks: CheckHistory::default(),
            lookup_size: MAX_LOOKED_UP_AT_ONCE,
            refresh_count: MAX_REFRESHED_AT_ONCE,
            refresh_first_at: Instant::now(),
            rules_first_at: Instant::now(),
            next_rules: Instant::now(),
            rules_pause: MIN_RULES_PAUSE,
            rules_time: RULES_TIME,
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
            if stop.is_triggered() {
                self.refresh_awaited();
            } else {
                self.gate.state.apply_refused();
                self.refresh_topics();
                self.read_rules();
            }
            let next = self.next_turn().map_or(next_check, |next| next.min(next_check));
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

    /// Returns when lookups are due, or appends reach their deadlines.
    fn next_turn(&self) -> Option<Instant> {
        let topics = self.gate.state.read_topics();
        let awaited = topics.has_awaited().then(Instant::now);
        [awaited, topics.next_due(), topics.next_deadline()].into_iter().flatten().min()
    }

    /// Refreshes the topics for whose new partitions appends wait, with others whose refresh is due.
    fn refresh_awaited(&mut self) {
        if self.gate.state.read_topics().has_awaited() {
            self.refresh_some();
        }
    }

    /// Refreshes the partition counts of known topics. Appends to partitions that are known do not wait for it.
    fn refresh_topics(&mut self) {
        let is_awaited = self.gate.state.read_topics().has_awaited();
        if is_awaited || !self.must_look_up_first(self.refresh_first_at) {
            self.refresh_some();
        }
    }

    fn refresh_some(&mut self) {
        let (wait, started) = (self.lookup_time(), Instant::now());
        let topics = self.gate.state.read_topics().stale_topics(self.refresh_count, started);
        if topics.is_empty() {
            return;
        }
        let outcome = self.client.refresh(&topics, wait);
        self.refresh_first_at = next_share(started);
        match outcome {
            Ok(answers) => {
                // Slowly, so that a size that failed does not come back at once.
                self.refresh_count = (self.refresh_count + self.refresh_count / 8).min(MAX_REFRESHED_AT_ONCE);
                self.gate.handle_refreshed(answers);
            }
            // Appends with later deadlines may still get an answer.
            Err(_) if wait < self.max_wait && started.elapsed() >= wait => self.gate.expire(Instant::now()),
            Err(reason) => {
                self.refresh_count = (self.refresh_count / 2).max(MIN_REFRESHED_AT_ONCE);
                let unreachable = |topic| (topic, LookupAnswer::Unreachable(reason.clone()));
                let answers: Vec<TopicAnswer> = topics.into_iter().map(unreachable).collect();
                self.gate.handle_refreshed(answers);
            }
        }
    }

    /// Reads the rules of known topics. Appends to these topics do not wait for it.
    fn read_rules(&mut self) {
        let started = Instant::now();
        while Instant::now() >= self.next_rules
            && started.elapsed() < RULES_TIME
            && !self.must_look_up_first(self.rules_first_at)
            && self.read_some_rules()
        {}
    }

    /// Reads the rules of some known topics; returns whether there were any.
    fn read_some_rules(&mut self) -> bool {
        let started = Instant::now();
        let topics = self.gate.state.read_topics().topics_with_stale_rules(MAX_RULES_AT_ONCE, started);
        if topics.is_empty() {
            return false;
        }
        let found = self.client.rules(&topics, self.max_wait.min(self.rules_time));
        self.rules_first_at = next_share(started);
        if found.is_empty() {
            // Brokers that do not describe configs in time do not receive the request in each turn.
            self.next_rules = Instant::now() + self.rules_pause;
            self.rules_pause = (self.rules_pause * 2).min(MAX_RULES_PAUSE);
            self.rules_time = (self.rules_time * 2).min(MAX_LOOKUP_TIME);
        } else {
            self.rules_pause = MIN_RULES_PAUSE;
            self.rules_time = (started.elapsed() * 2).clamp(RULES_TIME, MAX_LOOKUP_TIME);
        }
        let now = Instant::now();
        for topic in topics {
            let rules = found.get(&topic).copied();
            if let Some(rules) = rules {
                self.gate.engine.set_rules(&topic, rules);
            }
            self.gate.state.write_topics().set_rules(&topic, rules, now);
        }
        true
    }

    /// Whether no broker responds, or appends wait for a lookup that is due; from `first_at` on only the former.
    fn must_look_up_first(&self, first_at: Instant) -> bool {
        let now = Instant::now();
        let is_due = || self.gate.state.read_topics().next_due().is_some_and(|due| due <= now);
        self.checks.has_failed() || (now < first_at && is_due())
    }

    /// Returns the longest time of the next lookup: less if an append has an earlier deadline.
    fn lookup_time(&self) -> Duration {
        let until = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        let longest = self.gate.state.read_topics().next_deadline().map_or(self.max_wait, until);
        longest.max(MIN_LOOKUP_TIME).min(self.max_wait)
    }

    /// Looks up the topics for which appends wait, many with one request: with one request each, the names that
    /// somebody makes up would delay all others, and many topics would not be known in time where a request takes long.
    fn look_up_topics(&mut self) {
        self.gate.state.apply_invalidated();
        let mut due = self.gate.state.read_topics().due(Instant::now());
        while !due.is_empty() && !self.gate.state.is_closed() {
            self.gate.expire(Instant::now());
            let topics = due.split_off(due.len().saturating_sub(self.lookup_size));
            let (wait, started) = (self.lookup_time(), Instant::now());
            self.gate.state.lookup_count.fetch_add(topics.len() as u64, Ordering::Relaxed);
            match self.client.look_up(&topics, wait) {
                Ok(answers) => {
                    // Slowly, so that a size that failed does not come back at once.
                    self.lookup_size = (self.lookup_size + self.lookup_size.div_ceil(8)).min(MAX_LOOKED_UP_AT_ONCE);
                    self.gate.handle_answers(answers);
                }
                // Appends with later deadlines may still get an answer.
                Err(_) if wait < self.max_wait && started.elapsed() >= wait => {
                    self.lookup_size = (self.lookup_size / 2).max(1);
                }
                Err(reason) => {
                    self.lookup_size = (self.lookup_size / 2).max(1);
                    // One request without a response is enough for all topics that are due.
                    let unreachable = |topic| (topic, LookupAnswer::Unreachable(reason.clone()));
                    self.gate.handle_answers(due.drain(..).chain(topics).map(unreachable).collect());
                }
            }
        }
        self.gate.expire(Instant::now());
    }
}

/// Returns when the next refresh need not wait for lookups, if the latest one began at `started`.
fn next_share(started: Instant) -> Instant {
    let now = Instant::now();
    now + (now.saturating_duration_since(started) * REFRESH_SHARE).max(CHECK_INTERVAL)
}
