//! A demonstration of the three daemons: `make demo`.
//!
//! The demo starts ZooKeeper, Kafka, two small backends and the daemons. It posts messages to kproxy, and prints the
//! pushes that the backends receive from ktransfer and the delay that kmonitor reports. It posts until Ctrl-C, or for
//! `DEMO_SECONDS`; then it waits until every message is delivered, prints a summary, and exits with 0 if no message was
//! lost, every key stayed in order and every daemon exited with 0. At exit it removes its processes and folders.

#![allow(clippy::print_stdout, reason = "the demo prints what happens")]

#[path = "../tests/stories/harness/mod.rs"]
mod harness;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use harness::backend::Journal;
use harness::configs::{self, CLUSTER_NAME};
use harness::delivery::delivered;
use harness::http::Client;
use harness::message::{METHODS, Message};
use harness::oracle::{MessageId, PushCheck, check_pushes};
use harness::{
    Backend, BackendAnswer, Cluster, Daemon, Kmonitor, Kproxy, Ktransfer, Program, Request, binary, cluster, poll,
};

const TOPIC: &str = "demo_topic";
const MODULE: &str = "demo_module";
const N_PARTITIONS: i32 = 8;
const N_USERS: u64 = 12;
/// Pause after each post: 20 messages a second can be followed on the screen.
const PAUSE_BETWEEN_MESSAGES: Duration = Duration::from_millis(50);
/// Time after the last post within which every message must be delivered and the delay must be 0.
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let seconds = match std::env::var("DEMO_SECONDS").map(|text| text.parse::<u64>()) {
        Err(_) => None,
        Ok(Ok(seconds)) => Some(seconds),
        Ok(Err(_)) => {
            println!("DEMO_SECONDS must be a number of seconds");
            return ExitCode::from(2);
        }
    };
    // A missing binary is reported before Kafka starts.
    for program in [Program::Kproxy, Program::Ktransfer, Program::Kmonitor] {
        binary(program);
    }

    step("Starting ZooKeeper and Kafka 3.9 ...");
    let cluster = cluster();
    cluster.create_topic(TOPIC, N_PARTITIONS);
    println!("  ZooKeeper {}  Kafka {}  topic {TOPIC}, {N_PARTITIONS} partitions", cluster.zookeeper, cluster.brokers);

    step("Starting two backends and the three daemons ...");
    let journal = Journal::default();
    let backends: Vec<Backend> =
        (1..=2).map(|n| Backend::start_sharing(&journal, move |request| print_push(n, request))).collect();
    let mut daemons = Daemons::start(cluster, &backends);
    daemons.wait_until_ready();
    daemons.print_addresses(&backends);

    let posted = Posted::default();
    post_and_report(seconds, &daemons, &backends, &journal, &posted);
    let is_settled = wait_until_settled(&daemons, &journal, &posted);

    step("Stopping the daemons (SIGTERM) ...");
    let all_ended_with_0 = daemons.stop();
    let check = posted.check(&journal);
    summary(&check, &journal, posted.n_unconfirmed());
    let is_good = check.is_good() && is_settled && all_ended_with_0 && journal.max_per_key() <= 1;
    if !is_good {
        daemons.print_logs();
    }
    ExitCode::from(u8::from(!is_good))
}

/// Posts messages and prints the progress for `seconds`, or until Ctrl-C if it is `None`.
fn post_and_report(seconds: Option<u64>, daemons: &Daemons, backends: &[Backend], journal: &Journal, posted: &Posted) {
    // Up to here Ctrl-C ends the process, and the watchdog cleans up. From here on Ctrl-C ends only the posting.
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // A second signal ends the process at once, with exit code 130.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop)).expect("a signal that exists");
        signal_hook::flag::register(signal, Arc::clone(&stop)).expect("a signal that exists");
    }
    let until = match seconds {
        Some(seconds) => format!("for {seconds} s"),
        None => "until Ctrl-C".to_owned(),
    };
    let per_second = 1000 / PAUSE_BETWEEN_MESSAGES.as_millis();
    step(&format!("Posting {per_second} messages per second over {N_USERS} keys {until} ..."));
    std::thread::scope(|scope| {
        scope.spawn(|| post_until(&stop, &daemons.kproxy.address, posted));
        supervise(&stop, seconds.map(Duration::from_secs), daemons, backends, journal, posted);
    });
}

/// Waits until every message is delivered and the delay is 0. Returns false at [`SETTLE_DEADLINE`].
fn wait_until_settled(daemons: &Daemons, journal: &Journal, posted: &Posted) -> bool {
    step("Posting has ended; waiting until every message is delivered and the delay is 0 ...");
    let settled = poll(SETTLE_DEADLINE, || {
        let is_delivered = posted.check(journal).lost.is_empty();
        daemons.delay().filter(|delay| is_delivered && delay.is_zero())
    });
    match &settled {
        Some(delay) => println!("  delay: {}", show(Some(delay))),
        None => println!("  not within {SETTLE_DEADLINE:?}; delay: {}", show(daemons.delay().as_ref())),
    }
    settled.is_some()
}

