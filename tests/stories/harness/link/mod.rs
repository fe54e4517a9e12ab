//! A TCP link with faults: a proxy on a loopback port, which a story puts between a daemon and a server.
//!
//! One thread serves all connections of a link with poll(2); it ends when the [`Link`] is dropped. A call that changes
//! the link returns when the change is in effect.

mod connection;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::connection::Connection;
use super::free_port;

/// Which bytes a link forwards. The others wait in the sockets, so that no byte is lost when the link forwards again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Both,
    ToServer,
    ToClient,
    /// No byte is forwarded and no connection is accepted, as on a network that drops every packet.
    Stalled,
}

impl Flow {
    fn has(self, direction: Flow) -> bool {
        self == Flow::Both || self == direction
    }
}

/// How a link treats the bytes that it forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) flow: Flow,
    /// The time that each byte spends in the link, in each direction.
    pub(crate) delay: Duration,
    /// The highest rate of one connection in one direction.
    pub(crate) bytes_per_second: Option<u32>,
}

impl Traffic {
    pub(crate) const NORMAL: Traffic = Traffic { flow: Flow::Both, delay: Duration::ZERO, bytes_per_second: None };

    pub(crate) const fn only(flow: Flow) -> Traffic {
        Traffic { flow, ..Traffic::NORMAL }
    }

    pub(crate) const fn delayed(delay: Duration) -> Traffic {
        Traffic { delay, ..Traffic::NORMAL }
    }

    pub(crate) const fn limited(bytes_per_second: u32) -> Traffic {
        Traffic { bytes_per_second: Some(bytes_per_second), ..Traffic::NORMAL }
    }
}

enum Command {
    Traffic(Traffic),
    Target(String),
    /// Sends RST to both ends of every connection.
    Reset,
    /// Closes every connection and the listening port.
    Cut,
    /// Closes the server's end of every connection, and leaves the client's end open and silent.
    HalfOpen,
    End,
}

