//! The wire format of a push: builds the request for a message, and checks the configured headers and servers.
//!
//! This module opens no socket. A request is a POST whose body is the message value verbatim. Its headers are the
//! configured ones and
//! - `X-Kafka-Topic`, `X-Kafka-Partition`, `X-Kafka-Offset`, `X-Kafka-Attempt` (from 1), and `X-Kafka-Timestamp` (ms
//!   since 1970) where the message has one;
//! - `X-Kafka-Value: null` for a tombstone, a message without a value: its body is empty, as that of an empty value;
//! - `X-Kafka-Key`: the key percent-encoded as in the uri; absent if the message has no key or the key is longer than
//!   [`MAX_KEY_BYTES`];
//! - `Idempotency-Key: module/topic/partition/offset/timestamp` (see [`IdempotencyKey`]), the same for every attempt,
//!   so that a backend recognises a message that it has received before;
//! - `webhook-id`, `webhook-timestamp` and `webhook-signature`, if the module has secrets
//!   ([`signature`](super::signature));
//! - `Content-Encoding` if the message has one record header of this name with codings of HTTP, as kproxy stores it;
//! - `X-Kafka-Claim`: the fencing token of the claim under which the message is pushed;
//! - `X-Kafka-Header-NAME` for each record header, its value verbatim (null is empty). A header is left out if HTTP
//!   cannot carry its name or value, or if it would exceed [`MAX_RECORD_HEADERS`] or [`MAX_RECORD_HEADER_BYTES`].

use ureq::http::header::CONTENT_ENCODING;
use ureq::http::uri::Authority;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};

use std::time::{SystemTime, UNIX_EPOCH};

use log::Level;

use super::signature::{SIGNATURE_HEADERS, SigningSecret, signatures, webhook_id};
use crate::broker::Message;
use crate::ktransfer::job::Job;
use crate::ktransfer::template::{PlaceholderValues, UriTemplate, encode_into};
use crate::log_limited;

/// Longest key that `X-Kafka-Key` carries, in bytes before the encoding.
const MAX_KEY_BYTES: usize = 2048;
/// Limit on the number of record headers that are sent with a message. Backends accept about a hundred fields in all.
const MAX_RECORD_HEADERS: usize = 64;
/// Limit on the bytes of all record headers that are sent with a message, as they are on the wire.
const MAX_RECORD_HEADER_BYTES: usize = 8 * 1024;
/// Limit on the record headers of a message that are examined. It bounds the time for a message, which may have
/// hundreds of thousands of headers that HTTP cannot carry.
const MAX_EXAMINED_HEADERS: usize = 256;
/// Number of the headers that ktransfer itself adds to the configured ones and those of the record, at most.
const OWN_HEADERS: usize = 14;
/// Prefix of the name of a record header.
const RECORD_HEADER_PREFIX: &str = "x-kafka-header-";
/// Longest value of a configured header.
const MAX_CONFIGURED_VALUE_BYTES: usize = 8 * 1024;
/// Longest uri that is sent. Most backends accept at most 8 KiB.
const MAX_URI_BYTES: usize = 16 * 1024;
/// The value of `{#METHOD}` if the module configures no `methods`.
const ANY_METHOD: &str = "*";
/// Headers that only the HTTP client may set, because they control the framing of the request or the connection.
const RESERVED: [&str; 5] = ["content-length", "transfer-encoding", "expect", "connection", "upgrade"];

/// Prefix of an entry of `backend_servers` with TLS.
pub(crate) const HTTPS: &str = "https://";

/// Checks an entry of `backend_servers`. The error is the text of the configuration problem.
pub(crate) fn check_server(server: &str) -> Result<(), String> {
    let text = server.strip_prefix(HTTPS).unwrap_or(server);
    let authority: Option<Authority> = text.parse().ok();
    let is_good = authority.is_some_and(|authority| {
        let port_is_good = match text.rsplit_once(':') {
            // A colon inside brackets belongs to an IPv6 address without a port.
            Some((_, port)) if !port.contains(']') => authority.port_u16().is_some_and(|port| port != 0),
            _ => true,
        };
        port_is_good && !authority.host().is_empty() && !text.contains('@')
    });
    if !is_good {
        let forms = "each entry must be host:port or https://host:port, as in 10.1.2.1:80";
        return Err(format!("has {server:?}, but {forms}"));
    }
    if server.starts_with(HTTPS) && cfg!(not(feature = "tls")) {
        return Err(format!("has {server:?}, but this build has no TLS (cargo feature tls)"));
    }
    Ok(())
}

