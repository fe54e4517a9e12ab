//! The change of the list of backends by a reload: the backends that stay keep their state.
//!
//! A change creates new [`Backends`], which share with the former ones the state of each single backend: its failures,
//! its pushes in flight and its epoch. The result of a push in flight counts for the new list if that has the backend
//! as well. The caller ensures that no other thread chooses a backend, or ends a push, during the change.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::failure_rate::FailureRates;
use super::{Backend, Backends, ChosenBackend, PushVerdict, Shared, ejection_config};
use crate::ktransfer::config::ModuleConfig;
use crate::ktransfer::metrics::ModuleMetrics;

impl Backends {
    /// Creates the backends after a change of the configuration. Removes the metrics of those that are gone.
    pub(crate) fn changed(&self, module: &ModuleConfig, metrics: &ModuleMetrics, now: Instant) -> Backends {
        let former: Vec<Option<usize>> = module.backend_servers.iter().map(|server| self.index_of(server)).collect();
        let backend = |(server, index): (&String, &Option<usize>)| match index {
            Some(index) => Arc::clone(&self.backends[*index]),
            None => Backend::new(server, metrics),
        };
        let backends: Vec<Arc<Backend>> = module.backend_servers.iter().zip(&former).map(backend).collect();
        for (index, gone) in self.backends.iter().enumerate() {
            if !former.contains(&Some(index)) {
                metrics.forget_backend(&gone.server);
            }
        }
        let config = ejection_config(module);
        let (phases, rates) = {
            let shared = self.lock();
            let rates = config.rate.map(|rate| match &shared.rates {
                Some(rates) => rates.changed(rate, &former),
                None => FailureRates::new(rate),
            });
            (shared.phases.changed(config, &former), rates)
        };
        for (index, backend) in backends.iter().enumerate() {
            if phases.is_usable(index) {
                backend.metrics.ejected.set(0);
            }
        }
        let changed = Backends {
            module: Arc::clone(&module.name),
            config,
            worker_num: module.worker_num.get(),
            backends,
            n_waiting_retries: Arc::clone(&self.n_waiting_retries),
            are_all_in_use: AtomicBool::new(false),
            shared: Mutex::new(Shared { phases, rates, waiting: BTreeSet::new() }),
            unresolved: self.unresolved.clone(),
        };
        changed.settle(&mut changed.lock(), now);
        changed
    }

    /// Ends a push that began with the list `began_with`, like [`Backends::end`].
    #[must_use]
    pub(crate) fn end_of(
        &self,
        began_with: &Backends,
        chosen: ChosenBackend,
        verdict: PushVerdict<'_>,
        now: Instant,
    ) -> Vec<usize> {
        if std::ptr::eq(self, began_with) {
            return self.end(chosen, verdict, now);
        }
        let backend = &began_with.backends[chosen.index];
        match self.backends.iter().position(|known| Arc::ptr_eq(known, backend)) {
            Some(index) => self.end(ChosenBackend { index, ..chosen }, verdict, now),
            None => {
                backend.n_under_way.fetch_sub(1, Ordering::Relaxed);
                Vec::new()
            }
        }
    }
}

#[cfg(test)]
mod tests;
