//! The delays in the formats that clients request. Pure: snapshots in, text out.

pub(super) mod json;
pub(super) mod prometheus;
pub(super) mod zabbix;
