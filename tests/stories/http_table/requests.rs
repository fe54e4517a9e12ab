//! Rows about request lines, targets, Host and header fields.

use super::script::{Row, answered, refused, refused_post, stored};

const MESSAGE: &str = "Content-Length: 5\r\n\r\n{B}";

pub(super) fn rows() -> Vec<Row> {
    [lines(), methods(), versions(), other_protocols(), targets(), queries(), hosts(), fields()].concat()
}

/// Returns a request with this request line and the body `{B}`.
fn with_line(line: &str) -> String {
    format!("{line}\r\nHost: h\r\n{MESSAGE}")
}

fn lines() -> Vec<Row> {
    let bad = |section, line: &str| refused(section, with_line(line), "400 bad_request");
    vec![
        stored("9112 3", MESSAGE),
        answered("9112 2.2", format!("\r\n\r\n{{P}}{MESSAGE}"), &["200"], &["{B}"]),
        answered("9112 2.2", format!("{{P}}{MESSAGE}\r\n{{P}}{MESSAGE}"), &["200", "200"], &["{B}", "{B}"]),
        refused("9112 2.2", "\r\n".repeat(9000), "431 headers_too_large"),
        refused("9112 2.2", with_line("POST /commit?topic={T} HTTP/1.1").replace('\r', ""), "400 bad_request"),
        refused("9112 2.2", with_line("POST /commit?topic={T}\r HTTP/1.1"), "400 bad_request"),
        refused("9112 2.2", "\n{P}", "400 bad_request"),
        bad("9112 3", " POST /commit?topic={T} HTTP/1.1"),
        bad("9112 3", "POST  /commit?topic={T} HTTP/1.1"),
        bad("9112 3", "POST /commit?topic={T}  HTTP/1.1"),
        bad("9112 3", "POST /commit?topic={T} HTTP/1.1 "),
        bad("9112 3", "POST\t/commit?topic={T}\tHTTP/1.1"),
        bad("9112 3", "POST /commit?topic={T}"),
        bad("9112 3", "POST /commit?topic={T} x HTTP/1.1"),
        bad("9112 3.1", "P@ST /commit?topic={T} HTTP/1.1"),
        bad("9112 3.1", "POST\u{0} /commit?topic={T} HTTP/1.1"),
    ]
}

