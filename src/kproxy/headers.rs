//! Header fields of a request that become headers of the record.
//!
//! `X-Kafka-Header-NAME: value` becomes the header NAME, in lower case since HTTP field names are case-insensitive;
//! order and repetition are kept. `traceparent` and `tracestate` (W3C Trace Context) are copied when they are well
//! formed, so that a consumer can continue the client's trace. The limits of a request's head bound their number and
//! size.

use super::answer::Failure;
use crate::broker::Header;
use crate::http::Headers;

const PREFIX: &str = "x-kafka-header-";
/// The record header with the coding of a body; ktransfer passes it on.
const CONTENT_ENCODING: &str = "Content-Encoding";
const TRACE_PARENT: &str = "traceparent";
const TRACE_STATE: &str = "tracestate";

/// Returns the `X-Kafka-Header-` fields as record headers, in their order. Fails for a field without a name. Does not
/// allocate for a request without such fields.
pub(super) fn custom(fields: &Headers) -> Result<Vec<Header>, Failure> {
    let mut headers = Vec::new();
    for (name, value) in fields.iter() {
        match name.strip_prefix(PREFIX) {
            Some("") => return Err(Failure::bad_header("X-Kafka-Header- must be followed by a name")),
            Some(name) => headers.push(header(name, value.to_vec())),
            None => {}
        }
    }
    Ok(headers)
}

/// Returns whether any field may become a record header. It is a cheap test, since most requests have no such field.
pub(super) fn any_for_record(fields: &Headers) -> bool {
    fields.fields().any(|(name, _)| name.starts_with(PREFIX.as_bytes()) || name == TRACE_PARENT.as_bytes())
}

/// Returns the trace context of a request; empty if it is absent, malformed, or has several `traceparent` fields.
pub(super) fn trace_context(fields: &Headers) -> Vec<Header> {
    let Some(parent) = fields.only(TRACE_PARENT).filter(|parent| is_trace_parent(parent)) else { return Vec::new() };
    let mut headers = vec![header(TRACE_PARENT, parent.to_vec())];
    // Several `tracestate` fields mean the same as one with their values joined (W3C Trace Context 3.3.1.1).
    let states: Vec<_> = fields.iter().filter(|(name, _)| *name == TRACE_STATE).map(|(_, value)| value).collect();
    if !states.is_empty() {
        headers.push(header(TRACE_STATE, states.join(&b',')));
    }
    headers
}

/// Adds the trace context of a request to the headers of a message, unless the message has its own.
pub(super) fn add_trace(headers: &mut Vec<Header>, context: &[Header]) {
    let is_trace =
        |header: &Header| [TRACE_PARENT, TRACE_STATE].iter().any(|name| header.name.eq_ignore_ascii_case(name));
    if !headers.iter().any(is_trace) {
        headers.extend_from_slice(context);
    }
}

/// Adds the codings of a body that is stored with them, unless the client sent this record header itself.
pub(super) fn add_content_encoding(headers: &mut Vec<Header>, value: Vec<u8>) {
    if !headers.iter().any(|header| header.name.eq_ignore_ascii_case(CONTENT_ENCODING)) {
        headers.push(header(CONTENT_ENCODING, value));
    }
}

fn header(name: &str, value: Vec<u8>) -> Header {
    Header { name: name.to_owned(), value: Some(value) }
}

