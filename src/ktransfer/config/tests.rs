//! Tests that the configuration files of the original and of this repository load, and that bad files report problems.

use super::*;
use std::fs;

use crate::config::reference::{assert_has_all, in_force, keys_of};
use crate::ktransfer::template::PlaceholderValues;

const ORIGINAL_MAIN: &str = include_str!("../../../tests/fixtures/original/ktransfer.yaml");
const ORIGINAL_MODULE: &str = include_str!("../../../tests/fixtures/original/modules/test_module_1.yaml");
const REFERENCE_MAIN: &str = include_str!("../../../conf/ktransfer.yaml");
const REFERENCE_MODULES: [&str; 2] = [
    include_str!("../../../conf/modules/test_module_1.yaml"),
    include_str!("../../../conf/modules/test_module_2.yaml"),
];

/// Writes a main file and module files into a temporary folder and loads them. In the main file, `./conf/modules` is
/// replaced by the folder of the module files.
fn load_texts(main: &str, modules: &[(&str, &str)]) -> Result<Config, Problems> {
    let folder = tempfile::tempdir().unwrap();
    let module_folder = folder.path().join("conf/modules");
    fs::create_dir_all(&module_folder).unwrap();
    for (name, text) in modules {
        fs::write(module_folder.join(format!("{name}.yaml")), text).unwrap();
    }
    let file = folder.path().join("ktransfer.yaml");
    fs::write(&file, main.replace("./conf/modules", module_folder.to_str().unwrap())).unwrap();
    load(&file)
}

fn keeper_of(config: &Config) -> &KeeperConfig {
    match &config.groups {
        GroupService::ZooKeeper(keeper) => keeper,
        GroupService::Kafka(_) => panic!("the groups are in Kafka"),
    }
}

fn texts(outcome: Result<Config, Problems>) -> Vec<String> {
    let problems = outcome.err().expect("problems");
    let shown = |problem: &crate::config::Problem| {
        format!("{}: {}: {}", problem.file.file_name().unwrap().display(), problem.key, problem.text)
    };
    problems.0.iter().map(shown).collect()
}

#[test]
fn a_connect_timeout_of_0_is_no_limit_and_the_default_is_finite() {
    for (line, expected) in [
        (" conn_timeout_ms: 100", Some(Duration::from_millis(100))),
        (" conn_timeout_ms: 0", None),
        ("", Some(Duration::from_secs(10))),
    ] {
        let module = ORIGINAL_MODULE.replace(" conn_timeout_ms: 100", line);
        let config = load_texts(ORIGINAL_MAIN, &[("test_mdoule_1", &module), ("test_module_2", ORIGINAL_MODULE)]);
        assert_eq!(config.ok().unwrap().modules[0].protocol.connect_timeout, expected, "{line:?}");
    }
}

#[test]
fn the_files_of_the_original_load_unchanged() {
    let modules = [("test_mdoule_1", ORIGINAL_MODULE), ("test_module_2", ORIGINAL_MODULE)];
    let config = load_texts(ORIGINAL_MAIN, &modules).unwrap_or_else(|problems| panic!("{problems}"));
    let keeper = keeper_of(&config);
    assert_eq!(keeper.hosts.len(), 5);
    assert_eq!(keeper.chroot, "/mq/test_cluster");
    assert_eq!(keeper.session_timeout, Duration::from_secs(3));
    assert_eq!(config.retry_interval, Duration::from_secs(30));
    assert_eq!((config.admin_port, config.broker_hosts), (None, None));
    let module = &config.modules[0];
    assert_eq!((&*module.name, &*module.topic), ("test_mdoule_1", "test_topic"));
    assert!(module.methods.as_ref().unwrap().contains("TestReply"));
    assert_eq!(module.protocol.headers, [("Host".to_owned(), "www.myhug.cn".to_owned())]);
    assert_eq!(module.protocol.read_timeout, None, "0 means no timeout");
    assert_eq!(module.protocol.connect_timeout, Some(Duration::from_millis(100)));
    assert_eq!((module.worker_num.get(), module.window_size.get(), module.waiting_queue_size.get()), (100, 200, 256));
    assert_eq!(module.retry.max_retry_times, None);
    assert_eq!(module.retry.first_pause, Duration::from_millis(200));
    assert_eq!(module.retry.max_pause, Duration::from_secs(10));
    assert_eq!(module.offset_update_interval, Duration::from_secs(10));
    assert!(module.serialize_by_key);
    assert_eq!(module.backend_servers[3], "10.1.2.4:80");
    let mut uri = String::new();
    let values = PlaceholderValues { topic: "t", key: b"k", transid: 1, partition: 0, method: "m" };
    module.protocol.uri.fill_into(&mut uri, &values);
    assert_eq!(uri, "/XXX/t?key=k&transid=1&format=msgpack");
}

