//! A fleet of scripted backends, which records when each request began and ended, and what it was.
//!
//! Unlike [`super::Backend`], a fleet notices when a client gives up a request, so its records show how long a request
//! was open at the backend. Its replies may be wrong in every way, see [`Reply`].

mod reply;
mod serve;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(crate) use reply::{Ending, Reads, Reply, http_date};

use super::{Request, free_port, wait_until};

/// The configured header by which the records tell the instances apart.
pub(crate) const INSTANCE_HEADER: &str = "X-Instance";

/// A body is recorded up to this length.
const MAX_RECORDED_BYTES: usize = 4096;

/// A request at a backend.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    /// The index of the backend in its fleet.
    pub(crate) server: usize,
    /// The request, with at most [`MAX_RECORDED_BYTES`] of its body.
    pub(crate) request: Request,
    /// The time of the first byte.
    pub(crate) began: Instant,
    /// The time just before the reply was written, or when the connection ended; `None` while the request is open.
    pub(crate) ended: Option<Instant>,
    /// The status that was sent; `None` if no status was sent.
    pub(crate) status: Option<u16>,
}

impl Arrival {
    /// Returns the message's key, `""` if it has none.
    pub(crate) fn key(&self) -> String {
        self.request.key()
    }

    /// Returns the partition and the offset, from the headers.
    #[track_caller]
    pub(crate) fn position(&self) -> (i32, i64) {
        let number = |name: &str| self.request.header(name).and_then(|value| value.parse::<i64>().ok());
        let partition = number("X-Kafka-Partition").expect("a push has X-Kafka-Partition");
        (partition as i32, number("X-Kafka-Offset").expect("a push has X-Kafka-Offset"))
    }

    pub(crate) fn attempt(&self) -> u32 {
        self.request.header("X-Kafka-Attempt").and_then(|value| value.parse().ok()).unwrap_or_default()
    }

    /// Returns the instance that sent the request, from [`INSTANCE_HEADER`].
    pub(crate) fn instance(&self) -> &str {
        self.request.header(INSTANCE_HEADER).unwrap_or_default()
    }

    /// Returns the fencing token `X-Kafka-Claim`, which grows with every claim of the partition; `None` without it.
    pub(crate) fn claim(&self) -> Option<u64> {
        self.request.header("X-Kafka-Claim").and_then(|value| value.parse().ok())
    }

    /// Returns whether the backend has taken the message: the status is 200 to 299.
    pub(crate) fn is_delivered(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status))
    }
}

/// How a backend treats new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// Accepts connections and serves requests.
    Open,
    /// Accepts connections, reads nothing and says nothing.
    Silent,
    /// Accepts connections and closes each at once.
    Closing,
}

type Script = dyn Fn(&Arrival) -> Reply + Send + Sync;

#[derive(Default)]
struct Journal {
    arrivals: Vec<Arrival>,
    /// The highest claim that was seen of each topic and partition.
    claims: HashMap<(String, String), u64>,
}

/// What the threads of one backend share.
struct Server {
    index: usize,
    port: u16,
    door: Mutex<Door>,
    script: Mutex<Arc<Script>>,
    journal: Arc<Mutex<Journal>>,
    /// Whether a request with an older claim than the highest one is refused with 412, as a backend should do.
    is_fencing: AtomicBool,
    is_closing: AtomicBool,
    connections: Mutex<BTreeMap<u64, TcpStream>>,
    n_accepted: AtomicU64,
}

/// Some backends with one record of all requests. Dropping the value closes all ports and connections.
pub(crate) struct Fleet {
    servers: Vec<Arc<Server>>,
    listeners: Vec<JoinHandle<()>>,
    journal: Arc<Mutex<Journal>>,
}

impl Fleet {
    /// Starts a backend that answers with 500 while `fails` is set.
    pub(crate) fn start_failing_while(fails: &Arc<AtomicBool>) -> Fleet {
        let is_failing = Arc::clone(fails);
        Fleet::start(1, move |_| if is_failing.load(Ordering::Relaxed) { Reply::status(500) } else { Reply::ok() })
    }

