//! Finds an available server: resolves the hosts and tries a ZooKeeper handshake, with a deadline, with each address.
//!
//! The zookeeper crate uses a whole CPU, hangs or panics if a server is down, silent, without quorum or not ZooKeeper.
//! So the crate gets only addresses with which a handshake succeeded. The crate also does not report the session
//! timeout that the server grants, which may be shorter than the requested one and then limits every lease. So the
//! handshake reads the granted session timeout.

use crate::random::random;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// A server that granted a session in a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AvailableServer {
    pub(super) address: SocketAddr,
    /// The session timeout that the server granted.
    pub(super) granted_timeout: Duration,
}

/// Tries the servers in random order and returns the first one that completes the handshake. Fails with the reasons of
/// all hosts and addresses if none does.
pub(super) fn find_server(
    hosts: &[String],
    session_timeout: Duration,
    connect_timeout: Duration,
) -> Result<AvailableServer, String> {
    let mut reasons = Vec::new();
    let mut addresses = Vec::new();
    for host in hosts {
        match host.to_socket_addrs() {
            Ok(found) => addresses.extend(found.map(|address| (host, address))),
            Err(cause) => reasons.push(format!("{host} cannot be resolved: {cause}")),
        }
    }
    shuffle(&mut addresses);
    for (host, address) in addresses {
        match handshake(address, session_timeout, connect_timeout) {
            Ok(granted_timeout) => return Ok(AvailableServer { address, granted_timeout }),
            Err(cause) => reasons.push(format!("{host} ({address}): {cause}")),
        }
    }
    Err(reasons.join("; "))
}

/// Requests a session, closes it at once and returns the granted session timeout.
fn handshake(address: SocketAddr, session_timeout: Duration, connect_timeout: Duration) -> io::Result<Duration> {
    let deadline = Instant::now() + connect_timeout;
    let mut stream = TcpStream::connect_timeout(&address, connect_timeout)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(connect_timeout))?;
    stream.write_all(&connect_request(session_timeout))?;
    let mut length = [0; 4];
    read_until(&mut stream, &mut length, deadline)?;
    // A connect response has 36 bytes, or 37 with the read-only flag of newer servers. The first bytes of an HTTP or
    // TLS response, read as a length, are a much larger number.
    let length = u32::from_be_bytes(length);
    if !(36..=40).contains(&length) {
        return Err(not_zookeeper());
    }
    let mut response = [0; 40];
    let response = &mut response[..length as usize];
    read_until(&mut stream, response, deadline)?;
    let granted = parse_connect_response(response).ok_or_else(not_zookeeper)?;
    // Without this request the server keeps the session until it expires, so a failure to send it is ignored.
    let close_session = [0, 0, 0, 8, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xf5];
    if stream.write_all(&close_session).is_ok() {
        let _ = read_until(&mut stream, &mut [0; 20], deadline);
    }
    Ok(granted)
}

fn not_zookeeper() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not ZooKeeper: unexpected response to the handshake")
}

/// Returns a connect request: length, protocol version, last zxid seen, timeout, session id, a password of 16 zero
/// bytes, not read-only.
fn connect_request(session_timeout: Duration) -> Vec<u8> {
    let timeout_ms = i32::try_from(session_timeout.as_millis()).unwrap_or(i32::MAX);
    let mut request = Vec::with_capacity(49);
    request.extend_from_slice(&45_u32.to_be_bytes());
    request.extend_from_slice(&[0; 12]);
    request.extend_from_slice(&timeout_ms.to_be_bytes());
    request.extend_from_slice(&[0; 8]);
    request.extend_from_slice(&16_u32.to_be_bytes());
    request.extend_from_slice(&[0; 17]);
    request
}

/// Returns the granted session timeout; `None` if `response` is no connect response or grants no session.
fn parse_connect_response(response: &[u8]) -> Option<Duration> {
    let word = |from: usize| response.get(from..from + 4)?.try_into().ok().map(i32::from_be_bytes);
    let (version, timeout_ms, password_length) = (word(0)?, word(4)?, word(16)?);
    let granted = u64::try_from(timeout_ms).ok().filter(|granted| *granted > 0)?;
    (version == 0 && password_length == 16).then(|| Duration::from_millis(granted))
}

/// Fills `buffer` like `read_exact`, but with one deadline for the whole buffer. Fails at the deadline or when the
/// server closes the connection.
fn read_until(stream: &mut TcpStream, mut buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "accepts connections but does not respond"));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(buffer) {
            Ok(0) => {
                let reason = "closed the connection (not ZooKeeper, or no quorum)";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
            }
            Ok(read) => buffer = &mut buffer[read..],
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn shuffle<T>(items: &mut [T]) {
    for end in (1..items.len()).rev() {
        let chosen = random() % (end as u64 + 1);
        items.swap(end, usize::try_from(chosen).expect("at most the index `end`"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn connect_request_and_response_have_the_format_of_the_zookeeper_protocol() {
        let request = connect_request(Duration::from_secs(6));
        assert_eq!(request.len(), 49);
        assert_eq!(request[16..20], 6_000_i32.to_be_bytes());
        let mut response = [0_u8; 37];
        response[4..8].copy_from_slice(&4_000_i32.to_be_bytes());
        response[19] = 16;
        assert_eq!(parse_connect_response(&response), Some(Duration::from_secs(4)));
        assert_eq!(parse_connect_response(&response[..18]), None);
        for (index, wrong) in [(3, 1), (4, 0xff), (19, 15)] {
            let mut response = response;
            response[index] = wrong;
            assert_eq!(parse_connect_response(&response), None, "byte {index}");
        }
        response[4..8].fill(0);
        assert_eq!(parse_connect_response(&response), None, "a timeout of 0 grants no session");
    }

    #[test]
    fn servers_that_are_silent_not_zookeeper_or_down_are_skipped_within_the_connect_timeout() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let http = TcpListener::bind("127.0.0.1:0").unwrap();
        let http_address = http.local_addr().unwrap().to_string();
        let http_server = std::thread::spawn(move || {
            let (mut stream, _) = http.accept().unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
            let _ = stream.read(&mut [0; 64]);
        });
        let down = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let hosts = [silent.local_addr().unwrap().to_string(), http_address, down, "no-port".to_owned()];
        let started = Instant::now();
        let reason = find_server(&hosts, Duration::from_secs(6), Duration::from_millis(200)).unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(10));
        for words in ["does not respond", "not ZooKeeper", "refused", "no-port cannot be resolved"] {
            assert!(reason.contains(words), "{words:?} is missing in {reason:?}");
        }
        http_server.join().unwrap();
    }

    #[test]
    fn shuffle_keeps_all_items_and_can_put_each_of_them_first() {
        let mut first = [0; 4];
        for _ in 0..400 {
            let mut items = [0, 1, 2, 3];
            shuffle(&mut items);
            first[items[0]] += 1;
            items.sort_unstable();
            assert_eq!(items, [0, 1, 2, 3]);
        }
        assert!(first.iter().all(|count| *count > 40), "{first:?}");
    }
}
