//! A backend of ktransfer that remembers every push and answers as its story says.
//!
//! A thread a connection: simple, and plenty for a few hundred of them. It must never be what limits a story.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{free_port, wait_until};

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// The path with the query, as sent.
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// The first header of this name, whatever its case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The path without the query, as sent.
    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// A parameter of the query, percent-decoded.
    pub(crate) fn query(&self, name: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        let mut parameters = query.split('&').filter_map(|parameter| parameter.split_once('='));
        parameters.find(|(have, _)| *have == name).map(|(_, value)| percent_decode(value))
    }

    /// The message's key: the parameter `key` of the query, else the header `X-Kafka-Key`; empty if there is neither.
    pub(crate) fn key(&self) -> String {
        self.query("key").or_else(|| self.header("X-Kafka-Key").map(str::to_owned)).unwrap_or_default()
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// How a request is answered.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// The status; `None` closes the connection without an answer.
    pub(crate) status: Option<u16>,
    /// How long the answer is kept back.
    pub(crate) delay: Duration,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn ok() -> Answer {
        Answer::status(200)
    }

    pub(crate) fn status(status: u16) -> Answer {
        Answer { status: Some(status), delay: Duration::ZERO, headers: Vec::new(), body: b"done".to_vec() }
    }

    /// Hangs up instead of answering.
    pub(crate) fn hang_up() -> Answer {
        Answer { status: None, ..Answer::ok() }
    }

    pub(crate) fn after(mut self, delay: Duration) -> Answer {
        self.delay = delay;
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Answer {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn body(mut self, body: &[u8]) -> Answer {
        self.body = body.to_vec();
        self
    }
}

/// One push, from the moment it was read to the moment before its answer was written.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) request: Request,
    /// `host:port` of the backend it came to.
    pub(crate) backend: String,
    pub(crate) arrived: Instant,
    /// `None` while it is in progress.
    pub(crate) completed: Option<Instant>,
    /// What was answered; `None` while it is in progress, and for who was hung up on.
    pub(crate) status: Option<u16>,
}

/// What is remembered over all backends that share it; one mutex, held for a few pushes of a pointer.
#[derive(Default)]
struct Notes {
    records: Vec<Record>,
    in_progress: HashMap<String, usize>,
    most_of_one_key: usize,
    most_at_once: usize,
}

/// What was pushed. Several backends may write into one journal, so that order and concurrency hold across them.
#[derive(Clone, Default)]
pub(crate) struct Journal(Arc<Mutex<Notes>>);

impl Journal {
    /// All requests so far, in the order of their arrival.
    pub(crate) fn records(&self) -> Vec<Record> {
        self.notes().records.clone()
    }

    pub(crate) fn n_requests(&self) -> usize {
        self.notes().records.len()
    }

    /// How many requests with the same key were in progress at the same time, at most. Requests without a key do not count.
    pub(crate) fn most_of_one_key(&self) -> usize {
        self.notes().most_of_one_key
    }

    /// How many requests were in progress at the same time, at most.
    pub(crate) fn most_at_once(&self) -> usize {
        self.notes().most_at_once
    }

    fn arrive(&self, backend: &str, request: &Request) -> usize {
        let mut notes = self.notes();
        let notes = &mut *notes;
        let key = request.key();
        let of_this_key = notes.in_progress.entry(key.clone()).or_default();
        *of_this_key += 1;
        if !key.is_empty() {
            notes.most_of_one_key = notes.most_of_one_key.max(*of_this_key);
        }
        notes.most_at_once = notes.most_at_once.max(notes.in_progress.values().sum());
        notes.records.push(Record {
            request: request.clone(),
            backend: backend.to_owned(),
            arrived: Instant::now(),
            completed: None,
            status: None,
        });
        notes.records.len() - 1
    }

    fn complete(&self, number: usize, status: Option<u16>) {
        let mut notes = self.notes();
        let notes = &mut *notes;
        let record = &mut notes.records[number];
        record.completed = Some(Instant::now());
        record.status = status;
        let key = record.request.key();
        if let Some(count) = notes.in_progress.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                notes.in_progress.remove(&key);
            }
        }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Script = dyn Fn(&Request) -> Answer + Send + Sync;

/// A backend on a loopback port of its own; dropped, it is gone.
pub(crate) struct Backend {
    port: u16,
    journal: Journal,
    script: Arc<Script>,
    listener: Mutex<Option<Listener>>,
}

/// An open listening socket with all that came through it.
struct Listener {
    closing: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    thread: JoinHandle<()>,
}

impl Backend {
    /// A backend that answers 200 to everything.
    pub(crate) fn start() -> Backend {
        Backend::start_with(|_| Answer::ok())
    }

    /// A backend that answers as `script` says. The script runs on the connection's thread, many at once.
    pub(crate) fn start_with(script: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Backend {
        Backend::start_sharing(&Journal::default(), script)
    }

    /// As [`Backend::start_with`], writing into a journal that other backends share.
    pub(crate) fn start_sharing(
        journal: &Journal,
        script: impl Fn(&Request) -> Answer + Send + Sync + 'static,
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

    /// `host:port` of the backend.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// All requests so far, in the order of their arrival.
    pub(crate) fn records(&self) -> Vec<Record> {
        self.journal.records()
    }

    pub(crate) fn n_requests(&self) -> usize {
        self.journal.n_requests()
    }

    /// Waits until at least so many requests have come.
    #[track_caller]
    pub(crate) fn wait_for_requests(&self, n: usize, deadline: Duration) {
        wait_until(deadline, &format!("{n} requests at the backend"), || self.n_requests() >= n);
    }

    /// Closes the port and every connection: who connects is refused.
    pub(crate) fn stop_listening(&self) {
        let Some(listener) = self.listener().take() else {
            return;
        };
        listener.closing.store(true, Ordering::SeqCst);
        // The thread waits in accept; a connection wakes it.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        let _ = listener.thread.join();
        for connection in listener.connections.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Opens the same port again.
    pub(crate) fn listen_again(&self) {
        let mut slot = self.listener();
        if slot.is_some() {
            return;
        }
        let socket = wait_until(Duration::from_secs(10), "the backend's port is free again", || {
            TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).ok()
        });
        let closing = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(Mutex::new(Vec::new()));
        let (address, journal, script) = (self.address(), self.journal.clone(), Arc::clone(&self.script));
        let (closing_seen, list) = (Arc::clone(&closing), Arc::clone(&connections));
        let thread = std::thread::spawn(move || {
            for stream in socket.incoming().flatten() {
                if closing_seen.load(Ordering::SeqCst) {
                    return;
                }
                let copy = stream.try_clone().expect("a second handle");
                list.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
                let (address, journal, script) = (address.clone(), journal.clone(), Arc::clone(&script));
                std::thread::spawn(move || {
                    // The list holds a handle as well, so dropping ours alone would not close the connection.
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
        let mut bytes = format!("HTTP/1.1 {status} As scripted\r\nContent-Length: {}\r\n", answer.body.len());
        for (name, value) in &answer.headers {
            bytes.push_str(&format!("{name}: {value}\r\n"));
        }
        bytes.push_str("\r\n");
        let mut bytes = bytes.into_bytes();
        bytes.extend_from_slice(&answer.body);
        stream.get_mut().write_all(&bytes)?;
        let asked_to_close = |(name, value): &(String, String)| {
            name.eq_ignore_ascii_case("Connection") && value.eq_ignore_ascii_case("close")
        };
        if answer.headers.iter().any(asked_to_close) || request.headers.iter().any(asked_to_close) {
            return Ok(());
        }
    }
    Ok(())
}

/// Reads one request; `None` when the other side closed between two of them.
fn read_request(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
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
            break;
        };
        request.headers.push((name.to_owned(), value.trim().to_owned()));
    }
    if let Some(length) = request.header("Content-Length").and_then(|value| value.parse().ok()) {
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        request.body = body;
    } else if request.header("Transfer-Encoding").is_some() {
        loop {
            line.clear();
            stream.read_line(&mut line)?;
            let length = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            let start = request.body.len();
            request.body.resize(start + length, 0);
            stream.read_exact(&mut request.body[start..])?;
            line.clear();
            stream.read_line(&mut line)?;
            if length == 0 {
                break;
            }
        }
    }
    Ok(Some(request))
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
