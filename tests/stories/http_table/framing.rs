//! Rows about the length of a body: Content-Length, Transfer-Encoding, chunks, trailers, sizes.

use super::script::{End, Row, Step, answer, answered, refused, refused_post, script, send, stored};

/// `max_request_size_bytes` of the kproxy.
pub(super) const MAX_BODY: usize = 100_000;

pub(super) fn rows() -> Vec<Row> {
    [lengths(), codings(), chunks(), trailers(), sizes(), truncated()].concat()
}

fn lengths() -> Vec<Row> {
    let bad = |section, value: &str| {
        refused_post(section, &format!("Content-Length: {value}\r\n\r\n{{B}}"), "400 bad_request")
    };
    let huge =
        |value: &str| refused_post("9110 8.6", &format!("Content-Length: {value}\r\n\r\n{{B}}"), "413 too_large");
    vec![
        stored("9110 8.6", "content-length:5\r\n\r\n{B}"),
        stored("9110 8.6", "Content-Length: \t 5 \t\r\n\r\n{B}"),
        stored("9110 8.6", "Content-Length: 0000000000000000000005\r\n\r\n{B}"),
        bad("9110 8.6", "5\r\nContent-Length: 5"),
        bad("9112 6.3", "5\r\nContent-Length: 6"),
        bad("9110 8.6", "5, 5"),
        bad("9112 6.3", "5, 6"),
        bad("9110 8.6", "+5"),
        bad("9110 8.6", "-5"),
        bad("9110 8.6", "0x5"),
        bad("9110 8.6", "5 5"),
        bad("9110 8.6", "5.0"),
        bad("9110 8.6", "5e0"),
        bad("9110 8.6", "abc"),
        bad("9110 8.6", "\u{ff15}"),
        bad("9110 8.6", ""),
        huge("1000000000000"),
        huge("9223372036854775807"),
        huge("18446744073709551615"),
        huge("18446744073709551616"),
        huge("99999999999999999999999999999999999999"),
        answered("9112 6.3", "{P}Content-Length: 0\r\n\r\n", &["400 empty_body"], &[]),
        answered("9112 6.3", "{P}\r\n", &["400 empty_body"], &[]),
    ]
}

