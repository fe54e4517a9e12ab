//! Looks up the names of backends, each on a thread of its own: `getaddrinfo` has no deadline, so a thread may hang.
//!
//! A look-up that hangs, maybe for ever, does not block its name: after a while another one begins beside it, at
//! intervals that double. Those that hang leave half of the threads to names of which no look-up hangs.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use log::warn;

use crate::supervise::spawn_expendable;

/// Limit on the look-ups of the process that run at the same time.
const MAX_LOOKUPS: usize = 64;
/// From this number of look-ups on, none begins beside another one of its name.
const MAX_LOOKUPS_FOR_REPEAT: usize = MAX_LOOKUPS / 2;
/// Limit on the look-ups of one name that run at the same time.
const MAX_LOOKUPS_OF_NAME: usize = 8;
/// After this time of a look-up, another one of its name may begin.
const FIRST_REPEAT_AFTER: Duration = Duration::from_secs(10);
/// The longest time to another look-up; it doubles with each one that hangs.
const MAX_REPEAT_AFTER: Duration = Duration::from_secs(600);
/// Number of look-ups that run at present.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// The addresses of a name, or the reason why they are not known.
pub(super) type Found = Result<Vec<SocketAddr>, String>;

/// The end of a look-up.
pub(super) struct EndedLookup {
    pub(super) name: String,
    pub(super) found: Found,
    /// Look-ups are numbered in the order of their beginnings.
    number: u64,
}

/// The look-ups of one module.
pub(super) struct NameLookups {
    look_up: Arc<dyn Fn(&str) -> Found + Send + Sync>,
    sender: Sender<EndedLookup>,
    /// Look-ups that have ended. [`MAX_LOOKUPS`] bounds their number.
    pub(super) ended: Receiver<EndedLookup>,
    in_flight: BTreeMap<String, InFlight>,
    last_number: u64,
    /// Number of look-ups that run at present, [`RUNNING`] but for tests.
    running: &'static AtomicUsize,
}

/// The look-ups of one name that have not ended.
struct InFlight {
    count: usize,
    /// Before this time no other one begins; `None` after one has ended.
    next_begin: Option<Instant>,
    repeat_after: Duration,
    /// The number of the latest one that has ended; 0 if none has.
    latest_ended: u64,
}

impl InFlight {
    const NONE: InFlight = InFlight { count: 0, next_begin: None, repeat_after: FIRST_REPEAT_AFTER, latest_ended: 0 };

    /// Whether another look-up of the name may begin.
    fn may_begin(&self, n_running: usize, now: Instant) -> bool {
        let is_due = self.next_begin.is_none_or(|begin| begin <= now);
        self.count == 0 || is_due && self.count < MAX_LOOKUPS_OF_NAME && n_running < MAX_LOOKUPS_FOR_REPEAT
    }

    fn note_begun(&mut self, now: Instant) {
        self.count += 1;
        self.next_begin = Some(now + self.repeat_after);
        self.repeat_after = (self.repeat_after * 2).min(MAX_REPEAT_AFTER);
    }
}

impl NameLookups {
    /// Looks names up with `getaddrinfo`.
    pub(super) fn new() -> NameLookups {
        Self::with(|name| name.to_socket_addrs().map(Iterator::collect).map_err(|cause| cause.to_string()))
    }

    /// Looks names up with this function.
    pub(super) fn with(look_up: impl Fn(&str) -> Found + Send + Sync + 'static) -> NameLookups {
        let (sender, ended) = unbounded();
        let in_flight = BTreeMap::new();
        NameLookups { look_up: Arc::new(look_up), sender, ended, in_flight, last_number: 0, running: &RUNNING }
    }

    /// Begins to look up `host:port`, unless an earlier look-up of it has not ended and does not hang. Returns whether
    /// one is in progress now: if the limit on look-ups is reached, or no thread can be started, none is, which says
    /// nothing about the name.
    pub(super) fn begin(&mut self, name: &str, now: Instant) -> bool {
        let in_flight = self.in_flight.get(name).unwrap_or(&InFlight::NONE);
        let is_in_progress = in_flight.count > 0;
        if !in_flight.may_begin(self.running.load(Ordering::Relaxed), now) || !self.start(name) {
            return is_in_progress;
        }
        self.in_flight.entry(name.to_owned()).or_insert(InFlight::NONE).note_begun(now);
        true
    }

    /// Starts the thread of a look-up; returns false if that is not possible now.
    fn start(&mut self, name: &str) -> bool {
        let running = Running::count(self.running);
        if MAX_LOOKUPS < running.0.load(Ordering::Relaxed) {
            return false;
        }
        self.last_number += 1;
        let (look_up, sender) = (Arc::clone(&self.look_up), self.sender.clone());
        let (name, number) = (name.to_owned(), self.last_number);
        let shown = name.clone();
        let started = spawn_expendable("names-look-up", move || {
            let _running = running;
            let found = look_up(&name);
            // Fails only after the module has ended.
            let _ = sender.send(EndedLookup { name, found, number });
        });
        if let Err(cause) = &started {
            warn!("the name {shown} cannot be looked up, retrying: a thread cannot be started: {cause}");
        }
        started.is_ok()
    }

