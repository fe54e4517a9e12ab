//! The sockets of the brokers: one thread accepts the connections of a broker, one thread serves each connection, its
//! requests in order.
//!
//! Each thread ends when its broker stops: stopping closes the connections and wakes the waiting threads.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::call::{Context, Ended, Reply};
use super::requests::serve;
use super::state::Shared;

/// Largest request accepted (`socket.request.max.bytes`).
const MAX_REQUEST_BYTES: usize = 100 << 20;

/// The threads of a cluster.
#[derive(Debug, Default)]
pub(super) struct Threads {
    handles: Mutex<Vec<JoinHandle<()>>>,
    has_panicked: AtomicBool,
}

impl Threads {
    pub(super) fn spawn(&self, name: String, body: impl FnOnce() + Send + 'static) {
        let handle = std::thread::Builder::new().name(name).spawn(body).expect("a thread can be started");
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        handles.push(handle);
        // Long runs open many connections: their ended threads are let go.
        let ended: Vec<_> = handles.extract_if(.., |handle| handle.is_finished()).collect();
        drop(handles);
        ended.into_iter().for_each(|handle| self.reap(handle));
    }

    fn reap(&self, handle: JoinHandle<()>) {
        if handle.join().is_err() {
            self.has_panicked.store(true, Ordering::Relaxed);
        }
    }

    /// Waits for all threads; returns whether one has panicked.
    pub(super) fn join(&self) -> bool {
        // A thread that ends may have started another one, so the list is read again each time.
        while let Some(handle) = {
            let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
            handles.pop()
        } {
            self.reap(handle);
        }
        self.has_panicked.load(Ordering::Relaxed)
    }
}

/// Binds the socket of a broker: port 0 on its first start, the same port later.
pub(super) fn bind(port: u16) -> TcpListener {
    // The port of a stopped broker may still be busy for a moment while its last connections close.
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => return listener,
            Err(cause) if Instant::now() >= until => {
                panic!("cannot bind port {port} of a broker: {cause}")
            }
            Err(_) => std::thread::yield_now(),
        }
    }
}

/// Wakes the accepting thread of a broker, which then finds out that it must end.
pub(super) fn wake(port: u16) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let _ = TcpStream::connect_timeout(&address, Duration::from_secs(1));
}

/// Starts the thread that accepts the connections of a broker.
pub(super) fn start(threads: &Arc<Threads>, shared: &Arc<Shared>, broker: i32, run: u64, listener: TcpListener) {
    let (of_connections, shared) = (Arc::clone(threads), Arc::clone(shared));
    threads.spawn(format!("testkit-accept-{broker}"), move || {
        for number in 0_u64.. {
            let accepted = listener.accept();
            let mut state = shared.lock();
            let is_current =
                !state.is_closing && state.broker(broker).is_some_and(|broker| broker.is_running && broker.run == run);
            if !is_current {
                drop(listener);
                state.broker_mut(broker).is_listening = false;
                shared.notify(&mut state);
                return;
            }
            let Ok((stream, client)) = accepted else {
                continue;
            };
            let _ = stream.set_nodelay(true);
            let stream = Arc::new(stream);
            // Unique among the runs of a broker, too.
            let id = (run << 32) | number;
            state.counters.connections += 1;
            let is_authenticated = state.users.is_none();
            state.broker_mut(broker).connections.insert(id, Arc::clone(&stream));
            shared.notify(&mut state);
            drop(state);
            let mut context = Context {
                shared: Arc::clone(&shared),
                broker,
                run,
                client_host: client.ip().to_string(),
                client_id: String::new(),
                version: 0,
                is_authenticated,
                mechanism: None,
                session_ends: None,
                expects_raw_token: false,
                closes_after_response: false,
                throttled_until: None,
            };
            of_connections.spawn(format!("testkit-conn-{broker}"), move || {
                let _ = run_connection(&mut context, &stream);
                let _ = stream.shutdown(Shutdown::Both);
                let mut state = context.lock();
                if context.is_alive(&state) {
                    state.broker_mut(broker).connections.remove(&id);
                }
                context.shared.notify(&mut state);
            });
        }
    });
}

/// Serves the requests of a connection until it ends.
fn run_connection(context: &mut Context, stream: &TcpStream) -> Result<(), Ended> {
    // Closes after a blackout: a swallowed request leaves the client without its answer for good.
    let mut has_swallowed = false;
    while let Ok(Some(frame)) = read_frame(stream) {
        context.wait_while_paused()?;
        let mut state = context.lock();
        if state.blackout_until.is_some_and(|until| Instant::now() < until) {
            state.counters.swallowed += 1;
            context.shared.notify(&mut state);
            has_swallowed = true;
            continue;
        }
        drop(state);
        if has_swallowed {
            return Err(Ended);
        }
        match serve(context, frame)? {
            Reply::Nothing => {}
            Reply::Send { bytes, closes, pause } => {
                context.wait_while_paused()?;
                send(context, stream, &bytes, pause)?;
                if closes {
                    return Err(Ended);
                }
            }
        }
    }
    Ok(())
}

/// Sends a response; if the client is gone, the next read ends the connection.
fn send(context: &Context, mut stream: &TcpStream, bytes: &[u8], pause: Option<Duration>) -> Result<(), Ended> {
    let Some(pause) = pause else {
        return stream.write_all(bytes).map_err(|_| Ended);
    };
    for byte in bytes {
        stream.write_all(&[*byte]).map_err(|_| Ended)?;
        context.sleep(pause)?;
    }
    Ok(())
}

/// Reads a request; `None` if the client has closed the connection.
fn read_frame(mut stream: &TcpStream) -> io::Result<Option<Bytes>> {
    let mut length = [0; 4];
    if let Err(cause) = stream.read_exact(&mut length) {
        return if cause.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(cause) };
    }
    let length = usize::try_from(i32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_REQUEST_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut frame = Vec::new();
    stream.take(length as u64).read_to_end(&mut frame)?;
    if frame.len() < length { Ok(None) } else { Ok(Some(frame.into())) }
}
