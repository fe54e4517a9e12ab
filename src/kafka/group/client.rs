//! A member of a consumer group with its thread, which owns the connection to the coordinator.
//!
//! The thread sends one request at a time. The coordinator holds joins and syncs back until the other members have
//! joined, so no heartbeats are sent meanwhile. The owner commits offsets by [`OffsetReader`](crate::kafka::offsets)
//! with the member's [`identity`](GroupClient::identity), on another connection, so that a commit waits for no join.
//! Events go to the owner through a bounded channel; when the owner does not take them, heartbeats continue until
//! `MAX_PENDING_EVENTS`, then the session expires.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};
use log::{debug, info, warn};

use super::assignor::PartitionCounts;
use super::config::GroupConfig;
use super::member::{Member, Next};
use super::{GroupEvent, ReleaseToken};
use crate::kafka::broker_pool::BrokerPool;
use crate::kafka::config::BrokerAddress;
use crate::kafka::connection::{ConnectionErrorKind, Connector, Disconnect};
use crate::kafka::error_code::{self, INVALID_TOPIC_EXCEPTION, TOPIC_AUTHORIZATION_FAILED, UNKNOWN_TOPIC_OR_PARTITION};
use crate::kafka::metadata::{BrokerInfo, MetadataTopics};
use crate::kafka::metadata_client::MetadataClient;
use crate::kafka::protocol::Request;
use crate::kafka::protocol::heartbeat::HeartbeatResponse;
use crate::kafka::protocol::join_group::JoinGroupResponse;
use crate::kafka::protocol::leave_group::LeaveGroupResponse;
use crate::kafka::protocol::offset_commit::GroupMemberId;
use crate::kafka::protocol::sync_group::SyncGroupResponse;
use crate::locks::lock;
use crate::shutdown::Stop;
use crate::supervise::Supervisor;

/// Events in the channel to the owner.
const EVENT_CAPACITY: usize = 16;
/// Events that wait for room in the channel; with more, the member pauses.
const MAX_PENDING_EVENTS: usize = 64;
/// Longest time to leave the group.
const MAX_LEAVE: Duration = Duration::from_secs(5);
/// Time after the rebalance timeout in which the response to a join must arrive, as in the Java client.
const JOIN_GRACE: Duration = Duration::from_secs(5);

/// A member as the coordinator knows it, for offset commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Member id, generation and instance id.
    pub member: GroupMemberId,
    /// Number of the events [`GroupEvent::Lost`] before this identity. The owner must not commit an offset of a
    /// partition that was lost: it compares the number with the events that it has taken.
    pub losses: u64,
}

/// A response with the time for which the coordinator must receive no request.
trait Throttled {
    fn throttle_time_ms(&self) -> i32;
}

macro_rules! throttled {
    ($($response:ty),*) => {
        $(impl Throttled for $response {
            fn throttle_time_ms(&self) -> i32 {
                self.throttle_time_ms
            }
        })*
    };
}

throttled!(JoinGroupResponse, SyncGroupResponse, HeartbeatResponse, LeaveGroupResponse);

enum Command {
    Released(ReleaseToken),
    /// The error code of a commit in a generation.
    CommitRefused(i16, i32),
}

/// A member of a group. Dropping the value stops the thread without leaving the group.
pub struct GroupClient {
    events: Receiver<GroupEvent>,
    commands: Sender<Command>,
    identity: Arc<Mutex<Option<Identity>>>,
    stop: Stop,
    /// Set when the member leaves: whether for good.
    leaves: Arc<OnceLock<bool>>,
}

impl GroupClient {
    /// Joins a group in two threads of `supervisor`, which end with its stop. Fails if the settings are invalid.
    pub fn start(
        supervisor: &Supervisor,
        connector: Connector,
        bootstrap: Vec<BrokerAddress>,
        config: GroupConfig,
    ) -> Result<GroupClient, String> {
        config.validate()?;
        let config = Arc::new(config);
        let (event_sender, events) = bounded(EVENT_CAPACITY);
        // Not bounded: each release answers an event, and each refused commit is one that the owner has waited for.
        let (commands, command_receiver) = unbounded();
        let stop = supervisor.stop().child();
        let leaves = Arc::new(OnceLock::new());
        let blocked = Arc::new(Mutex::new(None));
        let identity = Arc::new(Mutex::new(None));
        let driver = Driver {
            member: Member::new(Arc::clone(&config)),
            metadata: MetadataClient::new(connector.clone(), bootstrap),
            request_timeout: connector.config().request_timeout.min(config.session_timeout / 3),
            pool: BrokerPool::new(connector),
            coordinator: None,
            events: event_sender,
            commands: command_receiver,
            stop: stop.clone(),
            leaves: Arc::clone(&leaves),
            blocked: Arc::clone(&blocked),
            identity: Arc::clone(&identity),
            refresh_at: Instant::now() + config.metadata_max_age,
            config: Arc::clone(&config),
            last_failure: String::new(),
        };
        supervisor.spawn_task("kafka-group", move || driver.run());
        let stopped = stop.clone();
        supervisor.spawn_task("kafka-group-end", move || {
            stopped.wait();
            // Ends the wait for a join or sync that the coordinator holds back.
            let disconnect: Option<Disconnect> = lock(&blocked).take();
            if let Some(disconnect) = disconnect {
                disconnect.disconnect();
            }
        });
        Ok(GroupClient { events, commands, identity, stop, leaves })
    }

