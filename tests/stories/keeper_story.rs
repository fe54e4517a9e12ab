//! The keeper over a real ZooKeeper that is away, killed, frozen, or something else altogether.
//!
//! What every caller relies on: a call returns within a third of the session timeout, and all comes right by itself.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kafka_http_wrapper::keeper::paths::create_with_parents;
use kafka_http_wrapper::keeper::{self, KeeperConfig, KeeperError, Lifetime, Node, SharedKeeper};
use kafka_http_wrapper::shutdown::Stop;
use kafka_http_wrapper::supervise::{Ended, Supervisor};

use crate::harness::{ZooKeeper, free_port, wait_until};

const SESSION: Duration = Duration::from_secs(3);

/// A call may take a third of the session; the rest is for a busy machine.
const SLOWEST_CALL: Duration = Duration::from_millis(1_000 + 700);

const RECOVERY: Duration = Duration::from_secs(20);

/// Lines that the crate and the keeper log; a client that spins writes ten thousands a second.
static LINES: AtomicUsize = AtomicUsize::new(0);

struct CountLines;

impl log::Log for CountLines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        if record.target().starts_with("zookeeper") || record.target().contains("keeper") {
            LINES.fetch_add(1, Ordering::Relaxed);
        }
    }
    fn flush(&self) {}
}

/// A keeper as a daemon has it, with threads that call it all the time.
struct Busy {
    keeper: SharedKeeper,
    supervisor: Supervisor,
    callers_stop: Stop,
    callers: Vec<JoinHandle<()>>,
    slowest: Arc<Mutex<Duration>>,
}

impl Busy {
    fn on(hosts: &[String]) -> Busy {
        static LOGGER: Once = Once::new();
        LOGGER.call_once(|| {
            log::set_logger(&CountLines).expect("no other story sets a logger");
            log::set_max_level(log::LevelFilter::Info);
        });
        let (keeper, supervisor) = connect(hosts, "");
        let callers_stop = Stop::new();
        let slowest = Arc::new(Mutex::new(Duration::ZERO));
        let caller = |_| {
            let (keeper, stop, slowest) = (Arc::clone(&keeper), callers_stop.clone(), Arc::clone(&slowest));
            std::thread::spawn(move || {
                while stop.sleep(Duration::from_millis(20)) {
                    let started = Instant::now();
                    let _ = keeper.children("/");
                    let mut slowest = slowest.lock().expect("no caller panics");
                    *slowest = slowest.max(started.elapsed());
                }
            })
        };
        let callers = (0..4).map(caller).collect();
        Busy { keeper, supervisor, callers_stop, callers, slowest }
    }

    fn recovers(&self, what: &str) {
        wait_until(RECOVERY, what, || self.keeper.read("/").is_ok() && self.keeper.reachable().is_ok());
    }

    /// Everything ends as in a daemon; says what the slowest call took.
    fn end(self) -> Duration {
        self.callers_stop.trigger();
        for caller in self.callers {
            caller.join().expect("no caller panics");
        }
        end(&self.keeper, &self.supervisor);
        *self.slowest.lock().expect("no caller panics")
    }
}

fn connect(hosts: &[String], chroot: &str) -> (SharedKeeper, Supervisor) {
    let supervisor = Supervisor::new("story", Stop::new());
    let config = KeeperConfig {
        hosts: hosts.to_vec(),
        chroot: chroot.into(),
        session_timeout: SESSION,
        connect_timeout: Duration::from_secs(1),
    };
    (keeper::connect(config, &supervisor), supervisor)
}

fn end(keeper: &SharedKeeper, supervisor: &Supervisor) {
    keeper.close(Duration::from_secs(5));
    assert!(matches!(keeper.read("/"), Err(KeeperError::Unreachable(_))));
    supervisor.stop().trigger();
    assert_eq!(supervisor.join(Duration::from_secs(5)), Ended::Stopped);
}