/// Checks an entry of `protocol.headers`. The error is the text of the configuration problem and never shows the value.
pub(crate) fn check_header(name: &str, value: &str) -> Result<(), String> {
    let lower = name.to_ascii_lowercase();
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err(format!("has {name:?}, which is not the name of a header"));
    }
    let is_reserved = RESERVED.contains(&lower.as_str()) || lower == "idempotency-key";
    if is_reserved || lower.starts_with("x-kafka-") {
        return Err(format!("has {name}, which ktransfer sets itself"));
    }
    if value.len() > MAX_CONFIGURED_VALUE_BYTES {
        return Err(format!("has a value for {name} of more than {MAX_CONFIGURED_VALUE_BYTES} bytes"));
    }
    if HeaderValue::from_str(value).is_err() {
        return Err(format!("has a value for {name} with characters that a header cannot carry"));
    }
    Ok(())
}

/// The parts of the header `Idempotency-Key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IdempotencyKey {
    /// Module, topic, partition, offset and the timestamp of the message: other messages of a topic that was created
    /// again have other keys.
    Timestamp,
    /// Module, topic, partition and offset.
    Offset,
}

/// Builds the requests of one module.
pub(crate) struct RequestBuilder {
    uri: UriTemplate,
    /// Headers of every request: the configured headers and `X-Kafka-Topic`.
    common_headers: HeaderMap,
    /// `module/topic/`, the prefix of every `Idempotency-Key`.
    idempotency_prefix: String,
    idempotency_key: IdempotencyKey,
    /// The secrets with which requests are signed; without any they are not.
    secrets: Vec<SigningSecret>,
}

impl RequestBuilder {
    /// Creates the builder. Panics if a header did not pass [`check_header`] or if `topic` is no legal topic name.
    pub(super) fn new(module: &str, topic: &str, uri: UriTemplate, headers: &[(String, String)]) -> RequestBuilder {
        let mut common_headers = HeaderMap::new();
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("checked when the configuration was loaded");
            let value = HeaderValue::from_str(value).expect("checked when the configuration was loaded");
            common_headers.append(name, value);
        }
        let topic_value =
            HeaderValue::from_str(topic).expect("topic names are checked when the configuration is loaded");
        common_headers.insert(HeaderName::from_static("x-kafka-topic"), topic_value);
        RequestBuilder {
            uri,
            common_headers,
            idempotency_prefix: format!("{module}/{topic}/"),
            idempotency_key: IdempotencyKey::Timestamp,
            secrets: Vec::new(),
        }
    }

    /// Sets the parts of the header `Idempotency-Key`.
    pub(super) fn with_idempotency_key(mut self, idempotency_key: IdempotencyKey) -> RequestBuilder {
        self.idempotency_key = idempotency_key;
        self
    }

    /// Signs every request with these secrets.
    pub(super) fn with_secrets(mut self, secrets: &[SigningSecret]) -> RequestBuilder {
        self.secrets = secrets.to_vec();
        self
    }

    /// Returns the url to which the message of `job` is pushed at `server`, for the request and for the log.
    pub(super) fn url(&self, job: &Job, server: &str) -> String {
        let mut url = String::with_capacity(128);
        if !server.starts_with(HTTPS) {
            url.push_str("http://");
        }
        url.push_str(server);
        let message = &job.message;
        let values = PlaceholderValues {
            topic: &message.from.topic,
            key: message.key.as_deref().unwrap_or_default(),
            transid: message.offset,
            partition: message.from.partition,
            method: job.method.as_deref().unwrap_or(ANY_METHOD),
        };
        self.uri.fill_into(&mut url, &values);
        url
    }

    /// Builds the request for attempt number `attempt`, counted from 1. Fails with the reason if the url is too long or
    /// not a valid uri.
    pub(super) fn request<'job>(&self, job: &'job Job, url: &str, attempt: u32) -> Result<Request<&'job [u8]>, String> {
        let uri = match url.parse::<Uri>() {
            Ok(uri) if url.len() <= MAX_URI_BYTES => uri,
            Ok(_) => return Err(format!("the uri has {} bytes, but at most {MAX_URI_BYTES} are sent", url.len())),
            Err(cause) => return Err(format!("the uri cannot be sent: {cause}")),
        };
        let mut request = Request::new(job.message.value.as_deref().unwrap_or_default());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers(job, attempt);
        Ok(request)
    }

    fn headers(&self, job: &Job, attempt: u32) -> HeaderMap {
        let message = &job.message;
        // With room for all headers, so that the map does not grow while it is filled.
        let n_headers = self.common_headers.len() + OWN_HEADERS + message.headers.len().min(MAX_RECORD_HEADERS);
        let mut headers = HeaderMap::with_capacity(n_headers);
        headers.extend(self.common_headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        headers.insert(HeaderName::from_static("x-kafka-partition"), message.from.partition.into());
        headers.insert(HeaderName::from_static("x-kafka-offset"), message.offset.into());
        headers.insert(HeaderName::from_static("x-kafka-attempt"), attempt.into());
        headers.insert(HeaderName::from_static("x-kafka-claim"), job.assignment.token.into());
        if let Some(timestamp_ms) = message.timestamp_ms {
            headers.insert(HeaderName::from_static("x-kafka-timestamp"), timestamp_ms.into());
        }
        if message.value.is_none() {
            headers.insert(HeaderName::from_static("x-kafka-value"), HeaderValue::from_static("null"));
        }
        if let Some(key) = message.key.as_ref().filter(|key| key.len() <= MAX_KEY_BYTES) {
            let mut encoded = String::with_capacity(key.len());
            encode_into(&mut encoded, key);
            headers.insert(HeaderName::from_static("x-kafka-key"), ascii_value(encoded));
        }
        let mut identity = format!("{}{}/{}", self.idempotency_prefix, message.from.partition, message.offset);
        if let (IdempotencyKey::Timestamp, Some(timestamp_ms)) = (self.idempotency_key, message.timestamp_ms) {
            identity.push_str(&format!("/{timestamp_ms}"));
        }
        self.sign(&mut headers, &identity, message.value.as_deref().unwrap_or_default());
        headers.insert(HeaderName::from_static("idempotency-key"), ascii_value(identity));
        append_record_headers(&mut headers, message);
        if let Some(coding) = content_encoding(message)
            && !headers.contains_key(CONTENT_ENCODING)
        {
            headers.insert(CONTENT_ENCODING, coding);
        }
        headers
    }
}

