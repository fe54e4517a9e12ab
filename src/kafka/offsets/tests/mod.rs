mod cluster;
mod groups;
mod log_ends;

use std::time::Duration;

use super::*;

/// Longer than any test that passes.
const LONG: Duration = Duration::from_secs(60);

fn after(duration: Duration) -> Instant {
    Instant::now() + duration
}
