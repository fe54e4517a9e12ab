//! Requests of browsers from pages of other origins (the CORS protocol,
//! <https://fetch.spec.whatwg.org/#http-cors-protocol>): which origins may send them and read the answers.
//!
//! Before a request with credentials, a JSON body or an `X-Kafka-Header-` field, a browser sends a pre-flight request:
//! OPTIONS with `Access-Control-Request-Method`. CORS protects answers from being read; it does not prevent a page from
//! sending a simple request, and it does not replace credentials.

use crate::config::{Problems, Section};
use crate::http::{Head, Response};

const KEY: &str = "allowed_origins";
const ALLOW_ORIGIN: &str = "Access-Control-Allow-Origin";
/// Header fields of answers that scripts may read besides those that browsers always let them read.
const EXPOSED: (&str, &str) = ("Access-Control-Expose-Headers", "Retry-After");
/// Header fields that scripts may send. A prefix cannot be allowed, so `X-Kafka-Header-` fields are allowed by name.
const ALLOWED_FIELDS: &str = "Authorization, Content-Type, Content-Encoding, traceparent, tracestate";
const ALLOWED_PREFIX: &[u8] = b"x-kafka-header-";
/// Seconds for which a browser may remember the answer to a pre-flight request; Chrome caps them at this number.
const MAX_AGE_SECONDS: &str = "7200";

/// `allowed_origins`: the origins whose pages may use kproxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AllowedOrigins {
    /// `*`: all.
    Any,
    /// These, in the form in which browsers send them.
    Listed(Vec<String>),
}

impl AllowedOrigins {
    /// Takes the key; returns `None` if it is absent.
    pub(super) fn from_section(section: &mut Section, problems: &mut Problems) -> Option<AllowedOrigins> {
        let origins = section.strings(KEY, false, problems)?;
        for origin in origins.iter().filter(|origin| *origin != "*" && !is_origin(origin)) {
            let text = format!(
                "has {origin:?}, but each entry must be \"*\" or an origin as browsers send it: scheme://host or \
                 scheme://host:port, in lower case, without a path and without the default port"
            );
            section.note(KEY, text, problems);
        }
        Some(if origins.iter().any(|origin| origin == "*") {
            AllowedOrigins::Any
        } else {
            AllowedOrigins::Listed(origins)
        })
    }

    /// Returns the header fields of every answer. `head` is `None` for an answer to something that is no request.
    pub(super) fn response_headers(&self, head: Option<&Head>) -> Vec<(&'static str, String)> {
        let exposed = || (EXPOSED.0, EXPOSED.1.to_owned());
        match self {
            AllowedOrigins::Any => vec![(ALLOW_ORIGIN, "*".to_owned()), exposed()],
            AllowedOrigins::Listed(origins) => {
                // The answer depends on the origin, so a cache must not give it to another one.
                let mut headers = vec![("Vary", "Origin".to_owned())];
                if let Some(origin) = head.and_then(|head| listed(origins, head)) {
                    headers.extend([(ALLOW_ORIGIN, origin.to_owned()), exposed()]);
                }
                headers
            }
        }
    }

    /// Returns the answer to a pre-flight request of an allowed origin, apart from the fields of
    /// [`Self::response_headers`]; `None` for any other request. `methods` are those of the path.
    pub(super) fn preflight(&self, head: &Head, methods: &'static str) -> Option<Response> {
        let is_allowed = match self {
            AllowedOrigins::Any => head.header("origin").is_some(),
            AllowedOrigins::Listed(origins) => listed(origins, head).is_some(),
        };
        if head.method != "OPTIONS" || head.header("access-control-request-method").is_none() || !is_allowed {
            return None;
        }
        let mut fields = ALLOWED_FIELDS.to_owned();
        for field in requested_record_headers(head) {
            fields.push_str(", ");
            fields.push_str(field);
        }
        let response = Response::new(204, "", "").with_header("Access-Control-Allow-Methods", methods);
        let response = response.with_header("Access-Control-Allow-Headers", fields);
        Some(response.with_header("Access-Control-Max-Age", MAX_AGE_SECONDS))
    }
}

/// Returns the origin of a request if it is one of these.
fn listed<'a>(origins: &'a [String], head: &Head) -> Option<&'a str> {
    let origin = head.header("origin")?;
    origins.iter().map(String::as_str).find(|known| known.as_bytes() == origin)
}

/// Returns the names of the `X-Kafka-Header-` fields that the page wants to send.
fn requested_record_headers(head: &Head) -> impl Iterator<Item = &str> {
    let lists = head.headers.iter().filter(|(name, _)| *name == "access-control-request-headers");
    let names = lists.flat_map(|(_, value)| value.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii);
    let is_record_header = |name: &&[u8]| {
        name.get(..ALLOWED_PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(ALLOWED_PREFIX))
            && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.!#$%&'*+^`|~".contains(byte))
    };
    names.filter(is_record_header).filter_map(|name| str::from_utf8(name).ok())
}

