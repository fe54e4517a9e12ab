//! Moves the stored offsets and the pauses of a module between ZooKeeper and Kafka:
//! `ktransfer -f FILE --move-offsets MODULE --to kafka`.
//!
//! The instances of the module must be stopped: with a live member in either group nothing is written. The offsets at
//! the source stay there. What was written is read again and compared, so a move that was interrupted is noticed, and
//! can be repeated.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config::{Config, GroupService, ModuleConfig};
use super::connections::{Connections, ZookeeperSession};
use super::group::offset_stores::{KafkaOffsets, OffsetStore, StoredOffsets, ZookeeperOffsets};
use super::group::{GroupObservers, StoredPosition};
use super::pauses::PauseMark;
use crate::broker::PartitionId;
use crate::daemon::{Tool, ToolArguments, ToolOption};
use crate::keeper::Keeper;
use crate::shutdown::Stop;
use crate::supervise::Supervisor;

/// Longest wait for a session with ZooKeeper.
const CONNECT: Duration = Duration::from_secs(10);

/// `--move-offsets` and its options.
pub const MOVE_OFFSETS: Tool<Config> = Tool {
    options: &[
        ToolOption {
            name: "move-offsets",
            value: "MODULE",
            description: "move the stored offsets of a module, whose instances are stopped, and exit; FILE must have \
                          zk_hosts",
        },
        ToolOption { name: "to", value: "SERVICE", description: "with --move-offsets: kafka or zookeeper" },
        ToolOption { name: "dry-run", value: "", description: "with --move-offsets: only print what would be moved" },
        ToolOption {
            name: "force",
            value: "",
            description: "with --move-offsets: also if the target has larger offsets, or offsets of another topic",
        },
    ],
    run,
};

/// Where offsets can be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    ZooKeeper,
    Kafka,
}

impl fmt::Display for Service {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Service::ZooKeeper => "ZooKeeper",
            Service::Kafka => "Kafka",
        })
    }
}

fn run(config: Config, arguments: &ToolArguments, out: &mut dyn Write) -> Result<(), String> {
    let target = match arguments.value("to") {
        Some("kafka") => Service::Kafka,
        Some("zookeeper") => Service::ZooKeeper,
        _ => return Err("--move-offsets needs --to kafka or --to zookeeper".to_owned()),
    };
    let name = arguments.value("move-offsets").unwrap_or_default();
    let module = config.modules.iter().find(|module| *module.name == *name).cloned();
    let module = module.ok_or_else(|| format!("module {name:?} is not in module_enabled"))?;
    let GroupService::ZooKeeper(keeper_config) = &config.groups else {
        return Err("zk_hosts is missing: it is needed to move offsets from or to ZooKeeper".to_owned());
    };
    let threads = Supervisor::new("move offsets", Stop::new());
    let session = ZookeeperSession::start(keeper_config, &threads);
    let keeper = Arc::clone(&session.keeper);
    let connections =
        Connections { config: Arc::new(config), zookeeper: Some(session), observers: GroupObservers::default() };
    let options = Options { target, is_dry_run: arguments.has("dry-run"), is_forced: arguments.has("force") };
    let result = connect(&*keeper, &connections, &module).and_then(|(mut zookeeper, mut kafka)| match target {
        Service::Kafka => move_offsets(&mut zookeeper, &mut kafka, options, out),
        Service::ZooKeeper => move_offsets(&mut kafka, &mut zookeeper, options, out),
    });
    keeper.close(Duration::from_secs(1));
    threads.stop().trigger();
    result
}

