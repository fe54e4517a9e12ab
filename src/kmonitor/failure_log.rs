//! Logs failures to read a cluster: when a failure begins, while it lasts, when it ends, and if it recurs.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use log::{debug, info, warn};

/// Interval at which a failure that lasts is logged again, and over which failures that come and go are counted.
const REMIND_AFTER: Duration = Duration::from_secs(60);
/// A failure that is shorter is not logged, unless it comes and goes.
const LASTS_AFTER: Duration = Duration::from_secs(1);
/// With this number of failures in [`REMIND_AFTER`], each followed by a success, a cluster comes and goes.
const FLAPPING: usize = 3;

/// The failures of one cluster.
#[derive(Default)]
pub(super) struct FailureLog {
    failing_since: Option<Instant>,
    last_logged: Option<Instant>,
    /// When the failures of the last [`REMIND_AFTER`] began; at most [`FLAPPING`].
    began: VecDeque<Instant>,
    flapping_logged: Option<Instant>,
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Nothing,
    First,
    Failing,
    Flapping,
    Recovered(Duration),
}

impl FailureLog {
    /// Enters the outcome of a cycle at `now`.
    pub(super) fn record(&mut self, cluster: &str, outcome: Result<(), &str>, now: Instant) {
        let cause = outcome.err().unwrap_or_default();
        match self.line(outcome.is_ok(), now) {
            Line::Nothing => {}
            Line::First => debug!("cluster {cluster}: {cause}"),
            Line::Failing => warn!("cluster {cluster}: {cause}; delays become unknown when they are too old, retrying"),
            Line::Flapping => {
                warn!("cluster {cluster}: failed {FLAPPING} times within {} s, last: {cause}", REMIND_AFTER.as_secs());
            }
            Line::Recovered(after) => {
                info!("cluster {cluster}: all offsets can be read again, after {} s", after.as_secs());
            }
        }
    }

    fn line(&mut self, is_ok: bool, now: Instant) -> Line {
        if is_ok {
            let since = self.failing_since.take();
            let was_logged = self.last_logged.take().is_some();
            return since.filter(|_| was_logged).map_or(Line::Nothing, |since| Line::Recovered(now - since));
        }
        if self.failing_since.is_none() {
            self.failing_since = Some(now);
            self.began.push_back(now);
            self.began.retain(|then| now.saturating_duration_since(*then) < REMIND_AFTER);
            let is_due = self.flapping_logged.is_none_or(|last| REMIND_AFTER <= now.saturating_duration_since(last));
            if FLAPPING <= self.began.len() && is_due {
                self.flapping_logged = Some(now);
                self.began.clear();
                return Line::Flapping;
            }
            return Line::First;
        }
        // A short failure may only mean that the session with ZooKeeper is not established yet.
        let lasts = self.failing_since.is_some_and(|since| LASTS_AFTER <= now.saturating_duration_since(since));
        let is_due = self.last_logged.is_none_or(|last| REMIND_AFTER <= now.saturating_duration_since(last));
        if lasts && is_due {
            self.last_logged = Some(now);
            return Line::Failing;
        }
        Line::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_logged_when_it_lasts_or_comes_and_goes() {
        let start = Instant::now();
        let mut log = FailureLog::default();
        let mut line = |second: u64, is_ok| log.line(is_ok, start + Duration::from_secs(second));
        assert_eq!(line(0, true), Line::Nothing);
        assert_eq!([line(5, false), line(6, false), line(7, false)], [Line::First, Line::Failing, Line::Nothing]);
        assert_eq!([line(65, false), line(66, false)], [Line::Nothing, Line::Failing]);
        assert_eq!(line(70, true), Line::Recovered(Duration::from_secs(65)));
        // It comes and goes: one line a minute.
        let mut lines = Vec::new();
        for second in (100..220).step_by(10) {
            lines.push(line(second, false));
            assert_eq!(line(second + 5, true), Line::Nothing);
        }
        let flapping: Vec<_> = (0..).zip(&lines).filter(|(_, line)| **line == Line::Flapping).map(|(n, _)| n).collect();
        assert_eq!(flapping, [2, 8]);
        assert!(lines.iter().all(|line| matches!(line, Line::First | Line::Flapping)));
    }
}
