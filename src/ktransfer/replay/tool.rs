//! The options of the replay, and its connections.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::position::{KafkaPositions, KeeperPositions, PositionStore};
use super::{MAX_IN_FLIGHT, Replay};
use crate::broker::{self, FetcherConfig, HeaderLimits, PartitionerKind, ProducerConfig};
use crate::daemon::{Tool, ToolArguments, ToolOption};
use crate::keeper::Keeper;
use crate::ktransfer::config::{Config, GroupService};
use crate::ktransfer::connections::{Connections, ZookeeperSession};
use crate::ktransfer::group::GroupObservers;
use crate::shutdown::Stop;
use crate::supervise::Supervisor;

/// How long the tool waits for ZooKeeper.
const KEEPER_TIMEOUT: Duration = Duration::from_secs(20);
/// Time limit of one append.
const APPEND_TIMEOUT: Duration = Duration::from_secs(30);
const PREFETCH_BYTES: usize = 8 << 20;
/// A dead letter is as large as a message that was read, and has more headers.
const MAX_MESSAGE_BYTES: usize = 65 << 20;
const HEADER_LIMITS: HeaderLimits = HeaderLimits { max_count: 128, max_bytes: 16 << 10 };

/// `--replay-dead-letters` and its options.
pub const REPLAY: Tool<Config> = Tool {
    options: &[
        ToolOption {
            name: "replay-dead-letters",
            value: "MODULE",
            description: "append the dead letters of a module to the topics they came from, and exit",
        },
        ToolOption {
            name: "dry-run",
            value: "",
            description: "with --replay-dead-letters: only print each dead letter",
        },
        ToolOption {
            name: "all",
            value: "",
            description: "with --replay-dead-letters: begin at the oldest dead letter, not where the last run ended",
        },
    ],
    run,
};

fn run(config: Config, arguments: &ToolArguments, output: &mut dyn Write) -> Result<(), String> {
    let module = arguments.value("replay-dead-letters").unwrap_or_default();
    let found = config.modules.iter().find(|known| *known.name == *module);
    let found = found.ok_or_else(|| format!("module {module:?} is not in module_enabled"))?;
    let topic = found.dead_letter_topic.clone().ok_or_else(|| format!("module {module} has no dead_letter_topic"))?;
    let threads = Supervisor::new("replay", Stop::new());
    let zookeeper = match &config.groups {
        GroupService::ZooKeeper(keeper) => Some(ZookeeperSession::start(keeper, &threads)),
        GroupService::Kafka(_) => None,
    };
    let keeper = zookeeper.as_ref().map(|session| Arc::clone(&session.keeper));
    let connections = Connections { config: Arc::new(config), zookeeper, observers: GroupObservers::default() };
    let result = match &keeper {
        Some(keeper) => wait_for(&**keeper),
        None => Ok(()),
    };
    let result = result.and_then(|()| {
        let positions: Box<dyn PositionStore> = match &keeper {
            Some(keeper) => Box::new(KeeperPositions { keeper: &**keeper, module }),
            None => Box::new(KafkaPositions { offsets: connections.replayed_offsets(module, &topic)? }),
        };
        let broker = connections.appending_broker()?;
        let fetching = FetcherConfig {
            prefetch_bytes: PREFETCH_BYTES,
            max_message_bytes: MAX_MESSAGE_BYTES,
            headers: HEADER_LIMITS,
        };
        let producing = ProducerConfig {
            partitioner: PartitionerKind::default(),
            max_message_bytes: MAX_MESSAGE_BYTES,
            max_in_flight: MAX_IN_FLIGHT,
            timeout: APPEND_TIMEOUT,
        };
        let producer = broker::producer(&broker, producing, &threads)?;
        let mut replay = Replay {
            module,
            topic,
            is_dry_run: arguments.has("dry-run"),
            is_from_oldest: arguments.has("all"),
            fetcher: broker::fetcher(&broker, fetching, &threads)?,
            log_ends: broker::log_ends(&broker, &threads)?,
            producer: Arc::clone(&producer),
            positions,
            output,
        };
        let result = replay.run().map(drop);
        producer.close(Duration::ZERO);
        result
    });
    if let Some(keeper) = keeper {
        keeper.close(Duration::from_secs(1));
    }
    threads.stop().trigger();
    result
}

fn wait_for(keeper: &dyn Keeper) -> Result<(), String> {
    let deadline = Instant::now() + KEEPER_TIMEOUT;
    while let Err(cause) = keeper.read("/") {
        if deadline <= Instant::now() {
            return Err(cause.to_string());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
