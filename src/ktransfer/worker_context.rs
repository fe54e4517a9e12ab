//! The state that the dispatcher and the workers of a module share.

use std::sync::{Arc, RwLock};
use std::time::Instant;

use super::attempt_table::AttemptTable;
use super::backend_client::{BackendResolver, ClientProfile, HttpClient};
use super::backends::{BackendRotation, Backends, Choice, ChosenBackend, NextPush, PushVerdict};
use super::config::ModuleConfig;
use super::dead_letters::ModuleLetters;
use super::job::SettingsChange;
use super::metrics::ModuleMetrics;
use super::push_rate::PushRate;
use super::window_slots::WindowSlots;
use crate::locks::{read, write};

/// The state of a worker besides its channels, shared by all workers. Each start of a module creates a new context.
pub(super) struct WorkerContext {
    /// The module's configuration at the start: for the keys that a reload changes only by a restart of the module. The
    /// others are in [`PushSettings`].
    pub(super) config: ModuleConfig,
    /// Has a pusher for each worker, and cuts pushes.
    pub(super) http_client: HttpClient,
    /// The module's metrics.
    pub(super) metrics: ModuleMetrics,
    /// The dead letters of the module; `None` without `dead_letter_topic`.
    pub(super) dead_letters: Option<ModuleLetters>,
    /// The slots of the messages that are pushed and not done.
    pub(super) slots: WindowSlots,
    /// The pushes on the wire, and the messages whose latest attempt failed.
    pub(super) attempts: AttemptTable,
    /// The settings in force. The lock is held for the choice of a backend and for the end of a push, never across IO.
    settings: RwLock<Arc<PushSettings>>,
}

/// The settings that a reload can change in place. They are replaced as a whole: an attempt uses one version of them,
/// so that no header or secret goes to a backend of another version.
pub(super) struct PushSettings {
    /// The module's configuration.
    pub(super) config: ModuleConfig,
    /// How pushes are made.
    pub(super) profile: Arc<ClientProfile>,
    /// Which backends are in use.
    pub(super) backends: Backends,
    /// The limit on pushes; `None` is no limit.
    pub(super) push_rate: Option<Arc<PushRate>>,
}

impl WorkerContext {
    /// Creates the context of a module that starts.
    pub(super) fn new(
        config: ModuleConfig,
        metrics: ModuleMetrics,
        dead_letters: Option<ModuleLetters>,
    ) -> WorkerContext {
        let resolver = BackendResolver::new(&config.backend_servers);
        let settings = PushSettings {
            backends: Backends::new(&config, &metrics).sparing(resolver.unresolved()),
            profile: Arc::new(ClientProfile::new(&config, resolver)),
            push_rate: PushRate::new(config.max_pushes_per_second).map(Arc::new),
            config: config.clone(),
        };
        WorkerContext {
            http_client: HttpClient::new(config.worker_num.get()),
            metrics,
            dead_letters,
            slots: WindowSlots::new(config.window_size.get()),
            attempts: AttemptTable::new(config.worker_num.get()),
            settings: RwLock::new(Arc::new(settings)),
            config,
        }
    }

    /// Returns the settings in force.
    pub(super) fn settings(&self) -> Arc<PushSettings> {
        Arc::clone(&read(&self.settings))
    }

    /// Replaces the settings by those of `config`; returns the effects on workers. State that belongs to unchanged
    /// settings stays: the state of backends, connections, and the permits of the rate.
    pub(super) fn change(&self, config: &ModuleConfig) -> SettingsChange {
        let mut settings = write(&self.settings);
        let former = Arc::clone(&settings);
        let has_same_rate = former.config.max_pushes_per_second == config.max_pushes_per_second;
        let push_rate = match has_same_rate {
            true => former.push_rate.clone(),
            false => PushRate::new(config.max_pushes_per_second).map(Arc::new),
        };
        *settings = Arc::new(PushSettings {
            profile: Arc::new(former.profile.changed(config)),
            backends: former.backends.changed(config, &self.metrics, Instant::now()),
            push_rate,
            config: config.clone(),
        });
        SettingsChange { has_new_rate: !has_same_rate, retries_now: changes_attempts(&former.config, config) }
    }

