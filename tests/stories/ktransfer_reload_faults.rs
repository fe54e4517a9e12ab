//! ktransfer: reloads of wrong files, and reloads while modules stop.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::harness::reloading::{ReloadedFiles, reload};
use crate::harness::{
    ConfigFile, Daemon, Fleet, Ktransfer, Program, Reply, STOP_DEADLINE, cluster, configs, http, poll, unique,
    wait_until,
};

const DEADLINE: Duration = Duration::from_secs(60);

/// Returns the problems that `-t` prints for the files of a running daemon.
fn problems_of_a_test(ktransfer: &Ktransfer) -> Vec<String> {
    let folder = ktransfer.daemon.folder();
    let mut main = fs::read_to_string(folder.join("conf/ktransfer.yaml")).unwrap();
    main = main.replace("./conf/modules", folder.join("conf/modules").to_str().unwrap());
    let copy = folder.join("tested.yaml");
    fs::write(&copy, main).unwrap();
    let arguments = ["-t", "-f", copy.to_str().unwrap()];
    let mut daemon = Daemon::start_with_arguments(Program::Ktransfer, &arguments);
    daemon.wait(DEADLINE);
    let is_problem = |line: &&str| line.contains(".yaml: ") && !line.contains("the configuration is valid");
    daemon.output().lines().filter(is_problem).map(str::to_owned).collect()
}

/// What a wrong file does, and what the log says about it.
struct Row {
    change: fn(&mut ReloadedFiles, &str),
    /// A part of the line, behind the name of the file.
    line: &'static str,
}

