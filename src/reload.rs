//! Reloading on SIGHUP: credentials, certificates and other files that change while a daemon runs.
//!
//! Each part that can be reloaded registers an action. The thread that receives signals runs all actions, in the order
//! of registration. After a failed action the previous state stays in force.

use std::fmt;
use std::sync::{Arc, Mutex};

use log::{error, info, warn};

use crate::locks::lock;
use crate::panics;

/// Reloads something; returns, for the log, what was loaded, or why nothing was.
type Action = Box<dyn FnMut() -> Result<String, String> + Send>;

/// The actions of one daemon, at most one for each part. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Reloads {
    actions: Arc<Mutex<Vec<(&'static str, Action)>>>,
}

impl Reloads {
    /// Runs `action` on each SIGHUP from now on. `what` names in the log what it reloads. The action must be quick,
    /// since signals wait for it.
    pub(crate) fn add(&self, what: &'static str, action: impl FnMut() -> Result<String, String> + Send + 'static) {
        lock(&self.actions).push((what, Box::new(action)));
    }

    /// Runs all actions and logs the outcome of each.
    pub(crate) fn run(&self) {
        for (what, action) in lock(&self.actions).iter_mut() {
            match panics::catch(action) {
                Ok(Ok(loaded)) => info!("{what} reloaded: {loaded}"),
                Ok(Err(why)) => warn!("{what} could not be reloaded, the previous state stays in force: {why}"),
                Err(text) => error!("{what} could not be reloaded: panicked: {text}"),
            }
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
    fn one_action_that_fails_or_panics_does_not_keep_the_others_from_running() {
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
    }
}
