//! A YAML map whose keys are taken one by one; [`values`](super::values) has the types a key can be taken as.

use std::path::{Path, PathBuf};

use serde_yaml::{Mapping, Value};

use super::file;
use super::problems::{Problem, Problems};

/// Number of characters after which a value in the text of a problem is cut.
const MAX_SHOWN_CHARS: usize = 60;

/// A YAML map; taking a key removes it from the map.
///
/// A key that is missing or has a wrong value is added to the problems, and taking it returns its default or some valid
/// value of its type. A configuration with such a value is never used: loading fails with the problems.
pub struct Section {
    file: PathBuf,
    prefix: String,
    map: Mapping,
    /// The file could not be read as a map: every key would be reported as missing, so no further problem is added.
    is_muted: bool,
    /// The file holds secrets: no problem shows a value, or a key that the daemon does not know.
    is_secret: bool,
}

impl Section {
    /// Reads a file: one YAML map, with the environment variables replaced.
    pub fn load(file: &Path, problems: &mut Problems) -> Section {
        Self::load_as(file, false, problems)
    }

    /// As [`Section::load`], for a file of secrets: problems name the key and what is allowed, never the value.
    pub fn load_secrets(file: &Path, problems: &mut Problems) -> Section {
        Self::load_as(file, true, problems)
    }

    fn load_as(file: &Path, is_secret: bool, problems: &mut Problems) -> Section {
        let mut section =
            Section { file: file.to_owned(), prefix: String::new(), map: Mapping::new(), is_muted: false, is_secret };
        match file::read(file, is_secret) {
            Ok(map) => section.map = map,
            Err(text) => {
                section.note("", text, problems);
                section.is_muted = true;
            }
        }
        section
    }

    /// From now on, no problem shows a value or an unknown key of this section, as of a file of secrets.
    pub fn hide_values(&mut self) {
        self.is_secret = true;
    }

    /// Returns the file that the section was read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Returns whether the section has the key, with a value other than null.
    pub fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|value| !value.is_null())
    }

    /// Adds a problem with `key`, or with the whole section if `key` is empty.
    pub fn note(&self, key: &str, text: impl Into<String>, problems: &mut Problems) {
        if !self.is_muted {
            let key = if key.is_empty() {
                self.prefix.trim_end_matches('.').to_owned()
            } else {
                format!("{}{key}", self.prefix)
            };
            problems.0.push(Problem { file: self.file.clone(), key, text: text.into() });
        }
    }

    /// Takes the raw value of a key, with environment variables replaced; null counts as absent.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|value| !value.is_null())
    }

    pub(super) fn missing(&self, key: &str, allowed: &str, problems: &mut Problems) {
        self.note(key, format!("is missing; it must be {allowed}"), problems);
    }

    pub(super) fn wrong(&self, key: &str, value: &Value, allowed: &str, problems: &mut Problems) {
        let text = if self.is_secret {
            format!("must be {allowed}")
        } else {
            format!("is {}, but must be {allowed}", shown(value))
        };
        self.note(key, text, problems);
    }

    /// Takes a map inside this map; `None` if the key is absent or its value is no map.
    pub fn section(&mut self, key: &str, required: bool, problems: &mut Problems) -> Option<Section> {
        match self.take(key) {
            None => {
                if required {
                    self.missing(key, "a map", problems);
                }
                None
            }
            Some(Value::Mapping(map)) => {
                let prefix = format!("{}{key}.", self.prefix);
                Some(self.inner(prefix, map))
            }
            Some(value) => {
                self.wrong(key, &value, "a map", problems);
                None
            }
        }
    }

    /// Takes a list of at least one map; `None` if the key is absent or wrong. Problems number the maps from 1, as in
    /// `rules[1]`.
    pub fn sections(&mut self, key: &str, required: bool, problems: &mut Problems) -> Option<Vec<Section>> {
        let allowed = "a list of at least one map";
        let Some(value) = self.take(key) else {
            if required {
                self.missing(key, allowed, problems);
            }
            return None;
        };
        let Value::Sequence(items) = value else {
            self.wrong(key, &value, allowed, problems);
            return None;
        };
        if items.is_empty() {
            self.note(key, format!("is empty, but must be {allowed}"), problems);
            return None;
        }
        let mut sections = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            let key = format!("{key}[{}]", index + 1);
            match item {
                Value::Mapping(map) => sections.push(self.inner(format!("{}{key}.", self.prefix), map)),
                other => self.wrong(&key, &other, "a map", problems),
            }
        }
        Some(sections)
    }

    fn inner(&self, prefix: String, map: Mapping) -> Section {
        Section { file: self.file.clone(), prefix, map, is_muted: self.is_muted, is_secret: self.is_secret }
    }

    /// Returns whether the value of `key` is a map that has the key `inner`.
    pub fn is_map_with(&self, key: &str, inner: &str) -> bool {
        self.map.get(key).and_then(Value::as_mapping).is_some_and(|map| map.contains_key(inner))
    }

    /// Returns the keys that are strings and not taken yet, in the order of the file.
    pub fn keys(&self) -> Vec<String> {
        self.map.keys().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// Iterates over all keys not taken yet, in the order of the file.
    pub fn remaining(&self) -> impl Iterator<Item = String> + '_ {
        self.map.keys().map(|key| key.as_str().map_or_else(|| shown(key), str::to_owned))
    }

    /// Ends the section: adds a problem for every key not taken yet.
    pub fn finish(self, problems: &mut Problems) {
        if self.is_secret {
            // An unknown key may be a secret that was written without its key, so no key is shown.
            if !self.map.is_empty() {
                self.note("", format!("has {} unknown keys (misspelt?)", self.map.len()), problems);
            }
            return;
        }
        for key in self.remaining() {
            self.note(&key, "unknown key (misspelt?)", problems);
        }
    }
}

