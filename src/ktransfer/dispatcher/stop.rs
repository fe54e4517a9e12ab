//! The stop of a module: pushes on the wire may end, then they are cut, then the partitions are released.

use std::time::Instant;

use log::warn;

use super::Dispatcher;
use super::stop_phase::StopPhase;
use crate::broker::PartitionId;

impl Dispatcher {
    pub(super) fn begin_stop(&mut self) {
        self.phase = StopPhase::Ending { until: Instant::now() + self.grace };
        for partition in self.partitions.keys().copied().collect::<Vec<_>>() {
            self.begin_release(partition);
        }
    }

    /// Takes the next step of a stop whose deadline has passed.
    pub(super) fn continue_stop(&mut self, now: Instant) {
        match self.phase {
            StopPhase::Ending { until } if until <= now => self.abort(now),
            StopPhase::Aborted { until } if until <= now => self.release_all_now(),
            _ => {}
        }
    }

    fn abort(&mut self, now: Instant) {
        warn!(
            "module [{}]: pushes did not end within their part of shutdown_grace_ms, their connections are closed",
            self.context.config.name
        );
        for state in self.partitions.values_mut() {
            // The phase ends before.
            state.end_drain(now + self.grace);
            state.in_flight -= self.outbox.drop_over(&state.assignment);
        }
        self.context.http_client.close();
        self.phase = StopPhase::Aborted { until: now + self.grace / 8 };
        for partition in self.partitions.keys().copied().collect::<Vec<PartitionId>>() {
            self.release_if_drained(partition);
        }
    }
}
