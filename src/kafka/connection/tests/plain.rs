//! Plaintext connections.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::super::{CHECK_AFTER, Connection, ConnectionErrorKind as Kind, Disconnect};
use super::{APIS, ECHO, Echo, connector, parts, refusal};
use crate::kafka::config::BrokerAddress;
use crate::kafka::test_server::{PATIENCE, Peer, drain, later, soon, with_server};

/// Serves a connection: the versions, then echoes.
fn echo(socket: TcpStream) {
    let mut peer = Peer(socket);
    if peer.answer_versions(APIS).is_some() {
        while let Some(request) = peer.request() {
            assert_eq!((request.api_key, request.version), (ECHO, 1));
            peer.respond(&request, &request.body);
        }
    }
}

#[test]
fn requests_are_answered_in_order_also_large_ones() {
    with_server(echo, |address| {
        let connector = connector(None, None);
        let mut connection = connector.connect(address, later()).unwrap();
        assert_eq!(connection.version_of(ECHO, (0, 5)).unwrap(), 1);
        let error = connection.version_of(ECHO, (2, 5)).unwrap_err();
        assert_eq!(error.kind, Kind::Unsupported);
        for size in [0, 1, 100_000, 30 << 20, 5] {
            let body: Vec<u8> = (0..size).map(|index| index as u8).collect();
            assert!(connection.call(&Echo(body.clone()), later()).unwrap() == body, "{size}");
        }
        let sent = [1, 2, 3].map(|byte| connection.send(&Echo(vec![byte]), later()).unwrap());
        for (byte, sent) in [1, 2, 3].into_iter().zip(sent) {
            assert_eq!(connection.receive::<Echo>(sent, later()).unwrap(), [byte]);
        }
        assert!(!connection.is_closed());
        let error = connection.send(&Echo(vec![]), Instant::now()).unwrap_err();
        assert_eq!(error.kind, Kind::NotSent);
        assert_eq!(connection.call(&Echo(vec![7]), later()).unwrap(), [7], "nothing was sent before");
        assert_eq!(connector.config().requests.sent(), 1 + 5 + 3 + 1, "with ApiVersions, without what was not sent");
    });
}

#[test]
fn a_broker_that_refuses_the_version_of_api_versions_is_asked_with_version_0() {
    let serve = |socket: TcpStream| {
        let mut peer = Peer(socket);
        let Some(request) = peer.request() else { return };
        assert_eq!(request.version, 3);
        peer.respond(&request, &[0, 35, 0, 0, 0, 0]);
        let request = peer.request().unwrap();
        assert_eq!((request.api_key, request.version, request.body.len()), (18, 0, 0));
        peer.respond(&request, &[0, 0, 0, 0, 0, 1, 0, ECHO as u8, 0, 0, 0, 1]);
        drain(&mut peer.0);
    };
    with_server(serve, |address| {
        let connection = connector(None, None).connect(address, later()).unwrap();
        assert_eq!(connection.version_of(ECHO, (0, 9)).unwrap(), 1);
    });
}

/// Reads one request, sends bytes, and waits for the client.
fn sends(bytes: &'static [u8]) -> impl FnMut(TcpStream) + Send {
    move |socket| {
        let mut peer = Peer(socket);
        if let Some(request) = peer.request() {
            let answer = bytes.strip_prefix(b"ID").map(|body| {
                [&(body.len() as i32 + 4).to_be_bytes()[..], &request.correlation_id.to_be_bytes(), body].concat()
            });
            peer.0.write_all(answer.as_deref().unwrap_or(bytes)).unwrap();
            drain(&mut peer.0);
        }
    }
}

#[test]
fn each_failure_of_the_first_request_is_named() {
    type Serve = Box<dyn FnMut(TcpStream) + Send>;
    let rows: Vec<(Serve, &str)> = vec![
        (Box::new(sends(b"HTTP/1.1 400 Bad Request\r\n\r\n")), "HTTP: the peer is a web server"),
        (Box::new(sends(&[0x15, 3, 3, 0, 2, 2, 80])), "a TLS alert: the listener expects TLS"),
        (Box::new(sends(&[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 1])), "larger than the maximum"),
        (Box::new(sends(&[0xff; 8])), "a negative length"),
        (Box::new(sends(&[0, 0, 0, 6, 0, 0, 0, 77, 0, 0])), "a response to another request"),
        (Box::new(sends(&[0, 0, 0, 2, 0, 0])), "malformed response: the data ends"),
        (Box::new(sends(b"ID\0\0\x05")), "malformed response: an array with more elements"),
        (Box::new(sends(b"ID\0\0\x01\0\0\0\0\0x")), "malformed response: bytes after the response"),
        (Box::new(sends(b"ID\0\x2a\x01\0\0\0\0\0")), "the broker returned error code 42"),
        (Box::new(drop), "a listener with TLS does so"),
        (Box::new(|mut socket: TcpStream| socket.read_exact(&mut [0; 4]).unwrap_or(())), "and a broker before 0.10"),
    ];
    for (serve, text) in rows {
        with_server(serve, |address| {
            let (kind, reason) = refusal(&connector(None, None), address, false);
            assert_eq!(kind, Kind::NotSent, "{reason}");
            assert!(reason.starts_with("ApiVersions: ") && reason.contains(text), "{text}: {reason}");
        });
    }
}

