//! The `kafka:` map: settings of librdkafka by its own names, for TLS, SASL, compression and the like.
//!
//! What would break a promise of ours is refused with the reason, here; everything else is judged by librdkafka, at
//! load. Invariant: the value of a secret is in no error, no log line and no `Debug`.

mod names;

#[cfg(feature = "librdkafka")]
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde_yaml::Value;

use names::ALIASES;
pub(super) use names::{is_secret, refused};

use super::Engine;
use crate::config::{Problems, Section};

/// A shorter secret would be found in any text.
#[cfg(feature = "librdkafka")]
const MIN_HIDDEN_BYTES: usize = 4;
const HIDDEN: &str = "[hidden]";

/// What a daemon does with Kafka; some settings are for one of the two only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It appends, and gives up after so long.
    Writes {
        /// `commit_timeout_ms`.
        timeout: Duration,
    },
    /// It reads messages or asks for log ends.
    Reads,
}

/// Settings that librdkafka has taken, or the few that the pure-Rust engine knows.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct KafkaSettings {
    /// In the order of the file; none twice, also not under another name.
    entries: Vec<Entry>,
}

/// One setting.
#[derive(Clone, PartialEq, Eq)]
struct Entry {
    /// As it stands in the file.
    key: String,
    /// The one name that we use for it where it has several.
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
    /// Takes the key `kafka`, a map, and checks it for an engine and a role.
    pub fn from_section(section: &mut Section, engine: Engine, role: Role, problems: &mut Problems) -> Self {
        let Some(mut map) = section.section("kafka", false, problems) else { return Self::default() };
        let before = problems.0.len();
        let mut settings = Self::default();
        for key in map.keys() {
            match Entry::read(&key, map.take(&key)) {
                Err(wrong) => map.note(&key, wrong, problems),
                Ok(entry) => match settings.entries.iter().find(|other| other.name == entry.name) {
                    Some(other) => map.note(&key, format!("is the same setting as {}", other.key), problems),
                    None => settings.entries.push(entry),
                },
            }
        }
        for entry in &settings.entries {
            if let Some(why) = refused(&entry.name, role).or_else(|| settings.is_vain(entry)) {
                map.note(&entry.key, why, problems);
            }
        }
        if problems.0.len() == before {
            for (key, wrong) in settings.judged_by(engine, role) {
                map.note(&key, wrong, problems);
            }
        }
        // What is left has a key that is not a string.
        map.finish(problems);
        settings
    }

    /// Why a setting would do nothing, although who wrote it counts on it: a connection would be in clear text, or no token
    /// would ever come.
    fn is_vain(&self, entry: &Entry) -> Option<String> {
        let protocol = self.get("security.protocol").unwrap_or("plaintext").to_ascii_lowercase();
        let mechanism = self.get("sasl.mechanisms").unwrap_or_default();
        let has_token = ["sasl.oauthbearer.method", "enable.sasl.oauthbearer.unsecure.jwt"];
        match &*entry.name {
            name if name.starts_with("sasl.") && !protocol.contains("sasl") => {
                Some("needs security.protocol: sasl_ssl or sasl_plaintext".to_owned())
            }
            name if (name.starts_with("ssl.") || name.starts_with("enable.ssl.")) && !protocol.contains("ssl") => {
                Some("needs security.protocol: ssl or sasl_ssl".to_owned())
            }
            "sasl.mechanisms"
                if mechanism == "OAUTHBEARER" && has_token.iter().all(|name| self.get(name).is_none()) =>
            {
                Some("is OAUTHBEARER, which needs sasl.oauthbearer.method: oidc to get tokens".to_owned())
            }
            name if (name.ends_with(".location") || name.ends_with(".file")) && entry.value != "probe" => {
                let cause = std::fs::File::open(&entry.value).err()?;
                Some(format!("is {:?}, which cannot be read: {cause}", entry.value))
            }
            _ => None,
        }
    }

