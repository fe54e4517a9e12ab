//! For unit tests: an HTTP backend that records requests and answers with the statuses that a test function returns.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A request as the backend received it.
#[derive(Clone, Debug)]
pub(super) struct ReceivedRequest {
    pub(super) url: String,
    /// Names and values of the headers; the names are in lower case.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    pub(super) began: Instant,
    /// When the response was ready to be sent.
    pub(super) ended: Instant,
    pub(super) status: u16,
}

impl ReceivedRequest {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn number(&self, name: &str) -> i64 {
        self.header(name).expect(name).parse().expect(name)
    }
}

type Script = dyn Fn(&ReceivedRequest) -> u16 + Send + Sync;

/// A backend that serves each connection on its own thread until the client closes the connection.
pub(super) struct TestBackend {
    /// The address of the backend, `host:port`.
    pub(super) server: String,
    received: Arc<Mutex<Vec<ReceivedRequest>>>,
    is_over: Arc<AtomicBool>,
}

impl TestBackend {
    /// Starts a backend. `script` returns the status of the answer to each request, and may block.
    pub(super) fn start(script: impl Fn(&ReceivedRequest) -> u16 + Send + Sync + 'static) -> TestBackend {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap().to_string();
        let backend = TestBackend { server, received: Arc::default(), is_over: Arc::default() };
        let (received, is_over) = (Arc::clone(&backend.received), Arc::clone(&backend.is_over));
        let script: Arc<Script> = Arc::new(script);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                let (received, script) = (Arc::clone(&received), Arc::clone(&script));
                std::thread::spawn(move || serve(stream, &received, &*script));
            }
        });
        backend
    }

    /// Returns the requests that were answered so far, in the order of their answers.
    pub(super) fn received(&self) -> Vec<ReceivedRequest> {
        self.received.lock().unwrap().clone()
    }

    /// Returns the requests that were answered with 200.
    pub(super) fn delivered(&self) -> Vec<ReceivedRequest> {
        self.received().into_iter().filter(|request| request.status == 200).collect()
    }
}

impl Drop for TestBackend {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // This connection wakes the thread that accepts connections, so that the thread sees the flag.
        let _ = TcpStream::connect(&self.server);
    }
}

fn serve(stream: TcpStream, received: &Mutex<Vec<ReceivedRequest>>, script: &Script) {
    let mut reader = BufReader::new(&stream);
    while let Some(mut request) = read_request_from(&mut reader) {
        request.status = script(&request);
        request.ended = Instant::now();
        let answer = format!("HTTP/1.1 {} X\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\nok", request.status);
        // A 204 must have no body.
        let answer = if request.status == 204 { "HTTP/1.1 204 X\r\n\r\n".to_owned() } else { answer };
        received.lock().unwrap().push(request);
        if (&stream).write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Reads the next request; returns `None` once the client has closed the connection.
pub(super) fn read_request_from(reader: &mut impl BufRead) -> Option<ReceivedRequest> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end_matches("\r\n");
        if line.is_empty() {
            break;
        }
        lines.push(line.to_owned());
    }
    let began = Instant::now();
    let url = lines.first()?.strip_prefix("POST ")?.strip_suffix(" HTTP/1.1")?.to_owned();
    let header =
        |line: &String| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    let headers =
        lines[1..].iter().map(|line| header(line).or_else(|| Some((line.trim_end_matches(':').into(), "".into()))));
    let mut request = ReceivedRequest {
        url,
        headers: headers.collect::<Option<_>>()?,
        body: Vec::new(),
        began,
        ended: began,
        status: 0,
    };
    request.body = vec![0; usize::try_from(request.number("content-length")).unwrap()];
    reader.read_exact(&mut request.body).ok()?;
    Some(request)
}

/// Starts a backend whose answers need not be HTTP: `script` gets each connection with its number, counted from 0, on a
/// thread of its own. Returns the address, `host:port`.
pub(super) fn start_raw(script: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap().to_string();
    let script = Arc::new(script);
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().map_while(Result::ok).enumerate() {
            let script = Arc::clone(&script);
            std::thread::spawn(move || script(stream, number));
        }
    });
    server
}

/// Reads one request from a connection of [`start_raw`]; returns `None` if the client closed the connection.
pub(super) fn read_request(stream: &TcpStream) -> Option<ReceivedRequest> {
    read_request_from(&mut BufReader::new(stream))
}

/// Blocks until the client closes the connection.
pub(super) fn wait_for_close(mut stream: &TcpStream) {
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}

/// Waits until `condition` returns true; panics after 30 s.
#[track_caller]
pub(super) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
