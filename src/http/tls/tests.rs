//! Tests of the server through real sockets, as TLS clients see it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustls::ClientConnection;
use rustls::version::{TLS12, TLS13};

use super::clients::{TlsStream, handshake, new_client, read_until_closed};
use super::{ClientCertificates, REFUSAL_ALERT, Tls, TlsSettings};
use crate::certificates::Authority;
use crate::http::tests::fixture::{Fixture, MEDIUM_BYTES, PATIENCE, answer, post, start_with};
use crate::http::{Response, ServerLimits};

/// A server, and the authority that signed its certificate.
struct Secured {
    fixture: Fixture,
    authority: Authority,
    _folder: tempfile::TempDir,
}

fn start(handshake_timeout: Duration, change: impl FnOnce(&mut ServerLimits)) -> Secured {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let own = authority.issue("server", 30);
    let settings = TlsSettings {
        certificate: own.certificate,
        key: own.key,
        client_ca: None,
        client_certificates: ClientCertificates::Required,
        handshake_timeout,
    };
    Secured { fixture: start_with(Some(Tls::load(settings).unwrap()), change), authority, _folder: folder }
}

impl Secured {
    fn connect(&self) -> TlsStream {
        handshake(&self.authority.client(&[&TLS13]), self.fixture.connect()).unwrap()
    }

    fn wait_for_metric(&self, line: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.fixture.metric(line) {
            assert!(Instant::now() < deadline, "{line}");
            std::thread::yield_now();
        }
    }

    fn wait_for_handshakes(&self, outcome: &str, count: usize) {
        self.wait_for_metric(&format!("http_tls_handshakes_total{{outcome=\"{outcome}\",server=\"http\"}} {count}"));
    }

    /// Sends bytes on a new connection, closes the sending half, and returns everything that the server sends until it
    /// closes the connection.
    fn exchange(&self, bytes: &[u8]) -> Vec<u8> {
        let mut socket = self.fixture.connect();
        socket.write_all(bytes).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).expect("the server closes in time, without a reset");
        rest
    }
}