impl RequestBuilder {
    /// Adds the signature of this attempt, if the module has secrets.
    fn sign(&self, headers: &mut HeaderMap, identity: &str, body: &[u8]) {
        if self.secrets.is_empty() {
            return;
        }
        let id = webhook_id(identity);
        // A clock before 1970 makes a signature that backends refuse.
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().to_string();
        let value = signatures(&self.secrets, &id, &seconds, body);
        for (name, value) in SIGNATURE_HEADERS.into_iter().zip([id, seconds, value]) {
            headers.insert(HeaderName::from_static(name), ascii_value(value));
        }
    }
}

/// Returns the `Content-Encoding` of a message whose body kproxy stored as it was compressed. The record header may be
/// of another program, so it counts only if it occurs once and lists codings that backends may know: a backend may
/// refuse any other.
fn content_encoding(message: &Message) -> Option<HeaderValue> {
    const CODINGS: [&[u8]; 7] = [b"gzip", b"x-gzip", b"deflate", b"zstd", b"br", b"compress", b"x-compress"];
    let mut named = message.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("content-encoding"));
    let (Some(header), None) = (named.next(), named.next()) else { return None };
    let value = header.value.as_deref().filter(|_| message.value.as_ref().is_some_and(|value| !value.is_empty()))?;
    let mut codings = value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    let are_known = codings.all(|coding| CODINGS.iter().any(|known| coding.eq_ignore_ascii_case(known)));
    HeaderValue::from_bytes(value).ok().filter(|_| are_known)
}

/// Adds the record headers of the message that HTTP can carry and that fit into the limits.
fn append_record_headers(headers: &mut HeaderMap, message: &Message) {
    let (mut n_sent, mut room_bytes) = (0, MAX_RECORD_HEADER_BYTES);
    let mut name = String::new();
    for header in message.headers.iter().take(MAX_EXAMINED_HEADERS) {
        if n_sent == MAX_RECORD_HEADERS {
            break;
        }
        let value = header.value.as_deref().unwrap_or_default();
        let size_bytes = RECORD_HEADER_PREFIX.len() + header.name.len() + ": ".len() + value.len() + "\r\n".len();
        if header.name.is_empty() || size_bytes > room_bytes {
            continue;
        }
        name.clear();
        name.extend([RECORD_HEADER_PREFIX, &header.name]);
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) {
            room_bytes -= size_bytes;
            n_sent += 1;
            headers.append(name, value);
        }
    }
    let n_cut = message.headers.len() - n_sent;
    if n_cut > 0 {
        log_limited!(
            Level::Warn,
            "{} offset {}: {n_cut} of {} record headers are not sent: at most {MAX_RECORD_HEADERS} and \
             {MAX_RECORD_HEADER_BYTES} bytes, with a name and value that HTTP can carry",
            message.from,
            message.offset,
            message.headers.len()
        );
    }
}

/// Converts text that contains only visible ASCII, such as percent-encoded text, to a header value.
fn ascii_value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("only visible ASCII")
}

#[cfg(test)]
mod tests;
