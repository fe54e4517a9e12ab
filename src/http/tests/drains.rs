//! Drains, and a reader that is late.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fixture::{Echo, PATIENCE, answer, post, start, whole_answer};
use crate::http::acceptor::Acceptor;
use crate::http::inbox::{Inbox, InboxMessage};
use crate::http::poller::Poller;
use crate::http::reader::Reader;
use crate::http::{Response, ServerLimits, ServerMetrics};
use crate::metrics::Registry;
use crate::shutdown::Stop;
use crate::supervise::{Ended, Supervisor};

#[test]
fn a_drain_answers_requests_in_progress_and_closes_idle_connections() {
    let fixture = start(|_| ());
    let mut idle = fixture.connect();
    let mut busy = fixture.connect();
    let mut begun = fixture.connect();
    idle.write_all(post("/", "hello").as_bytes()).unwrap();
    assert_eq!(answer(&mut idle).0, 200);
    begun.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\no").unwrap();
    busy.write_all(post("/later", "x").as_bytes()).unwrap();
    let (_, reply) = fixture.echo.release();
    assert!(fixture.metric("http_connections{server=\"http\"} 3"));
    std::thread::scope(|scope| {
        let drained = scope.spawn(|| fixture.server.drain(PATIENCE));
        assert_eq!(idle.read(&mut [0]).unwrap(), 0, "an idle connection is closed");
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(fixture.server.local_addr()).is_ok() {
            assert!(Instant::now() < deadline, "connections are not accepted any more");
        }
        begun.write_all(b"k").unwrap();
        let (status, head, body) = whole_answer(&mut begun);
        assert_eq!((status, body.as_str(), head.contains("Connection: close")), (200, "ok", true));
        reply.send(Response::text(200, "done"));
        assert_eq!(answer(&mut busy).1, "done");
        drop((busy, begun));
        assert_eq!(drained.join().unwrap(), 0);
    });
    fixture.end();
}

#[test]
fn in_a_drain_an_idle_connection_gets_one_more_answer_that_closes_it() {
    let fixture = start(|_| ());
    let mut sockets: Vec<_> = (0..4).map(|_| fixture.connect()).collect();
    for socket in &mut sockets {
        socket.write_all(post("/", "hello").as_bytes()).unwrap();
        assert_eq!(answer(socket).0, 200);
    }
    std::thread::scope(|scope| {
        let drained = scope.spawn(|| fixture.server.drain_idle_within(PATIENCE, PATIENCE));
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(fixture.server.local_addr()).is_ok() {
            assert!(Instant::now() < deadline, "connections are not accepted any more");
        }
        for mut socket in sockets {
            socket.write_all(post("/", "last").as_bytes()).unwrap();
            let (status, head, body) = whole_answer(&mut socket);
            assert_eq!((status, body.as_str(), head.contains("Connection: close")), (200, "last", true));
            assert_eq!(socket.read(&mut [0]).unwrap(), 0);
        }
        assert_eq!(drained.join().unwrap(), 0);
    });
    fixture.end();
}

#[test]
fn a_request_that_has_arrived_is_not_timed_out_because_the_reader_was_late() {
    let timeout = Duration::from_secs(1);
    let fixture = start(|limits| limits.read_timeout = timeout);
    // There are two readers, so the first and the last connection have the same one.
    let [mut blocking, _other, mut late] = std::array::from_fn(|_| fixture.connect());
    let body = "b".repeat(600_000);
    let head = format!("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n", body.len());
    let started = Instant::now();
    late.write_all(head.as_bytes()).unwrap();
    late.read_exact(&mut [0; 25]).expect("100 Continue shows that the request has begun");
    blocking.write_all(post("/block", "").as_bytes()).unwrap();
    let (_, reply) = fixture.echo.release();
    // The body, which is larger than one read, arrives while the reader is blocked beyond the deadline.
    std::thread::scope(|scope| {
        let mut writer = late.try_clone().unwrap();
        scope.spawn(move || writer.write_all(body.as_bytes()).unwrap());
        while started.elapsed() < timeout + Duration::from_millis(100) {
            std::thread::yield_now();
        }
        fixture.echo.unblock.0.send(()).unwrap();
        let (status, text) = answer(&mut late);
        assert_eq!((status, text.len()), (200, 600_000), "{text:.100}");
    });
    reply.send(Response::text(200, "unblocked"));
    assert_eq!(answer(&mut blocking).1, "unblocked");
    drop((blocking, late, _other));
    fixture.end();
}

