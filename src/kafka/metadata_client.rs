//! Requests that any broker can answer: metadata, and the coordinators of consumer groups.
//!
//! The client uses its open connection; if that fails, it tries the brokers of the last response and the bootstrap
//! addresses in random order, again and again until the deadline. The first attempts are short, so that a broker that
//! accepts connections and does not answer costs about a second; later ones are longer, for brokers that are slow.
//! The bootstrap addresses always stay among the candidates, because the addresses that a cluster advertises may be
//! unreachable.
//!
//! Invariants: a request never creates a topic; no method blocks beyond its deadline; a response without brokers, which
//! a broker returns while it starts, is a failed attempt and replaces nothing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::broker_pool::{PooledBroker, new_backoff, sleep_until};
use super::config::BrokerAddress;
use super::connection::{ConnectionError, ConnectionErrorKind, Connector};
use super::error_code;
use super::metadata::{BrokerId, BrokerInfo, MetadataRequest, MetadataResponse, MetadataTopics, TopicMetadata};
use super::protocol::find_coordinator::{Coordinator, FindCoordinatorRequest};
use crate::random::random;

/// Longest time of an attempt in the first round over all candidates; doubles with each round.
const FIRST_ATTEMPT: Duration = Duration::from_secs(1);
/// Shortest time of an attempt, unless the deadline is nearer. An attempt has at most half of the time that is left.
const MIN_ATTEMPT: Duration = Duration::from_millis(100);
/// Longest name of a topic.
pub(super) const MAX_TOPIC_NAME_BYTES: usize = 249;
/// Upper bound of the topics or groups of a request, which bounds its size and that of the response.
pub(super) const MAX_NAMES: usize = 2_000;
/// Longest string of the protocol.
pub(super) const MAX_STRING_BYTES: usize = i16::MAX as usize;
/// Upper bound of the addresses in an error text.
const MAX_LISTED_FAILURES: usize = 16;

/// Why a request that any broker can answer failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ClientError {
    /// The error code with which a broker refused the request; `None` if no broker answered.
    pub error_code: Option<i16>,
    /// Whether a retry needs another configuration: all brokers refused the credentials or are too old, or there is no
    /// address.
    pub is_permanent: bool,
    /// What happened, as an error text: each address that was tried, and why that failed.
    pub reason: String,
}

/// Requests metadata from any broker of a cluster. Used by one thread.
pub struct MetadataClient {
    connector: Connector,
    bootstrap: Vec<BrokerAddress>,
    /// The brokers of the last response.
    brokers: HashMap<BrokerId, BrokerInfo>,
    /// The broker that answered last.
    current: Option<PooledBroker>,
}

/// The options of a metadata request.
#[derive(Clone, Copy)]
pub(super) struct MetadataOptions {
    pub(super) allow_auto_create: bool,
    pub(super) include_rights: bool,
}

/// The options of most requests.
pub(super) const NO_CREATION: MetadataOptions = MetadataOptions { allow_auto_create: false, include_rights: false };

/// The outcome of an attempt whose connection worked: the result, or why the response cannot be used.
pub(super) type Answer<T> = Result<T, String>;

impl MetadataClient {
    /// Makes a client without a connection. `bootstrap`: the addresses to begin with.
    pub fn new(connector: Connector, bootstrap: Vec<BrokerAddress>) -> Self {
        MetadataClient { connector, bootstrap, brokers: HashMap::new(), current: None }
    }

    /// Returns the brokers of the last response, by id.
    pub fn brokers(&self) -> &HashMap<BrokerId, BrokerInfo> {
        &self.brokers
    }

    /// Whether the broker of the last response throttles this client. Such a broker is up, although requests wait.
    pub fn is_throttled(&self) -> bool {
        self.current.as_ref().is_some_and(PooledBroker::is_throttled)
    }

    /// Requests the brokers and these topics. Every topic is in the response once; with
    /// [`MetadataTopics::Names`] there is no other topic, and the response can lack a topic if the broker omits it.
    /// Errors of single topics and partitions are in the response and are not retried.
    pub fn request(&mut self, topics: MetadataTopics, deadline: Instant) -> Result<MetadataResponse, ClientError> {
        self.request_once_each(topics, NO_CREATION, deadline)
    }

