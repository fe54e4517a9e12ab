//! Host names whose look-up hangs, as with a name server that never answers: every daemon starts, answers within its
//! deadlines and stops in time.
//!
//! `HOSTALIASES` names a file that glibc reads before it asks a name server for a name without a dot (hostname(7)).
//! Here it is a named pipe that nobody writes, so `getaddrinfo` of such a name hangs for ever.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::fleet::{Fleet, Reply};
use crate::harness::kproxy::{NO_BROKER, assert_refused};
use crate::harness::process::{folder, make_fifo};
use crate::harness::{
    Cluster, ConfigFile, Daemon, Kproxy, Program, START_DEADLINE, STOP_DEADLINE, binary, cluster, configs, http,
    unique, wait_until,
};

const DEADLINE: Duration = Duration::from_secs(60);
/// A broker, a ZooKeeper server or a backend whose name cannot be looked up.
const HANGING: &str = "hanging:9";

/// Starts a daemon in which the look-up of a name without a dot hangs; returns when it answers `/healthz` at `address`.
fn start(program: Program, files: &[(&str, &str)], address: &str) -> Daemon {
    start_with_pipe(program, files, address, &folder("aliases").join("pipe"))
}

/// As [`start`]; a look-up reads the pipe `aliases`.
fn start_with_pipe(program: Program, files: &[(&str, &str)], address: &str, aliases: &Path) -> Daemon {
    make_fifo(aliases);
    let aliases = aliases.to_str().expect("a path of ASCII");
    // Otherwise a machine without a name server waits for it for long.
    let environment = [("HOSTALIASES", aliases), ("RES_OPTIONS", "timeout:1 attempts:1")];
    let mut daemon = Daemon::start_in_environment(program, binary(program), files, &environment);
    daemon.wait_until_ok(address, "/healthz", START_DEADLINE);
    daemon
}

fn start_kproxy(config: &ConfigFile) -> Kproxy {
    let [address, admin] = ["port", "admin_port"].map(|key| config.address(key).expect("it is set"));
    let daemon = start(Program::Kproxy, &[("kproxy.yaml", &config.text())], &admin);
    Kproxy { daemon, address, admin }
}

fn start_ktransfer(config: ConfigFile, module: &ConfigFile) -> (Daemon, String) {
    let admin = config.address("admin_port").expect("it is set");
    let config = config.set("module_enabled", ["m"]).text();
    let files = [("conf/ktransfer.yaml", &*config), ("conf/modules/m.yaml", &module.text())];
    (start(Program::Ktransfer, &files, &admin), admin)
}

fn wait_until_hanging(daemon: &Daemon, thread: &str) {
    wait_until(DEADLINE, &format!("a thread {thread}"), || daemon.thread_names().iter().any(|name| name == thread));
}

#[test]
fn kproxy_answers_in_time_and_answers_those_who_wait_when_it_stops() {
    let config = |timeout_ms: u64| configs::kproxy_for(&[HANGING]).set("commit_timeout_ms", timeout_ms);
    let mut kproxy = start_kproxy(&config(1000));
    for acks in ["0", "1", "-1"] {
        let began = Instant::now();
        let answer = kproxy.post(&format!("/commit?topic=t&acks={acks}"), b"x");
        let took = began.elapsed();
        assert_refused(&answer, NO_BROKER, acks);
        assert!(took < Duration::from_secs(5), "acks={acks}: answered after {took:?}");
    }
    kproxy.daemon.wait_for_log("the name server did not answer in time", DEADLINE);
    kproxy.daemon.stop(STOP_DEADLINE);

    for grace_ms in [3_000, 400] {
        let mut kproxy = start_kproxy(&config(300_000).set("shutdown_grace_ms", grace_ms));
        let mut waiting: Vec<_> = (0..10).map(|n| kproxy.start_post(&format!("/commit?topic=t{n}"), b"x")).collect();
        kproxy.wait_for_commits_in_flight(10);
        kproxy.daemon.terminate();
        for client in &mut waiting {
            let answer = client.read_response().expect("everyone who waits is answered");
            assert_eq!((answer.status, &answer.json()["stored"]), (503, &"no".into()), "{}", answer.text());
            assert_eq!(answer.header("Connection"), Some("close"));
        }
        assert_eq!(kproxy.daemon.wait(STOP_DEADLINE).code(), Some(0), "shutdown_grace_ms {grace_ms}");
    }
}

