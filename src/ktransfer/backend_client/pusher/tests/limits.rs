//! The limits that end a push: timeouts, the lease, and cuts.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::time::Instant;

use socket2::{Domain, Socket, Type};

use super::*;
use crate::clock::BootTime;
use crate::ktransfer::group::Generation;
use crate::ktransfer::job::Assignment;
use crate::ktransfer::test_backend::{read_request, start_raw, wait_for_close};
use crate::ktransfer::test_fixtures::claim;

/// A job whose claim has a lease of this length.
fn job_with_lease(lease: Duration) -> Job {
    let mut claim = claim(3, 1, None);
    claim.fence = crate::ktransfer::group::TimedFence::until(BootTime::now() + lease);
    Job { assignment: Arc::new(Assignment::new(&claim)), ..job(None, Some(b"body"), &[]) }
}

/// A port that drops attempts to connect, because its queue of connections is full; it accepts again with `accept`.
struct FullPort {
    listener: Socket,
    address: SocketAddr,
    /// The connections that fill the queue.
    _filling: Vec<Socket>,
}

impl FullPort {
    fn new() -> FullPort {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let filling = (0..4)
            .map(|_| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.set_nonblocking(true).unwrap();
                let _ = socket.connect(&address.into());
                socket
            })
            .collect();
        FullPort { listener, address, _filling: filling }
    }
}

#[test]
fn no_connection_and_no_answer_fail_within_their_timeouts() {
    let full = FullPort::new();
    let silent = start_raw(|stream, _| wait_for_close(&stream));
    for (server, timeout_of, reason) in [
        (full.address.to_string(), 0, "timeout: no connection within conn_timeout_ms, 150 ms"),
        (silent, 1, "timeout: no answer within read_timeout_ms, 150 ms"),
    ] {
        let (_client, mut pusher) = client_with(&server, |config| {
            let limit = Some(Duration::from_millis(150));
            match timeout_of {
                0 => config.protocol.connect_timeout = limit,
                _ => config.protocol.read_timeout = limit,
            }
        });
        let began = Instant::now();
        assert_eq!(failure(push(&mut pusher, &job(None, Some(b"body"), &[]), &server)), reason);
        assert!((Duration::from_millis(140)..Duration::from_secs(5)).contains(&began.elapsed()));
    }
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (_client, mut pusher) = client(&closed);
    assert!(failure(push(&mut pusher, &job(None, None, &[]), &closed)).contains("refused"));
}

#[test]
fn each_failure_has_its_kind() {
    let full = FullPort::new();
    let silent = start_raw(|stream, _| wait_for_close(&stream));
    let garbage = start_raw(|mut stream, _| {
        read_request(&stream);
        stream.write_all(b"SSH-2.0\r\n").unwrap();
    });
    let closing = start_raw(|stream, _| drop(read_request(&stream)));
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let unreachable = "[2001:db8::1]:80".to_owned();
    for (server, expected) in [
        (full.address.to_string(), TransportError::ConnectTimeout),
        (silent.clone(), TransportError::ReadTimeout),
        (garbage, TransportError::NotHttp),
        (closing, TransportError::Closed),
        (closed, TransportError::ConnectRefused),
    ] {
        let (_client, mut pusher) = client_with(&server, |config| {
            config.protocol.connect_timeout = Some(Duration::from_millis(300));
            config.protocol.read_timeout = Some(Duration::from_millis(300));
        });
        let end = push(&mut pusher, &job(None, Some(b"body"), &[]), &server);
        assert_eq!(error_of(end), Some(expected), "{server}");
    }
    // The connection stays open, and nobody reads.
    let deaf = start_raw(|stream, _| std::mem::forget(stream));
    let (_client, mut pusher) = client_with(&deaf, |config| {
        config.protocol.write_timeout = Some(Duration::from_millis(200));
    });
    let end = push(&mut pusher, &job(None, Some(&vec![0; 30 << 20]), &[]), &deaf);
    assert_eq!(error_of(end), Some(TransportError::WriteTimeout));
    assert_eq!(failure_of(&ureq::Error::HostNotFound).error, Some(TransportError::NameLookup));
    assert_eq!(failure_of(&ureq::Error::ConnectionFailed).error, None);
    // This address is for documentation: no route, or no IPv6 at all, or nobody answers.
    let (_client, mut pusher) = client_with(&unreachable, |config| {
        config.protocol.connect_timeout = Some(Duration::from_millis(300));
    });
    let error = error_of(push(&mut pusher, &job(None, None, &[]), &unreachable));
    let expected = [TransportError::ConnectFailed, TransportError::ConnectTimeout];
    assert!(error.is_some_and(|error| expected.contains(&error)), "{error:?}");
}

