//! The checks of a request: credential, topic, rate.

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;

use super::charge::{RateCharge, now};
use super::topic_rates::{self, TopicRateRule, TopicRates};
use crate::access::rate::{self, RateCost, RateMeter};
use crate::access::{Credential, CredentialsFile, CredentialsInForce, RefusalReason, TopicGlobs};
use crate::config::{Problems, Section};
use crate::http::Head;
use crate::kproxy::answer::Failure;
use crate::metrics::Registry;
use crate::reload::Reloads;

/// The keys of the configuration that restrict access.
#[derive(Clone, Debug)]
pub struct AccessConfig {
    allowed_topics: Option<TopicGlobs>,
    credentials: Option<CredentialsFile>,
    rate_limits: Option<Vec<TopicRateRule>>,
}

impl AccessConfig {
    /// Takes `allowed_topics`, `credentials_file` and `rate_limits`, and loads the credentials file.
    pub fn from_section(section: &mut Section, problems: &mut Problems) -> Self {
        AccessConfig {
            allowed_topics: TopicGlobs::from_section("allowed_topics", false, section, problems),
            credentials: CredentialsFile::from_section(section, problems),
            rate_limits: topic_rates::rules(section, problems),
        }
    }
}

/// Admits or refuses requests by credential, topic and rate.
pub(crate) struct AccessControl {
    allowed_topics: Option<TopicGlobs>,
    /// `None` if no `credentials_file` is configured.
    credentials: Option<CredentialsInForce>,
    topic_rates: Option<TopicRates>,
    refusals: RefusalCounters,
}

struct RefusalCounters {
    missing: IntCounter,
    malformed: IntCounter,
    unknown: IntCounter,
    by_credential: IntCounter,
    by_topic: IntCounter,
}

impl AccessControl {
    /// Returns `None` if none of the keys is configured. Registers the reload of the credentials on SIGHUP.
    pub(crate) fn new(config: AccessConfig, registry: &Registry, reloads: &Reloads) -> Option<AccessControl> {
        let unauthorized = registry.counter(
            "kproxy_unauthorized_total",
            "Requests refused with 401: missing, malformed or unknown credentials.",
            &["reason"],
        );
        let limited = registry.counter(
            "kproxy_rate_limited_total",
            "Requests refused with 429, by the limit that was exceeded: of the credential or the topic.",
            &["by"],
        );
        let stale = registry.gauge(
            "kproxy_credentials_stale",
            "1 while credentials_file cannot be reloaded and the credentials loaded before stay in force.",
            &[],
        );
        let AccessConfig { allowed_topics, credentials, rate_limits } = config;
        if allowed_topics.is_none() && credentials.is_none() && rate_limits.is_none() {
            return None;
        }
        Some(AccessControl {
            allowed_topics,
            credentials: credentials
                .map(|file| CredentialsInForce::new(file, "kproxy", stale.with_label_values::<&str>(&[]), reloads)),
            topic_rates: rate_limits.map(TopicRates::new),
            refusals: RefusalCounters {
                missing: unauthorized.with_label_values(&["missing"]),
                malformed: unauthorized.with_label_values(&["malformed"]),
                unknown: unauthorized.with_label_values(&["unknown"]),
                by_credential: limited.with_label_values(&["credential"]),
                by_topic: limited.with_label_values(&["topic"]),
            },
        })
    }

    /// Returns the credential of a request, or 401. Returns `None` if no `credentials_file` is configured.
    pub(crate) fn authenticate(&self, head: &Head) -> Result<Option<Arc<Credential>>, Failure> {
        let Some(credentials) = &self.credentials else { return Ok(None) };
        match credentials.authenticate(&head.headers) {
            Ok(credential) => Ok(Some(credential)),
            Err(refused) => {
                match refused.reason {
                    RefusalReason::Missing => self.refusals.missing.inc(),
                    RefusalReason::Malformed => self.refusals.malformed.inc(),
                    RefusalReason::Unknown => self.refusals.unknown.inc(),
                }
                Err(Failure::unauthorized(refused.message, refused.challenges))
            }
        }
    }

    /// Fails with 403 unless a client with this credential may write to this topic.
    pub(crate) fn authorize(&self, credential: Option<&Credential>, topic: &str) -> Result<(), Failure> {
        if self.allowed_topics.as_ref().is_some_and(|allowed| !allowed.contain(topic)) {
            return Err(Failure::topic_not_allowed(format!("topic {topic} is not in allowed_topics")));
        }
        match credential {
            Some(Credential { name, topics: Some(topics), .. }) if !topics.contain(topic) => {
                Err(Failure::topic_not_allowed(format!("topic {topic} is not in topics of credential {name}")))
            }
            _ => Ok(()),
        }
    }

    /// Returns the limits of a topic in `rate_limits`, as a text; `None` if it has none.
    pub(crate) fn limits_of(&self, topic: &str) -> Option<String> {
        self.topic_rates.as_ref()?.limits(topic).map(|limits| limits.to_string())
    }

    /// Charges one request and its announced bytes to both the credential and the topic. If either is over its limit,
    /// charges neither and fails with 429. At most `max_body_bytes` are charged, since no larger body is read.
    pub(crate) fn charge(
        &self,
        credential: Option<Arc<Credential>>,
        topic: &str,
        head: &Head,
        max_body_bytes: usize,
    ) -> Result<RateCharge, Failure> {
        let mut charge = RateCharge { credential, topic: None, bytes: 0, charged_at: 0 };
        if self.topic_rates.is_none() && charge.credential_meter().is_none() {
            return Ok(charge);
        }
        let now = now();
        let cost = RateCost { requests: 1, bytes: content_length(head).min(max_body_bytes as u64) };
        let topic_meter = self.topic_rates.as_ref().and_then(|rates| rates.meter(topic, now));
        let take = |meter: Option<&RateMeter>| meter.map_or(Ok(()), |meter| meter.take(cost, now));
        let credential_meter = charge.credential_meter();
        match (take(credential_meter), take(topic_meter.as_deref())) {
            (Ok(()), Ok(())) => {}
            (by_credential, by_topic) => {
                // A request that one limit refuses takes nothing from the other.
                if let (Some(meter), Ok(())) = (credential_meter, by_credential) {
                    meter.give_back(cost, 0);
                }
                if let (Some(meter), Ok(())) = (&topic_meter, by_topic) {
                    meter.give_back(cost, 0);
                }
                return Err(self.over_limit(&charge, by_credential.err(), by_topic.err(), topic));
            }
        }
        charge.topic = topic_meter;
        (charge.bytes, charge.charged_at) = (cost.bytes, now);
        Ok(charge)
    }

    /// Counts and returns the refusal by the limit with the longer wait.
    fn over_limit(
        &self,
        charge: &RateCharge,
        credential_wait: Option<Duration>,
        topic_wait: Option<Duration>,
        topic: &str,
    ) -> Failure {
        let message = match &charge.credential {
            Some(credential) if credential_wait >= topic_wait => {
                self.refusals.by_credential.inc();
                format!("credential {} is over its rate limit", credential.name)
            }
            _ => {
                self.refusals.by_topic.inc();
                format!("topic {topic} is over its rate limit")
            }
        };
        let wait = credential_wait.max(topic_wait).unwrap_or_default();
        Failure::rate_limited(message, rate::retry_after_seconds(wait))
    }
}

/// Returns the announced size of a body in bytes; 0 for a chunked body.
fn content_length(head: &Head) -> u64 {
    let digits = head.header("content-length").and_then(|value| std::str::from_utf8(value).ok());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}
