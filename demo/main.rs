//! The three daemons at work, to be looked at: `make demo`.
//!
//! Starts ZooKeeper, Kafka, two small backends and the daemons; posts messages through kproxy, prints what the backends get
//! from ktransfer and what kmonitor says of the delay. Runs until Ctrl-C, or for `DEMO_SECONDS`; then it waits until all is
//! delivered, sums up, and ends with 0 if nothing was lost and every key stayed in order. It leaves nothing behind.

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

#[path = "../tests/stories/harness/mod.rs"]
mod harness;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use harness::backend::Journal;
use harness::configs::{self, CLUSTER_NAME};
use harness::http::{self, Client};
use harness::message::{METHODS, Message};
use harness::oracle::{Id, Verdict, judge};
use harness::{Answer, Backend, Cluster, Daemon, Program, Request, binary, cluster, free_port, poll};

const TOPIC: &str = "demo_topic";
const MODULE: &str = "demo_module";
const N_PARTITIONS: i32 = 8;
const N_USERS: u64 = 12;
/// Slow enough that one can read along.
const PAUSE_BETWEEN_MESSAGES: Duration = Duration::from_millis(50);
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long the last messages may take to arrive, and the delay to fall to 0.
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
    // Found missing now rather than after Kafka has started.
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

    // Until here Ctrl-C simply ends us and the watchdog cleans up; from here it asks for the summary.
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second one does not wait.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop)).expect("a signal that exists");
        signal_hook::flag::register(signal, Arc::clone(&stop)).expect("a signal that exists");
    }
    let until = match seconds {
        Some(seconds) => format!("for {seconds} s"),
        None => "until Ctrl-C".to_owned(),
    };
    step(&format!(
        "Posting {} messages a second over {N_USERS} keys {until} ...",
        1000 / PAUSE_BETWEEN_MESSAGES.as_millis()
    ));
    let posted = Posted::default();
    std::thread::scope(|scope| {
        scope.spawn(|| post_until(&stop, &daemons.kproxy_address, &posted));
        watch(&stop, seconds.map(Duration::from_secs), &daemons, &backends, &journal, &posted);
    });

    step("Posting has ended; waiting until all is delivered and the delay is 0 ...");
    let settled = poll(SETTLE_DEADLINE, || {
        let verdict = posted.verdict(&journal);
        let delay = daemons.delay();
        let done = verdict.lost.is_empty() && delay.as_ref().is_some_and(|delay| delay.is_zero());
        done.then_some(delay)
    });
    match &settled {
        Some(delay) => println!("  delay: {}", show(delay.as_ref())),
        None => println!("  not within {SETTLE_DEADLINE:?}; delay: {}", show(daemons.delay().as_ref())),
    }

    step("Stopping the daemons (SIGTERM) ...");
    let stopped_well = daemons.stop();
    let verdict = posted.verdict(&journal);
    summary(&verdict, &journal, posted.n_refused());
    let good = verdict.is_good() && settled.is_some() && stopped_well && journal.most_of_one_key() <= 1;
    if !good {
        daemons.print_logs();
    }
    ExitCode::from(u8::from(!good))
}

fn step(text: &str) {
    println!("\n== {text}");
}

/// Prints a push as it arrives, and takes it.
fn print_push(backend: u32, request: &Request) -> Answer {
    match Message::decode(&request.body) {
        Some(message) => println!(
            "  backend {backend} <- {:<8} #{:<4} {:<8} {}",
            message.id.0, message.id.1, message.method, request.target
        ),
        None => {
            println!("  backend {backend} <- {} bytes that are none of ours: {}", request.body.len(), request.target)
        }
    }
    Answer::ok()
}

