mod cluster;
mod groups;
mod log_ends;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::kafka::error_code;

/// Longer than any test that passes.
const LONG: Duration = Duration::from_secs(60);

fn after(duration: Duration) -> Instant {
    Instant::now() + duration
}
