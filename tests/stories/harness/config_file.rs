//! Configuration files for the daemons: the parsed reference files of `conf/`, in which a story changes values.
//!
//! Invariant: setting a key that the reference file does not name (as a key or in a comment) panics. So a story cannot
//! set a key that no daemon reads.

use serde::Serialize;
use serde_yaml::{Mapping, Value};

/// One configuration file.
///
/// A path is a key with the names of its sections before it, separated by dots: `http_server.port`.
#[derive(Debug, Clone)]
pub(crate) struct ConfigFile {
    reference: &'static str,
    root: Mapping,
    /// Names of sections that the story chose and the reference does not name: the clusters of kmonitor.
    sections: Vec<String>,
}

impl ConfigFile {
    /// Parses the reference file for `kproxy`, `ktransfer`, `kmonitor`, `module` or `credentials`.
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

    /// Sets a key; panics if the reference file does not name it.
    #[track_caller]
    pub(crate) fn set(self, path: &str, value: impl Serialize) -> ConfigFile {
        if let Some(unknown) = path.split('.').find(|key| !self.is_known(key)) {
            panic!("the reference file has no key {unknown:?} (of {path:?})");
        }
        self.set_unchecked(path, value)
    }

    /// Sets a key that the daemon must reject; panics if the reference file names it.
    #[track_caller]
    pub(crate) fn set_unknown(self, path: &str, value: impl Serialize) -> ConfigFile {
        assert!(path.split('.').any(|key| !self.is_known(key)), "the reference file has the key {path:?}");
        self.set_unchecked(path, value)
    }

    /// Removes a key; panics if the file does not have it.
    #[track_caller]
    pub(crate) fn remove(mut self, path: &str) -> ConfigFile {
        let (section, key) = split(path);
        let removed = self.section_mut(section).remove(key);
        assert!(removed.is_some(), "the file has no key {path:?}");
        self
    }

    /// Replaces the sections `examples` of the reference by copies of the first example, one for each of `names`.
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

    /// Returns `127.0.0.1:PORT` for a key that holds a port; `None` if the file does not set the key.
    pub(crate) fn address(&self, path: &str) -> Option<String> {
        self.get(path).map(|port| format!("127.0.0.1:{}", port.as_u64().expect("a port is a number")))
    }

    /// Returns the file as YAML text.
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

    /// Returns the section at this path. Creates an empty section if the file does not have it, which is the case for a
    /// section that is commented out in the reference.
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

/// Splits a path into the path of the section (empty for the top level) and the key in the section.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}
