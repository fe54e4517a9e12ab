//! Responses that end the attempt with a status, whatever else is wrong with them, and bytes that are no response.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use super::*;
use crate::ktransfer::test_backend::{read_request, start_raw, wait_for_close};

/// The client of a module without timeouts, so that only the rule under test ends an attempt.
fn patient_client(server: &str) -> (HttpClient, Pusher) {
    client_with(server, |config| (config.protocol.read_timeout, config.protocol.write_timeout) = (None, None))
}

/// Starts a backend that reads a request, sends `response`, and closes the connection only if `closes`.
fn backend_with(response: Vec<u8>, closes: bool) -> String {
    start_raw(move |mut stream, _| {
        while read_request(&stream).is_some() {
            stream.write_all(&response).unwrap();
            if closes {
                return;
            }
        }
    })
}

fn fields(n_fields: usize) -> String {
    (0..n_fields).fold(String::new(), |mut text, number| {
        write!(text, "X-{number}: {number}\r\n").unwrap();
        text
    })
}

#[test]
fn the_status_decides_whatever_follows_it() {
    let long = "x".repeat(20_000);
    for (response, status, retry_after_s) in [
        // A body that does not come or does not end.
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n".to_owned(), 200, None),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab".to_owned(), 200, None),
        ("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nab".to_owned(), 200, None),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab".to_owned(), 200, None),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n".to_owned(), 200, None),
        ("HTTP/1.0 200 OK\r\n\r\nab".to_owned(), 200, None),
        ("HTTP/1.1 200 OK\r\n\r\n".to_owned(), 200, None),
        // A head that is not complete, too long, or not valid.
        ("HTTP/1.1 200 OK\r\n".to_owned(), 200, None),
        ("HTTP/1.1 204 No Content\r\nA: b\r\n".to_owned(), 204, None),
        (format!("HTTP/1.1 200 OK\r\n{}\r\n", fields(129)), 200, None),
        (format!("HTTP/1.1 200 OK\r\nX: {long}\r\n\r\n"), 200, None),
        (format!("HTTP/1.1 503 X\r\nRetry-After: 7\r\n{}\r\n", fields(3_000)), 503, Some(7)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".to_owned(), 200, None),
        ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n".to_owned(), 200, None),
        ("HTTP/1.1 200 OK\r\nno field\r\n\r\n".to_owned(), 200, None),
        ("HTTP/1.1 200 OK\nContent-Length: 0\n\n".to_owned(), 200, None),
        ("HTTP/3.7 200 OK\r\n\r\n".to_owned(), 200, None),
        ("HTTP/1.1 999 X\r\nContent-Length: 0\r\n\r\n".to_owned(), 999, None),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n".to_owned(), 101, None),
        // Interim responses.
        (
            "HTTP/1.1 100 Continue\r\nServer: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(),
            200,
            None,
        ),
        (format!("HTTP/1.1 103 Early Hints\r\n{}\r\nHTTP/1.1 202 OK\r\n\r\n", fields(200)), 202, None),
        (format!("HTTP/1.1 103 X\r\nLink: {long}{long}\r\n\r\nHTTP/1.1 429 X\r\nRetry-After: 3\r\n\r\n"), 429, Some(3)),
        ("HTTP/1.1 102 X\r\n\r\nHTTP/1.1 102 X\r\n\r\nHTTP/1.1 500 X\r\n\r\n".to_owned(), 500, None),
    ] {
        for closes in [false, true] {
            let server = backend_with(response.clone().into_bytes(), closes);
            let (_client, mut pusher) = patient_client(&server);
            let (job, began) = (job(None, Some(b"body"), &[]), Instant::now());
            let shown = &response[..response.len().min(200)];
            let url = pusher.url(&job, &server);
            assert_eq!(pusher.push(&job, &url, 1), answered(status, retry_after_s), "{shown:?}, closes: {closes}");
            assert!(began.elapsed() < Duration::from_secs(5), "{shown:?}");
        }
    }
}

