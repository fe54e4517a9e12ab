//! Waiting for many sockets at once: epoll(7), level-triggered, one system call for each wait.
//!
//! One thread waits; any thread may change what is watched, and wake the waiting one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;

/// Events of one wait; further ones come with the next.
const MAX_EVENTS: usize = 1024;
/// The key of the waker; sockets have smaller ones.
const WAKER: u64 = u64::MAX;

/// What is reported of a socket. Errors are always reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    /// Bytes or connections have arrived, or the client closed its sending half.
    Readable,
    /// The send buffer has room.
    Writable,
    /// Errors and hang-ups.
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

/// The sockets one thread waits for.
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
    /// The keys of the sockets with an event, each at most once.
    pub(super) fn keys(&self) -> impl Iterator<Item = usize> {
        let keys = self.0.iter().map(|event| event.data.u64()).filter(|key| *key != WAKER);
        keys.map(|key| usize::try_from(key).expect("a key is a usize when its socket is added"))
    }
}

impl Poller {
    /// A poller without sockets.
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let waker = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // Edge-triggered: each wake is reported once, and the counter is never read.
        epoll::add(&epoll, &waker, epoll::EventData::new_u64(WAKER), epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        Ok(Poller { epoll, waker })
    }

    /// Watches a socket, whose events carry `key`, until it is removed or closed.
    pub(super) fn add(&self, socket: &impl AsFd, key: usize, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, data(key), interest.flags())?)
    }

    /// Changes what is reported of a socket.
    pub(super) fn modify(&self, socket: &impl AsFd, key: usize, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, socket, data(key), interest.flags())?)
    }

    /// Stops watching a socket.
    pub(super) fn remove(&self, socket: &impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, socket)?)
    }

    /// Waits for an event, a wake, or the end of `timeout` (`None`: no timeout).
    pub(super) fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        events.0.clear();
        // Rounded up to milliseconds, so that a wait of less than one does not become a busy loop.
        let timeout = timeout.map(|timeout| {
            let millis = i64::try_from(timeout.as_micros().div_ceil(1_000)).unwrap_or(i64::MAX);
            Timespec { tv_sec: millis / 1_000, tv_nsec: millis % 1_000 * 1_000_000 }
        });
        match epoll::wait(&self.epoll, spare_capacity(&mut events.0), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(cause) => Err(cause.into()),
        }
    }

    /// Ends the current wait, or the next one.
    pub(super) fn wake(&self) -> io::Result<()> {
        match rustix::io::write(&self.waker, &1_u64.to_ne_bytes()) {
            // The counter is at its maximum; every wake so far was reported.
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
    fn a_wake_ends_the_current_wait_or_the_next() {
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
