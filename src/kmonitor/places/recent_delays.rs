//! The delays of a place at the end of each of the last minutes, for sentences such as "falls by 80/s". Pure.

use std::time::Duration;

/// Number of minutes whose delays are kept.
const MINUTES: u32 = 6;
/// A delay that was not known.
const UNKNOWN: u64 = u64::MAX;

/// The delays of the last minutes, at times since the start of the poller.
#[derive(Debug)]
pub(super) struct RecentDelays {
    /// The minute `m` is at `m % MINUTES`; [`UNKNOWN`] without a delay.
    delays: [u64; MINUTES as usize],
    /// The last minute in `delays`.
    minute: u32,
}

impl RecentDelays {
    pub(super) fn new() -> Self {
        RecentDelays { delays: [UNKNOWN; MINUTES as usize], minute: 0 }
    }

    /// Keeps the delay of now.
    pub(super) fn keep(&mut self, elapsed: Duration, delay: Option<u64>) {
        let now = minute(elapsed);
        for skipped in self.minute.saturating_add(1).max(now.saturating_sub(MINUTES))..now {
            self.delays[(skipped % MINUTES) as usize] = UNKNOWN;
        }
        self.minute = self.minute.max(now);
        self.delays[(self.minute % MINUTES) as usize] = delay.unwrap_or(UNKNOWN);
    }

    /// The delay at the end of the minute that lies `minutes` before the present one.
    pub(super) fn before(&self, elapsed: Duration, minutes: u32) -> Option<u64> {
        let wanted = minute(elapsed).checked_sub(minutes)?;
        let is_kept = wanted <= self.minute && self.minute - wanted < MINUTES;
        Some(self.delays[(wanted % MINUTES) as usize]).filter(|delay| is_kept && *delay != UNKNOWN)
    }
}

fn minute(elapsed: Duration) -> u32 {
    u32::try_from(elapsed.as_secs() / 60).unwrap_or(u32::MAX)
}
