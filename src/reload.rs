//! Reloading on SIGHUP: credentials, certificates, modules and other files that change while a daemon runs.
//!
//! Each part that can be reloaded registers an action. A SIGHUP runs all actions, in the order of registration, on a
//! thread of its own, since a file may hang. If an action fails, the previous state of its part stays in force. A
//! SIGHUP during a reload makes all actions run once more after it; so there is one such thread at most.

use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex};

use log::{error, info};

use crate::locks::lock;
use crate::panics;

/// Reloads one part; returns a text for the log: what was loaded, or why the reload failed.
type Action = Box<dyn FnMut() -> Result<String, String> + Send>;

/// The actions of one daemon, at most one for each part. Clones share the actions.
#[derive(Clone, Default)]
pub(crate) struct Reloads {
    actions: Arc<Mutex<Vec<(&'static str, Action)>>>,
    progress: Arc<Mutex<Progress>>,
    /// The parts whose latest reload failed, each with the reason.
    failures: Arc<Mutex<Vec<(&'static str, String)>>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Progress {
    #[default]
    Idle,
    Running,
    /// A reload runs, and another one was requested since it began.
    RunningAgain,
}

impl Reloads {
    /// Runs `action` on each SIGHUP from now on. `what` is the name, in log lines, of what the action reloads.
    pub(crate) fn add(&self, what: &'static str, action: impl FnMut() -> Result<String, String> + Send + 'static) {
        lock(&self.actions).push((what, Box::new(action)));
    }

    /// Requests a reload. Returns a reload that the caller must run on a thread of its own, or `None` if one is
    /// running, which then runs all actions once more.
    pub(crate) fn request(&self) -> Option<RequestedReload> {
        let mut progress = lock(&self.progress);
        let is_running = *progress != Progress::Idle;
        *progress = if is_running { Progress::RunningAgain } else { Progress::Running };
        (!is_running).then(|| RequestedReload { reloads: self.clone(), is_over: false })
    }

    /// Returns the parts whose latest reload failed, so that their previous state is in force, each with the reason.
    pub(crate) fn failures(&self) -> Vec<(&'static str, String)> {
        lock(&self.failures).clone()
    }

    /// Runs all actions and logs the outcome of each.
    pub(crate) fn run(&self) {
        // Taken out, so that `add` does not wait for an action that hangs.
        let mut actions = mem::take(&mut *lock(&self.actions));
        for (what, action) in &mut actions {
            let outcome = panics::catch(action).unwrap_or_else(|text| Err(format!("panicked: {text}")));
            match &outcome {
                Ok(loaded) => info!("{what} reloaded: {loaded}"),
                Err(why) => error!("{what} could not be reloaded, the previous state stays in force: {why}"),
            }
            let mut failures = lock(&self.failures);
            failures.retain(|(failed, _)| failed != what);
            failures.extend(outcome.err().map(|why| (*what, why)));
        }
        lock(&self.actions).splice(0..0, actions);
    }
}

/// A reload that was requested. If it is dropped without having run, the next request returns a new one.
pub(crate) struct RequestedReload {
    reloads: Reloads,
    is_over: bool,
}

impl RequestedReload {
    /// Runs all actions, and once more if a reload is requested meanwhile.
    pub(crate) fn run(mut self) {
        while !self.is_over {
            self.reloads.run();
            let mut progress = lock(&self.reloads.progress);
            self.is_over = *progress != Progress::RunningAgain;
            *progress = if self.is_over { Progress::Idle } else { Progress::Running };
        }
    }
}

impl Drop for RequestedReload {
    fn drop(&mut self) {
        if !self.is_over {
            *lock(&self.reloads.progress) = Progress::Idle;
        }
    }
}

impl fmt::Debug for Reloads {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Reloads")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn after_an_action_that_fails_or_panics_the_others_still_run() {
        let reloads = Reloads::default();
        let (sender, ran) = mpsc::channel();
        reloads.add("a", || Err("no such file".to_owned()));
        reloads.add("b", || panic!("in the action"));
        reloads.clone().add("c", move || {
            sender.send(()).unwrap();
            Ok("fine".to_owned())
        });
        reloads.run();
        reloads.run();
        assert_eq!(ran.try_iter().count(), 2);
        let failures = reloads.failures();
        assert_eq!(failures, [("a", "no such file".to_owned()), ("b", "panicked: in the action".to_owned())]);
    }

    #[test]
    fn a_failure_lasts_until_the_next_reload_of_its_part() {
        let reloads = Reloads::default();
        let mut outcomes = [Ok("1"), Err("bad"), Err("worse"), Ok("2")].into_iter();
        reloads.add("a", move || outcomes.next().unwrap().map(str::to_owned).map_err(str::to_owned));
        for expected in [None, Some("bad"), Some("worse"), None] {
            reloads.run();
            let failures: Vec<_> = reloads.failures().into_iter().map(|(_, why)| why).collect();
            assert_eq!(failures, expected.as_slice());
        }
    }

    #[test]
    fn a_request_during_a_reload_runs_the_actions_once_more() {
        let reloads = Reloads::default();
        let (sender, ran) = mpsc::channel();
        let requests = reloads.clone();
        let mut n_requests = 2;
        reloads.add("a", move || {
            sender.send(()).unwrap();
            let again = (0..n_requests).filter(|_| requests.request().is_some()).count();
            n_requests = 0;
            Ok(format!("{again}"))
        });
        reloads.request().expect("no reload runs").run();
        assert_eq!(ran.try_iter().count(), 2, "two requests during the first run make one more run");
        drop(reloads.request().expect("no reload runs"));
        reloads.request().expect("the former reload was dropped").run();
        assert_eq!(ran.try_iter().count(), 1);
    }
}
