//! Measures other clients with the same backend, for comparison.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ureq::Agent;

use crate::MESSAGE_BYTES;
use crate::sink::Sink;
use crate::transfer::Measurement;

/// Posts messages with the `ureq` crate as it is, on `n_threads` threads with a client each.
pub(crate) fn ureq_alone(sink: &Sink, n_messages: usize, n_threads: usize) -> Measurement {
    let each = n_messages / n_threads;
    let cpu = cpu_time();
    let began = Instant::now();
    thread::scope(|scope| {
        for thread in 0..n_threads {
            scope.spawn(move || post(sink, thread, each));
        }
    });
    let (took, cpu) = (began.elapsed(), cpu_time() - cpu);
    let count = (each * n_threads) as f64;
    Measurement {
        rate: count / took.as_secs_f64(),
        // The benchmark's own backend runs in this process, so the CPU time of the client is not known.
        cpu_us: (sink.name == "nginx").then(|| cpu.as_secs_f64() * 1e6 / count),
        ..Measurement::default()
    }
}

fn post(sink: &Sink, thread: usize, count: usize) {
    let agent: Agent = Agent::config_builder().proxy(None).http_status_as_error(false).build().into();
    let body = [b'x'; MESSAGE_BYTES];
    for number in 0..count {
        // About as many headers as ktransfer sends.
        let url = format!("http://{}/push/bench?key={number}&transid={number}", sink.address);
        let request = agent
            .post(&url)
            .header("X-Kafka-Topic", "bench")
            .header("X-Kafka-Partition", thread.to_string())
            .header("X-Kafka-Offset", number.to_string())
            .header("X-Kafka-Attempt", "1")
            .header("X-Kafka-Claim", "1")
            .header("X-Kafka-Timestamp", "1700000000000")
            .header("X-Kafka-Key", number.to_string())
            .header("Idempotency-Key", format!("m/bench/{thread}/{number}"));
        let mut response = request.send(&body[..]).expect("the backend answers");
        assert_eq!(response.status().as_u16(), 200);
        response.body_mut().read_to_vec().expect("a body");
    }
}

/// Runs the load generator for five seconds.
pub(crate) fn wrk(sink: &Sink, connections: usize) -> Measurement {
    let url = format!("http://{}/push/bench?key=1&transid=1", sink.address);
    let output = Command::new("wrk")
        .args(["-t", "2", "-c", &connections.to_string(), "-d", "5s", &url])
        .output()
        .expect("wrk is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rate = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:")?.trim().parse().ok());
    Measurement { rate: rate.unwrap_or_else(|| panic!("wrk prints no rate: {text}")), ..Measurement::default() }
}

/// Returns the CPU time that this process has used so far.
fn cpu_time() -> Duration {
    // SAFETY: all zeros are a valid `rusage`, and the pointer is valid for the call, in which the kernel fills it.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}
