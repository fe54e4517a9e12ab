//! kmonitor and a real Zabbix server: `make zabbix`.
//!
//! Starts Kafka, ZooKeeper, kmonitor, PostgreSQL, a Zabbix server and its frontend, all on loopback. Imports the
//! templates of `conf/zabbix` through the API, runs the line that the README has for a crontab, and reads values,
//! triggers and problems back. It takes about two minutes, and needs packages that `make test` does not: see
//! `.ci/tools`.
//!
//! Debian has Zabbix 6.0. The template for 7.0 is imported in the form of 6.0; what it requests and makes of the answer
//! is the same.

#![allow(clippy::print_stdout, reason = "it prints what happens")]

#[path = "../../tests/stories/harness/mod.rs"]
mod harness;
mod servers;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use harness::{Kmonitor, cluster, configs, wait_until};
use servers::Zabbix;

const DEADLINE: Duration = Duration::from_secs(120);
/// Modules with messages that nobody pushes; their names need care in the key of an item.
const MODULES: [&str; 5] = ["plain", "a,b \"x\"]", "a b", "[first", "ümläut 日本"];
const N_MESSAGES: usize = 7;
const STORED: i64 = 3;
const N_ITEMS_EACH: usize = 5;
const TRAPPER_HOST: &str = "trapper host";
const HTTP_HOST: &str = "http host";

fn main() {
    step("Kafka, ZooKeeper and kmonitor ...");
    let cluster = cluster();
    let topic = cluster.new_topic("zabbix", 1);
    cluster.produce(&topic, 0, &[(&b"k"[..], &b"v"[..]); N_MESSAGES]);
    for module in MODULES {
        // As ktransfer leaves them: a group that registers its members and owners, and has none.
        let group = format!("{}/consumers/{module}", cluster.chroot);
        for (path, data) in [
            (format!("{group}/ids"), String::new()),
            (format!("{group}/owners/{topic}"), String::new()),
            (format!("{group}/offsets/{topic}/0"), STORED.to_string()),
        ] {
            assert!(cluster.zk().create(&path, &data), "{path}");
        }
    }
    let kmonitor = Kmonitor::start(&configs::kmonitor(cluster));
    wait_until(DEADLINE, "kmonitor reports that nobody pushes the modules", || {
        kmonitor
            .get("/v1/zabbix")
            .text()
            .lines()
            .filter(|line| line.contains("verdict") && line.ends_with(" 5"))
            .count()
            == MODULES.len()
    });

    step("PostgreSQL, Zabbix server and frontend ...");
    let zabbix = Zabbix::start();
    println!("  Zabbix {}", zabbix.version());
    let port = kmonitor.address.rsplit(':').next().expect("host:port");
    let trapper = template("kmonitor-trapper-6.0.yaml", &zabbix);
    let http = template("kmonitor-http-7.0.yaml", &zabbix);
    let trapper = zabbix.create_host(TRAPPER_HOST, &trapper, port);
    let http = zabbix.create_host(HTTP_HOST, &http, port);

    step("Template by trapper: discovery, then the line of the README ...");
    zabbix.execute_now(&trapper);
    wait_until(DEADLINE, "the modules are discovered", || {
        zabbix.items(&trapper).len() == 3 + N_ITEMS_EACH * MODULES.len()
    });
    let line = documented_line(&kmonitor.address, &zabbix.server);
    println!("  {line}");
    // The server takes values of a new item when it has read its configuration again.
    wait_until(DEADLINE, "the values are accepted", || {
        let status = Command::new("sh").args(["-c", &line]).status().expect("sh starts");
        status.success()
            && zabbix.items(&trapper).get("kmonitor.alive").is_some_and(|value| value == "1")
            && has_values(&zabbix.items(&trapper))
    });
    check(&zabbix, &trapper);

    step("Template by HTTP ...");
    wait_until(DEADLINE, "the values are read", || {
        zabbix.execute_now(&http);
        has_values(&zabbix.items(&http))
    });
    check(&zabbix, &http);
    println!("\nBoth templates work: values, triggers and problems are as kmonitor reports them.");
}

fn step(text: &str) {
    println!("\n{text}");
}

/// Imports a template; returns its name.
fn template(file: &str, zabbix: &Zabbix) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/zabbix").join(file);
    let text = fs::read_to_string(path).expect("the template");
    zabbix.import(&servers::as_6_0(&text));
    let document: Value = serde_yaml::from_str(&text).expect("the template is YAML");
    let name = document["zabbix_export"]["templates"][0]["template"].as_str().expect("a name").to_owned();
    println!("  imported {file}: {name:?}");
    name
}

/// Returns the command of the first crontab line in the README, with the addresses of this run.
fn documented_line(kmonitor: &str, server: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/zabbix/README.md");
    let text = fs::read_to_string(path).expect("the README");
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("* * * * * ")).expect("a crontab line");
    let (address, port) = server.rsplit_once(':').expect("host:port");
    line.replace("127.0.0.1:55325", kmonitor)
        .replace("-z ZABBIX_SERVER", &format!("-z {address} -p {port}"))
        .replace("-s HOST", &format!("-s '{TRAPPER_HOST}'"))
}

fn has_values(items: &BTreeMap<String, String>) -> bool {
    let delays = items.iter().filter(|(key, _)| key.starts_with("kmonitor.delay["));
    delays.filter(|(_, value)| **value == (N_MESSAGES as i64 - STORED).to_string()).count() == MODULES.len()
}

/// Checks that each module has its values, and that its trigger fired with the reason as the name of the problem.
fn check(zabbix: &Zabbix, host: &str) {
    wait_until(DEADLINE, "a problem for each module", || zabbix.problems(host).len() == MODULES.len());
    assert_eq!(zabbix.discovery_errors(host), "", "the discovery makes all items and triggers");
    let items = zabbix.items(host);
    let of = |name: &str| -> Vec<&String> {
        items.iter().filter(|(key, _)| key.starts_with(&format!("{name}["))).map(|(_, value)| value).collect()
    };
    assert_eq!(of("kmonitor.verdict"), [&"5".to_owned(); 5], "STOPPED");
    assert_eq!(of("kmonitor.bad"), [&"1".to_owned(); 5]);
    assert!(of("kmonitor.reason").iter().all(|reason| reason.contains("4 messages wait")), "{items:#?}");
    for (key, value) in &items {
        println!("  {key} = {value}");
    }
    for problem in zabbix.problems(host) {
        assert!(problem.contains("4 messages wait"), "the reason is in the name: {problem}");
        println!("  problem: {problem}");
    }
    let severities = zabbix.call("problem.get", &json!({"hostids": host, "output": ["severity"]}));
    let high = severities.as_array().expect("a list").iter().filter(|problem| problem["severity"] == "4").count();
    assert_eq!(high, MODULES.len(), "High");
}
