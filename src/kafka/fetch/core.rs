//! All decisions of a fetcher: the requests to each broker, the effects of the responses, the events that a poll
//! returns. Pure: no socket, no thread, and the time is an argument.
//!
//! - [`work`]: the next actions of the threads. [`state`]: the partitions, and the state of each broker.
//! - [`plan`], [`leaders`]: the next requests. [`results`]: the effects of a response.
//!
//! Each broker that leads assigned partitions has a worker ([`BrokerState`](state::BrokerState)), which calls
//! [`next_work`](FetchCore::next_work), does that work without a lock, and returns the result to the `on_` method of
//! that kind of work. A result names its request by number; for a partition that was assigned, revoked or moved since,
//! it is ignored.

mod leaders;
mod plan;
mod results;
mod state;
mod work;

#[cfg(test)]
mod tests;

pub(super) use state::FetchCore;
pub(super) use work::{BrokerVersions, FetchPlan, MetadataWork, QueryPlan, Work};
#[cfg(test)]
pub(super) use work::{PartitionQuery, QueryResults};
