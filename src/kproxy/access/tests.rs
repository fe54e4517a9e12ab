//! The parts put together, as commits ask them.

use super::*;
use std::io::Write;
use tempfile::NamedTempFile;

/// A section of its own, and the problems of reading it.
pub(super) fn section(text: &str) -> (Section, Problems) {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let mut problems = Problems::default();
    let section = Section::load(file.path(), &mut problems);
    (section, problems)
}

impl Access {
    /// With these lines of kproxy.yaml, and these credentials if there are any.
    pub(in crate::kproxy) fn for_tests(lines: &str, credentials: &str, registry: &Registry) -> Access {
        let file = NamedTempFile::new().unwrap();
        Self::reloading(lines, credentials, &file, registry, &Reloads::default())
    }

    fn reloading(
        lines: &str,
        credentials: &str,
        file: &NamedTempFile,
        registry: &Registry,
        reloads: &Reloads,
    ) -> Access {
        std::fs::write(file.path(), credentials).unwrap();
        let key = if credentials.is_empty() { "" } else { "credentials_file: " };
        let path = if credentials.is_empty() { String::new() } else { file.path().display().to_string() };
        let (mut section, mut problems) = section(&format!("{key}{path}\n{lines}"));
        let config = AccessConfig::from_section(&mut section, &mut problems);
        section.finish(&mut problems);
        assert!(problems.0.is_empty(), "{problems}");
        Access::new(config, registry, reloads).unwrap()
    }
}

struct Fixture {
    access: Access,
    registry: Registry,
    reloads: Reloads,
    file: NamedTempFile,
}

/// Announces so many bytes.
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
        let access = Access::reloading(lines, credentials, &file, &registry, &reloads);
        Fixture { access, registry, reloads, file }
    }

    /// What commits do: name of who is asking, or status and code of the refusal.
    fn ask(&self, authorization: Option<&str>, topic: &str) -> Result<Option<Arc<str>>, Failure> {
        let mut head = announcing(Some(10));
        if let Some(value) = authorization {
            head.headers.push("authorization", value.as_bytes());
        }
        let who = self.access.identify(&head)?;
        self.access.allow(who.as_deref(), topic)?;
        self.access.charge(who, topic, &head, 1_000_000).map(|permit| permit.settle(1, 10))
    }

    fn has_metric(&self, line: &str) -> bool {
        String::from_utf8(self.registry.render()).unwrap().lines().any(|known| known == line)
    }
}

fn code<T>(outcome: &Result<T, Failure>) -> Option<(u16, &'static str)> {
    outcome.as_ref().err().map(|failure| (failure.status, failure.code))
}

#[test]
fn nothing_configured_is_no_access_at_all() {
    let (mut section, mut problems) = section("{}");
    let config = AccessConfig::from_section(&mut section, &mut problems);
    assert!(Access::new(config, &Registry::new(), &Reloads::default()).is_none());
}

#[test]
fn who_may_not_is_told_so_and_never_why_exactly() {
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
        assert_eq!(code(&fixture.ask(authorization, topic)), outcome, "{authorization:?} {topic}");
    }
    // A user that is known with another password (u:q), and one that is not (v:p).
    let refusals = ["Basic dTpx", "Basic djpw"].map(|value| fixture.ask(Some(value), "a1").unwrap_err());
    assert_eq!(refusals[0], refusals[1]);
    let header = refusals[0].header.clone().unwrap();
    assert_eq!(header.0, "WWW-Authenticate");
    assert_eq!(header.1, "Bearer realm=\"kproxy\", Basic realm=\"kproxy\", charset=\"UTF-8\"");
    for line in ["missing\"} 2", "unknown\"} 3", "malformed\"} 2"] {
        assert!(fixture.has_metric(&format!("kproxy_unauthorized_total{{reason=\"{line}")), "{line}");
    }
    assert_eq!(fixture.ask(two, "a1").unwrap().as_deref(), Some("two"));
}

