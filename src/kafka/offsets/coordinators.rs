//! The coordinators of the groups, cached, and looked up again before each retry.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::{OffsetError, group_error};
use super::rounds::{Attempt, Route, Router, unique};
use crate::kafka::error_code;
use crate::kafka::metadata::{BrokerId, BrokerInfo};
use crate::kafka::metadata_client::MetadataClient;

/// Longest time for which a coordinator is used without another lookup.
const MAX_COORDINATOR_AGE: Duration = Duration::from_secs(300);

/// The coordinators of the groups that were used lately.
#[derive(Default)]
pub(super) struct Coordinators {
    found: HashMap<Arc<str>, (BrokerInfo, Instant)>,
}

impl Coordinators {
    /// Returns the brokers of these groups, in the same order; `None` where the look-up failed. A broker in `doubtful`
    /// may have been replaced, so its groups are looked up.
    pub(super) fn of(
        &mut self,
        metadata: &mut MetadataClient,
        names: &[Arc<str>],
        doubtful: &BTreeSet<BrokerId>,
        until: Instant,
    ) -> Vec<Option<BrokerId>> {
        self.found.retain(|_, (broker, at)| at.elapsed() < MAX_COORDINATOR_AGE && !doubtful.contains(&broker.id));
        let (different, _) = unique(names);
        self.look_up(metadata, different, until);
        names.iter().map(|name| self.found.get(name).map(|(broker, _)| broker.id)).collect()
    }

    /// Looks up the coordinators of the groups of which none is known; returns why that failed.
    fn look_up(
        &mut self,
        metadata: &mut MetadataClient,
        names: Vec<Arc<str>>,
        until: Instant,
    ) -> HashMap<Arc<str>, OffsetError> {
        let missing: Vec<_> = names.into_iter().filter(|name| !self.found.contains_key(name)).collect();
        let mut failures = HashMap::new();
        let now = Instant::now();
        for (name, result) in metadata.coordinators(&missing, until) {
            match result {
                Ok(broker) => drop(self.found.insert(name, (broker, now))),
                Err(failure) => drop(failures.insert(name, failure.into())),
            }
        }
        failures
    }

    /// Returns a router of items with these groups.
    pub(super) fn router<'a>(
        &'a mut self,
        metadata: &'a mut MetadataClient,
        names: &'a [Arc<str>],
    ) -> CoordinatorRouter<'a> {
        self.found.retain(|_, (_, at)| at.elapsed() < MAX_COORDINATOR_AGE);
        CoordinatorRouter { coordinators: self, metadata, names }
    }
}

/// Routes items to the coordinator of the group with the same index in `names`.
pub(super) struct CoordinatorRouter<'a> {
    coordinators: &'a mut Coordinators,
    metadata: &'a mut MetadataClient,
    names: &'a [Arc<str>],
}

impl<T> Router<(), T> for CoordinatorRouter<'_> {
    fn route(&mut self, items: &[usize], is_retry: bool, until: Instant) -> Vec<(usize, Route<(), T>)> {
        if is_retry {
            items.iter().for_each(|index| drop(self.coordinators.found.remove(&self.names[*index])));
        }
        let (names, _) = unique(&items.iter().map(|index| Arc::clone(&self.names[*index])).collect::<Vec<_>>());
        let failures = self.coordinators.look_up(self.metadata, names, until);
        let found = &self.coordinators.found;
        let route = |&index: &usize| {
            let name = &self.names[index];
            let route = match (found.get(name), failures.get(name)) {
                (Some((broker, _)), _) => Route::Broker(broker.id, broker.address.clone(), ()),
                (None, Some(failure)) => Route::Failed(Attempt::failed(failure.clone())),
                (None, None) => {
                    Route::Failed(Attempt::failed(group_error(name, error_code::COORDINATOR_NOT_AVAILABLE)))
                }
            };
            (index, route)
        };
        items.iter().map(route).collect()
    }
}