    /// Notes that the end of a look-up was received: the name may be looked up again. Returns whether its result is
    /// the latest one: not if a look-up of the name that began later has ended before.
    pub(super) fn note_ended(&mut self, ended: &EndedLookup) -> bool {
        let Some(in_flight) = self.in_flight.get_mut(&ended.name) else { return true };
        let is_latest = in_flight.latest_ended < ended.number;
        in_flight.latest_ended = in_flight.latest_ended.max(ended.number);
        in_flight.count -= 1;
        (in_flight.next_begin, in_flight.repeat_after) = (None, FIRST_REPEAT_AFTER);
        if in_flight.count == 0 {
            self.in_flight.remove(&ended.name);
        }
        is_latest
    }
}

/// Counts a look-up until its thread ends.
struct Running(&'static AtomicUsize);

impl Running {
    fn count(running: &'static AtomicUsize) -> Running {
        running.fetch_add(1, Ordering::Relaxed);
        Running(running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn a_name_is_looked_up_or_the_reason_is_returned() {
        let mut lookups = NameLookups::new();
        lookups.begin("localhost:82", Instant::now());
        let EndedLookup { name, found, .. } = lookups.ended.recv_timeout(PATIENCE).unwrap();
        assert_eq!(name, "localhost:82");
        let found = found.unwrap();
        assert!(!found.is_empty() && found.iter().all(|address| address.ip().is_loopback() && address.port() == 82));
        lookups.begin("no port", Instant::now());
        assert!(lookups.ended.recv_timeout(PATIENCE).unwrap().found.is_err());
    }

    /// Look-ups each of which ends with the number of the look-up as the port, when it is sent a message. `begins` gets
    /// that number and the channel for the message.
    fn gated() -> (NameLookups, Receiver<(u16, Sender<()>)>) {
        let (begun, begins) = unbounded();
        let count = AtomicUsize::new(0);
        let mut lookups = NameLookups::with(move |_| {
            let number = u16::try_from(count.fetch_add(1, Ordering::SeqCst) + 1).unwrap();
            let (release, released) = bounded::<()>(0);
            let _ = begun.send((number, release));
            let _ = released.recv();
            Ok(vec![SocketAddr::from(([10, 0, 0, 1], number))])
        });
        lookups.running = Box::leak(Box::default());
        (lookups, begins)
    }

    #[test]
    fn a_name_whose_look_up_hangs_is_looked_up_again_and_the_late_result_of_the_first_is_ignored() {
        let ((mut lookups, begins), start) = (gated(), Instant::now());
        let next = || begins.recv_timeout(PATIENCE).expect("a look-up begins");
        for _ in 0..100 {
            assert!(lookups.begin("hangs:1", start));
        }
        let (_, first) = next();
        assert!(lookups.begin("hangs:1", start + FIRST_REPEAT_AFTER) && lookups.begin("hangs:1", start + PATIENCE));
        let (_, second) = next();
        assert!(begins.is_empty(), "two look-ups");
        drop(second);
        let ended = lookups.ended.recv_timeout(PATIENCE).unwrap();
        assert!(lookups.note_ended(&ended));
        assert_eq!(ended.found.unwrap()[0].port(), 2);
        // The name works, although the first look-up still hangs.
        assert!(lookups.begin("hangs:1", start + PATIENCE));
        let (_, third) = next();
        drop(first);
        let ended = lookups.ended.recv_timeout(PATIENCE).unwrap();
        assert_eq!((ended.found.as_ref().unwrap()[0].port(), lookups.note_ended(&ended)), (1, false));
        drop(third);
        let ended = lookups.ended.recv_timeout(PATIENCE).unwrap();
        assert!(lookups.note_ended(&ended));
        assert!(lookups.begin("hangs:1", start + PATIENCE), "none is left");
        next();
    }

    #[test]
    fn a_name_whose_look_ups_all_hang_leaves_threads_to_others() {
        let ((mut lookups, _begins), mut now) = (gated(), Instant::now());
        for _ in 0..1000 {
            now += MAX_REPEAT_AFTER;
            for name in ["hangs:1", "hangs:2", "hangs:3", "hangs:4"] {
                assert!(lookups.begin(name, now), "one is in progress");
                assert!(lookups.in_flight[name].count <= MAX_LOOKUPS_OF_NAME);
            }
        }
        let counts = lookups.in_flight.values().map(|in_flight| in_flight.count);
        assert_eq!(counts.sum::<usize>(), MAX_LOOKUPS_FOR_REPEAT);
        for number in MAX_LOOKUPS_FOR_REPEAT..MAX_LOOKUPS {
            assert!(lookups.begin(&format!("other:{number}"), now));
        }
        assert!(!lookups.begin("one-more:1", now), "all threads are in use");
    }
}
