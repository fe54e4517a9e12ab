//! The faults of a cluster, in the order that a test queued them, or at random from a seed.
//!
//! A scope selects requests; the first queued fault of each scope that matches a request applies to it and is used
//! up. Faults of different scopes combine: delays take the longest, the response fault is the first one.

use std::time::Duration;

use kafka_protocol::messages::ApiKey;

use super::fault::{Fault, InjectedError, ResponseFault, Scope};
use super::random::{Generator, Rates};

/// What a broker does with one request: the faults that apply to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub(super) delay: Duration,
    pub(super) is_held: bool,
    pub(super) is_dropped: bool,
    pub(super) response_delay: Duration,
    pub(super) is_response_held: bool,
    pub(super) throttle_ms: i32,
    pub(super) response: Option<ResponseFault>,
    errors: Vec<(Scope, InjectedError)>,
}

impl Plan {
    fn add(&mut self, scope: &Scope, fault: &Fault) {
        self.delay = self.delay.max(fault.delay);
        self.response_delay = self.response_delay.max(fault.response_delay);
        self.throttle_ms = self.throttle_ms.max(fault.throttle_ms);
        self.is_dropped |= fault.is_dropped;
        self.is_held |= fault.is_held;
        self.is_response_held |= fault.is_response_held;
        if self.response.is_none() {
            self.response = fault.response.clone();
        }
        self.errors.extend(fault.error.map(|error| (scope.clone(), error)));
    }

    /// Returns the injected error of a partition.
    pub(super) fn error_of(&self, topic: &str, partition: i32) -> Option<InjectedError> {
        self.errors.iter().find(|(scope, _)| scope.names(topic, partition)).map(|(_, error)| *error)
    }

    /// Returns the injected error of a topic, for requests without partitions.
    pub(super) fn error_of_topic(&self, topic: &str) -> Option<i16> {
        let names = |scope: &Scope| scope.topic.as_deref().is_none_or(|name| name == topic);
        self.errors.iter().find(|(scope, _)| names(scope)).map(|(_, error)| error.code)
    }

    /// Returns the injected error of the request as a whole.
    pub(super) fn error(&self) -> Option<InjectedError> {
        self.errors.iter().find(|(scope, _)| scope.topic.is_none()).map(|(_, error)| *error)
    }
}

#[derive(Clone, Debug)]
struct Queued {
    scope: Scope,
    fault: Fault,
    /// Requests to which it still applies; `None` for all.
    left: Option<usize>,
}

/// The faults of a cluster.
#[derive(Debug, Default)]
pub(super) struct Script {
    queue: Vec<Queued>,
    random: Option<(Generator, Rates)>,
}

impl Script {
    /// Queues a fault for `times` requests; `None` for all.
    pub(super) fn add(&mut self, scope: Scope, fault: Fault, times: Option<usize>) {
        self.queue.push(Queued { scope, fault, left: times });
    }

    /// Sets the random faults.
    pub(super) fn set_random(&mut self, random: Option<(Generator, Rates)>) {
        self.random = random;
    }

    /// Removes all faults.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.random = None;
    }

    /// Returns the number of queued faults that have not been used.
    pub(super) fn pending(&self) -> usize {
        self.queue.iter().filter_map(|queued| queued.left).sum()
    }

    /// Takes the faults that apply to a request.
    pub(super) fn plan(&mut self, api: ApiKey, broker: i32, targets: &[(String, i32)]) -> Plan {
        let mut plan = Plan::default();
        let mut seen: Vec<Scope> = Vec::new();
        for queued in &mut self.queue {
            if queued.left == Some(0) || seen.contains(&queued.scope) || !queued.scope.matches(api, broker, targets) {
                continue;
            }
            seen.push(queued.scope.clone());
            plan.add(&queued.scope, &queued.fault);
            queued.left = queued.left.map(|left| left - 1);
        }
        self.queue.retain(|queued| queued.left != Some(0));
        if let Some((generator, rates)) = &mut self.random {
            for (scope, fault) in rates.draw(generator, api, targets) {
                plan.add(&scope, &fault);
            }
        }
        plan
    }
}
