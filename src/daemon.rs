//! What the mains of the three daemons share: options, log, signals, the ordered stop and the exit code.
//!
//! | exit code | when |
//! |---|---|
//! | 0 | stopped as asked by SIGTERM or SIGINT; `-h`, `-V`; `-t` of a good configuration |
//! | 1 | the configuration is wrong (all its problems are on stderr), or the daemon cannot start |
//! | 2 | the command line is wrong |
//! | 3 | a part of the daemon ended unasked; it is named in the log, and the rest was stopped in order |
//! | 4 | the stop took longer than `shutdown_grace_ms` (and one second), so the rest was abandoned |
//! | 5 | a second SIGTERM or SIGINT ended a stop that was under way |
//!
//! SIGHUP reopens the log files. SIGPIPE is ignored. Signals are taken by one thread and only trigger a
//! [`Stop`]; the order of the stop is the daemon's own.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::time::{Duration, Instant};

use getopts::Options;
use log::{error, info, warn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::{Problems, Section};
use crate::logging::{self, LogConfig, to_stderr};
use crate::panics;
use crate::reload::Reloads;
use crate::shutdown::Stop;
use crate::supervise::{Ended, Supervisor};

/// What the watchdog adds to the grace, for the threads to end after the ordered stop used all of it.
const MARGIN: Duration = Duration::from_secs(1);

/// What every daemon's configuration has.
pub trait Settings {
    /// Where the log goes.
    fn log(&self) -> &LogConfig;

    /// How long an ordered stop may take.
    fn shutdown_grace(&self) -> Duration;
}

/// Takes `shutdown_grace_ms` (default 10,000, at most ten minutes).
pub fn shutdown_grace(section: &mut Section, problems: &mut Problems) -> Duration {
    section.millis("shutdown_grace_ms", Some(10_000), 0..=600_000, problems)
}

/// How a process ends; the numbers are in the head of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Asked = 0,
    CannotStart = 1,
    Usage = 2,
    PartEnded = 3,
    GraceExceeded = 4,
    StoppedAtOnce = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// The whole main of a daemon.
///
/// `load` reads a configuration or tells all that is wrong with it. `run` starts the daemon's threads under
/// the supervisor, serves until the supervisor's stop is triggered, stops in its own order within the grace, and returns.
/// An error it returns before the stop was asked for means that it cannot start.
pub fn main<C: Settings>(
    name: &str,
    default_file: &str,
    load: fn(&Path) -> Result<C, Problems>,
    run: fn(C, &Supervisor) -> Result<(), String>,
) -> ExitCode {
    let order = match parse(name, default_file, std::env::args_os().skip(1)) {
        Ok(order) => order,
        Err(text) => {
            to_stderr(&format!("{name}: {text}\nTry {name} -h\n"));
            return Exit::Usage.into();
        }
    };
    let (file, only_check) = match order {
        Order::Show(text) => return show(&text),
        Order::Check(file) => (file, true),
        Order::Run(file) => (file, false),
    };
    match load(&file) {
        Err(problems) => {
            let count = problems.0.len();
            let plural = if count == 1 { "" } else { "s" };
            to_stderr(&format!("{problems}{name}: {count} problem{plural} in the configuration\n"));
            Exit::CannotStart.into()
        }
        Ok(_) if only_check => show(&format!("{}: the configuration is good\n", file.display())),
        Ok(config) => start(name, &file, config, run).into(),
    }
}

/// Prints to stdout; whoever does not read it has not asked.
fn show(text: &str) -> ExitCode {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    Exit::Asked.into()
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Order {
    Show(String),
    Check(PathBuf),
    Run(PathBuf),
}

fn parse(name: &str, default_file: &str, arguments: impl Iterator<Item = OsString>) -> Result<Order, String> {
    let mut options = Options::new();
    options.optopt("f", "file", &format!("configuration file (default {default_file})"), "FILE");
    options.optflag("t", "test", "check the configuration, print every problem, and exit with 0 or 1");
    options.optflag("V", "version", "print the version and exit");
    options.optflag("h", "help", "print this and exit");
    let originals: Vec<OsString> = arguments.collect();
    // getopts takes UTF-8 only, but a path may be any bytes: such an argument is parsed under a name that no
    // argument can have, since none contains a NUL.
    let stand_ins = originals.iter().enumerate().map(|(index, original)| match original.to_str() {
        Some(text) => text.to_owned(),
        None => format!("\0{index}"),
    });
    let original = |text: String| match text.strip_prefix('\0').and_then(|index| index.parse::<usize>().ok()) {
        Some(index) => originals.get(index).cloned().unwrap_or_default(),
        None => text.into(),
    };
    let matches = options.parse(stand_ins).map_err(|problem| problem.to_string())?;
    if let Some(unknown) = matches.free.first() {
        return Err(format!("takes no argument {}", original(unknown.clone()).display()));
    }
    if matches.opt_present("h") {
        return Ok(Order::Show(options.usage(&format!("Usage: {name} [-f FILE] [-t]"))));
    }
    if matches.opt_present("V") {
        return Ok(Order::Show(format!("{name} {}\n", env!("CARGO_PKG_VERSION"))));
    }
    let file = matches.opt_str("f").map_or_else(|| default_file.into(), original);
    if file.as_os_str() == OsStr::new("") {
        return Err("-f needs the name of a file".to_owned());
    }
    let file = PathBuf::from(file);
    Ok(if matches.opt_present("t") { Order::Check(file) } else { Order::Run(file) })
}

fn start<C: Settings>(name: &str, file: &Path, config: C, run: fn(C, &Supervisor) -> Result<(), String>) -> Exit {
    let cannot_start = |cause: &dyn Display| {
        to_stderr(&format!("{name}: cannot start: {cause}\n"));
        Exit::CannotStart
    };
    // Before anything else, so that a signal during the start is an ordered stop as well.
    let signals = match Signals::new([SIGTERM, SIGINT, SIGHUP]) {
        Ok(signals) => signals,
        Err(cause) => return cannot_start(&format!("signals cannot be handled: {cause}")),
    };
    // Inherited by every thread: a signal in the middle of a write would cut it short, and the `kafka` crate
    // takes a short write for a whole one. The thread that waits for signals takes them all.
    take_signals_here(false);
    if let Err(cause) = logging::start(name, config.log()) {
        return cannot_start(&cause);
    }
    let open_files = raise_open_files();
    info!(
        "{name} {} starts: process {}, configuration {}, open files at most {open_files}",
        env!("CARGO_PKG_VERSION"),
        process::id(),
        file.display()
    );
    let grace = config.shutdown_grace();
    // The threads of the process outlive those of the daemon, to watch them end.
    let process = Supervisor::new("process", Stop::new());
    let daemon = Supervisor::new(name, process.stop().child());
    let (stop, reloads) = (daemon.stop().clone(), daemon.reloads().clone());
    process.spawn_task("signals", move || {
        take_signals_here(true);
        watch_signals(signals, &stop, &reloads);
    });
    let stop = daemon.stop().clone();
    process.spawn_task("watchdog", move || {
        stop.wait();
        std::thread::sleep(grace + MARGIN);
        error!("the stop took longer than shutdown_grace_ms = {}; the rest is abandoned", grace.as_millis());
        leave(Exit::GraceExceeded);
    });
    let exit = serve(&daemon, grace, config, run);
    info!("{name} ends with exit code {}", exit as u8);
    if exit == Exit::GraceExceeded {
        // Threads still run, and what they use must not be taken down under them.
        leave(exit);
    }
    exit
}

fn serve<C>(daemon: &Supervisor, grace: Duration, config: C, run: fn(C, &Supervisor) -> Result<(), String>) -> Exit {
    let outcome = panics::catch(|| run(config, daemon));
    let was_asked = daemon.stop().is_triggered() && daemon.failure().is_none();
    let exit = match outcome {
        Err(text) => {
            error!("thread main panicked: {text}");
            Exit::PartEnded
        }
        Ok(Err(cause)) if was_asked => {
            error!("the stop was not complete: {cause}");
            Exit::GraceExceeded
        }
        Ok(Err(cause)) if daemon.failure().is_none() => {
            error!("cannot start: {cause}");
            to_stderr(&format!("{}: cannot start: {cause}\n", daemon.name()));
            Exit::CannotStart
        }
        Ok(Err(cause)) => {
            error!("{cause}");
            Exit::PartEnded
        }
        Ok(Ok(())) if was_asked => Exit::Asked,
        Ok(Ok(())) if daemon.failure().is_none() => {
            error!("thread main returned unasked");
            Exit::PartEnded
        }
        Ok(Ok(())) => Exit::PartEnded,
    };
    let began = Instant::now();
    daemon.stop().trigger();
    match daemon.join(grace) {
        Ended::Stopped => exit,
        Ended::Failed(failure) => {
            error!("{failure}, so {} ends", daemon.name());
            to_stderr(&format!("{}: {failure}\n", daemon.name()));
            if exit == Exit::Asked { Exit::PartEnded } else { exit }
        }
        Ended::StillRunning(threads) => {
            error!("still running {} ms after the stop: {}", began.elapsed().as_millis(), threads.join(", "));
            Exit::GraceExceeded
        }
    }
}

fn watch_signals(mut signals: Signals, stop: &Stop, reloads: &Reloads) {
    for signal in signals.forever() {
        match signal {
            SIGHUP => {
                logging::reopen();
                info!("SIGHUP: the log files were opened anew");
                reloads.run();
            }
            _ if stop.is_triggered() => {
                warn!("a second signal ({signal}): stopping at once");
                leave(Exit::StoppedAtOnce);
            }
            _ => {
                info!("signal {signal}: stopping");
                stop.trigger();
            }
        }
    }
}

/// Whether the signals of a daemon may interrupt the calling thread, and those it starts from now on.
fn take_signals_here(taken: bool) {
    let how = if taken { libc::SIG_UNBLOCK } else { libc::SIG_BLOCK };
    // SAFETY: the set is emptied before it is used, and lives through the calls.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut());
    }
}

/// Ends the process at once, while its threads run: no destructor and no `atexit` function is called.
fn leave(exit: Exit) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(exit as i32) }
}

