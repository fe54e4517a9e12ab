//! Who may write what, and how much of it.
//!
//! | key | what it decides | refusal |
//! |---|---|---|
//! | `credentials_file` | who is asking: [`Access::identify`] | 401 `unauthorized` |
//! | `allowed_topics`, `topics` of a credential | what they may write to: [`Access::allow`] | 403 `topic_not_allowed` |
//! | `rate_limits`, rates of a credential | how much of it: [`Access::charge`] | 429 `rate_limited` |
//!
//! All of it is decided from the head of a request, before a byte of its body is read; what a body turns out to be
//! is charged afterwards by [`Permit::settle`]. Reading order: `topics`, `rate` and `authorization` (pure),
//! `secret`, `credentials`, `topic_rates`. Where nothing of it is configured there is no [`Access`].
//!
//! Invariant: no secret, and nothing a client showed as one, is kept, logged or answered. TLS client certificates
//! would be one more thing to identify a client by.

mod authorization;
mod credentials;
mod query;
mod rate;
mod secret;
#[cfg(test)]
mod tests;
mod topic_rates;
mod topics;

use std::sync::{Arc, OnceLock, RwLock};
use std::time::{Duration, Instant};

use log::{info, warn};
use prometheus::{IntCounter, IntGauge};

use super::answer::Failure;
use crate::config::{Problems, Section};
use crate::http::Head;
use crate::metrics::Registry;
use crate::reload::Reloads;

use crate::locks::{read, write};
use authorization::Unusable;
pub(super) use credentials::Credential;
use credentials::{Book, CredentialsFile};
pub(super) use query::without_secrets;
use rate::{Cost, Meter};
use topic_rates::{Rule, TopicRates};
use topics::TopicGlobs;

/// What is configured.
#[derive(Clone, Debug)]
pub struct AccessConfig {
    allowed_topics: Option<TopicGlobs>,
    credentials: Option<CredentialsFile>,
    rate_limits: Option<Vec<Rule>>,
}

impl AccessConfig {
    /// Takes `allowed_topics`, `credentials_file` and `rate_limits`, and reads the file.
    pub fn from_section(section: &mut Section, problems: &mut Problems) -> Self {
        AccessConfig {
            allowed_topics: TopicGlobs::from_section("allowed_topics", false, section, problems),
            credentials: CredentialsFile::from_section(section, problems),
            rate_limits: topic_rates::rules(section, problems),
        }
    }
}

/// Decides about requests.
pub(super) struct Access {
    allowed_topics: Option<TopicGlobs>,
    credentials: Option<Arc<RwLock<Arc<Book>>>>,
    topic_rates: Option<TopicRates>,
    refusals: Refusals,
}

/// How often, and why.
struct Refusals {
    missing: IntCounter,
    malformed: IntCounter,
    unknown: IntCounter,
    by_credential: IntCounter,
    by_topic: IntCounter,
}

impl Access {
    /// `None` where nothing is configured. From now on SIGHUP reads the credentials anew.
    pub(super) fn new(config: AccessConfig, registry: &Registry, reloads: &Reloads) -> Option<Access> {
        let unauthorized = registry.counter(
            "kproxy_unauthorized_total",
            "Requests without credentials, or with some that are not known.",
            &["reason"],
        );
        let limited = registry.counter("kproxy_rate_limited_total", "Requests over a rate limit, by whose.", &["by"]);
        let stale = registry.gauge(
            "kproxy_credentials_stale",
            "1 while credentials_file cannot be read anew and the credentials read before it are in force.",
            &[],
        );
        let AccessConfig { allowed_topics, credentials, rate_limits } = config;
        if allowed_topics.is_none() && credentials.is_none() && rate_limits.is_none() {
            return None;
        }
        Some(Access {
            allowed_topics,
            credentials: credentials.map(|file| watch(file, stale.with_label_values::<&str>(&[]), reloads)),
            topic_rates: rate_limits.map(TopicRates::new),
            refusals: Refusals {
                missing: unauthorized.with_label_values(&["missing"]),
                malformed: unauthorized.with_label_values(&["malformed"]),
                unknown: unauthorized.with_label_values(&["unknown"]),
                by_credential: limited.with_label_values(&["credential"]),
                by_topic: limited.with_label_values(&["topic"]),
            },
        })
    }

    /// Who is asking; `None` where nobody needs to say.
    pub(super) fn identify(&self, head: &Head) -> Result<Option<Arc<Credential>>, Failure> {
        let Some(credentials) = &self.credentials else { return Ok(None) };
        let book = Arc::clone(&read(credentials));
        let (counter, why) = match authorization::read(&head.headers) {
            Ok(shown) => match book.find(&shown) {
                Some(credential) => return Ok(Some(Arc::clone(credential))),
                // Of a user that is known, too.
                None => (&self.refusals.unknown, "these credentials are not known"),
            },
            Err(Unusable::Missing) => (&self.refusals.missing, "credentials are needed: the header Authorization"),
            Err(Unusable::Repeated) => (&self.refusals.malformed, "the header Authorization is there more than once"),
            Err(Unusable::OtherScheme) => {
                (&self.refusals.malformed, "Authorization must be of the scheme Bearer or Basic")
            }
            Err(Unusable::Malformed) => (&self.refusals.malformed, "the header Authorization is malformed"),
        };
        counter.inc();
        let challenges = book.challenges.join(", ");
        Err(Failure::new(401, "unauthorized", why, false).with_header("WWW-Authenticate", challenges))
    }

