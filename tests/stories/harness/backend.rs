//! A backend for ktransfer that records every push and answers with the script of the story.
//!
//! It has one thread for each connection. That is fast enough for a few hundred connections, so the backend does not
//! limit the rate of a story.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::http::read_chunked_body;
use super::{free_port, wait_until};

/// A request as it was received.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// The request target as sent: the path with the query.
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// Returns the value of the first header with this name, compared without case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Returns the path without the query, as sent.
    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// Returns a parameter of the query, percent-decoded; `None` if the query does not have it.
    pub(crate) fn query(&self, name: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        let mut parameters = query.split('&').filter_map(|parameter| parameter.split_once('='));
        parameters.find(|(have, _)| *have == name).map(|(_, value)| percent_decode(value))
    }

    /// Returns the message's key: the query parameter `key`, else the header `X-Kafka-Key`, else an empty string.
    pub(crate) fn key(&self) -> String {
        self.query("key").or_else(|| self.header("X-Kafka-Key").map(str::to_owned)).unwrap_or_default()
    }

    /// Returns the body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// The answer to a request.
#[derive(Debug, Clone)]
pub(crate) struct BackendAnswer {
    /// The status; `None` closes the connection without an answer.
    pub(crate) status: Option<u16>,
    /// The time that the backend waits before it answers.
    pub(crate) delay: Duration,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl BackendAnswer {
    pub(crate) fn ok() -> BackendAnswer {
        BackendAnswer::status(200)
    }

    pub(crate) fn status(status: u16) -> BackendAnswer {
        BackendAnswer { status: Some(status), delay: Duration::ZERO, headers: Vec::new(), body: b"done".to_vec() }
    }

    /// Closes the connection instead of answering.
    pub(crate) fn close() -> BackendAnswer {
        BackendAnswer { status: None, ..BackendAnswer::ok() }
    }

    pub(crate) fn after(mut self, delay: Duration) -> BackendAnswer {
        self.delay = delay;
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> BackendAnswer {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn body(mut self, body: &[u8]) -> BackendAnswer {
        self.body = body.to_vec();
        self
    }
}

/// One push.
#[derive(Debug, Clone)]
pub(crate) struct PushRecord {
    pub(crate) request: Request,
    /// `host:port` of the backend that received it.
    pub(crate) backend: String,
    pub(crate) arrived: Instant,
    /// The time just before the answer was written; `None` while the push is in progress.
    pub(crate) completed: Option<Instant>,
    /// The status of the answer; `None` while the push is in progress, or if the connection was closed without answer.
    pub(crate) status: Option<u16>,
}

/// The records of all backends that share a journal.
#[derive(Default)]
struct JournalState {
    records: Vec<PushRecord>,
    in_progress: HashMap<String, usize>,
    max_per_key: usize,
    max_concurrent: usize,
}

/// The pushes in the order of arrival. Several backends may share one journal, so that a story can check order and
/// concurrency across all of them.
#[derive(Clone, Default)]
pub(crate) struct Journal(Arc<Mutex<JournalState>>);

impl Journal {
    /// Returns all requests so far, in the order of arrival.
    pub(crate) fn records(&self) -> Vec<PushRecord> {
        self.lock().records.clone()
    }

    pub(crate) fn n_requests(&self) -> usize {
        self.lock().records.len()
    }

    /// Returns the highest number of concurrent requests with the same key. Requests without a key do not count.
    pub(crate) fn max_per_key(&self) -> usize {
        self.lock().max_per_key
    }

    /// Returns the highest number of concurrent requests so far.
    pub(crate) fn max_concurrent(&self) -> usize {
        self.lock().max_concurrent
    }

    fn arrive(&self, backend: &str, request: &Request) -> usize {
        let mut state = self.lock();
        let state = &mut *state;
        let key = request.key();
        let of_this_key = state.in_progress.entry(key.clone()).or_default();
        *of_this_key += 1;
        if !key.is_empty() {
            state.max_per_key = state.max_per_key.max(*of_this_key);
        }
        state.max_concurrent = state.max_concurrent.max(state.in_progress.values().sum());
        state.records.push(PushRecord {
            request: request.clone(),
            backend: backend.to_owned(),
            arrived: Instant::now(),
            completed: None,
            status: None,
        });
        state.records.len() - 1
    }

    fn complete(&self, number: usize, status: Option<u16>) {
        let mut state = self.lock();
        let state = &mut *state;
        let record = &mut state.records[number];
        record.completed = Some(Instant::now());
        record.status = status;
        let key = record.request.key();
        if let Some(count) = state.in_progress.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                state.in_progress.remove(&key);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, JournalState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Script = dyn Fn(&Request) -> BackendAnswer + Send + Sync;

/// A backend on a loopback port of its own; dropping it closes the port and all connections.
pub(crate) struct Backend {
    port: u16,
    journal: Journal,
    script: Arc<Script>,
    listener: Mutex<Option<Listener>>,
}

/// The thread that accepts connections, and the connections that it has accepted.
struct Listener {
    closing: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    thread: JoinHandle<()>,
}

impl Backend {
    /// Starts a backend that answers every request with 200.
    pub(crate) fn start() -> Backend {
        Backend::start_with(|_| BackendAnswer::ok())
    }

    /// Starts a backend that answers with the result of `script`, which runs concurrently on the connections' threads.
    pub(crate) fn start_with(script: impl Fn(&Request) -> BackendAnswer + Send + Sync + 'static) -> Backend {
        Backend::start_sharing(&Journal::default(), script)
    }

    /// As [`Backend::start_with`], but records into a journal that other backends may share.
    pub(crate) fn start_sharing(
        journal: &Journal,
        script: impl Fn(&Request) -> BackendAnswer + Send + Sync + 'static,
    ) -> Backend {
        let backend = Backend {
            port: free_port(),
            journal: journal.clone(),
            script: Arc::new(script),
            listener: Mutex::new(None),
        };
        backend.listen_again();
        backend
    }

    /// Returns `host:port` of the backend.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Returns all requests so far, in the order of arrival.
    pub(crate) fn records(&self) -> Vec<PushRecord> {
        self.journal.records()
    }

    pub(crate) fn n_requests(&self) -> usize {
        self.journal.n_requests()
    }

    /// Waits until at least `n` requests have arrived.
    #[track_caller]
    pub(crate) fn wait_for_requests(&self, n: usize, deadline: Duration) {
        wait_until(deadline, &format!("{n} requests at the backend"), || self.n_requests() >= n);
    }

    /// Closes the port and every connection; new connections are refused.
    pub(crate) fn stop_listening(&self) {
        let Some(listener) = self.listener().take() else {
            return;
        };
        listener.closing.store(true, Ordering::SeqCst);
        // A connection wakes the thread, which blocks in accept and then sees `closing`.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        let _ = listener.thread.join();
        for connection in listener.connections.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Listens on the same port again; does nothing if the backend listens already.
    pub(crate) fn listen_again(&self) {
        let mut slot = self.listener();
        if slot.is_some() {
            return;
        }
        let socket = wait_until(Duration::from_secs(10), "the backend can bind its port again", || {
            TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).ok()
        });
        let closing = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(Mutex::new(Vec::new()));
        let (address, journal, script) = (self.address(), self.journal.clone(), Arc::clone(&self.script));
        let (is_closing, accepted) = (Arc::clone(&closing), Arc::clone(&connections));
        let thread = std::thread::spawn(move || {
            for stream in socket.incoming().flatten() {
                if is_closing.load(Ordering::SeqCst) {
                    return;
                }
                let copy = stream.try_clone().expect("a file handle can be duplicated");
                accepted.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
                let (address, journal, script) = (address.clone(), journal.clone(), Arc::clone(&script));
                std::thread::spawn(move || {
                    // `accepted` holds a second handle, so dropping `stream` alone does not close the connection.
                    let handle = stream.try_clone();
                    let _ = serve(stream, &address, &journal, &*script);
                    let _ = handle.map(|handle| handle.shutdown(Shutdown::Both));
                });
            }
        });
        *slot = Some(Listener { closing, connections, thread });
    }

    fn listener(&self) -> MutexGuard<'_, Option<Listener>> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop_listening();
    }
}

fn serve(stream: TcpStream, address: &str, journal: &Journal, script: &Script) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::with_capacity(16 << 10, stream);
    while let Some(request) = read_request(&mut stream)? {
        let number = journal.arrive(address, &request);
        let answer = script(&request);
        if !answer.delay.is_zero() {
            std::thread::sleep(answer.delay);
        }
        journal.complete(number, answer.status);
        let Some(status) = answer.status else {
            return Ok(());
        };
        let mut bytes = format!("HTTP/1.1 {status} Scripted\r\nContent-Length: {}\r\n", answer.body.len());
        for (name, value) in &answer.headers {
            bytes.push_str(&format!("{name}: {value}\r\n"));
        }
        bytes.push_str("\r\n");
        let mut bytes = bytes.into_bytes();
        bytes.extend_from_slice(&answer.body);
        stream.get_mut().write_all(&bytes)?;
        let wants_close = |(name, value): &(String, String)| {
            name.eq_ignore_ascii_case("Connection") && value.eq_ignore_ascii_case("close")
        };
        if answer.headers.iter().any(wants_close) || request.headers.iter().any(wants_close) {
            return Ok(());
        }
    }
    Ok(())
}

/// Reads one request; returns `None` if the client closed the connection before a request.
fn read_request(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let Some(mut request) = read_head(stream)? else { return Ok(None) };
    request.body = read_body(stream, &request)?;
    Ok(Some(request))
}

/// Reads the request line and the headers; returns `None` if the client closed the connection before a request.
pub(super) fn read_head(stream: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut request = Request { method, target, headers: Vec::new(), body: Vec::new() };
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some((name, value)) = line.trim_end().split_once(':') else {
            return Ok(Some(request));
        };
        request.headers.push((name.to_owned(), value.trim().to_owned()));
    }
}

/// Reads the body of a request whose head was read.
pub(super) fn read_body(stream: &mut impl BufRead, head: &Request) -> io::Result<Vec<u8>> {
    if let Some(length) = head.header("Content-Length").and_then(|value| value.parse().ok()) {
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        Ok(body)
    } else if head.header("Transfer-Encoding").is_some() {
        read_chunked_body(stream)
    } else {
        Ok(Vec::new())
    }
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let pair = bytes.get(at + 1..at + 3).and_then(|pair| std::str::from_utf8(pair).ok());
        let value = pair.filter(|_| bytes[at] == b'%').and_then(|pair| u8::from_str_radix(pair, 16).ok());
        decoded.push(value.unwrap_or(bytes[at]));
        at += if value.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
