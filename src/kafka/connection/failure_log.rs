//! Decides which failures to connect are logged: a failure that repeats is logged once, and again after some minutes.
//! Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::kafka::config::BrokerAddress;

/// A failure that lasts is logged again after this time.
const REMIND_AFTER: Duration = Duration::from_secs(300);
/// For each address, at most [`MAX_LINES`] lines are logged in this time, also if the failures alternate.
const WINDOW: Duration = Duration::from_secs(30);
const MAX_LINES: u32 = 4;
/// Limit on the addresses that are kept; then all are forgotten.
const MAX_ADDRESSES: usize = 256;

/// The failures of the addresses that cannot be connected to.
#[derive(Debug, Default)]
pub(super) struct FailureLog {
    failing: HashMap<BrokerAddress, Logged>,
}

#[derive(Debug)]
struct Logged {
    /// The failure of the last line.
    reason: String,
    at: Instant,
    window_start: Instant,
    lines: u32,
}

impl FailureLog {
    /// Records a failure; returns whether it is to be logged.
    pub(super) fn failed(&mut self, address: &BrokerAddress, reason: &str, now: Instant) -> bool {
        if self.failing.len() >= MAX_ADDRESSES && !self.failing.contains_key(address) {
            self.failing.clear();
        }
        let Some(logged) = self.failing.get_mut(address) else {
            let logged = Logged { reason: reason.to_owned(), at: now, window_start: now, lines: 1 };
            self.failing.insert(address.clone(), logged);
            return true;
        };
        if now.saturating_duration_since(logged.window_start) >= WINDOW {
            (logged.window_start, logged.lines) = (now, 0);
        }
        let is_known = logged.reason == reason && now.saturating_duration_since(logged.at) < REMIND_AFTER;
        if is_known || logged.lines >= MAX_LINES {
            return false;
        }
        logged.lines += 1;
        (logged.reason, logged.at) = (reason.to_owned(), now);
        true
    }

    /// Records a success; returns whether a failure was logged before.
    pub(super) fn connected(&mut self, address: &BrokerAddress) -> bool {
        self.failing.remove(address).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> BrokerAddress {
        BrokerAddress { host: "kafka".into(), port }
    }

    #[test]
    fn a_failure_is_logged_once_and_again_after_minutes() {
        let (mut log, now) = (FailureLog::default(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        let (first, second) = (address(1), address(2));
        let logged = [(&first, "refused", 0), (&first, "refused", 1), (&second, "refused", 1), (&first, "denied", 2)];
        let logged = logged.map(|(address, reason, seconds)| log.failed(address, reason, after(seconds)));
        assert_eq!(logged, [true, false, true, true]);
        assert!(!log.failed(&first, "denied", after(301)));
        assert!(log.failed(&first, "denied", after(302)));
        assert!(log.connected(&first));
        assert!(!log.connected(&first));
        assert!(log.failed(&first, "denied", after(303)), "a failure after a success is a new one");
    }

    #[test]
    fn failures_that_alternate_and_many_addresses_are_bounded() {
        let (mut log, now) = (FailureLog::default(), Instant::now());
        let count = |log: &mut FailureLog, start: u64| {
            let reason = |number: u64| format!("reason {}", number % 2);
            let at = |number: u64| now + Duration::from_secs(start) + Duration::from_millis(number);
            (0..100).filter(|number| log.failed(&address(1), &reason(*number), at(*number))).count()
        };
        assert_eq!(count(&mut log, 0), 4);
        assert!((1..=4).contains(&count(&mut log, 31)));
        for port in 1..=10_000 {
            log.failed(&address(port), "refused", now);
        }
        assert!(log.failing.len() <= MAX_ADDRESSES);
    }
}