    /// Like [`request`](Self::request); a broker with `auto.create.topics.enable` creates the topics that do not exist.
    /// Such a broker reports a topic as missing or without a leader at first.
    pub fn request_or_create(
        &mut self,
        names: Vec<Arc<str>>,
        deadline: Instant,
    ) -> Result<MetadataResponse, ClientError> {
        let options = MetadataOptions { allow_auto_create: true, ..NO_CREATION };
        self.request_once_each(MetadataTopics::Names(names), options, deadline)
    }

    fn request_once_each(
        &mut self,
        topics: MetadataTopics,
        options: MetadataOptions,
        deadline: Instant,
    ) -> Result<MetadataResponse, ClientError> {
        let mut response = match topics {
            MetadataTopics::Names(names) => self.request_names(names, options, deadline)?,
            topics => self.request_topics(topics, options, deadline)?,
        };
        let mut seen = HashSet::new();
        response.topics.retain(|topic| seen.insert(Arc::clone(&topic.name)));
        Ok(response)
    }

    fn request_names(
        &mut self,
        mut names: Vec<Arc<str>>,
        options: MetadataOptions,
        deadline: Instant,
    ) -> Result<MetadataResponse, ClientError> {
        names.sort_unstable();
        names.dedup();
        let (names, invalid): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name.len() <= MAX_TOPIC_NAME_BYTES);
        let mut chunks = names.chunks(MAX_NAMES);
        // An empty list of names is a request for no topics, not for all.
        let first = chunks.next().map_or(MetadataTopics::None, |chunk| MetadataTopics::Names(chunk.to_vec()));
        let mut merged = self.request_topics(first, options, deadline)?;
        for chunk in chunks {
            let mut topics = merged.topics;
            merged = self.request_topics(MetadataTopics::Names(chunk.to_vec()), options, deadline)?;
            topics.append(&mut merged.topics);
            merged.topics = topics;
        }
        merged.topics.retain(|topic| names.binary_search(&topic.name).is_ok());
        // The broker would answer the same, but the protocol has no room for every name.
        let error_code = error_code::INVALID_TOPIC_EXCEPTION;
        let invalid = invalid.into_iter().map(|name| TopicMetadata {
            name,
            id: None,
            error_code,
            may_write: None,
            partitions: Vec::new(),
        });
        merged.topics.extend(invalid);
        Ok(merged)
    }

    pub(super) fn request_topics(
        &mut self,
        topics: MetadataTopics,
        options: MetadataOptions,
        deadline: Instant,
    ) -> Result<MetadataResponse, ClientError> {
        let MetadataOptions { allow_auto_create, include_rights } = options;
        let request = MetadataRequest { topics, allow_auto_create, include_rights };
        let response = self.on_any_broker("metadata request", deadline, |broker, until| {
            let response = broker.call(&request, until)?;
            broker.throttle(response.throttle_time_ms);
            match response.brokers.is_empty() {
                true => Ok(Err("the broker knows no brokers yet".to_owned())),
                false => Ok(Ok(response)),
            }
        })?;
        self.brokers = response.brokers.iter().map(|broker| (broker.id, broker.clone())).collect();
        Ok(response)
    }

    /// Returns the coordinator of a consumer group. Waits until there is one, at most until `deadline`: the first
    /// lookup in a cluster makes the broker create the topic of the offsets.
    pub fn coordinator(&mut self, group: &str, deadline: Instant) -> Result<BrokerInfo, ClientError> {
        let group: Arc<str> = group.into();
        let mut backoff = new_backoff();
        let mut refusal = None;
        loop {
            let mut found = self.coordinators(std::slice::from_ref(&group), deadline);
            let result = found.remove(&group).unwrap_or_else(|| Err(missing_coordinator(&group)));
            match result {
                Err(failure) if failure.error_code.is_some_and(error_code::is_retriable) => refusal = Some(failure),
                // Without an error code all brokers failed, and the time is used up: the last answer says more.
                Err(failure) if failure.error_code.is_none() => return Err(refusal.unwrap_or(failure)),
                result => return result,
            }
            let retry_at = Instant::now() + backoff.next();
            if retry_at >= deadline
                && let Some(refusal) = refusal
            {
                return Err(refusal);
            }
            sleep_until(retry_at, deadline);
        }
    }

    /// Looks up the coordinator of each group once. An error with a retriable code, or without a code, is transient.
    pub(super) fn coordinators(
        &mut self,
        groups: &[Arc<str>],
        deadline: Instant,
    ) -> HashMap<Arc<str>, Result<BrokerInfo, ClientError>> {
        let mut found = HashMap::new();
        let (groups, invalid): (Vec<_>, Vec<_>) =
            groups.iter().cloned().partition(|group| group.len() <= MAX_STRING_BYTES);
        for group in invalid {
            let reason = format!("the group id has {} bytes, the limit is {MAX_STRING_BYTES}", group.len());
            let error_code = Some(error_code::INVALID_GROUP_ID);
            found.insert(group, Err(ClientError { error_code, is_permanent: true, reason }));
        }
        let mut rest = &groups[..];
        while !rest.is_empty() {
            let answer = self.on_any_broker("coordinator lookup", deadline, |broker, until| {
                let version = broker.version::<FindCoordinatorRequest>(until)?;
                let count = if version < FindCoordinatorRequest::FIRST_BATCH { 1 } else { MAX_NAMES };
                let requested = &rest[..count.min(rest.len())];
                let response = broker.call(&FindCoordinatorRequest { groups: requested }, until)?;
                broker.throttle(response.throttle_time_ms);
                Ok(Ok((requested, response.coordinators)))
            });
            match answer {
                Ok((requested, coordinators)) => {
                    rest = &rest[requested.len()..];
                    found.extend(found_coordinators(requested, coordinators));
                }
                Err(failure) => {
                    found.extend(rest.iter().map(|group| (Arc::clone(group), Err(failure.clone()))));
                    break;
                }
            }
        }
        found
    }

    /// Calls `attempt` with one broker after another until it returns a result, at most until `deadline`. `what` names
    /// the request in the error text.
    pub(super) fn on_any_broker<T>(
        &mut self,
        what: &str,
        deadline: Instant,
        mut attempt: impl FnMut(&mut PooledBroker, Instant) -> Result<Answer<T>, ConnectionError>,
    ) -> Result<T, ClientError> {
        let mut failures = Failures::default();
        let mut backoff = new_backoff();
        for round in 0.. {
            let mut is_final = true;
            let candidates = self.candidates();
            let is_only_one = candidates.len() == 1;
            for address in candidates {
                if self.connector.is_ended() {
                    return Err(failures.into_error(what, false));
                }
                // The other attempts leave the open connection alone: it may only be throttled.
                let current = self.current.take_if(|current| *current.address() == address);
                let is_current = current.is_some();
                let has_alternative = !is_only_one || is_current;
                let Some(until) = attempt_deadline(round, has_alternative, Instant::now(), deadline) else {
                    self.current = current.or_else(|| self.current.take());
                    return Err(failures.into_error(what, false));
                };
                let mut broker = current.unwrap_or_else(|| PooledBroker::new(self.connector.clone(), address));
                let reason = match attempt(&mut broker, until) {
                    Ok(Ok(result)) => {
                        self.current = Some(broker);
                        return Ok(result);
                    }
                    Ok(Err(reason)) => {
                        is_final = false;
                        reason
                    }
                    Err(failure) => {
                        is_final &= is_permanent(failure.kind);
                        failure.reason
                    }
                };
                failures.add(broker.address(), reason);
                if broker.is_connected() && (is_current || self.current.is_none()) {
                    self.current = Some(broker);
                }
            }
            if is_final {
                return Err(failures.into_error(what, true));
            }
            sleep_until(Instant::now() + backoff.next(), deadline);
        }
        Err(failures.into_error(what, false))
    }

    /// Returns the addresses to try: that of the open connection, then the others in random order.
    fn candidates(&self) -> Vec<BrokerAddress> {
        let current = self.current.as_ref().map(PooledBroker::address);
        let known = self.brokers.values().map(|broker| &broker.address);
        let others: HashSet<_> = known.chain(&self.bootstrap).filter(|address| Some(*address) != current).collect();
        let mut others: Vec<_> = others.into_iter().map(|address| (random(), address)).collect();
        others.sort_unstable_by_key(|(order, _)| *order);
        current.into_iter().chain(others.into_iter().map(|(_, address)| address)).cloned().collect()
    }
}