#[test]
fn the_reference_shows_every_key_with_its_default() {
    let sources = [
        include_str!("../config.rs"),
        include_str!("backends.rs"),
        include_str!("ejection.rs"),
        include_str!("protocol.rs"),
        include_str!("signature.rs"),
    ];
    let keys = sources.into_iter().flat_map(keys_of).collect();
    let [main, module] = [REFERENCE_MAIN, REFERENCE_MODULES[0]].map(|file| in_force(file, &keys));
    let folder = tempfile::tempdir().unwrap();
    let module = with_files(&module, folder.path());
    assert_has_all(&keys, &format!("{main}{module}"));
    let with_modules = |main: &str, first: &str| {
        let modules = [("test_module_1", first), ("test_module_2", REFERENCE_MODULES[1])];
        load_texts(main, &modules).unwrap_or_else(|problems| panic!("{problems}"))
    };
    let as_it_is = with_modules(REFERENCE_MAIN, REFERENCE_MODULES[0]);
    let written_out = with_modules(&main, &module);
    assert_eq!((written_out.admin_port, written_out.broker_hosts.map(|hosts| hosts.len())), (Some(5040), Some(2)));
    assert_eq!(as_it_is.log, written_out.log);
    assert_eq!(as_it_is.retry_interval, written_out.retry_interval);
    assert_eq!(as_it_is.engine, written_out.engine);
    assert_eq!(as_it_is.shutdown_grace, written_out.shutdown_grace);
    // The second module leaves out every optional key.
    let [shown, default] = [&written_out.modules[0], &written_out.modules[1]];
    assert_eq!(shown.worker_num, default.worker_num);
    assert_eq!(shown.window_size, default.window_size);
    assert_eq!(shown.retry, default.retry);
    assert_eq!(shown.max_commit_gap, default.max_commit_gap);
    assert_eq!(shown.start_from, default.start_from);
    assert_eq!(shown.offset_update_interval, default.offset_update_interval);
    assert_eq!(shown.waiting_queue_size, default.waiting_queue_size);
    assert_eq!(shown.serialize_by_key, default.serialize_by_key);
    assert_eq!(shown.ejection, default.ejection);
    assert_eq!((shown.signing_secrets.len(), default.signing_secrets.len()), (2, 0));
    assert_eq!(shown.protocol.tls.is_some(), cfg!(feature = "tls"));
    assert!(default.protocol.tls.is_none() && default.max_pushes_per_second.is_none());
}