#[test]
fn kproxy_stores_messages_beside_a_broker_whose_name_hangs() {
    let cluster = cluster();
    let topic = cluster.new_topic("hanging_name", 1);
    let mut brokers = cluster.broker_list();
    brokers.insert(0, HANGING);
    let mut kproxy = start_kproxy(&configs::kproxy_for(&brokers));
    kproxy.wait_until_ready();
    for acks in ["0", "1", "-1"] {
        assert_eq!(kproxy.post(&format!("/commit?topic={topic}&acks={acks}"), b"x").status, 200, "{acks}");
    }
    kproxy.daemon.stop(STOP_DEADLINE);
}

#[test]
fn ktransfer_stops_in_time_while_names_of_zookeeper_or_of_backends_hang() {
    let cluster = cluster();
    let topic = cluster.new_topic("hanging_name", 1);
    let module = |backend: &str| configs::module(&topic, &[backend.to_owned()]);
    let (mut daemon, _) =
        start_ktransfer(configs::ktransfer(cluster).set("zk_hosts", [HANGING]), &module("127.0.0.1:9"));
    wait_until_hanging(&daemon, "zk-search");
    daemon.stop(STOP_DEADLINE);

    cluster.produce(&topic, 0, &[(b"key", b"value")]);
    let (mut daemon, admin) = start_ktransfer(configs::ktransfer(cluster), &module(HANGING));
    daemon.wait_until_ok(&admin, "/readyz", DEADLINE);
    wait_until_hanging(&daemon, "names-look-up");
    daemon.stop(STOP_DEADLINE);
}

#[test]
fn a_backend_whose_name_hangs_costs_no_message_even_without_retries() {
    const N_MESSAGES: usize = 60;
    let cluster = cluster();
    let topic = cluster.new_topic("hanging_backend", 1);
    cluster.produce(&topic, 0, &vec![(&b""[..], &b"value"[..]); N_MESSAGES]);
    let fleet = Fleet::start(1, |_| Reply::ok());
    let good = fleet.addresses()[0].replace("127.0.0.1", "localhost");
    let module = configs::module(&topic, &[HANGING.to_owned(), good]).set("max_retry_times", 0);
    let (mut daemon, admin) = start_ktransfer(configs::ktransfer(cluster), &module);
    fleet.wait_until_delivered(N_MESSAGES, DEADLINE);
    wait_until(DEADLINE, "all messages are done", || cluster.stored_offset("m", &topic, 0) == Some(N_MESSAGES as i64));
    let status = http::get(&format!("http://{admin}/v1/modules/m")).expect("admin_port answers").json();
    let messages = &status["messages"];
    assert_eq!((&messages["given_up"], &messages["failed_attempts"]), (&0.into(), &0.into()), "{messages}");
    assert_eq!(status["backends"][0]["state"], "in_use", "{status}");
    daemon.stop(STOP_DEADLINE);
}

/// The first look-up hangs for ever. The next one ends: nobody knows such a name.
#[test]
fn a_backend_whose_look_up_hangs_is_looked_up_again() {
    let cluster = cluster();
    let topic = cluster.new_topic("hanging_once", 1);
    cluster.produce(&topic, 0, &[(b"key", b"value")]);
    let module = configs::module(&topic, &[HANGING.to_owned()]).text();
    let config = configs::ktransfer(cluster).set("module_enabled", ["m"]);
    let admin = config.address("admin_port").expect("it is set");
    let aliases = folder("aliases").join("pipe");
    let files = [("conf/ktransfer.yaml", &*config.text()), ("conf/modules/m.yaml", &module)];
    let mut daemon = start_with_pipe(Program::Ktransfer, &files, &admin, &aliases);
    wait_until_hanging(&daemon, "names-look-up");
    let empty = aliases.with_extension("empty");
    std::fs::write(&empty, "").expect("a file");
    std::fs::rename(&empty, &aliases).expect("the file replaces the pipe");
    daemon.wait_for_log(&format!("cannot resolve {HANGING:?}: failed to lookup"), DEADLINE);
    wait_until(DEADLINE, "the message has an attempt", || {
        let status = http::get(&format!("http://{admin}/v1/modules/m")).expect("admin_port answers").json();
        status["messages"]["failed_attempts"].as_u64().is_some_and(|attempts| attempts > 0)
    });
    daemon.stop(STOP_DEADLINE);
}