#[test]
fn a_body_that_trickles_holds_the_worker_for_a_second_at_most() {
    let server = start_raw(|mut stream, _| {
        read_request(&stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n").unwrap();
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let (_client, mut pusher) = patient_client(&server);
    let began = Instant::now();
    assert_eq!(push(&mut pusher, &job(None, None, &[]), &server), answered(200, None));
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn bytes_that_are_no_response_fail_the_attempt_and_are_quoted() {
    let interim = "HTTP/1.1 102 Processing\r\n\r\n".repeat(20_000);
    for (response, reason) in [
        ("SSH-2.0-OpenSSH\r\n", r#"the backend answered "SSH-2.0-OpenSSH\r\n", which is not HTTP"#),
        ("\x15\x03\x01", r#"the backend answered "\x15\x03\x01", which is not HTTP"#),
        ("", "the backend closed the connection without an answer"),
        ("HTTP/1.1 2", r#"the backend closed the connection after "HTTP/1.1 2""#),
        ("HTTP/1.1 100 Continue\r\n\r\n", "the backend closed the connection without an answer"),
        (&interim, "more than 262144 bytes of interim responses (1xx)"),
    ] {
        let server = backend_with(response.as_bytes().to_vec(), true);
        let (_client, mut pusher) = patient_client(&server);
        assert_eq!(failure(push(&mut pusher, &job(None, Some(b"body"), &[]), &server)), reason);
    }
}

#[test]
fn retry_after_may_be_a_date() {
    // In the past: no pause, in contrast to no header.
    let response = "HTTP/1.1 503 X\r\nRetry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 0\r\n\r\n";
    let server = backend_with(response.into(), false);
    let (_client, mut pusher) = patient_client(&server);
    assert_eq!(push(&mut pusher, &job(None, None, &[]), &server), answered(503, Some(0)));
}

/// How a backend that decides from the head of a request treats the connection.
#[derive(Clone, Copy, Debug)]
enum AfterAnswer {
    /// Closes its side, waits, and closes the connection without reading the rest.
    Closes,
    /// Closes at once, which resets the connection because of the unread bytes.
    Resets,
    /// Neither reads nor closes.
    Stays,
    /// Reads the rest of the request slowly.
    Reads,
}

#[test]
fn an_answer_before_the_end_of_the_request_counts() {
    let body = vec![b'x'; 10 << 20];
    for after in [AfterAnswer::Closes, AfterAnswer::Resets, AfterAnswer::Stays, AfterAnswer::Reads] {
        for (response, status, retry_after_s) in [
            ("HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 413, None),
            ("HTTP/1.1 503 X\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n", 503, Some(5)),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, None),
            ("HTTP/1.1 401 X\r\n", 401, None),
        ] {
            let server = start_raw(move |stream, _| answer_early(stream, response, after));
            let (_client, mut pusher) = patient_client(&server);
            let (job, began) = (job(None, Some(&body), &[]), Instant::now());
            let url = pusher.url(&job, &server);
            assert_eq!(pusher.push(&job, &url, 1), answered(status, retry_after_s), "{response:?}, {after:?}");
            assert!(began.elapsed() < Duration::from_secs(5), "{response:?}, {after:?}");
        }
    }
}

fn answer_early(mut stream: TcpStream, response: &str, after: AfterAnswer) {
    let mut head = [0; 1024];
    assert!(stream.read(&mut head).unwrap() > 0);
    stream.write_all(response.as_bytes()).unwrap();
    match after {
        AfterAnswer::Closes => {
            stream.shutdown(Shutdown::Write).unwrap();
            std::thread::sleep(Duration::from_millis(100));
        }
        AfterAnswer::Resets => {}
        AfterAnswer::Stays => std::thread::sleep(Duration::from_secs(5)),
        AfterAnswer::Reads => wait_for_close(&stream),
    }
}