/// Whether another attempt needs another configuration or another broker version.
fn is_permanent(kind: ConnectionErrorKind) -> bool {
    matches!(kind, ConnectionErrorKind::Denied | ConnectionErrorKind::Unsupported)
}

/// Returns when an attempt ends; `None` after the deadline. `has_alternative`: there is another broker or, after the
/// attempt on an open connection, a new connection to try; without one the attempt has all the time that is left.
fn attempt_deadline(round: u32, has_alternative: bool, now: Instant, deadline: Instant) -> Option<Instant> {
    let left = deadline.checked_duration_since(now).filter(|left| !left.is_zero())?;
    if !has_alternative {
        return Some(deadline);
    }
    let longest = FIRST_ATTEMPT.saturating_mul(1 << round.min(20));
    Some(deadline.min(now + longest.min(left / 2).max(MIN_ATTEMPT)))
}

/// Returns the coordinator of each requested group.
fn found_coordinators(
    requested: &[Arc<str>],
    coordinators: Vec<Coordinator>,
) -> impl Iterator<Item = (Arc<str>, Result<BrokerInfo, ClientError>)> {
    let mut by_group: HashMap<String, Coordinator> = HashMap::new();
    for coordinator in coordinators {
        // Versions below 4 have one group and do not repeat its id.
        let group = coordinator.group.clone().unwrap_or_else(|| requested[0].to_string());
        by_group.insert(group, coordinator);
    }
    requested.iter().map(move |group| (Arc::clone(group), found_coordinator(group, by_group.get(&**group).cloned())))
}

