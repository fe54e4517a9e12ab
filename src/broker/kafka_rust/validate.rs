//! Checks the settings of the `kafka` map for this engine, which supports only a few.

use crate::broker::settings::SettingProblem;
use crate::broker::{KafkaSettings, Role};

/// Returns a problem for each setting of the `kafka` map that this engine does not support.
pub(in crate::broker) fn validate(settings: &KafkaSettings, role: Role) -> Vec<SettingProblem> {
    let (names, list): (&[&str], _) = match role {
        Role::Writes { .. } => (&["client.id", "compression.type"], "client.id and compression.type"),
        Role::Reads => (&["client.id"], "client.id"),
    };
    let problem = |(name, value): (&str, &str)| {
        let text = if !names.contains(&name) {
            format!(
                "needs kafka_client: native (kafka-rust has no TLS, no SASL and only the \
                 settings {list})"
            )
        } else if name == "compression.type" && !matches!(value, "none" | "gzip" | "snappy") {
            format!("is {value:?}, but kafka-rust has only none, gzip and snappy; others need kafka_client: native")
        } else {
            return None;
        };
        Some((settings.key_of(name).to_owned(), text))
    };
    settings.iter().filter_map(problem).collect()
}
