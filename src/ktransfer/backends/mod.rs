//! The backends of a module, shared by its workers: chooses the backend of each push, and ejects a failing backend
//! until a probe is answered.
//!
//! - **Ejection.** A backend is ejected after `failures` failures in a row, or when it fails a larger part of its
//!   pushes than the others (`failure_rate`). [`PushVerdict`] says what is a failure. While another one is in use, only
//!   probes go to an ejected backend, and a retry goes to a different backend than the attempt before.
//! - **Probe.** When its interval is over, one push goes to an ejected backend. Unless every backend is ejected, this
//!   is neither the last permitted attempt of a message nor a retry of a message that failed at this backend.
//! - **Nothing in use.** Then no push begins before the next probe is due. A worker that waits registers itself, and
//!   is woken when a probe has succeeded. A backend whose name has no address yet is not in use in this sense.
//! - **Share.** A backend that answers slowly, or never, occupies at most its share of the workers. A retry waits for
//!   another backend than the one that failed it where all others have their share (`preference`).
//!
//! A module with one backend never ejects it, since that would delay messages that have not failed.
//!
//! While every backend is in use, a push takes no lock. `phases` has the rules as a pure state machine,
//! `preference` which of the usable backends a push prefers, `replacement` the change of the list by a reload.

mod ejection;
mod failure_rate;
mod phases;
mod preference;
mod replacement;
mod retry_wait;
mod rotation;
mod status;
mod verdict;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use log::Level;

use super::config::ModuleConfig;
use super::metrics::{BackendMetrics, ModuleMetrics};
use super::policy::AttemptOutcome;
use super::unresolved_names::UnresolvedNames;
use crate::locks::lock;
use crate::log_limited;
use ejection::Ejection;
use failure_rate::{Counts, FailureRate, FailureRates};
use phases::Phases;
use retry_wait::RetryTrack;

pub(super) use failure_rate::RateConfig;
pub(super) use phases::EjectionConfig;
pub(super) use retry_wait::RetryWait;
pub(super) use rotation::BackendRotation;
pub(super) use verdict::PushVerdict;

/// The backends of one module.
pub(super) struct Backends {
    module: Arc<str>,
    config: EjectionConfig,
    worker_num: usize,
    /// Those of an earlier configuration that this one has as well are shared with it.
    backends: Vec<Arc<Backend>>,
    /// Number of retries that wait for another backend.
    n_waiting_retries: Arc<AtomicUsize>,
    /// Whether every backend is in use. Written with the lock, read without it.
    are_all_in_use: AtomicBool,
    shared: Mutex<Shared>,
    /// Those without an address yet are spared.
    unresolved: UnresolvedNames,
}

struct Backend {
    /// The entry of `backend_servers`.
    server: Arc<str>,
    metrics: BackendMetrics,
    n_under_way: AtomicUsize,
    retries: Arc<RetryTrack>,
    /// Failures in a row. Counts only while the backend is in use.
    n_failures: AtomicU32,
    /// First attempts that ended well or as failures while the backend was in use; counted for the rule by failure
    /// rate.
    n_good: AtomicU64,
    n_bad: AtomicU64,
    /// For operators.
    last_ejection: Mutex<Option<Ejection>>,
    /// Grows with each ejection, probe and return. So the late result of an earlier push changes nothing.
    epoch: AtomicU32,
}

struct Shared {
    phases: Phases,
    /// `None` without the rule by failure rate.
    rates: Option<FailureRates>,
    /// The workers that wait for a backend.
    waiting: BTreeSet<usize>,
}

/// The result of [`Backends::choose`].
#[derive(Debug)]
pub(super) enum Choice {
    /// The push goes to this backend.
    Use(ChosenBackend),
    /// No push may begin before this time.
    WaitUntil(Instant),
    /// Every other backend in use has its share of the pushes: the retry may wait for one of them.
    WaitForOther,
}

/// The backend of a push under way. [`Backends::end`] must follow.
#[derive(Debug)]
#[must_use]
pub(super) struct ChosenBackend {
    /// Index in `backend_servers`.
    pub(super) index: usize,
    is_probe: bool,
    /// Whether it is the first attempt of its message. Only these count for the failure rate: a 5xx to a later one says
    /// nothing about the backend, so its success must not count either.
    is_first: bool,
    epoch: u32,
}