fn step(text: &str) {
    println!("\n== {text}");
}

/// Prints a push and answers it with 200.
fn print_push(backend: u32, request: &Request) -> BackendAnswer {
    match Message::decode(&request.body) {
        Some(message) => println!(
            "  backend {backend} <- {:<8} #{:<4} {:<8} {}",
            message.id.0, message.id.1, message.method, request.target
        ),
        None => {
            println!("  backend {backend} <- {} bytes of another format: {}", request.body.len(), request.target)
        }
    }
    BackendAnswer::ok()
}

fn summary(check: &PushCheck, journal: &Journal, n_unconfirmed: usize) {
    step("Summary");
    println!("  posted        {}", check.n_posted);
    println!("  pushed        {}", check.n_pushed);
    println!("  repeats       {}", check.n_repeats);
    println!("  lost          {}", check.lost.len());
    println!("  out of order  {}", check.out_of_order.len());
    println!("  at most {} concurrent pushes of one key", journal.max_per_key());
    if n_unconfirmed > 0 {
        println!("  not answered with 200 by kproxy: {n_unconfirmed}");
    }
    if !check.unknown.is_empty() {
        println!("  pushed but never posted: {:?}", check.unknown);
    }
}

/// The messages posted so far, by the answer of kproxy.
#[derive(Default)]
struct Posted {
    /// Messages that kproxy answered with 200.
    confirmed: Mutex<Vec<MessageId>>,
    /// Messages that kproxy answered with another status, or did not answer.
    unconfirmed: Mutex<Vec<MessageId>>,
}

impl Posted {
    fn add(list: &Mutex<Vec<MessageId>>, id: MessageId) {
        list.lock().unwrap_or_else(PoisonError::into_inner).push(id);
    }

    fn n_unconfirmed(&self) -> usize {
        self.unconfirmed.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn check(&self, journal: &Journal) -> PushCheck {
        // The list is copied before the pushes are read, so that a message posted in between does not count as lost.
        let confirmed = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut unconfirmed = self.unconfirmed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let pushed = delivered(journal);
        // Messages confirmed since the copy may already be pushed, so they count as uncertain.
        unconfirmed
            .extend(self.confirmed.lock().unwrap_or_else(PoisonError::into_inner)[confirmed.len()..].iter().cloned());
        check_pushes(&confirmed, &unconfirmed, &pushed)
    }
}

/// Posts one message after the other until `stop` is set, on one connection that is opened again after an error.
fn post_until(stop: &AtomicBool, kproxy: &str, posted: &Posted) {
    let mut client = None;
    for n in 0.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let method = METHODS[(n % 2) as usize].to_owned();
        let message = Message { method, id: (format!("user-{}", n % N_USERS), n / N_USERS) };
        let path = format!("/commit?topic={TOPIC}&key={}&acks=1", message.id.0);
        let answer = match &mut client {
            Some(connected) => Ok(connected),
            none => Client::connect(kproxy).map(|connected| none.insert(connected)),
        }
        .and_then(|client: &mut Client| client.post(&path, &message.encode()));
        match answer {
            Ok(answer) if answer.status == 200 => Posted::add(&posted.confirmed, message.id),
            Ok(answer) => {
                println!("  kproxy answers {} {}", answer.status, answer.text());
                Posted::add(&posted.unconfirmed, message.id);
            }
            Err(error) => {
                println!("  kproxy: {error}");
                Posted::add(&posted.unconfirmed, message.id);
                client = None;
            }
        }
        std::thread::sleep(PAUSE_BETWEEN_MESSAGES);
    }
}

