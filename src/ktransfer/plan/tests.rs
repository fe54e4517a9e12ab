//! Tests of the plan of a reload for each difference.

use super::*;
use std::fs;
use std::num::NonZeroU64;
use std::time::Duration;

use crate::ktransfer::config;
use crate::ktransfer::test_fixtures::module_config;

const MAIN: &str = include_str!("../../../conf/ktransfer.yaml");

fn module(name: &str) -> ModuleConfig {
    ModuleConfig { name: name.into(), ..module_config(&["a:80", "b:80"]) }
}

fn names(modules: &[ModuleConfig]) -> Vec<&str> {
    modules.iter().map(|module| &*module.name).collect()
}

#[test]
fn modules_are_added_removed_changed_or_left_alone() {
    let running = ["stays", "goes", "moves", "restarts"].map(module);
    let mut wanted = ["new", "restarts", "moves", "stays"].map(module);
    wanted[1].topic = "other".into();
    wanted[1].backend_servers.pop();
    wanted[2].backend_servers = vec!["c:80".into()];
    let plan = Plan::new(&running, wanted.into());
    assert_eq!((names(&plan.added), &plan.removed[..]), (vec!["new"], &["goes".into()][..]));
    let changed: Vec<_> = plan.changed.iter().map(|change| (&*change.config.name, change.kind, &change.keys)).collect();
    let restart = ("restarts", ChangeKind::Restart, &vec!["topic", "backend_servers"]);
    assert_eq!(changed, [restart, ("moves", ChangeKind::InPlace, &vec!["backend_servers"])]);
    let summary = "1 added (new), 1 removed (goes), 1 changed (moves), 1 stopped and started (restarts), 1 unchanged";
    assert_eq!(plan.to_string(), summary);
    assert_eq!(Plan::new(&running, running.to_vec()).to_string(), "4 unchanged");
    assert_eq!(Plan::new(&[], vec![module("a"), module("b")]).to_string(), "2 added (a, b), 0 unchanged");
}

#[test]
fn each_key_is_changed_in_place_or_by_a_restart() {
    use ChangeKind::{InPlace, Restart};
    type Change = fn(&mut ModuleConfig);
    let changes: [(&str, ChangeKind, Change); 12] = [
        ("methods", InPlace, |module| module.methods = Some(["M".into()].into())),
        ("protocol", InPlace, |module| module.protocol.headers.clear()),
        ("protocol", InPlace, |module| module.protocol.read_timeout = None),
        ("max_retry_times", InPlace, |module| module.retry.max_retry_times = Some(3)),
        ("fail_retry_interval_ms", InPlace, |module| module.retry.first_pause = Duration::from_millis(11)),
        ("ejection", InPlace, |module| module.ejection.count_5xx = false),
        ("max_pushes_per_second", InPlace, |module| module.max_pushes_per_second = NonZeroU64::new(5)),
        ("backend_servers", InPlace, |module| module.backend_servers.reverse()),
        ("worker_num", Restart, |module| module.worker_num = module.window_size),
        ("window_size", Restart, |module| module.window_size = module.worker_num),
        ("dead_letter_topic", Restart, |module| module.dead_letter_topic = Some("dead".into())),
        ("serialize_by_key", Restart, |module| module.serialize_by_key = false),
    ];
    for (key, kind, change) in changes {
        let mut new = module("m");
        change(&mut new);
        assert_eq!(differences(&module("m"), &new), [(key, kind)]);
    }
}

/// Loads the reference file with one text replaced.
fn main_file(from: &str, to: &str) -> Config {
    assert!(MAIN.contains(from), "{from}");
    let folder = tempfile::tempdir().unwrap();
    let module_folder = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/modules");
    let text = MAIN.replace("./conf/modules", module_folder).replace(from, to);
    fs::write(folder.path().join("ktransfer.yaml"), text).unwrap();
    config::load(&folder.path().join("ktransfer.yaml")).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn the_keys_that_need_a_restart_are_named() {
    let reference = main_file("zk_hosts", "zk_hosts");
    for (from, to, keys) in [
        ("zk_hosts", "zk_hosts", &[][..]),
        ("log_level: 4", "log_level: 8", &["log_level"]),
        ("zk_timeout_ms: 3000\n", "zk_timeout_ms: 4000\n", &["zk_timeout_ms"]),
        (
            "log_dir: ./log",
            "broker_hosts: [a:1]\nadmin_port: 1\nlog_dir: ./other",
            &["log_dir", "broker_hosts", "admin_port"],
        ),
        ("module_enabled:", "shutdown_grace_ms: 1\nmodule_enabled:", &["shutdown_grace_ms"]),
    ] {
        assert_eq!(fixed_keys(&reference, &main_file(from, to)), keys, "{to}");
    }
}
