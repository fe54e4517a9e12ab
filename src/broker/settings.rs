//! The `kafka:` map: settings by the names of librdkafka, for TLS, SASL, compression and the like.
//!
//! This module refuses each setting that would break a guarantee of the daemons, with the reason. The engine then
//! checks all other settings ([`super::engines`]), also when the configuration is loaded. Invariant: the value of a
//! secret is in no error, no log line and no `Debug` output.

mod names;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde_yaml::Value;

use names::ALIASES;
pub(super) use names::is_secret;
use names::{NOT_IN_FILE, REFUSED, Scope};

use crate::config::{Problems, Section};
use crate::regular_file::{self, ReadError};

const HIDDEN: &str = "[hidden]";

/// Whether a daemon produces or consumes; some settings apply to only one role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The daemon appends messages.
    Writes {
        /// Timeout of an append (`commit_timeout_ms`).
        timeout: Duration,
    },
    /// The daemon reads messages or log end offsets.
    Reads,
}

/// A key as written in the file (empty for the whole map), and what is wrong with its value.
pub(super) type SettingProblem = (String, String);

/// The settings of a `kafka` map that the engine accepted; the `kafka_rust` engine accepts only a few.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct KafkaSettings {
    /// In the order of the file. No setting occurs twice, not even under two of its names.
    entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, Eq)]
struct Entry {
    /// The name in the file.
    key: String,
    /// The canonical name ([`ALIASES`]); equal to `key` for a setting with one name.
    name: String,
    value: String,
}

impl fmt::Debug for KafkaSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown =
            |entry: &Entry| (entry.name.clone(), if is_secret(&entry.name) { HIDDEN } else { &entry.value }.to_owned());
        formatter.debug_map().entries(self.entries.iter().map(shown)).finish()
    }
}

impl KafkaSettings {
    /// Takes all settings out of the map `kafka`. A setting that is refused for `role`, or has no effect, is a problem.
    pub(super) fn from_map(map: &mut Section, role: Role, problems: &mut Problems) -> Self {
        let mut settings = Self::default();
        for key in map.keys() {
            match Entry::read(&key, map.take(&key)) {
                Err(text) => map.note(&key, text, problems),
                Ok(entry) => match settings.entries.iter().find(|other| other.name == entry.name) {
                    Some(other) => map.note(&key, format!("is the same setting as {}", other.key), problems),
                    None => settings.entries.push(entry),
                },
            }
        }
        for entry in &settings.entries {
            if let Some(text) = refused(&entry.name, role).or_else(|| settings.has_no_effect(entry)) {
                map.note(&entry.key, text, problems);
            }
        }
        settings
    }

    /// Returns a problem if a security setting would have no effect: without the security protocol that uses it the
    /// connection would be in clear text, and without a token source no token would ever be fetched. A setting whose
    /// file cannot be read is a problem too. `None` if there is no problem.
    fn has_no_effect(&self, entry: &Entry) -> Option<String> {
        let protocol = self.get("security.protocol").unwrap_or("plaintext").to_ascii_lowercase();
        let mechanism = self.get("sasl.mechanisms").unwrap_or_default();
        let token_sources = ["sasl.oauthbearer.method", "enable.sasl.oauthbearer.unsecure.jwt"];
        match &*entry.name {
            name if name.starts_with("sasl.") && !protocol.contains("sasl") => {
                Some("needs security.protocol: sasl_ssl or sasl_plaintext".to_owned())
            }
            name if (name.starts_with("ssl.") || name.starts_with("enable.ssl.")) && !protocol.contains("ssl") => {
                Some("needs security.protocol: ssl or sasl_ssl".to_owned())
            }
            "sasl.mechanisms"
                if mechanism == "OAUTHBEARER" && token_sources.iter().all(|name| self.get(name).is_none()) =>
            {
                Some("is OAUTHBEARER, which needs sasl.oauthbearer.method: oidc to get tokens".to_owned())
            }
            // "probe" is no path: the engine then searches for the CA certificates of the system.
            name if (name.ends_with(".location") || name.ends_with(".file")) && entry.value != "probe" => {
                match regular_file::open(Path::new(&entry.value)) {
                    // The engine that reads the file says what it needs instead.
                    Ok(_) | Err(ReadError::Folder) => None,
                    Err(cause) => Some(format!("is {:?}, which {cause}", entry.value)),
                }
            }
            _ => None,
        }
    }

    /// Returns the security protocol as brokers write it in ZooKeeper: `PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or
    /// `SASL_SSL`.
    pub fn protocol(&self) -> String {
        self.get("security.protocol").unwrap_or("plaintext").to_ascii_uppercase()
    }

    /// Returns the same settings for a producer whose lookups create no topic.
    pub fn without_topic_creation(&self) -> Self {
        let (name, value) = ("allow.auto.create.topics".to_owned(), "false".to_owned());
        let mut entries = self.entries.clone();
        entries.retain(|entry| entry.name != name);
        entries.push(Entry { key: name.clone(), name, value });
        KafkaSettings { entries }
    }

    /// Iterates over the canonical name and the value of each setting, for the engine.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|entry| (&*entry.name, &*entry.value))
    }

    /// Returns the value of the setting with this canonical name.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// Returns the name in the file of the setting with this canonical name; empty if the setting is not set.
    pub(super) fn key_of(&self, name: &str) -> &str {
        self.entries.iter().find(|entry| entry.name == name).map_or("", |entry| &entry.key)
    }
}

impl Entry {
    fn read(key: &str, value: Option<Value>) -> Result<Self, &'static str> {
        let value = match value {
            Some(Value::String(text)) => text,
            // YAML reads 0x10 and 16 as the same number, so the characters of the secret would be lost.
            Some(Value::Number(_) | Value::Bool(_)) if is_secret(key) => {
                return Err("must be a string: put it in quotes");
            }
            Some(Value::Number(number)) if !number.is_f64() => number.to_string(),
            Some(Value::Bool(truth)) => truth.to_string(),
            None => return Err("has no value"),
            Some(_) => {
                return Err("must be a string, a whole number, true or false; write a dotted name as one key");
            }
        };
        if value.is_empty() {
            return Err("is empty");
        }
        if key.contains('\0') || value.contains('\0') {
            return Err("contains a zero byte");
        }
        let name = ALIASES.iter().find(|(alias, _)| *alias == key).map_or(key, |(_, name)| name);
        Ok(Entry { key: key.to_owned(), name: name.to_owned(), value })
    }
}

/// Returns why a daemon with this role refuses a setting ([`REFUSED`]); `None` if it does not refuse the setting.
pub(super) fn refused(name: &str, role: Role) -> Option<String> {
    if name.ends_with("_cb") {
        return Some(format!("may not be set: {NOT_IN_FILE}"));
    }
    let (_, scope, reason) = REFUSED.iter().find(|(refused, _, _)| *refused == name)?;
    Some(match (scope, role) {
        (Scope::FixedInConsumer, Role::Writes { .. }) => return None,
        (Scope::Consumer, Role::Writes { .. }) => "is a consumer setting, but kproxy only produces".to_owned(),
        (Scope::Producer, Role::Reads) => "is a producer setting, but this daemon only consumes".to_owned(),
        (Scope::Any | Scope::FixedInConsumer | Scope::Producer | Scope::Consumer, _) => {
            format!("may not be set: {reason}")
        }
    })
}

#[cfg(test)]
mod tests;