fn methods() -> Vec<Row> {
    let long_method = format!("{} /commit?topic={{T}} HTTP/1.1", "X".repeat(33));
    vec![
        refused("9110 9.1", with_line("post /commit?topic={T} HTTP/1.1"), "501 not_implemented"),
        refused("9110 9.1", with_line("BREW /commit?topic={T} HTTP/1.1"), "501 not_implemented"),
        refused("9112 3", with_line(&long_method), "501 not_implemented"),
        answered("9110 9.3.1", with_line("GET /commit?topic={T} HTTP/1.1"), &["405 not_post"], &[]),
        answered("9110 9.3.4", with_line("PUT /commit?topic={T} HTTP/1.1"), &["405 not_post"], &[]),
        answered("9110 9.3.5", with_line("DELETE /commit?topic={T} HTTP/1.1"), &["405 not_post"], &[]),
        answered("5789 2", with_line("PATCH /commit?topic={T} HTTP/1.1"), &["405 not_post"], &[]),
        answered("9110 9.3.8", "TRACE /commit HTTP/1.1\r\nHost: h\r\n\r\n", &["405 not_post"], &[]),
        answered("9110 9.3.7", "OPTIONS /commit HTTP/1.1\r\nHost: h\r\n\r\n", &["200"], &[]),
        answered("9110 9.3.7", "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", &["200"], &[]),
        answered("9110 9.3.7", "OPTIONS / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", &["200"], &[]),
        answered("9110 9.3.7", "OPTIONS * HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", &["200"], &[]),
        answered("9110 9.3.7", "OPTIONS /healthz HTTP/1.1\r\nHost: h\r\n\r\n", &["200"], &[]),
        answered("9110 9.3.7", "OPTIONS /nowhere HTTP/1.1\r\nHost: h\r\n\r\n", &["404 unknown_path"], &[]),
        answered("9110 9.3.1", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", &["200"], &[]),
        answered("9110 9.3.2", "HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", &["200 -"], &[]),
        answered("9110 9.3.2", "HEAD /commit HTTP/1.1\r\nHost: h\r\n\r\n", &["405 -"], &[]),
        answered("9110 9.3.2", "HEAD /healthz HTTP/1.1\r\nHost: h\r\n\r\n", &["200 -"], &[]),
        answered("9110 9.3.2", "HEAD /metrics HTTP/1.1\r\nHost: h\r\n\r\n", &["200 -"], &[]),
        answered("9110 9.3.2", "HEAD /nowhere HTTP/1.1\r\nHost: h\r\n\r\n", &["404 -"], &[]),
        refused("9110 9.3.2", "HEAD /healthz HTTP/1.1\r\n\r\n", "400 -"),
        refused("9110 9.3.2", "HEAD /healthz HTTP/1.1\r\nHost: h\r\nX : y\r\n\r\n", "400 -"),
        refused("9112 3.2.3", "CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n", "501 not_implemented"),
        refused("9110 9.3.6", with_line("CONNECT /commit?topic={T} HTTP/1.1"), "501 not_implemented"),
    ]
}

fn versions() -> Vec<Row> {
    let bad = |section, line: &str| refused(section, with_line(line), "400 bad_request");
    vec![
        answered("9110 2.5", with_line("POST /commit?topic={T} HTTP/1.2"), &["200"], &["{B}"]),
        refused("9112 2.3", with_line("POST /commit?topic={T} HTTP/2.0"), "505 bad_version"),
        refused("9112 2.3", with_line("POST /commit?topic={T} HTTP/0.9"), "505 bad_version"),
        refused("9113 3.4", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505 bad_version"),
        bad("9112 2.3", "POST /commit?topic={T} HTTP/1.10"),
        bad("9112 2.3", "POST /commit?topic={T} HTTP/11"),
        bad("9112 2.3", "POST /commit?topic={T} http/1.1"),
        bad("9112 2.3", "POST /commit?topic={T} HTTPS/1.1"),
    ]
}

fn other_protocols() -> Vec<Row> {
    let mut client_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec();
    client_hello.extend([0x5a; 500]);
    vec![
        refused("8446 4.1.2", client_hello, "400 bad_request"),
        refused("4253 4.2", "SSH-2.0-OpenSSH_9.6\r\n", "400 bad_request"),
        refused("9112 3", "\u{0}\u{0}\u{0}\u{14}", "400 bad_request"),
        refused("9112 3", b"\xff\xfe\xfd", "400 bad_request"),
        refused("9112 3", "* OK IMAP4 ready\r\n", "400 bad_request"),
    ]
}

/// Returns a POST to this target with the body `{B}`.
fn to(target: &str) -> String {
    with_line(&format!("POST {target} HTTP/1.1"))
}

fn stored_at(section: &'static str, target: &str) -> Row {
    answered(section, to(target), &["200"], &["{B}"])
}

fn answered_at(section: &'static str, target: &str, expected: &str) -> Row {
    answered(section, to(target), &[expected], &[])
}

fn targets() -> Vec<Row> {
    let bad = |section, target: &str| refused(section, to(target), "400 bad_request");
    let long = |length: usize| format!("/{}", "a".repeat(length - 1));
    vec![
        stored_at("9112 3.2.2", "http://other:80/commit?topic={T}"),
        stored_at("9112 3.2.2", "HTTPS://[::1]/commit?topic={T}"),
        bad("9112 3.2.2", "ftp://h/commit?topic={T}"),
        bad("9112 3.2.2", "http:///commit?topic={T}"),
        bad("9112 3.2.2", "http:/commit?topic={T}"),
        bad("9110 4.2.4", "http://user@h/commit?topic={T}"),
        answered_at("9112 3.2.2", "http://h?topic={T}", "404 unknown_path"),
        bad("9112 3.2.3", "h:80"),
        bad("9112 3.2.1", "commit?topic={T}"),
        bad("9112 3.2.4", "*"),
        bad("9112 3.2", "/commit?topic={T}#part"),
        stored_at("9112 3.2", "/commit?topic={T}&key=\u{7528}\u{e4}"),
        bad("9112 3.2", "/commit\u{e4}?topic={T}"),
        bad("9112 3.2", "/commit?topic={T}&key=\u{0}"),
        bad("9112 3.2", "/commit?topic={T}&key=\u{7f}"),
        bad("9112 3.2", "/commit?topic={T}&key=a b"),
        answered_at("9112 3.2", "/commit/?topic={T}", "404 unknown_path"),
        answered_at("9112 3.2", "//commit?topic={T}", "404 unknown_path"),
        answered_at("9112 3.2", "/./commit?topic={T}", "404 unknown_path"),
        answered_at("9112 3.2", "/%63ommit?topic={T}", "404 unknown_path"),
        answered_at("9112 3.2", "/COMMIT?topic={T}", "404 unknown_path"),
        answered_at("9110 15.5.15", &long(8192), "404 unknown_path"),
        refused("9110 15.5.15", to(&long(8193)), "414 uri_too_long"),
        refused("9110 15.5.15", format!("GET /{}", "a".repeat(20_000)), "414 uri_too_long"),
        refused("9110 15.5.15", format!("HEAD /{}", "a".repeat(20_000)), "414 -"),
    ]
}

fn queries() -> Vec<Row> {
    let long_key = format!("/commit?topic={{T}}&key={}", "%41".repeat(2000));
    vec![
        stored_at("3986 2.1", &long_key),
        stored_at("3986 2.1", "/commit?%74opic={T}&key=%00%fF+%2B&acks=%31"),
        stored_at("3986 3.4", "/commit?topic={T}&other=%zz&&="),
        stored_at("3986 3.4", "/commit?topic={T}&key=a?b/c"),
        stored_at("3986 3.4", "/commit?acks=-1&topic={T}"),
        stored_at("3986 3.4", "/commit?acks=0&topic={T}"),
        answered_at("3986 2.1", "/commit?topic={T}&key=%", "400 bad_encoding"),
        answered_at("3986 2.1", "/commit?topic={T}&key=%4", "400 bad_encoding"),
        answered_at("3986 2.1", "/commit?topic={T}%", "400 bad_encoding"),
        answered_at("3986 2.1", "/commit?topic={T}&acks=%3", "400 bad_encoding"),
        answered_at("3986 2.1", "/commit?topic={T}%00", "400 bad_topic"),
        answered_at("3986 2.1", "/commit?topic=%2e%2e", "400 bad_topic"),
        answered_at("3986 2.1", "/commit?topic=%C3%A4", "400 bad_topic"),
        answered_at("3986 3.4", "/commit?topic={T}?x", "400 bad_topic"),
        answered_at("3986 3.4", "/commit", "400 no_topic"),
        answered_at("3986 3.4", "/commit?", "400 no_topic"),
        answered_at("3986 3.4", "/commit?topic=", "400 no_topic"),
        answered_at("3986 3.4", "/commit?topic={T}&topic={T}", "400 repeated_parameter"),
        answered_at("3986 3.4", "/commit?topic={T}&acks=1&ack%73=1", "400 repeated_parameter"),
        answered_at("3986 3.4", "/commit?topic={T}&acks=2", "400 bad_acks"),
    ]
}

fn hosts() -> Vec<Row> {
    let with = |fields: &str| format!("POST /commit?topic={{T}} HTTP/1.1\r\n{fields}{MESSAGE}");
    let bad = |fields: &str| refused("9112 3.2", with(fields), "400 bad_request");
    let good = |fields: &str| answered("9112 3.2", with(fields), &["200"], &["{B}"]);
    vec![
        bad(""),
        bad("Host: h\r\nHost: h\r\n"),
        bad("Host: h\r\nhost: other\r\n"),
        bad("Host: a b\r\n"),
        bad("Host: a,b\r\n"),
        bad("Host: a/b\r\n"),
        bad("Host: a@b\r\n"),
        bad("Host: h:port\r\n"),
        bad("Host: h:123456\r\n"),
        bad("Host: [::g]\r\n"),
        bad("Host: http://h\r\n"),
        good("Host:\r\n"),
        good("Host: h.example:5030\r\n"),
        good("hOST:[::1]:5030\r\n"),
    ]
}

fn fields() -> Vec<Row> {
    let bad = |section, field: &str| refused_post(section, &format!("{field}\r\n{MESSAGE}"), "400 bad_request");
    let good = |section, field: &str| stored(section, &format!("{field}\r\n{MESSAGE}"));
    // `count` includes the fields Host and Content-Length.
    let many = |count: usize| "X: y\r\n".repeat(count - 2);
    vec![
        bad("9112 5.1", "X : y"),
        bad("9112 5.1", "Content-Length : 6"),
        bad("9112 5.1", "X Y: z"),
        bad("9112 5.1", "X\u{0}: y"),
        bad("9112 5.1", "(X): y"),
        bad("9112 5", ": y"),
        bad("9112 5", "no colon"),
        bad("9112 2.2", " X: y"),
        bad("9112 2.2", "X: a\rb"),
        bad("9112 2.2", "X: a\nY: b"),
        bad("9112 5.2", "X: a\r\n b"),
        bad("9112 5.2", "X: a\r\n\tb"),
        bad("9110 5.5", "X: a\u{0}b"),
        bad("9110 5.5", "X: a\u{1}b"),
        bad("9110 5.5", "X: a\u{7f}b"),
        good("9110 5.5", "X: \u{e4}"),
        good("9110 5.5", "X: a\tb"),
        good("9110 5.5", "X:"),
        good("9110 5.1", "!#$%&'*+-.^_`|~09azAZ: y"),
        stored("9110 5.4", &format!("{}{MESSAGE}", many(100))),
        refused_post("9110 5.4", &format!("{}{MESSAGE}", many(101)), "431 headers_too_large"),
        good("6585 5", &format!("X: {}", "y".repeat(16_000))),
        refused_post("6585 5", &format!("X: {}\r\n{MESSAGE}", "y".repeat(17_000)), "431 headers_too_large"),
        refused_post("6585 5", &"y".repeat(30_000), "431 headers_too_large"),
    ]
}
