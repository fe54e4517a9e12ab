//! One attempt to push one message: an HTTP request made of it, and what became of it.
//!
//! The request is a POST whose body is the message verbatim. Besides the configured headers it has
//! - `X-Kafka-Topic`, `X-Kafka-Partition`, `X-Kafka-Offset`, `X-Kafka-Attempt` (from 1), and `X-Kafka-Timestamp` (ms since
//!   1970) where the message has one;
//! - `X-Kafka-Key`: the key percent-encoded as in the uri; absent for a message without a key or with one
//!   longer than [`MAX_KEY_BYTES`];
//! - `Idempotency-Key: module/topic/partition/offset`, the same for every attempt, so that a backend can tell a repeat;
//! - `X-Kafka-Header-NAME` for each record header, its value verbatim (null is empty). One whose name or value HTTP cannot
//!   carry, and what goes beyond [`MAX_RECORD_HEADER_BYTES`], is left out.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ureq::Agent;
use ureq::http::uri::Authority;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};

use super::client::{self, Names};
use super::config::ModuleConfig;
use super::job::Job;
use super::policy::{Attempt, retry_after};
use super::template::{Template, Values, encode_into};

/// Longest key that `X-Kafka-Key` carries, in bytes before the encoding.
pub const MAX_KEY_BYTES: usize = 2048;
/// Bytes of record headers that are passed on with a message.
pub const MAX_RECORD_HEADER_BYTES: usize = 8 * 1024;
/// Longest uri that is sent; backends take much less.
const MAX_URI_BYTES: usize = 16 * 1024;
/// So much of an answer's body is read, to use the connection again; with more than that it is closed.
const MAX_ANSWER_BYTES: u64 = 64 * 1024;
/// The method of messages where no methods are configured.
const ANY_METHOD: &str = "*";
/// Headers that are ours, or belong to the framing of the request.
const RESERVED: [&str; 5] = ["content-length", "transfer-encoding", "expect", "connection", "upgrade"];

/// Says what is wrong with a backend of the configuration.
pub fn check_server(server: &str) -> Result<(), String> {
    let authority: Option<Authority> = server.parse().ok();
    let is_good = authority.is_some_and(|authority| {
        let port_is_good = match server.rsplit_once(':') {
            Some((_, port)) if !port.contains(']') => authority.port_u16().is_some_and(|port| port != 0),
            _ => true,
        };
        port_is_good && !authority.host().is_empty() && !server.contains('@')
    });
    if is_good { Ok(()) } else { Err(format!("has {server:?}, but each entry must be host:port, as in 10.1.2.1:80")) }
}

/// Says what is wrong with a header of the configuration, without showing its value.
pub fn check_header(name: &str, value: &str) -> Result<(), String> {
    let lower = name.to_ascii_lowercase();
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err(format!("has {name:?}, which is not the name of a header"));
    }
    if RESERVED.contains(&lower.as_str()) || lower == "idempotency-key" || lower.starts_with("x-kafka-") {
        return Err(format!("has {name}, which ktransfer sets itself"));
    }
    if HeaderValue::from_str(value).is_err() {
        return Err(format!("has a value for {name} with characters that a header cannot carry"));
    }
    Ok(())
}

/// Pushes the messages of one module; shared by its workers.
pub struct Pusher {
    agent: Agent,
    uri: Template,
    /// What every request has.
    headers: HeaderMap,
    /// `module/topic/`, the beginning of every idempotency key.
    identity: String,
    is_cut: AtomicBool,
}

