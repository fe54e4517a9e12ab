//! Tests of the configuration of kmonitor.

use super::*;
use crate::config::reference::{assert_has_all, in_force, keys_of};

const ORIGINAL: &str = include_str!("../../../tests/fixtures/original/kmonitor.yaml");
/// The optional keys of the reference that have no default.
const EXAMPLES: &str = "  broker_hosts: ['10.2.1.1:9092']\n  sources: [zookeeper, kafka]\n  groups: ['push-*']\n  modules: ['*']\n  \
                        ignore: ['console-consumer-*']\n  forget_after_hours: 720\n";
const REFERENCE: &str = include_str!("../../../conf/kmonitor.yaml");

fn load(text: &str) -> Result<Config, Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kmonitor.yaml");
    std::fs::write(&file, text).unwrap();
    let text = |problem: &crate::config::Problem| format!("{}: {}", problem.key, problem.text);
    Config::load(&file).map_err(|problems| problems.0.iter().map(text).collect())
}

#[test]
fn the_file_of_the_original_loads_unchanged() {
    let config = load(ORIGINAL).unwrap();
    let names: Vec<_> = config.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
    assert_eq!(names, ["test_cluster", "common_cluster"]);
    assert_eq!(config.http.port, 55325);
    assert_eq!(config.http.admin_port, None);
    assert_eq!(config.poll_interval, Duration::from_secs(5));
    assert_eq!(config.log.level, 4);
    let cluster = &config.clusters[0];
    let keeper = cluster.keeper.as_ref().unwrap();
    assert_eq!(keeper.chroot, "/mq/test_cluster");
    assert_eq!((keeper.hosts.len(), &*keeper.hosts[1]), (5, "10.1.2.1:2181"));
    assert_eq!(keeper.session_timeout, Duration::from_secs(6));
    assert_eq!(cluster.sources, [Source::Zookeeper]);
    assert_eq!((cluster.engine, &cluster.broker_hosts), (Engine::Auto, &None));
}

#[test]
fn all_problems_are_returned_at_once() {
    let text = ORIGINAL
        .replace("log_level: 4", "log_level: 17")
        .replace("chroot: /mq/test_cluster", "chroot: mq/")
        .replace(" port: 55325", " prot: 55325")
        .replace("10.2.1.1:2181", "10.2.1.1")
        .replace("  - common_cluster", "  - common_cluster\n  - third");
    let problems = load(&text).unwrap_err();
    let keys: Vec<_> = problems.iter().map(|problem| problem.split(": ").next().unwrap()).collect();
    assert_eq!(
        keys,
        [
            "base.log_level",
            "http_server.port",
            "http_server.prot",
            "test_cluster.chroot",
            "common_cluster.zk_hosts",
            "third"
        ],
        "{problems:#?}"
    );
}

#[test]
fn the_section_of_a_cluster_that_is_not_listed_is_checked_but_unused() {
    let text = ORIGINAL.replace("  - common_cluster\n", "");
    assert_eq!(load(&text).unwrap().clusters.len(), 1);
    let problems = load(&text.replace("10.2.1.1:2181", "nowhere")).unwrap_err();
    assert!(problems[0].starts_with("common_cluster.zk_hosts"), "{problems:?}");
    let problems = load(&format!("{ORIGINAL}\nstray:\n a: 1\n")).unwrap_err();
    assert_eq!(problems, ["stray: unknown key (misspelt?)"]);
}

#[test]
fn clusters_may_have_names_with_dots() {
    // Of modules whose keys in Zabbix would be the same, the lines are left out: see `report::zabbix`.
    let text = ORIGINAL.replace("common_cluster", "test_cluster.b");
    assert_eq!(load(&text).unwrap().clusters[1].name, "test_cluster.b");
}