/// The rule that ejects a backend.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// `failures`: this number of failures in a row.
    InARow(u32),
    /// `failure_percent`: this failure rate.
    Rate(FailureRate),
}

impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rule::InARow(n_failures) => write!(formatter, "{n_failures} failures in a row"),
            Rule::Rate(rate) => write!(formatter, "the failure of {rate}"),
        }
    }
}

/// A push as [`Backends::choose`] needs to know it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NextPush {
    /// Index of the backend of the message's latest attempt.
    pub(super) last: Option<usize>,
    /// Whether the message may be attempted again if this attempt fails.
    pub(super) may_retry: bool,
    /// Whether it may wait for another backend than `last`.
    pub(super) may_wait: bool,
    /// Uniformly distributed in 0..1.
    pub(super) random: f64,
}

impl Backend {
    fn new(server: &str, metrics: &ModuleMetrics) -> Arc<Backend> {
        Arc::new(Backend {
            server: server.into(),
            metrics: metrics.of_backend(server),
            n_under_way: AtomicUsize::new(0),
            retries: RetryTrack::new(),
            n_failures: AtomicU32::new(0),
            n_good: AtomicU64::new(0),
            n_bad: AtomicU64::new(0),
            last_ejection: Mutex::default(),
            epoch: AtomicU32::new(0),
        })
    }
}

/// A module with one backend never ejects it.
fn ejection_config(module: &ModuleConfig) -> EjectionConfig {
    let mut config = module.ejection;
    if module.backend_servers.len() == 1 {
        (config.failures, config.rate) = (None, None);
    }
    config
}

impl Backends {
    /// Creates the state of the backends of a module, all in use.
    pub(super) fn new(module: &ModuleConfig, metrics: &ModuleMetrics) -> Backends {
        let servers = &module.backend_servers;
        let config = ejection_config(module);
        let shared = Shared {
            phases: Phases::new(config, servers.len()),
            rates: config.rate.map(FailureRates::new),
            waiting: BTreeSet::new(),
        };
        Backends {
            module: Arc::clone(&module.name),
            config,
            worker_num: module.worker_num.get(),
            backends: servers.iter().map(|server| Backend::new(server, metrics)).collect(),
            n_waiting_retries: Arc::default(),
            are_all_in_use: AtomicBool::new(true),
            shared: Mutex::new(shared),
            unresolved: UnresolvedNames::default(),
        }
    }

    /// Spares the backends whose name has no address yet.
    pub(super) fn sparing(self, unresolved: &UnresolvedNames) -> Backends {
        Backends { unresolved: unresolved.clone(), ..self }
    }

    /// Returns the entry of `backend_servers` at this index.
    pub(super) fn server(&self, index: usize) -> &Arc<str> {
        &self.backends[index].server
    }

    /// Returns the index of this entry of `backend_servers`.
    pub(super) fn index_of(&self, server: &str) -> Option<usize> {
        self.backends.iter().position(|backend| *backend.server == *server)
    }

    /// Whether every backend is in use.
    pub(super) fn are_all_in_use(&self) -> bool {
        self.are_all_in_use.load(Ordering::Acquire)
    }

    /// Chooses the backend of a push, in the order of the worker's round robin.
    pub(super) fn choose(&self, rotation: &mut BackendRotation, push: NextPush, now: Instant) -> Choice {
        if self.are_all_in_use() {
            let spared = self.spared(|_| true);
            let n_candidates = self.backends.len() - spared.len();
            let has_turn = |index: usize| (!spared.contains(&index)).then_some(true);
            let index = self.next_of(rotation, push.last, n_candidates, has_turn);
            if push.waits_for_other(index, n_candidates) {
                return Choice::WaitForOther;
            }
            if let Some(chosen) = index.and_then(|index| self.begin_in_use(rotation, index, &push)) {
                return Choice::Use(chosen);
            }
        }
        let mut shared = self.lock();
        self.settle(&mut shared, now);
        let n_usable = shared.phases.n_usable();
        // A backend whose name has no address yet gets no push, so no other is spared for it.
        let takes_pushes = |index| shared.phases.is_usable(index) && !self.is_unresolved(index);
        let has_others = (0..self.backends.len()).any(takes_pushes);
        let is_due = |index: &usize| {
            let is_better_elsewhere = has_others && (!push.may_retry || push.last == Some(*index));
            // Also probes may hang for ever: while others can be used, they take no more than their share.
            let has_room = !has_others || self.has_room(*index, self.backends.len());
            !is_better_elsewhere && has_room && shared.phases.due(*index).is_some_and(|due| due <= now)
        };
        if let Some(index) = rotation.order(self.backends.len()).find(is_due) {
            shared.phases.begin_probe(index, now);
            self.backends[index].epoch.fetch_add(1, Ordering::Relaxed);
            return Choice::Use(self.begin(rotation, index, true, &push));
        }
        let phases = &shared.phases;
        let spared = self.spared(|index| phases.is_usable(index));
        let n_candidates = n_usable - spared.len();
        let has_turn = |index: usize| {
            let is_candidate = phases.is_usable(index) && !spared.contains(&index);
            is_candidate.then(|| push.random < phases.weight(index, now))
        };
        match self.next_of(rotation, push.last, n_candidates, has_turn) {
            index if push.waits_for_other(index, n_candidates) => Choice::WaitForOther,
            Some(index) => Choice::Use(self.begin(rotation, index, false, &push)),
            None => Choice::WaitUntil(phases.next_look(now).unwrap_or(now)),
        }
    }

