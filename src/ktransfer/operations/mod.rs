//! The operations of operators on running modules (pause, resume, skip and seek), and the state that they see.
//!
//! ```text
//!  admin-0 ── tasks (16) ──▶ operations ── requests (4) ──▶ dispatch@M
//!     ▲                           │ ◀───── reply (1) ──────────┘ │
//!     │ answer                    │                              │ status (a table)
//!     └───────────────────────────┘                              ▼
//!                                                        GET /v1/modules
//! ```
//!
//! `http` reads a request, checks the credential and queues a task. The thread `operations` carries out one task after
//! the other, answers and logs it. The queue of requests of a module outlives the restarts of its dispatcher.
//!
//! Invariants: an operation that is refused changes nothing. An answer comes within [`MAX_WAIT`] and some seconds for
//! ZooKeeper, and says one of three things: done, not done, or unknown. A request that was answered with "not done" is
//! not carried out later: one atomic change decides whether it is withdrawn or begun.

mod answer;
mod client;
mod clock_time;
pub(super) mod command;
mod executor;
mod http;
mod operation;
mod parse;
mod registry;
mod request;
mod status;

use std::time::Duration;

pub(super) use executor::Executor;
pub(super) use http::{OperationsHandler, QUEUED_TASKS};
pub(super) use operation::{PartitionResult, Refusal, Settled};
pub(super) use registry::{ModuleHandle, Operations};
pub(super) use request::{Action, OperatorLink, Request};
pub(super) use status::{
    BackendState, BackendStatus, HeadState, HeadStatus, MessageCounts, MessageRates, ModuleStatus, PartitionState,
    PartitionStatus, WindowStatus,
};

/// How long a dispatcher may take to settle an operation.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(8);