/// A running link; dropping it closes its port and its connections.
pub(crate) struct Link {
    port: u16,
    commands: Sender<(Command, Sender<()>)>,
    /// A byte wakes the thread of the link, which waits in poll(2).
    waker: Mutex<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Link {
    /// Starts a link that forwards to the server at `target` (`IP:PORT`). The server need not listen yet.
    pub(crate) fn to(target: &str) -> Link {
        let port = free_port();
        let (waker, wakes) = UnixStream::pair().expect("a socket pair");
        for end in [&waker, &wakes] {
            end.set_nonblocking(true).expect("a socket can be non-blocking");
        }
        let (commands, inbox) = channel();
        let worker = Worker {
            port,
            target: target.to_owned(),
            traffic: Traffic::NORMAL,
            listener: Some(listen(port)),
            connections: Vec::new(),
            is_half_open: false,
            inbox,
            wakes,
        };
        let run = move || worker.run();
        let thread = std::thread::Builder::new().name(format!("link-{port}")).spawn(run).expect("a thread");
        Link { port, commands, waker: Mutex::new(waker), thread: Some(thread) }
    }

    /// Returns `host:port` for the client.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Ends every fault: connections are accepted and bytes forwarded. Half-open connections are reset.
    pub(crate) fn restore(&self) {
        self.set(Traffic::NORMAL);
    }

    /// Accepts connections, and forwards bytes as `traffic` says.
    pub(crate) fn set(&self, traffic: Traffic) {
        self.send(Command::Traffic(traffic));
    }

    /// Forwards no byte in either direction until [`Link::restore`]; connections stay open.
    pub(crate) fn stall(&self) {
        self.set(Traffic::only(Flow::Stalled));
    }

    /// Forwards new connections to another server.
    pub(crate) fn set_target(&self, target: &str) {
        self.send(Command::Target(target.to_owned()));
    }

    /// Sends RST to both ends of every connection; new connections are forwarded.
    pub(crate) fn reset(&self) {
        self.send(Command::Reset);
    }

    /// Closes every connection; new ones are refused until [`Link::restore`].
    pub(crate) fn cut(&self) {
        self.send(Command::Cut);
    }

    /// Closes the server's end of every connection. The client's ends stay open, and new connections are not answered,
    /// until [`Link::restore`].
    pub(crate) fn half_open(&self) {
        self.send(Command::HalfOpen);
    }

    fn send(&self, command: Command) {
        let (done, wait) = channel();
        let is_running = self.commands.send((command, done)).is_ok();
        let _ = self.waker.lock().expect("writing a byte does not panic").write(&[0]);
        // The thread drops `done` without an answer only if it has panicked.
        assert!(is_running && wait.recv().is_ok(), "the thread of the link at {} ended", self.address());
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let (done, _) = channel();
        let _ = self.commands.send((Command::End, done));
        let _ = self.waker.lock().map(|mut waker| waker.write(&[0]));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Binds the port. A port whose connections were just closed may need several attempts.
fn listen(port: u16) -> TcpListener {
    let bound = super::wait_until(Duration::from_secs(10), "the link can bind its port", || {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()
    });
    bound.set_nonblocking(true).expect("a listener can be non-blocking");
    bound
}

/// The state of a link's thread.
struct Worker {
    port: u16,
    target: String,
    traffic: Traffic,
    /// `None` after [`Command::Cut`]: connections are refused.
    listener: Option<TcpListener>,
    connections: Vec<Connection>,
    /// Whether connections are neither accepted nor closed, see [`Command::HalfOpen`].
    is_half_open: bool,
    inbox: Receiver<(Command, Sender<()>)>,
    wakes: UnixStream,
}

impl Worker {
    fn run(mut self) {
        loop {
            let now = Instant::now();
            let traffic = self.traffic;
            self.connections.retain_mut(|connection| connection.forward(&traffic, now));
            self.wait(now);
            let _ = self.wakes.read(&mut [0; 64]);
            while let Ok((command, done)) = self.inbox.try_recv() {
                if matches!(command, Command::End) {
                    return;
                }
                self.apply(command);
                let _ = done.send(());
            }
            self.accept();
        }
    }

    fn is_accepting(&self) -> bool {
        self.traffic.flow != Flow::Stalled && !self.is_half_open
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::Traffic(traffic) => {
                if self.is_half_open {
                    self.reset_all();
                }
                self.is_half_open = false;
                self.traffic = traffic;
                self.listener.get_or_insert_with(|| listen(self.port));
            }
            Command::Target(target) => self.target = target,
            Command::Reset => self.reset_all(),
            Command::Cut => {
                self.connections.clear();
                self.listener = None;
            }
            Command::HalfOpen => {
                self.is_half_open = true;
                self.connections.iter_mut().for_each(Connection::close_server);
            }
            Command::End => unreachable!("handled by the loop"),
        }
    }

    fn reset_all(&mut self) {
        self.connections.drain(..).for_each(Connection::reset);
    }

    fn accept(&mut self) {
        let Some(listener) = self.listener.as_ref().filter(|_| self.is_accepting()) else { return };
        while let Ok((client, _)) = listener.accept() {
            match connect(&self.target) {
                Ok(server) => self.connections.extend(Connection::new(client, server)),
                // As if nothing listened at the port of the link.
                Err(_) => connection::abort(&client),
            }
        }
    }

    /// Waits until a socket is ready, a delayed byte is due, or a command arrives.
    fn wait(&self, now: Instant) {
        let mut sockets = vec![PollFd::new(&self.wakes, PollFlags::IN)];
        let mut due: Option<Instant> = None;
        for connection in &self.connections {
            connection.add_interests(&self.traffic, now, &mut sockets);
            due = due.into_iter().chain(connection.next_due(&self.traffic, now)).min();
        }
        if let Some(listener) = self.listener.as_ref().filter(|_| self.is_accepting()) {
            sockets.push(PollFd::new(listener, PollFlags::IN));
        }
        let timeout = due.map(|due| due.saturating_duration_since(now));
        let timeout =
            timeout.map(|wait| Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() });
        let _ = poll(&mut sockets, timeout.as_ref());
    }
}

fn connect(target: &str) -> io::Result<TcpStream> {
    let address = target.parse().map_err(|_| io::Error::other(format!("{target} is not IP:PORT")))?;
    TcpStream::connect_timeout(&address, Duration::from_secs(1))
}

#[cfg(test)]
mod tests;
