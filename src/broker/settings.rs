//! The `kafka:` map: settings of librdkafka by its own names, for TLS, SASL, compression and the like.
//!
//! A setting that would break a guarantee of the daemons is refused here, with the reason. The engine checks all
//! others, at load too ([`super::engines`]). Invariant: the value of a secret is in no error, no log line and no
//! `Debug`.

mod names;

#[cfg(feature = "librdkafka")]
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde_yaml::Value;

use names::ALIASES;
pub(super) use names::is_secret;
use names::{NOT_IN_FILE, REFUSED, Scope};

use crate::config::{Problems, Section};

/// A shorter secret occurs in any text by chance, so it is not replaced in error texts.
#[cfg(feature = "librdkafka")]
const MIN_HIDDEN_BYTES: usize = 4;
const HIDDEN: &str = "[hidden]";

/// Whether a daemon produces or consumes; some settings are for one of the two only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It appends messages.
    Writes {
        /// Timeout of an append (`commit_timeout_ms`).
        timeout: Duration,
    },
    /// It reads messages or log end offsets.
    Reads,
}

/// A key as it stands in the file (empty for the whole map), and what is wrong with its value.
pub(super) type SettingProblem = (String, String);

/// Settings that librdkafka accepted, or the few that the `kafka_rust` engine has.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct KafkaSettings {
    /// In the order of the file. No setting occurs twice, also not by two of its names.
    entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, Eq)]
struct Entry {
    /// The name in the file.
    key: String,
    /// The same, or the one of several names that is in use here.
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

    /// Why a setting would have no effect although its author relies on it: the connection would be in clear text, or
    /// no token would ever be fetched. A file that cannot be read counts too.
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
            // "probe" is a word of librdkafka: it looks for the CA certificates of the system.
            name if (name.ends_with(".location") || name.ends_with(".file")) && entry.value != "probe" => {
                let cause = std::fs::File::open(&entry.value).err()?;
                Some(format!("is {:?}, which cannot be read: {cause}", entry.value))
            }
            _ => None,
        }
    }

    /// The security protocol, as brokers write it in ZooKeeper: `PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or `SASL_SSL`.
    pub fn protocol(&self) -> String {
        self.get("security.protocol").unwrap_or("plaintext").to_ascii_uppercase()
    }

    /// Name and value of each setting, for the engine.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|entry| (&*entry.name, &*entry.value))
    }

    /// The value of a setting, by the name in use here.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// The name of a setting in the file, by the name in use here.
    pub(super) fn key_of(&self, name: &str) -> &str {
        self.entries.iter().find(|entry| entry.name == name).map_or("", |entry| &entry.key)
    }

    /// The setting, by its name in the file, that a text of librdkafka is about: the first that it names, and of names
    /// that begin at the same place the longest. Empty when it names none.
    #[cfg(feature = "librdkafka")]
    pub(super) fn key_in(&self, text: &str) -> &str {
        // The minimum is the first place, and there the longest name.
        let position = |name: &str| text.find(name).map(|at| (at, usize::MAX - name.len()));
        let position_of = |entry: &Entry| {
            let aliases = ALIASES.iter().filter(|(_, name)| *name == entry.name).map(|(alias, _)| *alias);
            aliases.chain([&*entry.name]).filter_map(position).min()
        };
        let named = self.entries.iter().filter_map(|entry| Some((position_of(entry)?, &*entry.key)));
        named.min().map_or("", |(_, key)| key)
    }

    /// Replaces the secrets in a text of the engine.
    #[cfg(feature = "librdkafka")]
    pub(super) fn hide<'text>(&self, text: &'text str) -> Cow<'text, str> {
        let mut secrets: Vec<&str> = Vec::new();
        for (name, value) in self.iter().filter(|(name, _)| is_secret(name)) {
            secrets.push(value);
            // An error of librdkafka quotes the rest of this list from the entry that is wrong.
            if name == "sasl.oauthbearer.config" {
                secrets.extend(value.split(' '));
            }
        }
        secrets.retain(|secret| secret.len() >= MIN_HIDDEN_BYTES);
        // The longest first: a secret that is part of another must not leave the rest of that one in the text.
        secrets.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
        let mut text = Cow::Borrowed(text);
        for secret in secrets {
            if text.contains(secret) {
                text = Cow::Owned(text.replace(secret, HIDDEN));
            }
            // librdkafka cuts long texts off, so the text may end with the beginning of a secret.
            let mut beginnings = (MIN_HIDDEN_BYTES..secret.len()).rev().filter_map(|end| secret.get(..end));
            if let Some(kept) = beginnings.find_map(|beginning| text.strip_suffix(beginning)) {
                text = Cow::Owned(format!("{kept}{HIDDEN}"));
            }
        }
        text
    }
}

impl Entry {
    fn read(key: &str, value: Option<Value>) -> Result<Self, &'static str> {
        let value = match value {
            Some(Value::String(text)) => text,
            // YAML reads 0x10 and 16 as the same number, so the secret itself would be lost.
            Some(Value::Number(_) | Value::Bool(_)) if is_secret(key) => {
                return Err("must be a string: put it in quotes");
            }
            Some(Value::Number(number)) if !number.is_f64() => number.to_string(),
            Some(Value::Bool(truth)) => truth.to_string(),
            None => return Err("has no value"),
            Some(_) => {
                return Err("must be a string, a whole number, true or false; write a name as one key, with its dots");
            }
        };
        if value.is_empty() {
            return Err("is empty");
        }
        if key.contains('\0') || value.contains('\0') {
            return Err("holds a zero byte");
        }
        let name = ALIASES.iter().find(|(alias, _)| *alias == key).map_or(key, |(_, name)| name);
        Ok(Entry { key: key.to_owned(), name: name.to_owned(), value })
    }
}

/// Why the file of a daemon with this role must not have a setting, if it is one of [`REFUSED`].
pub(super) fn refused(name: &str, role: Role) -> Option<String> {
    if name.ends_with("_cb") {
        return Some(format!("may not be set: {NOT_IN_FILE}"));
    }
    let (_, scope, reason) = REFUSED.iter().find(|(refused, _, _)| *refused == name)?;
    Some(match (scope, role) {
        (Scope::FixedInConsumer, Role::Writes { .. }) => return None,
        (Scope::Consumer, Role::Writes { .. }) => "is for reading, but kproxy only writes".to_owned(),
        (Scope::Producer, Role::Reads) => "is for writing, but this daemon only reads".to_owned(),
        (Scope::Any | Scope::FixedInConsumer | Scope::Producer | Scope::Consumer, _) => {
            format!("may not be set: {reason}")
        }
    })
}

#[cfg(test)]
mod tests;
