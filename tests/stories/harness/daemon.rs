//! Runs a daemon as users do: the real binary with its configuration files, in a folder of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use super::process::{Process, folder, tail};
use super::{http, poll, wait_until};

/// One of the three daemons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    Kproxy,
    Ktransfer,
    Kmonitor,
}

impl Program {
    /// Returns the path of this program's binary in `folder`; panics if there is no such file.
    pub(crate) fn in_folder(self, folder: &Path) -> PathBuf {
        let path = folder.join(self.file_name());
        path.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn file_name(self) -> &'static str {
        match self {
            Program::Kproxy => "kproxy_bin",
            Program::Ktransfer => "ktransfer_bin",
            Program::Kmonitor => "kmonitor_bin",
        }
    }
}

/// Returns the path of the binary: in the folder `KAFKA_HTTP_WRAPPER_BIN_DIR` if set, else as cargo built it for this
/// run.
pub(crate) fn binary(program: Program) -> PathBuf {
    if let Some(folder) = std::env::var_os("KAFKA_HTTP_WRAPPER_BIN_DIR") {
        return program.in_folder(Path::new(&folder));
    }
    let built = match program {
        Program::Kproxy => option_env!("CARGO_BIN_EXE_kproxy_bin"),
        Program::Ktransfer => option_env!("CARGO_BIN_EXE_ktransfer_bin"),
        Program::Kmonitor => option_env!("CARGO_BIN_EXE_kmonitor_bin"),
    };
    built.expect("cargo passes the paths of the binaries to tests only; set KAFKA_HTTP_WRAPPER_BIN_DIR").into()
}

/// A running daemon; dropping the value kills it. If the story fails, the output and the last log lines of the
/// daemon are printed.
pub(crate) struct Daemon {
    program: Program,
    binary: PathBuf,
    folder: PathBuf,
    process: Process,
}

impl Daemon {
    /// Writes the files (name and text) into a new folder, and starts the daemon there with `-f` and the first file. So
    /// `./log` and `./conf/modules` are in that folder. Returns without waiting for the daemon.
    pub(crate) fn start(program: Program, files: &[(&str, &str)]) -> Daemon {
        Self::start_binary(program, binary(program), files)
    }

    /// As [`Daemon::start`], but runs the program at the path `binary`.
    pub(crate) fn start_binary(program: Program, binary: PathBuf, files: &[(&str, &str)]) -> Daemon {
        Self::start_in_environment(program, binary, files, &[])
    }

    /// As [`Daemon::start_binary`], with these environment variables besides those of this process.
    pub(crate) fn start_in_environment(
        program: Program,
        binary: PathBuf,
        files: &[(&str, &str)],
        environment: &[(&str, &str)],
    ) -> Daemon {
        let folder = folder(program.file_name());
        for (name, text) in files {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("a temporary folder");
            fs::write(path, text).expect("a file in a temporary folder");
        }
        let process = launch(program, &binary, &folder, &["-f", files[0].0], environment);
        Daemon { program, binary, folder, process }
    }

    /// Starts the daemon with these arguments in an empty folder.
    pub(crate) fn start_with_arguments(program: Program, arguments: &[&str]) -> Daemon {
        let folder = folder(program.file_name());
        let binary = binary(program);
        let process = launch(program, &binary, &folder, arguments, &[]);
        Daemon { program, binary, folder, process }
    }