    /// Begins a push without the lock; `None` if a backend was ejected meanwhile.
    fn begin_in_use(&self, rotation: &mut BackendRotation, index: usize, push: &NextPush) -> Option<ChosenBackend> {
        let epoch = self.backends[index].epoch.load(Ordering::Acquire);
        // An ejection first says that not all are in use, then moves the epoch on: so this is no epoch of an ejected
        // backend, whose probes the push could end.
        self.are_all_in_use().then(|| self.begin_at(rotation, index, epoch, push))
    }

    /// Begins a push; the caller has the lock.
    fn begin(&self, rotation: &mut BackendRotation, index: usize, is_probe: bool, push: &NextPush) -> ChosenBackend {
        let epoch = self.backends[index].epoch.load(Ordering::Relaxed);
        ChosenBackend { is_probe, ..self.begin_at(rotation, index, epoch, push) }
    }

    fn begin_at(&self, rotation: &mut BackendRotation, index: usize, epoch: u32, push: &NextPush) -> ChosenBackend {
        rotation.chose(index);
        self.backends[index].n_under_way.fetch_add(1, Ordering::Relaxed);
        ChosenBackend { index, is_probe: false, is_first: push.last.is_none(), epoch }
    }

    /// Ends a push. Returns the workers that wait for a backend and can go on: the caller must send them
    /// [`WorkerMessage::BackendReturned`](super::job::WorkerMessage::BackendReturned).
    #[must_use]
    pub(super) fn end(&self, chosen: ChosenBackend, verdict: PushVerdict<'_>, now: Instant) -> Vec<usize> {
        let backend = &self.backends[chosen.index];
        backend.n_under_way.fetch_sub(1, Ordering::Relaxed);
        backend.retries.note_end(now);
        if chosen.epoch != backend.epoch.load(Ordering::Relaxed) {
            return Vec::new();
        }
        if chosen.is_probe {
            return self.end_probe(&chosen, verdict, now);
        }
        match verdict {
            PushVerdict::Good => {
                if chosen.is_first && self.config.rate.is_some() {
                    backend.n_good.fetch_add(1, Ordering::Relaxed);
                }
                // The read avoids most of the writes to a value that all workers share.
                if backend.n_failures.load(Ordering::Relaxed) > 0 {
                    backend.n_failures.store(0, Ordering::Relaxed);
                }
            }
            PushVerdict::Bad(outcome) => {
                let n_failures = backend.n_failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                let rate = chosen.is_first.then(|| self.count_failure(chosen.index, now)).flatten();
                let rule = match self.config.failures {
                    Some(limit) if limit <= n_failures => Some(Rule::InARow(n_failures)),
                    _ => rate.map(Rule::Rate),
                };
                if let Some(rule) = rule {
                    self.eject(&chosen, rule, outcome, now);
                }
            }
            PushVerdict::Repeated(_) | PushVerdict::NotMade => {}
        }
        Vec::new()
    }

    /// Counts a failure of a backend in use. Returns its failure rate if the backend is to be ejected because of it.
    fn count_failure(&self, index: usize, now: Instant) -> Option<FailureRate> {
        let mut shared = self.lock();
        let Shared { phases, rates: Some(rates), .. } = &mut *shared else { return None };
        self.backends[index].n_bad.fetch_add(1, Ordering::Relaxed);
        let counts: Vec<Counts> = (0..self.backends.len()).map(|index| self.counts(index)).collect();
        rates.note_failure(index, &counts, |index| phases.is_usable(index), now)
    }

