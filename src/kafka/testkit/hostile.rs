//! Peers that are no Kafka brokers: a client must give each up with an error, in bounded time and memory.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::server::{Threads, wake};

/// What a peer does with each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hostility {
    /// Answers in HTTP: `HTTP` as a length is more than 1 GB.
    Http,
    /// Answers with a TLS alert, as a TLS server does to plaintext.
    Tls,
    /// Reads and never answers.
    Silent,
    /// Closes each connection at once.
    Closing,
    /// Closes each connection after the first request.
    ClosingAfterRequest,
    /// Announces a response of this length and sends nothing of it.
    Announcing(i32),
    /// Announces a response of 2 GB and sends it byte by byte.
    EndlessSlowly,
    /// Announces a response of 2 GB and sends it as fast as the client reads.
    EndlessFast,
}

/// A peer that is no Kafka broker; its threads end when it is dropped.
#[derive(Debug)]
pub struct HostilePeer {
    port: u16,
    threads: Arc<Threads>,
    connections: Arc<Connections>,
}

#[derive(Debug, Default)]
struct Connections {
    /// The open connections; `None` once the peer ends.
    open: Mutex<Ending>,
}

#[derive(Debug, Default)]
struct Ending {
    is_ending: bool,
    streams: Vec<Arc<TcpStream>>,
    accepted: u64,
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, Ending> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostilePeer {
    /// Starts a peer on a port of its own.
    pub fn start(hostility: Hostility) -> HostilePeer {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port can be bound");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let (threads, connections) = (Arc::<Threads>::default(), Arc::<Connections>::default());
        let (of_connections, shared) = (Arc::clone(&threads), Arc::clone(&connections));
        threads.spawn("testkit-hostile".into(), move || {
            loop {
                let accepted = listener.accept();
                let mut ending = shared.lock();
                if ending.is_ending {
                    return;
                }
                let Ok((stream, _)) = accepted else { continue };
                let stream = Arc::new(stream);
                ending.accepted += 1;
                ending.streams.push(Arc::clone(&stream));
                drop(ending);
                let shared = Arc::clone(&shared);
                of_connections.spawn("testkit-hostile".into(), move || {
                    behave(hostility, &stream);
                    let _ = stream.shutdown(Shutdown::Both);
                    shared.lock().streams.retain(|other| !Arc::ptr_eq(other, &stream));
                });
            }
        });
        HostilePeer { port, threads, connections }
    }

    /// Returns host and port.
    pub fn address(&self) -> (String, u16) {
        ("127.0.0.1".to_owned(), self.port)
    }

    /// Returns the number of connections that were accepted.
    pub fn accepted(&self) -> u64 {
        self.connections.lock().accepted
    }
}

impl Drop for HostilePeer {
    fn drop(&mut self) {
        let mut ending = self.connections.lock();
        ending.is_ending = true;
        for stream in &ending.streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(ending);
        wake(self.port);
        let has_panicked = self.threads.join();
        assert!(!has_panicked || std::thread::panicking(), "a thread of the hostile peer panicked");
    }
}

/// Serves a connection until the client closes it or the peer is dropped; each error is its end.
fn behave(hostility: Hostility, mut stream: &TcpStream) {
    let mut buffer = [0; 4096];
    if hostility == Hostility::Closing || stream.read(&mut buffer).is_ok_and(|count| count == 0) {
        return;
    }
    let answer: &[u8] = match hostility {
        Hostility::Http => b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        // Alert, TLS 1.2, two bytes: fatal, unexpected message.
        Hostility::Tls => &[0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x0a],
        Hostility::Announcing(length) => &length.to_be_bytes(),
        Hostility::EndlessSlowly | Hostility::EndlessFast => &i32::MAX.to_be_bytes(),
        Hostility::ClosingAfterRequest => return,
        Hostility::Silent | Hostility::Closing => &[],
    };
    if stream.write_all(answer).is_err() {
        return;
    }
    match hostility {
        Hostility::EndlessSlowly => {
            let _ = stream.set_read_timeout(Some(Duration::from_millis(1)));
            // The read is the pause, and ends when the peer is dropped.
            while stream.write_all(&[0]).is_ok() {
                if stream.read(&mut buffer).is_ok_and(|count| count == 0) {
                    return;
                }
            }
        }
        Hostility::EndlessFast => while stream.write_all(&buffer).is_ok() {},
        _ => while stream.read(&mut buffer).is_ok_and(|count| count > 0) {},
    }
}