    /// Starts the daemon again in the same folder with the same files, in the environment of this process; panics if it
    /// still runs.
    pub(crate) fn restart(&mut self, main_file: &str) {
        assert!(self.process.ended().is_some(), "{} still runs", self.program.file_name());
        self.process = launch(self.program, &self.binary, &self.folder, &["-f", main_file], &[]);
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Returns the folder in which the daemon runs.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Waits until a GET of `path` (`/healthz`, `/readyz`) at `host:port` is answered with 200; panics at the deadline,
    /// or at once when the daemon has ended.
    #[track_caller]
    pub(crate) fn wait_until_ok(&mut self, address: &str, path: &str, deadline: Duration) {
        let name = self.program.file_name();
        let url = format!("http://{address}{path}");
        let mut last = String::new();
        let ready = poll(deadline, || {
            if let Some(status) = self.ended() {
                panic!("{name} ended before {path} was answered with 200: {status}");
            }
            last = match http::get(&url) {
                Ok(answer) if answer.status == 200 => return Some(()),
                Ok(answer) => format!("{} {}", answer.status, answer.text()),
                Err(error) => error.to_string(),
            };
            None
        });
        assert!(ready.is_some(), "{name} does not answer {path} with 200 after {deadline:?}: {last}");
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&mut self) {
        self.process.signal(libc::SIGTERM);
    }

    /// Sends SIGKILL; returns when the process is gone.
    pub(crate) fn kill9(&mut self) {
        self.process.kill9();
    }

    pub(crate) fn signal(&mut self, signal: libc::c_int) {
        self.process.signal(signal);
    }

    /// Returns the exit status; `None` while the daemon runs.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// Waits until the daemon has ended; returns its exit status. Panics at the deadline.
    #[track_caller]
    pub(crate) fn wait(&mut self, deadline: Duration) -> ExitStatus {
        self.process.wait(deadline)
    }

    /// Sends SIGTERM; panics if the daemon does not exit with 0 within the deadline.
    #[track_caller]
    pub(crate) fn stop(&mut self, deadline: Duration) {
        self.terminate();
        let status = self.wait(deadline);
        assert_eq!(status.code(), Some(0), "{} after SIGTERM: {status}", self.program.file_name());
    }

    /// Returns the text of all files in `./log`.
    pub(crate) fn log(&self) -> String {
        let Ok(entries) = fs::read_dir(self.folder.join("log")) else {
            return String::new();
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        let read = |path: &PathBuf| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        paths.iter().map(read).collect()
    }

    /// Returns the text that the daemon wrote to stdout and stderr.
    pub(crate) fn output(&self) -> String {
        tail(&self.folder.join("output"), usize::MAX)
    }

    /// Waits until the log of the daemon contains `text`.
    #[track_caller]
    pub(crate) fn wait_for_log(&self, text: &str, deadline: Duration) {
        wait_until(deadline, &format!("{text:?} in the log of {}", self.program.file_name()), || {
            self.log().contains(text)
        });
    }

    /// Returns the current resident memory in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.status_of_process("VmRSS:") * 1024
    }

    /// Returns the highest resident memory so far, in bytes.
    pub(crate) fn peak_resident_bytes(&self) -> u64 {
        self.status_of_process("VmHWM:") * 1024
    }

    /// Returns the current number of threads of the daemon.
    pub(crate) fn threads(&self) -> u64 {
        self.status_of_process("Threads:")
    }

    /// Returns a number from `/proc/PID/status`, see proc(5).
    fn status_of_process(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the daemon runs");
        let line = status.lines().find(|line| line.starts_with(name)).expect("a line of proc(5)");
        line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
    }

    /// Returns the sorted names of the threads that the daemon has now.
    pub(crate) fn thread_names(&self) -> Vec<String> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the daemon runs").flatten();
        let name = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("comm")).ok();
        let mut names: Vec<String> = threads.filter_map(name).map(|name| name.trim_end().to_owned()).collect();
        names.sort();
        names
    }

    /// Returns the threads that the daemon has now: their ids, and their names as far as the kernel keeps them.
    pub(crate) fn threads_by_id(&self) -> BTreeMap<u32, String> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the daemon runs").flatten();
        let thread = |thread: fs::DirEntry| {
            let name = fs::read_to_string(thread.path().join("comm")).ok()?;
            Some((thread.file_name().to_str()?.parse().ok()?, name.trim_end().to_owned()))
        };
        threads.filter_map(thread).collect()
    }

    /// Returns the mask of the signals that a thread blocks, in hexadecimal as proc(5) shows it.
    pub(crate) fn blocked_signals(&self, thread: u32) -> String {
        let path = format!("/proc/{}/task/{thread}/status", self.pid());
        let status = fs::read_to_string(path).expect("the thread runs");
        let line = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).expect("a line of proc(5)");
        line.trim().to_owned()
    }

    /// Returns the CPU time that the daemon has used so far.
    pub(crate) fn cpu_time(&self) -> Duration {
        self.process.cpu_time()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let name = self.program.file_name();
            let state = match self.process.ended() {
                Some(status) => format!("ended: {status}"),
                None => "running".to_owned(),
            };
            eprintln!("---- {name} (pid {}, {state}), outputs:\n{}", self.pid(), self.output());
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last_lines = lines[lines.len().saturating_sub(200)..].join("\n");
            eprintln!("---- {name}, the last of {} log lines:\n{last_lines}\n----", lines.len());
        }
    }
}

fn launch(program: Program, binary: &Path, folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Process {
    let mut command = Command::new(binary);
    command.args(arguments).current_dir(folder).env("RUST_BACKTRACE", "1").envs(environment.iter().copied());
    Process::start(program.file_name(), command, &folder.join("output"))
}