#[test]
fn a_request_that_arrives_just_before_its_idle_connection_is_closed_is_served() {
    let timeout = Duration::from_secs(1);
    let fixture = start(|limits| limits.idle_timeout = timeout);
    // There are two readers, so connections 0, 2 and 4 have the same one.
    let mut sockets: Vec<_> = (0..5).map(|_| fixture.connect()).collect();
    sockets[2].write_all(post("/block", "").as_bytes()).unwrap();
    let (_, first_block) = fixture.echo.release();
    let blocked = Instant::now();
    sockets[4].write_all(post("/block", "").as_bytes()).unwrap();
    while blocked.elapsed() < timeout + Duration::from_millis(100) {
        std::thread::yield_now();
    }
    // The reader finds the event of connection 4 alone in its next wait, and the idle time of 0 over. The request on
    // connection 0 arrives while the event of 4 blocks the reader.
    fixture.echo.unblock.0.send(()).unwrap();
    let (_, second_block) = fixture.echo.release();
    sockets[0].write_all(post("/", "late").as_bytes()).unwrap();
    fixture.echo.unblock.0.send(()).unwrap();
    assert_eq!(answer(&mut sockets[0]), (200, "late".to_owned()));
    for (reply, index) in [(first_block, 2), (second_block, 4)] {
        reply.send(Response::text(200, "unblocked"));
        assert_eq!(answer(&mut sockets[index]).1, "unblocked");
    }
    drop(sockets);
    fixture.end();
}

#[test]
fn a_connection_that_arrives_during_a_drain_is_closed() {
    let inbox = Arc::new(Inbox::new(Arc::default()).unwrap());
    let (group, metrics) = (Supervisor::new("g", Stop::new()), ServerMetrics::new(&Registry::new()).of("http"));
    let reader = Reader::new(Arc::clone(&inbox), Arc::<Echo>::default(), ServerLimits::default(), metrics, None);
    group.spawn("reader", move || reader.run());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connect = || {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let (socket, peer) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        inbox.control.connection_opened(peer.ip(), 10, None).unwrap();
        inbox.post(InboxMessage::NewConnection(socket, peer));
        client
    };
    let mut before = connect();
    inbox.control.drain(Duration::ZERO);
    inbox.wake();
    assert_eq!(before.read(&mut [0]).unwrap(), 0, "the reader has begun to drain");
    // The acceptor may accept a connection just before it stops, and post it after the reader began to drain.
    let mut late = connect();
    assert_eq!(late.read(&mut [0]).expect("the reader closes it"), 0);
    assert_eq!(inbox.control.wait_until_closed(PATIENCE), 0);
    group.stop().trigger();
    inbox.control.end();
    inbox.wake();
    assert_eq!(group.join(PATIENCE), Ended::Stopped);
}

#[test]
fn all_connections_that_wait_to_be_accepted_when_the_server_stops_are_accepted() {
    let inbox = Arc::new(Inbox::new(Arc::default()).unwrap());
    let control = Arc::clone(&inbox.control);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    // The backlog of the standard library.
    let clients: Vec<_> = (0..128).map(|_| TcpStream::connect(listener.local_addr().unwrap()).unwrap()).collect();
    let acceptor = Acceptor {
        listener,
        poller: Arc::new(Poller::new().unwrap()),
        control: Arc::clone(&control),
        readers: vec![inbox],
        next_reader: 0,
        max_connections: 1_000,
        max_connections_per_ip: None,
        has_tls: false,
        handler: Arc::<Echo>::default(),
        metrics: ServerMetrics::new(&Registry::new()).of("http"),
        last_warning: None,
    };
    control.stop_accepting();
    control.end();
    acceptor.run();
    assert_eq!(control.wait_until_closed(Duration::ZERO), clients.len());
}