/// Allows as many open files as the system lets this process have; returns how many. Idempotent.
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
    use std::os::unix::ffi::OsStringExt;

    fn order(arguments: &[&str]) -> Result<Order, String> {
        parse("kproxy", "./conf/kproxy.yaml", arguments.iter().map(OsString::from))
    }

    #[test]
    fn the_command_line_is_an_order_or_a_complaint() {
        for (arguments, expected) in [
            (&[][..], Order::Run("./conf/kproxy.yaml".into())),
            (&["-f", "a.yaml"], Order::Run("a.yaml".into())),
            (&["-fa.yaml", "-t"], Order::Check("a.yaml".into())),
            (&["--test", "--file=a b"], Order::Check("a b".into())),
            (&["-V", "-f", "x"], Order::Show(concat!("kproxy ", env!("CARGO_PKG_VERSION"), "\n").into())),
        ] {
            assert_eq!(order(arguments), Ok(expected), "{arguments:?}");
        }
        assert!(matches!(order(&["-h"]), Ok(Order::Show(text)) if text.contains("-f, --file FILE")));
        for arguments in [&["-x"][..], &["-f"], &["-f", ""], &["-f", "a", "-f", "b"], &["stray"], &["-t", "a.yaml"]] {
            assert!(order(arguments).is_err(), "{arguments:?}");
        }
    }

    #[test]
    fn a_path_may_be_any_bytes() {
        let path = OsString::from_vec(b"/tmp/\xff.yaml".to_vec());
        let order = parse("kproxy", "x", [OsString::from("-f"), path.clone()].into_iter());
        assert_eq!(order, Ok(Order::Run(path.clone().into())));
        assert!(parse("kproxy", "x", [path].into_iter()).is_err());
    }

    struct Nothing;

    const GRACE: Duration = Duration::from_millis(200);

    type Run = fn(Nothing, &Supervisor) -> Result<(), String>;

    fn served(run: Run) -> Exit {
        serve(&Supervisor::new("d", Stop::new()), GRACE, Nothing, run)
    }

    #[test]
    fn every_end_has_its_exit_code() {
        let ends: [(Run, Exit); 8] = [
            (
                |_, group| {
                    let stop = group.stop().clone();
                    group.spawn("obeys", move || stop.wait());
                    group.stop().trigger();
                    Ok(())
                },
                Exit::Asked,
            ),
            (|_, _| Ok(()), Exit::PartEnded),
            (|_, _| Err("port taken".into()), Exit::CannotStart),
            (|_, _| panic!("at once"), Exit::PartEnded),
            (
                |_, group| {
                    group.spawn("leaves", || ());
                    group.stop().wait();
                    Ok(())
                },
                Exit::PartEnded,
            ),
            (
                |_, group| {
                    group.spawn("panics", || panic!("later"));
                    group.stop().wait();
                    Err("half stopped".into())
                },
                Exit::PartEnded,
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
                    group.spawn("sticky", || std::thread::sleep(GRACE * 20));
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
