//! What SIGHUP makes a daemon read anew: credentials, certificates and other files that change while it runs.
//!
//! A part that can be reloaded registers an action; the thread that waits for signals runs them all, in the order of
//! registration. An action that fails leaves what was there before in force.

use std::fmt;
use std::sync::{Arc, Mutex};

use log::{error, info, warn};

use crate::locks::lock;
use crate::panics;

/// Reads something anew; what is new in words, or why what was there stays.
type Action = Box<dyn FnMut() -> Result<String, String> + Send>;

/// The actions of one daemon. Clones share them; there are as many as parts were started.
#[derive(Clone, Default)]
pub struct Reloads {
    actions: Arc<Mutex<Vec<(&'static str, Action)>>>,
}

impl Reloads {
    /// From now on `action` is run on SIGHUP; `what` names in the log what it reads. It must be quick.
    pub fn add(&self, what: &'static str, action: impl FnMut() -> Result<String, String> + Send + 'static) {
        lock(&self.actions).push((what, Box::new(action)));
    }

    /// Runs them all; says in the log what came of each.
    pub fn run(&self) {
        for (what, action) in lock(&self.actions).iter_mut() {
            match panics::catch(action) {
                Ok(Ok(news)) => info!("{what} read anew: {news}"),
                Ok(Err(why)) => warn!("{what} could not be read anew, what was there stays in force: {why}"),
                Err(text) => error!("{what} could not be read anew, it panicked: {text}"),
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
