//! Configuration files for the daemons: the reference files of `conf/`, parsed, with other values.
//!
//! Invariant: a key that its reference file does not name (commented out or not) panics, so a story cannot set a key
//! that no daemon reads.

use serde::Serialize;
use serde_yaml::{Mapping, Value};

/// One configuration file.
///
/// A path names a key below its sections, with dots between: `http_server.port`.
#[derive(Debug, Clone)]
pub(crate) struct ConfigFile {
    reference: &'static str,
    root: Mapping,
    /// Sections that have a name of their own: the clusters of kmonitor.
    sections: Vec<String>,
}

impl ConfigFile {
    /// The reference file for `kproxy`, `ktransfer`, `kmonitor`, `module` or `credentials`.
    pub(crate) fn of(name: &str) -> ConfigFile {
        let reference = match name {
            "kproxy" => include_str!("../../../conf/kproxy.yaml"),
            "ktransfer" => include_str!("../../../conf/ktransfer.yaml"),
            "kmonitor" => include_str!("../../../conf/kmonitor.yaml"),
            "module" => include_str!("../../../conf/modules/test_module_1.yaml"),
            "credentials" => include_str!("../../../conf/kproxy.credentials.yaml"),
            _ => panic!("there is no reference file for {name:?}"),
        };
        let root = serde_yaml::from_str(reference).expect("a reference file is a YAML map");
        ConfigFile { reference, root, sections: Vec::new() }
    }

    /// Sets a key of the reference file.
    #[track_caller]
    pub(crate) fn set(self, path: &str, value: impl Serialize) -> ConfigFile {
        if let Some(unknown) = path.split('.').find(|key| !self.is_known(key)) {
            panic!("the reference file has no key {unknown:?} (of {path:?})");
        }
        self.set_unchecked(path, value)
    }

    /// Sets a key that the reference file does not have and the daemon must reject.
    #[track_caller]
    pub(crate) fn set_unknown(self, path: &str, value: impl Serialize) -> ConfigFile {
        assert!(path.split('.').any(|key| !self.is_known(key)), "the reference file has the key {path:?}");
        self.set_unchecked(path, value)
    }

    /// Removes a key that the file has.
    #[track_caller]
    pub(crate) fn remove(mut self, path: &str) -> ConfigFile {
        let (section, key) = split(path);
        let removed = self.section_mut(section).remove(key);
        assert!(removed.is_some(), "the file has no key {path:?}");
        self
    }

    /// Replaces the `examples` of the reference by copies of the first of them, one for each name.
    #[track_caller]
    pub(crate) fn replace_sections(mut self, examples: &[&str], names: &[&str]) -> ConfigFile {
        let removed: Vec<Value> =
            examples.iter().map(|example| self.root.remove(*example).expect("an example of the reference")).collect();
        for name in names {
            self.root.insert((*name).into(), removed[0].clone());
            self.sections.push((*name).to_owned());
        }
        self
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.get(path).is_some()
    }

    /// `host:port` on loopback, of a port that the file sets.
    pub(crate) fn address(&self, path: &str) -> Option<String> {
        self.get(path).map(|port| format!("127.0.0.1:{}", port.as_u64().expect("a port is a number")))
    }

    /// The file's text.
    pub(crate) fn text(&self) -> String {
        serde_yaml::to_string(&self.root).expect("a map of plain values is YAML")
    }

    fn get(&self, path: &str) -> Option<&Value> {
        let mut keys = path.split('.');
        let first = self.root.get(keys.next()?)?;
        keys.try_fold(first, |value, key| value.get(key))
    }

    fn set_unchecked(mut self, path: &str, value: impl Serialize) -> ConfigFile {
        let value = serde_yaml::to_value(value).expect("a value of a story is YAML");
        let (section, key) = split(path);
        self.section_mut(section).insert(key.into(), value);
        self
    }

    /// The map below this path; an empty one is made where the reference has the section commented out.
    fn section_mut(&mut self, path: &str) -> &mut Mapping {
        path.split('.').filter(|key| !key.is_empty()).fold(&mut self.root, |mapping, key| {
            let section = mapping.entry(key.into()).or_insert_with(|| Mapping::new().into());
            section.as_mapping_mut().expect("a section is a map")
        })
    }

    fn is_known(&self, key: &str) -> bool {
        let names_key = |line: &str| {
            let line = line.trim_start_matches([' ', '#', '-']);
            line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':'))
        };
        self.sections.iter().any(|section| section == key) || self.reference.lines().any(names_key)
    }
}

/// The path of the section, empty for the top, and the key in it.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}
