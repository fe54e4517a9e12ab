//! The thread that stores the dead letters of all modules; it is started with the first module that has a dead-letter
//! topic, which may be one that a reload adds.

use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender};

use super::config::Config;
use super::connections::{Connections, ZookeeperSession};
use super::dead_letters::{self, Letter};
use super::group::GroupObservers;
use crate::locks::lock;
use crate::supervise::Supervisor;

/// The thread, and where letters are sent.
pub(super) struct LetterThread {
    config: Arc<Config>,
    zookeeper: Option<ZookeeperSession>,
    threads: Supervisor,
    sender: Sender<Letter>,
    /// `None` once the thread was started.
    letters: Mutex<Option<Receiver<Letter>>>,
}

impl LetterThread {
    /// Starts nothing yet; the thread will belong to `threads`.
    pub(super) fn new(
        config: &Arc<Config>,
        zookeeper: Option<&ZookeeperSession>,
        threads: &Supervisor,
    ) -> LetterThread {
        let (sender, letters) = dead_letters::channel();
        LetterThread {
            config: Arc::clone(config),
            zookeeper: zookeeper.cloned(),
            threads: threads.clone(),
            sender,
            letters: Mutex::new(Some(letters)),
        }
    }

    /// Returns where letters are sent. Starts the thread if it does not run.
    pub(super) fn sender(&self) -> Sender<Letter> {
        if let Some(letters) = lock(&self.letters).take() {
            let (config, zookeeper) = (Arc::clone(&self.config), self.zookeeper.clone());
            let connections = Connections { config, zookeeper, observers: GroupObservers::default() };
            let group = self.threads.clone();
            self.threads.spawn("dead-letters", move || {
                dead_letters::store_letters(&letters, group.stop(), || connections.letter_producer(&group));
            });
        }
        self.sender.clone()
    }
}
