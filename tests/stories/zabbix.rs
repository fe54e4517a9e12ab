//! kmonitor and Zabbix: what the real `zabbix_sender` makes of `/v1/zabbix`, and whether the templates find their
//! items.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::harness::process::folder;
use crate::harness::zabbix::{Received, ZabbixServer, expanded_key};
use crate::harness::{ConfigFile, Kmonitor, cluster, configs, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);
const HOST: &str = "monitored host";
const TEMPLATES: [&str; 2] = ["kmonitor-trapper-6.0.yaml", "kmonitor-http-7.0.yaml"];

/// Suffixes of names of modules that need care in the key of an item or in a line.
const ODD_NAMES: [&str; 9] =
    ["plain", "a,b", "a]b", "a\"b", "a b", "a\\b", "\"quoted\"", "ümläut 日本", "[x, \"y\"] z"];
/// Suffixes of names that no key can carry.
const REFUSED_NAMES: [&str; 2] = ["a,b\\", "ends with \\"];

fn template(name: &str) -> Value {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/zabbix").join(name)).unwrap();
    let document: Value = serde_yaml::from_str(&text).unwrap();
    document["zabbix_export"]["templates"][0].clone()
}

fn list<'a>(of: &'a Value, name: &str) -> &'a [Value] {
    of[name].as_array().map_or(&[], Vec::as_slice)
}

/// Fetches a page into a file as the documented crontab line does.
fn fetch(kmonitor: &Kmonitor, target: &str) -> std::path::PathBuf {
    let file = folder("zabbix").join("values");
    let status = Command::new("curl")
        .args(["-fsS", &format!("http://{}{target}", kmonitor.address), "-o"])
        .arg(&file)
        .status()
        .expect("curl is installed");
    assert!(status.success(), "{status}");
    file
}

/// A kmonitor of a cluster in which modules with odd names have stored offsets.
fn start() -> (Kmonitor, String) {
    let cluster = cluster();
    let (topic, prefix) = (cluster.new_topic("zabbix", 1), unique("z"));
    cluster.produce(&topic, 0, &[(&b"k"[..], &b"v"[..]); 7]);
    let zk = cluster.zk();
    for name in ODD_NAMES.iter().chain(&REFUSED_NAMES) {
        let module = odd_name(&prefix, name);
        zk.create(&format!("{}/consumers/{module}/offsets/{topic}/0", cluster.chroot), "3");
    }
    let config: ConfigFile = configs::kmonitor(cluster).set("base.poll_interval_ms", 200);
    let mut kmonitor = Kmonitor::start(&config);
    kmonitor.wait_until_ready();
    (kmonitor, prefix)
}

/// A name that begins as `name` does and is not used by another story.
fn odd_name(prefix: &str, name: &str) -> String {
    let first = name.chars().next().unwrap();
    if first.is_ascii_punctuation() { format!("{first}{prefix}{name}") } else { format!("{prefix} {name}") }
}

#[test]
fn zabbix_sender_sends_each_value_with_the_key_that_zabbix_makes_of_the_discovery() {
    let (kmonitor, prefix) = start();
    let modules = || -> BTreeSet<String> {
        let found = kmonitor.get("/v1/zabbix/discovery").json();
        let names = found.as_array().unwrap().iter().map(|found| found["{#MODULE}"].as_str().unwrap().to_owned());
        names.filter(|name| name.contains(&prefix)).collect()
    };
    let expected: BTreeSet<String> = ODD_NAMES.iter().map(|name| odd_name(&prefix, name)).collect();
    wait_until(DEADLINE, "all modules are discovered", || modules() == expected);
    let values = kmonitor.get("/v1/zabbix?timestamps=1");
    assert_eq!(values.status, 200);
    wait_until(DEADLINE, "all delays are known", || {
        kmonitor.get("/v1/zabbix").text().lines().filter(|line| line.contains(&prefix) && line.ends_with(" 4")).count()
            >= ODD_NAMES.len()
    });

    let server = ZabbixServer::start();
    let received = server.send_file(&fetch(&kmonitor, "/v1/zabbix?timestamps=1"), HOST);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let by_key: BTreeMap<&str, &Received> = received.iter().map(|value| (&*value.key, value)).collect();
    assert_eq!(by_key.len(), received.len(), "no key is sent twice");
    for value in &received {
        assert_eq!(value.host, HOST);
        let clock = value.clock.expect("a time");
        assert!((now - 300..=now).contains(&clock), "{value:?}, now is {now}");
    }
    assert_eq!(by_key["kmonitor.alive"].value, "1");
    assert!(by_key["kmonitor.left_out"].value.parse::<u32>().unwrap() >= 2, "two names cannot be carried");
    assert!(!received.iter().any(|value| value.key.contains("\\,")), "{received:?}");

    let found = kmonitor.get("/v1/zabbix/discovery").json();
    for template in TEMPLATES.map(template) {
        let prototypes = list(&template["discovery_rules"][0], "item_prototypes");
        assert_eq!(prototypes.len(), 5);
        for macros in found.as_array().unwrap() {
            let macros: BTreeMap<String, String> = serde_json::from_value(macros.clone()).unwrap();
            if !macros["{#MODULE}"].contains(&prefix) {
                continue;
            }
            for prototype in prototypes {
                let prototype = prototype["key"].as_str().unwrap();
                let key = expanded_key(prototype, &macros).unwrap_or_else(|| panic!("{prototype} {macros:?}"));
                let name = prototype.split('[').next().unwrap();
                match (name, by_key.get(&*key).map(|value| &*value.value)) {
                    ("kmonitor.delay", value) => assert_eq!(value, Some("4"), "{key}"),
                    // Absent while unknown.
                    ("kmonitor.seconds", _) => {}
                    ("kmonitor.verdict", Some(value)) => assert!(value.parse::<u8>().unwrap() <= 5, "{key} {value}"),
                    ("kmonitor.reason", Some(value)) => assert!(!value.is_empty(), "{key}"),
                    ("kmonitor.bad", Some(value)) => assert!(value.parse::<u32>().is_ok(), "{key} {value}"),
                    (_, value) => panic!("{key}: {value:?}"),
                }
            }
        }
    }
    // The other items of the trapper template.
    for item in list(&template(TEMPLATES[0]), "items") {
        let key = item["key"].as_str().unwrap();
        assert!(by_key.contains_key(key), "{key}");
    }
}

