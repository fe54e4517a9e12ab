//! The process of a server that a story may kill, freeze and start again.

use std::process::ExitStatus;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::process::Process;

pub(crate) struct Victim {
    process: Mutex<Process>,
    launch: Box<dyn Fn() -> Process + Send + Sync>,
}

impl Victim {
    /// Launches it; so does every [`Victim::relaunch`].
    pub(crate) fn new(launch: impl Fn() -> Process + Send + Sync + 'static) -> Victim {
        Victim { process: Mutex::new(launch()), launch: Box::new(launch) }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// The CPU time it has used so far.
    pub(crate) fn cpu_time(&self) -> Duration {
        self.process().cpu_time()
    }

    /// Ends it at once.
    pub(crate) fn kill9(&self) {
        self.process().kill9();
    }

    /// Launches it again; ends it before if it still runs.
    pub(crate) fn relaunch(&self) {
        let mut process = self.process();
        process.kill9();
        *process = (self.launch)();
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        self.process().ended()
    }

    /// Freezes it: connections stay open and nothing answers.
    pub(crate) fn stop_process(&self) {
        self.process().signal(libc::SIGSTOP);
    }

    /// Lets it go on.
    pub(crate) fn continue_process(&self) {
        self.process().signal(libc::SIGCONT);
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
