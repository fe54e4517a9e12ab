//! A YAML file into final types.
//!
//! A daemon's config module takes a [`Section`] apart key by key, each with its final type, range and default, and
//! collects every [`Problem`] instead of stopping at the first. A key nobody asked for is a problem as well.
//!
//! `${NAME}` in a string value is replaced by the environment variable NAME, `$${` stands for `${`.

mod environment;
#[cfg(test)]
pub(crate) mod reference;

use std::fmt;
use std::fs;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_yaml::{Mapping, Value};

use environment::expand;

/// Larger files are refused: a configuration is small, and YAML aliases can be made to explode.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// One thing that is wrong in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// The key with its parents, as in `protocol.uri`; empty for the file itself.
    pub key: String,
    /// What is wrong and what is allowed.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match self.key.as_str() {
            "" => write!(formatter, "{file}: {}", self.text),
            key => write!(formatter, "{file}: {key}: {}", self.text),
        }
    }
}

/// All problems of a configuration, in the order they were met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            writeln!(formatter, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl Problems {
    /// `value`, or all the problems when there are any.
    pub fn or<T>(self, value: T) -> Result<T, Problems> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }
}

/// A YAML map being taken apart. A key that is missing or wrong is noted in the problems and yields its default, or a
/// harmless stand-in: the value built from it is never used, since the load ends with the problems.
pub struct Section {
    file: PathBuf,
    prefix: String,
    map: Mapping,
    /// Set when the file or the map itself was wrong: every further complaint about it would only be noise.
    mute: bool,
    /// Set for a file of secrets: no problem shows a value, or a key that is not ours.
    is_secret: bool,
}

impl Section {
    /// Reads a file: one YAML map, environment variables replaced.
    pub fn load(file: &Path, problems: &mut Problems) -> Section {
        Self::load_as(file, false, problems)
    }

    /// As [`Section::load`], for a file of secrets: problems tell the place and what is allowed, never what is there.
    pub fn load_secrets(file: &Path, problems: &mut Problems) -> Section {
        Self::load_as(file, true, problems)
    }

    fn load_as(file: &Path, is_secret: bool, problems: &mut Problems) -> Section {
        let mut section =
            Section { file: file.to_owned(), prefix: String::new(), map: Mapping::new(), mute: false, is_secret };
        match read(file, is_secret) {
            Ok(map) => section.map = map,
            Err(text) => {
                section.note("", text, problems);
                section.mute = true;
            }
        }
        section
    }

