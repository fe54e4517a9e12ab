//! The formats of kmonitor's answers: pure functions of a [`View`], most of them rendered once for each view.
//!
//! `legacy` has the delays as the original does, `json` and `zabbix` format them; `zabbix_items` has the items of
//! `/v1/zabbix`; `v1` answers `/v1/delay`; `prometheus` has the metrics, written with `exposition`; `pages` all that is
//! rendered beforehand.
//!
//! [`View`]: super::view::View

mod exposition;
#[cfg(test)]
pub(super) mod fixture;
pub(super) mod json;
pub(super) mod legacy;
pub(super) mod pages;
pub(super) mod prometheus;
pub(super) mod v1;
pub(super) mod zabbix;
pub(super) mod zabbix_items;
