//! Whether a broker can be reached.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use log::{info, warn};

use crate::locks::lock;

/// Whether a broker can be reached, by the latest checks of the metadata thread.
pub(super) struct Reachability {
    /// Whether appends are refused at once.
    pub(super) is_refusing: AtomicBool,
    pub(super) state: Mutex<Result<(), String>>,
}

impl Reachability {
    pub(super) fn new() -> Self {
        Reachability {
            is_refusing: AtomicBool::new(false),
            state: Mutex::new(Err("no broker has responded yet".to_owned())),
        }
    }

    pub(super) fn reason(&self) -> String {
        let state = lock(&self.state);
        state.clone().err().unwrap_or_else(|| "no broker can be reached".to_owned())
    }

    pub(super) fn set(&self, outcome: Result<(), String>, is_refusing: bool) {
        let was_refusing = self.is_refusing.swap(is_refusing, Ordering::Relaxed);
        match (&outcome, was_refusing, is_refusing) {
            (Err(reason), false, true) => warn!("no broker can be reached, commits fail until one can: {reason}"),
            (Ok(()), true, _) => info!("a broker can be reached again"),
            _ => {}
        }
        *lock(&self.state) = outcome;
    }
}