#[test]
fn a_server_that_is_away_killed_or_frozen_delays_no_call_and_is_found_again() {
    let server = ZooKeeper::start();
    server.kill9();
    let lines_before = LINES.load(Ordering::Relaxed);
    let busy = Busy::on(&[server.address()]);
    let keeper = &busy.keeper;
    wait_until(RECOVERY, "the refusal is known", || {
        keeper.reachable().is_err_and(|reason| reason.contains(&server.address()))
    });
    assert_eq!((keeper.epoch(), keeper.last_confirmed()), (0, None));
    server.restart();
    busy.recovers("down at start");
    assert!(keeper.epoch() >= 1);

    // Old enough that the crate alone would give its session up for ever.
    keeper.create("/first", b"", Lifetime::Ephemeral).unwrap();
    let old = Instant::now() + SESSION + Duration::from_secs(1);
    let first = keeper.epoch();
    wait_until(RECOVERY, "time passes", || {
        let age = keeper.last_confirmed().map_or(Duration::ZERO, |good| good.elapsed());
        assert!(age < SESSION / 2, "the last good answer is {age:?} old");
        Instant::now() > old
    });
    // One may be lost to a machine that stalls for a second, but they do not come and go.
    assert!(keeper.epoch() <= first + 1, "nothing happened, so the session stays");
    server.kill9();
    wait_until(SESSION, "the loss is noticed", || keeper.last_confirmed().is_none() && keeper.reachable().is_err());
    server.restart();
    busy.recovers("kill -9 and restart");
    let second = keeper.epoch();
    assert!(second > first);
    wait_until(RECOVERY, "the claim of the first session is gone", || keeper.read("/first") == Ok(None));

    keeper.create("/second", b"", Lifetime::Ephemeral).unwrap();
    server.stop_process();
    let frozen = Instant::now();
    wait_until(SESSION / 2, "the silence is noticed", || keeper.last_confirmed().is_none());
    wait_until(RECOVERY, "it stays frozen for two sessions", || {
        assert!(keeper.read("/").is_err());
        frozen.elapsed() > 2 * SESSION
    });
    server.continue_process();
    busy.recovers("frozen for two sessions");
    assert!(keeper.epoch() > second);
    wait_until(RECOVERY, "the claim of the second session is gone", || keeper.read("/second") == Ok(None));

    // A client so young that the crate alone would try to reconnect without a pause until its session is over.
    server.kill9();
    let killed = Instant::now();
    wait_until(RECOVERY, "it stays away for longer than a session", || killed.elapsed() > SESSION + SESSION / 3);
    server.restart();
    busy.recovers("killed soon after it was found");

    let lines = LINES.load(Ordering::Relaxed) - lines_before;
    let slowest = busy.end();
    let cpu = cpu_used();
    eprintln!("slowest call {slowest:?}, {lines} log lines, {cpu:.2} s of CPU in this process so far");
    assert!(slowest < SLOWEST_CALL, "the slowest call took {slowest:?}");
    assert!(lines < 500, "{lines} log lines");
}

/// Seconds of CPU that this process has used, with all stories that run in it.
fn cpu_used() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    let ticks: f64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    ticks / 100.0
}

/// Something that answers every connection with words of another protocol, until it is dropped.
struct HttpServer {
    address: String,
    asked: Arc<AtomicUsize>,
    stop: Stop,
}

impl HttpServer {
    fn start() -> HttpServer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (stop, asked) = (Stop::new(), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (stop.clone(), Arc::clone(&asked));
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                if stopped.is_triggered() {
                    return;
                }
                count.fetch_add(1, Ordering::Relaxed);
                let _ = stream.read(&mut [0; 100]);
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
        });
        HttpServer { address, asked, stop }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.stop.trigger();
        // Wakes it, so that it sees the stop.
        let _ = std::net::TcpStream::connect(&self.address);
    }
}

#[test]
fn an_address_that_speaks_something_else_is_named_and_passed_over() {
    let http = HttpServer::start();
    let busy = Busy::on(std::slice::from_ref(&http.address));
    wait_until(RECOVERY, "the reason is named", || {
        busy.keeper.reachable().is_err_and(|reason| reason.contains("not ZooKeeper") && reason.contains(&http.address))
    });
    wait_until(RECOVERY, "it is tried again", || http.asked.load(Ordering::Relaxed) >= 3);
    let slowest = busy.end();
    assert!(slowest < SLOWEST_CALL, "the slowest call took {slowest:?}");

    let server = ZooKeeper::start();
    let away = format!("127.0.0.1:{}", free_port());
    // The order is chosen at random, so several tries meet the strange one first.
    for _ in 0..4 {
        let busy =
            Busy::on(&[http.address.clone(), away.clone(), "no-such-host.invalid:2181".into(), server.address()]);
        busy.recovers("one good server among strange ones");
        let slowest = busy.end();
        assert!(slowest < SLOWEST_CALL, "the slowest call took {slowest:?}");
    }
}

