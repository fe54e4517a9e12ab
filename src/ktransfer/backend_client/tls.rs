//! The TLS of a module's https backends.

use std::sync::Arc;
use std::time::Instant;

use socket2::Socket;

use super::stream::{HandshakeFailure, Stream};
use crate::tls_client::{TlsClient, TlsConfig};

/// The TLS of a module. Clones share the cache for session resumption.
#[derive(Clone)]
pub(crate) struct BackendTls {
    config: TlsConfig,
    client: TlsClient,
    /// The name that a backend's certificate must have; `None` is the host in `backend_servers`.
    server_name: Option<String>,
}

/// Compares the settings.
impl PartialEq for BackendTls {
    fn eq(&self, other: &BackendTls) -> bool {
        self.config == other.config && self.server_name == other.server_name
    }
}

impl BackendTls {
    /// Creates the TLS. The error names the setting that cannot be used.
    pub(crate) fn new(config: TlsConfig, server_name: Option<String>) -> Result<BackendTls, String> {
        let client = TlsClient::new(&config)?;
        if let Some(name) = &server_name {
            client.session(name).map_err(|failure| failure.reason)?;
        }
        Ok(BackendTls { config, client, server_name })
    }

    /// Makes the handshake with a backend. `host`: its host as in a url.
    pub(super) fn connect(
        &self,
        socket: Arc<Socket>,
        host: &str,
        deadline: Instant,
    ) -> Result<Stream, HandshakeFailure> {
        // A url has an IPv6 address in brackets.
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Stream::encrypted(socket, &self.client, self.server_name.as_deref().unwrap_or(host), deadline)
    }
}
