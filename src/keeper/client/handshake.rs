//! Connects to an available server: resolves the hosts and tries a ZooKeeper handshake, with a deadline, with each
//! address.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::protocol::{Connected, SessionKey, connect_request, is_connect_response_length, parse_connect_response};
use crate::random::random;

/// The parameters of a handshake.
#[derive(Clone, Debug)]
pub(super) struct Handshake {
    /// The session to continue; the default requests a new one.
    pub(super) session: SessionKey,
    pub(super) session_timeout: Duration,
    /// A server that has not seen this change yet refuses the connection.
    pub(super) last_zxid: i64,
    pub(super) connect_timeout: Duration,
    /// The server whose connection was lost, which is tried last.
    pub(super) lost_server: Option<SocketAddr>,
}

/// A connection with a completed handshake.
#[derive(Debug)]
pub(super) struct Established {
    pub(super) stream: TcpStream,
    pub(super) address: SocketAddr,
    pub(super) connected: Connected,
}

/// Tries the servers in random order and returns the first connection whose handshake succeeds. Fails with the reasons
/// of all hosts and addresses if none does.
pub(super) fn find_server(hosts: &[String], handshake: &Handshake) -> Result<Established, String> {
    let mut reasons = Vec::new();
    let mut addresses = Vec::new();
    for host in hosts {
        match host.to_socket_addrs() {
            Ok(found) => addresses.extend(found.map(|address| (host, address))),
            Err(cause) => reasons.push(format!("{host} cannot be resolved: {cause}")),
        }
    }
    shuffle(&mut addresses);
    addresses.sort_by_key(|(_, address)| handshake.lost_server == Some(*address));
    for (host, address) in addresses {
        match handshake.with(address) {
            Ok((stream, connected)) => return Ok(Established { stream, address, connected }),
            Err(cause) => reasons.push(format!("{host} ({address}): {cause}")),
        }
    }
    Err(reasons.join("; "))
}

impl Handshake {
    fn with(&self, address: SocketAddr) -> io::Result<(TcpStream, Connected)> {
        let deadline = Instant::now() + self.connect_timeout;
        let mut stream = TcpStream::connect_timeout(&address, self.connect_timeout)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(self.connect_timeout))?;
        stream.write_all(&connect_request(self.session_timeout, self.session, self.last_zxid))?;
        let mut length = [0; 4];
        read_until(&mut stream, &mut length, deadline)?;
        let length = u32::from_be_bytes(length);
        if !is_connect_response_length(length) {
            return Err(not_zookeeper());
        }
        let mut response = [0; 40];
        let response = &mut response[..length as usize];
        read_until(&mut stream, response, deadline)?;
        let connected = parse_connect_response(response).ok_or_else(not_zookeeper)?;
        Ok((stream, connected))
    }
}

fn not_zookeeper() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not ZooKeeper: unexpected response to the handshake")
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
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether a read failed only because nothing arrived yet.
pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
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
        let handshake = Handshake {
            session: SessionKey::default(),
            session_timeout: Duration::from_secs(6),
            last_zxid: 0,
            connect_timeout: Duration::from_millis(200),
            lost_server: None,
        };
        let reason = find_server(&hosts, &handshake).unwrap_err();
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
