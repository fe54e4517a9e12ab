//! The settings of the `kafka` map that this engine takes, by librdkafka's names, and the reason for which it refuses
//! each other setting of librdkafka.
//!
//! Settings that would break a guarantee of the daemons are refused before, for every engine
//! ([`REFUSED`](crate::broker::settings)). Invariants: each name is in one table only, [`TAKEN`] or [`DECLINED`];
//! every setting in [`TAKEN`] has an effect; `docs/kafka.md` lists the same names (unit tests check this).

use super::values::{MECHANISMS, Values, millis, one_of};
use super::{config, declined};
use crate::broker::settings::{SettingProblem, is_secret};
use crate::broker::{KafkaSettings, Role};

/// The daemons that a setting applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Daemons {
    All,
    /// kproxy, which produces.
    Producers,
    /// ktransfer and kmonitor, which consume.
    Consumers,
}

/// Settings that OAUTHBEARER needs besides `sasl.oauthbearer.method: oidc`, which the check for every engine requires.
const OIDC_NEEDS: &[&str] =
    &["sasl.oauthbearer.token.endpoint.url", "sasl.oauthbearer.client.id", "sasl.oauthbearer.client.secret"];

/// Pairs of settings of which one would have no effect.
const EXCLUSIVE: [[&str; 2]; 4] = [
    ["ssl.ca.location", "ssl.ca.pem"],
    ["ssl.certificate.location", "ssl.certificate.pem"],
    ["ssl.key.location", "ssl.key.pem"],
    ["https.ca.location", "https.ca.pem"],
];

/// The settings taken, in the order of `docs/kafka.md`. The ranges are those of librdkafka.
#[rustfmt::skip]
const TAKEN: &[(&str, Daemons, Values)] = &[
    ("security.protocol", Daemons::All, Values::OneOf(&["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"])),
    ("ssl.ca.location", Daemons::All, Values::Text),
    ("ssl.ca.pem", Daemons::All, Values::Text),
    ("ssl.certificate.location", Daemons::All, Values::Text),
    ("ssl.certificate.pem", Daemons::All, Values::Text),
    ("ssl.key.location", Daemons::All, Values::Text),
    ("ssl.key.pem", Daemons::All, Values::Text),
    ("enable.ssl.certificate.verification", Daemons::All, Values::Bool),
    ("ssl.endpoint.identification.algorithm", Daemons::All, Values::OneOf(&["https", "none"])),
    ("sasl.mechanisms", Daemons::All, Values::Mechanism),
    ("sasl.username", Daemons::All, Values::Text),
    ("sasl.password", Daemons::All, Values::Text),
    ("sasl.oauthbearer.method", Daemons::All, Values::OneOf(&["oidc"])),
    ("sasl.oauthbearer.token.endpoint.url", Daemons::All, Values::Url),
    ("sasl.oauthbearer.client.id", Daemons::All, Values::Text),
    ("sasl.oauthbearer.client.secret", Daemons::All, Values::Text),
    ("sasl.oauthbearer.scope", Daemons::All, Values::Text),
    ("sasl.oauthbearer.extensions", Daemons::All, Values::Pairs),
    ("sasl.oauthbearer.grant.type", Daemons::All, Values::OneOf(&["client_credentials"])),
    ("https.ca.location", Daemons::All, Values::Text),
    ("https.ca.pem", Daemons::All, Values::Text),
    ("client.id", Daemons::All, Values::Printable),
    ("client.rack", Daemons::Consumers, Values::Printable),
    ("compression.type", Daemons::Producers, Values::OneOf(&["none", "gzip", "snappy", "lz4", "zstd"])),
    ("linger.ms", Daemons::Producers, Values::Whole(0, 900_000)),
    ("request.timeout.ms", Daemons::Producers, Values::Whole(1, 900_000)),
    ("allow.auto.create.topics", Daemons::Producers, Values::Bool),
    ("broker.address.family", Daemons::All, Values::OneOf(&["any", "v4", "v6"])),
    ("socket.timeout.ms", Daemons::All, Values::Whole(10, 300_000)),
    ("socket.connection.setup.timeout.ms", Daemons::All, Values::Whole(1_000, i32::MAX as i64)),
    ("socket.keepalive.enable", Daemons::All, Values::Always(true)),
    ("socket.nagle.disable", Daemons::All, Values::Always(true)),
    ("connections.max.idle.ms", Daemons::All, Values::Whole(0, i32::MAX as i64)),
    ("reconnect.backoff.ms", Daemons::All, Values::Whole(0, 3_600_000)),
    ("reconnect.backoff.max.ms", Daemons::All, Values::Whole(0, 3_600_000)),
    ("retry.backoff.ms", Daemons::Producers, Values::Whole(1, 300_000)),
    ("retry.backoff.max.ms", Daemons::Producers, Values::Whole(1, 300_000)),
    ("fetch.wait.max.ms", Daemons::Consumers, Values::Whole(0, 300_000)),
];