/// Formats a value for the text of a problem: on one line, strings quoted, cut after [`MAX_SHOWN_CHARS`].
fn shown(value: &Value) -> String {
    let line = in_flow_style(value);
    if line.chars().count() <= MAX_SHOWN_CHARS {
        return line;
    }
    line.chars().take(MAX_SHOWN_CHARS - 3).chain("...".chars()).collect()
}

fn in_flow_style(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Sequence(items) => format!("[{}]", items.iter().map(in_flow_style).collect::<Vec<_>>().join(", ")),
        Value::Mapping(map) => {
            let entry = |(key, value)| format!("{}: {}", in_flow_style(key), in_flow_style(value));
            format!("{{{}}}", map.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        other => serde_yaml::to_string(other).unwrap_or_default().trim().replace('\n', " "),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    /// Loads a section from a file with this text; returns the problems of loading, too.
    pub(in crate::config) fn section(text: &str) -> (Section, Problems, tempfile::NamedTempFile) {
        let file = file_with(text);
        let mut problems = Problems::default();
        let section = Section::load(file.path(), &mut problems);
        (section, problems, file)
    }

    fn file_with(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    /// Returns `KEY: TEXT` of each problem.
    pub(in crate::config) fn texts(problems: &Problems) -> Vec<String> {
        problems.0.iter().map(|problem| format!("{}: {}", problem.key, problem.text)).collect()
    }

    #[test]
    fn a_file_that_is_no_map_is_one_problem() {
        for (text, start) in [
            ("", "is empty"),
            ("- a\n", "must be a map"),
            ("a: [\n", "is not valid YAML"),
            ("a: 1\na: 2\n", "is not valid YAML"),
        ] {
            let (mut section, mut problems, _file) = section(text);
            section.string("absent", None, &mut problems);
            section.finish(&mut problems);
            assert_eq!(problems.0.len(), 1, "{text:?}: {problems}");
            assert!(problems.0[0].text.starts_with(start), "{text:?}: {problems}");
        }
    }

    #[test]
    fn each_map_of_a_list_is_a_section() {
        let (mut section, mut problems, _file) =
            section("rules:\n - n: 1\n - 7\n - n: x\n   m: 2\nnone: []\nmap: {}\n");
        for mut rule in section.sections("rules", true, &mut problems).unwrap() {
            rule.count("n", None, 9, &mut problems);
            rule.finish(&mut problems);
        }
        for key in ["none", "map", "absent"] {
            assert!(section.sections(key, true, &mut problems).is_none());
        }
        assert_eq!(
            texts(&problems),
            [
                "rules[2]: is 7, but must be a map",
                "rules[3].n: is \"x\", but must be a whole number from 1 to 9",
                "rules[3].m: unknown key (misspelt?)",
                "none: is empty, but must be a list of at least one map",
                "map: is {}, but must be a list of at least one map",
                "absent: is missing; it must be a list of at least one map",
            ]
        );
    }

    #[test]
    fn a_problem_shows_a_value_on_one_line_and_cuts_a_long_one() {
        for (text, line) in [
            ("80", "80"),
            ("'80'", "\"80\""),
            ("no", "\"no\""),
            (".inf", ".inf"),
            ("[1, [a, b]]", "[1, [\"a\", \"b\"]]"),
            ("{a: {b: true}, 1: null}", "{\"a\": {\"b\": true}, 1: null}"),
            ("\"a\\nb\"", "\"a\\nb\""),
        ] {
            assert_eq!(shown(&serde_yaml::from_str(text).unwrap()), line);
        }
        let long = shown(&Value::String("é".repeat(100)));
        assert_eq!((long.chars().count(), long.ends_with("é...")), (MAX_SHOWN_CHARS, true));
    }

    #[test]
    fn problems_of_a_file_of_secrets_quote_nothing_from_the_file() {
        for text in [
            "secret: {a: SECRET}\n",
            "secret: [SECRET, SECRET]\n",
            "SECRET:\n",
            "SECRET: 1\nSECRET: 2\n",
            "a: &SECRET [\n",
            "a: *SECRET\n",
            "a: !SECRET\n - 'SECRET\n",
            "a: SECRET${\n",
            "a: SECRET${X}\n",
            "a: ${SECRET SECRET}\n",
            "SECRET\n",
            "- SECRET\n",
            "rules: [SECRET]\n",
            "rules: SECRET\n",
        ] {
            let file = file_with(text);
            let mut problems = Problems::default();
            let mut section = Section::load_secrets(file.path(), &mut problems);
            section.string("secret", Some(""), &mut problems);
            section.sections("rules", false, &mut problems);
            section.finish(&mut problems);
            let shown = problems.to_string();
            assert!(!shown.is_empty() && !shown.contains("SECRET"), "{text:?}: {shown}");
        }
    }
}