#[test]
fn a_chroot_is_empty_or_a_clean_path() {
    for (chroot, good) in
        [("''", true), ("/", true), ("/a", true), ("a", false), ("/a/", true), ("/a//b", false), ("/a/../b", false)]
    {
        let text = ORIGINAL.replace("chroot: /mq/test_cluster", &format!("chroot: {chroot}"));
        assert_eq!(load(&text).is_ok(), good, "{chroot}");
    }
    let without = load(&ORIGINAL.replace(" chroot: /mq/test_cluster\n", "")).unwrap();
    assert_eq!(without.clusters[0].keeper.as_ref().unwrap().chroot, "");
}

#[test]
fn a_file_without_its_sections_is_refused() {
    for text in ["", "base: 1\n", "base:\n clusters: []\nhttp_server:\n port: 1\n", "http_server:\n port: 1\n"] {
        assert!(!load(text).unwrap_err().is_empty(), "{text:?}");
    }
}

#[test]
fn the_reference_shows_every_key_with_its_default() {
    let mut keys = keys_of(include_str!("../config.rs"));
    keys.extend(keys_of(include_str!("../verdict_limits.rs")));
    let in_force = in_force(REFERENCE, &keys);
    assert_has_all(&keys, &in_force);
    let hosts = |net: u8| {
        let host = |n: u8| format!("    - 10.{net}.{n}.1:2181\n");
        format!(
            "  chroot: /mq/{}_cluster\n  zk_hosts:\n{}",
            ["test", "common"][usize::from(net - 1)],
            (1..6).map(host).collect::<String>()
        )
    };
    let (test, common) = (hosts(1), hosts(2));
    let minimal = |base: &str, port: &str, brokers: &str| {
        let text = format!(
            "base:\n  clusters: [test_cluster, common_cluster]\n{base}http_server:\n  port: 55325\n{port}\
             test_cluster:\n{test}common_cluster:\n{common}{brokers}"
        );
        format!("{:?}", load(&text).unwrap())
    };
    assert_eq!(format!("{:?}", load(REFERENCE).unwrap()), minimal("", "", ""));
    let verdicts = "  verdicts:\n    modules:\n    - name: nightly_*\n      lagging_seconds: 7200\n";
    let examples = minimal(verdicts, "  admin_port: 55326\n", EXAMPLES);
    assert_eq!(format!("{:?}", load(&in_force).unwrap()), examples);
}

#[test]
fn the_sources_follow_from_the_hosts_and_the_groups() {
    let sources = |cluster: &str| {
        let text = format!("base:\n  clusters: [c]\nhttp_server:\n  port: 1\nc:\n{cluster}");
        load(&text).map(|config| config.clusters[0].sources.clone())
    };
    let (zookeeper, brokers, groups) = ("  zk_hosts: ['z:1']\n", "  broker_hosts: ['b:1']\n", "  groups: ['push-*']\n");
    for (parts, expected) in [
        (vec![zookeeper], vec![Source::Zookeeper]),
        (vec![zookeeper, brokers], vec![Source::Zookeeper]),
        (vec![zookeeper, brokers, groups], vec![Source::Zookeeper, Source::Kafka]),
        (vec![brokers, groups], vec![Source::Kafka]),
        (vec![zookeeper, brokers, groups, "  sources: [kafka]\n"], vec![Source::Kafka]),
    ] {
        assert_eq!(sources(&parts.concat()), Ok(expected), "{parts:?}");
    }
    for (parts, key) in [
        (vec![brokers], "c.zk_hosts"),
        (vec![zookeeper, groups], "c.groups"),
        (vec![brokers, groups, "  kafka_client: kafka-rust\n"], "c.kafka_client"),
        (vec![brokers, groups, "  sources: [zookeeper, kafka]\n"], "c.sources"),
        (vec![zookeeper, "  sources: [kafka]\n"], "c.sources"),
        (vec![zookeeper, "  sources: [both]\n"], "c.sources"),
        (vec![zookeeper, "  ignore: ['[']\n"], "c.ignore"),
    ] {
        let problems = sources(&parts.concat()).unwrap_err();
        assert!(problems[0].starts_with(&format!("{key}: ")), "{parts:?}: {problems:?}");
    }
}