    /// The file it came from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Whether the key is there and not null.
    pub fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|value| !value.is_null())
    }

    /// Notes a problem with `key`.
    pub fn note(&self, key: &str, text: impl Into<String>, problems: &mut Problems) {
        if !self.mute {
            let key = if key.is_empty() {
                self.prefix.trim_end_matches('.').to_owned()
            } else {
                format!("{}{key}", self.prefix)
            };
            problems.0.push(Problem { file: self.file.clone(), key, text: text.into() });
        }
    }

    /// The raw value, environment variables replaced; null counts as absent.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|value| !value.is_null())
    }

    fn missing(&self, key: &str, what: &str, problems: &mut Problems) {
        self.note(key, format!("is missing; it must be {what}"), problems);
    }

    fn wrong(&self, key: &str, value: &Value, what: &str, problems: &mut Problems) {
        let text =
            if self.is_secret { format!("must be {what}") } else { format!("is {}, but must be {what}", shown(value)) };
        self.note(key, text, problems);
    }

    /// An integer within `range`; no default means the key is required.
    pub fn integer(
        &mut self,
        key: &str,
        default: Option<i64>,
        range: RangeInclusive<i64>,
        problems: &mut Problems,
    ) -> i64 {
        let what = format!("a whole number from {} to {}", range.start(), range.end());
        let stand_in = default.unwrap_or(*range.start());
        match self.take(key) {
            None if default.is_none() => self.missing(key, &what, problems),
            None => {}
            Some(value) => match value.as_i64().filter(|number| range.contains(number)) {
                Some(number) => return number,
                None => self.wrong(key, &value, &what, problems),
            },
        }
        stand_in
    }

    /// An integer within `range`; `None` when the key is absent.
    pub fn optional_integer(&mut self, key: &str, range: RangeInclusive<i64>, problems: &mut Problems) -> Option<i64> {
        self.has(key).then(|| self.integer(key, None, range, problems))
    }

    /// A count of at least one and at most `most`.
    pub fn count(&mut self, key: &str, default: Option<usize>, most: usize, problems: &mut Problems) -> NonZeroUsize {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let default = default.and_then(|default| i64::try_from(default).ok());
        let number = self.integer(key, default, 1..=most, problems);
        usize::try_from(number).ok().and_then(NonZeroUsize::new).unwrap_or(NonZeroUsize::MIN)
    }

    /// A port, 1 to 65535 (0, which lets the system choose, is allowed too for tests and is shown in the log).
    pub fn port(&mut self, key: &str, default: Option<u16>, problems: &mut Problems) -> u16 {
        let number = self.integer(key, default.map(i64::from), 0..=i64::from(u16::MAX), problems);
        u16::try_from(number).unwrap_or_default()
    }

    /// A port that may be absent.
    pub fn optional_port(&mut self, key: &str, problems: &mut Problems) -> Option<u16> {
        if !self.has(key) {
            self.take(key);
            return None;
        }
        Some(self.port(key, None, problems))
    }

    /// A duration in milliseconds, within `range` milliseconds.
    pub fn millis(
        &mut self,
        key: &str,
        default: Option<u64>,
        range: RangeInclusive<u64>,
        problems: &mut Problems,
    ) -> Duration {
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let range = signed(*range.start())..=signed(*range.end());
        let number = self.integer(key, default.map(signed), range, problems);
        Duration::from_millis(u64::try_from(number).unwrap_or_default())
    }

    /// A duration in milliseconds, where 0 or absence means none.
    pub fn optional_millis(&mut self, key: &str, most: u64, problems: &mut Problems) -> Option<Duration> {
        let duration = self.millis(key, Some(0), 0..=most, problems);
        (!duration.is_zero()).then_some(duration)
    }

    /// A string; no default means the key is required. May be empty. Numbers and booleans are not strings.
    pub fn string(&mut self, key: &str, default: Option<&str>, problems: &mut Problems) -> String {
        match self.take(key) {
            None if default.is_none() => self.missing(key, "a string", problems),
            None => {}
            Some(Value::String(text)) => return text,
            Some(value) => self.wrong(key, &value, "a string (put it in quotes)", problems),
        }
        default.unwrap_or_default().to_owned()
    }

    /// true or false.
    pub fn boolean(&mut self, key: &str, default: bool, problems: &mut Problems) -> bool {
        match self.take(key) {
            None => default,
            Some(Value::Bool(truth)) => truth,
            Some(value) => {
                self.wrong(key, &value, "true or false", problems);
                default
            }
        }
    }

    /// One of the words given, each with its meaning; the first is the default.
    pub fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)], problems: &mut Problems) -> T {
        let default = choices[0].1;
        let Some(value) = self.take(key) else { return default };
        let found = choices.iter().find(|(word, _)| value.as_str() == Some(word));
        found.map_or_else(
            || {
                let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
                self.wrong(key, &value, &format!("one of {}", words.join(", ")), problems);
                default
            },
            |(_, meaning)| *meaning,
        )
    }

    /// A list of non-empty strings; `None` when the key is absent. An empty list, an empty string and a repeated entry are refused.
    pub fn strings(&mut self, key: &str, required: bool, problems: &mut Problems) -> Option<Vec<String>> {
        let what = "a list of at least one non-empty string, none twice";
        let Some(value) = self.take(key) else {
            if required {
                self.missing(key, what, problems);
            }
            return None;
        };
        let strings: Option<Vec<String>> = value.as_sequence().and_then(|items| {
            items.iter().map(|item| item.as_str().filter(|text| !text.trim().is_empty()).map(str::to_owned)).collect()
        });
        match strings {
            Some(strings) if !strings.is_empty() && !has_duplicates(&strings) => Some(strings),
            _ => {
                self.wrong(key, &value, what, problems);
                None
            }
        }
    }

    /// A list of `host:port`, at least one.
    pub fn hosts(&mut self, key: &str, required: bool, problems: &mut Problems) -> Option<Vec<String>> {
        let hosts = self.strings(key, required, problems)?;
        for host in &hosts {
            if !is_host_and_port(host) {
                self.note(
                    key,
                    format!("has {host:?}, but each entry must be host:port, as in 10.1.1.1:2181"),
                    problems,
                );
            }
        }
        Some(hosts)
    }

    /// A map inside this one; `None` when absent.
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

    /// A list of maps, at least one; `None` when the key is absent. In problems they are counted from 1, as in `rules[1]`.
    pub fn sections(&mut self, key: &str, required: bool, problems: &mut Problems) -> Option<Vec<Section>> {
        let what = "a list of at least one map";
        let Some(value) = self.take(key) else {
            if required {
                self.missing(key, what, problems);
            }
            return None;
        };
        let Value::Sequence(items) = value else {
            self.wrong(key, &value, what, problems);
            return None;
        };
        if items.is_empty() {
            self.note(key, format!("is empty, but must be {what}"), problems);
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
        Section { file: self.file.clone(), prefix, map, mute: self.mute, is_secret: self.is_secret }
    }

    /// Whether the value of `key` is a map that has `inner`.
    pub fn is_map_with(&self, key: &str, inner: &str) -> bool {
        self.map.get(key).and_then(Value::as_mapping).is_some_and(|map| map.contains_key(inner))
    }

    /// The keys that are strings and that nobody took so far, in the order of the file.
    pub fn keys(&self) -> Vec<String> {
        self.map.keys().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// Keys that nobody took so far.
    pub fn remaining(&self) -> impl Iterator<Item = String> + '_ {
        self.map.keys().map(|key| key.as_str().map_or_else(|| shown(key), str::to_owned))
    }

    /// Ends the reading: every key that was not asked for is a problem.
    pub fn finish(self, problems: &mut Problems) {
        if self.is_secret {
            // What stands where a key belongs may be a secret whose key was forgotten.
            if !self.map.is_empty() {
                let text = format!("has {} keys that are not known here (misspelt?)", self.map.len());
                self.note("", text, problems);
            }
            return;
        }
        for key in self.remaining() {
            self.note(&key, "is not a known key here (misspelt?)", problems);
        }
    }
}

