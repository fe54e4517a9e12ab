//! The types that a key of a [`Section`] can be taken as. Each method takes one key and checks its value.

use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde_yaml::Value;

use super::problems::Problems;
use super::section::Section;

impl Section {
    /// Takes an integer within `range`; without a default the key is required.
    pub fn integer(
        &mut self,
        key: &str,
        default: Option<i64>,
        range: RangeInclusive<i64>,
        problems: &mut Problems,
    ) -> i64 {
        let allowed = format!("a whole number from {} to {}", range.start(), range.end());
        let fallback = default.unwrap_or(*range.start());
        match self.take(key) {
            None if default.is_none() => self.missing(key, &allowed, problems),
            None => {}
            Some(value) => match value.as_i64().filter(|number| range.contains(number)) {
                Some(number) => return number,
                None => self.wrong(key, &value, &allowed, problems),
            },
        }
        fallback
    }

    /// Takes an integer within `range`; `None` if the key is absent.
    pub fn optional_integer(&mut self, key: &str, range: RangeInclusive<i64>, problems: &mut Problems) -> Option<i64> {
        self.has(key).then(|| self.integer(key, None, range, problems))
    }

    /// Takes a count from 1 to `max`; without a default the key is required.
    pub fn count(&mut self, key: &str, default: Option<usize>, max: usize, problems: &mut Problems) -> NonZeroUsize {
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        let default = default.and_then(|default| i64::try_from(default).ok());
        let number = self.integer(key, default, 1..=max, problems);
        usize::try_from(number).ok().and_then(NonZeroUsize::new).unwrap_or(NonZeroUsize::MIN)
    }

    /// Takes a port from 0 to 65535. With 0, which tests use, the system chooses a free port and the daemon logs it.
    pub fn port(&mut self, key: &str, default: Option<u16>, problems: &mut Problems) -> u16 {
        let number = self.integer(key, default.map(i64::from), 0..=i64::from(u16::MAX), problems);
        u16::try_from(number).unwrap_or_default()
    }

    /// Takes a port; `None` if the key is absent.
    pub fn optional_port(&mut self, key: &str, problems: &mut Problems) -> Option<u16> {
        if !self.has(key) {
            // Takes a key whose value is null, so that `finish` does not report it as unknown.
            self.take(key);
            return None;
        }
        Some(self.port(key, None, problems))
    }

    /// Takes a duration in milliseconds, within `range`; without a default the key is required.
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

    /// Takes a timeout of an HTTP server in milliseconds, at most an hour. 0, which is no timeout in the original, is
    /// an hour.
    pub fn timeout(&mut self, key: &str, default_ms: u64, problems: &mut Problems) -> Duration {
        const HOUR_MS: u64 = 3_600_000;
        let timeout = self.millis(key, Some(default_ms), 0..=HOUR_MS, problems);
        if timeout.is_zero() { Duration::from_millis(HOUR_MS) } else { timeout }
    }

    /// Takes a duration of at most `max` milliseconds; `None` if it is 0 or the key is absent.
    pub fn optional_millis(&mut self, key: &str, max: u64, problems: &mut Problems) -> Option<Duration> {
        let duration = self.millis(key, Some(0), 0..=max, problems);
        (!duration.is_zero()).then_some(duration)
    }

    /// Takes a string, which may be empty; without a default the key is required. Numbers and booleans are refused.
    pub fn string(&mut self, key: &str, default: Option<&str>, problems: &mut Problems) -> String {
        match self.take(key) {
            None if default.is_none() => self.missing(key, "a string", problems),
            None => {}
            Some(Value::String(text)) => return text,
            Some(value) => self.wrong(key, &value, "a string (put it in quotes)", problems),
        }
        default.unwrap_or_default().to_owned()
    }

    /// Takes true or false.
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

    /// Takes one of the words in `choices` and returns the value paired with it; the first choice is the default.
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

    /// Takes a list of at least one string, all distinct and not empty; `None` if the key is absent or wrong.
    pub fn strings(&mut self, key: &str, required: bool, problems: &mut Problems) -> Option<Vec<String>> {
        let allowed = "a list of distinct, non-empty strings, at least one";
        let Some(value) = self.take(key) else {
            if required {
                self.missing(key, allowed, problems);
            }
            return None;
        };
        let strings: Option<Vec<String>> = value.as_sequence().and_then(|items| {
            items.iter().map(|item| item.as_str().filter(|text| !text.trim().is_empty()).map(str::to_owned)).collect()
        });
        match strings {
            Some(strings) if !strings.is_empty() && !has_duplicates(&strings) => Some(strings),
            _ => {
                self.wrong(key, &value, allowed, problems);
                None
            }
        }
    }

    /// Takes a list of at least one `host:port`; `None` if the key is absent or wrong.
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

#[cfg(test)]
mod tests {
    use super::super::section::tests::{section, texts};
    use super::*;

    #[test]
    fn all_problems_are_collected_with_key_value_and_what_is_allowed() {
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
        assert_eq!(
            texts(&problems),
            [
                "port: is \"80\", but must be a whole number from 0 to 65535",
                "pool: is 0, but must be a whole number from 1 to 100",
                "name: is 7, but must be a string (put it in quotes)",
                "hosts: is [\"a\", \"b:1\", \"b:1\"], but must be a list of distinct, non-empty strings, at least one",
                "mode: is \"slow\", but must be one of quick, exact",
                "flag: is \"yes\", but must be true or false",
                "absent: is missing; it must be a string",
                "prot: unknown key (misspelt?)",
            ]
        );
    }

    #[test]
    fn a_host_needs_a_port_and_no_scheme() {
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
}