impl Pusher {
    /// A pusher with a pool of its own. `names` resolves the backends.
    pub fn new(config: &ModuleConfig, names: Arc<Names>) -> Pusher {
        let mut headers = HeaderMap::new();
        for (name, value) in &config.protocol.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("checked when the configuration was loaded");
            headers.append(name, HeaderValue::from_str(value).expect("checked when the configuration was loaded"));
        }
        let topic = HeaderValue::from_str(&config.topic).expect("the name of a topic is checked at the load");
        headers.insert(HeaderName::from_static("x-kafka-topic"), topic);
        Pusher {
            agent: client::agent(&config.protocol, config.worker_num.get(), names),
            uri: config.protocol.uri.clone(),
            headers,
            identity: format!("{}/{}/", config.name, config.topic),
            is_cut: AtomicBool::new(false),
        }
    }

    /// The address of a message at `server`, also for the log.
    pub fn url(&self, job: &Job, server: &str) -> String {
        let mut url = String::with_capacity(128);
        url.push_str("http://");
        url.push_str(server);
        let message = &job.message;
        let values = Values {
            topic: &message.from.topic,
            key: message.key.as_deref().unwrap_or_default(),
            transid: message.offset,
            partition: message.from.partition,
            method: job.method.as_deref().unwrap_or(ANY_METHOD),
        };
        self.uri.fill_into(&mut url, &values);
        url
    }

    /// Sends the message once to `url` and waits for the answer.
    pub fn push(&self, job: &Job, url: &str, attempt: u32) -> Attempt {
        let uri = match url.parse::<Uri>() {
            Ok(uri) if url.len() <= MAX_URI_BYTES => uri,
            Ok(_) => return impossible(format!("the uri has {} bytes, but at most {MAX_URI_BYTES}", url.len())),
            Err(cause) => return impossible(format!("the uri cannot be sent: {cause}")),
        };
        let mut request = Request::new(job.message.value.as_deref().unwrap_or_default());
        *request.method_mut() = ureq::http::Method::POST;
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers_of(job, attempt);
        let mut response = match self.agent.run(request) {
            Ok(response) => response,
            Err(cause @ (ureq::Error::Http(_) | ureq::Error::BadUri(_))) => return impossible(cause.to_string()),
            Err(cause) => return Attempt::Failed { reason: cause.to_string() },
        };
        let status = response.status().as_u16();
        let retry_after = response.headers().get("retry-after").and_then(|value| retry_after(value.as_bytes()));
        // The status decides. What follows is read only so that the connection can be used again.
        let mut body = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).reader();
        drain(&mut body);
        Attempt::Answered { status, retry_after }
    }

    /// Ends all requests under way, and fails all later ones at once.
    pub fn cut(&self) {
        // First, so that no request that this ends is taken for the backend's failure.
        self.is_cut.store(true, Ordering::SeqCst);
        self.agent.clone().shutdown();
    }

    /// Whether [`cut`](Self::cut) was called: then a failure says nothing of the backend or the message.
    pub fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::SeqCst)
    }

    fn headers_of(&self, job: &Job, attempt: u32) -> HeaderMap {
        let message = &job.message;
        let mut headers = self.headers.clone();
        headers.insert(HeaderName::from_static("x-kafka-partition"), message.from.partition.into());
        headers.insert(HeaderName::from_static("x-kafka-offset"), message.offset.into());
        headers.insert(HeaderName::from_static("x-kafka-attempt"), attempt.into());
        if let Some(timestamp_ms) = message.timestamp_ms {
            headers.insert(HeaderName::from_static("x-kafka-timestamp"), timestamp_ms.into());
        }
        if let Some(key) = message.key.as_ref().filter(|key| key.len() <= MAX_KEY_BYTES) {
            let mut encoded = String::with_capacity(key.len());
            encode_into(&mut encoded, key);
            headers.insert(HeaderName::from_static("x-kafka-key"), unreserved(encoded));
        }
        let identity = format!("{}{}/{}", self.identity, message.from.partition, message.offset);
        headers.insert(HeaderName::from_static("idempotency-key"), unreserved(identity));
        let mut room = MAX_RECORD_HEADER_BYTES;
        for header in &message.headers {
            let value = header.value.as_deref().unwrap_or_default();
            let name = HeaderName::from_bytes(format!("x-kafka-header-{}", header.name).as_bytes());
            let size = header.name.len() + value.len();
            match (name, HeaderValue::from_bytes(value)) {
                (Ok(name), Ok(value)) if size <= room => {
                    room -= size;
                    headers.append(name, value);
                }
                _ => {
                    let place = &message.from;
                    log::debug!("header {:?} of {place} offset {} is not passed on", header.name, message.offset);
                }
            }
        }
        headers
    }
}

/// A header value of characters that were made or checked to fit.
fn unreserved(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("only visible ASCII")
}

fn impossible(reason: String) -> Attempt {
    Attempt::Impossible { reason }
}

/// Reads to the end or to the first error, which closes the connection.
fn drain(body: &mut impl Read) {
    let mut buffer = [0; 4096];
    loop {
        match body.read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
#[path = "push_tests.rs"]
pub(super) mod tests;
