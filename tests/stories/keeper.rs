//! The ZooKeeper seam with a server that is down, killed, frozen, or not a ZooKeeper server.
//!
//! Every caller relies on two guarantees: each request ends within a third of the session timeout, and the keeper
//! continues its session, or opens a new one, by itself.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kafka_http_wrapper::keeper::paths::create_with_parents;
use kafka_http_wrapper::keeper::{Change, KeeperError, Lifetime, Node};
use kafka_http_wrapper::shutdown::Stop;

use crate::harness::keeper::{KeeperSession, SESSION};
use crate::harness::process::rerun_test;
use crate::harness::{Link, ZooKeeper, free_port, wait_until};

/// Longest time of a request: a third of the session timeout, plus 700 ms for a busy machine.
const MAX_CALL: Duration = Duration::from_millis(1_000 + 700);

const DEADLINE: Duration = Duration::from_secs(20);

/// Number of log lines of the keeper. A client that reconnects without a pause would write
/// tens of thousands of lines a second.
static LOG_LINES: AtomicUsize = AtomicUsize::new(0);

struct CountLines;

impl log::Log for CountLines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        if record.target().contains("keeper") {
            LOG_LINES.fetch_add(1, Ordering::Relaxed);
        }
    }
    fn flush(&self) {}
}

/// A session, and four threads that send requests through it all the time.
struct BusyKeeper {
    session: KeeperSession,
    callers_stop: Stop,
    callers: Vec<JoinHandle<()>>,
    slowest: Arc<Mutex<Duration>>,
}

