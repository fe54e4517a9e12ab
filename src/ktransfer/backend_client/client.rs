//! The HTTP client of one module, which its workers share; the dispatcher cuts pushes through it (closes their
//! connections).
//!
//! Each worker has a [`Pusher`] with its own client and connection pool, so that a push takes no lock that another push
//! may hold.
//!
//! Invariants: a request is sent once (a request that the backend certainly did not receive is sent again), a redirect
//! is not followed, no proxy is used even if the environment names one, and no thread is started for a request.

use std::sync::Arc;

use super::exchange::Exchange;
use super::profile::ClientProfile;
use super::pusher::Pusher;
use crate::broker::{Offset, PartitionId};
use crate::ktransfer::group::Generation;

/// The HTTP client of one module.
pub(crate) struct HttpClient {
    /// The push in flight of each worker.
    exchanges: Vec<Arc<Exchange>>,
}

impl HttpClient {
    /// Creates the client for this number of workers.
    pub(crate) fn new(worker_num: usize) -> HttpClient {
        HttpClient { exchanges: (0..worker_num).map(|_| Arc::default()).collect() }
    }

    /// Returns the pusher of worker number `worker`, counted from 0.
    pub(crate) fn pusher(&self, worker: usize, profile: Arc<ClientProfile>) -> Pusher {
        Pusher::new(profile, Arc::clone(&self.exchanges[worker]))
    }

    /// Ends all pushes in flight of a claim. The caller must have ended the claim before. So a push that begins at the
    /// same time is either found here, or detects that its claim has ended.
    pub(crate) fn cut(&self, partition: PartitionId, generation: Generation) {
        for exchange in &self.exchanges {
            exchange.cut(partition, generation);
        }
    }

    /// Ends the push in flight of one message. It may be pushed again, unless the caller has prevented that before.
    pub(crate) fn cut_message(&self, partition: PartitionId, generation: Generation, offset: Offset) {
        for exchange in &self.exchanges {
            exchange.cut_message(partition, generation, offset);
        }
    }

    /// Ends all pushes in flight, and makes every later one fail before it begins.
    pub(crate) fn close(&self) {
        for exchange in &self.exchanges {
            exchange.close();
        }
    }
}
