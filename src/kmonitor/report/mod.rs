//! Formats the delays: as JSON and Zabbix lines, in pure functions of the snapshots, and as metrics for Prometheus.

pub(super) mod json;
pub(super) mod prometheus;
pub(super) mod zabbix;
