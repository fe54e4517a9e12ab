//! Finds a server worth a client: resolves the hosts, and shakes hands with one after the other, with deadlines.
//!
//! The zookeeper crate must never meet an address that is down, silent, without quorum or of another protocol: it spins, hangs or
//! panics there. It also hides the session timeout that the server grants, which may be shorter than the one asked for and
//! then decides until when a claim is safe; the handshake here learns it.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// A server that speaks ZooKeeper and takes sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) address: SocketAddr,
    /// The session timeout it grants.
    pub(super) granted: Duration,
}

/// The first server, in random order, that shakes hands; or why there is none, naming each host.
pub(super) fn find_server(
    hosts: &[String],
    session_timeout: Duration,
    connect_timeout: Duration,
) -> Result<Server, String> {
    let mut reasons = Vec::new();
    let mut addresses = Vec::new();
    for host in hosts {
        match host.to_socket_addrs() {
            Ok(found) => addresses.extend(found.map(|address| (host, address))),
            Err(cause) => reasons.push(format!("{host} is not resolved: {cause}")),
        }
    }
    shuffle(&mut addresses);
    for (host, address) in addresses {
        match shake_hands(address, session_timeout, connect_timeout) {
            Ok(granted) => return Ok(Server { address, granted }),
            Err(cause) => reasons.push(format!("{host} ({address}): {cause}")),
        }
    }
    Err(reasons.join("; "))
}

/// Asks for a session and gives it back at once; returns the granted timeout.
fn shake_hands(address: SocketAddr, session_timeout: Duration, connect_timeout: Duration) -> io::Result<Duration> {
    let deadline = Instant::now() + connect_timeout;
    let mut stream = TcpStream::connect_timeout(&address, connect_timeout)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(connect_timeout))?;
    stream.write_all(&connect_request(session_timeout))?;
    let mut length = [0; 4];
    read_until(&mut stream, &mut length, deadline)?;
    // 36 bytes, 37 with the read-only flag of newer servers; HTTP and TLS answers are far from both.
    let length = u32::from_be_bytes(length);
    if !(36..=40).contains(&length) {
        return Err(not_zookeeper());
    }
    let mut answer = [0; 40];
    let answer = &mut answer[..length as usize];
    read_until(&mut stream, answer, deadline)?;
    let granted = parse_connect_response(answer).ok_or_else(not_zookeeper)?;
    // Given back so that it does not burden the server until it expires. Whether this arrives does not matter.
    let close_session = [0, 0, 0, 8, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xf5];
    if stream.write_all(&close_session).is_ok() {
        let _ = read_until(&mut stream, &mut [0; 20], deadline);
    }
    Ok(granted)
}

fn not_zookeeper() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "what answers there is not ZooKeeper")
}

/// Length, protocol version, last transaction seen, timeout, session id, an empty password of 16 bytes, not read-only.
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

/// The granted timeout, if this is a connect response at all and grants a session.
fn parse_connect_response(answer: &[u8]) -> Option<Duration> {
    let word = |from: usize| answer.get(from..from + 4)?.try_into().ok().map(i32::from_be_bytes);
    let (version, timeout_ms, password_length) = (word(0)?, word(4)?, word(16)?);
    let granted = u64::try_from(timeout_ms).ok().filter(|granted| *granted > 0)?;
    (version == 0 && password_length == 16).then(|| Duration::from_millis(granted))
}

/// `read_exact` with one deadline for all of it, however slowly it drips.
fn read_until(stream: &mut TcpStream, mut buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it accepts connections but does not answer"));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(buffer) {
            Ok(0) => {
                let reason = "it closes the connection (not ZooKeeper, or no quorum)";
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
        items.swap(end, usize::try_from(chosen).expect("not above the index it was reduced to"));
    }
}

/// A random number, good enough to spread load and pauses.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(0_u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn the_handshake_is_that_of_the_protocol() {
        let request = connect_request(Duration::from_secs(6));
        assert_eq!(request.len(), 49);
        assert_eq!(request[16..20], 6_000_i32.to_be_bytes());
        let mut answer = [0_u8; 37];
        answer[4..8].copy_from_slice(&4_000_i32.to_be_bytes());
        answer[19] = 16;
        assert_eq!(parse_connect_response(&answer), Some(Duration::from_secs(4)));
        assert_eq!(parse_connect_response(&answer[..18]), None);
        for (place, wrong) in [(3, 1), (4, 0xff), (19, 15)] {
            let mut answer = answer;
            answer[place] = wrong;
            assert_eq!(parse_connect_response(&answer), None, "byte {place}");
        }
        answer[4..8].fill(0);
        assert_eq!(parse_connect_response(&answer), None, "an expired session");
    }

    #[test]
    fn servers_that_are_silent_strange_or_away_are_passed_over_in_time() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let strange = TcpListener::bind("127.0.0.1:0").unwrap();
        let strange_address = strange.local_addr().unwrap().to_string();
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = strange.accept().unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
            let _ = stream.read(&mut [0; 64]);
        });
        let away = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let hosts = [silent.local_addr().unwrap().to_string(), strange_address, away, "no-port".to_owned()];
        let started = Instant::now();
        let reason = find_server(&hosts, Duration::from_secs(6), Duration::from_millis(200)).unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(10));
        for words in ["does not answer", "not ZooKeeper", "refused", "no-port is not resolved"] {
            assert!(reason.contains(words), "{words:?} is missing in {reason:?}");
        }
        answering.join().unwrap();
    }

    #[test]
    fn a_shuffle_keeps_all_and_reaches_every_first_place() {
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
