//! The process of a server (Kafka, ZooKeeper) that a story may kill, freeze and start again.

use std::process::ExitStatus;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::process::Process;

pub(crate) struct ServerProcess {
    process: Mutex<Process>,
    launch: Box<dyn Fn() -> Process + Send + Sync>,
}

impl ServerProcess {
    /// Starts the process with `launch`, which [`ServerProcess::relaunch`] calls again.
    pub(crate) fn new(launch: impl Fn() -> Process + Send + Sync + 'static) -> ServerProcess {
        ServerProcess { process: Mutex::new(launch()), launch: Box::new(launch) }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// Returns the CPU time that the process has used so far.
    pub(crate) fn cpu_time(&self) -> Duration {
        self.process().cpu_time()
    }

    /// Sends SIGKILL; returns when the process is gone.
    pub(crate) fn kill9(&self) {
        self.process().kill9();
    }

    /// Sends SIGTERM; returns when the process has ended, in whatever way. Panics at the deadline.
    pub(crate) fn terminate(&self, deadline: Duration) {
        let mut process = self.process();
        process.signal(libc::SIGTERM);
        process.wait(deadline);
    }

    /// Kills the process if it still runs, and starts a new one.
    pub(crate) fn relaunch(&self) {
        let mut process = self.process();
        process.kill9();
        *process = (self.launch)();
    }

    /// Returns the exit status; `None` while the process runs.
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        self.process().ended()
    }

    /// Sends SIGSTOP: its connections stay open, and the process answers nothing.
    pub(crate) fn freeze(&self) {
        self.process().signal(libc::SIGSTOP);
    }

    /// Sends SIGCONT, which ends [`ServerProcess::freeze`].
    pub(crate) fn unfreeze(&self) {
        self.process().signal(libc::SIGCONT);
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