#[test]
fn a_silent_peer_costs_the_time_until_the_deadline() {
    for answer in [&b""[..], &[0, 0, 1, 0, 0]] {
        with_server(sends(answer), |address| {
            let started = Instant::now();
            let (kind, reason) = refusal(&connector(None, None), address, true);
            assert_eq!((kind, &*reason), (Kind::NotSent, "ApiVersions: no response before the deadline"));
            assert!(started.elapsed() < PATIENCE / 2);
        });
    }
}

/// Serves the versions, reads a request, and calls `serve` with it.
fn after_versions(serve: impl Fn(&mut TcpStream, i32) + Send) -> impl FnMut(TcpStream) + Send {
    move |socket| {
        let mut peer = Peer(socket);
        if peer.answer_versions(APIS).is_some()
            && let Some(request) = peer.request()
        {
            serve(&mut peer.0, request.correlation_id);
        }
    }
}

#[test]
fn each_failure_of_a_request_is_named_and_is_no_proof_that_it_was_not_sent() {
    type Serve = Box<dyn Fn(&mut TcpStream, i32) + Send>;
    let rows: Vec<(Serve, Kind, &str)> = vec![
        (Box::new(|_, _| ()), Kind::Lost, "closed the connection instead of answering the first request"),
        (
            Box::new(|socket, id| socket.write_all(&[&[0, 0, 0, 9][..], &id.to_be_bytes(), b"ab"].concat()).unwrap()),
            Kind::Lost,
            "closed the connection",
        ),
        (
            Box::new(|socket, id| {
                socket.write_all(&[&[0, 0, 0, 4][..], &(id + 1).to_be_bytes()].concat()).unwrap();
            }),
            Kind::Malformed,
            "a response to another request",
        ),
        (Box::new(|socket, _| socket.write_all(&[0x7f; 9]).unwrap()), Kind::TooLarge, "larger than the maximum"),
        (Box::new(|socket, _| drain(socket)), Kind::TimedOut, "no response before the deadline"),
    ];
    for (serve, kind, text) in rows {
        with_server(after_versions(serve), |address| {
            let mut connection = connector(None, None).connect(address, later()).unwrap();
            let deadline = if kind == Kind::TimedOut { soon() } else { later() };
            let error = connection.call(&Echo(vec![]), deadline).unwrap_err();
            let (found, reason) = parts(&error, address);
            assert!(found == kind && reason.contains(text), "{text}: {found:?} {reason}");
            assert!(connection.is_closed());
            let error = connection.send(&Echo(vec![]), later()).unwrap_err();
            assert_eq!(parts(&error, address), (Kind::NotSent, "the connection failed before".to_owned()));
        });
    }
}

#[test]
fn a_request_that_is_sent_in_part_is_not_reported_as_unsent() {
    let gate = crate::shutdown::Stop::new();
    let open = gate.clone();
    let serve = move |socket: TcpStream| {
        let mut peer = Peer(socket);
        if peer.answer_versions(APIS).is_some() {
            // The socket is not read while the client sends.
            gate.wait();
        }
    };
    with_server(serve, |address| {
        let mut connection = connector(None, None).connect(address, later()).unwrap();
        let error = connection.send(&Echo(vec![0; 60 << 20]), soon()).unwrap_err();
        let (kind, reason) = parts(&error, address);
        assert_eq!((kind, &*reason), (Kind::TimedOut, "the request could not be sent: timed out"));
        open.trigger();
    });
}

/// Waits until `connection` has been idle so long that the next request checks it.
fn let_idle(connection: &mut Connection) {
    while connection.channel.last_used().elapsed() <= CHECK_AFTER {
        std::thread::yield_now();
    }
}

fn wait_for_close(connection: &mut Connection) {
    let deadline = later();
    while !connection.is_closed() {
        assert!(Instant::now() < deadline, "the close is noticed");
        std::thread::yield_now();
    }
}

#[test]
fn a_connection_that_the_broker_closed_or_wrote_to_while_idle_is_not_used() {
    for bytes in [&b""[..], b"x"] {
        let serve = move |socket: TcpStream| {
            let mut peer = Peer(socket);
            if peer.answer_versions(APIS).is_some() {
                peer.0.write_all(bytes).unwrap();
            }
        };
        with_server(serve, |address| {
            let mut connection = connector(None, None).connect(address, later()).unwrap();
            wait_for_close(&mut connection);
            let_idle(&mut connection);
            let error = connection.call(&Echo(vec![]), later()).unwrap_err();
            let (kind, reason) = parts(&error, address);
            assert_eq!((kind, &*reason), (Kind::NotSent, "the broker closed the connection while it was idle"));
        });
    }
}