/// Returns the problems of a `kafka` map for a daemon with this role; reads the PEM files that the map names.
pub(in crate::broker) fn validate(settings: &KafkaSettings, role: Role) -> Vec<SettingProblem> {
    let alone = |(name, value): (&str, &str)| {
        let text = problem_of(name, value, role)?;
        Some((settings.key_of(name).to_owned(), text))
    };
    let problems: Vec<SettingProblem> = settings.iter().filter_map(alone).collect();
    if !problems.is_empty() {
        return problems;
    }
    let mut problems = problems_together(settings, role);
    if problems.is_empty()
        && let Err(problem) = config::check(settings)
    {
        problems.push(problem);
    }
    problems
}

/// Returns what is wrong with one setting by itself; `None` if nothing is.
fn problem_of(name: &str, value: &str, role: Role) -> Option<String> {
    let Some((_, daemons, values)) = TAKEN.iter().find(|(taken, _, _)| *taken == name) else {
        let reason = declined::reason(name);
        return Some(reason.unwrap_or("is not a setting of this client; docs/kafka.md lists its settings").to_owned());
    };
    match (daemons, role) {
        (Daemons::Consumers, Role::Writes { .. }) => {
            return Some("is a consumer setting, but kproxy only produces".to_owned());
        }
        (Daemons::Producers, Role::Reads) => {
            return Some("is a producer setting, but this daemon only consumes".to_owned());
        }
        (Daemons::All, _) | (Daemons::Consumers, Role::Reads) | (Daemons::Producers, Role::Writes { .. }) => {}
    }
    let allowed = values.mismatch(value)?;
    Some(match is_secret(name) {
        true => format!("must be {allowed}"),
        false => format!("is {value:?}, but must be {allowed}"),
    })
}

/// Returns the problems between the settings of a map, each of which is fine by itself.
fn problems_together(settings: &KafkaSettings, role: Role) -> Vec<SettingProblem> {
    let has = |name: &str| settings.get(name).is_some();
    let mechanism = settings.get("sasl.mechanisms").unwrap_or_default();
    let mut problems = Vec::new();
    let mut note = |name: &str, text: String| problems.push((settings.key_of(name).to_owned(), text));
    if mechanism.is_empty() && settings.protocol().starts_with("SASL") {
        let text = format!("needs sasl.mechanism, which must be {}", one_of(&MECHANISMS));
        note("security.protocol", text);
    }
    let needed = match mechanism {
        "" => &[][..],
        "OAUTHBEARER" => OIDC_NEEDS,
        _ => &["sasl.username", "sasl.password"],
    };
    let missing: Vec<&str> = needed.iter().copied().filter(|name| !has(name)).collect();
    if !missing.is_empty() {
        note("sasl.mechanisms", format!("is {mechanism:?}, which needs {}", missing.join(", ")));
    }
    for (name, _) in settings.iter() {
        let is_for_tokens = name.starts_with("sasl.oauthbearer.") || name.starts_with("https.");
        if is_for_tokens && mechanism != "OAUTHBEARER" {
            note(name, "needs sasl.mechanism: OAUTHBEARER".to_owned());
        } else if ["sasl.username", "sasl.password"].contains(&name) && mechanism == "OAUTHBEARER" {
            note(name, "has no effect with sasl.mechanism: OAUTHBEARER".to_owned());
        }
    }
    for [name, other] in EXCLUSIVE.iter().filter(|pair| pair.iter().all(|name| has(name))) {
        note(name, format!("cannot be set together with {other}"));
    }
    for (min, max) in
        [("reconnect.backoff.ms", "reconnect.backoff.max.ms"), ("retry.backoff.ms", "retry.backoff.max.ms")]
    {
        if let (Some(low), Some(high)) = (millis(settings, min), millis(settings, max))
            && low > high
        {
            note(min, format!("is {:?}, but must be at most {max}, which is {}", low.as_millis(), high.as_millis()));
        }
    }
    if let (Some(linger), Role::Writes { timeout }) = (millis(settings, "linger.ms"), role)
        && linger >= timeout
    {
        let (linger, timeout) = (linger.as_millis(), timeout.as_millis());
        note("linger.ms", format!("is {linger}, but must be less than commit_timeout_ms, which is {timeout}"));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::settings::refused;

    #[test]
    fn each_name_is_in_one_table() {
        let taken = TAKEN.iter().map(|(name, _, _)| *name);
        let declined = declined::DECLINED.iter().map(|(name, _)| *name);
        let mut names: Vec<&str> = taken.clone().chain(declined.clone()).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for (name, daemons, _) in TAKEN {
            assert_eq!(declined::reason(name), None, "{name}");
            let by_roles =
                [Role::Writes { timeout: std::time::Duration::ZERO }, Role::Reads].map(|role| refused(name, role));
            let is_possible = match daemons {
                Daemons::All => by_roles.iter().all(Option::is_none),
                Daemons::Producers => by_roles[0].is_none(),
                Daemons::Consumers => by_roles[1].is_none(),
            };
            assert!(is_possible, "{name}: {by_roles:?}");
        }
    }

    /// A line of the table in docs/kafka.md begins with the names of its settings.
    #[test]
    fn the_document_lists_the_settings_taken() {
        let document = include_str!("../../../docs/kafka.md");
        let lines = document.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
        let documented: Vec<&str> = lines.flat_map(|cell| cell.trim_end_matches('`').split("`, `")).collect();
        let taken: Vec<&str> = TAKEN.iter().map(|(name, _, _)| *name).collect();
        assert_eq!(documented, taken);
    }
}
