//! The main function of all three daemons: options, log, signals, the ordered stop and the exit code.
//!
//! | exit code | when |
//! |---|---|
//! | 0 | stopped by SIGTERM or SIGINT; `-h`, `-V`; `-t` with a valid configuration |
//! | 1 | the configuration is invalid (all its problems are on stderr), or the daemon cannot start |
//! | 2 | the command line is invalid |
//! | 3 | a thread exited unexpectedly; the log names it, and the other threads were stopped in order |
//! | 4 | the stop was incomplete: it took longer than `shutdown_grace_ms`, or work such as storing offsets failed |
//! | 5 | a second SIGTERM or SIGINT ended an ordered stop |
//!
//! SIGHUP reopens the log files and runs the reload actions, both on separate threads. SIGUSR1 only reopens the log
//! files: a rotation of logs need not put a half-edited configuration into force. SIGPIPE is ignored. One thread
//! receives all signals; it never accesses a file, so a hanging disk cannot delay a signal. The first SIGTERM or SIGINT
//! only triggers a [`Stop`]; each daemon decides the order in which its parts stop. The command line is parsed in
//! `command`.

mod command;

use std::ffi::c_int;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::process::{self, ExitCode};
use std::time::{Duration, Instant};

use log::{error, info, warn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::config::{Problems, Section};
use crate::logging::{self, LogConfig, to_stderr};
use crate::panics;
use crate::reload::Reloads;
use crate::shutdown::Stop;
use crate::supervise::{Ended, Supervisor, spawn_expendable};

use command::{Command, parse};
pub use command::{Tool, ToolArguments, ToolOption};

/// The signals that the daemon receives.
const SIGNALS: [c_int; 4] = [SIGTERM, SIGINT, SIGHUP, SIGUSR1];
/// Time that the watchdog adds to the grace, so that threads can still end after an ordered stop that used up the whole
/// grace.
const WATCHDOG_MARGIN: Duration = Duration::from_secs(1);
/// Longest wait, at the end of the process, for the last log lines to be written.
const LAST_FLUSH: Duration = Duration::from_millis(500);

/// Settings that every daemon's configuration has.
pub trait Settings {
    /// Returns the folder and the level of the log files.
    fn log(&self) -> &LogConfig;

    /// Returns how long an ordered stop may take.
    fn shutdown_grace(&self) -> Duration;
}

/// Takes the key `shutdown_grace_ms` (default 10,000, at most ten minutes).
pub(crate) fn shutdown_grace(section: &mut Section, problems: &mut Problems) -> Duration {
    section.millis("shutdown_grace_ms", Some(10_000), 0..=600_000, problems)
}

/// The exit codes; the table at the head of this module says when each is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Success = 0,
    CannotStart = 1,
    Usage = 2,
    ThreadFailed = 3,
    GraceExceeded = 4,
    SecondSignal = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// The main function of the daemon `name`.
///
/// `load` returns the configuration, or everything that is wrong with it. `run` starts the daemon's threads under the
/// supervisor, serves until the supervisor's stop is triggered, stops its parts in order within the grace, and returns.
/// An error that `run` returns before the stop was triggered means that the daemon cannot start.
pub fn main<C: Settings>(
    name: &str,
    default_file: &str,
    load: fn(&Path) -> Result<C, Problems>,
    run: fn(C, &Supervisor) -> Result<(), String>,
) -> ExitCode {
    main_with_tools(name, default_file, load, run, &[])
}

/// As [`main`], for a program that has [`Tool`]s, too.
pub fn main_with_tools<C: Settings>(
    name: &str,
    default_file: &str,
    load: fn(&Path) -> Result<C, Problems>,
    run: fn(C, &Supervisor) -> Result<(), String>,
    tools: &[&Tool<C>],
) -> ExitCode {
    let options: Vec<&[ToolOption]> = tools.iter().map(|tool| tool.options).collect();
    let command = match parse(name, default_file, &options, std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(text) => {
            to_stderr(&format!("{name}: {text}\nTry {name} -h\n"));
            return Exit::Usage.into();
        }
    };
    let (file, only_check, task) = match command {
        Command::Print(text) => return print(&text),
        Command::Check(file) => (file, true, None),
        Command::Run(file) => (file, false, None),
        Command::Tool(file, index, arguments) => (file, false, Some((tools[index], arguments))),
    };
    match load(&file) {
        Err(problems) => {
            let count = problems.0.len();
            let plural = if count == 1 { "" } else { "s" };
            to_stderr(&format!("{problems}{name}: {count} problem{plural} in the configuration\n"));
            Exit::CannotStart.into()
        }
        Ok(_) if only_check => print(&format!("{}: the configuration is valid\n", file.display())),
        Ok(config) => match task {
            Some((tool, arguments)) => run_tool(name, tool, config, &arguments).into(),
            None => start(name, &file, config, run).into(),
        },
    }
}

fn run_tool<C>(name: &str, tool: &Tool<C>, config: C, arguments: &ToolArguments) -> Exit {
    match (tool.run)(config, arguments, &mut io::stdout().lock()) {
        Ok(()) => Exit::Success,
        Err(cause) => {
            to_stderr(&format!("{name}: {cause}\n"));
            Exit::CannotStart
        }
    }
}

/// Prints to stdout. A pipe that its reader has closed is no error.
fn print(text: &str) -> ExitCode {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    Exit::Success.into()
}

fn start<C: Settings>(name: &str, file: &Path, config: C, run: fn(C, &Supervisor) -> Result<(), String>) -> Exit {
    let cannot_start = |cause: &dyn Display| {
        to_stderr(&format!("{name}: cannot start: {cause}\n"));
        Exit::CannotStart
    };
    // Signal handlers come first, so that a signal during the start also leads to an ordered stop.
    let signals = match Signals::new(SIGNALS) {
        Ok(signals) => signals,
        Err(cause) => return cannot_start(&format!("cannot install signal handlers: {cause}")),
    };
    // Every thread inherits this mask. A signal in the middle of a write would cut the write short, and the `kafka`
    // crate takes a short write for a complete one. Only the thread `signals` receives signals.
    mask_signals(libc::SIG_BLOCK);
    if let Err(cause) = logging::start(name, config.log()) {
        return cannot_start(&cause);
    }
    let open_files = raise_open_files();
    info!(
        "{name} {} starts: process {}, configuration {}, open file limit {open_files}",
        env!("CARGO_PKG_VERSION"),
        process::id(),
        file.display()
    );
    let grace = config.shutdown_grace();
    // The threads `signals` and `watchdog` have a supervisor of their own, since they outlive the daemon's threads.
    let process = Supervisor::new("process", Stop::new());
    let daemon = Supervisor::new(name, process.stop().child());
    let (stop, reloads) = (daemon.stop().clone(), daemon.reloads().clone());
    process.spawn_task("signals", move || {
        mask_signals(libc::SIG_UNBLOCK);
        watch_signals(signals, &stop, &reloads);
    });
    let stop = daemon.stop().clone();
    process.spawn_task("watchdog", move || {
        stop.wait();
        std::thread::sleep(grace + WATCHDOG_MARGIN);
        error!(
            "the stop took longer than shutdown_grace_ms = {}; threads still running are abandoned",
            grace.as_millis()
        );
        exit_now(Exit::GraceExceeded);
    });
    let exit = serve(&daemon, grace, config, run);
    info!("{name} ends with exit code {}", exit as u8);
    if exit == Exit::GraceExceeded {
        // Threads are still running: destructors would free memory that these threads use.
        exit_now(exit);
    }
    logging::flush(LAST_FLUSH);
    exit
}

fn serve<C>(daemon: &Supervisor, grace: Duration, config: C, run: fn(C, &Supervisor) -> Result<(), String>) -> Exit {
    let outcome = panics::catch(|| run(config, daemon));
    let is_stop_requested = daemon.stop().is_triggered() && daemon.failure().is_none();
    let exit = match outcome {
        Err(text) => {
            error!("thread main panicked: {text}");
            Exit::ThreadFailed
        }
        Ok(Err(cause)) if is_stop_requested => {
            error!("incomplete stop: {cause}");
            Exit::GraceExceeded
        }
        Ok(Err(cause)) if daemon.failure().is_none() => {
            // Before the line on stderr, which may be a file on a disk that hangs: the watchdog then ends the process.
            daemon.stop().trigger();
            error!("cannot start: {cause}");
            to_stderr(&format!("{}: cannot start: {cause}\n", daemon.name()));
            Exit::CannotStart
        }
        Ok(Err(cause)) => {
            error!("{cause}");
            Exit::ThreadFailed
        }
        Ok(Ok(())) if is_stop_requested => Exit::Success,
        Ok(Ok(())) if daemon.failure().is_none() => {
            error!("thread main exited unexpectedly");
            Exit::ThreadFailed
        }
        Ok(Ok(())) => Exit::ThreadFailed,
    };
    let began = Instant::now();
    daemon.stop().trigger();
    match daemon.join(grace) {
        Ended::Stopped => exit,
        Ended::Failed(failure) => {
            error!("{} ends: {failure}", daemon.name());
            to_stderr(&format!("{}: {failure}\n", daemon.name()));
            if exit == Exit::Success { Exit::ThreadFailed } else { exit }
        }
        Ended::StillRunning(threads) => {
            error!("threads still running {} ms after the stop: {}", began.elapsed().as_millis(), threads.join(", "));
            Exit::GraceExceeded
        }
    }
}

fn watch_signals(mut signals: Signals, stop: &Stop, reloads: &Reloads) {
    for signal in signals.forever() {
        match signal {
            SIGHUP => {
                logging::reopen();
                reload(reloads);
            }
            SIGUSR1 => logging::reopen(),
            _ if stop.is_triggered() => {
                warn!("a second signal ({signal}): stopping at once");
                exit_now(Exit::SecondSignal);
            }
            _ => {
                stop.trigger();
                info!("signal {signal}: stopping");
            }
        }
    }
}

/// Runs the reload actions on a thread of their own, unless a reload is running.
fn reload(reloads: &Reloads) {
    let Some(reload) = reloads.request() else {
        return info!("SIGHUP: a reload is still running, another one follows it");
    };
    // The reload may start threads of the daemon, which inherit its mask.
    mask_signals(libc::SIG_BLOCK);
    let started = spawn_expendable("reload", move || reload.run());
    mask_signals(libc::SIG_UNBLOCK);
    if let Err(cause) = started {
        warn!("SIGHUP: nothing is reloaded: the thread reload cannot be started: {cause}");
    }
}

/// Blocks or unblocks (`SIG_BLOCK`, `SIG_UNBLOCK`) the signals of a daemon for the calling thread and the threads it
/// starts later.
fn mask_signals(how: c_int) {
    // SAFETY: the set is emptied before it is used, and lives through the calls.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        for signal in SIGNALS {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut());
    }
}