#[test]
fn a_closed_session_takes_its_claims_with_it_at_once_and_the_chroot_is_made() {
    let server = ZooKeeper::start();
    let (keeper, supervisor) = connect(&[server.address()], "/mq/story");
    wait_until(RECOVERY, "it connects", || keeper.read("/").is_ok());
    create_with_parents(&*keeper, "/a/claim", b"mine", Lifetime::Ephemeral).unwrap();
    create_with_parents(&*keeper, "/a/kept", b"0", Lifetime::Persistent).unwrap();
    let exists = Err(KeeperError::NodeExists("/a/kept".into()));
    assert_eq!(keeper.create("/a/kept", b"1", Lifetime::Persistent), exists);
    assert_eq!(keeper.write("/a/kept", b"1", 0), Ok(1));
    assert_eq!(keeper.write("/a/kept", b"2", 0), Err(KeeperError::BadVersion("/a/kept".into())));
    assert_eq!(keeper.write("/a/kept", b"2", -1), Err(KeeperError::BadVersion("/a/kept".into())));
    assert!(matches!(keeper.delete("/a", 0), Err(KeeperError::NotEmpty(_))));
    assert!(matches!(keeper.children("/absent"), Err(KeeperError::NoNode(_))));
    let mut names = keeper.children("/a").unwrap();
    names.sort_unstable();
    assert_eq!(names, ["claim", "kept"]);
    assert_eq!(keeper.epoch(), 1, "answers about nodes cost no session");
    let look = server.client();
    assert_eq!(look.read("/mq/story/a/kept").as_deref(), Some("1"));
    assert_ne!(look.get("/mq/story/a/claim").expect("claimed").ephemeral_owner, 0);

    // Several callers at once, as a monitor has them.
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| (0..500).for_each(|_| drop(keeper.read("/a/kept").unwrap())));
        }
    });
    eprintln!("{:.0} reads a second", 3_000.0 / started.elapsed().as_secs_f64());

    // One caller with many questions: as many at once, answers in order.
    let paths: Vec<String> = (0..3_000).map(|number| format!("/a/{}", ["kept", "absent"][number % 2])).collect();
    let started = Instant::now();
    let nodes = keeper.read_all(&paths);
    eprintln!("{:.0} reads a second together", 3_000.0 / started.elapsed().as_secs_f64());
    assert_eq!(nodes.len(), paths.len());
    let is_kept = |node: &Result<Option<Node>, _>| node.as_ref().is_ok_and(Option::is_some);
    assert!(nodes.iter().enumerate().all(|(number, node)| node.is_ok() && is_kept(node) == (number % 2 == 0)));
    let started = Instant::now();
    (0..500).for_each(|_| drop(keeper.read("/a/kept").unwrap()));
    eprintln!("{:.0} reads a second one by one", 500.0 / started.elapsed().as_secs_f64());
    assert_eq!(keeper.epoch(), 1);

    end(&keeper, &supervisor);
    wait_until(SESSION / 3, "the claim is gone", || look.get("/mq/story/a/claim").is_none());
}

/// Address of ZooKeeper, for the copy of this binary that runs out of files.
const WITHOUT_FILES: &str = "KAFKA_HTTP_WRAPPER_STORY_WITHOUT_FILES";

#[test]
fn a_process_that_runs_out_of_files_tries_on_and_recovers() {
    if let Ok(address) = std::env::var(WITHOUT_FILES) {
        return run_out_of_files(&address);
    }
    let server = ZooKeeper::start();
    let copy = "ulimit -n 64; exec \"$0\" \"$@\"";
    let test = "keeper_story::a_process_that_runs_out_of_files_tries_on_and_recovers";
    let output = Command::new("sh")
        .args(["-c", copy])
        .arg(std::env::current_exe().expect("our own path"))
        .args(["--exact", test, "--nocapture"])
        .env(WITHOUT_FILES, server.address())
        .output()
        .expect("the copy starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("recovered 12 times"), "{said}");
}

/// With so few files free, making a client fails at another place each time.
fn run_out_of_files(address: &str) {
    let mut recovered = 0;
    for n_free in 0..12 {
        let mut files = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            files.push(file);
        }
        files.truncate(files.len() - n_free);
        let (keeper, supervisor) = connect(&[address.to_owned()], "");
        wait_until(RECOVERY, "it was tried", || {
            keeper.reachable().err().is_none_or(|reason| !reason.contains("not connected yet"))
        });
        drop(files);
        wait_until(RECOVERY, "it recovers", || keeper.read("/").is_ok());
        end(&keeper, &supervisor);
        recovered += 1;
    }
    eprintln!("recovered {recovered} times");
}
