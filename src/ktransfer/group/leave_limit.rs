//! When a member that leaves its group gives up.

use std::time::{Duration, Instant};

use crate::ktransfer::stop_report::StopReport;

/// The limit of one leave.
pub(super) struct LeaveLimit {
    report: StopReport,
    timeout: Duration,
    /// Set as long as the stop has a limit, which may begin later than the leave.
    deadline: Option<Instant>,
}

impl LeaveLimit {
    /// Begins a leave that may take this long from now on, or from the time at which its stop gets a limit.
    pub(super) fn new(report: &StopReport, timeout: Duration) -> LeaveLimit {
        let mut limit = LeaveLimit { report: report.clone(), timeout, deadline: None };
        limit.deadline();
        limit
    }

    /// Returns the deadline; `None` while there is none.
    pub(super) fn deadline(&mut self) -> Option<Instant> {
        if !self.report.has_no_limit() {
            self.deadline.get_or_insert_with(|| Instant::now() + self.timeout);
        }
        self.deadline
    }

    /// Waits before the next attempt; returns false at once if there is no time for one.
    pub(super) fn wait(&mut self, pause: Duration) -> bool {
        let is_over = self.deadline().is_some_and(|deadline| deadline <= Instant::now() + pause);
        !is_over && self.report.wait(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shutdown::Stop;

    #[test]
    fn the_deadline_of_a_leave_by_a_reload_begins_with_the_stop_of_the_daemon() {
        let timeout = Duration::from_secs(3600);
        let (all, daemon) = (StopReport::default(), Stop::new());
        let module = all.of_module(daemon.clone());
        assert!(LeaveLimit::new(&module, timeout).deadline().is_some());
        module.begin_stop_by_reload(false);
        let mut limit = LeaveLimit::new(&module, timeout);
        assert_eq!(limit.deadline(), None);
        let mut short = LeaveLimit::new(&module, Duration::ZERO);
        assert!(short.wait(Duration::ZERO), "no limit yet");
        daemon.trigger();
        let deadline = limit.deadline().expect("the daemon stops");
        assert_eq!(limit.deadline(), Some(deadline), "it does not move");
        assert!(!short.wait(Duration::ZERO));
        all.end_waits();
        assert!(!limit.wait(Duration::from_secs(60)));
    }
}
