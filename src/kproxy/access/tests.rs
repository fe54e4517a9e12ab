//! Tests of access control as a whole: all checks of a request, in their order.

use std::sync::Arc;

use tempfile::NamedTempFile;

use super::*;
use crate::access::section;
use crate::http::Head;
use crate::kproxy::answer::Failure;
use crate::metrics::Registry;
use crate::reload::Reloads;

impl AccessControl {
    /// Access control with these lines of kproxy.yaml, and with this credentials file unless `credentials` is empty.
    pub(crate) fn for_tests(lines: &str, credentials: &str, registry: &Registry) -> AccessControl {
        let file = NamedTempFile::new().unwrap();
        Self::reloading(lines, credentials, &file, registry, &Reloads::default())
    }

    fn reloading(
        lines: &str,
        credentials: &str,
        file: &NamedTempFile,
        registry: &Registry,
        reloads: &Reloads,
    ) -> AccessControl {
        std::fs::write(file.path(), credentials).unwrap();
        let key = if credentials.is_empty() { "" } else { "credentials_file: " };
        let path = if credentials.is_empty() { String::new() } else { file.path().display().to_string() };
        let (mut section, mut problems) = section(&format!("{key}{path}\n{lines}"));
        let config = AccessConfig::from_section(&mut section, &mut problems);
        section.finish(&mut problems);
        assert!(problems.0.is_empty(), "{problems}");
        AccessControl::new(config, registry, reloads).unwrap()
    }
}

struct Fixture {
    access: AccessControl,
    registry: Registry,
    reloads: Reloads,
    file: NamedTempFile,
}

/// A head with this `Content-Length`.
fn announcing(length: Option<u64>) -> Head {
    let mut head = Head::default();
    if let Some(length) = length {
        head.headers.push("content-length", length.to_string().as_bytes());
    }
    head
}

impl Fixture {
    fn new(lines: &str, credentials: &str) -> Self {
        let (file, registry, reloads) = (NamedTempFile::new().unwrap(), Registry::new(), Reloads::default());
        let access = AccessControl::reloading(lines, credentials, &file, &registry, &reloads);
        Fixture { access, registry, reloads, file }
    }

    /// Makes all checks of a request; returns the name of its credential, or the refusal.
    fn check(&self, authorization: Option<&str>, topic: &str) -> Result<Option<Arc<str>>, Failure> {
        let mut head = announcing(Some(10));
        if let Some(value) = authorization {
            head.headers.push("authorization", value.as_bytes());
        }
        let credential = self.access.authenticate(&head)?;
        self.access.authorize(credential.as_deref(), topic)?;
        self.access.charge(credential, topic, &head, 1_000_000).map(|charge| charge.finalize(1, 10))
    }

    fn has_metric(&self, line: &str) -> bool {
        String::from_utf8(self.registry.render()).unwrap().lines().any(|known| known == line)
    }
}

fn code<T>(outcome: &Result<T, Failure>) -> Option<(u16, &'static str)> {
    outcome.as_ref().err().map(|failure| (failure.status, failure.code))
}

#[test]
fn without_configuration_there_is_no_access_control() {
    let (mut section, mut problems) = section("{}");
    let config = AccessConfig::from_section(&mut section, &mut problems);
    assert!(AccessControl::new(config, &Registry::new(), &Reloads::default()).is_none());
}

#[test]
fn a_refusal_does_not_reveal_which_users_exist() {
    let fixture = Fixture::new(
        "allowed_topics: ['a*', b]\n",
        "credentials:\n - {name: one, token: t1}\n - {name: two, user: u, password: p, topics: [a1, c]}\n",
    );
    let two = Some("Basic dTpw");
    for (authorization, topic, outcome) in [
        (Some("Bearer t1"), "a1", None),
        (Some("Bearer t1"), "b", None),
        (Some("Bearer t1"), "c", Some((403, "topic_not_allowed"))),
        (two, "a1", None),
        (two, "a2", Some((403, "topic_not_allowed"))),
        (two, "c", Some((403, "topic_not_allowed"))),
        (None, "a1", Some((401, "unauthorized"))),
        (None, "c", Some((401, "unauthorized"))),
        (Some("Bearer t2"), "a1", Some((401, "unauthorized"))),
        (Some("Bearer"), "a1", Some((401, "unauthorized"))),
        (Some("Digest t1"), "a1", Some((401, "unauthorized"))),
    ] {
        assert_eq!(code(&fixture.check(authorization, topic)), outcome, "{authorization:?} {topic}");
    }
    // A known user with a wrong password (u:q), and an unknown user (v:p).
    let refusals = ["Basic dTpx", "Basic djpw"].map(|value| fixture.check(Some(value), "a1").unwrap_err());
    assert_eq!(refusals[0], refusals[1]);
    let header = refusals[0].header.clone().unwrap();
    assert_eq!(header.0, "WWW-Authenticate");
    assert_eq!(header.1, "Bearer realm=\"kproxy\", Basic realm=\"kproxy\", charset=\"UTF-8\"");
    for line in ["missing\"} 2", "unknown\"} 3", "malformed\"} 2"] {
        assert!(fixture.has_metric(&format!("kproxy_unauthorized_total{{reason=\"{line}")), "{line}");
    }
    assert_eq!(fixture.check(two, "a1").unwrap().as_deref(), Some("two"));
}

