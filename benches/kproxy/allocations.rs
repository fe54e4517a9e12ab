//! Counts the allocations of kproxy for a request: `ALLOCATIONS=1 make bench`.
//!
//! kproxy runs in this process, whose allocator counts, and writes no log.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use kafka_http_wrapper::kproxy;
use kafka_http_wrapper::shutdown::Stop;
use kafka_http_wrapper::supervise::Supervisor;

use crate::harness::{Cluster, configs, http, wait_until};
use crate::load::completed_requests;
use crate::{DEADLINE, LARGE, PARTITIONS, SMALL, post_script};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static IS_COUNTING: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

/// The allocator of the system, which counts while [`IS_COUNTING`] is set.
struct Counting;

fn count(bytes: usize) {
    if IS_COUNTING.load(Ordering::Relaxed) {
        COUNT.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the allocator of the system unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as promised by the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size);
        // SAFETY: as promised by the caller.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Prints the allocations for a request of each kind.
pub(crate) fn run(seconds: u32, connections: &[u32]) {
    let cluster = Cluster::start(1);
    let topic = cluster.new_topic("bench", PARTITIONS);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (config, file) = (configs::kproxy(&cluster), folder.path().join("kproxy.yaml"));
    fs::write(&file, config.text()).expect("a file in a temporary folder");
    let address = config.address("port").expect("the reference sets port");
    let supervisor = Supervisor::new("kproxy", Stop::new());
    let settings = kproxy::load(&file).expect("the configuration is valid");
    let running = thread::spawn({
        let supervisor = supervisor.clone();
        move || kproxy::run(settings, &supervisor)
    });
    let url = |path: &str| format!("http://{address}{path}");
    let commit = url(&format!("/commit?topic={topic}&key=user-42"));
    let is_ready = || http::post(&commit, b"warm").is_ok_and(|answer| answer.status == 200);
    wait_until(DEADLINE, "kproxy commits", is_ready);

    println!("{:<16} {:>6} {:>12} {:>16}", "", "conns", "allocations", "bytes a request");
    for &count in connections {
        for size in [SMALL, LARGE] {
            let script = post_script(folder.path(), size, "");
            measure(&format!("commit, {size} B"), count, seconds, &["-s", &script, &commit]);
        }
        measure("no Kafka", count, seconds, &[&url("/healthz")]);
    }
    supervisor.stop().trigger();
    running.join().expect("no panic").expect("kproxy ran");
    supervisor.join(Duration::from_secs(10));
}

fn measure(name: &str, connections: u32, seconds: u32, arguments: &[&str]) {
    let count = connections.to_string();
    let load = |seconds: u32| {
        let output = Command::new("wrk")
            .args(["-t", "2", "-c", &count, "-d", &format!("{seconds}s")])
            .args(arguments)
            .output()
            .expect("wrk is installed");
        completed_requests(&String::from_utf8_lossy(&output.stdout))
    };
    // Connections and buffers are made before.
    load(1);
    let before = [COUNT.load(Ordering::Relaxed), BYTES.load(Ordering::Relaxed)];
    IS_COUNTING.store(true, Ordering::Relaxed);
    let requests = load(seconds);
    IS_COUNTING.store(false, Ordering::Relaxed);
    let used = [COUNT.load(Ordering::Relaxed) - before[0], BYTES.load(Ordering::Relaxed) - before[1]];
    let [allocations, bytes] = used.map(|used| used as f64 / requests);
    println!("{name:<16} {connections:>6} {allocations:>12.2} {bytes:>16.0}");
}
