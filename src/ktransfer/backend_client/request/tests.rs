//! Tests of the url, the headers and the limits of requests, without a socket.

use super::*;
use crate::ktransfer::test_fixtures::{RECORD_HEADERS, job};

fn builder(uri: &str) -> RequestBuilder {
    let headers = [("Host", "www.example.org"), ("X-Two", "a"), ("X-Two", "b")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
    RequestBuilder::new("m", "t", UriTemplate::parse(uri).unwrap(), &headers)
}

#[test]
fn the_url_consists_of_server_and_filled_uri_template() {
    for (server, uri, key, method, expected) in [
        ("a:80", "/", None, None, "http://a:80/"),
        ("a", "/{#TOPIC}/{#PARTITION}?id={#TRANSID}", None, None, "http://a/t/3?id=42"),
        ("[::1]:81", "/p?key={#KEY}", Some(b"k/\xff".as_slice()), None, "http://[::1]:81/p?key=k%2F%FF"),
        ("a:80", "/p?key={#KEY}&m={#METHOD}", None, None, "http://a:80/p?key=&m=%2A"),
        ("a:80", "/{#METHOD}", None, Some("Test Reply"), "http://a:80/Test%20Reply"),
        ("https://a:443", "/", None, None, "https://a:443/"),
        ("https://[::1]", "/p", None, None, "https://[::1]/p"),
    ] {
        let mut job = job(key, None, &[]);
        job.method = method.map(Into::into);
        assert_eq!(builder(uri).url(&job, server), expected, "{uri}");
    }
}

#[test]
fn a_request_has_the_headers_of_message_module_and_configuration() {
    let job = job(Some(b"k/\xff"), Some(b"body"), RECORD_HEADERS);
    let request = builder("/p").request(&job, "http://a:80/p", 2).unwrap();
    assert_eq!((request.method(), request.uri().to_string().as_str()), (&Method::POST, "http://a:80/p"));
    assert_eq!(*request.body(), b"body");
    for (name, values) in [
        ("host", &["www.example.org"] as &[&str]),
        ("x-two", &["a", "b"]),
        ("x-kafka-topic", &["t"]),
        ("x-kafka-partition", &["3"]),
        ("x-kafka-offset", &["42"]),
        ("x-kafka-attempt", &["2"]),
        ("x-kafka-claim", &["1"]),
        ("x-kafka-timestamp", &["1700000000123"]),
        ("x-kafka-key", &["k%2F%FF"]),
        ("idempotency-key", &["m/t/3/42/1700000000123"]),
        ("x-kafka-header-trace", &["a b/c"]),
        ("x-kafka-header-null", &[""]),
        ("x-kafka-header-bad-value", &[]),
        ("x-kafka-header-long", &[]),
        ("x-kafka-header-utf8", &["\u{e9}"]),
    ] {
        let found: Vec<_> = request.headers().get_all(name).iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(found, values.iter().map(|value| value.as_bytes()).collect::<Vec<_>>(), "{name}");
    }
    assert_eq!(request.headers().len(), 14, "a header that was not expected: {:?}", request.headers());
}

#[test]
fn a_tombstone_differs_from_an_empty_value_by_a_header() {
    for (value, expected) in [(None, Some("null")), (Some(&b""[..]), None), (Some(b"v"), None)] {
        let job = job(Some(b"k"), value, &[]);
        let request = builder("/p").request(&job, "http://a:80/p", 1).unwrap();
        let found = request.headers().get("x-kafka-value").map(|value| value.to_str().unwrap());
        assert_eq!((found, *request.body()), (expected, value.unwrap_or_default()));
    }
}

#[test]
fn a_message_without_key_value_and_timestamp_has_no_headers_for_them_and_an_empty_body() {
    let mut job = job(None, None, &[]);
    job.message.timestamp_ms = None;
    let request = builder("/p").request(&job, "http://a:80/p", 1).unwrap();
    assert!(request.body().is_empty());
    assert!(!request.headers().contains_key("x-kafka-key"));
    assert!(!request.headers().contains_key("x-kafka-timestamp"));
    assert_eq!(request.headers()["idempotency-key"], "m/t/3/42");
}

#[test]
fn the_idempotency_key_has_the_timestamp_unless_it_is_switched_off() {
    let (mut job, uri) = (job(None, None, &[]), "http://a:80/p");
    let key = |builder: &RequestBuilder, job: &Job, attempt| {
        let request = builder.request(job, uri, attempt).unwrap();
        request.headers()["idempotency-key"].to_str().unwrap().to_owned()
    };
    let with_timestamp = builder("/p");
    let before = key(&with_timestamp, &job, 1);
    assert_eq!(before, key(&with_timestamp, &job, 2), "the same for each attempt");
    // The same offset of a topic that was created again.
    job.message.timestamp_ms = Some(1_700_000_000_999);
    assert_ne!(before, key(&with_timestamp, &job, 1));
    let without = builder("/p").with_idempotency_key(IdempotencyKey::Offset);
    assert_eq!(key(&without, &job, 1), "m/t/3/42");
}

#[test]
fn a_coding_that_kproxy_stored_is_passed_on_and_any_other_value_is_not() {
    let name = "Content-Encoding";
    let sent = |value: Option<&[u8]>, headers: &[(&str, Option<&[u8]>)], builder: RequestBuilder| {
        let job = job(None, value, headers);
        let request = builder.request(&job, "http://a:80/p", 1).unwrap();
        let found = request.headers().get_all(name).iter().map(|value| value.to_str().unwrap().to_owned());
        found.collect::<Vec<_>>().join("|")
    };
    for (headers, expected) in [
        (&[][..], ""),
        (&[(name, Some(&b"gzip"[..]))], "gzip"),
        (&[("content-encoding", Some(b"deflate, X-Gzip"))], "deflate, X-Gzip"),
        (&[(name, Some(b"br"))], "br"),
        (&[(name, Some(b""))], ""),
        (&[(name, None)], ""),
        (&[(name, Some(b"gzip,"))], ""),
        (&[(name, Some(b"utf-8"))], ""),
        (&[(name, Some(b"gzip; level=9"))], ""),
        (&[(name, Some(b"gzip\r\nX: y"))], ""),
        (&[(name, Some(b"gzip\0"))], ""),
        (&[(name, Some(b"\xff"))], ""),
        (&[(name, Some(b"gzip")), ("content-encoding", Some(b"br"))], ""),
    ] {
        assert_eq!(sent(Some(b"v"), headers, builder("/p")), expected, "{headers:?}");
    }
    let gzip = [(name, Some(&b"gzip"[..]))];
    assert_eq!(sent(None, &gzip, builder("/p")) + &sent(Some(b""), &gzip, builder("/p")), "", "nothing is encoded");
    let configured = [(name.to_owned(), "br".to_owned())];
    let builder = RequestBuilder::new("m", "t", UriTemplate::parse("/p").unwrap(), &configured);
    assert_eq!(sent(Some(b"v"), &gzip, builder), "br", "the configured header is sent");
}

#[test]
fn keys_record_headers_and_uris_have_limits() {
    for (key_bytes, is_sent) in [(0, true), (MAX_KEY_BYTES, true), (MAX_KEY_BYTES + 1, false)] {
        let job = job(Some(&vec![b'/'; key_bytes]), None, &[]);
        let request = builder("/p").request(&job, "http://a:80/p", 1).unwrap();
        assert_eq!(request.headers().contains_key("x-kafka-key"), is_sent, "{key_bytes}");
    }
    let job = job(None, None, &[]);
    for (url_bytes, reason) in [
        (MAX_URI_BYTES, None),
        (MAX_URI_BYTES + 1, Some("the uri has 16385 bytes, but at most 16384 are sent")),
        (100_000, Some("the uri cannot be sent: uri too long")),
    ] {
        let url = format!("http://a:80/{}", "x".repeat(url_bytes - 12));
        let refused = builder("/p").request(&job, &url, 1).err();
        assert_eq!(refused.as_deref(), reason, "{url_bytes}");
    }
}

/// Returns the numbers of the record headers that are sent, and their bytes on the wire.
fn sent_headers(headers: &[(String, Option<Vec<u8>>)]) -> (Vec<usize>, usize) {
    let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
    let job = job(None, None, &headers);
    let request = builder("/p").request(&job, "http://a:80/p", 1).unwrap();
    let sent = |(name, _): &&(&str, _)| request.headers().contains_key(format!("{RECORD_HEADER_PREFIX}{name}"));
    let numbers = headers.iter().enumerate().filter(|(_, header)| sent(header)).map(|(number, _)| number).collect();
    let of_record = request.headers().iter().filter(|(name, _)| name.as_str().starts_with(RECORD_HEADER_PREFIX));
    (numbers, of_record.map(|(name, value)| name.as_str().len() + value.len() + 4).sum())
}

#[test]
fn record_headers_have_limits_as_they_are_on_the_wire() {
    let header = |name: &str, n_bytes: usize| (name.to_owned(), Some(vec![b'x'; n_bytes]));
    // The limit is on all record headers together. A shorter header is still sent after one that does not fit.
    let half = MAX_RECORD_HEADER_BYTES / 2 - RECORD_HEADER_PREFIX.len() - 5;
    let tiny = RECORD_HEADER_PREFIX.len() + 5;
    let (numbers, n_bytes) = sent_headers(&[header("a", half), header("b", half + 1), header("c", half - tiny)]);
    assert_eq!((numbers, n_bytes), (vec![0, 2], MAX_RECORD_HEADER_BYTES - tiny));
    let (numbers, n_bytes) =
        sent_headers(&[header("a", half), header("c", half - tiny), header("d", 0), header("e", 0)]);
    assert_eq!((numbers, n_bytes), (vec![0, 1, 2], MAX_RECORD_HEADER_BYTES));
    // Names, prefix and line ends count, too: without a value, only this many headers of one byte fit.
    let many: Vec<_> = (0..200).map(|number| header(&format!("h{number:03}"), 0)).collect();
    assert_eq!(sent_headers(&many).0, (0..MAX_RECORD_HEADERS).collect::<Vec<_>>());
    let long_names: Vec<_> = (0..200).map(|number| header(&format!("{}{number}", "n".repeat(500)), 0)).collect();
    let (numbers, n_bytes) = sent_headers(&long_names);
    assert!(numbers.len() == 15 && n_bytes <= MAX_RECORD_HEADER_BYTES, "{numbers:?}, {n_bytes}");
}

/// A message may have hundreds of thousands of headers that HTTP cannot carry: only the first ones are looked at.
#[test]
fn a_message_of_headers_costs_little() {
    for name in ["", "a b", "\u{e9}"] {
        let mut headers = vec![(name.to_owned(), None); 300_000];
        headers.push(("behind".to_owned(), None));
        headers.insert(MAX_EXAMINED_HEADERS - 1, ("last".to_owned(), None));
        headers.insert(MAX_EXAMINED_HEADERS, ("next".to_owned(), None));
        assert_eq!(sent_headers(&headers).0, [MAX_EXAMINED_HEADERS - 1], "{name:?}");
    }
}

#[test]
fn configured_headers_are_checked() {
    for (name, value, problem) in [
        ("Host", "www.example.org", None),
        ("X-Token", "a b", None),
        ("a b", "c", Some("has \"a b\", which is not the name of a header")),
        ("", "c", Some("has \"\", which is not the name of a header")),
        ("Content-Length", "1", Some("has Content-Length, which ktransfer sets itself")),
        ("CONNECTION", "close", Some("has CONNECTION, which ktransfer sets itself")),
        ("Idempotency-Key", "1", Some("has Idempotency-Key, which ktransfer sets itself")),
        ("X-Kafka-Anything", "1", Some("has X-Kafka-Anything, which ktransfer sets itself")),
        ("T", "secret\n", Some("has a value for T with characters that a header cannot carry")),
        ("T", &"s".repeat(8192), None),
        ("T", &"s".repeat(8193), Some("has a value for T of more than 8192 bytes")),
    ] {
        assert_eq!(check_header(name, value).err().as_deref(), problem, "{name}");
    }
}

#[test]
fn configured_backends_are_checked() {
    for (server, is_good) in [
        ("10.1.2.1:80", true),
        ("www.example.org", true),
        ("[::1]:8080", true),
        ("[::1]", true),
        ("", false),
        ("a:0", false),
        ("a:70000", false),
        ("a:b", false),
        ("http://a:80", false),
        ("https://a:443", cfg!(feature = "tls")),
        ("https://a", cfg!(feature = "tls")),
        ("https://[::1]:1", cfg!(feature = "tls")),
        ("https://", false),
        ("https://a:0", false),
        ("https://a/path", false),
        ("https://user@a", false),
        ("HTTPS://a", false),
        ("a:80/path", false),
        ("user@a:80", false),
        ("a b", false),
    ] {
        assert_eq!(check_server(server).is_ok(), is_good, "{server}");
    }
}

#[test]
fn a_push_is_signed_over_its_body_with_the_time_of_the_attempt() {
    let secret = crate::ktransfer::backend_client::SigningSecret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    let secrets = [secret.ok().unwrap()];
    let builder = builder("/p").with_secrets(&secrets);
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    for (value, attempt) in [(Some(b"body".as_slice()), 1), (None, 2)] {
        let job = job(Some(b"k"), value, &[]);
        let request = builder.request(&job, "http://a:80/p", attempt).unwrap();
        let header = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
        let (id, time) = (header("webhook-id"), header("webhook-timestamp"));
        assert_eq!(id, "m/t/3/42/1700000000123", "the same for each attempt");
        assert!((before..before + 60).contains(&time.parse().unwrap()), "{time}");
        assert_eq!(header("webhook-signature"), signatures(&secrets, &id, &time, value.unwrap_or_default()));
    }
}

#[test]
fn a_configured_content_type_is_sent_once_and_without_one_none_is() {
    let job = job(None, Some(b"{}"), &[("Content-Type", Some(b"text/plain"))]);
    let headers = [("content-TYPE".to_owned(), "application/json".to_owned())];
    let configured = RequestBuilder::new("m", "t", UriTemplate::parse("/p").unwrap(), &headers);
    for (builder, expected) in [(configured, &["application/json"] as &[&str]), (builder("/p"), &[])] {
        let request = builder.request(&job, "http://a:80/p", 1).unwrap();
        let found: Vec<_> = request.headers().get_all("content-type").iter().collect();
        assert_eq!(found, expected);
    }
}
