//! Converts the connections of the Kafka client.

use crate::broker::{Acks, ConnectionState, ConnectionStatus};
use crate::kafka::producer::links::{Link, LinkState};
use crate::kafka::producer::message::AcksLevel;

pub(super) fn connection(link: Link) -> ConnectionStatus {
    let acks = match link.acks {
        AcksLevel::None => Acks::None,
        AcksLevel::Leader => Acks::Leader,
        AcksLevel::All => Acks::All,
    };
    let (state, time, reason) = match link.state {
        LinkState::Connected => (ConnectionState::Connected, None, String::new()),
        LinkState::Idle => (ConnectionState::Idle, None, String::new()),
        LinkState::Connecting { since } => (ConnectionState::Connecting, Some(since), String::new()),
        LinkState::Silent { since } => (ConnectionState::Silent, Some(since), String::new()),
        LinkState::Throttled { until } => (ConnectionState::Throttled, Some(until), String::new()),
        LinkState::BackOff { since, reason } => (ConnectionState::BackOff, since, reason),
    };
    ConnectionStatus { broker: link.broker, acks, state, time, reason }
}
