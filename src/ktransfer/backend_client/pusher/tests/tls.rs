//! Pushes to https backends: certificates, limits and kept connections. The server's side of TLS is rustls.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;
use crate::certificates::Authority;
use crate::clock::BootTime;
use crate::ktransfer::backend_client::BackendTls;
use crate::ktransfer::backend_client::tls_fixtures::{server_config, tls};
use crate::ktransfer::group::{Generation, TimedFence};
use crate::ktransfer::job::Assignment;
use crate::ktransfer::outcomes::TransportError;
use crate::ktransfer::test_backend::{ReceivedRequest, read_request_from, start_raw, wait_for_close, wait_until};
use crate::ktransfer::test_fixtures::claim;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

type TlsStream = StreamOwned<ServerConnection, TcpStream>;

/// Starts a backend; `script` gets each connection with its number. Returns `https://host:port`.
fn start(config: Arc<ServerConfig>, script: impl Fn(TlsStream, usize) + Send + Sync + 'static) -> String {
    let server = start_raw(move |stream, number| {
        script(StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream), number);
    });
    format!("https://{server}")
}

fn read_request(stream: &mut TlsStream) -> Option<ReceivedRequest> {
    read_request_from(&mut std::io::BufReader::new(stream))
}

fn tls_client(server: &str, tls: BackendTls) -> (HttpClient, Pusher) {
    client_with(server, |config| config.protocol.tls = Some(tls))
}

#[test]
fn a_push_with_a_client_certificate_arrives_and_its_connection_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let (own, client) = (authority.issue("own", 30), authority.issue("client", 30));
    let (sender, requests) = mpsc::channel();
    let n_connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&n_connections);
    let server = start(server_config(&own, Some(&authority)), move |mut stream, _| {
        count.fetch_add(1, Ordering::SeqCst);
        while let Some(request) = read_request(&mut stream) {
            sender.send(request).unwrap();
            stream.write_all(OK).unwrap();
        }
    });
    let (_client, mut pusher) = tls_client(&server, tls(&authority.own.certificate, Some(&client), None));
    // Larger than what a session and a socket buffer hold.
    let body: Vec<u8> = (0..=255).cycle().take(8 << 20).collect();
    for value in [b"body".as_slice(), &body, b""] {
        assert_eq!(push(&mut pusher, &job(Some(b"k"), Some(value), &[]), &server), answered(200, None));
        let request = requests.recv().unwrap();
        assert!(request.body == value, "{} bytes", request.body.len());
        assert_eq!(request.header("x-kafka-key"), Some("k"));
    }
    assert_eq!(n_connections.load(Ordering::SeqCst), 1);
}

#[test]
fn a_handshake_that_fails_is_a_failed_attempt_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new(folder.path(), "authority"), Authority::new(folder.path(), "other"));
    let (own, expired) = (authority.issue("own", 30), authority.issue("expired", -1));
    let foreign = other.issue("foreign", 30);
    let ca = authority.own.certificate.as_path();
    let serve = |config| start(config, |mut stream, _| drop(read_request(&mut stream)));
    let plain = start_raw(|mut stream, _| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        wait_for_close(&stream);
    });
    let silent = start_raw(|stream, _| wait_for_close(&stream));
    let closing = start_raw(|stream, _| drop(stream));
    for (server, tls, reason) in [
        (serve(server_config(&foreign, None)), tls(ca, None, None), "not issued by a trusted certificate authority"),
        (serve(server_config(&expired, None)), tls(ca, None, None), "the server's certificate has expired"),
        (serve(server_config(&own, None)), tls(ca, None, Some("other.example")), "is for another host name"),
        (
            serve(server_config(&own, Some(&other))),
            tls(ca, None, None),
            "the server requires a client certificate, and none is configured",
        ),
        (
            serve(server_config(&own, Some(&other))),
            tls(ca, Some(&authority.issue("client", 30)), None),
            "the server refused the client certificate",
        ),
        (format!("https://{plain}"), tls(ca, None, None), "the server does not speak TLS on this port"),
        (
            format!("https://{closing}"),
            tls(ca, None, None),
            "cannot connect: the server closed the connection in the TLS handshake",
        ),
        (format!("https://{silent}"), tls(ca, None, None), "timeout: no TLS handshake within conn_timeout_ms, 300 ms"),
    ] {
        let (_client, mut pusher) = client_with(&server, |config| {
            config.protocol.tls = Some(tls);
            // Short only where it must end the push: machines may be slow.
            let is_silent = reason.starts_with("timeout");
            let limit = if is_silent { Duration::from_millis(300) } else { Duration::from_secs(20) };
            config.protocol.connect_timeout = Some(limit);
            config.protocol.read_timeout = Some(Duration::from_secs(20));
        });
        let end = push(&mut pusher, &job(None, Some(b"body"), &[]), &server);
        let PushEnd::Attempted(AttemptOutcome::Failed { error, reason: text }) = end else { panic!("{end:?}") };
        assert!(text.contains(reason), "{reason}: {text}");
        let expected = match reason {
            _ if reason.starts_with("cannot connect") => TransportError::ConnectFailed,
            _ if reason.starts_with("timeout") => TransportError::ConnectTimeout,
            _ => TransportError::Tls,
        };
        assert_eq!((error, text.starts_with("tls: ")), (Some(expected), expected == TransportError::Tls), "{text}");
    }
}

