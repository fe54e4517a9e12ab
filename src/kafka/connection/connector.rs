//! Connects to brokers: look-up of the name, then for one address after another TCP, TLS, ApiVersions and SASL.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use log::{info, warn};

use super::authenticate::Authenticator;
use super::channel::{Channel, is_ip};
use super::error::{ConnectionError, ConnectionErrorKind as Kind};
use super::failure_log::FailureLog;
use super::{Connection, before_request};
use crate::kafka::config::{BrokerAddress, ConnectionConfig};
use crate::kafka::resolve::Resolver;
use crate::kafka::socket::Disconnect;
use crate::kafka::stream::{Stream, StreamError};
use crate::locks::lock;
use crate::tls_client::TlsClient;

/// Makes connections with the same settings. Clones share the settings, the resolver of names and the access token.
#[derive(Clone, Debug)]
pub struct Connector {
    shared: Arc<Shared>,
    /// Ends the connections of [`connect`](Connector::connect) from another thread.
    disconnect: Option<Disconnect>,
}

#[derive(Debug)]
struct Shared {
    config: Arc<ConnectionConfig>,
    resolver: Resolver,
    /// The prepared security settings, or why they cannot be used.
    security: Result<Security, String>,
    failures: Mutex<FailureLog>,
}

#[derive(Debug)]
struct Security {
    tls: Option<TlsClient>,
    authenticator: Option<Arc<Authenticator>>,
}

impl Connector {
    /// Returns a connector with these settings. With security settings that cannot be used every attempt to connect
    /// fails; [`check`](Self::check) detects that in advance.
    pub fn new(config: ConnectionConfig) -> Self {
        let resolver = Resolver::new();
        let security = Security::new(&config, &resolver);
        Connector {
            shared: Arc::new(Shared { config: Arc::new(config), resolver, security, failures: Mutex::default() }),
            disconnect: None,
        }
    }

    /// Returns a connector whose connections all end when `disconnect` is used; later attempts to connect fail at once.
    pub fn ended_by(&self, disconnect: Disconnect) -> Self {
        Connector { shared: Arc::clone(&self.shared), disconnect: Some(disconnect) }
    }

    /// Whether every attempt to connect fails from now on, see [`ended_by`](Self::ended_by).
    pub(in crate::kafka) fn is_ended(&self) -> bool {
        self.disconnect.as_ref().is_some_and(|disconnect| disconnect.stop().is_triggered())
    }

    /// Returns why the security settings cannot be used, for instance that a file is not PEM.
    pub fn check(&self) -> Result<(), String> {
        self.shared.security.as_ref().map(drop).map_err(String::clone)
    }

    /// Returns the settings.
    pub fn config(&self) -> &ConnectionConfig {
        &self.shared.config
    }

    /// Connects to a broker until `deadline` or `connect_timeout` at the latest. Fails with the kind `NotSent` or
    /// `Denied`.
    pub fn connect(&self, address: &BrokerAddress, deadline: Instant) -> Result<Connection, ConnectionError> {
        match &self.disconnect {
            Some(disconnect) => self.connect_with(address, deadline, disconnect),
            None => self.connect_with(address, deadline, &Disconnect::new()),
        }
    }

    /// Like [`connect`](Self::connect); `disconnect`, which must not have been used, ends the attempt from another
    /// thread, and later the connection. Logs a failure that is new.
    pub fn connect_with(
        &self,
        address: &BrokerAddress,
        deadline: Instant,
        disconnect: &Disconnect,
    ) -> Result<Connection, ConnectionError> {
        let result = self.try_connect(address, deadline, disconnect);
        match &result {
            Ok(_) => {
                if lock(&self.shared.failures).connected(address) {
                    info!("broker {address}: connected again");
                }
            }
            Err(_) if disconnect.stop().is_triggered() => {}
            Err(error) => {
                if lock(&self.shared.failures).failed(address, &error.reason, Instant::now()) {
                    warn!("{error}");
                }
            }
        }
        result
    }

