//! The gate in front of a producer engine: it looks topics up, holds appends until their topic is known, and refuses at
//! once appends that cannot succeed.
//!
//! - [`state`]: the state that the gate, its thread and the engine share. [`reachability`]: whether a broker can be
//!   reached.
//! - [`gate`]: takes the appends. [`metadata_loop`]: the metadata thread.
//!
//! An append to a known topic goes directly to the engine. An append to any other topic, or to a partition that the
//! topic lacks, waits for the thread `kafka-metadata` ([`metadata_loop`]), which also checks whether a broker can be
//! reached.
//!
//! Invariants: the appends of each partition reach the engine in the order of the calls, since the lock of the table is
//! held while one is submitted; the time in the table counts towards an append's timeout; at its deadline an append
//! fails, whatever the metadata thread waits for.

mod gate;
mod metadata_loop;
mod reachability;
mod state;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use super::{Completion, ProducerConfig};
use crate::supervise::Supervisor;
use metadata_loop::MetadataLoop;

pub(super) use gate::MetadataGate;
pub(super) use state::{
    GateState, MetadataClient, NotSubmitted, PendingAppend, ProducerEngine, TopicAnswer, not_stored,
};

/// Makes the gate of `engine` and starts the metadata thread. A lookup takes at most `wait`.
pub(super) fn start<C: Completion, E: ProducerEngine<C>>(
    engine: E,
    state: Arc<GateState<C>>,
    config: &ProducerConfig,
    client: impl MetadataClient,
    wait: Duration,
    supervisor: &Supervisor,
) -> Arc<MetadataGate<C, E>> {
    let gate = Arc::new(MetadataGate::new(engine, state, config));
    let metadata_loop = MetadataLoop::new(Arc::clone(&gate), client, wait);
    let stop = supervisor.stop().clone();
    // A task, which may end at any time: it ends when the producer is closed. Until then it looks topics up, also
    // after the supervisor's stop.
    supervisor.spawn_task("kafka-metadata", move || metadata_loop.run(&stop));
    gate
}