/// Returns whether a browser can send this origin: `scheme://host[:port]` (RFC 6454 6.2). It never sends capital
/// letters, the default port, or a path.
fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_lowercase())
        && scheme.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte));
    // The colons of an IPv6 address are inside its brackets.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok_and(|parsed| parsed.to_string() == address),
        None => {
            !host.is_empty()
                && host.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte))
        }
    };
    let default_port = match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    let is_port = |port: &str| {
        let number = port.parse::<u16>().ok().filter(|number| *number > 0 && number.to_string() == port);
        number.is_some() && number != default_port
    };
    is_scheme && is_host && port.is_none_or(is_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &'static str, fields: &[(&str, &str)]) -> Head {
        let mut head = Head { method: method.into(), path: "/commit".into(), ..Head::default() };
        fields.iter().for_each(|(name, value)| head.headers.push(name, value.as_bytes()));
        head
    }

    #[test]
    fn an_origin_is_what_a_browser_sends() {
        for origin in [
            "https://app.example",
            "http://localhost:3000",
            "http://127.0.0.1:8080",
            "https://[::1]:8443",
            "https://[2001:db8::1]",
            "https://app.example:80",
            "chrome-extension://abcdefgh",
            "https://xn--bcher-kva.example",
        ] {
            assert!(is_origin(origin), "{origin}");
        }
        for text in [
            "",
            "null",
            "**",
            "app.example",
            "https://",
            "://app.example",
            "https:app.example",
            "https://app.example/",
            "https://app.example/path",
            "https://app.example?x",
            "https://App.example",
            "HTTPS://app.example",
            "https://*.app.example",
            "https://user@app.example",
            "https://app.example:443",
            "http://app.example:80",
            "https://app.example:",
            "https://app.example:0",
            "https://app.example:08443",
            "https://app.example:65536",
            "https://app.example:+1",
            "https://[::1",
            "https://[::1]x",
            "https://[0::1]",
            "https://b\u{fc}cher.example",
            "https://a b",
            "https://a\r\nX: y",
        ] {
            assert!(!is_origin(text), "{text}");
        }
    }

    #[test]
    fn answers_name_the_origin_if_it_is_allowed() {
        let listed = AllowedOrigins::Listed(vec!["https://a.example".into(), "https://b.example".into()]);
        let allowed = |origin: &str| {
            let headers = [("Vary", "Origin"), (ALLOW_ORIGIN, origin), EXPOSED];
            headers.map(|(name, value)| (name, value.to_owned())).to_vec()
        };
        let refused = vec![("Vary", "Origin".to_owned())];
        for (fields, expected) in [
            (&[("Origin", "https://b.example")][..], allowed("https://b.example")),
            (&[("Origin", "https://c.example")], refused.clone()),
            (&[("Origin", "https://b.example.evil")], refused.clone()),
            (&[("Origin", "null")], refused.clone()),
            (&[("Origin", "https://a.example"), ("Origin", "https://b.example")], refused.clone()),
            (&[], refused.clone()),
        ] {
            assert_eq!(listed.response_headers(Some(&head("POST", fields))), expected, "{fields:?}");
        }
        assert_eq!(listed.response_headers(None), refused);
        let any = vec![(ALLOW_ORIGIN, "*".to_owned()), (EXPOSED.0, EXPOSED.1.to_owned())];
        assert_eq!(AllowedOrigins::Any.response_headers(None), any);
        assert_eq!(AllowedOrigins::Any.response_headers(Some(&head("POST", &[("Origin", "null")]))), any);
    }

    #[test]
    fn a_pre_flight_request_gets_the_methods_and_fields() {
        let listed = AllowedOrigins::Listed(vec!["https://a.example".into()]);
        let (origin, method) = (("Origin", "https://a.example"), ("Access-Control-Request-Method", "POST"));
        let fields =
            ("Access-Control-Request-Headers", "content-type,x-kafka-header-tenant , X-Kafka-Header-B,x-other");
        let odd = ("Access-Control-Request-Headers", "x-kafka-header-a b,,x-kafka-header-\u{e4},x-kafka-header");
        let allowed_fields = |request: &Head| {
            let response = listed.preflight(request, "POST")?;
            assert_eq!((response.status, response.headers[0].1.as_str()), (204, "POST"));
            assert_eq!(response.headers[2], ("Access-Control-Max-Age", "7200".to_owned()));
            response.headers[1].1.strip_prefix(ALLOWED_FIELDS).map(str::to_owned)
        };
        for (method_of_request, sent, expected) in [
            ("OPTIONS", &[origin, method][..], Some("")),
            ("OPTIONS", &[origin, method, fields], Some(", x-kafka-header-tenant, X-Kafka-Header-B")),
            ("OPTIONS", &[origin, method, odd], Some("")),
            ("POST", &[origin, method], None),
            ("OPTIONS", &[origin], None),
            ("OPTIONS", &[method], None),
            ("OPTIONS", &[("Origin", "https://b.example"), method], None),
            ("OPTIONS", &[origin, origin, method], None),
        ] {
            let request = head(method_of_request, sent);
            assert_eq!(allowed_fields(&request).as_deref(), expected, "{method_of_request} {sent:?}");
        }
        assert!(AllowedOrigins::Any.preflight(&head("OPTIONS", &[("Origin", "null"), method]), "POST").is_some());
        assert!(AllowedOrigins::Any.preflight(&head("OPTIONS", &[method]), "POST").is_none());
    }
}
