//! A small HTTP/1.1 client for the stories: one request, thousands of requests on one connection, or raw bytes.
//!
//! It does not check requests: a story may send invalid ones.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Time-out of one read or write; a story can change it through [`Client::socket`].
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A response.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Names and values, in the order of the response.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// Returns the value of the first header with this name, compared without case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Returns the body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Parses the body as JSON; panics if it is not JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {:?}", self.text()))
    }
}

/// Sends a GET of `http://host:port/path` on a connection of its own; returns the response.
pub(crate) fn get(url: &str) -> io::Result<Response> {
    let (address, path) = split(url);
    Client::connect(address)?.request("GET", path, &[("Connection", "close")], b"")
}

/// Sends a POST to `http://host:port/path` on a connection of its own; returns the response.
pub(crate) fn post(url: &str, body: &[u8]) -> io::Result<Response> {
    let (address, path) = split(url);
    Client::connect(address)?.request("POST", path, &[("Connection", "close")], body)
}

fn split(url: &str) -> (&str, &str) {
    let rest = url.strip_prefix("http://").expect("an http:// URL");
    rest.find('/').map_or((rest, "/"), |at| rest.split_at(at))
}

/// Returns the bytes of a POST with `Host` and `Content-Length`.
pub(crate) fn post_request(path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// Opens a plain socket whose reads and writes fail after `timeout`.
#[track_caller]
pub(crate) fn connect_raw(address: &str, timeout: Duration) -> TcpStream {
    let socket = TcpStream::connect(address).expect("the server listens");
    socket.set_read_timeout(Some(timeout)).expect("the time-out is not zero");
    socket.set_write_timeout(Some(timeout)).expect("the time-out is not zero");
    socket
}

/// A plain TCP stream, or a TLS stream over TCP.
pub(crate) trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

/// One persistent connection.
pub(crate) struct Client {
    stream: BufReader<Box<dyn Stream>>,
    socket: TcpStream,
    address: String,
}

impl Client {
    pub(crate) fn connect(address: &str) -> io::Result<Client> {
        Client::over(address, |socket| Ok(Box::new(socket)))
    }

    /// Connects and uses the stream that `wrap` creates from the socket, such as a TLS stream.
    pub(crate) fn over(
        address: &str,
        wrap: impl FnOnce(TcpStream) -> io::Result<Box<dyn Stream>>,
    ) -> io::Result<Client> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(READ_TIMEOUT))?;
        socket.set_write_timeout(Some(READ_TIMEOUT))?;
        let stream = BufReader::new(wrap(socket.try_clone()?)?);
        Ok(Client { stream, socket, address: address.to_owned() })
    }

    /// Returns the TCP socket, on which a story can set options.
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub(crate) fn post(&mut self, path: &str, body: &[u8]) -> io::Result<Response> {
        self.request("POST", path, &[], body)
    }

    pub(crate) fn get(&mut self, path: &str) -> io::Result<Response> {
        self.request("GET", path, &[], b"")
    }

    /// Sends one request with `Host` and, for a POST or with a body, `Content-Length`; returns the response.
    pub(crate) fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let mut bytes = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.address).into_bytes();
        for (name, value) in headers {
            write!(bytes, "{name}: {value}\r\n")?;
        }
        if !body.is_empty() || method == "POST" {
            write!(bytes, "Content-Length: {}\r\n", body.len())?;
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body);
        self.send_raw(&bytes)?;
        if method == "HEAD" { self.read_head().map(|(_, head)| head) } else { self.read_response() }
    }

    /// Sends exactly these bytes.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Reads one response; skips interim responses (`100 Continue`).
    pub(crate) fn read_response(&mut self) -> io::Result<Response> {
        loop {
            let (version, mut response) = self.read_head()?;
            if response.status < 200 {
                continue;
            }
            let chunked = response.header("Transfer-Encoding").is_some_and(|value| value == "chunked");
            let length = response.header("Content-Length").map(str::to_owned);
            response.body = match length {
                _ if chunked => read_chunked_body(&mut self.stream)?,
                Some(length) => {
                    let length = length.parse().map_err(|_| io::Error::other("Content-Length is not a number"))?;
                    let mut body = vec![0; length];
                    self.stream.read_exact(&mut body)?;
                    body
                }
                None if response.status == 204 || response.status == 304 => Vec::new(),
                None if version == "HTTP/1.0" || response.header("Connection") == Some("close") => self.read_rest()?,
                None => return Err(io::Error::other("a response without Content-Length")),
            };
            return Ok(response);
        }
    }

    /// Reads the status line and headers of one response; returns the HTTP version and the response without its body.
    pub(crate) fn read_head(&mut self) -> io::Result<(String, Response)> {
        let line = self.read_line()?;
        let mut words = line.split(' ');
        let version = words.next().unwrap_or_default().to_owned();
        let status = words.next().and_then(|word| word.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("not a status line: {line:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = self.read_line()?;
            if line.is_empty() {
                return Ok((version, Response { status, headers, body: Vec::new() }));
            }
            let (name, value) = line.split_once(':').ok_or_else(|| io::Error::other("a header without a colon"))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// Reads until the server closes the connection; returns the bytes.
    pub(crate) fn read_rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest)?;
        Ok(rest)
    }

    fn read_line(&mut self) -> io::Result<String> {
        read_line(&mut self.stream)
    }
}

/// Reads a chunked body without trailers.
pub(super) fn read_chunked_body(stream: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let length = usize::from_str_radix(read_line(stream)?.trim(), 16).map_err(io::Error::other)?;
        let start = body.len();
        body.resize(start + length, 0);
        stream.read_exact(&mut body[start..])?;
        read_line(stream)?;
        if length == 0 {
            return Ok(body);
        }
    }
}

/// Reads a line; returns it without CR LF.
fn read_line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}
