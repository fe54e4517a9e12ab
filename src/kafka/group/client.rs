//! A member of a consumer group with its thread, which owns the connection to the coordinator.
//!
//! The thread sends one request at a time. The coordinator holds joins and syncs back until the other members have
//! joined, so no heartbeats are sent meanwhile and commits wait. Events go to the owner through a bounded channel; when
//! the owner does not take them, heartbeats continue until `MAX_PENDING_EVENTS`, then the session expires.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
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
use crate::kafka::protocol::offset_commit::{GroupMemberId, OffsetCommitRequest, PartitionCommit};
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

/// An offset to commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    /// Number of the partition.
    pub partition: i32,
    /// The next offset to consume.
    pub offset: i64,
    /// Leader epoch of the last consumed message; -1 if unknown.
    pub leader_epoch: i32,
    /// Text that is kept with the offset, at most 32,767 bytes.
    pub metadata: String,
}

/// Why offsets were not committed, or may not have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("offsets of group {group} are not committed: {reason}")]
pub struct CommitError {
    /// The group.
    pub group: Arc<str>,
    /// The error code of the first partition that was refused. ILLEGAL_GENERATION, UNKNOWN_MEMBER_ID and
    /// FENCED_INSTANCE_ID mean that the partitions are lost.
    pub error_code: Option<i16>,
    /// What happened, as an error text.
    pub reason: String,
}

enum Command {
    Released(ReleaseToken),
    Commit { topics: Vec<(Arc<str>, Vec<CommittedOffset>)>, deadline: Instant, reply: Sender<Result<(), CommitError>> },
}

/// A member of a group. Dropping the value stops the thread without leaving the group.
pub struct GroupClient {
    group: Arc<str>,
    events: Receiver<GroupEvent>,
    commands: Sender<Command>,
    stop: Stop,
    leaves: Arc<AtomicBool>,
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
        // Not bounded: each release answers an event, and each commit has a thread that waits for it.
        let (commands, command_receiver) = unbounded();
        let stop = supervisor.stop().child();
        let leaves = Arc::new(AtomicBool::new(false));
        let blocked = Arc::new(Mutex::new(None));
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
        Ok(GroupClient { group: Arc::clone(&config.group_id), events, commands, stop, leaves })
    }

    /// Returns the events, which must be taken in order. The channel closes when the thread has ended.
    pub fn events(&self) -> &Receiver<GroupEvent> {
        &self.events
    }

    /// The owner no longer works on the partitions of the event with this token.
    pub fn released(&self, token: ReleaseToken) {
        let _ = self.commands.send(Command::Released(token));
    }

    /// Commits offsets as this member, in its generation; blocks until `deadline` at the latest. An error without an
    /// error code does not say whether the offsets were committed.
    pub fn commit(&self, topics: Vec<(Arc<str>, Vec<CommittedOffset>)>, deadline: Instant) -> Result<(), CommitError> {
        let (reply, result) = bounded(1);
        let failed = |reason: &str| CommitError { group: self.group.clone(), error_code: None, reason: reason.into() };
        let command = Command::Commit { topics, deadline, reply };
        self.commands.send(command).map_err(|_| failed("the member has ended"))?;
        result.recv_deadline(deadline).unwrap_or_else(|_| Err(failed("no response before the deadline")))
    }

    /// Leaves the group, unless the member is a static one. The owner must have stopped work on all partitions: other
    /// members get them at once. Does not block; the thread ends at most a few seconds later.
    pub fn close(self) {
        self.leaves.store(true, Ordering::Release);
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
    leaves: Arc<AtomicBool>,
    /// Closes the connection while the thread waits for a join or sync.
    blocked: Arc<Mutex<Option<Disconnect>>>,
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
            match next {
                Next::Wait(until) => self.wait(until),
                Next::Ended => self.wait(now + self.config.session_timeout),
                next => {
                    self.perform(next);
                    self.wait(now);
                }
            }
        }
        if self.leaves.load(Ordering::Acquire)
            && let Some(request) = self.member.leave()
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

    /// Returns the deadline of a request that nobody holds back. The end of the lease must be reported in time, so the
    /// thread must not be blocked then.
    fn soon(&self) -> Instant {
        let now = Instant::now();
        let soon = now + self.request_timeout;
        self.member.lease_end().filter(|end| now < *end).map_or(soon, |end| end.min(soon))
    }

    /// Sends a request to the coordinator, looking it up if need be. A request that `may_block` ends with the stop.
    fn call<R: Request>(&mut self, request: &R, deadline: Instant, may_block: bool) -> Result<R::Response, String> {
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
        result.map_err(|cause| {
            if cause.kind != ConnectionErrorKind::Unsupported {
                self.pool.drop_connection(coordinator.id);
            }
            cause.to_string()
        })
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
            Command::Commit { topics, deadline, reply } => {
                if Instant::now() < deadline {
                    let result = self.commit(&topics, deadline);
                    let _ = reply.send(result);
                }
            }
        }
    }

    fn commit(&mut self, topics: &[(Arc<str>, Vec<CommittedOffset>)], deadline: Instant) -> Result<(), CommitError> {
        let group = Arc::clone(&self.config.group_id);
        let failed = |reason: String| CommitError { group: Arc::clone(&group), error_code: None, reason };
        let Some((member_id, generation)) = self.member.identity() else {
            return Err(failed("the member is in no generation of the group".into()));
        };
        let member = GroupMemberId { member_id, generation, instance_id: self.config.instance_id.clone() };
        let partition = |committed: &CommittedOffset| (committed.partition, committed.offset, committed.leader_epoch);
        let mut commits = Vec::new();
        for (topic, offsets) in topics {
            let mut partitions = Vec::new();
            for committed in offsets {
                let (partition, offset, leader_epoch) = partition(committed);
                if committed.metadata.len() > i16::MAX as usize || topic.len() > i16::MAX as usize {
                    return Err(failed("the metadata of an offset has more than 32,767 bytes".into()));
                }
                partitions.push(PartitionCommit {
                    partition,
                    offset,
                    leader_epoch,
                    metadata: Some(&committed.metadata),
                });
            }
            commits.push((Arc::clone(topic), partitions));
        }
        let request = OffsetCommitRequest { group: &group, member: Some(&member), topics: &commits };
        let deadline = deadline.min(self.soon());
        let response = self.call(&request, deadline, false).map_err(failed)?;
        for (topic, partitions) in response.topics {
            for (partition, code) in partitions {
                if code != 0 {
                    self.member.commit_refused(Instant::now(), code, generation);
                    let reason = format!("{topic}-{partition}: {}", error_code::name(code));
                    return Err(CommitError { group, error_code: Some(code), reason });
                }
            }
        }
        Ok(())
    }
}