#[test]
fn the_pages_for_zabbix_select_modules_and_partitions() {
    let (kmonitor, prefix) = start();
    let plain = odd_name(&prefix, "plain");
    let module = format!("module={}", plain.replace(' ', "%20"));
    wait_until(DEADLINE, "the delay is known", || {
        kmonitor.get(&format!("/v1/zabbix?level=partition&{module}")).text().contains(",0]\" 4\n")
    });
    let lines = kmonitor.get(&format!("/v1/zabbix?{module}")).text();
    assert!(lines.lines().count() >= 4 && lines.lines().all(|line| line.contains(&plain)), "{lines}");
    let found = kmonitor.get(&format!("/v1/zabbix/discovery?level=partition&{module}")).json();
    assert_eq!((found.as_array().unwrap().len(), &found[0]["{#PARTITION}"]), (1, &Value::from("0")), "{found}");
    for (target, status) in [
        ("/v1/zabbix?level=topic", 400),
        ("/v1/zabbix?timestamps=yes", 400),
        ("/v1/zabbix?modul=x", 400),
        ("/v1/zabbix/discovery?timestamps=1", 400),
        ("/v1/zabbix?cluster=nobody", 404),
    ] {
        assert_eq!(kmonitor.get(target).status, status, "{target}");
    }
}

#[test]
fn the_templates_are_consistent() {
    for (file, template) in TEMPLATES.map(|file| (file, template(file))) {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/zabbix").join(file)).unwrap();
        let mut uuids: Vec<&str> =
            text.lines().filter_map(|line| line.trim_start().trim_start_matches("- ").strip_prefix("uuid: ")).collect();
        let count = uuids.len();
        uuids.sort_unstable();
        uuids.dedup();
        assert_eq!(uuids.len(), count, "{file}: each uuid is used once");
        let is_uuid4 = |uuid: &&str| uuid.len() == 32 && &uuid[12..13] == "4" && "89ab".contains(&uuid[16..17]);
        assert!(uuids.iter().all(is_uuid4), "{file}");
        // Each key in an expression is an item or a prototype of the template.
        let name = template["template"].as_str().unwrap();
        let rule = &template["discovery_rules"][0];
        let items = list(&template, "items");
        let keys: BTreeSet<&str> =
            items.iter().chain(list(rule, "item_prototypes")).map(|item| item["key"].as_str().unwrap()).collect();
        let triggers = items.iter().flat_map(|item| list(item, "triggers")).chain(list(rule, "trigger_prototypes"));
        let mut checked = 0;
        for trigger in triggers {
            let recovery = trigger["recovery_expression"].as_str();
            assert_eq!(recovery.is_some(), trigger["recovery_mode"] == "RECOVERY_EXPRESSION", "{file}: {trigger}");
            for expression in trigger["expression"].as_str().into_iter().chain(recovery) {
                for part in expression.split(&format!("/{name}/")).skip(1) {
                    assert!(keys.iter().any(|key| part.starts_with(key)), "{file}: {part}");
                    checked += 1;
                }
            }
            // After a restart of kmonitor, a module that is stopped or stalled is OK for a while.
            if trigger["priority"] == "HIGH"
                && trigger["expression"].as_str().is_some_and(|text| text.contains("kmonitor.verdict["))
            {
                assert!(recovery.is_some_and(|recovery| recovery.contains(",3m)<")), "{file}: {trigger}");
            }
        }
        assert!(checked >= 16, "{file}: {checked}");
    }
}
