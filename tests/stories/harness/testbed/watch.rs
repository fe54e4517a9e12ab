//! Watches a run: the stored offsets, stalls of the machine, and the resources of the instances.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::ZkClient;
use super::super::fault_oracle::{Disturbance, StoredOffset};
use super::resources::Sample;

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
    /// The samples of each process, by its id.
    pub(crate) samples: BTreeMap<u32, Vec<Sample>>,
}

/// The processes whose resources are sampled.
pub(crate) type Pids = Arc<Mutex<Vec<u32>>>;

/// A running watcher; dropping it ends its thread.
pub(crate) struct Watcher {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Watches the offset nodes `parent`/0, /1, …, at the ZooKeeper server `address`, and the processes `pids`.
    pub(crate) fn start(address: &str, parent: String, n_partitions: i32, pids: Pids, started: Instant) -> Watcher {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Seen::default())));
        let (address, stopped, shared) = (address.to_owned(), Arc::clone(&stop), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            let mut client = None;
            let mut next_sample = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                watch_offsets(&mut client, &address, &parent, n_partitions, &shared, started);
                if Instant::now() >= next_sample {
                    next_sample += SAMPLE_INTERVAL;
                    sample(&pids, &shared);
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

fn watch_offsets(
    client: &mut Option<ZkClient>,
    address: &str,
    parent: &str,
    n_partitions: i32,
    seen: &Mutex<Seen>,
    started: Instant,
) {
    if client.is_none() {
        *client = ZkClient::connect(address).ok();
    }
    let Some(connected) = client else { return };
    for partition in 0..n_partitions {
        let Ok(text) = connected.try_read(&format!("{parent}/{partition}")) else {
            // ZooKeeper is down or frozen.
            *client = None;
            return;
        };
        let offset = text.and_then(|text| text.parse().ok()).filter(|offset| *offset >= 0);
        if let Some(offset) = offset {
            lock(seen).stored.push(StoredOffset { at: started.elapsed(), partition, offset });
        }
    }
}

fn sample(pids: &Pids, seen: &Mutex<Seen>) {
    for pid in lock(pids).iter() {
        if let Some(sample) = Sample::of(*pid) {
            lock(seen).samples.entry(*pid).or_default().push(sample);
        }
    }
}

/// Whether the process exists; a process that has ended and was not waited for does not count.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