#[test]
fn the_name_of_the_certificate_may_be_configured_for_a_backend_with_an_address() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let server = start(server_config(&authority.issue("own", 30), None), |mut stream, _| {
        read_request(&mut stream);
        stream.write_all(OK).unwrap();
    });
    // The certificate is for `localhost` and for 127.0.0.1.
    for name in [None, Some("localhost")] {
        let (_client, mut pusher) = tls_client(&server, tls(&authority.own.certificate, None, name));
        assert_eq!(push(&mut pusher, &job(None, None, &[]), &server), answered(200, None), "{name:?}");
    }
}

/// The server closes each connection after its answer: with a close_notify, or without one.
#[test]
fn a_kept_connection_that_was_closed_costs_no_attempt() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let closed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&closed);
    let server = start(server_config(&authority.issue("own", 30), None), move |mut stream, number| {
        read_request(&mut stream);
        stream.write_all(OK).unwrap();
        if number % 2 == 0 {
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
        let _ = stream.sock.shutdown(Shutdown::Write);
        count.fetch_add(1, Ordering::SeqCst);
        wait_for_close(&stream.sock);
    });
    let (_client, mut pusher) = tls_client(&server, tls(&authority.own.certificate, None, None));
    for n_pushed in 1..=10 {
        assert_eq!(push(&mut pusher, &job(None, None, &[]), &server), answered(200, None));
        wait_until("the connection is closed", || closed.load(Ordering::SeqCst) == n_pushed);
    }
}

#[test]
fn a_cut_ends_a_push_under_way_and_a_handshake() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let (sender, arrived) = mpsc::channel();
    let handshaking = sender.clone();
    let answering = start(server_config(&authority.issue("own", 30), None), move |mut stream, _| {
        read_request(&mut stream);
        sender.send(()).unwrap();
        wait_for_close(&stream.sock);
    });
    let silent = start_raw(move |stream, _| {
        handshaking.send(()).unwrap();
        wait_for_close(&stream);
    });
    for (server, end) in [(answering, PushEnd::Aborted), (format!("https://{silent}"), PushEnd::NotBegun)] {
        let (client, mut pusher) = client_with(&server, |config| {
            config.protocol.tls = Some(tls(&authority.own.certificate, None, None));
            (config.protocol.connect_timeout, config.protocol.read_timeout) = (None, None);
        });
        let job = job(None, Some(b"body"), &[]);
        std::thread::scope(|scope| {
            let pushing = scope.spawn(|| push(&mut pusher, &job, &server));
            arrived.recv().unwrap();
            job.assignment.end();
            client.cut(3, Generation(1));
            assert_eq!(pushing.join().unwrap(), end);
        });
    }
}

#[test]
fn a_record_that_comes_byte_by_byte_does_not_outlast_the_read_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let server = start(server_config(&authority.issue("own", 30), None), |mut stream, _| {
        let _ = read_request(&mut stream);
        // The head of a record of 16 KiB, then its first bytes. Bounded by the client, which closes the connection.
        let bytes = [0x17, 0x03, 0x03, 0x40, 0x00].into_iter().chain(std::iter::repeat_n(0, 500));
        for byte in bytes {
            if stream.sock.write_all(&[byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let (_client, mut pusher) = client_with(&server, |config| {
        config.protocol.tls = Some(tls(&authority.own.certificate, None, None));
        config.protocol.read_timeout = Some(Duration::from_millis(300));
    });
    let end = push(&mut pusher, &job(None, Some(b"body"), &[]), &server);
    let PushEnd::Attempted(AttemptOutcome::Failed { error, reason }) = end else { panic!("{end:?}") };
    assert_eq!(error, Some(TransportError::ReadTimeout), "{reason}");
}

#[test]
fn no_byte_of_a_request_is_sent_if_the_lease_ends_in_the_handshake() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let mut claim = claim(3, 1, None);
    claim.fence = TimedFence::until(BootTime::now() + Duration::from_secs(60));
    let fence = Arc::clone(&claim.fence);
    let (sender, received) = mpsc::channel();
    let server = start(server_config(&authority.issue("own", 30), None), move |mut stream, _| {
        fence.end();
        sender.send(read_request(&mut stream).is_some()).unwrap();
    });
    let (_client, mut pusher) = tls_client(&server, tls(&authority.own.certificate, None, None));
    let job = Job { assignment: Arc::new(Assignment::new(&claim)), ..job(None, Some(b"body"), &[]) };
    assert_eq!(push(&mut pusher, &job, &server), PushEnd::NotBegun);
    assert!(!received.recv().unwrap());
}