fn has_duplicates(strings: &[String]) -> bool {
    strings.iter().enumerate().any(|(index, text)| strings[..index].contains(text))
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let bracketed = host.starts_with('[') && host.ends_with(']');
        let plain = !host.is_empty() && !host.contains([':', '/', ' ', '@']);
        (bracketed || plain) && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

/// A value as it is shown in a problem: short, on one line.
fn shown(value: &Value) -> String {
    let text = serde_yaml::to_string(value).unwrap_or_default();
    let line = text.trim().replace('\n', " ");
    if line.chars().count() <= 60 { line } else { line.chars().take(57).chain("...".chars()).collect() }
}

fn read(file: &Path, is_secret: bool) -> Result<Mapping, String> {
    let size = fs::metadata(file).map_err(|cause| format!("cannot be read: {cause}"))?.len();
    if MAX_FILE_BYTES < size {
        return Err(format!("has {size} bytes, but a configuration has at most {MAX_FILE_BYTES}"));
    }
    let text = fs::read_to_string(file).map_err(|cause| format!("cannot be read: {cause}"))?;
    // Into a Value first: unlike maps and structs it refuses a key that occurs twice.
    let mut value: Value = serde_yaml::from_str(&text).map_err(|cause| match cause.location() {
        _ if !is_secret => format!("is not YAML: {cause}"),
        Some(place) => format!("is not YAML, or has a key twice: line {}, column {}", place.line(), place.column()),
        None => "is not YAML, or has a key twice".to_owned(),
    })?;
    expand(&mut value).map_err(|(key, wrong)| match is_secret {
        true => wrong.without_value(),
        false => format!("{key}: {}", wrong.without_value()),
    })?;
    match value {
        Value::Mapping(map) => Ok(map),
        Value::Null => Err("is empty, but must be a map of keys".to_owned()),
        _ => Err("must be a map of keys".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn section(text: &str) -> (Section, Problems, tempfile::NamedTempFile) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let mut problems = Problems::default();
        let section = Section::load(file.path(), &mut problems);
        (section, problems, file)
    }

    #[test]
    fn every_problem_is_noted_at_once_with_key_value_and_what_is_allowed() {
        let (mut section, mut problems, _file) =
            section("port: '80'\npool: 0\nname: 7\nhosts: [a, 'b:1', 'b:1']\nmode: slow\nprot: 80\nflag: yes\n");
        section.port("port", None, &mut problems);
        section.count("pool", None, 100, &mut problems);
        section.string("name", None, &mut problems);
        section.hosts("hosts", true, &mut problems);
        section.choice("mode", &[("quick", 1), ("exact", 2)], &mut problems);
        section.boolean("flag", false, &mut problems);
        section.string("absent", None, &mut problems);
        section.finish(&mut problems);
        let texts: Vec<_> = problems.0.iter().map(|problem| format!("{}: {}", problem.key, problem.text)).collect();
        assert_eq!(
            texts,
            [
                "port: is '80', but must be a whole number from 0 to 65535",
                "pool: is 0, but must be a whole number from 1 to 100",
                "name: is 7, but must be a string (put it in quotes)",
                "hosts: is - a - b:1 - b:1, but must be a list of at least one non-empty string, none twice",
                "mode: is slow, but must be one of quick, exact",
                "flag: is yes, but must be true or false",
                "absent: is missing; it must be a string",
                "prot: is not a known key here (misspelt?)",
            ]
        );
    }

    #[test]
    fn a_file_that_is_no_map_is_one_problem() {
        for (text, start) in
            [("", "is empty"), ("- a\n", "must be a map"), ("a: [\n", "is not YAML"), ("a: 1\na: 2\n", "is not YAML")]
        {
            let (mut section, mut problems, _file) = section(text);
            section.string("absent", None, &mut problems);
            section.finish(&mut problems);
            assert_eq!(problems.0.len(), 1, "{text:?}: {problems}");
            assert!(problems.0[0].text.starts_with(start), "{text:?}: {problems}");
        }
    }

    #[test]
    fn hosts_are_checked_one_by_one() {
        for (host, good) in [
            ("a:1", true),
            ("[::1]:9092", true),
            ("a", false),
            ("a:0", false),
            ("a:70000", false),
            (":1", false),
            ("http://a:1", false),
        ] {
            assert_eq!(is_host_and_port(host), good, "{host}");
        }
    }

    #[test]
    fn a_list_of_maps_is_taken_apart_one_by_one() {
        let (mut section, mut problems, _file) =
            section("rules:\n - n: 1\n - 7\n - n: x\n   m: 2\nnone: []\nmap: {}\n");
        for mut rule in section.sections("rules", true, &mut problems).unwrap() {
            rule.count("n", None, 9, &mut problems);
            rule.finish(&mut problems);
        }
        for key in ["none", "map", "absent"] {
            assert!(section.sections(key, true, &mut problems).is_none());
        }
        let texts: Vec<_> = problems.0.iter().map(|problem| format!("{}: {}", problem.key, problem.text)).collect();
        assert_eq!(
            texts,
            [
                "rules[2]: is 7, but must be a map",
                "rules[3].n: is x, but must be a whole number from 1 to 9",
                "rules[3].m: is not a known key here (misspelt?)",
                "none: is empty, but must be a list of at least one map",
                "map: is {}, but must be a list of at least one map",
                "absent: is missing; it must be a list of at least one map",
            ]
        );
    }

    #[test]
    fn problems_of_a_file_of_secrets_show_nothing_of_it() {
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
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            let mut problems = Problems::default();
            let mut section = Section::load_secrets(file.path(), &mut problems);
            section.string("secret", Some(""), &mut problems);
            section.sections("rules", false, &mut problems);
            section.finish(&mut problems);
            let told = problems.to_string();
            assert!(!told.is_empty() && !told.contains("SECRET"), "{text:?}: {told}");
        }
    }
}
