//! Faults: the misbehaviour of a broker, and the requests that it applies to.

use std::time::Duration;

use kafka_protocol::messages::ApiKey;

use super::codes;

/// The requests to which a fault applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The type of the request.
    pub api: ApiKey,
    /// Only at this broker.
    pub broker: Option<i32>,
    /// Only requests that name this topic. Error codes then apply to this topic alone.
    pub topic: Option<String>,
    /// Only requests that name this partition. Error codes then apply to this partition alone.
    pub partition: Option<i32>,
}

impl Scope {
    /// All requests of a type.
    pub fn api(api: ApiKey) -> Scope {
        Scope { api, broker: None, topic: None, partition: None }
    }

    /// Restricts the scope to a broker.
    pub fn at_broker(mut self, broker: i32) -> Scope {
        self.broker = Some(broker);
        self
    }

    /// Restricts the scope to a topic.
    pub fn topic(mut self, topic: &str) -> Scope {
        self.topic = Some(topic.to_owned());
        self
    }

    /// Restricts the scope to a partition of a topic.
    pub fn partition(self, topic: &str, partition: i32) -> Scope {
        Scope { partition: Some(partition), ..self.topic(topic) }
    }

    pub(super) fn names(&self, topic: &str, partition: i32) -> bool {
        self.topic.as_deref().is_none_or(|name| name == topic)
            && self.partition.is_none_or(|number| number == partition)
    }

    pub(super) fn matches(&self, api: ApiKey, broker: i32, targets: &[(String, i32)]) -> bool {
        self.api == api
            && self.broker.is_none_or(|id| id == broker)
            && (self.topic.is_none() || targets.iter().any(|(topic, partition)| self.names(topic, *partition)))
    }
}

/// An error code that a fault makes a broker answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InjectedError {
    /// Error code of the protocol.
    pub code: i16,
    /// Whether the request is carried out all the same, as after a replication that timed out.
    pub is_carried_out: bool,
    /// Broker id and epoch of the leader that the response names (Produce 10, Fetch 12).
    pub leader_hint: Option<(i32, i32)>,
}

/// What becomes of the response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResponseFault {
    /// It is never sent; the connection stays open.
    Never,
    /// The connection is closed instead.
    Close,
    /// The connection is closed after this many bytes of it.
    CloseWithin(usize),
    /// The connection is closed after it.
    CloseAfter,
    /// It has another correlation id.
    WrongCorrelationId,
    /// The last bytes of it are missing; its length says so.
    Truncated(usize),
    /// Random bytes take the place of its body; length and correlation id are right.
    Garbage,
    /// Its length field announces this many bytes.
    AnnouncedLength(i32),
    /// It comes byte by byte with this pause between them.
    Trickle(Duration),
}

/// What a broker does wrong with one request.
#[derive(Clone, Debug, Default)]
pub struct Fault {
    /// Time before the request is carried out. It is carried out even if the client has closed the connection
    /// meanwhile: so a test makes a late copy of a request that the client has given up.
    pub delay: Duration,
    /// Whether the request is carried out only after `TestCluster::release_held`.
    pub is_held: bool,
    /// Whether the request is dropped instead of being carried out.
    pub is_dropped: bool,
    /// Error code in the response.
    pub error: Option<InjectedError>,
    /// Time between carrying out the request and the response.
    pub response_delay: Duration,
    /// Whether the response is sent only after `TestCluster::release_held`.
    pub is_response_held: bool,
    /// `throttle_time_ms` in the response.
    pub throttle_ms: i32,
    /// What becomes of the response.
    pub response: Option<ResponseFault>,
}

impl Fault {
    /// The broker answers with an error code instead of carrying out the request.
    pub fn error(code: i16) -> Fault {
        let error = InjectedError { code, is_carried_out: false, leader_hint: None };
        Fault { error: Some(error), ..Fault::default() }
    }

    /// The broker carries out the request and answers with an error code all the same.
    pub fn error_after(code: i16) -> Fault {
        let error = InjectedError { code, is_carried_out: true, leader_hint: None };
        Fault { error: Some(error), ..Fault::default() }
    }

    /// NOT_LEADER_OR_FOLLOWER with the id and epoch of a leader.
    pub fn not_leader(leader: i32, epoch: i32) -> Fault {
        let mut fault = Fault::error(codes::NOT_LEADER_OR_FOLLOWER);
        fault.error = fault.error.map(|error| InjectedError { leader_hint: Some((leader, epoch)), ..error });
        fault
    }

    /// The request is carried out after this time.
    pub fn delay(delay: Duration) -> Fault {
        Fault { delay, ..Fault::default() }
    }

    /// The request is carried out after `TestCluster::release_held`, also if the client has closed the connection.
    pub fn held() -> Fault {
        Fault { is_held: true, ..Fault::default() }
    }

    /// The request is carried out at once and answered after `TestCluster::release_held`.
    pub fn response_held() -> Fault {
        Fault { is_response_held: true, ..Fault::default() }
    }

    /// The request is carried out at once and answered after this time.
    pub fn response_delay(response_delay: Duration) -> Fault {
        Fault { response_delay, ..Fault::default() }
    }

    /// The response has a throttle time.
    pub fn throttle(throttle_ms: i32) -> Fault {
        Fault { throttle_ms, ..Fault::default() }
    }

    /// The request is carried out, and something happens to the response.
    pub fn response(fault: ResponseFault) -> Fault {
        Fault { response: Some(fault), ..Fault::default() }
    }

    /// The request is neither carried out nor answered; the connection stays open.
    pub fn lost() -> Fault {
        Fault { is_dropped: true, ..Fault::response(ResponseFault::Never) }
    }

    /// The connection is closed and the request is not carried out.
    pub fn close_before() -> Fault {
        Fault { is_dropped: true, ..Fault::response(ResponseFault::Close) }
    }

    /// The request is carried out and the connection closed without response.
    pub fn close_unanswered() -> Fault {
        Fault::response(ResponseFault::Close)
    }

    /// Adds a delay before the request is carried out.
    pub fn after(mut self, delay: Duration) -> Fault {
        self.delay = delay;
        self
    }
}