#[test]
fn without_credentials_topics_and_rates_hold_for_everybody() {
    let fixture = Fixture::new(
        "allowed_topics: [a, b]\nrate_limits: [{topics: [a], requests_per_second: 1, burst_seconds: 2}]\n",
        "",
    );
    let asked = ["a", "a", "a", "b", "b", "b", "c"].map(|topic| code(&fixture.ask(None, topic)).map(|(code, _)| code));
    assert_eq!(asked, [None, None, Some(429), None, None, None, Some(403)]);
    assert!(fixture.has_metric("kproxy_rate_limited_total{by=\"topic\"} 1"));
}

#[test]
fn who_is_refused_by_one_limit_has_used_up_nothing_of_the_other() {
    let fixture = Fixture::new(
        "rate_limits: [{topics: [slow], requests_per_second: 1}, {topics: [bytes], bytes_per_second: 10, burst_seconds: 60}]\n",
        "credentials: [{name: n, token: t, requests_per_second: 1, burst_seconds: 3}]\n",
    );
    let ask = |topic: &str| fixture.ask(Some("Bearer t"), topic);
    assert!(ask("slow").is_ok());
    let refused = ask("slow").unwrap_err();
    assert_eq!((refused.status, refused.retriable), (429, true));
    assert_eq!(refused.header, Some(("Retry-After", "1".to_owned())));
    assert!(ask("bytes").is_ok() && ask("bytes").is_ok(), "the refusal by the topic cost nothing");
    let refused = ask("other").unwrap_err();
    assert!(refused.message.contains("credential n "), "{}", refused.message);
    assert!(fixture.has_metric("kproxy_rate_limited_total{by=\"credential\"} 1"));
    assert!(fixture.has_metric("kproxy_rate_limited_total{by=\"topic\"} 1"));
}

#[test]
fn what_never_came_is_given_back_and_what_came_unannounced_is_a_debt() {
    let fixture = Fixture::new(
        "rate_limits: [{topics: ['*'], requests_per_second: 1, bytes_per_second: 1, burst_seconds: 100}]\n",
        "",
    );
    let charge = |topic: &str, length| fixture.access.charge(None, topic, &announcing(length), 1_000_000);
    for _ in 0..3 {
        drop(charge("gone", Some(90)).unwrap());
    }
    charge("gone", Some(90)).unwrap().settle(1, 90);
    assert!(charge("gone", Some(90)).is_err());

    charge("chunked", None).unwrap().settle(1, 250);
    let refused = charge("chunked", None).err().unwrap();
    let seconds: u64 = refused.header.unwrap().1.parse().unwrap();
    assert!((140..=150).contains(&seconds), "{seconds}");

    // A batch of a thousand passes once, and is paid for afterwards.
    charge("batch", Some(1)).unwrap().settle(1000, 1);
    assert!(charge("batch", Some(1)).is_err());
    // More than the bucket can ever hold passes when it is full.
    assert!(charge("large", Some(1000)).is_ok());
}

#[test]
fn a_file_read_anew_is_in_force_at_once_and_a_broken_one_is_not() {
    let fixture =
        Fixture::new("", "credentials:\n - {name: a, token: a, requests_per_second: 1}\n - {name: b, token: b}\n");
    let ask = |token: &str| code(&fixture.ask(Some(&format!("Bearer {token}")), "t")).map(|(status, _)| status);
    assert_eq!([ask("a"), ask("b"), ask("c")], [None, None, Some(401)]);

    let write = |text: &str| std::fs::write(fixture.file.path(), text).unwrap();
    write("credentials:\n - {name: b, token: SECRET, tokn: x}\n");
    fixture.reloads.run();
    assert_eq!([ask("b"), ask("c")], [None, Some(401)]);
    assert!(fixture.has_metric("kproxy_credentials_stale 1"));

    write("credentials:\n - {name: c, token: c}\n - {name: a, token: a2, requests_per_second: 1}\n");
    fixture.reloads.run();
    assert_eq!([ask("a"), ask("b"), ask("c")], [Some(401), Some(401), None]);
    assert_eq!(ask("a2"), Some(429), "another token of the same name goes on with what was left");
    assert!(fixture.has_metric("kproxy_credentials_stale 0"));
}