/// One limit for head and body together: a backend that reads a little now and then does not extend it.
#[test]
fn the_write_timeout_is_one_limit_for_the_whole_request() {
    let server = start_raw(|mut stream, _| {
        while stream.read(&mut [0; 1024]).is_ok_and(|n_read| n_read > 0) {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let (_client, mut pusher) = client_with(&server, |config| {
        config.protocol.write_timeout = Some(Duration::from_millis(300));
        config.protocol.read_timeout = None;
    });
    let (body, began) = (vec![0; 30 << 20], Instant::now());
    let end = push(&mut pusher, &job(None, Some(&body), &[]), &server);
    assert_eq!(failure(end), "timeout: the request was not sent within write_timeout_ms, 300 ms");
    assert!(began.elapsed() < Duration::from_secs(5));
}

/// One limit until the end of the head, from the last byte of the request: neither bytes of the head nor interim
/// responses extend it.
#[test]
fn the_read_timeout_is_one_limit_until_the_end_of_the_head() {
    for part in ["\r\n", "HTTP/1.1 102 Processing\r\n\r\n"] {
        let server = start_raw(move |mut stream, _| {
            read_request(&stream);
            while stream.write_all(part.as_bytes()).is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let (_client, mut pusher) =
            client_with(&server, |config| config.protocol.read_timeout = Some(Duration::from_millis(300)));
        let began = Instant::now();
        let end = push(&mut pusher, &job(None, Some(b"body"), &[]), &server);
        assert_eq!(failure(end), "timeout: no answer within read_timeout_ms, 300 ms", "{part:?}");
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn nothing_is_sent_without_a_valid_lease_however_long_the_connect_took() {
    let full = FullPort::new();
    let server = full.address.to_string();
    let (_client, mut pusher) = client(&server);
    assert_eq!(push(&mut pusher, &job_with_lease(Duration::ZERO), &server), PushEnd::NotBegun, "without a connect");

    let job = job_with_lease(Duration::from_millis(300));
    let fence = Arc::clone(&job.assignment.fence);
    let pushing = std::thread::spawn(move || {
        let end = push(&mut pusher, &job, &full.address.to_string());
        (end, pusher)
    });
    while fence.is_valid() {
        std::thread::sleep(Duration::from_millis(5));
    }
    // The backend accepts again: the operating system repeats the attempt to connect after a second.
    full.listener.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut received = Vec::new();
    while !pushing.is_finished() {
        if let Ok((stream, _)) = full.listener.accept() {
            received.push(stream);
        }
        full.listener.set_nonblocking(true).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    let (end, pusher) = pushing.join().unwrap();
    assert_eq!(end, PushEnd::NotBegun);
    drop(pusher);
    for stream in &received {
        stream.set_nonblocking(true).unwrap();
        assert!(!matches!((&*stream).read(&mut [0; 16]), Ok(1..)), "bytes of a request were sent");
    }
}

#[test]
fn a_push_ends_with_its_lease_and_lasts_as_long_as_it_is_extended() {
    let server = start_raw(|mut stream, number| {
        read_request(&stream);
        if number == 1 {
            std::thread::sleep(Duration::from_millis(400));
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
        wait_for_close(&stream);
    });
    let (_client, mut pusher) = client_with(&server, |config| config.protocol.read_timeout = None);
    let began = Instant::now();
    assert_eq!(push(&mut pusher, &job_with_lease(Duration::from_millis(200)), &server), PushEnd::Aborted);
    assert!((Duration::from_millis(190)..Duration::from_secs(5)).contains(&began.elapsed()));

    let job = job_with_lease(Duration::from_millis(250));
    let fence = Arc::clone(&job.assignment.fence);
    let extending = std::thread::spawn(move || fence.extend(BootTime::now() + Duration::from_secs(60)));
    assert_eq!(push(&mut pusher, &job, &server), answered(200, None));
    extending.join().unwrap();
}

/// A large request whose backend does not read ends with the lease, too.
#[test]
fn a_request_that_is_being_sent_ends_with_its_lease() {
    let server = start_raw(|_stream, _| std::thread::sleep(Duration::from_secs(5)));
    let (_client, mut pusher) = client_with(&server, |config| config.protocol.write_timeout = None);
    let body = vec![0; 30 << 20];
    let job = Job { message: job(None, Some(&body), &[]).message, ..job_with_lease(Duration::from_millis(200)) };
    assert_eq!(push(&mut pusher, &job, &server), PushEnd::Aborted);
}

#[test]
fn a_cut_ends_the_pushes_of_its_claim_and_a_close_all() {
    let (arrived, arrivals) = mpsc::channel();
    let server = start_raw(move |stream, _| {
        read_request(&stream);
        arrived.send(()).unwrap();
        wait_for_close(&stream);
    });
    let (client, mut pusher) = client_with(&server, |config| config.protocol.read_timeout = None);
    for closes in [false, true] {
        let job = job(None, Some(b"body"), &[]);
        let (to, assignment) = (server.clone(), Arc::clone(&job.assignment));
        let pushing = std::thread::spawn(move || (push(&mut pusher, &job, &to), pusher));
        // The backend has the request.
        arrivals.recv_timeout(Duration::from_secs(30)).unwrap();
        client.cut(3, Generation(2));
        client.cut(4, Generation(1));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!pushing.is_finished(), "a cut of another claim");
        if closes {
            client.close();
        } else {
            assignment.end();
            client.cut(3, Generation(1));
        }
        let end;
        (end, pusher) = pushing.join().unwrap();
        assert_eq!(end, PushEnd::Aborted, "closes: {closes}");
    }
    assert_eq!(push(&mut pusher, &job(None, None, &[]), &server), PushEnd::NotBegun, "after the close");
}

#[test]
fn a_cut_ends_an_attempt_to_connect() {
    let full = FullPort::new();
    let server = full.address.to_string();
    let (client, mut pusher) = client_with(&server, |config| config.protocol.connect_timeout = None);
    let job = job(None, Some(b"body"), &[]);
    let assignment = Arc::clone(&job.assignment);
    let pushing = std::thread::spawn(move || push(&mut pusher, &job, &full.address.to_string()));
    let began = Instant::now();
    assignment.end();
    while !pushing.is_finished() {
        client.cut(3, Generation(1));
        std::thread::sleep(Duration::from_millis(5));
        assert!(began.elapsed() < Duration::from_secs(10), "the attempt to connect goes on");
    }
    assert_eq!(pushing.join().unwrap(), PushEnd::NotBegun);
}
