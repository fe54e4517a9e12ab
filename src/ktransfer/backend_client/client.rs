//! The HTTP client of one module: what all of its workers share, and the cuts of the dispatcher.
//!
//! Each worker has a [`Pusher`] with a client and a connection pool of its own, so that a push takes no lock that
//! another push may hold.
//!
//! Invariants: a request is sent once (a request that the backend certainly did not receive is sent again), a redirect
//! is not followed, no proxy is used even if the environment names one, and no thread is started for a request.

use std::sync::Arc;

use ureq::Agent;
use ureq::config::Config as AgentConfig;

use super::connection::Timeouts;
use super::connector::BackendConnector;
use super::exchange::Exchange;
use super::pusher::{MAX_IDLE_AGE, Pusher};
use super::request::RequestBuilder;
use super::resolver::{AgentResolver, BackendResolver};
use super::tls::BackendTls;
use crate::broker::{Offset, PartitionId};
use crate::ktransfer::config::ModuleConfig;
use crate::ktransfer::group::Generation;

/// The HTTP client of one module.
pub(crate) struct HttpClient {
    requests: Arc<RequestBuilder>,
    resolver: Arc<BackendResolver>,
    timeouts: Timeouts,
    tls: Option<BackendTls>,
    n_backends: usize,
    /// The push under way of each worker.
    exchanges: Vec<Arc<Exchange>>,
}

impl HttpClient {
    /// Creates the client for the workers of a module. `resolver` returns the addresses of the backends.
    pub(crate) fn new(config: &ModuleConfig, resolver: Arc<BackendResolver>) -> HttpClient {
        let protocol = &config.protocol;
        let requests = RequestBuilder::new(&config.name, &config.topic, protocol.uri.clone(), &protocol.headers)
            .with_idempotency_key(config.idempotency_key)
            .with_secrets(&config.signing_secrets);
        HttpClient {
            requests: Arc::new(requests),
            resolver,
            timeouts: Timeouts::from(protocol),
            tls: protocol.tls.clone(),
            n_backends: config.backend_servers.len(),
            exchanges: (0..config.worker_num.get()).map(|_| Arc::default()).collect(),
        }
    }

    /// Returns the pusher of worker number `worker`, counted from 0.
    pub(crate) fn pusher(&self, worker: usize) -> Pusher {
        let exchange = Arc::clone(&self.exchanges[worker]);
        let (connections, resolver) = (Arc::clone(&exchange), Arc::clone(&self.resolver));
        let (config, timeouts, tls) = (agent_config(self.n_backends), self.timeouts, self.tls.clone());
        let new_agent = move || {
            let connector = BackendConnector::new(Arc::clone(&connections), timeouts, tls.clone());
            Agent::with_parts(config.clone(), connector, AgentResolver(Arc::clone(&resolver)))
        };
        Pusher::new(Arc::clone(&self.requests), exchange, Box::new(new_agent))
    }

    /// Ends all pushes under way of a claim. The caller has ended the claim before: so a push that begins at the same
    /// time either is found here, or sees that its claim has ended.
    pub(crate) fn cut(&self, partition: PartitionId, generation: Generation) {
        for exchange in &self.exchanges {
            exchange.cut(partition, generation);
        }
    }

    /// Ends the push under way of one message. It may be pushed again, unless the caller has prevented that before.
    pub(crate) fn cut_message(&self, partition: PartitionId, generation: Generation, offset: Offset) {
        for exchange in &self.exchanges {
            exchange.cut_message(partition, generation, offset);
        }
    }

    /// Ends all pushes under way, and makes every later one end before it begins.
    pub(crate) fn close(&self) {
        for exchange in &self.exchanges {
            exchange.close();
        }
    }
}

fn agent_config(n_backends: usize) -> AgentConfig {
    // No timeout of the client is set: the connections keep those of the module, which begin and end otherwise. A
    // worker has one push under way, so one connection for each backend is enough.
    Agent::config_builder()
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .max_idle_connections(n_backends)
        .max_idle_connections_per_host(1)
        .max_idle_age(MAX_IDLE_AGE)
        .user_agent(concat!("ktransfer/", env!("CARGO_PKG_VERSION")))
        .accept("")
        .accept_encoding("")
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_redirects_timeouts_and_pool_are_set_explicitly() {
        let config = agent_config(7);
        assert!(config.proxy().is_none());
        assert_eq!((config.max_redirects(), config.max_redirects_will_error()), (0, false));
        assert!(!config.http_status_as_error());
        let timeouts = config.timeouts();
        assert_eq!((timeouts.global, timeouts.per_call, timeouts.resolve), (None, None, None));
        assert_eq!((timeouts.connect, timeouts.send_request, timeouts.send_body), (None, None, None));
        assert_eq!((timeouts.recv_response, timeouts.recv_body), (None, None));
        assert_eq!((config.timeout_per_read(), config.timeout_per_write()), (None, None));
        assert_eq!((config.max_idle_connections(), config.max_idle_connections_per_host()), (7, 1));
        assert_eq!(config.max_idle_age(), MAX_IDLE_AGE);
    }
}
