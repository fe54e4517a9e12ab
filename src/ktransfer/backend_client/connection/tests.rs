//! Tests of connections: what a failure means, and the timeouts of system calls.

use super::*;
use crate::ktransfer::job::Assignment;
use crate::ktransfer::test_backend::wait_until;
use crate::ktransfer::test_fixtures::{claim, module_config};
use std::net::{TcpListener, TcpStream};

/// Returns a connection on which a request begins, that request, and the backend's end.
fn connected(is_kept: bool) -> (BackendConnection, Arc<Exchange>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = Arc::new(TcpStream::connect(listener.local_addr().unwrap()).unwrap().into());
    let exchange = Arc::new(Exchange::default());
    exchange.begin(&Assignment::new(&claim(3, 1, None)), 42).unwrap();
    let timeouts = Timeouts::from(&module_config(&["a"]).protocol);
    let mut connection = BackendConnection::new(Stream::plain(socket), Arc::clone(&exchange), timeouts);
    connection.is_kept = is_kept;
    let (peer, _) = listener.accept().unwrap();
    (connection, exchange, peer)
}

#[test]
fn a_kept_connection_that_fails_before_the_first_byte_was_closed_idle() {
    for is_kept in [true, false] {
        let (mut connection, exchange, peer) = connected(is_kept);
        // Closes with a reset.
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
        wait_until("the reset has arrived", || !connection.stream.is_silent());
        connection.lent().add_output(4);
        assert!(connection.send_output().is_err());
        let report = exchange.finish();
        assert_eq!((report.was_closed_idle, report.was_sent, report.is_aborted), (is_kept, false, false));
    }
}

/// A backend that closes an idle connection sends its end while the next request is on its way.
#[test]
fn a_kept_connection_that_was_closed_before_the_request_arrived_was_closed_idle() {
    use std::io::Read;

    for (is_kept, is_received, is_large) in
        [(true, false, false), (true, false, true), (false, false, false), (true, true, false)]
    {
        let (mut connection, exchange, mut peer) = connected(is_kept);
        if !is_received {
            drop(peer);
            wait_until("the end has arrived", || !connection.stream.is_silent());
            connection.lent().add_output(4);
            assert!(connection.send_output().is_ok(), "the socket takes it");
        } else {
            connection.lent().add_output(4);
            assert!(connection.send_output().is_ok());
            peer.read_exact(&mut [0; 4]).unwrap();
            drop(peer);
        }
        if is_large {
            wait_until("the rest is refused", || {
                connection.lent().add_output(4);
                connection.send_output().is_err()
            });
        } else {
            assert!(connection.receive_head().is_err());
        }
        let report = exchange.finish();
        assert_eq!(report.was_closed_idle, is_kept && !is_received, "{is_kept} {is_received} {is_large}");
        assert!(report.was_sent && !report.is_aborted && report.failure.is_some());
    }
}

/// Makes a connection with TLS. Returns both ends, the server's as its socket.
#[cfg(feature = "tls")]
fn tls_connection() -> (Stream, TcpStream) {
    use crate::certificates::Authority;
    use crate::ktransfer::backend_client::tls_fixtures::{server_config, tls};

    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let own = authority.issue("own", 30);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket: Arc<socket2::Socket> = Arc::new(TcpStream::connect(listener.local_addr().unwrap()).unwrap().into());
    let (peer, _) = listener.accept().unwrap();
    let config = server_config(&own, None);
    let handshake = std::thread::spawn(move || {
        let (mut peer, mut session) = (peer, rustls::ServerConnection::new(config).unwrap());
        while session.is_handshaking() {
            session.complete_io(&mut peer).unwrap();
        }
        peer
    });
    let deadline = Instant::now() + Duration::from_secs(30);
    let client = tls(&authority.own.certificate, None, None);
    let stream = client.connect(socket, "localhost", deadline).expect("the handshake");
    (stream, handshake.join().unwrap())
}

/// A TLS record is written for each 16 KiB, and the writes of one call may fail after the first of them.
#[cfg(feature = "tls")]
#[test]
fn a_kept_connection_of_which_a_part_of_the_request_was_received_was_not_closed_idle() {
    use std::io::Read;
    use ureq::unversioned::transport::Buffers;

    for is_received in [true, false] {
        let (stream, peer) = tls_connection();
        // Closes without a reset: the first write is taken, and answered with a reset.
        let mut peer = Some(peer).filter(|_| is_received);
        let exchange = Arc::new(Exchange::default());
        exchange.begin(&Assignment::new(&claim(3, 1, None)), 42).unwrap();
        let timeouts = Timeouts::from(&module_config(&["a"]).protocol);
        let mut connection = BackendConnection::new(stream, Arc::clone(&exchange), timeouts);
        connection.is_kept = true;
        loop {
            let room = connection.lent().output().len();
            connection.lent().add_output(room);
            if connection.send_output().is_err() {
                break;
            }
            if let Some(mut peer) = peer.take() {
                peer.read_exact(&mut [0; 1024]).unwrap();
            }
        }
        let report = exchange.finish();
        assert!(connection.stream.n_written() > 0);
        assert_eq!((report.was_closed_idle, report.was_sent), (!is_received, true));
    }
}

/// While it receives, a connection sends what the socket did not take before: these bytes reach the backend as well.
#[cfg(feature = "tls")]
#[test]
fn bytes_that_are_sent_while_receiving_count_as_written() {
    use std::io::Read;

    let (mut stream, mut peer) = tls_connection();
    while !stream.has_output() {
        stream.send(&[0; 16 << 10]).expect("the socket is open");
    }
    // Bounded by the buffers of the sockets, so the rest does not wait for anybody.
    let reading = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = peer.read_to_end(&mut bytes);
        bytes.len() as u64
    });
    wait_until("the rest is sent", || {
        let received = stream.receive(&mut [0; 16], RecvFlags::DONTWAIT);
        assert!(matches!(received, Err(StreamFailure::Socket(Errno::AGAIN))), "{received:?}");
        !stream.has_output()
    });
    stream.socket().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(stream.n_written(), reading.join().unwrap());
}

#[test]
fn a_receive_timeout_is_set_only_when_the_limit_changes_coarsely() {
    let millis = Duration::from_millis;
    for (current, wait, expected) in [
        (0, 500, Some(375)),
        (375, 500, None),
        (375, 499, None),
        (375, 376, None),
        (375, 374, Some(280)),
        (50, 500, Some(375)),
        (250, 500, None),
        (375, 100, Some(75)),
        (75, 100, None),
        (75, 3, Some(3)),
        (0, 0, Some(1)),
    ] {
        let timeout = coarse_timeout(millis(current), millis(wait));
        assert_eq!(timeout.map(|timeout| timeout.as_millis()), expected, "{current}, {wait}");
    }
}

#[test]
fn a_wait_of_any_length_ends_after_few_timeouts() {
    for limit_ms in [1, 3, 100, 499, 500] {
        let (mut left, mut current, mut n_calls) = (Duration::from_millis(limit_ms), Duration::ZERO, 0);
        while !left.is_zero() {
            current = coarse_timeout(current, left).unwrap_or(current);
            left = left.saturating_sub(current);
            n_calls += 1;
        }
        assert!(n_calls <= 12, "{limit_ms}: {n_calls}");
    }
}
