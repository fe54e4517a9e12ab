//! Formats the delays: as JSON and Zabbix lines, in pure functions of the snapshots, and as metrics for Prometheus.

#[cfg(test)]
pub(super) mod fixture;
pub(super) mod json;
pub(super) mod prometheus;
#[allow(dead_code, reason = "the handler follows")]
pub(super) mod v1;
pub(super) mod zabbix;
