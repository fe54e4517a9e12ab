//! `protocol`: the request of a push, its timeouts, and the TLS of https backends.

use std::time::Duration;

use serde_yaml::Value;

use super::backends;
use crate::config::{Problems, Section};
use crate::ktransfer::backend_client::{BackendTls, check_header};
use crate::ktransfer::template::UriTemplate;

/// Longest duration that a key in milliseconds accepts: a day.
pub(super) const MAX_DURATION_MS: u64 = 86_400_000;
/// Default of `conn_timeout_ms`: time for three attempts of TCP, after 0, 1 and 3 s.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// `protocol`: the request of a push and its timeouts.
#[derive(Clone, PartialEq)]
pub(crate) struct ProtocolConfig {
    /// `uri`, parsed.
    pub(crate) uri: UriTemplate,
    /// `headers`: names and values, checked.
    pub(crate) headers: Vec<(String, String)>,
    /// `conn_timeout_ms`: time limit for connecting; `None` means the limit of the operating system.
    pub(crate) connect_timeout: Option<Duration>,
    /// `write_timeout_ms`: time limit for sending a request, head and body; `None` means no limit.
    pub(crate) write_timeout: Option<Duration>,
    /// `read_timeout_ms`: time limit from the end of the request to the end of the response's head; `None` means no
    /// limit.
    pub(crate) read_timeout: Option<Duration>,
    /// `tls`: the TLS of https backends; `None` if the module has none and configures none.
    pub(crate) tls: Option<BackendTls>,
}

/// Reads the map. Returns `None` only after it has added a problem.
pub(super) fn from_section(mut section: Section, problems: &mut Problems) -> Option<ProtocolConfig> {
    section.choice("name", &[("http", ())], problems);
    let uri = if section.has("uri") {
        let uri = section.string("uri", None, problems);
        UriTemplate::parse(&uri).map_err(|text| section.note("uri", format!("is {uri:?}, but {text}"), problems)).ok()
    } else {
        section.string("uri", None, problems);
        None
    };
    let headers = headers(&mut section, problems);
    // 0 is no limit, as in the original. Left out, it has a default: without one, each worker in turn would wait two
    // minutes for a backend whose host is down.
    let is_given = section.has("conn_timeout_ms");
    let given = section.optional_millis("conn_timeout_ms", MAX_DURATION_MS, problems);
    let connect_timeout = if is_given { given } else { Some(DEFAULT_CONNECT_TIMEOUT) };
    let write_timeout = section.optional_millis("write_timeout_ms", MAX_DURATION_MS, problems);
    let read_timeout = section.optional_millis("read_timeout_ms", MAX_DURATION_MS, problems);
    let tls = backends::tls(section.section("tls", false, problems), problems);
    section.finish(problems);
    Some(ProtocolConfig { uri: uri?, headers, connect_timeout, write_timeout, read_timeout, tls })
}

/// Reads `headers`, a list of maps with one key each, as in the original. No problem shows a value, since it may be a
/// secret.
fn headers(section: &mut Section, problems: &mut Problems) -> Vec<(String, String)> {
    let Some(value) = section.take("headers") else { return Vec::new() };
    let Value::Sequence(items) = value else {
        section.note(
            "headers",
            "must be a list of maps with one key each, as in \"- Host: www.example.org\"",
            problems,
        );
        return Vec::new();
    };
    let mut headers: Vec<(String, String)> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let map = item.as_mapping().filter(|map| !map.is_empty());
        let Some(map) = map else {
            section.note("headers", format!("entry {} is not a map with one key", index + 1), problems);
            continue;
        };
        for (name, value) in map {
            let (Some(name), Some(value)) = (name.as_str(), value.as_str()) else {
                let text = format!("entry {} must have a string as name and value (put them in quotes)", index + 1);
                section.note("headers", text, problems);
                continue;
            };
            let is_second_host = name.eq_ignore_ascii_case("host")
                && headers.iter().any(|(known, _)| known.eq_ignore_ascii_case("host"));
            match check_header(name, value) {
                Err(text) => section.note("headers", text, problems),
                Ok(()) if is_second_host => section.note("headers", "has Host twice", problems),
                Ok(()) => headers.push((name.to_owned(), value.to_owned())),
            }
        }
    }
    headers
}
