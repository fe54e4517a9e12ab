//! Settings of a client.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Address of a broker: host name or IP address, and TCP port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BrokerAddress {
    /// Host name or IP address (IPv6 without brackets).
    pub host: Arc<str>,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for BrokerAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(formatter, "[{}]:{}", self.host, self.port),
            false => write!(formatter, "{}:{}", self.host, self.port),
        }
    }
}

/// Settings of every connection of a client.
#[derive(Clone, Debug)]
pub struct ConnectionConfig {
    /// Name under which the broker logs and limits this client (`client.id`).
    pub client_id: String,
    /// Longest time to connect: name lookup, TCP, TLS, SASL and ApiVersions together.
    pub connect_timeout: Duration,
    /// Longest time from the end of a request to the end of its response.
    pub request_timeout: Duration,
    /// A connection without requests for this long is closed by the client (`connections.max.idle.ms`).
    pub max_idle: Duration,
    /// Largest response accepted, in bytes.
    pub max_response_bytes: usize,
}