/// Ends the process although threads are running: no destructor and no `atexit` function is called.
fn exit_now(exit: Exit) -> ! {
    logging::flush(LAST_FLUSH);
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(exit as i32) }
}

/// Raises the soft limit of open files to the hard limit; returns the limit now in force, or 0 if it is unknown.
/// Idempotent.
pub fn raise_open_files() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is valid for the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return 0;
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: the pointer is valid for the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
        raised.rlim_cur
    } else {
        limit.rlim_cur
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    const GRACE: Duration = Duration::from_millis(200);

    type Run = fn(Nothing, &Supervisor) -> Result<(), String>;

    fn served(run: Run) -> Exit {
        serve(&Supervisor::new("d", Stop::new()), GRACE, Nothing, run)
    }

    #[test]
    fn each_way_to_end_has_its_exit_code() {
        let ends: [(Run, Exit); 8] = [
            (
                |_, group| {
                    let stop = group.stop().clone();
                    group.spawn("stops", move || stop.wait());
                    group.stop().trigger();
                    Ok(())
                },
                Exit::Success,
            ),
            (|_, _| Ok(()), Exit::ThreadFailed),
            (|_, _| Err("port taken".into()), Exit::CannotStart),
            (|_, _| panic!("at once"), Exit::ThreadFailed),
            (
                |_, group| {
                    group.spawn("exits", || ());
                    group.stop().wait();
                    Ok(())
                },
                Exit::ThreadFailed,
            ),
            (
                |_, group| {
                    group.spawn("panics", || panic!("later"));
                    group.stop().wait();
                    Err("half stopped".into())
                },
                Exit::ThreadFailed,
            ),
            (
                |_, group| {
                    group.stop().trigger();
                    Err("offsets not stored".into())
                },
                Exit::GraceExceeded,
            ),
            (
                |_, group| {
                    group.spawn("hangs", || std::thread::sleep(GRACE * 20));
                    group.stop().trigger();
                    Ok(())
                },
                Exit::GraceExceeded,
            ),
        ];
        for (index, (run, exit)) in ends.into_iter().enumerate() {
            assert_eq!(served(run), exit, "{index}");
        }
    }
}