/// Prints the progress every two seconds, stops both backends once for at most 6 s, and sets `stop` after `length`.
fn supervise(
    stop: &AtomicBool,
    length: Option<Duration>,
    daemons: &Daemons,
    backends: &[Backend],
    journal: &Journal,
    posted: &Posted,
) {
    let started = Instant::now();
    let off_at = length.map_or(Duration::from_secs(10), |length| length / 3);
    let on_at = off_at + length.map_or(Duration::from_secs(6), |length| (length / 5).min(Duration::from_secs(6)));
    let (mut are_down, mut are_up_again) = (false, false);
    let mut next_report = Duration::from_secs(2);
    while !stop.load(Ordering::SeqCst) {
        let elapsed = started.elapsed();
        if length.is_some_and(|length| elapsed >= length) {
            stop.store(true, Ordering::SeqCst);
        }
        if elapsed >= off_at && !are_down {
            are_down = true;
            println!("-- both backends are down: the delay grows");
            backends.iter().for_each(Backend::stop_listening);
        }
        if elapsed >= on_at && !are_up_again {
            are_up_again = true;
            println!("-- both backends are up again: the delay falls");
            backends.iter().for_each(Backend::listen_again);
        }
        if elapsed >= next_report {
            next_report = elapsed + Duration::from_secs(2);
            let check = posted.check(journal);
            let delay = daemons.delay();
            println!(
                "-- {:.0} s: posted {}, pushed {}, repeats {}, delay {}",
                elapsed.as_secs_f64(),
                check.n_posted,
                check.n_pushed,
                check.n_repeats,
                show(delay.as_ref())
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    backends.iter().for_each(Backend::listen_again);
}

/// The delay that kmonitor reports for the module: the number of messages not yet pushed, by partition.
struct Delay(BTreeMap<i32, i64>);

impl Delay {
    /// Returns whether kmonitor knows every partition and each has a delay of 0.
    fn is_zero(&self) -> bool {
        self.0.len() == N_PARTITIONS as usize && self.0.values().all(|delay| *delay == 0)
    }
}

fn show(delay: Option<&Delay>) -> String {
    match delay {
        None => "not known yet".to_owned(),
        Some(Delay(by_partition)) => {
            let each: Vec<String> =
                by_partition.iter().map(|(partition, delay)| format!("{partition}:{delay}")).collect();
            format!("{} ({})", by_partition.values().sum::<i64>(), each.join(" "))
        }
    }
}

struct Daemons {
    kproxy: Kproxy,
    ktransfer: Ktransfer,
    kmonitor: Kmonitor,
}

impl Daemons {
    /// Starts the three daemons with the reference configurations.
    fn start(cluster: &Cluster, backends: &[Backend]) -> Daemons {
        let servers: Vec<String> = backends.iter().map(Backend::address).collect();
        let module = configs::filtered_module(TOPIC, &servers);
        // kmonitor polls every half second, so that changes of the delay are soon visible.
        let kmonitor = configs::kmonitor(cluster).set("base.poll_interval_ms", 500);
        Daemons {
            kproxy: Kproxy::start(configs::kproxy(cluster)),
            ktransfer: Ktransfer::start(configs::ktransfer(cluster), &[(MODULE, module)]),
            kmonitor: Kmonitor::start(&kmonitor),
        }
    }

    fn wait_until_ready(&mut self) {
        self.kproxy.wait_until_ready();
        self.ktransfer.wait_until_ready();
        self.kmonitor.wait_until_ready();
    }

    fn print_addresses(&self, backends: &[Backend]) {
        let (kproxy, kmonitor) = (&self.kproxy.address, &self.kmonitor.address);
        println!("  kproxy     http://{kproxy}/commit?topic={TOPIC}&key=K&acks=1   (POST)");
        println!("             http://{}/metrics  /readyz  /healthz", self.kproxy.admin);
        println!("  ktransfer  http://{}/metrics  /readyz  /healthz", self.ktransfer.admin);
        println!("  kmonitor   http://{kmonitor}/delay");
        println!("             http://{kmonitor}/delay?format=zabbix");
        println!("             http://{kmonitor}/metrics  /readyz  /healthz");
        let addresses: Vec<String> = backends.iter().map(Backend::address).collect();
        println!("  backends   {}", addresses.join("  "));
    }

    /// Returns the current delay; `None` while kmonitor does not know the module.
    fn delay(&self) -> Option<Delay> {
        let partitions = self.kmonitor.delay(CLUSTER_NAME, MODULE);
        let pair = |(partition, delay): (&String, &serde_json::Value)| Some((partition.parse().ok()?, delay.as_i64()?));
        partitions.as_object()?.iter().map(pair).collect::<Option<_>>().map(Delay)
    }

    fn by_name(&mut self) -> [(&'static str, &mut Daemon); 3] {
        [
            ("kproxy", &mut self.kproxy.daemon),
            ("ktransfer", &mut self.ktransfer.daemon),
            ("kmonitor", &mut self.kmonitor.daemon),
        ]
    }

    /// Stops the daemons in the order in which messages pass them. Returns false if one did not exit with 0.
    fn stop(&mut self) -> bool {
        let mut all_ended_with_0 = true;
        for (name, daemon) in self.by_name() {
            daemon.terminate();
            match poll(Duration::from_secs(20), || daemon.ended()) {
                Some(status) => {
                    println!("  {name}: {status}");
                    all_ended_with_0 &= status.code() == Some(0);
                }
                None => {
                    println!("  {name} did not end");
                    all_ended_with_0 = false;
                }
            }
        }
        all_ended_with_0
    }

    fn print_logs(&mut self) {
        for (name, daemon) in self.by_name() {
            let log = daemon.log();
            let lines: Vec<&str> = log.lines().collect();
            println!("---- {name}: output and the last log lines\n{}", daemon.output());
            println!("{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}