fn codings() -> Vec<Row> {
    let with = |fields: &str| format!("{fields}\r\n5\r\n{{B}}\r\n0\r\n\r\n");
    let bad = |section, fields: &str| refused_post(section, &with(fields), "400 bad_request");
    let good = |fields: &str| stored("9112 6.1", &with(fields));
    vec![
        good("Transfer-Encoding: chunked\r\n"),
        good("transfer-encoding:CHUNKED\r\n"),
        good("Transfer-Encoding: , chunked,\r\n"),
        bad("9112 6.3", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
        bad("9112 6.3", "Content-Length: 15\r\nTransfer-Encoding: chunked\r\n"),
        bad("9112 6.3", "Content-Length: 5\r\nTransfer-Encoding: identity\r\n"),
        bad("9112 6.1", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        bad("9112 6.1", "Transfer-Encoding: chunked, chunked\r\n"),
        bad("9112 6.3", "Transfer-Encoding: chunked, gzip\r\n"),
        bad("9112 6.3", "Transfer-Encoding: chunked, identity\r\n"),
        bad("9112 6.3", "Transfer-Encoding: gzip\r\n"),
        bad("9112 6.3", "Transfer-Encoding: identity\r\n"),
        bad("9112 6.1", "Transfer-Encoding: xchunked\r\n"),
        bad("9112 6.1", "Transfer-Encoding: chunkedx\r\n"),
        bad("9112 6.1", "Transfer-Encoding: \"chunked\"\r\n"),
        bad("9112 6.1", "Transfer-Encoding: chunked;q=1\r\n"),
        bad("9112 6.1", "Transfer-Encoding: \u{b}chunked\r\n"),
        bad("9112 6.1", "Transfer-Encoding:\r\n"),
        bad("9112 5.1", "Transfer-Encoding : chunked\r\n"),
        bad("9112 5.2", "Transfer-Encoding:\r\n chunked\r\n"),
        refused_post("9112 6.1", &with("Transfer-Encoding: gzip, chunked\r\n"), "501 not_implemented"),
        refused(
            "9112 6.1",
            "POST /commit?topic={T} HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{B}\r\n0\r\n\r\n",
            "400 bad_request",
        ),
        // `TE` names codings that the client accepts in the answer, so it does not affect the request.
        stored("9110 10.1.4", "TE: trailers, gzip\r\nConnection: TE\r\nContent-Length: 5\r\n\r\n{B}"),
    ]
}

/// Returns a chunked POST; `body` is the encoded body with its chunk sizes.
fn chunked(body: &str) -> String {
    format!("{{P}}Transfer-Encoding: chunked\r\n\r\n{body}")
}

fn good_chunks(section: &'static str, body: &str, stored: &str) -> Row {
    answered(section, chunked(body), &["200"], &[stored])
}

fn bad_chunks(section: &'static str, body: &str) -> Row {
    refused(section, chunked(body), "400 bad_request")
}

fn chunks() -> Vec<Row> {
    let many_small = format!("{}0\r\n\r\n", "1\r\na\r\n".repeat(5000));
    let flood = format!("{}0\r\n\r\n", format!("1;{}\r\na\r\n", "x".repeat(200)).repeat(5000));
    let long_extension = format!("5;{}\r\n{{B}}\r\n0\r\n\r\n", "x".repeat(300));
    vec![
        good_chunks("9112 7.1", "5\r\n{B}\r\n0\r\n\r\n", "{B}"),
        good_chunks("9112 7.1", "5\r\n{B}\r\n5\r\n{B}\r\n0\r\n\r\n", "{B}{B}"),
        good_chunks("9112 7.1", "A\r\n{B}{B}\r\n0\r\n\r\n", "{B}{B}"),
        good_chunks("9112 7.1", "a\r\n{B}{B}\r\n0\r\n\r\n", "{B}{B}"),
        good_chunks("9112 7.1", "0000000000000000000000005\r\n{B}\r\n00\r\n\r\n", "{B}"),
        good_chunks("9112 7.1", &many_small, &"a".repeat(5000)),
        good_chunks("9112 7.1.1", "5;a\r\n{B}\r\n0;b=c\r\n\r\n", "{B}"),
        good_chunks("9112 7.1.1", "5 ; a = \"x\\\";\" ; b\r\n{B}\r\n0\r\n\r\n", "{B}"),
        good_chunks("9112 7.1.1", "5 \r\n{B}\r\n0\r\n\r\n", "{B}"),
        answered("9112 7.1", chunked("0\r\n\r\n"), &["400 empty_body"], &[]),
        bad_chunks("9112 7.1", "-5\r\n{B}\r\n0\r\n\r\n"),
        bad_chunks("9112 7.1", "+5\r\n{B}\r\n0\r\n\r\n"),
        bad_chunks("9112 7.1", "0x5\r\n{B}\r\n0\r\n\r\n"),
        bad_chunks("9112 7.1", " 5\r\n{B}\r\n0\r\n\r\n"),
        bad_chunks("9112 7.1", "g\r\n{B}\r\n0\r\n\r\n"),
        bad_chunks("9112 7.1", "\r\n{B}\r\n0\r\n\r\n"),
        bad_chunks("9112 7.1", "5\n{B}\n0\n\n"),
        bad_chunks("9112 7.1", "5\r{B}\r\n0\r\n\r\n"),
        bad_chunks("9112 7.1", "5\r\n{B}X\r\n0\r\n\r\n"),
        bad_chunks("9112 7.1", "5\r\n{B}0\r\n\r\n"),
        bad_chunks("9112 7.1", "5\r\n{B}\n0\r\n\r\n"),
        bad_chunks("9112 7.1", "4\r\n{B}\r\n0\r\n\r\n"),
        bad_chunks("9112 7.1", "6\r\n{B}\r\n0\r\n\r\n"),
        bad_chunks("9112 7.1.1", "5;\u{0}\r\n{B}\r\n0\r\n\r\n"),
        bad_chunks("9112 7.1.1", "5;a\n{B}\r\n0\r\n\r\n"),
        bad_chunks("9112 7.1.1", "5;a=\"\r\n{B}\r\n0\r\n\r\n"),
        bad_chunks("9112 7.1.1", "5 5\r\n{B}\r\n0\r\n\r\n"),
        bad_chunks("9112 7.1.1", &long_extension),
        bad_chunks("9112 7.1.1", &flood),
        refused("9112 7.1", chunked("ffffffffffffffff\r\n{B}"), "413 too_large"),
        refused("9112 7.1", chunked("10000000000000000\r\n{B}"), "413 too_large"),
        refused("9112 7.1", chunked("8000000000000005\r\n{B}"), "413 too_large"),
        refused("9112 7.1", chunked(&format!("{}\r\n{{B}}", "f".repeat(255))), "413 too_large"),
        refused("9112 7.1", chunked(&format!("{}5\r\n{{B}}", "0".repeat(300))), "400 bad_request"),
    ]
}

fn trailers() -> Vec<Row> {
    let with = |trailers: &str| format!("5\r\n{{B}}\r\n0\r\n{trailers}\r\n");
    let good = |section, trailers: &str| good_chunks(section, &with(trailers), "{B}");
    let bad = |section, trailers: &str| bad_chunks(section, &with(trailers));
    vec![
        good("9112 7.1.2", "X: y\r\nZ:\r\n"),
        good("9112 7.1.2", "X: \u{e4}\r\n"),
        // kproxy discards trailers, so a framing field in a trailer has no effect.
        good("9110 6.5.1", "Content-Length: 3\r\n"),
        good("9110 6.5.1", "Transfer-Encoding: gzip\r\nHost: other\r\n"),
        bad("9112 7.1.2", "X : y\r\n"),
        bad("9112 7.1.2", " X: y\r\n"),
        bad("9112 7.1.2", "X: a\r\n b\r\n"),
        bad("9112 7.1.2", "no colon\r\n"),
        bad("9112 7.1.2", "X: y\n"),
        bad("9112 7.1.2", "X: a\u{0}b\r\n"),
        bad("9112 7.1.2", &"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(1000)),
        bad("9112 7.1.2", &format!("X: {}\r\n", "y".repeat(30_000))),
    ]
}

fn sizes() -> Vec<Row> {
    let body = "x".repeat(MAX_BODY);
    let by_length = |length: usize| format!("Content-Length: {length}\r\n\r\n{}", "x".repeat(length));
    let by_chunks = |length: usize| {
        let half = "x".repeat(length / 2);
        format!("{:x}\r\n{half}\r\n{:x}\r\n{half}\r\n0\r\n\r\n", length / 2, length / 2)
    };
    vec![
        answered("9110 15.5.14", format!("{{P}}{}", by_length(MAX_BODY)), &["200"], &[&body]),
        refused_post("9110 15.5.14", &by_length(MAX_BODY + 1), "413 too_large"),
        good_chunks("9110 15.5.14", &by_chunks(MAX_BODY), &body),
        refused("9110 15.5.14", chunked(&by_chunks(MAX_BODY + 2)), "413 too_large"),
        // The first of these rows is answered before any byte of the body arrives, the second while the body arrives.
        script(
            "9110 15.5.14",
            &[send(format!("{{P}}Content-Length: {}\r\n\r\n", MAX_BODY + 1)), answer("413 too_large")],
            End::Closed,
            &[],
        ),
        refused_post("9112 9.6", &by_length(5_000_000), "413 too_large"),
        // kproxy skips the body of a refused request of up to 64 KiB; for a longer body it closes the connection.
        answered(
            "9112 9.3",
            format!("PUT /commit HTTP/1.1\r\nHost: h\r\n{}", by_length(60_000)),
            &["405 not_post"],
            &[],
        ),
        refused("9112 9.3", format!("PUT /commit HTTP/1.1\r\nHost: h\r\n{}", by_length(70_000)), "405 not_post"),
        refused(
            "9112 9.3",
            format!("PUT /commit HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{}", by_chunks(MAX_BODY)),
            "405 not_post",
        ),
        answered("9112 9.3", format!("GET /healthz HTTP/1.1\r\nHost: h\r\n{}", by_length(10)), &["200"], &[]),
    ]
}

/// Requests that end, or stop arriving, before they are complete: nothing is stored.
fn truncated() -> Vec<Row> {
    let cut = |section, bytes: &str| script(section, &[send(bytes), Step::HalfClose], End::Closed, &[]);
    let slow = |section, bytes: &str| script(section, &[send(bytes), answer("408 request_timeout")], End::Closed, &[]);
    vec![
        cut("9112 8", "{P}Content-Length: 5000\r\n\r\n{B}"),
        cut("9112 8", "{P}Transfer-Encoding: chunked\r\n\r\n5000\r\n{B}"),
        cut("9112 8", "{P}Transfer-Encoding: chunked\r\n\r\n5\r\n{B}\r\n"),
        cut("9112 8", "{P}Transfer-Encoding: chunked\r\n\r\n5\r\n{B}\r\n0\r\n"),
        cut("9112 8", "{P}Transfer-Encoding: chunked\r\n\r\n5\r\n{B}\r\n0\r\nX: y\r\n"),
        cut("9112 8", "{P}Content-Length: 5\r\n"),
        cut("9112 8", "PO"),
        cut("9112 8", ""),
        cut("9112 8", "\r\n"),
        slow("9110 15.5.9", "{P}Content-Le"),
        slow("9110 15.5.9", "{P}Content-Length: 6\r\n\r\n{B}"),
    ]
}