    /// Whether they may write to this topic.
    pub(super) fn allow(&self, who: Option<&Credential>, topic: &str) -> Result<(), Failure> {
        let refused = |message: String| Err(Failure::new(403, "topic_not_allowed", message, false));
        if self.allowed_topics.as_ref().is_some_and(|allowed| !allowed.contain(topic)) {
            return refused(format!("topic {topic} is not among allowed_topics"));
        }
        match who {
            Some(Credential { name, topics: Some(topics), .. }) if !topics.contain(topic) => {
                refused(format!("topic {topic} is not among those of credential {name}"))
            }
            _ => Ok(()),
        }
    }

    /// Charges one request and the bytes that are announced, of which at most `most` will be read: to who is asking and to
    /// the topic, or to neither.
    pub(super) fn charge(
        &self,
        who: Option<Arc<Credential>>,
        topic: &str,
        head: &Head,
        most: usize,
    ) -> Result<Permit, Failure> {
        let mut permit = Permit { who, topic: None, bytes: 0 };
        let limits_who = permit.who.as_ref().is_some_and(|who| who.meter.is_some());
        if self.topic_rates.is_none() && !limits_who {
            return Ok(permit);
        }
        let now = now();
        let cost = Cost { requests: 1, bytes: content_length(head).min(most as u64) };
        let topic_meter = self.topic_rates.as_ref().and_then(|rates| rates.meter(topic, now));
        let ask = |meter: Option<&Meter>| meter.map_or(Ok(()), |meter| meter.take(cost, now));
        let of_who = permit.meter_of_who();
        match (ask(of_who), ask(topic_meter.as_deref())) {
            (Ok(()), Ok(())) => {}
            (of_who_outcome, of_topic) => {
                // Whoever is refused by one has not used up anything of the other.
                if let (Some(meter), Ok(())) = (of_who, of_who_outcome) {
                    meter.give_back(cost);
                }
                if let (Some(meter), Ok(())) = (&topic_meter, of_topic) {
                    meter.give_back(cost);
                }
                return Err(self.over_limit(&permit, of_who_outcome.err(), of_topic.err(), topic));
            }
        }
        permit.topic = topic_meter;
        permit.bytes = cost.bytes;
        Ok(permit)
    }

    fn over_limit(
        &self,
        permit: &Permit,
        of_who: Option<Duration>,
        of_topic: Option<Duration>,
        topic: &str,
    ) -> Failure {
        let message = match &permit.who {
            Some(who) if of_who >= of_topic => {
                self.refusals.by_credential.inc();
                format!("credential {} is over its rate limit", who.name)
            }
            _ => {
                self.refusals.by_topic.inc();
                format!("topic {topic} is over its rate limit")
            }
        };
        let seconds = rate::retry_after_seconds(of_who.max(of_topic).unwrap_or_default());
        Failure::new(429, "rate_limited", message, true).with_header("Retry-After", seconds.to_string())
    }
}

/// An admitted request, as far as its rate is concerned. Dropped without [`Permit::settle`], since its body never came
/// or was refused, it gives back the bytes; the request stays charged.
pub(super) struct Permit {
    who: Option<Arc<Credential>>,
    topic: Option<Arc<Meter>>,
    /// Charged so far.
    bytes: u64,
}

impl Permit {
    /// The body goes to the broker: charges so many messages instead of one request, and the bytes it has. What is more
    /// than was known from the head is a debt, which the next requests wait for. Name of the credential, for the log.
    pub(super) fn settle(mut self, messages: usize, bytes: usize) -> Option<Arc<str>> {
        let charged = std::mem::take(&mut self.bytes);
        let wide = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let cost = Cost { requests: wide(messages).saturating_sub(1), bytes: wide(bytes).saturating_sub(charged) };
        if cost != Cost::default() && self.meters().next().is_some() {
            let now = now();
            self.meters().for_each(|meter| meter.take_anyway(cost, now));
        }
        self.who.as_ref().map(|who| Arc::clone(&who.name))
    }

    fn meter_of_who(&self) -> Option<&Meter> {
        self.who.as_ref().and_then(|who| who.meter.as_deref())
    }

    fn meters(&self) -> impl Iterator<Item = &Meter> {
        self.meter_of_who().into_iter().chain(self.topic.as_deref())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let cost = Cost { requests: 0, bytes: self.bytes };
            self.meters().for_each(|meter| meter.give_back(cost));
        }
    }
}

/// What a body is announced with; 0 where it comes in chunks.
fn content_length(head: &Head) -> u64 {
    let digits = head.header("content-length").and_then(|value| std::str::from_utf8(value).ok());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// Puts the credentials in force, and has SIGHUP read them anew.
fn watch(file: CredentialsFile, stale: IntGauge, reloads: &Reloads) -> Arc<RwLock<Arc<Book>>> {
    let say_if_exposed = |file: &CredentialsFile| {
        if let Some(warning) = file.exposure() {
            warn!("{warning}");
        }
    };
    say_if_exposed(&file);
    info!("credentials_file: {} credentials in {}", file.book.len(), file.path.display());
    let in_force = Arc::new(RwLock::new(Arc::clone(&file.book)));
    let place = Arc::clone(&in_force);
    reloads.add("credentials_file", move || {
        say_if_exposed(&file);
        let mut problems = Problems::default();
        let mut book = Book::load(&file.path, &mut problems);
        if !problems.0.is_empty() {
            stale.set(1);
            let texts: Vec<_> = problems.0.iter().map(ToString::to_string).collect();
            return Err(texts.join("; "));
        }
        let former = Arc::clone(&read(&place));
        book.go_on_from(&former);
        let news = format!("{} credentials, {} before", book.len(), former.len());
        *write(&place) = Arc::new(book);
        stale.set(0);
        Ok(news)
    });
    in_force
}

/// Nanoseconds since the first call, and a second, so that the first bucket is not younger than its time.
fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let since = START.get_or_init(Instant::now).elapsed() + Duration::from_secs(1);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
