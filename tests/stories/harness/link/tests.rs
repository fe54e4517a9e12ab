//! Each fault of a link, seen by a client and a server.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::{Flow, Link, Traffic};

const SHORT: Duration = Duration::from_millis(150);
const DEADLINE: Duration = Duration::from_secs(10);

struct Ends {
    link: Link,
    listener: TcpListener,
    client: TcpStream,
    server: TcpStream,
}

fn ends() -> Ends {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let link = Link::to(&listener.local_addr().expect("an address").to_string());
    let client = TcpStream::connect(link.address()).expect("the link listens");
    let (server, _) = listener.accept().expect("the link connects");
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(DEADLINE)).expect("not zero");
    }
    Ends { link, listener, client, server }
}

/// Returns what a read of one byte gives within `timeout`: the byte, `None` at the end, or the kind of the error.
fn read(mut socket: &TcpStream, timeout: Duration) -> Result<Option<u8>, ErrorKind> {
    socket.set_read_timeout(Some(timeout)).expect("not zero");
    let mut byte = [0];
    match socket.read(&mut byte) {
        Ok(0) => Ok(None),
        Ok(_) => Ok(Some(byte[0])),
        Err(error) => Err(error.kind()),
    }
}

fn write(mut socket: &TcpStream, byte: u8) {
    socket.write_all(&[byte]).expect("the socket takes a byte");
}

#[test]
fn bytes_and_ends_pass_in_both_directions() {
    let Ends { link, client, server, listener: _listener } = ends();
    write(&client, 1);
    assert_eq!(read(&server, DEADLINE), Ok(Some(1)));
    write(&server, 2);
    assert_eq!(read(&client, DEADLINE), Ok(Some(2)));
    drop(client);
    assert_eq!(read(&server, DEADLINE), Ok(None));
    drop(link);
    assert!(matches!(read(&server, DEADLINE), Ok(None) | Err(_)));
}

#[test]
fn a_stalled_link_holds_the_bytes_and_one_direction_holds_only_the_other() {
    let Ends { link, client, server, listener: _listener } = ends();
    link.stall();
    write(&client, 1);
    write(&server, 2);
    assert_eq!(read(&server, SHORT), Err(ErrorKind::WouldBlock));
    assert_eq!(read(&client, SHORT), Err(ErrorKind::WouldBlock));
    link.set(Traffic::only(Flow::ToServer));
    assert_eq!(read(&server, DEADLINE), Ok(Some(1)));
    assert_eq!(read(&client, SHORT), Err(ErrorKind::WouldBlock));
    link.restore();
    assert_eq!(read(&client, DEADLINE), Ok(Some(2)));
}

#[test]
fn a_reset_reaches_both_ends_and_a_cut_refuses_until_the_link_is_restored() {
    let Ends { link, listener, client, server } = ends();
    link.reset();
    assert_eq!(read(&client, DEADLINE), Err(ErrorKind::ConnectionReset));
    assert_eq!(read(&server, DEADLINE), Err(ErrorKind::ConnectionReset));

    let client = TcpStream::connect(link.address()).expect("the link still listens");
    let (server, _) = listener.accept().expect("the link connects");
    link.cut();
    assert_eq!(read(&client, DEADLINE), Ok(None));
    assert_eq!(read(&server, DEADLINE), Ok(None));
    TcpStream::connect(link.address()).expect_err("the port is closed");
    link.restore();
    TcpStream::connect(link.address()).expect("the link listens again");
}

#[test]
fn a_half_open_connection_is_silent_and_is_reset_when_the_link_is_restored() {
    let Ends { link, client, server, listener: _listener } = ends();
    link.half_open();
    assert_eq!(read(&server, DEADLINE), Ok(None));
    write(&client, 1);
    assert_eq!(read(&client, SHORT), Err(ErrorKind::WouldBlock));
    link.restore();
    assert_eq!(read(&client, DEADLINE), Err(ErrorKind::ConnectionReset));
}

#[test]
fn bytes_arrive_after_the_delay_and_at_the_rate() {
    let Ends { link, client, server, listener: _listener } = ends();
    link.set(Traffic::delayed(Duration::from_millis(100)));
    let sent = Instant::now();
    write(&client, 1);
    assert_eq!(read(&server, DEADLINE), Ok(Some(1)));
    assert!(sent.elapsed() >= Duration::from_millis(100), "arrived after {:?}", sent.elapsed());

    link.set(Traffic::limited(10_000));
    let sent = Instant::now();
    (&client).write_all(&[7; 2_000]).expect("the socket takes it");
    (&server).read_exact(&mut [0; 2_000]).expect("all arrives");
    assert!(sent.elapsed() >= Duration::from_millis(140), "2,000 bytes at 10,000 a second: {:?}", sent.elapsed());
}

#[test]
fn a_link_whose_server_is_gone_resets_the_client_and_finds_another_server() {
    let Ends { link, listener, .. } = ends();
    drop(listener);
    let client = TcpStream::connect(link.address()).expect("the link listens");
    assert!(matches!(read(&client, DEADLINE), Err(ErrorKind::ConnectionReset) | Ok(None)));
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    link.set_target(&other.local_addr().expect("an address").to_string());
    let client = TcpStream::connect(link.address()).expect("the link listens");
    let (server, _) = other.accept().expect("the link connects to the other server");
    write(&client, 3);
    assert_eq!(read(&server, DEADLINE), Ok(Some(3)));
}
