//! Membership in a consumer group by the classic group protocol (JoinGroup, SyncGroup, Heartbeat, LeaveGroup).
