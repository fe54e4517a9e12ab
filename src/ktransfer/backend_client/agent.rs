//! The agent of the `ureq` crate, over our own connections and addresses: one for each worker.

use std::sync::Arc;
use std::time::Duration;

use ureq::Agent;
use ureq::config::Config as AgentConfig;

use super::connector::BackendConnector;
use super::exchange::Exchange;
use super::profile::ClientProfile;
use super::resolver::AgentResolver;

/// Idle timeout of a connection. It is below five seconds, the shortest keep-alive timeout in common use, because a
/// request that is sent while the backend closes the connection fails and needs a retry.
pub(super) const MAX_IDLE_AGE: Duration = Duration::from_secs(4);

/// Creates an agent without connections; those that it makes report to `exchange`.
pub(super) fn new_agent(profile: &ClientProfile, exchange: &Arc<Exchange>) -> Agent {
    let connector = BackendConnector::new(Arc::clone(exchange), profile.timeouts, profile.tls.clone());
    Agent::with_parts(agent_config(profile.pool_size), connector, AgentResolver(Arc::clone(&profile.resolver)))
}

fn agent_config(pool_size: usize) -> AgentConfig {
    // No timeout of the client is set: the connections enforce those of the module, which have other start and end
    // points. A worker has one push in flight, so one connection for each backend is enough.
    Agent::config_builder()
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .max_idle_connections(pool_size)
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