/// Replaces the files that the reference names by files in `folder`. Without the feature `tls`, leaves out `tls`.
fn with_files(module: &str, folder: &Path) -> String {
    // The entries of `outcomes` are no keys of their own.
    let mut text = module.replace("outcomes:\n", "outcomes:\n  default: retry\n");
    let secrets = folder.join("secrets");
    fs::write(&secrets, "# The old one.\n\n whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n").unwrap();
    text = text.replace("/etc/ktransfer/test_module_1.secrets", secrets.to_str().unwrap());
    #[cfg(feature = "tls")]
    {
        let authority = crate::certificates::Authority::new(folder, "authority");
        let client = authority.issue("client", 30);
        for (name, file) in [
            ("backends.pem", &authority.own.certificate),
            ("client.pem", &client.certificate),
            ("client.key", &client.key),
        ] {
            text = text.replace(&format!("/etc/ktransfer/{name}"), file.to_str().unwrap());
        }
    }
    #[cfg(not(feature = "tls"))]
    {
        let (start, end) = (text.find(" tls:\n").unwrap(), text.find("  server_name:").unwrap());
        let end = end + text[end..].find('\n').unwrap() + 1;
        text.replace_range(start..end, "");
    }
    text
}

/// The problems of a module with these lines, without the name of its file.
fn problems_with(lines: &str) -> Vec<String> {
    let main = "zk_hosts: ['a:1']\nmodule_conf_dir: ./conf/modules\nmodule_enabled: [m]\nzk_chroot:\n";
    let protocol = if lines.contains("protocol:") { "" } else { "protocol: {uri: /}\n" };
    let servers = if lines.contains("backend_servers:") { "" } else { "backend_servers: ['a:1', 'b:1']\n" };
    let module = format!("topic: t\n{protocol}{servers}{lines}\n");
    match load_texts(main, &[("m", &module)]) {
        Ok(_) => Vec::new(),
        failed => texts(failed).into_iter().map(|text| text.replacen("m.yaml: ", "", 1)).collect(),
    }
}

#[test]
fn backends_ejection_rate_and_signature_are_checked() {
    for (lines, expected) in [
        ("ejection: {failures: 0, interval_ms: 10, max_interval_ms: 10, slow_start_ms: 0, count_5xx: false}", ""),
        ("ejection: {interval_ms: 60000}", ""),
        ("ejection: {failures: -1}", "ejection.failures: is -1, but must be a whole number from 0 to 1000000"),
        ("ejection: {interval_ms: 5}", "ejection.interval_ms: is 5, but must be a whole number from 10 to 86400000"),
        (
            "ejection: {interval_ms: 50, max_interval_ms: 40}",
            "ejection.max_interval_ms: is 40, but must not be below interval_ms, which is 50",
        ),
        ("ejection: {failure_percent: 0}", ""),
        ("ejection: {failures: 0, failure_percent: 100, min_requests: 1, window_ms: 100}", ""),
        (
            "ejection: {failure_percent: 101}",
            "ejection.failure_percent: is 101, but must be a whole number from 0 to 100",
        ),
        ("ejection: {min_requests: 0}", "ejection.min_requests: is 0, but must be a whole number from 1 to 1000000"),
        ("ejection: {window_ms: 99}", "ejection.window_ms: is 99, but must be a whole number from 100 to 86400000"),
        ("ejection: {on: true}", "ejection.on: unknown key (misspelt?)"),
        ("max_pushes_per_second: 1", ""),
        ("max_pushes_per_second: 0", "max_pushes_per_second: is 0, but must be a whole number from 1 to 1000000"),
        ("signature: {secrets: [whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX]}", ""),
        ("signature: {}", "signature: must have 1 to 4 secrets, in secrets or secrets_file"),
        ("signature: {secrets: [hidden]}", "signature.secrets: entry 1 must begin with whsec_"),
        ("signature: {secrets: hidden}", "signature.secrets: must be a list of distinct, non-empty strings"),
        ("signature: {hidden: 1}", "signature: must have 1 to 4 secrets, in secrets or secrets_file"),
        ("signature: {secrets_file: /nowhere}", "signature.secrets_file: is \"/nowhere\", which cannot be read"),
        (
            "protocol: {uri: /, headers: [{Webhook-ID: x}]}\n\
             signature: {secrets: [whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX]}",
            "protocol.headers: has Webhook-ID, which signature sets",
        ),
        ("protocol: {uri: /, headers: [{Webhook-ID: x}]}", ""),
        (
            "backend_servers: ['https://a/b']",
            "backend_servers: has \"https://a/b\", but each entry must be host:port or",
        ),
        (
            "protocol: {uri: /, tls: {ca_file: /nowhere}}",
            "protocol.tls.ca_file: is \"/nowhere\", which cannot be read: No such file",
        ),
    ] {
        let problems = problems_with(lines);
        match expected {
            "" => assert!(problems.is_empty(), "{lines}: {problems:?}"),
            _ => assert!(!problems.is_empty() && problems[0].starts_with(expected), "{lines}: {problems:?}"),
        }
        assert!(!problems.iter().any(|problem| problem.contains("hidden")), "{problems:?}");
    }
}

