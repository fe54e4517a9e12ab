//! Which connections are kept, and what a kept connection that is closed means for the next push.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};

use ureq::unversioned::transport::{ConnectionDetails, Connector};

use super::*;
use crate::ktransfer::backend_client::connection::BackendConnection;
use crate::ktransfer::test_backend::{read_request, start_raw, wait_until};

#[test]
fn every_status_is_an_answer_and_the_connection_is_reused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap().to_string();
    let (_client, mut pusher) = client(&server);
    let statuses = [200u16, 302, 404, 500, 503, 299];
    let serving = std::thread::spawn(move || {
        // Only one connection is accepted, so a request on a second connection would time out.
        let (mut stream, _) = listener.accept().unwrap();
        let mut first_reads = Vec::new();
        for status in statuses {
            let mut request = [0; 4096];
            first_reads.push(stream.read(&mut request).unwrap());
            let answer = format!("HTTP/1.1 {status} X\r\nLocation: /elsewhere\r\nContent-Length: 3\r\n\r\nabc");
            stream.write_all(answer.as_bytes()).unwrap();
        }
        first_reads
    });
    let job = job(Some(b"k"), Some(b"body"), &[]);
    for status in statuses {
        assert_eq!(push(&mut pusher, &job, &server), answered(status, None));
    }
    let first_reads = serving.join().unwrap();
    assert!(
        first_reads.windows(2).all(|pair| pair[0] == pair[1]),
        "head and body were not sent with one write: {first_reads:?}"
    );
}

#[test]
fn a_chunked_body_with_its_end_keeps_the_connection() {
    let n_connections = std::sync::Arc::new(AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&n_connections);
    let server = start_raw(move |mut stream, _| {
        count.fetch_add(1, Ordering::SeqCst);
        while read_request(&stream).is_some() {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").unwrap();
        }
    });
    let (_client, mut pusher) = client(&server);
    for _ in 0..3 {
        assert_eq!(push(&mut pusher, &job(None, None, &[]), &server), answered(200, None));
    }
    assert_eq!(n_connections.load(Ordering::SeqCst), 1);
}

/// Bytes behind a response are not the answer to the next request.
#[test]
fn unexpected_bytes_close_the_connection() {
    let was_sent = std::sync::Arc::new(AtomicUsize::new(0));
    let sent = std::sync::Arc::clone(&was_sent);
    let server = start_raw(move |mut stream, number| {
        read_request(&stream);
        stream.write_all(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n").unwrap();
        if number == 0 {
            // Not in the same segment, but before the next request.
            std::thread::sleep(Duration::from_millis(20));
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
            sent.store(1, Ordering::SeqCst);
        }
        read_request(&stream);
    });
    let (_client, mut pusher) = client(&server);
    assert_eq!(push(&mut pusher, &job(None, None, &[]), &server), answered(503, None));
    wait_until("the backend has sent more", || was_sent.load(Ordering::SeqCst) == 1);
    assert_eq!(push(&mut pusher, &job(None, None, &[]), &server), answered(503, None));
}

#[test]
fn an_idle_connection_that_was_closed_costs_no_attempt() {
    let closed = std::sync::Arc::new(AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&closed);
    let server = start_raw(move |mut stream, _| {
        read_request(&stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        drop(stream);
        count.fetch_add(1, Ordering::SeqCst);
    });
    let (_client, mut pusher) = client(&server);
    for n_pushed in 1..=20 {
        assert_eq!(push(&mut pusher, &job(None, None, &[]), &server), answered(200, None));
        wait_until("the connection is closed", || closed.load(Ordering::SeqCst) == n_pushed);
    }
}

#[test]
fn idle_connections_are_closed_also_without_another_push() {
    let (closed, is_closed) = std::sync::mpsc::channel();
    let server = start_raw(move |mut stream, _| {
        while read_request(&stream).is_some() {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        }
        closed.send(()).unwrap();
    });
    let (_client, mut pusher) = client(&server);
    let began = Instant::now();
    assert_eq!(pusher.close_idle(began + 2 * MAX_IDLE_AGE), None, "no connection yet");
    assert_eq!(push(&mut pusher, &job(None, None, &[]), &server), answered(200, None));
    let end = pusher.close_idle(began).expect("a connection");
    assert!(began + MAX_IDLE_AGE <= end);
    is_closed.try_recv().expect_err("the connection is kept");
    assert_eq!(pusher.close_idle(end), None);
    is_closed.recv_timeout(Duration::from_secs(30)).expect("the connection is closed");
    assert_eq!(push(&mut pusher, &job(None, None, &[]), &server), answered(200, None));
}

/// The backend may have processed the request before it closed the connection.
#[test]
fn a_kept_connection_that_is_closed_after_the_request_fails_the_attempt() {
    let server = start_raw(|mut stream, number| {
        read_request(&stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        if number == 0 {
            read_request(&stream);
        }
    });
    let (_client, mut pusher) = client(&server);
    assert_eq!(push(&mut pusher, &job(None, None, &[]), &server), answered(200, None));
    let end = push(&mut pusher, &job(None, None, &[]), &server);
    assert_eq!(failure(end), "the backend closed the connection without an answer");
}

#[test]
fn nothing_sent_on_a_closed_idle_connection_is_repeated() {
    let failure = Failure { error: Some(TransportError::Closed), text: "Broken pipe".to_owned() };
    let report = Report { was_closed_idle: true, failure: Some(failure), ..Report::default() };
    let failed = || Ok(Err(ureq::Error::ConnectionFailed));
    assert_eq!(push_end(failed(), report.clone()), None);
    let answered_before = Report { status: Some(408), ..report.clone() };
    assert_eq!(push_end(failed(), answered_before), Some(answered(408, None)));
    let cut = Report { is_aborted: true, ..report };
    assert_eq!(push_end(failed(), cut), Some(PushEnd::NotBegun));
}

/// Panics in place of the first connection, as if an answer had made the client panic.
#[derive(Debug)]
struct PanickingConnector;

impl Connector for PanickingConnector {
    type Out = BackendConnection;

    fn connect(&self, _: &ConnectionDetails, _: Option<()>) -> Result<Option<BackendConnection>, ureq::Error> {
        panic!("an odd answer")
    }
}

#[test]
fn a_panic_of_the_http_client_fails_one_attempt() {
    let backend = TestBackend::start(|_| 200);
    let (_client, mut pusher) = client(&backend.server);
    let resolver = ureq::unversioned::resolver::DefaultResolver::default();
    pusher.agent = Agent::with_parts(ureq::config::Config::default(), PanickingConnector, resolver);
    let end = push(&mut pusher, &job(None, None, &[]), &backend.server);
    assert_eq!(failure(end), "the HTTP client panicked: an odd answer");
    assert_eq!(push(&mut pusher, &job(None, None, &[]), &backend.server), answered(200, Some(7)));
}
