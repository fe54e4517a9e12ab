//! Reads messages from offsets that the owner chooses.
//!
//! - `fetcher`: the interface, and the metadata thread. `worker`: the thread of a broker. `shared`: what these
//!   threads share.
//! - `core`: all decisions. `partition`: position and messages of one partition. `epochs`: its leader epochs.
//! - `session`: fetch sessions. `record_set`, `outcome`: decode responses. [`event`]: what a poll returns.
//!
//! Only `fetcher` and `worker` have threads and sockets. One thread for each broker that leads assigned partitions
//! connects, sends requests with all partitions of the broker, and decodes the responses; one thread requests metadata.
//! They share the core under a lock, which is held neither while they wait nor while they decode.
//!
//! Invariants: the messages of a partition are returned in the order of its log, each at most once per assignment, and
//! none after its revocation. Nothing is read silently from another log than before: a truncated log, and a topic
//! recreated, are events. Prefetched messages have at most about `prefetch_bytes`; each broker's response can add
//! one batch.

mod core;
mod epochs;
pub mod event;
mod fetcher;
mod outcome;
#[cfg(test)]
mod oversize_tests;
mod partition;
pub mod record_set;
mod session;
mod shared;
#[cfg(test)]
mod simulation;
mod worker;

use std::sync::Arc;
use std::time::Duration;

pub use event::{Divergence, FetchEvent, Messages, TopicPartition};
pub use fetcher::Fetcher;
pub use record_set::MessageView;

/// Settings of a fetcher.
#[derive(Clone, Debug)]
pub struct FetchConfig {
    /// Prefetched bytes, over all partitions, from which no further request is sent: keys, values, encoded headers and
    /// 48 bytes a message. Each partition has an equal share.
    pub prefetch_bytes: usize,
    /// Size in bytes of the largest message that must be readable; limits what a batch may decompress to, see
    /// [`max_batch_bytes`](Self::max_batch_bytes).
    pub max_message_bytes: usize,
    /// Longest time that a broker waits for messages before it responds; also the longest delay before a partition that
    /// was assigned or resumed is requested.
    pub max_wait: Duration,
    /// `client.rack`: messages are read from a replica in this rack if the brokers choose one (KIP-392).
    pub client_rack: Option<Arc<str>>,
    /// Whether messages of open and of aborted transactions are left out (`isolation.level=read_committed`).
    pub read_committed: bool,
}

impl FetchConfig {
    /// Returns the limit of the decompressed bytes of one batch, and of the memory of its messages: 32 MiB, or two
    /// largest messages if that is more. While a batch is decoded, both are in memory. Producers limit batches by their
    /// compressed size, 1 MiB by default, and JSON text commonly shrinks to a tenth. A partition with a larger batch
    /// fails with an error until it is assigned behind it.
    pub fn max_batch_bytes(&self) -> usize {
        self.max_message_bytes.saturating_mul(2).clamp(32 << 20, 1 << 30)
    }
}
