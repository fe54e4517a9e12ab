//! Tests of the table of modules, with a cluster that does not answer.

use super::*;
use std::fs;
use std::time::Duration;

use crate::ktransfer::config;
use crate::ktransfer::test_backend::wait_until;
use crate::supervise::Ended;

const MODULE: &str = "topic: t\nprotocol: {name: http, uri: /p}\nbackend_servers: [\"127.0.0.1:1\"]\n";

fn load(modules: &[&str]) -> Config {
    let folder = tempfile::tempdir().unwrap();
    for name in modules {
        fs::write(folder.path().join(format!("{name}.yaml")), MODULE).unwrap();
    }
    let names = modules.join(", ");
    let path = folder.path().display();
    let main = format!(
        "log_dir: ./log\nlog_level: 0\nbroker_hosts: [\"127.0.0.1:1\"]\nmodule_conf_dir: {path}\nmodule_enabled: [{names}]\n"
    );
    let file = folder.path().join("ktransfer.main");
    fs::write(&file, main).unwrap();
    config::load(&file).unwrap_or_else(|problems| panic!("{problems}"))
}

fn start(names: &[&str]) -> Arc<Modules> {
    let (config, registry) = (Arc::new(load(names)), Registry::new());
    let supervisor = Supervisor::new("modules", Stop::new());
    let letters = LetterThread::new(&config, None, &supervisor);
    let modules = Arc::new(Modules {
        config,
        letters,
        zookeeper: None,
        metrics: Metrics::new(&registry),
        registry,
        health: Health::new(),
        report: StopReport::default(),
        operations: Operations::default(),
        supervisor,
        table: Mutex::default(),
    });
    modules.start_all();
    modules
}

impl Modules {
    fn reload(self: &Arc<Self>, names: &[&str], change: impl Fn(&mut ModuleConfig)) -> Result<(), String> {
        let mut wanted = if names.is_empty() { Vec::new() } else { load(names).modules };
        wanted.iter_mut().for_each(change);
        self.apply(Plan::new(&self.configs(), wanted))
    }

    /// Whether the module is shown everywhere, or nowhere.
    fn is_shown(&self, name: &str) -> Option<bool> {
        let metrics = String::from_utf8(self.registry.render()).unwrap();
        let troubles = self.health.troubles();
        let shown = [
            metrics.contains(&format!("module=\"{name}\"")),
            self.operations.get(name).is_some(),
            troubles.iter().any(|(component, _)| component.ends_with(&format!(" of {name}"))),
        ];
        shown.iter().all(|is_shown| *is_shown == shown[0]).then_some(shown[0])
    }
}

#[test]
fn what_is_shown_of_a_module_begins_and_ends_with_it() {
    let modules = start(&["stays", "goes"]);
    let are_shown = |expected: &[(&str, bool)]| {
        wait_until("the modules are shown", || {
            expected.iter().all(|(name, is_shown)| modules.is_shown(name) == Some(*is_shown))
        });
    };
    are_shown(&[("stays", true), ("goes", true), ("new", false)]);
    modules.reload(&["stays", "new"], |_| {}).unwrap();
    are_shown(&[("stays", true), ("goes", false), ("new", true)]);
    modules.reload(&["stays", "new", "goes"], |_| {}).unwrap();
    are_shown(&[("stays", true), ("goes", true), ("new", true)]);
    modules.close();
    assert!(modules.reload(&["stays"], |_| {}).is_err(), "the daemon stops");
    modules.supervisor.stop().trigger();
    assert_eq!(modules.supervisor.join(Duration::from_secs(30)), Ended::Stopped);
}

#[test]
fn each_run_of_a_module_has_the_latest_configuration_and_follows_the_end_of_the_former_one() {
    let modules = start(&["m"]);
    let topic = || modules.operations.get("m").map(|handle| handle.topic.to_string());
    wait_until("it runs", || topic().as_deref() == Some("t"));
    for name in ["a", "b", "c"] {
        modules.reload(&["m"], |config| config.topic = name.into()).unwrap();
        modules.reload(&[], |_| {}).unwrap();
        assert!(modules.configs().is_empty());
        modules.reload(&["m"], |config| config.topic = format!("{name}2").into()).unwrap();
    }
    wait_until("the last one runs", || topic().as_deref() == Some("c2"));
    assert_eq!(&*modules.configs()[0].topic, "c2");
    modules.supervisor.stop().trigger();
    assert_eq!(modules.supervisor.join(Duration::from_secs(30)), Ended::Stopped);
}