/// Four of five backends, whose look-ups hang; `localhost` needs no name server.
#[test]
fn ktransfer_pushes_to_a_backend_beside_others_whose_names_hang() {
    let cluster = cluster();
    let topic = cluster.new_topic("hanging_beside", 1);
    cluster.produce(&topic, 0, &[(b"key", b"value")]);
    let fleet = Fleet::start(1, |_| Reply::ok());
    let local = fleet.addresses()[0].replace("127.0.0.1", "localhost");
    let mut servers: Vec<String> = (1..5).map(|number| format!("hanging-{number}:9")).collect();
    servers.push(local);
    // One attempt at each backend, the last one at the good one.
    let module = configs::module(&topic, &servers).set("worker_num", 1).set("max_retry_times", 4);
    let (mut daemon, admin) = start_ktransfer(configs::ktransfer(cluster), &module);
    daemon.wait_until_ok(&admin, "/readyz", DEADLINE);
    wait_until(DEADLINE, "the message is pushed", || fleet.n_delivered() == 1);
    daemon.stop(STOP_DEADLINE);
}

/// Registers a broker at [`HANGING`] and a topic that it leads, in a chroot of its own; returns chroot and topic.
fn hanging_broker(cluster: &Cluster) -> (String, String) {
    let (chroot, topic, zk) = (format!("/{}", unique("hanging")), "hanging_topic", cluster.zk());
    let (host, port) = HANGING.split_once(':').expect("host and port");
    let endpoint = format!("PLAINTEXT://{HANGING}");
    let broker = serde_json::json!({"version": 4, "host": host, "port": port.parse::<u16>().unwrap(),
        "endpoints": [endpoint], "listener_security_protocol_map": {"PLAINTEXT": "PLAINTEXT"}, "jmx_port": -1});
    zk.create(&format!("{chroot}/brokers/ids/1"), &broker.to_string());
    let partitions = serde_json::json!({"version": 1, "partitions": {"0": [1]}});
    zk.create(&format!("{chroot}/brokers/topics/{topic}"), &partitions.to_string());
    let state = serde_json::json!({"controller_epoch": 1, "leader": 1, "version": 1, "leader_epoch": 0, "isr": [1]});
    zk.create(&format!("{chroot}/brokers/topics/{topic}/partitions/0/state"), &state.to_string());
    zk.create(&format!("{chroot}/consumers/m/offsets/{topic}/0"), "5");
    (chroot, topic.to_owned())
}

#[test]
fn ktransfer_and_kmonitor_stop_in_time_while_names_of_brokers_hang() {
    let cluster = cluster();
    let (chroot, topic) = hanging_broker(cluster);
    let config = configs::ktransfer(cluster).set("zk_chroot", &chroot);
    let (mut daemon, _) = start_ktransfer(config, &configs::module(&topic, &["127.0.0.1:9".to_owned()]));
    wait_until_hanging(&daemon, "kafka-resolver");
    daemon.stop(STOP_DEADLINE);

    let config = configs::kmonitor_for(&chroot, &[("c", &cluster.zookeeper)]).set("base.poll_interval_ms", 1000);
    let address = config.address("http_server.port").expect("it is set");
    let mut daemon = start(Program::Kmonitor, &[("kmonitor.yaml", &config.text())], &address);
    wait_until_hanging(&daemon, "kafka-resolver");
    assert_eq!(http::get(&format!("http://{address}/delay")).unwrap().status, 200);
    daemon.stop(STOP_DEADLINE);
}

#[test]
fn kmonitor_stops_in_time_while_the_name_of_zookeeper_hangs() {
    let config = configs::kmonitor_for("/hanging", &[("c", HANGING)]);
    let address = config.address("http_server.port").expect("it is set");
    let mut daemon = start(Program::Kmonitor, &[("kmonitor.yaml", &config.text())], &address);
    wait_until_hanging(&daemon, "zk-search");
    assert_eq!(http::get(&format!("http://{address}/delay")).unwrap().status, 200);
    daemon.stop(STOP_DEADLINE);
}