fn summary(verdict: &Verdict, journal: &Journal, n_refused: usize) {
    step("Summary");
    println!("  posted        {}", verdict.n_posted);
    println!("  pushed        {}", verdict.n_pushed);
    println!("  repeats       {}", verdict.n_repeats);
    println!("  lost          {}", verdict.lost.len());
    println!("  out of order  {}", verdict.out_of_order.len());
    println!("  at most {} of one key at the same time", journal.most_of_one_key());
    if n_refused > 0 {
        println!("  not answered with 200 by kproxy: {n_refused}");
    }
    if !verdict.unknown.is_empty() {
        println!("  pushed but never posted: {:?}", verdict.unknown);
    }
}

/// What kproxy took, and what it did not say 200 to.
#[derive(Default)]
struct Posted {
    taken: Mutex<Vec<Id>>,
    refused: Mutex<Vec<Id>>,
}

impl Posted {
    fn add(list: &Mutex<Vec<Id>>, id: Id) {
        list.lock().unwrap_or_else(PoisonError::into_inner).push(id);
    }

    fn n_refused(&self) -> usize {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn verdict(&self, journal: &Journal) -> Verdict {
        // Taken before the records: what is posted meanwhile is not missed.
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let records = journal.records();
        let pushed: Vec<Id> = records
            .iter()
            .filter(|record| record.status == Some(200))
            .filter_map(|record| Message::decode(&record.request.body))
            .map(|message| message.id)
            .collect();
        // A push may be seen before the answer to its post is.
        refused.extend(self.taken.lock().unwrap_or_else(PoisonError::into_inner)[taken.len()..].iter().cloned());
        judge(&taken, &refused, &pushed)
    }
}

/// Posts one message after the other on one connection.
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
            Ok(answer) if answer.status == 200 => Posted::add(&posted.taken, message.id),
            Ok(answer) => {
                println!("  kproxy answers {} {}", answer.status, answer.text());
                Posted::add(&posted.refused, message.id);
            }
            Err(error) => {
                println!("  kproxy: {error}");
                Posted::add(&posted.refused, message.id);
                client = None;
            }
        }
        std::thread::sleep(PAUSE_BETWEEN_MESSAGES);
    }
}

