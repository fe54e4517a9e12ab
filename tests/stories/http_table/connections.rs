//! Rows about connections: persistence, pipelining, `Expect`, `Upgrade`.

use super::script::{End, Row, Step, answer, answered, refused, refused_post, script, send, stored};

const MESSAGE: &str = "Content-Length: 5\r\n\r\n{B}";

pub(super) fn rows() -> Vec<Row> {
    [persistence(), pipelining(), expectations(), upgrades()].concat()
}

/// A row that is answered with 200 and stored; then the connection is closed although another request follows.
fn last(section: &'static str, bytes: &str) -> Row {
    let follows = format!("{bytes}{{P}}Content-Length: 8\r\n\r\nsmuggled");
    script(section, &[send(follows), answer("200")], End::Closed, &["{B}"])
}

fn persistence() -> Vec<Row> {
    let old = |fields: &str| format!("POST /commit?topic={{T}} HTTP/1.0\r\n{fields}{MESSAGE}");
    vec![
        last("9112 9.6", &format!("{{P}}Connection: close\r\n{MESSAGE}")),
        last("9112 9.6", &format!("{{P}}Connection: keep-alive, Close\r\n{MESSAGE}")),
        last("9112 9.6", &format!("{{P}}Connection: x\r\nConnection: close\r\n{MESSAGE}")),
        last("9112 9.3", &old("")),
        last("9112 9.3", &old("Host: h\r\n")),
        last("9112 9.3", &old("Connection: keep-alive, close\r\n")),
        answered("9112 9.3", old("Connection: Keep-Alive\r\n"), &["200"], &["{B}"]),
        answered("9112 9.3", old("Connection: keep-alive\r\n").repeat(3), &["200"; 3], &["{B}"; 3]),
        stored("9112 9.3", &format!("Connection: keep-alive\r\nKeep-Alive: timeout=600\r\n{MESSAGE}")),
        script("9112 9.6", &[send(format!("{{P}}{MESSAGE}")), Step::HalfClose, answer("200")], End::Closed, &["{B}"]),
        script(
            "9112 9.6",
            &[send(format!("{{P}}{MESSAGE}").repeat(3)), Step::HalfClose, answer("200"), answer("200"), answer("200")],
            End::Closed,
            &["{B}"; 3],
        ),
    ]
}

fn pipelining() -> Vec<Row> {
    let good = format!("{{P}}{MESSAGE}");
    let kinds: [(&str, &str); 5] = [
        (&good, "200"),
        ("POST /commit?topic={T}&acks=7 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n{B}", "400 bad_acks"),
        ("GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n", "200"),
        ("GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n", "404 unknown_path"),
        ("{P}Transfer-Encoding: chunked\r\n\r\n5;x\r\n{B}\r\n0\r\nX: y\r\n\r\n", "200"),
    ];
    let fifty: Vec<_> = kinds.iter().cycle().take(50).collect();
    let bytes: String = fifty.iter().map(|(bytes, _)| *bytes).collect();
    let answers: Vec<&str> = fifty.iter().map(|(_, expected)| *expected).collect();
    let n_stored = fifty.iter().filter(|(bytes, _)| bytes.contains("{P}")).count();
    let with_an_end =
        format!("{good}GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n{good}{{P}}Content-Length: x\r\n\r\n{good}");
    let many = "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n".repeat(2000);
    vec![
        answered("9112 9.3.2", bytes, &answers, &vec!["{B}"; n_stored]),
        answered("9112 9.3.2", many, &["200"; 2000], &[]),
        script(
            "9112 9.3.2",
            &[send(with_an_end), answer("200"), answer("200"), answer("200"), answer("400 bad_request")],
            End::Closed,
            &["{B}"; 2],
        ),
        script(
            "9112 9.3.2",
            &[send(format!("{good}{{P}}Content-Le")), answer("200"), send("ngth: 5\r\n\r\n{B}"), answer("200")],
            End::Open,
            &["{B}"; 2],
        ),
    ]
}

fn expectations() -> Vec<Row> {
    let waits = "Expect: 100-continue\r\n";
    let continued = |head: String, more: &str| {
        script("9110 10.1.1", &[send(head), answer("100"), send(more), answer("200")], End::Open, &["{B}"])
    };
    // kproxy answers before the client has sent any byte of the body.
    let early = |head: String, what: &str| script("9110 10.1.1", &[send(head), answer(what)], End::Closed, &[]);
    let to = |target: &str| format!("POST {target} HTTP/1.1\r\nHost: h\r\n{waits}Content-Length: 5\r\n\r\n");
    vec![
        continued(format!("{{P}}{waits}Content-Length: 5\r\n\r\n"), "{B}"),
        continued("{P}expect:100-CONTINUE\r\nContent-Length: 5\r\n\r\n".to_owned(), "{B}"),
        continued(format!("{{P}}{waits}Transfer-Encoding: chunked\r\n\r\n"), "5\r\n{B}\r\n0\r\n\r\n"),
        // kproxy sends no 100 if the body has arrived already.
        stored("9110 10.1.1", &format!("{waits}{MESSAGE}")),
        early(format!("{{P}}{waits}Content-Length: 100001\r\n\r\n"), "413 too_large"),
        early(to("/nowhere"), "404 unknown_path"),
        early(to("/commit"), "400 no_topic"),
        early(to("/commit?topic={T}&acks=x"), "400 bad_acks"),
        early(to("/commit?topic={T}").replace("POST", "PUT"), "405 not_post"),
        early(to("/healthz").replace("POST", "GET"), "200"),
        answered("9110 10.1.1", format!("GET /commit HTTP/1.1\r\nHost: h\r\n{waits}\r\n"), &["405 not_post"], &[]),
        answered("9110 10.1.1", format!("{{P}}{waits}Content-Length: 0\r\n\r\n"), &["400 empty_body"], &[]),
        refused_post("9110 10.1.1", &format!("Expect: 42\r\n{MESSAGE}"), "417 bad_expectation"),
        refused_post("9110 10.1.1", &format!("Expect: 100-continue, 42\r\n{MESSAGE}"), "417 bad_expectation"),
        // HTTP/1.0 has no `Expect`, so the field is ignored.
        last("9110 10.1.1", &format!("POST /commit?topic={{T}} HTTP/1.0\r\n{waits}{MESSAGE}")),
        last("9110 10.1.1", &format!("POST /commit?topic={{T}} HTTP/1.0\r\nExpect: 42\r\n{MESSAGE}")),
    ]
}

fn upgrades() -> Vec<Row> {
    let h2c = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n";
    let websocket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    vec![
        stored("9110 7.8", &format!("{h2c}{MESSAGE}")),
        stored("9110 7.8", &format!("Connection: upgrade\r\nUpgrade: TLS/1.0\r\n{MESSAGE}")),
        answered("6455 4.2", format!("GET /healthz HTTP/1.1\r\nHost: h\r\n{websocket}\r\n"), &["200"], &[]),
        answered("6455 4.2", format!("GET /commit HTTP/1.1\r\nHost: h\r\n{websocket}\r\n"), &["405 not_post"], &[]),
        refused("6455 1.3", "\u{81}\u{5}hello", "400 bad_request"),
    ]
}
