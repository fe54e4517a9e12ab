//! The connections of a producer as operators see them: one for each acks level and broker in use.

use std::time::Instant;

use super::client::KafkaProducer;
use super::level::Level;
use super::message::{AcksLevel, ProducerMessage};
use super::outcome::BrokerId;
use super::sender_handle::{Activity, SILENT_AFTER, SenderHandle};

/// The state of a connection to a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// It works.
    Connected,
    /// There is none, because nothing was sent for a while.
    Idle,
    /// It is being made.
    Connecting {
        /// When that began.
        since: Instant,
    },
    /// The broker has not answered for longer than usual.
    Silent {
        /// When the request was begun.
        since: Instant,
    },
    /// A quota of the broker delays the next request.
    Throttled {
        /// When it may be sent.
        until: Instant,
    },
    /// It failed, and the next attempt has not succeeded.
    BackOff {
        /// When it failed.
        since: Option<Instant>,
        /// Why, as an error text.
        reason: String,
    },
}

/// A connection to a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Number of the broker.
    pub broker: BrokerId,
    /// The acks level, which has its own connection.
    pub acks: AcksLevel,
    /// What it does.
    pub state: LinkState,
}

impl<M: ProducerMessage> KafkaProducer<M> {
    /// Returns the connections, by acks level and broker.
    pub fn links(&self) -> Vec<Link> {
        let now = Instant::now();
        let mut links: Vec<Link> = self.levels().iter().flat_map(|level| links_of(level, now)).collect();
        links.sort_by_key(|link| (link.broker, link.acks.number()));
        links
    }
}

fn links_of<M: ProducerMessage>(level: &Level<M>, now: Instant) -> Vec<Link> {
    let state = level.lock();
    let link = |(broker, sender): (&BrokerId, &SenderHandle)| Link {
        broker: *broker,
        acks: level.acks,
        state: state_of(sender, now),
    };
    state.senders.iter().map(link).collect()
}

fn state_of(sender: &SenderHandle, now: Instant) -> LinkState {
    if !sender.last_failure.is_empty() {
        return LinkState::BackOff { since: sender.failed_at, reason: sender.last_failure.clone() };
    }
    if let Some(until) = sender.quota.map(|quota| quota.until()).filter(|until| *until > now) {
        return LinkState::Throttled { until };
    }
    match sender.waits() {
        Some((Activity::Connecting, since)) => LinkState::Connecting { since },
        Some((_, since)) if now.saturating_duration_since(since) >= SILENT_AFTER => LinkState::Silent { since },
        _ if sender.disconnect.is_some() => LinkState::Connected,
        _ => LinkState::Idle,
    }
}

#[cfg(test)]
mod tests {
    use super::super::quota::Quota;
    use super::*;
    use crate::kafka::connection::Disconnect;
    use std::time::Duration;

    #[test]
    fn a_connection_has_the_state_that_matters_most() {
        let now = Instant::now();
        let mut sender = SenderHandle::default();
        assert_eq!(state_of(&sender, now), LinkState::Idle);
        sender.begin(Activity::Connecting, now);
        sender.disconnect = Some(Disconnect::new());
        assert_eq!(state_of(&sender, now), LinkState::Connecting { since: now });
        sender.begin(Activity::Producing, now);
        assert_eq!(state_of(&sender, now), LinkState::Connected);
        assert_eq!(state_of(&sender, now + SILENT_AFTER), LinkState::Silent { since: now });
        sender.quota = Some(Quota::throttled(now, Duration::from_secs(2), 1_000, 0));
        let until = now + Duration::from_secs(2);
        assert_eq!(state_of(&sender, now), LinkState::Throttled { until });
        sender.end(Activity::Idle);
        assert_eq!(state_of(&sender, until), LinkState::Connected, "the pause is over");
        (sender.last_failure, sender.failed_at) = ("connection refused".to_owned(), Some(now));
        let reason = "connection refused".to_owned();
        assert_eq!(state_of(&sender, now), LinkState::BackOff { since: Some(now), reason });
    }
}