fn found_coordinator(group: &str, coordinator: Option<Coordinator>) -> Result<BrokerInfo, ClientError> {
    let coordinator = coordinator.ok_or_else(|| missing_coordinator(group))?;
    if coordinator.error_code == error_code::NONE {
        return Ok(coordinator.broker);
    }
    let name = error_code::name(coordinator.error_code);
    let message = coordinator.error_message.filter(|message| !message.is_empty());
    let message = message.map(|message| format!(" ({message})")).unwrap_or_default();
    let reason = format!("no coordinator for group \"{group}\": {name}{message}");
    Err(ClientError { error_code: Some(coordinator.error_code), is_permanent: false, reason })
}

fn missing_coordinator(group: &str) -> ClientError {
    let error_code = Some(error_code::COORDINATOR_NOT_AVAILABLE);
    ClientError {
        error_code,
        is_permanent: false,
        reason: format!("the response lacks the coordinator of group \"{group}\""),
    }
}

/// The last failure of each address, for the error text.
#[derive(Default)]
struct Failures {
    listed: Vec<(BrokerAddress, String)>,
    has_more: bool,
}

impl Failures {
    fn add(&mut self, address: &BrokerAddress, reason: String) {
        if let Some((_, last)) = self.listed.iter_mut().find(|(listed, _)| listed == address) {
            *last = reason;
        } else if self.listed.len() < MAX_LISTED_FAILURES {
            self.listed.push((address.clone(), reason));
        } else {
            self.has_more = true;
        }
    }

    fn into_error(self, what: &str, is_permanent: bool) -> ClientError {
        let mut reasons: Vec<_> =
            self.listed.iter().map(|(address, reason)| format!("broker {address}: {reason}")).collect();
        if self.has_more {
            reasons.push("other brokers failed, too".to_owned());
        }
        if reasons.is_empty() {
            reasons.push("there is no address to try, or no time".to_owned());
        }
        ClientError { error_code: None, is_permanent, reason: format!("{what} failed: {}", reasons.join("; ")) }
    }
}

#[cfg(test)]
mod tests;
