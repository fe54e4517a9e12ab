//! Settings of a member of a consumer group.

use std::sync::Arc;
use std::time::Duration;

use super::assignor::Assignor;

/// Settings of a member. All members of a group should have the same timeouts and assignors.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// Name of the group (`group.id`).
    pub group_id: Arc<str>,
    /// Id of a static member (`group.instance.id`, KIP-345), unique in the group among running processes: the
    /// coordinator gives the partitions of a process to the next one with its id at once, regardless of the lease, even
    /// if that join was sent by a process that has ended and was delayed. If the lease must be strict, use dynamic
    /// members. A static member does not leave the group when it is closed.
    ///
    /// With brokers before 3.2, no member watches the partition counts after a restart of the leader until the next
    /// rebalance (KIP-814).
    pub instance_id: Option<Arc<str>>,
    /// Names of the topics.
    pub topics: Vec<Arc<str>>,
    /// The coordinator removes the member if it receives no heartbeat for this long (`session.timeout.ms`).
    pub session_timeout: Duration,
    /// Longest wait of the coordinator for members to join in a rebalance (`max.poll.interval.ms` in the Java client).
    pub rebalance_timeout: Duration,
    /// Time between two heartbeats (`heartbeat.interval.ms`).
    pub heartbeat_interval: Duration,
    /// The assignors in the order of preference. A member is cooperative if all are.
    pub assignors: Vec<Assignor>,
    /// Interval at which the leader checks the partition counts (`metadata.max.age.ms`).
    pub metadata_max_age: Duration,
    /// Rack of the member (`client.rack`), for assignors of other clients.
    pub rack: Option<String>,
}

impl GroupConfig {
    /// Returns the settings of a group with the default timeouts of the Java client and `cooperative-sticky`.
    pub fn new(group_id: impl Into<Arc<str>>, topics: impl IntoIterator<Item = Arc<str>>) -> Self {
        GroupConfig {
            group_id: group_id.into(),
            instance_id: None,
            topics: topics.into_iter().collect(),
            session_timeout: Duration::from_secs(45),
            rebalance_timeout: Duration::from_secs(300),
            heartbeat_interval: Duration::from_secs(3),
            assignors: vec![Assignor::CooperativeSticky],
            metadata_max_age: Duration::from_secs(300),
            rack: None,
        }
    }

    /// Checks the settings; an error names the setting and its bound.
    pub fn validate(&self) -> Result<(), String> {
        // Members that hold no partition of a long rebalance must not be removed before their lease ends.
        if self.rebalance_timeout < self.session_timeout {
            return Err("the rebalance timeout must be at least the session timeout".into());
        }
        if self.heartbeat_interval.is_zero() || self.heartbeat_interval > self.session_timeout / 3 {
            return Err("the heartbeat interval must be above 0 and at most a third of the session timeout".into());
        }
        if self.assignors.is_empty() || self.topics.is_empty() || self.group_id.is_empty() {
            return Err("a group needs a name, an assignor and a topic".into());
        }
        let names = [Some(&self.group_id), self.instance_id.as_ref()].into_iter().flatten().chain(&self.topics);
        let longest = names.map(|name| name.len()).chain(self.rack.as_ref().map(String::len)).max();
        if longest.is_some_and(|length| length > i16::MAX as usize) {
            return Err("names of group, instance, topics and rack must have at most 32,767 bytes".into());
        }
        Ok(())
    }

    /// Whether members keep their partitions during a rebalance: only if every assignor supports that, as in the Java
    /// client.
    pub fn is_cooperative(&self) -> bool {
        self.assignors.iter().all(|assignor| assignor.is_cooperative())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_would_break_the_lease_are_refused() {
        let config = GroupConfig::new("g", ["t".into()]);
        assert_eq!(config.validate(), Ok(()));
        assert!(GroupConfig { rebalance_timeout: Duration::from_secs(44), ..config.clone() }.validate().is_err());
        assert!(GroupConfig { heartbeat_interval: Duration::from_secs(16), ..config.clone() }.validate().is_err());
        assert!(GroupConfig { heartbeat_interval: Duration::ZERO, ..config.clone() }.validate().is_err());
        assert!(GroupConfig { topics: Vec::new(), ..config.clone() }.validate().is_err());
        assert!(GroupConfig { rack: Some("r".repeat(40_000)), ..config.clone() }.validate().is_err());
        assert!(
            GroupConfig { assignors: vec![Assignor::CooperativeSticky, Assignor::Range], ..config }.validate().is_ok()
        );
    }
}