    /// What an engine has against them: key (empty for the whole) and words.
    fn judged_by(&self, engine: Engine, role: Role) -> Vec<(String, String)> {
        match engine.resolve() {
            #[cfg(feature = "librdkafka")]
            Ok(Engine::Librdkafka) => super::librdkafka::validate(self, role),
            Ok(_) => {
                let known = |name: &str| match role {
                    Role::Writes { .. } => matches!(name, "compression.type" | "client.id"),
                    Role::Reads => name == "client.id",
                };
                let wrong = |entry: &Entry| {
                    if !known(&entry.name) {
                        let text = "needs kafka_client: librdkafka; kafka-rust has neither TLS nor SASL, and of the settings only";
                        let which = if role == Role::Reads { "client.id" } else { "client.id and compression.type" };
                        Some((entry.key.clone(), format!("{text} {which}")))
                    } else if entry.name == "compression.type" && !matches!(&*entry.value, "none" | "gzip" | "snappy") {
                        let text =
                            "but kafka-rust has only none, gzip and snappy; the others need kafka_client: librdkafka";
                        Some((entry.key.clone(), format!("is {:?}, {text}", entry.value)))
                    } else {
                        None
                    }
                };
                self.entries.iter().filter_map(wrong).collect()
            }
            // `kafka_client` itself is told to be wrong.
            Err(_) => Vec::new(),
        }
    }

    /// How brokers are spoken to, as they call it in ZooKeeper: `PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or `SASL_SSL`.
    pub fn protocol(&self) -> String {
        self.get("security.protocol").unwrap_or("plaintext").to_ascii_uppercase()
    }

    /// Name and value of each, as the engine gets them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|entry| (&*entry.name, &*entry.value))
    }

    /// The value of a setting, by the name that we use.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// The setting as it stands in the file.
    #[cfg(feature = "librdkafka")]
    pub(super) fn key_of(&self, name: &str) -> &str {
        self.entries.iter().find(|entry| entry.name == name).map_or("", |entry| &entry.key)
    }

    /// The setting that a text of librdkafka is about, as it stands in the file: the one named first, and of those that begin
    /// at the same place the longest. Empty when none is named.
    #[cfg(feature = "librdkafka")]
    pub(super) fn key_in(&self, text: &str) -> &str {
        let place = |name: &str| text.find(name).map(|at| (at, usize::MAX - name.len()));
        let place_of = |entry: &Entry| {
            let aliases = ALIASES.iter().filter(|(_, name)| *name == entry.name).map(|(alias, _)| *alias);
            aliases.chain([&*entry.name]).filter_map(place).min()
        };
        let named = self.entries.iter().filter_map(|entry| Some((place_of(entry)?, &*entry.key)));
        named.min().map_or("", |(_, key)| key)
    }

    /// A text of the engine without the secrets it may carry.
    #[cfg(feature = "librdkafka")]
    pub(super) fn hide<'text>(&self, text: &'text str) -> Cow<'text, str> {
        let mut secrets: Vec<&str> = Vec::new();
        for (name, value) in self.iter().filter(|(name, _)| is_secret(name)) {
            secrets.push(value);
            // librdkafka shows the rest of a list from where it is wrong.
            if name == "sasl.oauthbearer.config" {
                secrets.extend(value.split(' '));
            }
        }
        secrets.retain(|secret| secret.len() >= MIN_HIDDEN_BYTES);
        // One that is part of another must not leave the rest of it.
        secrets.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
        let mut text = Cow::Borrowed(text);
        for secret in secrets {
            if text.contains(secret) {
                text = Cow::Owned(text.replace(secret, HIDDEN));
            }
            // A long one is cut off at the end of the text.
            let mut cut = (MIN_HIDDEN_BYTES..secret.len()).rev().filter_map(|end| secret.get(..end));
            if let Some(kept) = cut.find_map(|beginning| text.strip_suffix(beginning)) {
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
            // A number may be written in several ways, and only one of them is the secret.
            Some(Value::Number(_) | Value::Bool(_)) if is_secret(key) => {
                return Err("must be a string: put it in quotes");
            }
            Some(Value::Number(number)) if !number.is_f64() => number.to_string(),
            Some(Value::Bool(truth)) => truth.to_string(),
            None => return Err("has no value"),
            Some(_) => {
                return Err(
                    "must be a string, a whole number, true or false; a name is written as a whole, with its dots",
                );
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

#[cfg(test)]
mod tests;