#[test]
fn an_idle_connection_is_recognized_and_one_in_use_is_not() {
    with_server(echo, |address| {
        let mut connection = connector(None, None).connect(address, later()).unwrap();
        let now = Instant::now();
        let max_idle = Duration::from_secs(9 * 60);
        assert!(!connection.is_idle_too_long(now) && connection.is_idle_too_long(now + max_idle));
        let sent = connection.send(&Echo(vec![]), later()).unwrap();
        assert!(!connection.is_idle_too_long(now + 2 * max_idle) && !connection.is_closed());
        connection.receive::<Echo>(sent, later()).unwrap();
        assert!(connection.is_idle_too_long(now + 2 * max_idle));
    });
}

#[test]
fn a_disconnect_from_another_thread_ends_connecting_and_receiving() {
    with_server(
        |mut socket| drain(&mut socket),
        |address| {
            let disconnect = Disconnect::new();
            std::thread::scope(|scope| {
                let attempt = scope.spawn(|| connector(None, None).connect_with(address, later(), &disconnect).err());
                disconnect.disconnect();
                let (kind, reason) = parts(&attempt.join().unwrap().unwrap(), address);
                assert_eq!((kind, &*reason), (Kind::NotSent, "the client was stopped while it connected"));
            });
        },
    );
    with_server(after_versions(|socket, _| drain(socket)), |address| {
        let mut connection = connector(None, None).connect(address, later()).unwrap();
        let disconnect = connection.disconnect_handle();
        let sent = connection.send(&Echo(vec![]), later()).unwrap();
        std::thread::scope(|scope| {
            let receiver = scope.spawn(|| connection.receive::<Echo>(sent, later()));
            disconnect.disconnect();
            assert_eq!(receiver.join().unwrap().unwrap_err().kind, Kind::Lost);
        });
    });
}

/// Returns a listener that takes no further connection: SYN packets to it are dropped.
fn full_listener() -> (Socket, Vec<Socket>, BrokerAddress) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let local = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    loop {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        if socket.connect_timeout(&local, Duration::from_millis(200)).is_err() {
            let port = local.as_socket().unwrap().port();
            return (listener, waiting, BrokerAddress { host: "127.0.0.1".into(), port });
        }
        waiting.push(socket);
    }
}

#[test]
fn a_broker_that_does_not_accept_is_named_in_time_or_at_the_disconnect() {
    let (_listener, _waiting, address) = full_listener();
    let (kind, reason) = refusal(&connector(None, None), &address, true);
    assert_eq!((kind, &*reason), (Kind::NotSent, "cannot connect: timed out"));
    let disconnect = Disconnect::new();
    std::thread::scope(|scope| {
        let attempt = scope.spawn(|| connector(None, None).connect_with(&address, later(), &disconnect).err());
        disconnect.disconnect();
        assert!(attempt.join().unwrap().unwrap().reason.contains("stopped"));
    });
}

#[test]
fn nobody_at_the_address_and_a_bad_name_are_named() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (kind, reason) = refusal(&connector(None, None), &BrokerAddress { host: "127.0.0.1".into(), port }, false);
    assert!(kind == Kind::NotSent && reason.starts_with("cannot connect: Connection refused"), "{reason}");
    // A name is shown with the address that it has.
    let (_, reason) = refusal(&connector(None, None), &BrokerAddress { host: "localhost".into(), port }, false);
    assert!(reason.contains("(IP address 127.0.0.1)"), "{reason}");
    let address = BrokerAddress { host: "no host.invalid".into(), port: 1 };
    let (kind, reason) = refusal(&connector(None, None), &address, false);
    assert!(kind == Kind::NotSent && reason.starts_with("cannot look up the host name"), "{reason}");
}

#[cfg(not(feature = "tls"))]
#[test]
fn tls_in_a_build_without_it_is_a_named_error() {
    use crate::kafka::config::{TlsConfig, TrustRoots};
    let tls = TlsConfig { roots: TrustRoots::System, identity: None, verify_certificate: true, verify_host_name: true };
    let connector = connector(Some(tls), None);
    assert!(connector.check().unwrap_err().contains("this build has no TLS"));
    let (kind, _) = refusal(&connector, &BrokerAddress { host: "127.0.0.1".into(), port: 1 }, false);
    assert_eq!(kind, Kind::Denied);
}

#[cfg(feature = "tls")]
#[test]
fn the_authorities_of_the_system_are_found_or_their_lack_is_named() {
    use crate::kafka::config::{TlsConfig, TrustRoots};
    let tls = TlsConfig { roots: TrustRoots::System, identity: None, verify_certificate: true, verify_host_name: true };
    if let Err(reason) = connector(Some(tls), None).check() {
        assert!(reason.contains("the system has no CA certificates"), "{reason}");
    }
}
