//! Waits for events of many sockets at once: epoll(7), level-triggered, one system call for each wait.
//!
//! One thread waits. Any thread may add, change or remove sockets, and wake the waiting thread.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;

/// Limit on the events that one wait returns; the next wait returns further events.
const MAX_EVENTS: usize = 1024;
/// The key of the waker; the keys of sockets are smaller.
const WAKER: u64 = u64::MAX;

/// The events of a socket that a wait reports. Errors are always reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    /// Bytes or connections have arrived, or the client closed its sending half.
    Readable,
    /// The send buffer has room.
    Writable,
    /// Only errors, and the end of both directions of the connection.
    ErrorsOnly,
}

impl Interest {
    fn flags(self) -> epoll::EventFlags {
        match self {
            Interest::Readable => epoll::EventFlags::IN | epoll::EventFlags::RDHUP,
            Interest::Writable => epoll::EventFlags::OUT,
            Interest::ErrorsOnly => epoll::EventFlags::empty(),
        }
    }
}

/// An epoll instance with the sockets of one thread, and an eventfd that wakes this thread.
#[derive(Debug)]
pub(super) struct Poller {
    epoll: OwnedFd,
    waker: OwnedFd,
}

/// The events of one wait.
pub(super) struct Events(Vec<epoll::Event>);

impl Default for Events {
    fn default() -> Self {
        Events(Vec::with_capacity(MAX_EVENTS))
    }
}

impl Events {
    /// Returns the keys of the sockets with an event, each key at most once.
    pub(super) fn keys(&self) -> impl Iterator<Item = usize> {
        let keys = self.0.iter().map(|event| event.data.u64()).filter(|key| *key != WAKER);
        keys.map(|key| usize::try_from(key).expect("a key is a usize when its socket is added"))
    }
}

impl Poller {
    /// Creates a poller without sockets.
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let waker = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // The eventfd is edge-triggered: each wake is reported once, so its counter need not be read.
        epoll::add(&epoll, &waker, epoll::EventData::new_u64(WAKER), epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        Ok(Poller { epoll, waker })
    }

    /// Adds a socket whose events have the key `key`. The socket stays in the poller until it is removed or closed.
    pub(super) fn add(&self, socket: &impl AsFd, key: usize, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, data(key), interest.flags())?)
    }

    /// Changes the key and the reported events of a socket.
    pub(super) fn modify(&self, socket: &impl AsFd, key: usize, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, socket, data(key), interest.flags())?)
    }

    /// Removes a socket, whose events are then not reported any more.
    pub(super) fn remove(&self, socket: &impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, socket)?)
    }

    /// Waits for an event, a wake, or the end of `timeout`. `None` waits without a timeout.
    pub(super) fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        events.0.clear();
        // Rounded up to milliseconds: a timeout rounded down to 0 would make the caller's loop busy until the deadline.
        let timeout = timeout.map(|timeout| {
            let millis = i64::try_from(timeout.as_micros().div_ceil(1_000)).unwrap_or(i64::MAX);
            Timespec { tv_sec: millis / 1_000, tv_nsec: millis % 1_000 * 1_000_000 }
        });
        match epoll::wait(&self.epoll, spare_capacity(&mut events.0), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(cause) => Err(cause.into()),
        }
    }

    /// Ends the current wait; if no thread waits, ends the next wait.
    pub(super) fn wake(&self) -> io::Result<()> {
        match rustix::io::write(&self.waker, &1_u64.to_ne_bytes()) {
            // EAGAIN: the counter is at its maximum, after 2^64 - 2 wakes, which no process reaches.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(cause) => Err(cause.into()),
        }
    }
}

fn data(key: usize) -> epoll::EventData {
    epoll::EventData::new_u64(key as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    const NONE: [usize; 0] = [];

    fn keys(poller: &Poller, timeout: Duration) -> Vec<usize> {
        let mut events = Events::default();
        poller.wait(&mut events, Some(timeout)).unwrap();
        events.keys().collect()
    }

    #[test]
    fn an_event_is_reported_until_it_is_handled() {
        const SOON: Duration = Duration::from_secs(30);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let poller = Poller::new().unwrap();
        poller.add(&listener, 7, Interest::Readable).unwrap();
        assert_eq!(keys(&poller, Duration::ZERO), NONE);
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(keys(&poller, SOON), [7]);
        let (mut socket, _) = listener.accept().unwrap();
        poller.remove(&listener).unwrap();

        poller.add(&socket, 8, Interest::Readable).unwrap();
        assert_eq!(keys(&poller, Duration::ZERO), NONE);
        client.write_all(b"x").unwrap();
        assert_eq!((keys(&poller, SOON), keys(&poller, SOON)), (vec![8], vec![8]), "level-triggered");
        poller.modify(&socket, 8, Interest::ErrorsOnly).unwrap();
        assert_eq!(keys(&poller, Duration::ZERO), NONE);
        poller.modify(&socket, 9, Interest::Writable).unwrap();
        assert_eq!(keys(&poller, SOON), [9]);
        poller.modify(&socket, 8, Interest::Readable).unwrap();
        socket.read_exact(&mut [0]).unwrap();
        assert_eq!(keys(&poller, Duration::ZERO), NONE);
        drop(client);
        assert_eq!(keys(&poller, SOON), [8], "the end of the stream is readable");
    }

    #[test]
    fn a_wake_ends_the_current_wait_or_the_next_one() {
        let poller = Poller::new().unwrap();
        poller.wake().unwrap();
        poller.wake().unwrap();
        assert_eq!(keys(&poller, Duration::from_secs(3600)), NONE);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| keys(&poller, Duration::from_secs(3600)));
            poller.wake().unwrap();
            assert_eq!(waiting.join().unwrap(), NONE);
        });
    }
}
