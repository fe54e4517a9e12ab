//! Tests of the harness: its servers work, its backend records correctly, and no process and no folder is left.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::harness::backend::Journal;
use crate::harness::http::Client;
use crate::harness::process::{self, rerun_test};
use crate::harness::{Backend, BackendAnswer, ConfigFile, Request, ZooKeeper, cluster, http, wait_until};

/// The environment variable that marks the copy of this test binary that the story kills.
const TO_BE_KILLED: &str = "KAFKA_HTTP_WRAPPER_STORY_TO_BE_KILLED";

#[test]
fn a_produced_message_is_read_back() {
    let cluster = cluster();
    let topic = cluster.new_topic("harness", 3);
    cluster.produce(&topic, 2, &[(b"a key", b"a value"), (b"", b"no key")]);
    assert_eq!(cluster.log_ends(&topic).into_values().collect::<Vec<_>>(), [0, 0, 2]);
    let messages = cluster.messages(&topic);
    let texts: Vec<_> = messages
        .iter()
        .map(|m| (m.partition, m.offset, String::from_utf8_lossy(&m.key), String::from_utf8_lossy(&m.value)))
        .collect();
    assert_eq!(texts, [(2, 0, "a key".into(), "a value".into()), (2, 1, "".into(), "no key".into())]);
    assert!(cluster.children("/brokers/topics").contains(&topic));
    assert_eq!(cluster.read("/brokers/topics/no_such_topic"), None);
    assert!(cluster.read("/controller").is_some_and(|text| text.contains("brokerid")));
}

#[test]
fn zookeeper_keeps_its_data_after_a_kill() {
    let server = ZooKeeper::start();
    {
        let client = server.client();
        assert!(client.create("/a/b", "first"));
        assert!(!client.create("/a/b", "again"));
        client.write("/a/b", "second");
        assert!(client.create_ephemeral("/a/e", ""));
        assert_eq!(client.children("/a"), ["b", "e"]);
        assert_ne!(client.get("/a/e").expect("the node was just created").ephemeral_owner, 0);
    }
    server.kill9();
    server.restart();
    let client = server.client();
    assert_eq!(client.read("/a/b").as_deref(), Some("second"));
    assert_eq!(client.get("/a/b").expect("it exists").version, 1);
    assert_eq!(client.children("/a"), ["b"], "the ephemeral node is deleted with its session");
    assert!(client.delete("/a/b"));
    assert!(!client.delete("/a/b"));
}

#[test]
fn the_backend_records_order_and_concurrency_and_answers_by_its_script() {
    let journal = Journal::default();
    let script = |request: &Request| match request.path() {
        "/slow" => BackendAnswer::ok().after(Duration::from_millis(200)),
        "/no" => BackendAnswer::status(503).header("Retry-After", "1"),
        "/gone" => BackendAnswer::close(),
        _ => BackendAnswer::ok(),
    };
    let backends = [Backend::start_sharing(&journal, script), Backend::start_sharing(&journal, script)];
    let mut client = Client::connect(&backends[0].address()).expect("the backend listens");
    assert_eq!(client.post("/push?key=a%2Fb&x=1", b"body").expect("an answer").status, 200);
    let refused = client.post("/no?key=a", b"x").expect("an answer");
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    client.post("/gone?key=a", b"x").expect_err("the connection is closed");
    assert_eq!(journal.max_per_key(), 1);
    std::thread::scope(|scope| {
        for backend in &backends {
            scope.spawn(|| http::post(&format!("http://{}/slow?key=same", backend.address()), b"x"));
        }
    });
    assert_eq!(journal.max_per_key(), 2, "concurrent requests of one key are counted across backends");
    let records = journal.records();
    assert_eq!(records[0].request.key(), "a/b");
    assert_eq!(records[0].request.text(), "body");
    let statuses: Vec<_> = records.iter().map(|record| record.status).collect();
    assert_eq!(statuses, [Some(200), Some(503), None, Some(200), Some(200)]);

    backends[0].stop_listening();
    http::get(&format!("http://{}/", backends[0].address())).expect_err("the port is closed");
    backends[0].listen_again();
    assert_eq!(http::get(&format!("http://{}/", backends[0].address())).expect("it listens again").status, 200);
}

#[test]
fn the_backend_serves_two_hundred_connections() {
    let backend = Backend::start();
    let (n_connections, n_each) = (200, 50);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..n_connections {
            scope.spawn(|| {
                let mut client = Client::connect(&backend.address()).expect("the backend listens");
                for _ in 0..n_each {
                    assert_eq!(client.post("/push?key=k", &[7; 200]).expect("an answer").status, 200);
                }
            });
        }
    });
    let per_second = (n_connections * n_each) as f64 / started.elapsed().as_secs_f64();
    eprintln!("the backend served {per_second:.0} requests/s over {n_connections} connections");
    assert_eq!(backend.n_requests(), n_connections * n_each);
}

#[test]
fn no_process_and_no_folder_is_left_when_the_test_process_is_killed() {
    if std::env::var_os(TO_BE_KILLED).is_some() {
        let server = ZooKeeper::start();
        eprintln!("started {} {}", server.pid(), process::root().display());
        // The copy waits here until it is killed.
        loop {
            std::thread::park();
        }
    }
    let mut copy = rerun_test(module_path!(), "no_process_and_no_folder_is_left_when_the_test_process_is_killed")
        .env(TO_BE_KILLED, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the test binary starts");
    let stderr = BufReader::new(copy.stderr.take().expect("stderr is piped"));
    let line = stderr.lines().map_while(Result::ok).find(|line| line.starts_with("started "));
    let line = line.expect("the copy prints what it started");
    let mut words = line.split(' ').skip(1);
    let (pid, folder) = (words.next().expect("a pid"), words.next().expect("a folder"));
    let process = format!("/proc/{pid}");
    assert!(Path::new(&process).exists() && Path::new(folder).exists());

    copy.kill().expect("it still runs");
    copy.wait().expect("it ends");
    wait_until(Duration::from_secs(10), "ZooKeeper is killed and the folder is removed", || {
        !Path::new(&process).exists() && !Path::new(folder).exists()
    });
}

#[test]
fn a_config_file_has_only_the_keys_of_its_reference() {
    let file = ConfigFile::of("kproxy").set("port", 1).set("tls.key_file", "k.pem").remove("producer_num");
    let parsed: serde_yaml::Value = serde_yaml::from_str(&file.text()).expect("it is YAML");
    assert_eq!((&parsed["port"], &parsed["tls"]["key_file"]), (&1.into(), &"k.pem".into()));
    assert!(parsed.get("producer_num").is_none());
    assert_eq!(file.address("port").as_deref(), Some("127.0.0.1:1"));
    for mistake in [
        |file: ConfigFile| file.set("prot", 1),
        |file: ConfigFile| file.set("tls.keyfile", "k.pem"),
        |file: ConfigFile| file.remove("admin_port"),
        |file: ConfigFile| file.set_unknown("port", 1),
    ] {
        let file = file.clone();
        std::panic::catch_unwind(move || mistake(file)).expect_err("a mistake of a story panics");
    }
}