#[cfg(feature = "tls")]
#[test]
fn files_of_tls_that_cannot_be_used_are_a_problem() {
    let folder = tempfile::tempdir().unwrap();
    let authority = crate::certificates::Authority::new(folder.path(), "authority");
    let (client, other) = (authority.issue("client", 30), authority.issue("other", 30));
    let shown = |path: &Path| path.display().to_string();
    let (ca, certificate, key) = (&authority.own.certificate, shown(&client.certificate), shown(&other.key));
    for (tls, expected) in [
        (format!("{{ca_file: {}, certificate_file: {certificate}, key_file: {}}}", shown(ca), shown(&client.key)), ""),
        (format!("{{ca_file: {key}}}"), "protocol.tls: cannot be used: the CA file contains no certificate"),
        (
            format!("{{ca_file: {}, certificate_file: {certificate}}}", shown(ca)),
            "protocol.tls: must have both certificate_file and key_file, or neither",
        ),
        (
            format!("{{ca_file: {}, certificate_file: {certificate}, key_file: {key}}}", shown(ca)),
            "protocol.tls: cannot be used: the client key is not that of the client certificate",
        ),
        (
            format!("{{ca_file: {}, server_name: 'a b'}}", shown(ca)),
            "protocol.tls: cannot be used: \"a b\" is not a host name that a certificate can have",
        ),
    ] {
        let problems = problems_with(&format!("backend_servers: ['https://a']\nprotocol: {{uri: /, tls: {tls}}}"));
        match expected {
            "" => assert!(problems.is_empty(), "{tls}: {problems:?}"),
            _ => assert!(problems.len() == 1 && problems[0].starts_with(expected), "{tls}: {problems:?}"),
        }
    }
}

#[test]
fn every_optional_key_may_be_left_out() {
    let main = "zk_hosts: ['a:1']\nmodule_conf_dir: ./conf/modules\nmodule_enabled: [m]\nzk_chroot:\n";
    let module = "topic: t\nprotocol: {uri: /}\nbackend_servers: [localhost]\n";
    let config = load_texts(main, &[("m", module)]).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!((config.log.dir.to_str(), config.log.level), (Some("./log"), 4));
    let keeper = keeper_of(&config);
    assert_eq!(keeper.chroot, "");
    assert_eq!(keeper.session_timeout, Duration::from_secs(30));
    assert_eq!(config.shutdown_grace, Duration::from_secs(10));
    let module = &config.modules[0];
    assert!(module.methods.is_none());
    assert_eq!((module.worker_num.get(), module.window_size.get(), module.max_commit_gap.get()), (100, 200, 10_000));
    assert_eq!(module.start_from, StartFrom::Earliest);
    assert_eq!(module.protocol.write_timeout, None);
    assert_eq!(module.protocol.connect_timeout, Some(Duration::from_secs(10)));
}

const WITHOUT_ZOOKEEPER: &str = "broker_hosts: ['a:1']\nmodule_conf_dir: ./conf/modules\nmodule_enabled: [m]\n";
const LEAST_MODULE: &str = "topic: t\nprotocol: {uri: /}\nbackend_servers: [localhost]\n";

