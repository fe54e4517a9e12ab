//! Limits of one server: timeouts, connections, sizes, memory.

use std::time::Duration;

use super::budget::{ByteBudget, ByteLease};
use super::scan::HeadLimits;
use super::unsent::AnswerLease;
use super::write_limits::WriteLimits;

/// Memory of requests of a server with default limits.
const MAX_ADMIN_BYTES: usize = 64 << 20;
/// Memory of large responses of a server with default limits.
const MAX_ANSWER_BYTES: usize = 32 << 20;

/// Limits of one server.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Time from the first byte of a request to its last byte.
    pub read_timeout: Duration,
    /// How long a client may take to read a response.
    pub write: WriteLimits,
    /// Time from a response, or from the start of the connection, to the first byte of the next request.
    pub idle_timeout: Duration,
    /// Number of open connections; a further connection is answered with 503 (with TLS: an alert) and closed.
    pub max_connections: usize,
    /// Number of open connections of one client address; `None` sets no limit.
    pub max_connections_per_ip: Option<usize>,
    /// Largest request line and headers.
    pub head: HeadLimits,
    /// Budget for the memory of all requests, from their arrival until the handler drops [`super::Request::lease`], and
    /// of the parts of responses that clients have not read, unless `answer_budget` is set. A request that does not fit
    /// is answered with 503. `None` sets no limit.
    pub body_budget: Option<ByteBudget>,
    /// Budget for the bodies of large responses, from the time they are sent until the client has read them; shared
    /// bodies do not count. A response that does not fit is replaced by a 503 with `Retry-After`. With `None` the
    /// unread parts count in `body_budget`, and a response that does not fit is cut off. That is right for a server
    /// whose responses report an effect: a 503 after the effect would be wrong.
    pub answer_budget: Option<ByteBudget>,
}

impl Default for ServerLimits {
    /// The limits of an admin port.
    fn default() -> Self {
        ServerLimits {
            read_timeout: Duration::from_secs(5),
            write: WriteLimits::with_timeout(Duration::from_secs(5)),
            idle_timeout: Duration::from_secs(75),
            max_connections: 256,
            max_connections_per_ip: None,
            head: HeadLimits::default(),
            body_budget: Some(ByteBudget::new(MAX_ADMIN_BYTES)),
            answer_budget: Some(ByteBudget::new(MAX_ANSWER_BYTES)),
        }
    }
}

impl ServerLimits {
    /// Returns the idle timeout that responses announce, in whole seconds: a little shorter than the real one, so that
    /// a client does not send a request while the server closes the connection. 0 announces none.
    pub(super) fn keep_alive_seconds(&self) -> u64 {
        let margin = (self.idle_timeout / 15).max(Duration::from_secs(1));
        self.idle_timeout.saturating_sub(margin).as_secs()
    }

    /// Returns a lease for the responses of one connection.
    pub(super) fn answer_lease(&self) -> AnswerLease {
        match &self.answer_budget {
            Some(budget) => AnswerLease::new(budget.lease(), true),
            None => AnswerLease::new(self.lease(), false),
        }
    }

    pub(super) fn lease(&self) -> ByteLease {
        self.body_budget.as_ref().map_or_else(ByteLease::default, ByteBudget::lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_announced_idle_timeout_is_shorter_than_the_real_one() {
        for (idle_ms, seconds) in [(75_000, 70), (60_000, 56), (2000, 1), (1999, 0), (1000, 0), (1, 0)] {
            let limits = ServerLimits { idle_timeout: Duration::from_millis(idle_ms), ..ServerLimits::default() };
            assert_eq!(limits.keep_alive_seconds(), seconds, "{idle_ms}");
        }
    }
}
