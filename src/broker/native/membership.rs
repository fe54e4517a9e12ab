//! Membership in a group, through [`GroupClient`].
//!
//! Invariant: no offset is committed once a loss of partitions is known to the client that the owner does not know of
//! yet: the offset might be that of a lost partition.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Select;

use super::config;
use super::group_offsets::NativeGroupOffsets;
use crate::broker::membership::{
    CommitError, CommittedOffset, GroupMembers, GroupOffsets, Membership, MembershipConfig, MembershipEvent,
    ReleaseToken,
};
use crate::broker::{BrokerConfig, PartitionId};
use crate::kafka::group::client::GroupClient;
use crate::kafka::group::config::GroupConfig;
use crate::kafka::group::{self, GroupEvent, LostReason, TopicPartition};
use crate::shutdown::Stop;
use crate::supervise::Supervisor;

/// Heartbeats in a session timeout.
const HEARTBEATS: u32 = 10;
/// Longest time between two heartbeats: that of the Java client.
const MAX_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(3);
/// Interval at which the leader of the group looks for added partitions.
const METADATA_INTERVAL: Duration = Duration::from_secs(5);

/// A member of a group with the client in `src/kafka`.
pub(in crate::broker) struct NativeMembership {
    client: GroupClient,
    offsets: NativeGroupOffsets,
    /// The threads of the client. They outlive the stop of the owner, which commits its last offsets after it.
    threads: Supervisor,
    topic: Arc<str>,
    /// Number of the losses that the owner knows of.
    losses: u64,
    has_failed: bool,
}

impl NativeMembership {
    /// Joins the group. No broker need be reachable. Fails if a file of the settings cannot be read.
    pub(in crate::broker) fn new(broker: &BrokerConfig, config: MembershipConfig) -> Result<Self, String> {
        let MembershipConfig { group, topic, instance_id, session_timeout, rebalance_timeout } = config;
        let connector = config::connector(broker, config::MAX_METADATA_RESPONSE_BYTES)?;
        let bootstrap = config::bootstrap(&broker.hosts)?;
        let offsets = NativeGroupOffsets::new(broker, Arc::clone(&group), Arc::clone(&topic))?;
        let group_config = GroupConfig {
            instance_id,
            session_timeout,
            rebalance_timeout: rebalance_timeout.max(session_timeout),
            heartbeat_interval: (session_timeout / HEARTBEATS).min(MAX_HEARTBEAT_INTERVAL),
            metadata_max_age: METADATA_INTERVAL,
            rack: broker.settings.get("client.rack").map(str::to_owned),
            ..GroupConfig::new(Arc::clone(&group), [Arc::clone(&topic)])
        };
        let threads = Supervisor::new(format!("member of {group}"), Stop::new());
        let client = GroupClient::start(&threads, connector, bootstrap, group_config)?;
        Ok(NativeMembership { client, offsets, threads, topic, losses: 0, has_failed: false })
    }

    fn numbers(&self, partitions: &[TopicPartition]) -> Vec<PartitionId> {
        partitions.iter().filter(|of| of.topic == self.topic).map(|of| of.partition).collect()
    }
}

impl GroupOffsets for NativeMembership {
    fn committed(&mut self, deadline: Instant) -> Result<Vec<CommittedOffset>, String> {
        self.offsets.committed(deadline)
    }

    fn members(&mut self, deadline: Instant) -> Result<GroupMembers, String> {
        self.offsets.members(deadline)
    }

    fn n_partitions(&mut self, deadline: Instant) -> Result<Option<PartitionId>, String> {
        self.offsets.n_partitions(deadline)
    }

    fn commit(&mut self, offsets: &[CommittedOffset], deadline: Instant) -> Vec<Result<(), CommitError>> {
        let ended = |text: &str| vec![Err(CommitError::Ended(text.to_owned())); offsets.len()];
        let Some(identity) = self.client.identity() else { return ended("the member is in no generation") };
        if identity.losses != self.losses {
            return ended("partitions were lost");
        }
        let results = self.offsets.commit_as(Some(&identity.member), offsets, deadline);
        let code = results.iter().find_map(|result| result.as_ref().err().and_then(|(_, code)| *code));
        if let Some(code) = code {
            self.client.commit_refused(code, identity.member.generation);
        }
        results.into_iter().map(|result| result.map_err(|(error, _)| error)).collect()
    }
}

impl Membership for NativeMembership {
    fn register<'a>(&'a self, select: &mut Select<'a>) {
        // A closed channel is always ready, and has been reported.
        if !self.has_failed {
            select.recv(self.client.events());
        }
    }

    fn next(&mut self) -> Option<MembershipEvent> {
        let event = match self.client.events().try_recv() {
            Ok(event) => event,
            Err(error) if error.is_disconnected() && !std::mem::replace(&mut self.has_failed, true) => {
                return Some(MembershipEvent::Failed("the thread of the member has ended".to_owned()));
            }
            Err(_) => return None,
        };
        Some(match event {
            GroupEvent::Assigned { partitions, .. } => MembershipEvent::Assigned(self.numbers(&partitions)),
            GroupEvent::Revoke { partitions, token } => {
                MembershipEvent::Revoked(self.numbers(&partitions), seam_token(token))
            }
            GroupEvent::Lost { token, reason, .. } => {
                self.losses += 1;
                MembershipEvent::Lost(seam_token(token), lost_text(reason).to_owned())
            }
            GroupEvent::HeartbeatAnswered { sent, .. } => MembershipEvent::Proven(sent),
            GroupEvent::Failed { reason } => MembershipEvent::Failed(reason),
        })
    }

    fn released(&mut self, token: ReleaseToken) {
        self.client.released(group::ReleaseToken(token.0));
    }

    fn leave(self: Box<Self>, for_good: bool, deadline: Instant) {
        self.client.close(for_good);
        self.threads.stop().trigger();
        self.threads.join(deadline.saturating_duration_since(Instant::now()));
    }
}

fn seam_token(token: group::ReleaseToken) -> ReleaseToken {
    ReleaseToken(token.0)
}

fn lost_text(reason: LostReason) -> &'static str {
    match reason {
        LostReason::SessionExpired => "no heartbeat was answered within the session timeout",
        LostReason::UnknownMember => "the coordinator has removed the member",
        LostReason::IllegalGeneration => "the group has had a rebalance without this member",
        LostReason::Failed => "the member has failed",
    }
}

#[cfg(test)]
mod tests;