    /// Returns the next backend for a push, and the settings that hold for this attempt. `last_backend`: that of the
    /// message's latest attempt. [`Self::end_push`] must follow.
    pub(super) fn choose_backend(
        &self,
        rotation: &mut BackendRotation,
        last_backend: Option<&str>,
        push: NextPush,
        now: Instant,
    ) -> (Arc<PushSettings>, Choice) {
        let settings = read(&self.settings);
        let last = last_backend.and_then(|server| settings.backends.index_of(server));
        let choice = settings.backends.choose(rotation, NextPush { last, ..push }, now);
        (Arc::clone(&settings), choice)
    }

    /// Ends a push that began with the settings `began_with`. Returns the workers to be woken, as [`Backends::end`].
    #[must_use]
    pub(super) fn end_push(
        &self,
        began_with: &PushSettings,
        chosen: ChosenBackend,
        verdict: PushVerdict<'_>,
    ) -> Vec<usize> {
        let settings = read(&self.settings);
        settings.backends.end_of(&began_with.backends, chosen, verdict, Instant::now())
    }

    /// Shows the number of messages that are pushed and not done. Workers call it when they take a slot; after they
    /// have returned one, the dispatcher has a report and calls it.
    pub(super) fn show_window(&self) {
        self.metrics.window_in_use.set(i64::try_from(self.slots.in_use()).unwrap_or(i64::MAX));
    }
}

/// Whether an attempt that failed before the change may succeed, or comes sooner, after it.
fn changes_attempts(former: &ModuleConfig, config: &ModuleConfig) -> bool {
    former.backend_servers != config.backend_servers
        || former.protocol != config.protocol
        || former.retry != config.retry
        || former.outcomes != config.outcomes
        || former.signing_secrets != config.signing_secrets
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU64;

    use crate::ktransfer::test_fixtures::{module_config, worker_context};
    use crate::metrics::Registry;

    #[test]
    fn pushes_go_to_the_backends_whose_names_are_known() {
        let context = worker_context(module_config(&["pending.invalid:80", "10.0.0.1:80"]), &Registry::new());
        let mut rotation = BackendRotation::starting_at(0);
        for _ in 0..10 {
            let (settings, choice) =
                context.choose_backend(&mut rotation, Some("10.0.0.1:80"), NextPush::default(), Instant::now());
            let Choice::Use(chosen) = choice else { panic!("a backend is in use") };
            assert_eq!(chosen.index, 1);
            assert!(context.end_push(&settings, chosen, PushVerdict::NotMade).is_empty());
        }
        context.change(&module_config(&["pending.invalid:80", "other.invalid:80"]));
        let (settings, choice) = context.choose_backend(&mut rotation, None, NextPush::default(), Instant::now());
        let Choice::Use(chosen) = choice else { panic!("one that is pending is better than none") };
        assert!(context.end_push(&settings, chosen, PushVerdict::NotMade).is_empty());
    }

    #[test]
    fn a_change_keeps_the_rate_unless_it_differs_and_says_whether_retries_are_made_now() {
        let with_rate = |rate: u64, servers: &[&str]| ModuleConfig {
            max_pushes_per_second: NonZeroU64::new(rate),
            ..module_config(servers)
        };
        let context = worker_context(with_rate(5, &["a:80"]), &Registry::new());
        let rate = context.settings().push_rate.clone().expect("a rate");
        for (config, has_new_rate, retries_now) in [
            (with_rate(5, &["a:80"]), false, false),
            (with_rate(5, &["a:80", "b:80"]), false, true),
            (with_rate(6, &["a:80", "b:80"]), true, false),
            (with_rate(0, &["a:80", "b:80"]), true, false),
        ] {
            assert_eq!(context.change(&config), SettingsChange { has_new_rate, retries_now });
            let settings = context.settings();
            let is_kept = settings.push_rate.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, &rate));
            let is_limited = settings.push_rate.is_some();
            assert_eq!(
                (is_kept, is_limited),
                (!has_new_rate && config.max_pushes_per_second.is_some(), config.max_pushes_per_second.is_some())
            );
            assert_eq!(settings.backends.index_of("b:80").is_some(), config.backend_servers.len() == 2);
        }
    }
}