    /// Returns the events, which must be taken in order. The channel closes when the thread has ended.
    pub fn events(&self) -> &Receiver<GroupEvent> {
        &self.events
    }

    /// The owner no longer works on the partitions of the event with this token.
    pub fn released(&self, token: ReleaseToken) {
        let _ = self.commands.send(Command::Released(token));
    }

    /// Returns the member as the coordinator knows it; `None` if it is in no generation.
    pub fn identity(&self) -> Option<Identity> {
        lock(&self.identity).clone()
    }

    /// An offset commit in `generation` was refused with this error code. If the code says that the membership has
    /// ended, the event [`GroupEvent::Lost`] follows.
    pub fn commit_refused(&self, error_code: i16, generation: i32) {
        let _ = self.commands.send(Command::CommitRefused(error_code, generation));
    }

    /// Leaves the group; a static member does so only `for_good`. The owner must have stopped work on all partitions:
    /// other members get them at once. Does not block; the thread ends at most a few seconds later.
    pub fn close(self, for_good: bool) {
        self.leaves.get_or_init(|| for_good);
    }
}

impl Drop for GroupClient {
    fn drop(&mut self) {
        self.stop.trigger();
    }
}

struct Driver {
    config: Arc<GroupConfig>,
    member: Member,
    metadata: MetadataClient,
    pool: BrokerPool,
    coordinator: Option<BrokerInfo>,
    /// Deadline of a request that the coordinator does not hold back: leaves time for more than one in a session.
    request_timeout: Duration,
    events: Sender<GroupEvent>,
    commands: Receiver<Command>,
    stop: Stop,
    leaves: Arc<OnceLock<bool>>,
    /// Closes the connection while the thread waits for a join or sync.
    blocked: Arc<Mutex<Option<Disconnect>>>,
    /// The identity for offset commits, as the owner reads it.
    identity: Arc<Mutex<Option<Identity>>>,
    refresh_at: Instant,
    /// The failure that was logged last.
    last_failure: String,
}

impl Driver {
    fn run(mut self) {
        while !self.stop.is_triggered() {
            self.refresh_partition_counts();
            let now = Instant::now();
            // The owner does not take its events: without heartbeats its partitions go to other members.
            let is_stuck = self.member.pending_events() >= MAX_PENDING_EVENTS;
            let next = if is_stuck { Next::Wait(now + self.config.heartbeat_interval) } else { self.member.next(now) };
            self.publish_identity();
            match next {
                Next::Wait(until) => self.wait(until),
                Next::Ended => self.wait(now + self.config.session_timeout),
                next => {
                    self.perform(next);
                    // Before the owner receives the events: it commits in the generation of what it was assigned.
                    self.publish_identity();
                    self.wait(now);
                }
            }
        }
        if let Some(for_good) = self.leaves.get().copied()
            && let Some(request) = self.member.leave(for_good)
        {
            let left = self.call(&request, Instant::now() + MAX_LEAVE, false).map(|response| response.error_code);
            match left {
                Ok(0) => info!("member left group {}", self.config.group_id),
                Ok(code) => {
                    warn!("member could not leave group {}: {}", self.config.group_id, error_code::name(code));
                }
                Err(reason) => warn!("member could not leave group {}: {reason}", self.config.group_id),
            }
        }
    }

    fn publish_identity(&self) {
        let identity = self.member.identity().map(|(member_id, generation)| Identity {
            member: GroupMemberId { member_id, generation, instance_id: self.config.instance_id.clone() },
            losses: self.member.losses(),
        });
        let mut known = lock(&self.identity);
        if *known != identity {
            *known = identity;
        }
    }

