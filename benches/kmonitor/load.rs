//! The clients of kmonitor: many that request an answer at an interval, and some that read very slowly.

use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::http::{Client, connect_raw};

/// What a group of clients does: its name, the path, their number, and the pause between two requests of one.
const CLIENTS: [(&str, &str, u32, Duration); 6] = [
    ("/delay", "/delay", 50, Duration::from_secs(1)),
    ("/metrics", "/metrics", 3, Duration::from_secs(5)),
    ("/v1/delay", "/v1/delay", 3, Duration::from_secs(5)),
    ("/v1 all", "/v1/delay?partitions=all", 2, Duration::from_secs(5)),
    ("/", "/", 3, Duration::from_secs(5)),
    ("/rows", "/rows", 10, Duration::from_secs(5)),
];

/// Clients that read an answer slowly, and what each reads every [`SLOW_PAUSE`].
const SLOW_READERS: usize = 50;
const SLOW_BYTES: usize = 2 << 10;
const SLOW_PAUSE: Duration = Duration::from_millis(100);

/// All clients.
pub(crate) struct Load {
    address: String,
}

/// How long the answers to one group of clients took.
pub(crate) struct Times {
    name: &'static str,
    sorted: Vec<Duration>,
    failures: usize,
}

impl Load {
    pub(crate) fn new(address: &str) -> Load {
        Load { address: address.to_owned() }
    }

    /// Lets all clients work for this time; returns the times of each group.
    pub(crate) fn run(&self, duration: Duration) -> Vec<Times> {
        let stop = AtomicBool::new(false);
        let results: Vec<Mutex<(Vec<Duration>, usize)>> = CLIENTS.iter().map(|_| Mutex::default()).collect();
        std::thread::scope(|scope| {
            for (group, (_, path, count, pause)) in CLIENTS.iter().enumerate() {
                let result = &results[group];
                for number in 0..*count {
                    // The clients of a group are spread over the pause.
                    let start = *pause * number / *count;
                    let stop = &stop;
                    scope.spawn(move || self.request_often(path, start, *pause, stop, result));
                }
            }
            for _ in 0..SLOW_READERS {
                scope.spawn(|| self.read_slowly(&stop));
            }
            std::thread::sleep(duration);
            stop.store(true, Ordering::Relaxed);
        });
        let times = CLIENTS.iter().zip(results).map(|((name, ..), result)| {
            let (mut sorted, failures) = result.into_inner().expect("no client panics");
            sorted.sort_unstable();
            Times { name, sorted, failures }
        });
        times.collect()
    }

    fn request_often(
        &self,
        path: &str,
        start: Duration,
        pause: Duration,
        stop: &AtomicBool,
        result: &Mutex<(Vec<Duration>, usize)>,
    ) {
        std::thread::sleep(start);
        let mut client = Client::connect(&self.address).expect("kmonitor listens");
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            // Only a browser gets the page at `/`.
            let answer = client.request("GET", path, &[("Accept", "text/html")], b"");
            let took = began.elapsed();
            let mut result = result.lock().expect("no client panics");
            match answer {
                Ok(answer) if answer.status == 200 => result.0.push(took),
                _ => result.1 += 1,
            }
            drop(result);
            std::thread::sleep(pause.saturating_sub(took));
        }
    }

    /// Requests `/delay` and reads the answer slowly; an answer that kmonitor cuts is requested again.
    fn read_slowly(&self, stop: &AtomicBool) {
        let mut bytes = vec![0; SLOW_BYTES];
        while !stop.load(Ordering::Relaxed) {
            let mut socket = connect_raw(&self.address, Duration::from_secs(5));
            let request = b"GET /delay HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
            if std::io::Write::write_all(&mut socket, request).is_err() {
                continue;
            }
            while !stop.load(Ordering::Relaxed) && socket.read(&mut bytes).is_ok_and(|count| count > 0) {
                std::thread::sleep(SLOW_PAUSE);
            }
        }
    }
}

impl Times {
    pub(crate) fn print(all: &[Times]) {
        println!("\n{:<10} {:>8} {:>9} {:>9} {:>9} {:>9}", "", "requests", "p50", "p99", "max", "failures");
        for Times { name, sorted, failures } in all {
            let at = |share: f64| sorted.get((sorted.len() as f64 * share) as usize).or(sorted.last());
            let text = |time: Option<&Duration>| {
                time.map_or("-".to_owned(), |time| format!("{:.1} ms", time.as_secs_f64() * 1e3))
            };
            let (p50, p99, max) = (text(at(0.5)), text(at(0.99)), text(sorted.last()));
            println!("{name:<10} {:>8} {p50:>9} {p99:>9} {max:>9} {failures:>9}", sorted.len());
        }
    }
}