#[test]
fn without_zk_hosts_the_groups_are_in_kafka() {
    for (keys, session_timeout_ms, instance_id) in
        [("", 30_000, None), ("session_timeout_ms: 6000\ninstance_id: host-1.example\n", 6_000, Some("host-1.example"))]
    {
        let config = load_texts(&format!("{WITHOUT_ZOOKEEPER}{keys}"), &[("m", LEAST_MODULE)]);
        let config = config.unwrap_or_else(|problems| panic!("{problems}"));
        let GroupService::Kafka(settings) = config.groups else { panic!("the groups are in ZooKeeper") };
        assert_eq!(settings.session_timeout, Duration::from_millis(session_timeout_ms));
        assert_eq!(settings.instance_id.as_deref(), instance_id);
    }
    // A file may be prepared for the change.
    let both = format!("{WITHOUT_ZOOKEEPER}zk_hosts: ['z:1']\nsession_timeout_ms: 6000\ninstance_id: a\n");
    assert_eq!(keeper_of(&load_texts(&both, &[("m", LEAST_MODULE)]).ok().unwrap()).hosts, ["z:1"]);
}

#[test]
fn keys_that_do_not_fit_groups_in_kafka_are_problems() {
    let chroot = "zk_chroot: has no effect without zk_hosts, since the groups are in Kafka then: remove this key";
    let timeout = "zk_timeout_ms: has no effect without zk_hosts, since the groups are in Kafka then: use \
                   session_timeout_ms";
    let hosts = "zk_hosts: is missing: set zk_hosts for groups in ZooKeeper, or broker_hosts for groups in Kafka";
    let engine = "kafka_client: is \"kafka-rust\", which has no groups in Kafka: set zk_hosts for groups in ZooKeeper, \
                  or use native";
    let name = "instance_id: is \"a/b\", but must be 1 to 249 of the characters a-z A-Z 0-9 . _ - and neither . nor ..";
    let session = "session_timeout_ms: is 10, but must be a whole number from 1000 to 1800000";
    for (main, expected) in [
        (format!("{WITHOUT_ZOOKEEPER}zk_chroot: /x\nzk_timeout_ms: 3000\n"), &[chroot, timeout][..]),
        (WITHOUT_ZOOKEEPER.replace("broker_hosts: ['a:1']\n", ""), &[hosts]),
        (format!("{WITHOUT_ZOOKEEPER}kafka_client: kafka-rust\n"), &[engine]),
        (format!("{WITHOUT_ZOOKEEPER}instance_id: a/b\nsession_timeout_ms: 10\n"), &[session, name]),
    ] {
        let expected: Vec<String> = expected.iter().map(|text| format!("ktransfer.yaml: {text}")).collect();
        assert_eq!(texts(load_texts(&main, &[("m", LEAST_MODULE)])), expected);
    }
}