#[test]
fn one_wrong_file_changes_nothing_and_is_named() {
    let cluster = cluster();
    let (topic, fleet) = (cluster.new_topic("reload_bad", 1), Fleet::start(1, |_| Reply::ok()));
    let [kept, other] = ["rbkept", "rbother"].map(unique);
    let file = || configs::module(&topic, &fleet.addresses());
    // One file for all reloads: each has the same admin_port.
    let main = configs::ktransfer(cluster);
    let good = || ReloadedFiles::new(main.clone(), &[(&*kept, file()), (&*other, file())]);
    let mut ktransfer = good().start();
    let rows = [
        Row {
            change: |files, name| files.change(name, |file| file.set_unknown("tpoic", 1)),
            line: "tpoic: unknown key",
        },
        Row {
            change: |files, name| {
                files.change(name, |file| file.set("outcomes", serde_json::json!({"200-299": "ok", "500": "retry"})));
            },
            line: "outcomes",
        },
        Row {
            change: |files, name| files.change(name, |file| file.set("protocol.tls.ca_file", "/no/such/file.pem")),
            line: "protocol.tls.ca_file: is \"/no/such/file.pem\", which cannot be read",
        },
        Row {
            change: |files, name| files.change(name, |file| file.set("backend_servers", ["a:80", "a:80"])),
            line: "backend_servers",
        },
        Row {
            change: |files, _| files.main = files.main.clone().set("log_level", 8),
            line: "log_level changed, which needs a restart",
        },
    ];
    let n_lines = |ktransfer: &Ktransfer, line: &str| {
        ktransfer.daemon.log().lines().filter(|found| found.contains(" FATAL [") && found.contains(line)).count()
    };
    for Row { change, line } in rows {
        let mut files = good();
        // A valid change, too: it must not be made.
        files.remove(&other);
        files.set(&unique("rbnew"), file());
        change(&mut files, &kept);
        files.write(&ktransfer);
        let before = n_lines(&ktransfer, line);
        reload(&mut ktransfer, "refused");
        wait_until(DEADLINE, line, || n_lines(&ktransfer, line) > before);
        let log = ktransfer.daemon.log();
        if line.contains("needs a restart") {
            continue;
        }
        let found = problems_of_a_test(&ktransfer);
        assert!(!found.is_empty(), "-t finds what the reload has found: {line}");
        for problem in &found {
            let (path, text) = problem.split_once(".yaml: ").unwrap();
            assert!(path.ends_with(&kept), "{problem}");
            let is_same = |logged: &str| logged.contains(&format!("{kept}.yaml: ")) && logged.contains(text);
            assert!(log.lines().any(is_same), "{problem} in {log}");
        }
    }
    // Files that cannot be read: not YAML, missing, a pipe.
    let make_pipe = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    type Make<'a> = &'a dyn Fn(&Path);
    let unreadable: [(Make<'_>, &str); 3] = [
        (&|path| fs::write(path, "a: [").unwrap(), "is not valid YAML"),
        (&|_| (), "cannot be read: No such file"),
        (&make_pipe, "is a pipe, but must be a regular file"),
    ];
    for (make, line) in unreadable {
        good().write(&ktransfer);
        let path = ktransfer.daemon.folder().join(format!("conf/modules/{kept}.yaml"));
        fs::remove_file(&path).unwrap();
        make(&path);
        reload(&mut ktransfer, "refused");
        wait_until(DEADLINE, line, || n_lines(&ktransfer, &format!("{kept}.yaml: {line}")) > 0);
    }
    let metrics = ktransfer.metrics();
    assert_eq!(metrics.value("ktransfer_configuration_stale"), Some(1));
    let modules = http::get(&format!("http://{}/v1/modules", ktransfer.admin)).unwrap().json();
    let names: Vec<&str> =
        modules["modules"].as_array().unwrap().iter().map(|module| module["name"].as_str().unwrap()).collect();
    assert_eq!(names, [&*kept, &*other]);
    cluster.produce(&topic, 0, &[(&b"k"[..], &b"v"[..]); 10]);
    wait_until(DEADLINE, "both modules push", || fleet.n_arrivals() == 20);
    let mut repaired = good();
    repaired.remove(&other);
    repaired.apply(&mut ktransfer);
    assert_eq!(ktransfer.metrics().value("ktransfer_configuration_stale"), Some(0));
    wait_until(DEADLINE, "one module is left", || !ktransfer.metrics().text().contains(&other));
    ktransfer.wait_until_ready();
    ktransfer.daemon.stop(STOP_DEADLINE);
}

/// A module with a backend that never answers the message with the key `hangs`, and answers the others.
struct Hanging {
    topic: String,
    module: String,
    fleet: Fleet,
}

impl Hanging {
    fn new(name: &str) -> Hanging {
        let topic = cluster().new_topic(name, 1);
        let script = |arrival: &crate::harness::fleet::Arrival| match arrival.key().as_str() {
            "hangs" => Reply::hang(),
            _ => Reply::ok(),
        };
        Hanging { topic, module: unique(name), fleet: Fleet::start(1, script) }
    }

    fn file(&self) -> ConfigFile {
        configs::module(&self.topic, &self.fleet.addresses()).set("protocol.read_timeout_ms", 0)
    }

    /// Appends two messages, the second of which hangs, and one more of another key; waits until they are pushed.
    fn produce(&self) {
        let keys = ["first", "hangs", "other"];
        cluster().produce(&self.topic, 0, &keys.map(|key| (key.as_bytes(), &b"text"[..])));
        for key in keys {
            self.fleet.wait_for(key, DEADLINE, |arrival| arrival.key() == key);
        }
    }
}

#[test]
fn sigterm_while_a_removed_module_drains_stops_everything_in_time() {
    let cluster = cluster();
    let (hanging, topic) = (Hanging::new("reload_term"), cluster.new_topic("reload_term_other", 1));
    let (fleet, other) = (Fleet::start(1, |_| Reply::ok()), unique("rtother"));
    let module = hanging.module.as_str();
    let modules = [(module, hanging.file()), (&*other, configs::module(&topic, &fleet.addresses()))];
    let mut files = ReloadedFiles::new(configs::ktransfer(cluster).set("shutdown_grace_ms", 20_000), &modules);
    let mut ktransfer = files.start();
    hanging.produce();
    files.remove(module);
    files.apply(&mut ktransfer);
    ktransfer.daemon.wait_for_log(&format!("module [{module}] is removed by a reload"), DEADLINE);
    cluster.produce(&topic, 0, &[(&b"k"[..], &b"v"[..]); 10]);
    fleet.wait_until_delivered(10, DEADLINE);
    assert_eq!(hanging.fleet.count(|arrival| arrival.key() == "hangs" && arrival.ended.is_some()), 0, "it drains");
    // Another reload during the drain and the stop.
    ktransfer.daemon.signal(libc::SIGHUP);
    ktransfer.daemon.stop(STOP_DEADLINE);
    assert_eq!(cluster.stored_offset(&other, &topic, 0), Some(10));
    assert_eq!(cluster.stored_offset(module, &hanging.topic, 0), Some(1), "what hangs is not done");
    assert!(cluster.owners(module, &hanging.topic).is_empty());
    let log = ktransfer.daemon.log();
    assert!(!log.contains("incomplete stop"), "{log}");
}

#[test]
fn a_module_that_is_removed_and_added_again_starts_after_its_release() {
    let cluster = cluster();
    let hanging = Hanging::new("reload_again");
    let (topic, fleet, other) =
        (cluster.new_topic("reload_again_other", 1), Fleet::start(1, |_| Reply::ok()), unique("raother"));
    let module = hanging.module.as_str();
    let modules = [(module, hanging.file()), (&*other, configs::module(&topic, &fleet.addresses()))];
    let mut files = ReloadedFiles::new(configs::ktransfer(cluster), &modules);
    let mut ktransfer = files.start();
    hanging.produce();
    // While its push hangs the module is removed, added, removed, and added with another setting.
    for window_size in [100, 150] {
        files.remove(module);
        files.apply(&mut ktransfer);
        files.set(module, hanging.file().set("window_size", window_size));
        files.apply(&mut ktransfer);
    }
    let again = |n: usize| {
        let pushes: Vec<_> = hanging.fleet.arrivals().into_iter().filter(|arrival| arrival.key() == "hangs").collect();
        (pushes.len() >= n).then_some(pushes)
    };
    let pushes = poll(DEADLINE, || again(2)).expect("the next run pushes the message again");
    let ended = pushes[0].ended.expect("the first push was cut");
    assert!(ended <= pushes[1].began && pushes[0].claim() < pushes[1].claim(), "{pushes:?}");
    let sizes = || {
        let module = http::get(&format!("http://{}/v1/modules/{module}", ktransfer.admin)).unwrap().json();
        module["window"]["size"].as_u64()
    };
    wait_until(DEADLINE, "the latest configuration is in force", || sizes() == Some(150));
    // What was done ahead of it is not pushed again.
    assert_eq!(hanging.fleet.count(|arrival| arrival.key() == "other"), 1);
    let starts = ktransfer.daemon.log().matches(&format!("module [{module}] start")).count();
    assert_eq!(starts, 2, "one more run, however many reloads");
    cluster.produce(&topic, 0, &[(&b"k"[..], &b"v"[..]); 10]);
    fleet.wait_until_delivered(10, DEADLINE);
    ktransfer.daemon.stop(STOP_DEADLINE);
}

#[test]
fn a_waiting_message_goes_to_the_new_backend_at_once_and_keeps_its_place() {
    let cluster = cluster();
    let (topic, module) = (cluster.new_topic("reload_retry", 1), unique("reload_retry"));
    let fleet = Fleet::start(2, |arrival| Reply::status(if arrival.server == 0 { 500 } else { 200 }));
    let file = |backend: usize| {
        let hour_ms = 3_600_000;
        configs::module(&topic, &fleet.addresses()[backend..=backend])
            .set("fail_retry_interval_ms", hour_ms)
            .set("max_retry_interval_ms", hour_ms)
            .set("protocol.headers", [serde_json::json!({"X-Backend": backend.to_string()})])
    };
    let mut files = ReloadedFiles::new(configs::ktransfer(cluster), &[(&module, file(0))]);
    let mut ktransfer = files.start();
    cluster.produce(&topic, 0, &[(&b"k"[..], &b"v"[..]); 20]);
    fleet.wait_for("the first push fails", DEADLINE, |arrival| arrival.ended.is_some());
    files.set(&module, file(1));
    files.apply(&mut ktransfer);
    fleet.wait_until_delivered(20, DEADLINE);
    let arrivals = fleet.arrivals();
    let offsets: Vec<i64> = arrivals.iter().map(|arrival| arrival.position().1).collect();
    let expected: Vec<i64> = std::iter::once(0).chain(0..20).collect();
    assert_eq!(offsets, expected, "the refused one, then all in order");
    for arrival in &arrivals {
        let header = arrival.request.header("X-Backend").unwrap_or_default();
        assert_eq!(header, arrival.server.to_string(), "a request has the headers of its backend's version");
    }
    ktransfer.daemon.stop(STOP_DEADLINE);
}