fn connect<'a>(
    keeper: &'a dyn Keeper,
    connections: &Connections,
    module: &'a ModuleConfig,
) -> Result<(ZookeeperOffsets<'a>, KafkaOffsets), String> {
    let deadline = Instant::now() + CONNECT;
    while let Err(cause) = keeper.read("/") {
        if Instant::now() >= deadline {
            return Err(cause.to_string());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let offsets = connections.group_offsets(module)?;
    Ok((ZookeeperOffsets { keeper, group: &module.name, topic: &module.topic }, KafkaOffsets { offsets }))
}

#[derive(Clone, Copy, Debug)]
struct Options {
    target: Service,
    is_dry_run: bool,
    is_forced: bool,
}

fn move_offsets(
    source: &mut dyn OffsetStore,
    target: &mut dyn OffsetStore,
    options: Options,
    out: &mut dyn Write,
) -> Result<(), String> {
    let (to, from) = match options.target {
        Service::Kafka => (Service::Kafka, Service::ZooKeeper),
        Service::ZooKeeper => (Service::ZooKeeper, Service::Kafka),
    };
    check_members(from, source)?;
    check_members(to, target)?;
    let offsets = source.read().map_err(|reason| format!("{from}: {reason}"))?;
    let before = target.read().map_err(|reason| format!("{to}: {reason}"))?;
    let print_error = |cause: std::io::Error| format!("cannot print: {cause}");
    write!(out, "{}", table(from, &offsets, to, &before)).map_err(print_error)?;
    if offsets.positions.is_empty() {
        return Err(format!("no offset of this module is stored in {from}"));
    }
    let conflicts = conflicts(&offsets, &before);
    if !conflicts.is_empty() && !options.is_forced {
        return Err(format!(
            "nothing was written: {}; use --force to replace the offsets in {to}",
            conflicts.join("; ")
        ));
    }
    let offsets = with_pauses_that_can_be_kept(offsets, options)?;
    if options.is_dry_run {
        return writeln!(out, "dry run: nothing was written").map_err(print_error);
    }
    target.write(&offsets).map_err(|reason| format!("{to}: {reason}; the move is incomplete, repeat it"))?;
    let after = target.read().map_err(|reason| format!("{to}: {reason}; what was written could not be verified"))?;
    verify(&offsets, &after).map_err(|text| format!("{to}: {text}; the move is incomplete, repeat it"))?;
    let members = source.members().map_err(|reason| format!("{from}: {reason}"))?;
    if !members.is_empty() {
        return Err(format!("members of the group in {from} were started meanwhile: stop them and repeat the move"));
    }
    let count = offsets.positions.len();
    writeln!(out, "moved {count} partitions from {from} to {to}; the offsets in {from} are kept").map_err(print_error)
}

/// Kafka keeps the pause of a partition beside its offset. Fails if a partition is paused that has none, unless that is
/// forced; then it is not paused at the target.
fn with_pauses_that_can_be_kept(mut offsets: StoredOffsets, options: Options) -> Result<StoredOffsets, String> {
    let StoredOffsets { positions, pauses, .. } = &mut offsets;
    let has_place = |partition: &PartitionId| options.target == Service::ZooKeeper || positions.contains_key(partition);
    let without: Vec<PartitionId> =
        pauses.partitions.keys().copied().filter(|partition| !has_place(partition)).collect();
    if !without.is_empty() && pauses.module.is_none() && !options.is_forced {
        return Err(format!(
            "nothing was written: partitions {without:?} are paused and have no stored offset, beside which Kafka keeps a \
             pause; resume them first, or use --force to move without these pauses"
        ));
    }
    pauses.partitions.retain(|partition, _| has_place(partition));
    Ok(offsets)
}

/// Fails if the group has live members.
fn check_members(service: Service, store: &mut dyn OffsetStore) -> Result<(), String> {
    let members = store.members().map_err(|reason| format!("{service}: {reason}"))?;
    match members.is_empty() {
        true => Ok(()),
        false => Err(format!("the group in {service} has live members, stop them first: {}", members.join(", "))),
    }
}

/// Lists each partition with the offsets stored at both ends.
fn table(from: Service, source: &StoredOffsets, to: Service, target: &StoredOffsets) -> String {
    let partitions: BTreeSet<PartitionId> =
        source.positions.keys().chain(target.positions.keys()).copied().chain(0..source.first_partitions).collect();
    let shown = |stored: &StoredOffsets, partition: PartitionId| {
        let paused = if stored.pauses.partitions.contains_key(&partition) { " paused" } else { "" };
        let Some(position) = stored.positions.get(&partition) else { return format!("-{paused}") };
        let n_ahead: i64 = position.done_ahead.iter().map(|range| range.end.saturating_sub(range.start)).sum();
        let ahead = if n_ahead > 0 { format!(" (+{n_ahead} done ahead)") } else { String::new() };
        format!("{}{ahead}{paused}", position.next)
    };
    let mut text = format!("{:<10} {:<32} {}\n", "partition", from.to_string(), to);
    for partition in partitions {
        text += &format!("{partition:<10} {:<32} {}\n", shown(source, partition), shown(target, partition));
    }
    for (service, stored) in [(from, source), (to, target)] {
        if let Some(PauseMark { by, .. }) = &stored.pauses.module {
            text += &format!("in {service} the module is paused by {by}\n");
        }
    }
    text
}

/// Returns the conflicts that forbid a move: stored offsets of the target that it would set back, and offsets of
/// another topic of the same name. Smaller offsets at the target are older, so they are no conflict.
fn conflicts(source: &StoredOffsets, target: &StoredOffsets) -> Vec<String> {
    let conflict = |(partition, there): (&PartitionId, &StoredPosition)| {
        let here = source.positions.get(partition)?;
        if here.topic_id.zip(there.topic_id).is_some_and(|(here, there)| here != there) {
            return Some(format!("the offsets of partition {partition} belong to two topics of the same name"));
        }
        let (here, there) = (here.next, there.next);
        (here < there).then(|| format!("partition {partition} has {there} at the target, which is more than {here}"))
    };
    target.positions.iter().filter_map(conflict).collect()
}

/// Compares the written state with the stored one. The ranges may have been cut at the end.
fn verify(written: &StoredOffsets, found: &StoredOffsets) -> Result<(), String> {
    for (partition, position) in &written.positions {
        let there = found.positions.get(partition);
        let is_same = there.is_some_and(|there| {
            there.next == position.next
                && there.topic_id == position.topic_id
                && position.done_ahead.starts_with(&there.done_ahead)
        });
        if !is_same {
            let there = there.map_or("nothing".to_owned(), |there| there.next.to_string());
            return Err(format!("partition {partition} has {there} instead of {}", position.next));
        }
    }
    match written.pauses.is_alike(&found.pauses) {
        true => Ok(()),
        false => Err("the pauses are not those that were written".to_owned()),
    }
}

#[cfg(test)]
mod tests;
