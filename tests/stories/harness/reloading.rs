//! Changes the files of a running ktransfer and reloads them with SIGHUP.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use super::{ConfigFile, Ktransfer, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);

/// The files of a ktransfer that a story changes while it runs.
pub(crate) struct ReloadedFiles {
    /// The main file without `module_enabled`.
    pub(crate) main: ConfigFile,
    /// The file of each module by name.
    pub(crate) modules: BTreeMap<String, ConfigFile>,
}

impl ReloadedFiles {
    pub(crate) fn new(main: ConfigFile, modules: &[(&str, ConfigFile)]) -> ReloadedFiles {
        let modules = modules.iter().map(|(name, file)| ((*name).to_owned(), file.clone())).collect();
        ReloadedFiles { main, modules }
    }

    /// Starts a ktransfer with the files; returns when it is ready.
    #[track_caller]
    pub(crate) fn start(&self) -> Ktransfer {
        let modules: Vec<(&str, ConfigFile)> =
            self.modules.iter().map(|(name, file)| (name.as_str(), file.clone())).collect();
        let mut ktransfer = Ktransfer::start(self.main.clone(), &modules);
        ktransfer.wait_until_ready();
        ktransfer
    }

    pub(crate) fn set(&mut self, name: &str, file: ConfigFile) {
        self.modules.insert(name.to_owned(), file);
    }

    /// Changes one module's file.
    #[track_caller]
    pub(crate) fn change(&mut self, name: &str, change: impl FnOnce(ConfigFile) -> ConfigFile) {
        let file = self.modules.remove(name).expect("a module of the files");
        self.set(name, change(file));
    }

    #[track_caller]
    pub(crate) fn remove(&mut self, name: &str) {
        assert!(self.modules.remove(name).is_some(), "there is no module {name}");
    }

    /// Writes all files into the folder of the daemon, and deletes those of other modules.
    pub(crate) fn write(&self, ktransfer: &Ktransfer) {
        let conf = ktransfer.daemon.folder().join("conf");
        let names: Vec<&String> = self.modules.keys().collect();
        for entry in fs::read_dir(conf.join("modules")).expect("a folder of modules").flatten() {
            fs::remove_file(entry.path()).expect("a file of a module");
        }
        for (name, file) in &self.modules {
            fs::write(conf.join("modules").join(format!("{name}.yaml")), file.text()).expect("a file of a module");
        }
        let main = self.main.clone().set("module_enabled", names);
        fs::write(conf.join("ktransfer.yaml"), main.text()).expect("a main file");
    }

    /// Writes all files, and reloads them; returns when they are in force. Modules may still be stopping.
    #[track_caller]
    pub(crate) fn apply(&self, ktransfer: &mut Ktransfer) {
        self.write(ktransfer);
        reload(ktransfer, "applied");
    }
}

/// Sends SIGHUP, and waits until a reload has ended with this result.
#[track_caller]
pub(crate) fn reload(ktransfer: &mut Ktransfer, result: &str) {
    let metric = format!("ktransfer_reloads_total{{result=\"{result}\"}}");
    let before = ktransfer.metrics().value(&metric);
    ktransfer.daemon.signal(libc::SIGHUP);
    wait_until(DEADLINE, &format!("a reload is {result}"), || ktransfer.metrics().value(&metric) > before);
}