impl BusyKeeper {
    fn connect(hosts: &[String]) -> BusyKeeper {
        static LOGGER: Once = Once::new();
        LOGGER.call_once(|| {
            log::set_logger(&CountLines).expect("only this story sets a logger");
            log::set_max_level(log::LevelFilter::Info);
        });
        let session = KeeperSession::connect(hosts, "");
        let callers_stop = Stop::new();
        let slowest = Arc::new(Mutex::new(Duration::ZERO));
        let caller = |_| {
            let (keeper, stop, slowest) = (Arc::clone(&session.keeper), callers_stop.clone(), Arc::clone(&slowest));
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
        BusyKeeper { session, callers_stop, callers, slowest }
    }

    fn wait_until_recovered(&self, after: &str) {
        let keeper = &self.session.keeper;
        wait_until(DEADLINE, &format!("recovered after: {after}"), || {
            keeper.read("/").is_ok() && keeper.reachable().is_ok()
        });
    }

    /// Closes the session; returns the duration of the slowest request. Panics if it exceeds [`MAX_CALL`].
    fn close(self) -> Duration {
        self.callers_stop.trigger();
        for caller in self.callers {
            caller.join().expect("no caller panics");
        }
        close(&self.session);
        let slowest = *self.slowest.lock().expect("no caller panics");
        assert!(slowest < MAX_CALL, "the slowest call took {slowest:?}");
        slowest
    }
}

/// Closes the session; checks that later requests fail.
fn close(session: &KeeperSession) {
    session.close();
    assert!(matches!(session.keeper.read("/"), Err(KeeperError::Unreachable(_))));
}

#[test]
fn a_server_that_is_down_killed_or_frozen_delays_no_call_and_the_session_recovers() {
    let server = ZooKeeper::start();
    server.kill9();
    let lines_before = LOG_LINES.load(Ordering::Relaxed);
    let busy = BusyKeeper::connect(&[server.address()]);
    start_a_server_that_was_down(&server, &busy);
    kill_a_server_with_an_old_session(&server, &busy);
    freeze_a_server_for_two_sessions(&server, &busy);
    kill_a_server_with_a_young_session(&server, &busy);
    let lines = LOG_LINES.load(Ordering::Relaxed) - lines_before;
    let slowest = busy.close();
    let cpu = cpu_seconds();
    eprintln!("slowest call {slowest:?}, {lines} log lines, {cpu:.2} s of CPU in this process so far");
    assert!(lines < 500, "{lines} log lines");
}

fn start_a_server_that_was_down(server: &ZooKeeper, busy: &BusyKeeper) {
    let keeper = &busy.session.keeper;
    wait_until(DEADLINE, "the keeper names the server that refuses it", || {
        keeper.reachable().is_err_and(|reason| reason.contains(&server.address()))
    });
    assert_eq!((keeper.epoch(), keeper.last_confirmed()), (0, None));
    server.restart();
    busy.wait_until_recovered("down at the start");
    assert!(keeper.epoch() >= 1);
}

fn kill_a_server_with_an_old_session(server: &ZooKeeper, busy: &BusyKeeper) {
    let keeper = &busy.session.keeper;
    keeper.create("/first", b"", Lifetime::Ephemeral).unwrap();
    // The session becomes older than its timeout, with pings and reads alone.
    let old = Instant::now() + SESSION + Duration::from_secs(1);
    let first = keeper.epoch();
    wait_until(DEADLINE, "the session is older than its timeout", || Instant::now() > old);
    assert_eq!(keeper.epoch(), first, "a session was lost while the server was up");
    server.kill9();
    wait_until(SESSION, "the keeper notices that the connection is lost", || keeper.reachable().is_err());
    server.restart();
    busy.wait_until_recovered("kill -9 and restart");
    assert_eq!(keeper.epoch(), first, "the session is continued");
    let node = keeper.read("/first").unwrap().expect("the claim of the session is kept");
    assert_eq!(Some(node.ephemeral_owner), keeper.session_id());
}

fn freeze_a_server_for_two_sessions(server: &ZooKeeper, busy: &BusyKeeper) {
    let keeper = &busy.session.keeper;
    let before = keeper.epoch();
    keeper.create("/second", b"", Lifetime::Ephemeral).unwrap();
    server.freeze();
    let frozen = Instant::now();
    wait_until(SESSION, "the keeper notices that the server does not respond", || keeper.reachable().is_err());
    wait_until(DEADLINE, "the server stays frozen for two sessions", || {
        assert!(keeper.read("/").is_err());
        frozen.elapsed() > 2 * SESSION
    });
    server.unfreeze();
    busy.wait_until_recovered("frozen for two sessions");
    // The server may expire the session before it reads from the new connection, or not.
    wait_until(DEADLINE, "the claim exists if and only if its session does", || {
        let node = keeper.read("/second").ok()?;
        let is_continued = keeper.epoch() == before;
        (node.is_some() == is_continued).then_some(())
    });
}

/// Kills the server soon after a connection was made: reconnecting must have a pause.
fn kill_a_server_with_a_young_session(server: &ZooKeeper, busy: &BusyKeeper) {
    server.kill9();
    let killed = Instant::now();
    wait_until(DEADLINE, "the server stays down for longer than a session", || {
        killed.elapsed() > SESSION + SESSION / 3
    });
    server.restart();
    busy.wait_until_recovered("killed soon after the session began");
}

/// Returns the CPU seconds of this process, in which other stories may run too.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    let ticks: f64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    ticks / 100.0
}

/// A server that answers every connection with HTTP; dropping the value stops it.
struct NotZooKeeper {
    address: String,
    n_connections: Arc<AtomicUsize>,
    stop: Stop,
}

