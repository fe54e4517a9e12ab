//! The modules of this process, as operators reach them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, bounded};
use serde_json::{Value, json};

use super::request::{OperatorLink, Request};
use super::status::StatusBoard;
use crate::broker::LogEnds;
use crate::ktransfer::group::StoreReceipts;
use crate::ktransfer::pauses::PauseTable;
use crate::ktransfer::read_errors::ReadErrors;
use crate::locks::lock;

/// Bound of the requests to one module. Only the thread `operations` sends them, one after the other; those that are
/// left were withdrawn while the module did not run.
const QUEUED_REQUESTS: usize = 4;

/// Makes a client that looks up the offsets of partitions; the error is the reason why that is not possible yet.
pub(crate) type ConnectLogEnds = Arc<dyn Fn() -> Result<Box<dyn LogEnds>, String> + Send + Sync>;

/// One module. Clones share everything.
#[derive(Clone)]
pub(crate) struct ModuleHandle {
    /// Name of the module.
    pub(crate) name: Arc<str>,
    /// Its topic.
    pub(crate) topic: Arc<str>,
    /// To the dispatcher.
    pub(super) requests: Sender<Request>,
    inbox: Receiver<Request>,
    /// The pauses of the module.
    pub(crate) pauses: PauseTable,
    /// The latest status.
    pub(crate) status: StatusBoard,
    /// Which positions the group has stored.
    pub(crate) receipts: StoreReceipts,
    /// For the offsets of a seek.
    pub(super) connect: ConnectLogEnds,
}

impl ModuleHandle {
    /// Creates the handle of a module that has not started.
    pub(crate) fn new(name: Arc<str>, topic: Arc<str>, pauses: PauseTable, connect: ConnectLogEnds) -> ModuleHandle {
        let (requests, inbox) = bounded(QUEUED_REQUESTS);
        let (status, receipts) = (StatusBoard::default(), StoreReceipts::default());
        ModuleHandle { name, topic, requests, inbox, pauses, status, receipts, connect }
    }

    /// Returns the dispatcher's end.
    pub(crate) fn link(&self) -> OperatorLink {
        OperatorLink {
            requests: Some(self.inbox.clone()),
            pauses: self.pauses.clone(),
            status: self.status.clone(),
            receipts: self.receipts.clone(),
            read_errors: ReadErrors::default(),
        }
    }

    /// Returns the module as operators see it.
    pub(super) fn json(&self) -> Value {
        let latest = self.status.latest();
        let age_ms = latest.as_ref().map(|(at, _)| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX));
        json!({
            "name": &*self.name,
            "topic": &*self.topic,
            "state": if latest.is_some() { "running" } else { "not_running" },
            "age_ms": age_ms,
            "paused": self.pauses.present(),
            "window": latest.as_ref().map(|(_, status)| &status.window),
            "messages": latest.as_ref().map(|(_, status)| &status.messages),
            "per_second": latest.as_ref().map(|(_, status)| &status.per_second),
            "backends": latest.as_ref().map(|(_, status)| &status.backends),
            "partitions": latest.as_ref().map(|(_, status)| &status.partitions),
        })
    }
}

/// All modules by name. Clones share the table.
#[derive(Clone, Default)]
pub(crate) struct Operations {
    modules: Arc<Mutex<BTreeMap<Arc<str>, ModuleHandle>>>,
}

impl Operations {
    /// Adds a module, or replaces the one of the same name.
    pub(crate) fn add(&self, handle: ModuleHandle) {
        lock(&self.modules).insert(Arc::clone(&handle.name), handle);
    }

    /// Removes a module.
    pub(crate) fn remove(&self, name: &str) {
        lock(&self.modules).remove(name);
    }

    /// Returns the module of this name.
    pub(crate) fn get(&self, name: &str) -> Option<ModuleHandle> {
        lock(&self.modules).get(name).cloned()
    }

    /// Returns all modules, in the order of their names.
    pub(crate) fn all(&self) -> Vec<ModuleHandle> {
        lock(&self.modules).values().cloned().collect()
    }
}
