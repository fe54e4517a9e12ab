//! Bounds of one server.

use std::time::Duration;

use super::budget::{ByteBudget, ByteLease};
use super::scan::HeadLimits;

/// Bounds of one server.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// From the first byte of a request to its last.
    pub read_timeout: Duration,
    /// From sending a response until the socket has taken its last byte.
    pub write_timeout: Duration,
    /// From a response to the first byte of the next request.
    pub idle_timeout: Duration,
    /// Open connections; a connection beyond it is answered with 503 and closed.
    pub max_connections: usize,
    /// Open connections of one client address. IPv4-mapped IPv6 addresses count as the IPv4 address.
    pub max_connections_per_ip: Option<usize>,
    /// Sizes of request line and headers.
    pub head: HeadLimits,
    /// Memory of requests, from their arrival until the handler drops [`super::Request::lease`]; beyond it 503.
    pub body_budget: Option<ByteBudget>,
}

impl Default for ServerLimits {
    /// Bounds for an admin port.
    fn default() -> Self {
        ServerLimits {
            read_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
            max_connections: 256,
            max_connections_per_ip: None,
            head: HeadLimits::default(),
            body_budget: None,
        }
    }
}

impl ServerLimits {
    pub(super) fn lease(&self) -> ByteLease {
        self.body_budget.as_ref().map_or_else(ByteLease::default, ByteBudget::lease)
    }
}
