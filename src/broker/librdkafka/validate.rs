//! Lets librdkafka itself judge the `kafka` map, at load and without a broker.
//!
//! Each setting first, alone; then all together, with a client that is made, listened to and put away: what does not
//! go together, files that are not there, and settings of producers in a consumer are found that way.

use std::sync::Mutex;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer as _, ProducerContext};

use crate::broker::settings::is_secret;
use crate::broker::{KafkaSettings, Role};
use crate::locks::lock;

/// Where a client that is only being judged asks for a token: nobody is there.
const NOBODY: &str = "http://127.0.0.1:1/";

/// Lines of one client that are looked at; librdkafka has fewer settings than this.
const MAX_LINES: usize = 200;
/// How librdkafka begins when its own token, made of the settings alone, cannot be made.
const NO_TOKEN: &str = "Failed to acquire SASL OAUTHBEARER token";

/// What is wrong: the key as it stands in the file (empty for the whole map) and librdkafka's words, without secrets.
pub(in crate::broker) fn validate(settings: &KafkaSettings, role: Role) -> Vec<(String, String)> {
    let mut wrong = Vec::new();
    for (name, value) in settings.iter() {
        if let Err(error) = ClientConfig::new().set(name, value).create_native_config() {
            let said = words_of(error);
            let is = if is_secret(name) { String::new() } else { format!("is {value:?}: ") };
            wrong.push((settings.key_of(name).to_owned(), format!("{is}{}", settings.hide(said.trim()))));
        }
    }
    if !wrong.is_empty() {
        return wrong;
    }
    let mut together: ClientConfig = settings.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    together.set("log.thread.name", "false").set_log_level(RDKafkaLogLevel::Warning);
    let asks_for_tokens = settings.get("sasl.oauthbearer.method") == Some("oidc");
    let has_address = ["sasl.oauthbearer.token.endpoint.url", "sasl.oauthbearer.metadata.authentication.type"];
    if asks_for_tokens && has_address.iter().any(|name| settings.get(name).is_some()) {
        together.set("sasl.oauthbearer.token.endpoint.url", NOBODY);
    }
    let said = match role {
        Role::Writes { timeout } => {
            let timeout_ms = timeout.as_millis().clamp(1, i32::MAX as u128).to_string();
            together.set("message.timeout.ms", timeout_ms).set("acks", "all").set("enable.idempotence", "true");
            together.create_with_context(Listener::default()).map(|client: BaseProducer<Listener>| {
                // One event a call.
                (0..MAX_LINES).for_each(|_| client.poll(Duration::ZERO));
                client.client().context().take()
            })
        }
        Role::Reads => together.create_with_context(Listener::default()).map(|client: BaseConsumer<Listener>| {
            (0..MAX_LINES).for_each(|_| drop(client.poll(Duration::ZERO)));
            client.client().context().take()
        }),
    };
    match said {
        Err(error) => {
            let said = settings.hide(&words_of(error)).into_owned();
            wrong.push((settings.key_in(&said).to_owned(), said));
        }
        // "Configuration property NAME is a producer property and will be ignored by this consumer instance"
        Ok(lines) => {
            let is_no_token = |line: &str| line.starts_with(NO_TOKEN) && !asks_for_tokens;
            let matters = |line: &&String| line.contains("will be ignored by this") || is_no_token(line);
            for line in lines.iter().filter(matters) {
                wrong.push((settings.key_in(line).to_owned(), settings.hide(line).into_owned()));
            }
            // Some is told by an error and by a line.
            wrong.dedup();
        }
    }
    wrong
}

fn words_of(error: KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, said, _, _) | KafkaError::ClientCreation(said) => said,
        error => error.to_string(),
    }
}

/// Keeps what a client says.
#[derive(Default)]
struct Listener(Mutex<Vec<String>>);

impl Listener {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.0))
    }
}

impl ClientContext for Listener {
    fn log(&self, _: RDKafkaLogLevel, _: &str, line: &str) {
        lock(&self.0).push(line.to_owned());
    }

    fn error(&self, _: KafkaError, reason: &str) {
        lock(&self.0).push(reason.to_owned());
    }
}

impl ConsumerContext for Listener {}

impl ProducerContext for Listener {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}