    /// Sends a request and passes its response to the member.
    fn perform(&mut self, next: Next) {
        let now = Instant::now();
        let (soon, late) = (self.soon(), now + self.config.rebalance_timeout + JOIN_GRACE);
        let result = match next {
            Next::Join(request) => self.call(&request, late, true).map(|response| {
                self.member.join_answered(Instant::now(), response);
            }),
            Next::Sync(request) => self.call(&request, late, true).map(|response| {
                self.member.sync_answered(Instant::now(), &response);
            }),
            Next::Heartbeat(request) => self.call(&request, soon, false).map(|response| {
                self.member.heartbeat_answered(Instant::now(), response);
            }),
            Next::PartitionCounts(topics) => self.partition_counts(topics).map(|counts| {
                self.refresh_at = Instant::now() + self.config.metadata_max_age;
                self.member.set_partition_counts(counts);
            }),
            Next::Wait(_) | Next::Ended => Ok(()),
        };
        match result {
            Ok(()) => self.last_failure.clear(),
            Err(reason) => {
                self.member.request_failed(Instant::now());
                if reason == self.last_failure {
                    debug!("group {}: {reason}", self.config.group_id);
                } else {
                    warn!("group {}: {reason}, retrying", self.config.group_id);
                    self.last_failure = reason;
                }
            }
        }
    }

    /// Returns the deadline of a request whose response the coordinator does not delay. The end of the lease must be
    /// reported in time, so the thread must not be blocked then.
    fn soon(&self) -> Instant {
        let now = Instant::now();
        let soon = now + self.request_timeout;
        self.member.lease_end().filter(|end| now < *end).map_or(soon, |end| end.min(soon))
    }

    /// Sends a request to the coordinator, looking it up if need be. A request that `may_block` ends with the stop.
    fn call<R: Request<Response: Throttled>>(
        &mut self,
        request: &R,
        deadline: Instant,
        may_block: bool,
    ) -> Result<R::Response, String> {
        let soon = deadline.min(self.soon());
        if self.member.take_coordinator_is_unknown() {
            self.coordinator = None;
        }
        let coordinator = match &self.coordinator {
            Some(coordinator) => coordinator.clone(),
            None => {
                let found = self.metadata.coordinator(&self.config.group_id, soon).map_err(|cause| cause.reason)?;
                self.coordinator.insert(found).clone()
            }
        };
        let connection = self.pool.connection(coordinator.id, &coordinator.address, soon);
        let result = connection.and_then(|connection| {
            if may_block {
                *lock(&self.blocked) = Some(connection.disconnect_handle());
                if self.stop.is_triggered() {
                    connection.disconnect_handle().disconnect();
                }
            }
            connection.call(request, deadline)
        });
        *lock(&self.blocked) = None;
        match result {
            Ok(response) => {
                self.pool.throttle(coordinator.id, response.throttle_time_ms());
                Ok(response)
            }
            Err(cause) => {
                if cause.kind != ConnectionErrorKind::Unsupported {
                    self.pool.drop_connection(coordinator.id);
                }
                Err(cause.to_string())
            }
        }
    }

    fn partition_counts(&mut self, topics: BTreeSet<Arc<str>>) -> Result<PartitionCounts, String> {
        let names = MetadataTopics::Names(topics.into_iter().collect());
        let response = self.metadata.request(names, self.soon());
        let mut counts = PartitionCounts::new();
        for topic in response.map_err(|cause| cause.reason)?.topics {
            match topic.error_code {
                0 => {
                    counts.insert(topic.name, i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX));
                }
                // Not assigned until it exists and may be read.
                UNKNOWN_TOPIC_OR_PARTITION | TOPIC_AUTHORIZATION_FAILED | INVALID_TOPIC_EXCEPTION => {}
                code => return Err(format!("no metadata of topic {}: {}", topic.name, error_code::name(code))),
            }
        }
        Ok(counts)
    }

    /// The leader watches the partition counts: new partitions need a rebalance.
    fn refresh_partition_counts(&mut self) {
        if Instant::now() < self.refresh_at {
            return;
        }
        self.refresh_at = Instant::now() + self.config.metadata_max_age;
        if let Some(topics) = self.member.led_topics() {
            match self.partition_counts(topics) {
                Ok(counts) => self.member.refresh_partition_counts(&counts),
                Err(reason) => warn!("group {}: partition counts are unknown: {reason}", self.config.group_id),
            }
        }
    }

    /// Delivers events and takes commands until `until`, a command or the stop.
    fn wait(&mut self, until: Instant) {
        let until = until.min(self.refresh_at);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Some(event) = self.member.peek_event().cloned() else {
                select! {
                    recv(self.commands) -> command => if let Ok(command) = command { self.obey(command) },
                    recv(self.stop.closed()) -> _ => {}
                    default(left) => {}
                }
                return;
            };
            select! {
                send(self.events, event) -> sent => if sent.is_ok() {
                    self.member.take_event();
                } else {
                    // The owner is gone.
                    return self.stop.trigger();
                },
                recv(self.commands) -> command => {
                    if let Ok(command) = command {
                        self.obey(command);
                    }
                    return;
                },
                recv(self.stop.closed()) -> _ => return,
                default(left) => return,
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Released(token) => self.member.released(token),
            Command::CommitRefused(error_code, generation) => {
                self.member.commit_refused(Instant::now(), error_code, generation);
            }
        }
    }
}

#[cfg(test)]
mod tests;