    /// Starts `n` backends that answer with the result of `script`.
    pub(crate) fn start(n: usize, script: impl Fn(&Arrival) -> Reply + Send + Sync + 'static) -> Fleet {
        let script: Arc<Script> = Arc::new(script);
        let journal = Arc::new(Mutex::new(Journal::default()));
        let (mut servers, mut listeners) = (Vec::new(), Vec::new());
        for index in 0..n {
            let server = Arc::new(Server {
                index,
                port: free_port(),
                door: Mutex::new(Door::Open),
                script: Mutex::new(Arc::clone(&script)),
                journal: Arc::clone(&journal),
                is_fencing: AtomicBool::new(false),
                is_closing: AtomicBool::new(false),
                connections: Mutex::new(BTreeMap::new()),
                n_accepted: AtomicU64::new(0),
            });
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, server.port)).expect("the port is free");
            let accepting = Arc::clone(&server);
            listeners.push(std::thread::spawn(move || accept_all(&accepting, &listener)));
            servers.push(server);
        }
        Fleet { servers, listeners, journal }
    }

    /// Returns `host:port` of each backend.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.servers.iter().map(|server| format!("127.0.0.1:{}", server.port)).collect()
    }

    /// Changes how a backend answers.
    pub(crate) fn script(&self, server: usize, script: impl Fn(&Arrival) -> Reply + Send + Sync + 'static) {
        *lock(&self.servers[server].script) = Arc::new(script);
    }

    /// Changes how a backend treats new connections, and closes its present ones.
    pub(crate) fn set_door(&self, server: usize, door: Door) {
        *lock(&self.servers[server].door) = door;
        self.drop_connections(server);
    }

    /// Closes the connections of a backend; new ones are accepted.
    pub(crate) fn drop_connections(&self, server: usize) {
        for connection in lock(&self.servers[server].connections).values() {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Refuses requests with an older claim than the highest one of their partition with 412 from now on.
    pub(crate) fn refuse_stale_claims(&self) {
        for server in &self.servers {
            server.is_fencing.store(true, Ordering::Relaxed);
        }
    }

    /// Returns all requests so far, in the order in which their heads were complete.
    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        lock(&self.journal).arrivals.clone()
    }

    pub(crate) fn n_arrivals(&self) -> usize {
        lock(&self.journal).arrivals.len()
    }

    /// Returns the number of arrivals that fulfil `condition`, without copying them.
    pub(crate) fn count(&self, condition: impl Fn(&Arrival) -> bool) -> usize {
        lock(&self.journal).arrivals.iter().filter(|arrival| condition(arrival)).count()
    }

    /// Returns the positions of the messages that a backend has taken.
    pub(crate) fn delivered(&self) -> HashSet<(i32, i64)> {
        self.positions_of(Arrival::is_delivered)
    }

    /// Returns the positions of the messages with an arrival that fulfils `condition`.
    pub(crate) fn positions_of(&self, condition: impl Fn(&Arrival) -> bool) -> HashSet<(i32, i64)> {
        lock(&self.journal).arrivals.iter().filter(|arrival| condition(arrival)).map(Arrival::position).collect()
    }

    /// Returns the number of different messages that a backend has taken.
    pub(crate) fn n_delivered(&self) -> usize {
        self.delivered().len()
    }

    /// Waits until `n` different messages were delivered.
    #[track_caller]
    pub(crate) fn wait_until_delivered(&self, n: usize, deadline: Duration) {
        wait_until(deadline, &format!("{n} messages are delivered"), || self.n_delivered() >= n);
    }

    /// Waits until an arrival fulfils `condition`; returns it.
    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, deadline: Duration, condition: impl Fn(&Arrival) -> bool) -> Arrival {
        wait_until(deadline, what, || lock(&self.journal).arrivals.iter().find(|arrival| condition(arrival)).cloned())
    }

    /// Returns the number of connections that a backend has accepted so far.
    pub(crate) fn n_accepted(&self, server: usize) -> u64 {
        self.servers[server].n_accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for (index, server) in self.servers.iter().enumerate() {
            server.is_closing.store(true, Ordering::SeqCst);
            // A connection wakes the thread, which blocks in accept and then sees `is_closing`.
            let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port));
            self.drop_connections(index);
        }
        for listener in self.listeners.drain(..) {
            let _ = listener.join();
        }
    }
}

fn accept_all(server: &Arc<Server>, listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        if server.is_closing.load(Ordering::SeqCst) {
            return;
        }
        let number = server.n_accepted.fetch_add(1, Ordering::Relaxed);
        let door = *lock(&server.door);
        let Some(copy) = stream.try_clone().ok().filter(|_| door != Door::Closing) else { continue };
        lock(&server.connections).insert(number, copy);
        let server = Arc::clone(server);
        std::thread::spawn(move || {
            let _ = serve::connection(&server, &stream, door);
            let _ = stream.shutdown(Shutdown::Both);
            lock(&server.connections).remove(&number);
        });
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Journal {
    /// Records the request, and returns its number and whether a newer claim of its partition was seen before.
    fn begin(&mut self, arrival: Arrival) -> (usize, bool) {
        let mut is_stale = false;
        if let Some(claim) = arrival.claim() {
            let text = |name: &str| arrival.request.header(name).unwrap_or_default().to_owned();
            let highest = self.claims.entry((text("X-Kafka-Topic"), text("X-Kafka-Partition"))).or_insert(claim);
            is_stale = claim < *highest;
            *highest = claim.max(*highest);
        }
        self.arrivals.push(arrival);
        (self.arrivals.len() - 1, is_stale)
    }

    fn end(&mut self, number: usize, status: Option<u16>) {
        let arrival = &mut self.arrivals[number];
        if arrival.ended.is_none() {
            (arrival.ended, arrival.status) = (Some(Instant::now()), status);
        }
    }
}

#[cfg(test)]
mod tests;
