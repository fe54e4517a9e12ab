//! Child processes and folders that never outlive this process. Three mechanisms ensure that:
//!
//! - Dropping a [`Process`] kills it.
//! - The kernel kills a child when the thread that forked it ends. So one thread forks all children, and that thread
//!   lives as long as this process.
//! - A watchdog shell reads a pipe from this process. When the pipe closes, the shell kills the remaining children and
//!   removes the folders. It is needed also when this process exits normally, since Rust does not drop statics.

use std::collections::hash_map::RandomState;
use std::ffi::CString;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use super::poll;

/// The script of the watchdog shell, which ends shortly after this process. `$1` is the folder to remove.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP QUIT
pids=' '
while read -r word pid; do
    case $word in
        start) pids="$pids$pid " ;;
        end) case $pids in *" $pid "*) pids="${pids%% $pid *} ${pids#* $pid }" ;; esac ;;
    esac
done
for pid in $pids; do kill -9 "$pid"; done
tries=0
while [ -e "$1" ] && [ "$tries" -lt 50 ]; do
    rm -rf "$1" || sleep 0.1
    tries=$((tries + 1))
done
"#;

struct Watchdog {
    pipe: Mutex<ChildStdin>,
    folder: PathBuf,
    _shell: Child,
}

fn watchdog() -> &'static Watchdog {
    static WATCHDOG_OF_THIS_PROCESS: OnceLock<Watchdog> = OnceLock::new();
    WATCHDOG_OF_THIS_PROCESS.get_or_init(|| {
        let name = format!("kafka-http-wrapper-{}-{:08x}", std::process::id(), random() as u32);
        let folder = std::env::temp_dir().join(name);
        let mut shell = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog"])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("sh starts");
        fs::create_dir_all(&folder).expect("a temporary folder");
        let pipe = Mutex::new(shell.stdin.take().expect("stdin is piped"));
        Watchdog { pipe, folder, _shell: shell }
    })
}

fn notify_watchdog(word: &str, pid: u32) {
    let mut pipe = watchdog().pipe.lock().expect("writing a line does not panic");
    // The write fails if the watchdog was killed; the other two mechanisms still work.
    let _ = writeln!(pipe, "{word} {pid}");
}

/// Returns the temporary folder of this process, which the watchdog removes when this process ends.
pub(crate) fn root() -> &'static Path {
    &watchdog().folder
}

/// Creates an empty folder below [`root`]; returns its path.
pub(crate) fn folder(name: &str) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let path = root().join(format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir_all(&path).expect("a temporary folder");
    path
}

/// Creates a named pipe.
pub(crate) fn make_fifo(path: &Path) {
    let name = CString::new(path.as_os_str().as_encoded_bytes()).expect("a path without NUL");
    // SAFETY: the name is a valid string for the call.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0, "{}", path.display());
}

/// Returns a random number.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Returns a free loopback port. No process that uses the harness chooses this port again while this process lives.
///
/// The port is below the range of ephemeral ports. In that range, a client that keeps retrying the port of a stopped
/// server would sooner or later connect to itself, and the server could not bind its port again.
pub(crate) fn free_port() -> u16 {
    static CLAIMS: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    loop {
        let port = 12_000 + (random() % 20_000) as u16;
        let name = SocketAddr::from_abstract_name(format!("kafka-http-wrapper-port-{port}")).expect("a short name");
        let Ok(claim) = UnixListener::bind_addr(&name) else {
            continue;
        };
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            CLAIMS.lock().expect("a push does not panic").push(claim);
            return port;
        }
    }
}

type Job = (Command, Sender<io::Result<Child>>);

/// Starts a child process that the kernel kills when this process ends.
fn spawn(mut command: Command) -> io::Result<Child> {
    static JOBS: OnceLock<Sender<Job>> = OnceLock::new();
    let own_pid = std::process::id();
    command.process_group(0);
    // SAFETY: the closure only calls prctl and getppid, which are plain system calls, and it does not allocate.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid() as u32 == own_pid { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
        });
    }
    let jobs = JOBS.get_or_init(|| {
        let (sender, jobs) = channel::<Job>();
        std::thread::Builder::new()
            .name("forks".into())
            .spawn(move || {
                for (mut command, done) in jobs {
                    let _ = done.send(command.spawn());
                }
            })
            .expect("a thread");
        sender
    });
    let (done, child) = channel();
    jobs.send((command, done)).expect("the forking thread lives");
    let child = child.recv().expect("the forking thread answers")?;
    notify_watchdog("start", child.id());
    Ok(child)
}

/// A child process; dropping the value kills it.
pub(crate) struct Process {
    name: String,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`; its stdout and stderr are appended to the file `output`.
    pub(crate) fn start(name: &str, mut command: Command, output: &Path) -> Process {
        let file = File::options().create(true).append(true).open(output).expect("an output file");
        let errors = file.try_clone().expect("a file handle can be duplicated");
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        let child = spawn(command).unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Process { name: name.to_owned(), child, ended: None }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the CPU time that the process has used so far.
    pub(crate) fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("the process runs");
        let after_name = stat.rsplit(')').next().expect("a line");
        let ticks: u64 = after_name.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
        // The kernel counts CPU time in ticks of 10 ms here (`USER_HZ`, proc(5)).
        Duration::from_millis(ticks * 10)
    }

    /// Sends a signal, unless the process has ended. The threads of a process stop one by one, so after SIGSTOP this
    /// returns only when every thread has stopped.
    pub(crate) fn signal(&mut self, signal: libc::c_int) {
        if self.ended().is_none() {
            // SAFETY: a plain system call. The child has not been waited for, so its pid was not reused.
            unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
            if signal == libc::SIGSTOP {
                let stopped = poll(Duration::from_secs(10), || self.is_stopped().then_some(()));
                assert!(stopped.is_some(), "{} (pid {}) does not stop", self.name, self.pid());
            }
        }
    }

    /// Returns whether all threads of the process have stopped (proc(5), the state in `stat`).
    fn is_stopped(&self) -> bool {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.pid())) else { return false };
        threads.flatten().all(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit(')').next().is_some_and(|after_name| after_name.trim_start().starts_with('T'))
        })
    }

    /// Returns the exit status; `None` while the process runs.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child of this process");
            if self.ended.is_some() {
                notify_watchdog("end", self.child.id());
            }
        }
        self.ended
    }

    /// Waits until the process has ended; returns its exit status. Panics at the deadline.
    #[track_caller]
    pub(crate) fn wait(&mut self, deadline: Duration) -> ExitStatus {
        match poll(deadline, || self.ended()) {
            Some(status) => status,
            None => panic!("{} (pid {}) still runs after {deadline:?}", self.name, self.pid()),
        }
    }

    /// Sends SIGKILL; returns when the process is gone.
    pub(crate) fn kill9(&mut self) {
        self.signal(libc::SIGKILL);
        if self.ended.is_none() {
            let _ = self.child.wait();
            self.ended();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Returns a command that runs one test of this test binary in a new process. `module` is `module_path!()`.
pub(crate) fn rerun_test(module: &str, test: &str) -> Command {
    let module = module.split_once("::").map_or("", |(_, module)| module);
    let mut command = Command::new(std::env::current_exe().expect("the path of this binary"));
    command.args(["--exact", &format!("{module}::{test}"), "--nocapture"]);
    command
}

/// Returns the last `n_lines` of a file, or a note that the file cannot be read.
pub(crate) fn tail(path: &Path, n_lines: usize) -> String {
    let Ok(bytes) = fs::read(path) else {
        return format!("({} cannot be read)", path.display());
    };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(n_lines)..].join("\n")
}
