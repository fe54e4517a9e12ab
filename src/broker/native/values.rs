//! The values of settings: which are allowed, and how they are parsed.

use std::time::Duration;

use crate::broker::KafkaSettings;

/// The values that a setting can have.
#[derive(Clone, Copy, Debug)]
pub(super) enum Values {
    /// Any text that is not empty; the files that it names are read by `config.rs`.
    Text,
    /// Any text without control characters: it becomes part of a request.
    Printable,
    /// One of these words, in upper or lower case.
    OneOf(&'static [&'static str]),
    /// One of these SASL mechanisms; GSSAPI has a text of its own.
    Mechanism,
    /// `true` or `false`, or their short forms in librdkafka.
    Bool,
    /// Only this: it is what the client always does.
    Always(bool),
    /// A whole number in this range.
    Whole(i64, i64),
    /// A URL that begins with `https://` or `http://`.
    Url,
    /// `name=value` pairs, separated by commas.
    Pairs,
}

/// The SASL mechanisms that this engine has.
pub(super) const MECHANISMS: [&str; 4] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"];

impl Values {
    /// Returns the values allowed, in words, if `value` is none of them.
    pub(super) fn mismatch(self, value: &str) -> Option<String> {
        let (is_allowed, allowed) = match self {
            Values::Text => (true, String::new()),
            Values::Printable => (!value.chars().any(char::is_control), "without control characters".to_owned()),
            Values::OneOf(words) => (words.iter().any(|word| word.eq_ignore_ascii_case(value)), one_of(words)),
            Values::Mechanism if value == "GSSAPI" => {
                (false, format!("{}: this client has no GSSAPI (Kerberos)", one_of(&MECHANISMS)))
            }
            Values::Mechanism => (MECHANISMS.contains(&value), one_of(&MECHANISMS)),
            Values::Bool => (parse_bool(value).is_some(), "true or false".to_owned()),
            Values::Always(truth) => {
                (parse_bool(value) == Some(truth), format!("{truth}, which this client always does"))
            }
            Values::Whole(min, max) => {
                let is_in_range = value.parse().is_ok_and(|number: i64| (min..=max).contains(&number));
                (is_in_range, format!("a whole number from {min} to {max}"))
            }
            Values::Url => {
                let rest = ["https://", "http://"].iter().find_map(|scheme| value.strip_prefix(scheme));
                (rest.is_some_and(|rest| !rest.is_empty()), "a URL with https:// or http://".to_owned())
            }
            Values::Pairs => (parse_pairs(value).is_some(), "name=value, or several separated by commas".to_owned()),
        };
        (!is_allowed).then_some(allowed)
    }
}

/// Returns the value of a setting in milliseconds; `None` if it is not set.
pub(super) fn millis(settings: &KafkaSettings, name: &str) -> Option<Duration> {
    settings.get(name)?.parse().ok().map(Duration::from_millis)
}

/// Returns the value of a setting that is `true` or `false`; `None` if it is not set.
pub(super) fn boolean(settings: &KafkaSettings, name: &str) -> Option<bool> {
    parse_bool(settings.get(name)?)
}

/// Returns the words of `name=value` pairs that are separated by commas; `None` if a pair is malformed.
pub(super) fn parse_pairs(text: &str) -> Option<Vec<(String, String)>> {
    let pair = |pair: &str| {
        let (name, value) = pair.trim().split_once('=')?;
        (!name.is_empty() && !value.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    };
    text.split(',').map(pair).collect()
}

/// librdkafka takes these words for true and false.
fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "1" => Some(true),
        "false" | "f" | "0" => Some(false),
        _ => None,
    }
}

/// Returns `a, b or c`.
pub(super) fn one_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [word] => (*word).to_owned(),
        [rest @ .., last] => format!("{} or {last}", rest.join(", ")),
    }
}