#[test]
fn all_problems_of_all_files_are_reported_together() {
    let main = "zk_hosts: [a]\nzk_chroot: mq\nzk_timeout_ms: 0\nmodule_conf_dir: ./conf/modules\nmodule_enabled: [m, n, ../x]\nzk_host: 1\n";
    let module = "topic: a b\nmethods: []\nworker_num: 0\nwindow_size: -1\nmax_retry_times: -2\nfail_retry_interval_ms: 500\n\
                  max_retry_interval_ms: 100\nserialize_by_key: 1\nbackend_servers: ['http://a', 'b:0']\nprotocol:\n  name: grpc\n  uri: \
                  /{#TOPICS}\n  headers:\n  - {Host: a, host: b}\n  - 'Content-Length: 1'\n  - Content-Length: '1'\n  - X: 1\n  - 'a b': c\n  \
                  - T: \"secret\\n\"\n  red_timeout_ms: 1\n";
    let expected = [
        "ktransfer.yaml: zk_hosts: has \"a\", but each entry must be host:port, as in 10.1.1.1:2181",
        "ktransfer.yaml: zk_chroot: \"mq\" must begin with a slash; it is empty or a path, as in /mq/test_cluster",
        "ktransfer.yaml: zk_timeout_ms: is 0, but must be a whole number from 100 to 600000",
        "m.yaml: topic: is \"a b\", but must be 1 to 249 of the characters a-z A-Z 0-9 . _ - and neither . nor ..",
        "m.yaml: methods: is [], but must be a list of distinct, non-empty strings, at least one",
        "m.yaml: protocol.name: is \"grpc\", but must be one of http",
        "m.yaml: protocol.uri: is \"/{#TOPICS}\", but has \"{#TOPICS}\", but the placeholders are {#TOPIC} {#KEY} {#TRANSID} {#PARTITION} {#METHOD}",
        "m.yaml: protocol.headers: has Host twice",
        "m.yaml: protocol.headers: entry 2 is not a map with one key",
        "m.yaml: protocol.headers: has Content-Length, which ktransfer sets itself",
        "m.yaml: protocol.headers: entry 4 must have a string as name and value (put them in quotes)",
        "m.yaml: protocol.headers: has \"a b\", which is not the name of a header",
        "m.yaml: protocol.headers: has a value for T with characters that a header cannot carry",
        "m.yaml: protocol.red_timeout_ms: unknown key (misspelt?)",
        "m.yaml: worker_num: is 0, but must be a whole number from 1 to 10000",
        "m.yaml: window_size: is -1, but must be a whole number from 1 to 1000000",
        "m.yaml: max_retry_times: is -2, but must be a whole number from -1 to 4294967295",
        "m.yaml: max_retry_interval_ms: is 100, but must not be below fail_retry_interval_ms, which is 500",
        "m.yaml: backend_servers: has \"http://a\", but each entry must be host:port or https://host:port, as in \
         10.1.2.1:80",
        "m.yaml: backend_servers: has \"b:0\", but each entry must be host:port or https://host:port, as in 10.1.2.1:80",
        "m.yaml: serialize_by_key: is 1, but must be true or false",
        "n.yaml: : cannot be read: No such file or directory (os error 2)",
        "ktransfer.yaml: module_enabled: has \"../x\", but a module is named after its file: no slash, and no leading dot",
        "ktransfer.yaml: zk_host: unknown key (misspelt?)",
    ];
    let found = texts(load_texts(main, &[("m", module)]));
    for (index, text) in expected.iter().enumerate() {
        assert_eq!(found.get(index).map(String::as_str), Some(*text), "problem {index} of {found:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    assert!(!format!("{found:?}").contains("secret"));
}

/// Loads modules, each with its name and the lines that follow the required keys.
fn load_modules(main_lines: &str, modules: &[(&str, &str)]) -> Result<Config, Problems> {
    let names: Vec<&str> = modules.iter().map(|(name, _)| *name).collect();
    let main = format!(
        "zk_hosts: ['a:1']\nmodule_conf_dir: ./conf/modules\nmodule_enabled: [{}]\nzk_chroot:\n{main_lines}",
        names.join(", ")
    );
    let files: Vec<(&str, String)> = modules
        .iter()
        .map(|(name, lines)| (*name, format!("protocol: {{uri: /}}\nbackend_servers: [localhost]\n{lines}")))
        .collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    load_texts(&main, &files)
}

#[test]
fn outcomes_and_dead_letters_are_read() {
    let lines = "topic: t\noutcomes: {200-299: ok, 404: drop, 410: dead_letter, default: retry}\n\
                 dead_letter_topic: dead\nfiltered: dead_letter\nmethods: [a]\n";
    let config = load_modules("", &[("m", lines)]).unwrap_or_else(|problems| panic!("{problems}"));
    let module = &config.modules[0];
    assert_eq!(module.dead_letter_topic.as_deref(), Some("dead"));
    assert_eq!((module.outcomes.of_status(404), module.outcomes.of_status(500)), (Outcome::Drop, Outcome::Retry));
    assert_eq!((module.tombstones, module.filtered), (Tombstones::Skip, FilteredMessages::DeadLetter));
    for (lines, tombstones) in [
        ("topic: t\n", Tombstones::Push),
        ("topic: t\ntombstones: skip\n", Tombstones::Skip),
        ("topic: t\nmethods: [a]\n", Tombstones::Skip),
        ("topic: t\nmethods: [a]\ntombstones: push\n", Tombstones::Push),
    ] {
        let config = load_modules("", &[("m", lines)]).unwrap_or_else(|problems| panic!("{problems}"));
        let module = &config.modules[0];
        assert_eq!((module.tombstones, module.filtered), (tombstones, FilteredMessages::Drop), "{lines}");
        assert_eq!((&module.outcomes, &module.dead_letter_topic), (&OutcomeTable::default(), &None));
    }
}

#[test]
fn wrong_outcomes_and_dead_letters_are_named_with_key_entry_and_reason() {
    for (lines, problem) in [
        ("outcomes: [404]", "m.yaml: outcomes: must be a map, as in \"404: drop\""),
        ("outcomes: {400-499: drop, 404: ok, default: retry}", "m.yaml: outcomes.404: overlaps with the entry 400-499"),
        (
            "outcomes: {404: dead_letter, default: retry}",
            "m.yaml: outcomes: has dead_letter, which needs dead_letter_topic",
        ),
        ("filtered: dead_letter", "m.yaml: filtered: is dead_letter, which needs dead_letter_topic"),
        ("filtered: push", "m.yaml: filtered: is \"push\", but must be one of drop, dead_letter"),
        ("tombstones: drop", "m.yaml: tombstones: is \"drop\", but must be one of push, skip"),
        (
            "dead_letter_topic: t",
            "m.yaml: dead_letter_topic: is the topic of the module: each dead letter would be pushed",
        ),
        (
            "dead_letter_topic: a b",
            "m.yaml: dead_letter_topic: is \"a b\", but must be 1 to 249 of the characters a-z A-Z 0-9 . _ - and \
             neither . nor ..",
        ),
    ] {
        let found = texts(load_modules("", &[("m", &format!("topic: t\n{lines}\n"))]));
        assert_eq!(found, [problem], "{lines}");
    }
    let found = texts(load_modules("kafka_client: kafka-rust\n", &[("m", "topic: t\ndead_letter_topic: dead\n")]));
    let problem =
        "ktransfer.yaml: kafka_client: module m has dead_letter_topic, which needs record headers: use native";
    assert_eq!(found, [problem]);
}

#[test]
fn dead_letters_that_would_come_back_are_refused() {
    let module = |topic: &str, dead: &str| format!("topic: {topic}\ndead_letter_topic: {dead}\n");
    let (first, second, third) = (module("a", "b"), module("b", "c"), module("c", "a"));
    let found = texts(load_modules("", &[("x", &first), ("y", &second), ("z", &third)]));
    assert_eq!(
        found,
        [
            "ktransfer.yaml: module_enabled: dead letters of module x come back to its topic a",
            "ktransfer.yaml: module_enabled: dead letters of module y come back to its topic b",
            "ktransfer.yaml: module_enabled: dead letters of module z come back to its topic c",
        ]
    );
    let chain = [("x", first.as_str()), ("y", second.as_str()), ("also-x", first.as_str())];
    load_modules("", &chain).unwrap_or_else(|problems| panic!("{problems}"));
}

#[test]
fn a_missing_main_file_is_one_problem() {
    let problems = load(Path::new("/nowhere/ktransfer.yaml")).err().expect("a problem");
    assert_eq!(problems.0.len(), 1, "{problems}");
    assert!(problems.to_string().starts_with("/nowhere/ktransfer.yaml: cannot be read"));
}
