//! Reloading on SIGHUP: credentials, certificates and other files that change while a daemon runs.
//!
//! Each part that can be reloaded registers an action. The thread that receives signals runs all actions, in the order
//! of registration. If an action fails, the previous state of its part stays in force.

use std::fmt;
use std::sync::{Arc, Mutex};

use log::{error, info, warn};

use crate::locks::lock;
use crate::panics;

/// Reloads one part; returns a text for the log: what was loaded, or why the reload failed.
type Action = Box<dyn FnMut() -> Result<String, String> + Send>;

/// The actions of one daemon, at most one for each part. Clones share the actions.
#[derive(Clone, Default)]
pub(crate) struct Reloads {
    actions: Arc<Mutex<Vec<(&'static str, Action)>>>,
}

impl Reloads {
    /// Runs `action` on each SIGHUP from now on. `what` is the name, in log lines, of what the action reloads. The
    /// action must be quick, since no signal is handled while it runs.
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
    }
}
