//! A server with a handler for tests, and a simple client.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, mpsc};
use std::time::Duration;

use crate::http::*;
use crate::metrics::Registry;
use crate::shutdown::Stop;
use crate::supervise::{Ended, Supervisor};

/// Size of the response to `/medium`, in bytes. It fits into the buffer of a TLS session, also while the socket is
/// full.
pub(in crate::http) const MEDIUM_BYTES: usize = 50_000;
/// Longest time that a test waits for an event that must happen.
pub(in crate::http) const PATIENCE: Duration = Duration::from_secs(20);

/// The response to `/shared`: larger than the socket buffers.
pub(super) fn shared_page() -> &'static SharedBytes {
    static PAGE: OnceLock<SharedBytes> = OnceLock::new();
    PAGE.get_or_init(|| vec![b'p'; 16 << 20].into())
}

/// A handler that answers with the request's body. It keeps the replies of `/later` until a test takes them; for other
/// special paths it refuses, panics, blocks, or drops the reply.
pub(in crate::http) struct Echo {
    pub(in crate::http) kept: Mutex<VecDeque<(Request, Reply)>>,
    arrived: Condvar,
    /// Number of requests for `/slow` that were handled.
    slow: AtomicUsize,
    /// A message on this channel unblocks the reader that a request for `/block` blocks.
    pub(super) unblock: (mpsc::SyncSender<()>, Mutex<mpsc::Receiver<()>>),
}

impl Default for Echo {
    fn default() -> Self {
        let (sender, receiver) = mpsc::sync_channel(1);
        Echo {
            kept: Mutex::default(),
            arrived: Condvar::new(),
            slow: AtomicUsize::new(0),
            unblock: (sender, Mutex::new(receiver)),
        }
    }
}

impl Echo {
    /// Waits until a request is kept, and takes it with its reply.
    pub(in crate::http) fn release(&self) -> (Request, Reply) {
        let (mut kept, _) =
            self.arrived.wait_timeout_while(self.kept.lock().unwrap(), PATIENCE, |kept| kept.is_empty()).unwrap();
        kept.pop_front().expect("a request arrives in time")
    }
}

impl Handler for Echo {
    fn admit(self: Arc<Self>, head: &Head) -> Admission {
        match head.path.as_str() {
            "/refuse" => Admission::Refuse(Response::text(403, "no")),
            "/panic-early" => panic!("a panic of the test"),
            path => {
                let path = path.to_owned();
                let then = Box::new(move |request: Request, reply| {
                    assert_eq!(request.head.path, path, "each request goes to the handler of its own head");
                    self.handle(request, reply);
                });
                Admission::Read { max_body_bytes: 1 << 20, then }
            }
        }
    }

    fn response_headers(&self, head: Option<&Head>) -> Vec<(&'static str, String)> {
        let value = head.and_then(|head| head.header("x-echo"));
        value.map(|value| ("X-Echo", String::from_utf8_lossy(value).into_owned())).into_iter().collect()
    }

    fn refusal(&self, status: u16, reason: &str, peer: &str) -> Response {
        assert!(peer.starts_with("127.0.0.1:"), "{peer}");
        Response::text(status, format!("refusal: {reason}"))
    }
}

impl Echo {
    fn handle(&self, request: Request, reply: Reply) {
        match request.head.path.as_str() {
            "/later" => {
                self.kept.lock().unwrap().push_back((request, reply));
                self.arrived.notify_all();
            }
            "/panic" => panic!("a panic of the test"),
            "/block" => {
                self.kept.lock().unwrap().push_back((request, reply));
                self.arrived.notify_all();
                // Blocks the reader thread, so that several events are pending at the reader's next wait. A real
                // handler must not block.
                let _ = self.unblock.1.lock().unwrap().recv_timeout(PATIENCE);
            }
            "/slow" => {
                std::thread::sleep(Duration::from_millis(2));
                self.slow.fetch_add(1, Ordering::SeqCst);
                reply.send(Response::text(200, request.body));
            }
            "/count-slow" => reply.send(Response::text(200, self.slow.load(Ordering::SeqCst).to_string())),
            "/forget" => drop(reply),
            "/large" => reply.send(Response::text(200, vec![b'x'; 32 << 20])),
            "/shared" => reply.send(Response::new(200, "", shared_page().clone())),
            "/medium" => reply.send(Response::text(200, vec![b'x'; MEDIUM_BYTES])),
            "/close" => reply.send(Response::text(200, "bye").closing()),
            _ => reply.send(Response::text(200, request.body)),
        }
    }
}

pub(in crate::http) struct Fixture {
    pub(in crate::http) server: Server,
    pub(in crate::http) echo: Arc<Echo>,
    pub(super) group: Supervisor,
    registry: Registry,
    pub(super) budget: ByteBudget,
}

pub(super) fn start(change: impl FnOnce(&mut ServerLimits)) -> Fixture {
    start_with(None, change)
}

pub(in crate::http) fn start_with(tls: Option<Tls>, change: impl FnOnce(&mut ServerLimits)) -> Fixture {
    let budget = ByteBudget::new(8 << 20);
    let mut limits = ServerLimits {
        read_timeout: PATIENCE,
        write: WriteLimits::with_timeout(PATIENCE),
        idle_timeout: PATIENCE,
        max_connections: 100,
        max_connections_per_ip: None,
        head: HeadLimits::default(),
        body_budget: Some(budget.clone()),
        answer_budget: None,
    };
    change(&mut limits);
    let listen = Listen::At("127.0.0.1:0".parse().unwrap());
    let config = ServerConfig { listen, name: "http", readers: 2, limits, tls };
    let (echo, group, registry) = (Arc::new(Echo::default()), Supervisor::new("g", Stop::new()), Registry::new());
    let server = Server::start(config, Arc::<Echo>::clone(&echo), &group, &ServerMetrics::new(&registry)).unwrap();
    Fixture { server, echo, group, registry, budget }
}

impl Fixture {
    pub(in crate::http) fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(self.server.local_addr()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Sends bytes on a new connection; returns everything that the server sends until it closes the connection.
    pub(super) fn exchange(&self, bytes: &[u8]) -> String {
        let mut socket = self.connect();
        socket.write_all(bytes).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("the server closes in time, without a reset");
        answer
    }

    pub(in crate::http) fn metric(&self, line: &str) -> bool {
        String::from_utf8(self.registry.render()).unwrap().lines().any(|known| known == line)
    }

    /// Ends the server, and checks that no connection is open and no bytes are leased.
    pub(in crate::http) fn end(self) {
        assert_eq!(self.server.drain(PATIENCE), 0);
        assert!(self.metric("http_connections{server=\"http\"} 0"));
        assert_eq!(self.budget.used(), 0);
        self.group.stop().trigger();
        self.server.close();
        assert_eq!(self.group.join(PATIENCE), Ended::Stopped);
    }
}

/// Reads one response, which must have a Content-Length; returns status and body.
pub(in crate::http) fn answer(socket: &mut impl Read) -> (u16, String) {
    let (status, head, body) = whole_answer(socket);
    assert!(head.contains("Content-Length: "), "{head}");
    (status, body)
}

/// Reads one response; returns status, head and body.
pub(super) fn whole_answer(socket: &mut impl Read) -> (u16, String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(socket.read(&mut byte).unwrap(), 1, "closed after {:?}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length =
        head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).map_or(0, |text| text.parse().unwrap());
    let mut body = vec![0; length];
    socket.read_exact(&mut body).unwrap();
    (status, head, String::from_utf8(body).unwrap())
}

pub(in crate::http) fn post(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}