impl NotZooKeeper {
    fn start() -> NotZooKeeper {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (stop, n_connections) = (Stop::new(), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (stop.clone(), Arc::clone(&n_connections));
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
        NotZooKeeper { address, n_connections, stop }
    }
}

impl Drop for NotZooKeeper {
    fn drop(&mut self) {
        self.stop.trigger();
        // A connection wakes the thread, which blocks in accept and then sees `stop`.
        let _ = std::net::TcpStream::connect(&self.address);
    }
}

#[test]
fn a_server_of_another_protocol_is_named_and_skipped() {
    let http = NotZooKeeper::start();
    let busy = BusyKeeper::connect(std::slice::from_ref(&http.address));
    wait_until(DEADLINE, "the keeper reports that the server is not ZooKeeper", || {
        let reachable = busy.session.keeper.reachable();
        reachable.is_err_and(|reason| reason.contains("not ZooKeeper") && reason.contains(&http.address))
    });
    wait_until(DEADLINE, "the server is tried three times", || http.n_connections.load(Ordering::Relaxed) >= 3);
    busy.close();

    let server = ZooKeeper::start();
    let down = format!("127.0.0.1:{}", free_port());
    // The keeper tries the hosts in random order, so some of the four sessions try wrong hosts first.
    for _ in 0..4 {
        let hosts = [http.address.clone(), down.clone(), "no-such-host.invalid:2181".into(), server.address()];
        let busy = BusyKeeper::connect(&hosts);
        busy.wait_until_recovered("three wrong hosts before the right one");
        busy.close();
    }
}

#[test]
fn a_lost_connection_continues_the_session_and_its_claims() {
    let server = ZooKeeper::start();
    let link = Link::to(&server.address());
    let session = KeeperSession::connect(&[link.address()], "/c");
    let keeper = &session.keeper;
    wait_until(DEADLINE, "the keeper is connected", || keeper.read("/").is_ok());
    create_with_parents(&**keeper, "/claim", b"mine", Lifetime::Ephemeral).unwrap();
    let (epoch, id) = (keeper.epoch(), keeper.session_id());
    type Fault = (&'static str, fn(&Link));
    let faults: [Fault; 3] = [
        ("reset", Link::reset),
        ("cut", |link| {
            link.cut();
            link.restore();
        }),
        // The server is silent until the keeper gives the connection up.
        ("stalled", Link::stall),
    ];
    for (fault, disturb) in faults {
        let before = keeper.last_confirmed();
        disturb(&link);
        if fault == "stalled" {
            wait_until(SESSION, "a call fails", || keeper.read("/claim").is_err());
            link.restore();
        }
        wait_until(SESSION, &format!("calls succeed after the connection was {fault}"), || {
            keeper.read("/claim").is_ok_and(|node| node.is_some())
        });
        assert_eq!((keeper.epoch(), keeper.session_id()), (epoch, id), "{fault}");
        assert_eq!(keeper.last_confirmed(), before, "neither a read nor a connection proves the session");
        let node = keeper.read("/claim").unwrap().expect("read before");
        keeper.write("/claim", b"mine", node.version).unwrap();
        assert!(keeper.last_confirmed() > before, "{fault}");
    }
    close(&session);
}

#[test]
fn changes_are_carried_out_together_or_not_at_all() {
    let server = ZooKeeper::start();
    let session = KeeperSession::connect(&[server.address()], "/c");
    let keeper = &session.keeper;
    wait_until(DEADLINE, "the keeper is connected", || keeper.read("/").is_ok());
    create_with_parents(&**keeper, "/a", b"0", Lifetime::Persistent).unwrap();
    let create = Change::Create("/b".into(), b"b".to_vec(), Lifetime::Ephemeral);
    let write = |version| Change::Write("/a".into(), b"1".to_vec(), version);
    let check = |path: &str| Change::Check(path.into(), None);
    assert_eq!(keeper.multi(&[create.clone(), write(Some(7))]), Err(KeeperError::BadVersion("/a".into())));
    assert_eq!(keeper.multi(&[check("/absent"), create.clone()]), Err(KeeperError::NoNode("/absent".into())));
    assert_eq!(keeper.read("/b"), Ok(None));
    let before = keeper.last_confirmed();
    assert_eq!(keeper.multi(&[check("/a"), create, write(Some(0)), write(None)]), Ok(vec![0, 0, 1, 2]));
    assert!(keeper.last_confirmed() > before);
    let groups = [vec![Change::Delete("/b".into(), 0)], vec![check("/b")], vec![write(Some(2))]];
    assert_eq!(keeper.multi_all(&groups), [Ok(vec![0]), Err(KeeperError::NoNode("/b".into())), Ok(vec![3])]);
    close(&session);
}

#[test]
fn closing_a_session_deletes_its_claims_at_once_and_the_chroot_is_created() {
    let server = ZooKeeper::start();
    let session = KeeperSession::connect(&[server.address()], "/mq/story");
    let keeper = &session.keeper;
    wait_until(DEADLINE, "the keeper is connected", || keeper.read("/").is_ok());
    create_with_parents(&**keeper, "/a/claim", b"mine", Lifetime::Ephemeral).unwrap();
    create_with_parents(&**keeper, "/a/kept", b"0", Lifetime::Persistent).unwrap();
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
    assert_eq!(keeper.epoch(), 1, "errors about nodes do not end the session");
    let zk = server.client();
    assert_eq!(zk.read("/mq/story/a/kept").as_deref(), Some("1"));
    assert_ne!(zk.get("/mq/story/a/claim").expect("the claim exists").ephemeral_owner, 0);
    close(&session);
    wait_until(SESSION / 3, "the claim is deleted", || zk.get("/mq/story/a/claim").is_none());
}

#[test]
fn many_reads_are_concurrent_and_their_results_in_order() {
    let server = ZooKeeper::start();
    let session = KeeperSession::connect(&[server.address()], "");
    let keeper = &session.keeper;
    wait_until(DEADLINE, "the keeper is connected", || keeper.read("/").is_ok());
    create_with_parents(&**keeper, "/a/kept", b"1", Lifetime::Persistent).unwrap();
    let read_500 = || (0..500).for_each(|_| drop(keeper.read("/a/kept").unwrap()));

    // Six threads read at the same time, as in kmonitor.
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(read_500);
        }
    });
    eprintln!("{:.0} reads a second by six callers", 3_000.0 / started.elapsed().as_secs_f64());

    // One caller reads many paths with one call.
    let paths: Vec<String> = (0..3_000).map(|number| format!("/a/{}", ["kept", "absent"][number % 2])).collect();
    let started = Instant::now();
    let nodes = keeper.read_all(&paths);
    eprintln!("{:.0} reads a second by read_all", 3_000.0 / started.elapsed().as_secs_f64());
    assert_eq!(nodes.len(), paths.len());
    let is_kept = |node: &Result<Option<Node>, _>| node.as_ref().is_ok_and(Option::is_some);
    assert!(nodes.iter().enumerate().all(|(number, node)| node.is_ok() && is_kept(node) == (number % 2 == 0)));
    let started = Instant::now();
    read_500();
    eprintln!("{:.0} reads a second by one caller", 500.0 / started.elapsed().as_secs_f64());
    assert_eq!(keeper.epoch(), 1);
    close(&session);
}