    fn try_connect(
        &self,
        address: &BrokerAddress,
        deadline: Instant,
        disconnect: &Disconnect,
    ) -> Result<Connection, ConnectionError> {
        let fail = |kind, reason| ConnectionError { address: address.clone(), kind, reason };
        let security = self.shared.security.as_ref().map_err(|reason| fail(Kind::Denied, reason.clone()))?;
        let now = Instant::now();
        let deadline = now.checked_add(self.shared.config.connect_timeout).map_or(deadline, |end| end.min(deadline));
        let mut targets = self
            .shared
            .resolver
            .addresses(&address.host, address.port, deadline, disconnect.stop())
            .map_err(|reason| fail(Kind::NotSent, reason))?;
        let family = self.shared.config.address_family;
        targets.retain(|target| family.contains(target.ip()));
        if targets.is_empty() {
            return Err(fail(
                Kind::NotSent,
                format!("it has no address of the family {family:?} (broker.address.family)"),
            ));
        }
        let mut failures: Vec<String> = Vec::new();
        for (index, target) in targets.iter().enumerate() {
            // Each address gets an equal share of the time that is left.
            let left = deadline.saturating_duration_since(Instant::now());
            let share = Instant::now() + left / (targets.len() - index) as u32;
            match self.attempt(security, address, *target, share, disconnect) {
                Ok(connection) => return Ok(connection),
                // The other addresses have the same credentials.
                Err(error) if error.kind == Kind::Denied => return Err(error),
                Err(error) => failures.push(error.reason),
            }
            if disconnect.stop().is_triggered() {
                return Err(fail(Kind::NotSent, "the client was stopped while it connected".into()));
            }
        }
        Err(fail(Kind::NotSent, failures.join("; ")))
    }

    fn attempt(
        &self,
        security: &Security,
        address: &BrokerAddress,
        target: SocketAddr,
        deadline: Instant,
        disconnect: &Disconnect,
    ) -> Result<Connection, ConnectionError> {
        let shown = if is_ip(address) { String::new() } else { format!(" (IP address {})", target.ip()) };
        let fail = |kind, reason| ConnectionError { address: address.clone(), kind, reason };
        let mut stream = Stream::connect(target, deadline, disconnect)
            .map_err(|cause| fail(Kind::NotSent, format!("cannot connect: {cause}{shown}")))?;
        if let Some(tls) = &security.tls {
            stream.start_tls(tls, &address.host, deadline).map_err(|cause| {
                let is_refusal = matches!(&cause, StreamError::Tls(failure) if failure.is_refusal);
                let kind = if is_refusal { Kind::Denied } else { Kind::NotSent };
                fail(kind, format!("TLS failed: {cause}{shown}"))
            })?;
        }
        let config = &self.shared.config;
        let mut channel = Channel::new(stream, address.clone(), target, Arc::clone(config));
        channel.request_versions(deadline).map_err(|error| before_request("ApiVersions", error))?;
        let renewal = match &security.authenticator {
            None => None,
            Some(authenticator) => authenticator
                .authenticate(&mut channel, disconnect, deadline)
                .map_err(|error| before_request("authentication failed", error))?,
        };
        Ok(Connection {
            channel,
            disconnect: disconnect.clone(),
            max_idle: config.max_idle,
            authenticator: security.authenticator.clone(),
            renewal,
        })
    }
}

impl Security {
    fn new(config: &ConnectionConfig, resolver: &Resolver) -> Result<Security, String> {
        let tls = config.security.tls.as_ref().map(TlsClient::new).transpose()?;
        let sasl = config.security.sasl.as_ref();
        let authenticator = sasl.map(|sasl| Authenticator::new(sasl, resolver)).transpose()?;
        Ok(Security { tls, authenticator: authenticator.map(Arc::new) })
    }
}
