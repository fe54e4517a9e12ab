//! Servers in this process for tests: a listener whose connections a closure serves, and the broker's side of the
//! protocol.

#[cfg(feature = "tls")]
pub(super) mod tls;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::config::BrokerAddress;

/// Longer than any test takes unless it fails.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn later() -> Instant {
    Instant::now() + PATIENCE
}

/// Returns a deadline for calls that are expected to time out.
pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_millis(300)
}

/// Runs `client` with the address of a server; `serve` serves its connections one after another. Panics of both are
/// passed on.
pub(super) fn with_server<T>(serve: impl FnMut(TcpStream) + Send, client: impl FnOnce(&BrokerAddress) -> T) -> T {
    with_server_at("127.0.0.1", serve, client)
}

/// Like [`with_server`], at another address of this machine.
pub(super) fn with_server_at<T>(
    ip: &str,
    serve: impl FnMut(TcpStream) + Send,
    client: impl FnOnce(&BrokerAddress) -> T,
) -> T {
    let listener = TcpListener::bind((ip, 0)).unwrap();
    let local = listener.local_addr().unwrap();
    let is_done = AtomicBool::new(false);
    let mut serve = serve;
    /// Ends the loop of the server, also if the client panics.
    struct Done<'a>(&'a AtomicBool, std::net::SocketAddr);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
            drop(TcpStream::connect(self.1));
        }
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for socket in listener.incoming() {
                if is_done.load(Ordering::SeqCst) {
                    return;
                }
                let socket = socket.unwrap();
                socket.set_nodelay(true).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                serve(socket);
            }
        });
        let _done = Done(&is_done, local);
        client(&BrokerAddress { host: ip.into(), port: local.port() })
    })
}

/// Reads until the client closes the connection.
pub(super) fn drain(stream: &mut impl Read) {
    let mut buffer = vec![0; 64 * 1024];
    while stream.read(&mut buffer).is_ok_and(|count| count > 0) {}
}

/// Reads an HTTP request; returns its head and its body.
pub(super) fn read_http(stream: &mut impl Read) -> (String, String) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

/// Sends an HTTP response.
pub(super) fn answer_http(stream: &mut impl Write, status: &str, body: &str) {
    // The client may have closed the connection.
    let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let _ = stream.flush();
}

/// A request as a broker sees it; `body` begins after correlation id and client id.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) api_key: i16,
    pub(super) version: i16,
    pub(super) correlation_id: i32,
    pub(super) body: Vec<u8>,
}

/// The broker's side of a connection.
pub(super) struct Peer<S>(pub(super) S);

impl<S: Read + Write> Peer<S> {
    /// Reads bytes with a length prefix; `None` if the client has closed the connection.
    pub(super) fn frame(&mut self) -> Option<Vec<u8>> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).ok()?;
        let mut frame = vec![0; i32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut frame).ok()?;
        Some(frame)
    }

    /// Reads a request; `None` if the client has closed the connection.
    pub(super) fn request(&mut self) -> Option<Received> {
        let frame = self.frame()?;
        let i16_at = |at: usize| i16::from_be_bytes([frame[at], frame[at + 1]]);
        let body_at = 10 + i16_at(8) as usize;
        let correlation_id = i32::from_be_bytes(frame[4..8].try_into().unwrap());
        Some(Received { api_key: i16_at(0), version: i16_at(2), correlation_id, body: frame[body_at..].to_vec() })
    }

    /// Sends bytes with a length prefix.
    pub(super) fn send_frame(&mut self, bytes: &[u8]) {
        let frame = [&(bytes.len() as i32).to_be_bytes()[..], bytes].concat();
        // The client may have closed the connection.
        let _ = self.0.write_all(&frame).and_then(|()| self.0.flush());
    }

    /// Sends a response without tagged fields in its header.
    pub(super) fn respond(&mut self, request: &Received, body: &[u8]) {
        self.send_frame(&[&request.correlation_id.to_be_bytes()[..], body].concat());
    }

    /// Reads the ApiVersions request and answers that the broker supports `apis`: key, lowest and highest version.
    pub(super) fn answer_versions(&mut self, apis: &[(i16, i16, i16)]) -> Option<()> {
        let request = self.request()?;
        assert_eq!((request.api_key, request.version), (18, 3));
        let mut body = vec![0, 0, apis.len() as u8 + 1];
        for (key, low, high) in apis {
            body.extend([key.to_be_bytes(), low.to_be_bytes(), high.to_be_bytes()].concat());
            body.push(0);
        }
        body.extend([0; 5]);
        self.respond(&request, &body);
        Some(())
    }
}
