//! The state that a poller keeps from one cycle to the next: names, addresses, and whether the sources can be read.

use std::time::{Duration, Instant, SystemTime};

use crate::clock::boot_instant;
use crate::keeper::Keeper;
use crate::kmonitor::names::{LoggedOnce, NameInterner, shortened};
use crate::kmonitor::zookeeper_source::{Listings, ZookeeperSource};

/// What one cycle leaves to the next.
#[derive(Default)]
pub(crate) struct Memory {
    pub(super) names: NameInterner,
    pub(super) logged: LoggedOnce,
    pub(super) listings: Listings,
    pub(super) hosts: Vec<String>,
    pub(super) zookeeper: SourceState,
    pub(super) kafka: SourceState,
    /// When the brokers responded last, and why they did not since.
    pub(super) brokers: SourceState,
    /// Since when, by the wall clock, the trouble lasts.
    pub(super) trouble_since: Option<SystemTime>,
    /// No broker responded, so none is asked before.
    pub(super) no_broker_until: Option<Instant>,
    /// When the present cycle began; `None` between two.
    pub(super) cycle_began: Option<Instant>,
    /// How long the present cycle waited for requests by which nothing was read.
    pub(super) waited: Duration,
    /// A source or all brokers stopped to respond in the present cycle, so that it did not read what it should.
    pub(super) is_cut: bool,
    /// Duration of the last cycle that was not cut, without `waited`. Single modules may have failed in it.
    pub(super) last_cycle: Option<Duration>,
    /// Whether a cycle has tried to read all modules.
    pub(super) has_read_all: bool,
    /// The requests to Kafka that were counted: those that were sent, and those that the readers estimate.
    pub(super) counted: (u64, u64),
    /// When a view was published last, or the first cycle began.
    pub(super) published: Option<Instant>,
}

/// Whether a source can be read.
#[derive(Default)]
pub(super) struct SourceState {
    pub(super) read: Option<Instant>,
    pub(super) failure: Option<String>,
}

impl Memory {
    pub(super) fn has_failed_source(&self) -> bool {
        self.zookeeper.failure.is_some() || self.kafka.failure.is_some()
    }

    pub(super) fn zookeeper_source<'a>(&'a mut self, keeper: &'a dyn Keeper) -> ZookeeperSource<'a> {
        let Memory { names, logged, listings, .. } = self;
        ZookeeperSource { keeper, names, logged, listings, request_count: 0 }
    }
}

impl SourceState {
    pub(super) fn succeeded(&mut self) {
        (self.read, self.failure) = (Some(boot_instant()), None);
    }

    pub(super) fn failed(&mut self, cause: String) {
        self.failure = Some(shortened(cause));
    }

    /// Why it was not read for too long.
    pub(super) fn cause(&self) -> String {
        let age = self.age().map(|age| format!("not read for {} s", age.as_secs()));
        self.failure.clone().or(age).unwrap_or_else(|| "not read yet".to_owned())
    }

    pub(super) fn is_fresh(&self, fresh: Duration) -> bool {
        self.age().is_some_and(|age| age <= fresh)
    }

    /// Whether it cannot be read, and was not for too long. One that is read rarely, because the cycles wait for
    /// brokers, is not silent.
    pub(super) fn is_silent(&self, fresh: Duration) -> bool {
        !self.is_fresh(fresh) && (self.failure.is_some() || self.read.is_none())
    }

    fn age(&self) -> Option<Duration> {
        self.read.map(|read| boot_instant().saturating_duration_since(read))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_silent_if_it_cannot_be_read_for_long() {
        let mut state = SourceState::default();
        assert!(state.is_silent(Duration::MAX), "it was never read");
        state.succeeded();
        state.read = state.read.and_then(|read| read.checked_sub(Duration::from_secs(10)));
        assert!(!state.is_silent(Duration::from_secs(2)), "nobody tried to read it since");
        state.failed("session lost".to_owned());
        assert!(!state.is_silent(Duration::from_secs(60)), "what was read is still fresh");
        assert!(state.is_silent(Duration::from_secs(2)));
    }
}