/// The environment variable for the copy of this binary that runs out of file descriptors; its value is the address of
/// ZooKeeper.
const WITHOUT_FILES: &str = "KAFKA_HTTP_WRAPPER_STORY_WITHOUT_FILES";

#[test]
fn a_process_without_file_descriptors_retries_and_recovers() {
    if let Ok(address) = std::env::var(WITHOUT_FILES) {
        return run_out_of_files(&address);
    }
    let server = ZooKeeper::start();
    let copy = rerun_test(module_path!(), "a_process_without_file_descriptors_retries_and_recovers");
    let output = std::process::Command::new("sh")
        .args(["-c", "ulimit -n 64; exec \"$0\" \"$@\""])
        .arg(copy.get_program())
        .args(copy.get_args())
        .env(WITHOUT_FILES, server.address())
        .output()
        .expect("the copy starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.contains("recovered 12 times"), "{stderr}");
}

/// Connects with 0 to 11 free file descriptors; with each number, connecting fails at another step.
fn run_out_of_files(address: &str) {
    let mut recovered = 0;
    for n_free in 0..12 {
        let mut files = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            files.push(file);
        }
        files.truncate(files.len() - n_free);
        let session = KeeperSession::connect(&[address.to_owned()], "");
        let keeper = &session.keeper;
        wait_until(DEADLINE, "the keeper has tried to connect", || {
            keeper.reachable().err().is_none_or(|reason| !reason.contains("not connected yet"))
        });
        drop(files);
        wait_until(DEADLINE, "the keeper recovers", || keeper.read("/").is_ok());
        close(&session);
        recovered += 1;
    }
    eprintln!("recovered {recovered} times");
}