/// Whether `value` is `VERSION-TRACE-PARENT-FLAGS` in lower-case hexadecimal, with neither id all zero. Versions after
/// 00 may append more fields (W3C Trace Context 3.2.2, 3.2.4).
fn is_trace_parent(value: &[u8]) -> bool {
    let is_hex = |bytes: &[u8]| bytes.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_id = |bytes: &[u8]| is_hex(bytes) && bytes.iter().any(|&byte| byte != b'0');
    let Some((fixed, more)) = value.split_at_checked(55) else { return false };
    let (version, trace, parent, flags) = (&fixed[..2], &fixed[3..35], &fixed[36..52], &fixed[53..]);
    [2, 35, 52].iter().all(|&dash| fixed[dash] == b'-')
        && is_hex(version)
        && version != b"ff"
        && is_id(trace)
        && is_id(parent)
        && is_hex(flags)
        && (more.is_empty() || (version != b"00" && more[0] == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn fields(fields: &[(&str, &[u8])]) -> Headers {
        let mut headers = Headers::default();
        fields.iter().for_each(|(name, value)| headers.push(name, value));
        headers
    }

    fn pairs(headers: &[Header]) -> Vec<(&str, &[u8])> {
        headers.iter().map(|header| (&*header.name, header.value.as_deref().expect("never null"))).collect()
    }

    #[test]
    fn custom_headers_keep_bytes_order_and_repetition() {
        let request = fields(&[
            ("Host", b"h"),
            ("X-Kafka-Header-Tenant", b"b\xc3\xa4"),
            ("X-Kafka-Header", b"no"),
            ("x-kafka-header-a", b""),
            ("X-KAFKA-HEADER-TENANT", b"a"),
            ("traceparent", PARENT.as_bytes()),
        ]);
        let headers = custom(&request).expect("all have names");
        assert_eq!(pairs(&headers), [("tenant", &b"b\xc3\xa4"[..]), ("a", b""), ("tenant", b"a")]);
        assert!(any_for_record(&request));

        let none = fields(&[("Host", b"h"), ("X-Kafka-Header", b"no")]);
        assert_eq!(custom(&none).expect("there are none").capacity(), 0);
        assert!(!any_for_record(&none) && any_for_record(&fields(&[("TraceParent", b"x")])));
        let nameless = custom(&fields(&[("X-Kafka-Header-", b"v")]));
        assert_eq!(nameless.expect_err("it has no name").code, "bad_header");
    }

    #[test]
    fn only_a_well_formed_trace_is_copied() {
        let later = format!("cc{}-more", &PARENT[2..]);
        for (parent, is_copied) in [
            (PARENT, true),
            (&*later, true),
            (&later[..later.len() - 5], true),
            ("", false),
            (&PARENT[..54], false),
            (&format!("{PARENT}-"), false),
            (&format!("{PARENT}0"), false),
            (&format!("cc{}0", &PARENT[2..]), false),
            (&format!("ff{}", &PARENT[2..]), false),
            (&PARENT.to_uppercase(), false),
            (&PARENT.replace('-', "_"), false),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01", false),
        ] {
            let state: (&str, &[u8]) = ("TraceState", b"v=1");
            let context = trace_context(&fields(&[("TraceParent", parent.as_bytes()), state]));
            let expected: &[(&str, &[u8])] = &[("traceparent", parent.as_bytes()), ("tracestate", b"v=1")];
            assert_eq!(pairs(&context), if is_copied { expected } else { &[] }, "{parent}");
        }
        let parent = ("traceparent", PARENT.as_bytes());
        assert_eq!(pairs(&trace_context(&fields(&[parent]))), [parent]);
        assert_eq!(trace_context(&fields(&[parent, parent])), [], "two traceparents are ambiguous");
        assert_eq!(trace_context(&fields(&[("tracestate", b"v=1")])), [], "a tracestate without a traceparent");
        let joined = trace_context(&fields(&[("tracestate", b"a=1"), parent, ("tracestate", b"b=2")]));
        assert_eq!(pairs(&joined), [parent, ("tracestate", b"a=1,b=2")]);
    }

    #[test]
    fn a_message_with_its_own_trace_keeps_it() {
        let context = trace_context(&fields(&[("traceparent", PARENT.as_bytes()), ("tracestate", b"v=1")]));
        let mut headers = vec![header("traceparent", b"mine".to_vec())];
        add_trace(&mut headers, &context);
        assert_eq!(pairs(&headers), [("traceparent", &b"mine"[..])], "two traces are not mixed");
        headers[0].name = "other".to_owned();
        add_trace(&mut headers, &context);
        let expected = [("other", &b"mine"[..]), ("traceparent", PARENT.as_bytes()), ("tracestate", b"v=1")];
        assert_eq!(pairs(&headers), expected);
    }
}
