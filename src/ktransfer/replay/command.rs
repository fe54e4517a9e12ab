//! The command line of the replay, and its connections.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use getopts::Options;

use super::position::PositionStore;
use super::{MAX_IN_FLIGHT, Replay};
use crate::broker::{self, BrokerConfig, FetcherConfig, HeaderLimits, PartitionerKind, ProducerConfig};
use crate::keeper::{self, Keeper};
use crate::ktransfer::config::{Config, load};
use crate::shutdown::Stop;
use crate::supervise::Supervisor;

/// The option that selects this command.
const OPTION: &str = "replay-dead-letters";
/// How long the command waits for ZooKeeper.
const KEEPER_TIMEOUT: Duration = Duration::from_secs(20);
/// Time limit of one append.
const APPEND_TIMEOUT: Duration = Duration::from_secs(30);
const PREFETCH_BYTES: usize = 8 << 20;
/// A dead letter is as large as a message that was read, and has more headers.
const MAX_MESSAGE_BYTES: usize = 65 << 20;
const HEADER_LIMITS: HeaderLimits = HeaderLimits { max_count: 128, max_bytes: 16 << 10 };

/// The last lines of the help of ktransfer.
pub(crate) const HELP: &str = "\nCommands:\n    --replay-dead-letters MODULE    see --replay-dead-letters -h\n";

#[derive(Debug, PartialEq, Eq)]
enum Command {
    Print(String),
    Replay { file: PathBuf, module: String, is_dry_run: bool, is_from_oldest: bool },
}

/// Whether the command line is one of this command.
pub(crate) fn is_meant(arguments: &[OsString]) -> bool {
    let is_option = |text: &str| text.strip_prefix("--").is_some_and(|text| text.split('=').next() == Some(OPTION));
    arguments.iter().any(|argument| argument.to_str().is_some_and(is_option))
}

/// Runs the command; `brokers` returns how to connect to them. Exit codes: 0 all letters are replayed, 1 some are not,
/// or the configuration is invalid, 2 the command line is invalid.
pub(crate) fn main(
    arguments: Vec<OsString>,
    brokers: fn(&Config, &dyn Keeper) -> Result<BrokerConfig, String>,
) -> ExitCode {
    let mut output = io::stdout().lock();
    let (text, code) = match parse(arguments) {
        Err(text) => (format!("ktransfer: {text}\nTry ktransfer --{OPTION} -h\n"), 2),
        Ok(Command::Print(text)) => {
            let _ = output.write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Ok(Command::Replay { file, module, is_dry_run, is_from_oldest }) => {
            match replay(&file, &module, is_dry_run, is_from_oldest, brokers, &mut output) {
                Ok(()) => return ExitCode::SUCCESS,
                Err(text) => (format!("ktransfer: {text}\n"), 1),
            }
        }
    };
    let _ = io::stderr().write_all(text.as_bytes());
    ExitCode::from(code)
}

fn parse(arguments: Vec<OsString>) -> Result<Command, String> {
    let mut options = Options::new();
    options.optopt("", OPTION, "append the dead letters of MODULE to the topics they came from", "MODULE");
    options.optflag("", "dry-run", "only print each dead letter");
    options.optflag("", "all", "begin at the oldest dead letter, not where the last run ended");
    options.optopt("f", "file", "configuration file (default ./conf/ktransfer.yaml)", "FILE");
    options.optflag("h", "help", "print this help and exit");
    if arguments.iter().any(|argument| argument == "-h" || argument == "--help") {
        let usage = format!("Usage: ktransfer --{OPTION} MODULE [--dry-run] [--all] [-f FILE]");
        return Ok(Command::Print(options.usage(&usage)));
    }
    let matches = options.parse(arguments).map_err(|problem| problem.to_string())?;
    if let Some(unexpected) = matches.free.first() {
        return Err(format!("unexpected argument {unexpected:?}"));
    }
    let module = matches.opt_str(OPTION).filter(|module| !module.is_empty());
    Ok(Command::Replay {
        file: matches.opt_str("f").unwrap_or_else(|| "./conf/ktransfer.yaml".to_owned()).into(),
        module: module.ok_or_else(|| format!("--{OPTION} needs the name of a module"))?,
        is_dry_run: matches.opt_present("dry-run"),
        is_from_oldest: matches.opt_present("all"),
    })
}

fn replay(
    file: &Path,
    module: &str,
    is_dry_run: bool,
    is_from_oldest: bool,
    brokers: fn(&Config, &dyn Keeper) -> Result<BrokerConfig, String>,
    output: &mut dyn Write,
) -> Result<(), String> {
    let config =
        load(file).map_err(|problems| format!("the configuration is invalid\n{}", problems.to_string().trim()))?;
    let found = config.modules.iter().find(|known| &*known.name == module);
    let found = found.ok_or_else(|| format!("module {module:?} is not in module_enabled of {}", file.display()))?;
    let topic = found.dead_letter_topic.clone().ok_or_else(|| format!("module {module} has no dead_letter_topic"))?;
    let threads = Supervisor::new("replay", Stop::new());
    let keeper = keeper::connect(config.keeper.clone(), &threads);
    let deadline = Instant::now() + KEEPER_TIMEOUT;
    while let Err(reason) = keeper.children("/") {
        if deadline < Instant::now() {
            return Err(reason.to_string());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut broker = brokers(&config, keeper.as_ref())?;
    broker.settings = broker.settings.without_topic_creation();
    let fetching =
        FetcherConfig { prefetch_bytes: PREFETCH_BYTES, max_message_bytes: MAX_MESSAGE_BYTES, headers: HEADER_LIMITS };
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
        is_dry_run,
        is_from_oldest,
        fetcher: broker::fetcher(&broker, fetching, &threads)?,
        log_ends: broker::log_ends(&broker, &threads)?,
        producer: Arc::clone(&producer),
        positions: PositionStore::new(keeper.as_ref(), module),
        output,
    };
    let result = replay.run().map(drop);
    producer.close(Duration::ZERO);
    keeper.close(Duration::from_secs(1));
    threads.stop().trigger();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Command, String> {
        parse(arguments.iter().map(OsString::from).collect())
    }

    #[test]
    fn the_command_line_selects_the_module_and_what_is_done() {
        let replay = |file: &str, is_dry_run, is_from_oldest| {
            Ok(Command::Replay { file: file.into(), module: "m".into(), is_dry_run, is_from_oldest })
        };
        for (arguments, expected) in [
            (&["--replay-dead-letters", "m"][..], replay("./conf/ktransfer.yaml", false, false)),
            (&["-f", "a.yaml", "--replay-dead-letters=m", "--dry-run"], replay("a.yaml", true, false)),
            (&["--all", "--replay-dead-letters", "m", "--file=b"], replay("b", false, true)),
        ] {
            let arguments_os: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            assert!(is_meant(&arguments_os), "{arguments:?}");
            assert_eq!(parsed(arguments), expected, "{arguments:?}");
        }
        for wrong in [
            &["--replay-dead-letters"][..],
            &["--replay-dead-letters="],
            &["--replay-dead-letters", "m", "n"],
            &["--replay-dead-letters", "m", "-t"],
        ] {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
        assert!(
            matches!(parsed(&["--replay-dead-letters", "-h"]), Ok(Command::Print(text)) if text.contains("--dry-run"))
        );
        for other in [&["-f", "a"][..], &["-t"], &["--replay-dead-letter"], &["replay-dead-letters"]] {
            assert!(!is_meant(&other.iter().map(OsString::from).collect::<Vec<_>>()), "{other:?}");
        }
    }
}