/// Prints how it goes every two seconds, switches the backends off for a while, and sets `stop` at the end.
fn watch(
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
    let (mut switched_off, mut switched_on) = (false, false);
    let mut next_report = Duration::from_secs(2);
    while !stop.load(Ordering::SeqCst) {
        let elapsed = started.elapsed();
        if length.is_some_and(|length| elapsed >= length) {
            stop.store(true, Ordering::SeqCst);
        }
        if elapsed >= off_at && !switched_off {
            switched_off = true;
            println!("-- both backends are switched off: the delay grows");
            backends.iter().for_each(Backend::stop_listening);
        }
        if elapsed >= on_at && !switched_on {
            switched_on = true;
            println!("-- both backends are switched on again: the delay falls");
            backends.iter().for_each(Backend::listen_again);
        }
        if elapsed >= next_report {
            next_report = elapsed + Duration::from_secs(2);
            let verdict = posted.verdict(journal);
            let delay = daemons.delay();
            println!(
                "-- {:.0} s: posted {}, pushed {}, repeats {}, delay {}",
                elapsed.as_secs_f64(),
                verdict.n_posted,
                verdict.n_pushed,
                verdict.n_repeats,
                show(delay.as_ref())
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    backends.iter().for_each(Backend::listen_again);
}

/// What kmonitor says of the module: messages not yet pushed, by partition.
struct Delay(BTreeMap<i32, i64>);

impl Delay {
    /// Every partition is known and has none.
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
    kproxy: Daemon,
    ktransfer: Daemon,
    kmonitor: Daemon,
    kproxy_address: String,
    kproxy_admin: String,
    ktransfer_admin: String,
    kmonitor_address: String,
}

impl Daemons {
    /// Starts the three with the configurations of the README, at ports of this run.
    fn start(cluster: &Cluster, backends: &[Backend]) -> Daemons {
        let [kproxy_port, kproxy_admin_port, ktransfer_admin_port, kmonitor_port] =
            std::array::from_fn(|_| free_port());
        let servers: Vec<String> = backends.iter().map(Backend::address).collect();
        let kproxy = configs::kproxy(cluster, kproxy_port, kproxy_admin_port);
        let ktransfer = configs::ktransfer(cluster, ktransfer_admin_port, &[MODULE]);
        let module = configs::module(TOPIC, &servers);
        // Looked at every half second, so that one sees the delay move.
        let kmonitor = configs::kmonitor(cluster, kmonitor_port).replace("base:\n", "base:\n poll_interval_ms: 500\n");
        let module_file = format!("conf/modules/{MODULE}.yaml");
        Daemons {
            kproxy: Daemon::start(Program::Kproxy, &[("kproxy.yaml", &kproxy)]),
            ktransfer: Daemon::start(
                Program::Ktransfer,
                &[("conf/ktransfer.yaml", &ktransfer), (&module_file, &module)],
            ),
            kmonitor: Daemon::start(Program::Kmonitor, &[("kmonitor.yaml", &kmonitor)]),
            kproxy_address: format!("127.0.0.1:{kproxy_port}"),
            kproxy_admin: format!("127.0.0.1:{kproxy_admin_port}"),
            ktransfer_admin: format!("127.0.0.1:{ktransfer_admin_port}"),
            kmonitor_address: format!("127.0.0.1:{kmonitor_port}"),
        }
    }

    fn wait_until_ready(&mut self) {
        self.kproxy.wait_until_ready(&self.kproxy_admin, START_DEADLINE);
        self.ktransfer.wait_until_ready(&self.ktransfer_admin, START_DEADLINE);
        self.kmonitor.wait_until_ready(&self.kmonitor_address, START_DEADLINE);
    }

    fn print_addresses(&self, backends: &[Backend]) {
        let (kproxy, kmonitor) = (&self.kproxy_address, &self.kmonitor_address);
        println!("  kproxy     http://{kproxy}/commit?topic={TOPIC}&key=K&acks=1   (POST)");
        println!("             http://{}/metrics  /readyz  /healthz", self.kproxy_admin);
        println!("  ktransfer  http://{}/metrics  /readyz  /healthz", self.ktransfer_admin);
        println!("  kmonitor   http://{kmonitor}/delay");
        println!("             http://{kmonitor}/delay?format=zabbix");
        println!("             http://{kmonitor}/metrics  /readyz  /healthz");
        let addresses: Vec<String> = backends.iter().map(Backend::address).collect();
        println!("  backends   {}", addresses.join("  "));
    }

    /// What kmonitor says now; `None` while it does not know the module.
    fn delay(&self) -> Option<Delay> {
        let answer = http::get(&format!("http://{}/delay", self.kmonitor_address)).ok()?;
        let document: serde_json::Value = serde_json::from_slice(&answer.body).ok()?;
        let partitions = document.get(CLUSTER_NAME)?.get(MODULE)?.as_object()?;
        let pair = |(partition, delay): (&String, &serde_json::Value)| Some((partition.parse().ok()?, delay.as_i64()?));
        partitions.iter().map(pair).collect::<Option<_>>().map(Delay)
    }

    /// Stops them in order, the first in the flow first; false if one did not end with 0.
    fn stop(&mut self) -> bool {
        let mut all_well = true;
        for (name, daemon) in
            [("kproxy", &mut self.kproxy), ("ktransfer", &mut self.ktransfer), ("kmonitor", &mut self.kmonitor)]
        {
            daemon.terminate();
            match poll(Duration::from_secs(20), || daemon.ended()) {
                Some(status) => {
                    println!("  {name}: {status}");
                    all_well &= status.code() == Some(0);
                }
                None => {
                    println!("  {name} did not end");
                    all_well = false;
                }
            }
        }
        all_well
    }

    fn print_logs(&self) {
        for (name, daemon) in [("kproxy", &self.kproxy), ("ktransfer", &self.ktransfer), ("kmonitor", &self.kmonitor)] {
            let log = daemon.log();
            let lines: Vec<&str> = log.lines().collect();
            println!("---- {name}: outputs and the last log lines\n{}", daemon.output());
            println!("{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}
