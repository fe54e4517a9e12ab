//! The settings of a module's pushes, which its workers share and a reload replaces as a whole.

use std::sync::Arc;

use super::request::RequestBuilder;
use super::resolver::BackendResolver;
use super::timeouts::Timeouts;
use super::tls::BackendTls;
use crate::ktransfer::config::ModuleConfig;

/// The smallest pool of a worker. It has room for backends that a reload adds, so that the connections to the others
/// stay open.
const MIN_POOL_SIZE: usize = 16;

/// The settings of a module's pushes.
pub(crate) struct ClientProfile {
    pub(super) requests: RequestBuilder,
    pub(super) resolver: Arc<BackendResolver>,
    pub(super) timeouts: Timeouts,
    pub(super) tls: Option<BackendTls>,
    /// Number of idle connections that a worker keeps, at most one for each backend.
    pub(super) pool_size: usize,
}

impl ClientProfile {
    /// Creates the profile of a module. `resolver` returns the addresses of the backends.
    pub(crate) fn new(config: &ModuleConfig, resolver: Arc<BackendResolver>) -> ClientProfile {
        let protocol = &config.protocol;
        let requests = RequestBuilder::new(&config.name, &config.topic, protocol.uri.clone(), &protocol.headers)
            .with_idempotency_key(config.idempotency_key)
            .with_secrets(&config.signing_secrets);
        ClientProfile {
            requests,
            resolver,
            timeouts: Timeouts::from(protocol),
            tls: protocol.tls.clone(),
            pool_size: config.backend_servers.len().next_power_of_two().max(MIN_POOL_SIZE),
        }
    }

    /// Creates the profile after a change of the configuration. Names that are looked up already stay known.
    pub(crate) fn changed(&self, config: &ModuleConfig) -> ClientProfile {
        self.resolver.replace(&config.backend_servers);
        let mut profile = ClientProfile::new(config, Arc::clone(&self.resolver));
        profile.pool_size = profile.pool_size.max(self.pool_size);
        if profile.tls == self.tls {
            // With its cache for session resumption.
            profile.tls.clone_from(&self.tls);
        }
        profile
    }

    /// Whether connections that were made with `other` can be used with this profile.
    pub(super) fn has_connections_of(&self, other: &ClientProfile) -> bool {
        self.timeouts == other.timeouts
            && self.tls == other.tls
            && self.pool_size == other.pool_size
            && Arc::ptr_eq(&self.resolver, &other.resolver)
    }

    /// Returns what looks up the backends' names.
    pub(crate) fn resolver(&self) -> &Arc<BackendResolver> {
        &self.resolver
    }
}
