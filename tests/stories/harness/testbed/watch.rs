//! Watches a run: the stored offsets, stalls of the machine, and the resources of the instances.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::fault_oracle::{Disturbance, StoredOffset};
use super::resources::Sample;
use super::services::OffsetReader;

/// Interval of the looks at the stored offsets, and of the looks at the clock.
const INTERVAL: Duration = Duration::from_millis(50);
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// A watcher that wakes up this late has found a stall of the machine: then leases may end without a fault.
const MIN_STALL: Duration = Duration::from_millis(400);
/// The name of the disturbance that is recorded for a stall.
pub(crate) const STALL: &str = "the machine stalled";

/// What the watcher has seen.
#[derive(Default, Clone)]
pub(crate) struct Seen {
    pub(crate) stored: Vec<StoredOffset>,
    pub(crate) stalls: Vec<Disturbance>,
    /// The samples of each process, and when they were taken.
    pub(crate) samples: BTreeMap<ProcessId, Vec<(Duration, Sample)>>,
}

/// A process, also after it has ended and the system gave its id to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProcessId {
    pub(crate) pid: u32,
    /// When it was started, in ticks since the start of the machine.
    started: u64,
}

impl ProcessId {
    /// Returns the process that has this id now.
    pub(crate) fn of(pid: u32) -> ProcessId {
        ProcessId { pid, started: running_since(pid).unwrap_or_default() }
    }

    /// Whether the process exists; a process that has ended and was not waited for does not count.
    pub(crate) fn is_alive(self) -> bool {
        running_since(self.pid) == Some(self.started)
    }
}

/// Returns when the process with this id was started; `None` if none runs.
fn running_since(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, the second field, may have blanks. The first field after it is the state, the start is the 22nd.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state.starts_with(['Z', 'X']) { None } else { fields.nth(18)?.parse().ok() }
}

/// The processes whose resources are sampled.
pub(crate) type Sampled = Arc<Mutex<Vec<ProcessId>>>;

/// A running watcher; dropping it ends its thread.
pub(crate) struct Watcher {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Watches the stored offsets and the sampled processes.
    pub(crate) fn start(mut offsets: OffsetReader, sampled: Sampled, started: Instant) -> Watcher {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Seen::default())));
        let (stopped, shared) = (Arc::clone(&stop), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            let mut next_sample = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                for (partition, offset) in offsets().unwrap_or_default() {
                    lock(&shared).stored.push(StoredOffset { at: started.elapsed(), partition, offset });
                }
                if Instant::now() >= next_sample {
                    next_sample += SAMPLE_INTERVAL;
                    sample(&sampled, &shared, started);
                }
                let slept = Instant::now();
                std::thread::sleep(INTERVAL);
                if slept.elapsed() > INTERVAL + MIN_STALL {
                    let (what, instance) = (STALL.to_owned(), None);
                    let (from, until) = (slept - started, started.elapsed());
                    lock(&shared).stalls.push(Disturbance { what, from, until, instance, is_pause: false });
                }
            }
        });
        Watcher { stop, seen, thread: Some(thread) }
    }

    /// Returns what was seen so far.
    pub(crate) fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn sample(sampled: &Sampled, seen: &Mutex<Seen>, started: Instant) {
    for process in lock(sampled).iter().filter(|process| process.is_alive()) {
        if let Some(sample) = Sample::of(process.pid) {
            lock(seen).samples.entry(*process).or_default().push((started.elapsed(), sample));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
