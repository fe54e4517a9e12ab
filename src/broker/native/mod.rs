//! The engine of this project: the Kafka client in `src/kafka`.
//!
//! This folder converts between the seam ([`crate::broker`]) and the client, which is independent of the daemons:
//!
//! - `settings`: which settings of the `kafka` map are taken; `values`: their values; `declined`: why the others are
//!   refused. `config` and `producer_settings` make the configuration of the client out of them.
//! - `producer`, `fetcher`, `log_ends`: the traits of the seam that every engine has, with their errors;
//!   `connections`: those of the producer, as operators see them.
//! - `membership`, `group_offsets`: groups that Kafka manages, for ktransfer; `groups`: the same for the monitor.
//!
//! Invariant: a message counts as "not stored" only where the client reports so.

mod config;
mod connections;
mod declined;
mod fetcher;
mod group_offsets;
mod groups;
mod log_ends;
mod membership;
mod producer;
mod producer_settings;
mod settings;
mod values;

pub(super) use fetcher::NativeFetcher;
pub(super) use group_offsets::NativeGroupOffsets;
pub(super) use groups::NativeGroups;
pub(super) use log_ends::NativeLogEnds;
pub(super) use membership::NativeMembership;
pub(super) use producer::NativeProducer;
pub(super) use settings::validate;