    fn counts(&self, index: usize) -> Counts {
        let Backend { n_good, n_bad, .. } = &*self.backends[index];
        Counts { good: n_good.load(Ordering::Relaxed), bad: n_bad.load(Ordering::Relaxed) }
    }

    fn eject(&self, chosen: &ChosenBackend, rule: Rule, outcome: &AttemptOutcome, now: Instant) {
        let backend = &self.backends[chosen.index];
        let mut shared = self.lock();
        // Another worker may have ejected it meanwhile.
        if chosen.epoch != backend.epoch.load(Ordering::Relaxed) || !shared.phases.is_usable(chosen.index) {
            return;
        }
        self.are_all_in_use.store(false, Ordering::Release);
        backend.epoch.fetch_add(1, Ordering::Release);
        let interval = shared.phases.eject(chosen.index, now);
        *lock(&backend.last_ejection) = Some(Ejection::new(now, format!("{rule}: {outcome}")));
        let n_usable = shared.phases.n_usable();
        self.settle(&mut shared, now);
        drop(shared);
        match rule {
            Rule::InARow(_) => backend.metrics.ejections_in_a_row.inc(),
            Rule::Rate(_) => backend.metrics.ejections_by_rate.inc(),
        }
        backend.metrics.ejected.set(1);
        let (module, server) = (&self.module, &backend.server);
        log_limited!(
            Level::Warn,
            "module [{module}]: backend {server} is ejected for {}ms after {rule}, {n_usable} of {} backends are left: \
             {outcome}",
            interval.as_millis(),
            self.backends.len()
        );
    }

    fn end_probe(&self, chosen: &ChosenBackend, verdict: PushVerdict<'_>, now: Instant) -> Vec<usize> {
        let backend = &self.backends[chosen.index];
        let is_good = match verdict {
            PushVerdict::Good => Some(true),
            PushVerdict::Bad(_) | PushVerdict::Repeated(_) => Some(false),
            PushVerdict::NotMade => None,
        };
        let mut shared = self.lock();
        // A probe that hangs may have been replaced by another one.
        if chosen.epoch != backend.epoch.load(Ordering::Relaxed) {
            return Vec::new();
        }
        backend.epoch.fetch_add(1, Ordering::Relaxed);
        backend.n_failures.store(0, Ordering::Relaxed);
        if let Some(rates) = shared.rates.as_mut().filter(|_| is_good == Some(true)) {
            rates.forget(chosen.index, self.counts(chosen.index));
        }
        shared.phases.end_probe(chosen.index, is_good, now);
        self.settle(&mut shared, now);
        let woken = match is_good {
            Some(true) => std::mem::take(&mut shared.waiting).into_iter().collect(),
            Some(false) | None => Vec::new(),
        };
        drop(shared);
        match is_good {
            Some(true) => {
                backend.metrics.probes_ok.inc();
                backend.metrics.ejected.set(0);
                log_limited!(Level::Info, "module [{}]: backend {} is back in use", self.module, backend.server);
            }
            Some(false) => backend.metrics.probes_failed.inc(),
            None => {}
        }
        woken
    }

    /// Returns until when no push may begin, and registers `worker` to be woken when a backend is back. `None` if a
    /// push may begin now.
    pub(super) fn blocked_until(&self, worker: usize, now: Instant) -> Option<Instant> {
        if self.are_all_ready() {
            return None;
        }
        let mut shared = self.lock();
        let phases = &shared.phases;
        let may_begin = |index: usize| !self.is_unresolved(index) && phases.due(index).is_none_or(|due| due <= now);
        if (0..self.backends.len()).any(may_begin) {
            return None;
        }
        let until = phases.next_look(now).into_iter().chain(self.next_look_for_names(now)).min()?;
        shared.waiting.insert(worker);
        Some(until)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }

    fn settle(&self, shared: &mut Shared, now: Instant) {
        let are_all_in_use = shared.phases.settle(now);
        self.are_all_in_use.store(are_all_in_use, Ordering::Release);
    }

    /// Returns whether the backend is out of use.
    #[cfg(test)]
    pub(super) fn is_ejected(&self, index: usize) -> bool {
        !self.lock().phases.is_usable(index)
    }
}

#[cfg(test)]
mod tests;