/// Returns the TLS records that `client` wants to send.
fn records(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

fn send_by_bytes(socket: &mut TcpStream, bytes: &[u8]) {
    bytes.iter().for_each(|byte| socket.write_all(&[*byte]).unwrap());
}

#[test]
fn pipelined_requests_are_answered_in_order_also_from_other_threads() {
    let secured = start(PATIENCE, |_| ());
    for version in [&TLS12, &TLS13] {
        let mut stream = handshake(&secured.authority.client(&[version]), secured.fixture.connect()).unwrap();
        assert_eq!(stream.conn.protocol_version(), Some(version.version));
        assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        let paths = [("/", "1"), ("/later", "2"), ("/", "3"), ("/later", "4"), ("/", "5")];
        let requests = paths.map(|(path, body)| post(path, body)).concat();
        for cut in [requests.len(), 10, 100] {
            // Each of the two writes is sent as a TLS record of its own.
            stream.write_all(&requests.as_bytes()[..cut]).unwrap();
            stream.write_all(&requests.as_bytes()[cut..]).unwrap();
            assert_eq!(answer(&mut stream).1, "1");
            for (kept, next) in [("2", "3"), ("4", "5")] {
                let (request, reply) = secured.fixture.echo.release();
                assert_eq!(request.body, kept.as_bytes());
                reply.send(Response::text(200, request.body));
                assert_eq!(answer(&mut stream).1, kept);
                assert_eq!(answer(&mut stream).1, next);
            }
        }
        stream.write_all(post("/close", "").as_bytes()).unwrap();
        let (last, close_notify) = read_until_closed(&mut stream);
        assert!(last.ends_with(b"bye") && close_notify, "{}", String::from_utf8_lossy(&last));
    }
    secured.wait_for_handshakes("ok", 2);
    secured.fixture.end();
}

#[test]
fn handshake_and_requests_may_arrive_byte_by_byte() {
    let secured = start(PATIENCE, |_| ());
    let mut client = new_client(&secured.authority.client(&[&TLS13]));
    let mut socket = secured.fixture.connect();
    while client.is_handshaking() {
        send_by_bytes(&mut socket, &records(&mut client));
        if client.is_handshaking() {
            client.read_tls(&mut socket).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    client.writer().write_all(format!("{}{}", post("/", "a"), post("/", "b")).as_bytes()).unwrap();
    // These records contain the end of the handshake and the two requests.
    send_by_bytes(&mut socket, &records(&mut client));
    let mut stream = TlsStream::new(client, socket);
    assert_eq!(answer(&mut stream), (200, "a".to_owned()));
    assert_eq!(answer(&mut stream), (200, "b".to_owned()));
    stream.conn.refresh_traffic_keys().unwrap();
    stream.write_all(post("/", "with new keys").as_bytes()).unwrap();
    assert_eq!(answer(&mut stream), (200, "with new keys".to_owned()));
    stream.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n").unwrap();
    let mut received = [0; 25];
    stream.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"ok").unwrap();
    assert_eq!(answer(&mut stream), (200, "ok".to_owned()));
    drop(stream);
    secured.fixture.end();
}

#[test]
fn large_bodies_are_received_and_sent_whole() {
    let secured = start(PATIENCE, |_| ());
    let mut stream = secured.connect();
    let body = "0123456789abcdef".repeat((1 << 20) / 16);
    for _ in 0..3 {
        stream.write_all(post("/", &body).as_bytes()).unwrap();
        let (status, echoed) = answer(&mut stream);
        assert!(status == 200 && echoed == body, "{status}, {} bytes", echoed.len());
    }
    stream.write_all(format!("{}{}", post("/large", ""), post("/", "next")).as_bytes()).unwrap();
    assert_eq!(answer(&mut stream).1.len(), 32 << 20);
    assert_eq!(answer(&mut stream).1, "next");
    drop(stream);
    secured.fixture.end();
}

#[test]
fn handshakes_beyond_those_of_one_turn_are_served_in_later_turns() {
    const CLIENTS: usize = 60;
    let secured = start(PATIENCE, |_| ());
    let hello = records(&mut new_client(&secured.authority.client(&[&TLS13])));
    // All begin a handshake at the same time, and none of the first ones goes on.
    let begun: Vec<_> = (0..CLIENTS / 2).map(|_| secured.fixture.connect()).collect();
    begun.iter().for_each(|mut socket| socket.write_all(&hello).unwrap());
    std::thread::scope(|scope| {
        for number in 0..CLIENTS / 2 {
            let secured = &secured;
            scope.spawn(move || {
                let mut stream = secured.connect();
                stream.write_all(post("/", &number.to_string()).as_bytes()).unwrap();
                assert_eq!(answer(&mut stream), (200, number.to_string()));
            });
        }
    });
    drop(begun);
    secured.wait_for_handshakes("ok", CLIENTS / 2);
    secured.fixture.end();
}

#[test]
fn a_client_that_reads_slowly_gets_everything() {
    let secured = start(PATIENCE, |_| ());
    let mut stream = secured.connect();
    const COUNT: usize = 300;
    let requests = post("/large", "") + &post("/medium", "").repeat(COUNT) + &post("/close", "");
    stream.write_all(requests.as_bytes()).unwrap();
    let (mut piece, mut bytes) = ([0; 64 * 1024], Vec::new());
    loop {
        let count = stream.read(&mut piece).unwrap();
        if count == 0 {
            break;
        }
        bytes.extend_from_slice(&piece[..count]);
        // The client reads slowly, so the server often finds the socket full, also at the end of a response.
        std::thread::sleep(Duration::from_micros(200));
    }
    assert!(bytes.ends_with(b"bye"), "the last response is complete");
    // The "text/plain" of each response also contains an x.
    let expected = (32 << 20) + COUNT * MEDIUM_BYTES + COUNT + 2;
    assert_eq!(bytes.iter().filter(|byte| **byte == b'x').count(), expected);
    secured.fixture.end();
}

#[test]
fn a_truncated_request_is_dropped_but_a_complete_request_before_a_close_notify_is_answered() {
    let secured = start(PATIENCE, |_| ());
    for close_notify in [true, false] {
        let mut stream = secured.connect();
        stream.write_all(b"POST /later HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\n\r\nabc").unwrap();
        if close_notify {
            stream.conn.send_close_notify();
            stream.conn.complete_io(&mut stream.sock).unwrap();
        } else {
            stream.sock.shutdown(Shutdown::Write).unwrap();
        }
        assert_eq!(read_until_closed(&mut stream).0, b"", "close_notify: {close_notify}");
    }
    assert!(secured.fixture.echo.kept.lock().unwrap().is_empty());

    // The close_notify arrives together with the request, or while the request is being answered. The TCP connection
    // stays open.
    for together in [true, false] {
        let mut stream = secured.connect();
        let mut bytes = Vec::new();
        stream.conn.writer().write_all(post("/later", "x").as_bytes()).unwrap();
        if !together {
            stream.sock.write_all(&records(&mut stream.conn)).unwrap();
        }
        stream.conn.send_close_notify();
        bytes.extend(records(&mut stream.conn));
        if together {
            stream.sock.write_all(&bytes).unwrap();
        }
        let (_, reply) = secured.fixture.echo.release();
        if !together {
            stream.sock.write_all(&bytes).unwrap();
        }
        reply.send(Response::text(200, "answered"));
        let (response, close_notify) = read_until_closed(&mut stream);
        assert!(response.ends_with(b"answered") && close_notify, "{}", String::from_utf8_lossy(&response));
    }
    secured.fixture.end();
}

#[test]
fn plain_http_gets_a_400_and_garbage_closes_the_connection() {
    let secured = start(PATIENCE, |_| ());
    let response = String::from_utf8(secured.exchange(post("/", "hello").as_bytes())).unwrap();
    assert!(response.starts_with("HTTP/1.1 400 ") && response.contains("https"), "{response}");
    secured.wait_for_handshakes("failed", 1);
    // The server sends a fatal alert: record type, version, length, level.
    let alert = secured.exchange(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00");
    assert!(alert.starts_with(&[0x15, 3, 3, 0, 2, 2]), "{alert:?}");
    secured.wait_for_handshakes("failed", 2);
    secured.exchange(&[0x16, 3, 1, 0xff, 0xff, 1, 2, 3]);
    secured.wait_for_handshakes("failed", 3);
    // A handshake in which the client disconnects counts as failed. A
    // connection that the client closes before it sends a byte is not counted.
    let hello = records(&mut new_client(&secured.authority.client(&[&TLS13])));
    secured.exchange(&hello[..hello.len() / 2]);
    secured.wait_for_handshakes("failed", 4);
    assert_eq!(secured.exchange(b""), b"");

    // A record is changed on the way, after an earlier request on the connection was answered.
    let mut stream = secured.connect();
    stream.write_all(post("/", "good").as_bytes()).unwrap();
    assert_eq!(answer(&mut stream).1, "good");
    stream.conn.writer().write_all(post("/", "evil").as_bytes()).unwrap();
    let mut bytes = records(&mut stream.conn);
    *bytes.last_mut().unwrap() ^= 1;
    stream.sock.write_all(&bytes).unwrap();
    let error = stream.read(&mut [0]).unwrap_err();
    assert!(error.to_string().contains("BadRecordMac"), "{error}");
    drop(stream);
    assert!(secured.fixture.metric("http_tls_handshakes_total{outcome=\"failed\",server=\"http\"} 4"));
    secured.fixture.end();
}

#[test]
fn deadlines_close_slow_handshakes_slow_readers_and_idle_connections() {
    let short = Duration::from_millis(200);
    let secured = start(short, |limits| (limits.write.stall, limits.idle_timeout) = (short, short * 2));
    let hello = records(&mut new_client(&secured.authority.client(&[&TLS13])));
    for (bytes, count) in [(&hello[..hello.len() / 2], 1), (&hello[..], 2), (b"", 3)] {
        let mut socket = secured.fixture.connect();
        socket.write_all(bytes).unwrap();
        socket.read_to_end(&mut Vec::new()).expect("the server closes in time");
        secured.wait_for_handshakes("timeout", count);
    }
    let started = Instant::now();
    let mut idle = secured.connect();
    assert_eq!(read_until_closed(&mut idle), (Vec::new(), true));
    assert!(started.elapsed() >= short * 2, "{:?}", started.elapsed());

    let mut slow = secured.connect();
    slow.write_all(post("/large", "").as_bytes()).unwrap();
    secured.wait_for_metric("http_timeouts_total{deadline=\"write\",server=\"http\"} 1");
    drop(slow);
    secured.fixture.end();
}

#[test]
fn a_drain_sends_close_notify_to_idle_connections_and_answers_the_others() {
    let secured = start(PATIENCE, |_| ());
    let (mut idle, mut busy) = (secured.connect(), secured.connect());
    idle.write_all(post("/", "hello").as_bytes()).unwrap();
    assert_eq!(answer(&mut idle).0, 200);
    busy.write_all(post("/later", "x").as_bytes()).unwrap();
    let (_, reply) = secured.fixture.echo.release();
    let half = secured.fixture.connect();
    let hello = records(&mut new_client(&secured.authority.client(&[&TLS13])));
    (&half).write_all(&hello[..20]).unwrap();
    std::thread::scope(|scope| {
        let drained = scope.spawn(|| secured.fixture.server.drain(PATIENCE));
        assert_eq!(read_until_closed(&mut idle), (Vec::new(), true));
        reply.send(Response::text(200, "done"));
        let (last, close_notify) = read_until_closed(&mut busy);
        assert!(last.ends_with(b"done") && close_notify, "{}", String::from_utf8_lossy(&last));
        drop(busy);
        assert_eq!(drained.join().unwrap(), 0);
    });
    secured.fixture.end();
}

#[test]
fn a_connection_beyond_the_limit_gets_an_alert() {
    let secured = start(PATIENCE, |limits| limits.max_connections = 1);
    let first = secured.connect();
    let mut second = secured.fixture.connect();
    let mut received = Vec::new();
    second.read_to_end(&mut received).unwrap();
    assert_eq!(received, REFUSAL_ALERT);
    let error = {
        let mut client = new_client(&secured.authority.client(&[&TLS13]));
        client.read_tls(&mut &received[..]).unwrap();
        client.process_new_packets().unwrap_err()
    };
    assert_eq!(error, rustls::Error::AlertReceived(rustls::AlertDescription::InternalError));
    drop(first);
    secured.fixture.end();
}