#[test]
fn without_credentials_topics_and_rates_apply_to_all_clients() {
    let fixture = Fixture::new(
        "allowed_topics: [a, b]\nrate_limits: [{topics: [a], requests_per_second: 1, burst_seconds: 2}]\n",
        "",
    );
    let statuses =
        ["a", "a", "a", "b", "b", "b", "c"].map(|topic| code(&fixture.check(None, topic)).map(|(status, _)| status));
    assert_eq!(statuses, [None, None, Some(429), None, None, None, Some(403)]);
    assert!(fixture.has_metric("kproxy_rate_limited_total{by=\"topic\"} 1"));
}

#[test]
fn a_refusal_by_one_limit_takes_nothing_from_the_other() {
    let fixture = Fixture::new(
        "rate_limits:\n - {topics: [slow], requests_per_second: 1}\n \
         - {topics: [bytes], bytes_per_second: 10, burst_seconds: 60}\n",
        "credentials: [{name: n, token: t, requests_per_second: 1, burst_seconds: 3}]\n",
    );
    let check = |topic: &str| fixture.check(Some("Bearer t"), topic);
    assert!(check("slow").is_ok());
    let refused = check("slow").unwrap_err();
    assert_eq!((refused.status, refused.retriable), (429, true));
    assert_eq!(refused.header, Some(("Retry-After", "1".to_owned())));
    assert!(check("bytes").is_ok() && check("bytes").is_ok(), "the refusal by the topic cost nothing");
    let refused = check("other").unwrap_err();
    assert!(refused.message.contains("credential n "), "{}", refused.message);
    assert!(fixture.has_metric("kproxy_rate_limited_total{by=\"credential\"} 1"));
    assert!(fixture.has_metric("kproxy_rate_limited_total{by=\"topic\"} 1"));
}

#[test]
fn bytes_that_never_arrive_are_refunded_and_unannounced_bytes_are_a_debt() {
    let fixture = Fixture::new(
        "rate_limits: [{topics: ['*'], requests_per_second: 1, bytes_per_second: 1, burst_seconds: 100}]\n",
        "",
    );
    let charge = |topic: &str, length| fixture.access.charge(None, topic, &announcing(length), 1_000_000);
    for _ in 0..3 {
        drop(charge("gone", Some(90)).unwrap());
    }
    charge("gone", Some(90)).unwrap().finalize(1, 90);
    assert!(charge("gone", Some(90)).is_err());

    charge("chunked", None).unwrap().finalize(1, 250);
    let refused = charge("chunked", None).err().unwrap();
    let seconds: u64 = refused.header.unwrap().1.parse().unwrap();
    assert!((140..=150).contains(&seconds), "{seconds}");

    // A batch of 1000 messages passes once, and leaves a debt.
    charge("batch", Some(1)).unwrap().finalize(1000, 1);
    assert!(charge("batch", Some(1)).is_err());
    // A cost above the capacity passes when the bucket is full.
    assert!(charge("large", Some(1000)).is_ok());
}

#[test]
fn a_reloaded_file_is_in_force_at_once_and_an_invalid_one_is_not() {
    let fixture =
        Fixture::new("", "credentials:\n - {name: a, token: a, requests_per_second: 1}\n - {name: b, token: b}\n");
    let check = |token: &str| code(&fixture.check(Some(&format!("Bearer {token}")), "t")).map(|(status, _)| status);
    assert_eq!([check("a"), check("b"), check("c")], [None, None, Some(401)]);

    let write = |text: &str| std::fs::write(fixture.file.path(), text).unwrap();
    write("credentials:\n - {name: b, token: SECRET, tokn: x}\n");
    fixture.reloads.run();
    assert_eq!([check("b"), check("c")], [None, Some(401)]);
    assert!(fixture.has_metric("kproxy_credentials_stale 1"));

    write("credentials:\n - {name: c, token: c}\n - {name: a, token: a2, requests_per_second: 1}\n");
    fixture.reloads.run();
    assert_eq!([check("a"), check("b"), check("c")], [Some(401), Some(401), None]);
    assert_eq!(check("a2"), Some(429), "a new token of the same name keeps what is left of the rate");
    assert!(fixture.has_metric("kproxy_credentials_stale 0"));
}
