//! The connections of a producer to the brokers, as operators see them.

use std::time::Instant;

use super::Acks;

/// A connection to a broker, over which the messages of one acks level are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionStatus {
    /// Number of the broker.
    pub broker: i32,
    /// The acks level.
    pub acks: Acks,
    /// The state of the connection.
    pub state: ConnectionState,
    /// Since when; for a throttled connection: until when. `None` if that is not known.
    pub time: Option<Instant>,
    /// Why it failed, as an error text; empty unless it did.
    pub reason: String,
}

/// The state of a connection to a broker, from the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConnectionState {
    /// It works.
    Connected,
    /// There is none, because nothing was sent for a while.
    Idle,
    /// It is being made.
    Connecting,
    /// A quota of the broker delays the next request.
    Throttled,
    /// The broker has not answered for longer than usual.
    Silent,
    /// It failed, and the next attempt has not succeeded.
    BackOff,
}

impl ConnectionState {
    /// All states.
    pub const ALL: [ConnectionState; 6] = [
        ConnectionState::Connected,
        ConnectionState::Idle,
        ConnectionState::Connecting,
        ConnectionState::Throttled,
        ConnectionState::Silent,
        ConnectionState::BackOff,
    ];

    /// Returns the word for metrics.
    pub fn word(self) -> &'static str {
        match self {
            ConnectionState::Connected => "connected",
            ConnectionState::Idle => "idle",
            ConnectionState::Connecting => "connecting",
            ConnectionState::Throttled => "throttled",
            ConnectionState::Silent => "silent",
            ConnectionState::BackOff => "back_off",
        }
    }
}
