//! A small HTTP/1.1 client for the stories: one request, thousands on one connection, or raw bytes.
//!
//! It sends what the story gives it, valid or not.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// How long one read or write may take; a story changes it on [`Client::socket`].
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A response.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// In the order of arrival.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// The first header of this name, whatever its case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; panics if it is not JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {:?}", self.text()))
    }
}

/// GET of `http://host:port/path` on a connection of its own.
pub(crate) fn get(url: &str) -> io::Result<Response> {
    let (address, path) = split(url);
    Client::connect(address)?.request("GET", path, &[("Connection", "close")], b"")
}

/// POST to `http://host:port/path` on a connection of its own.
pub(crate) fn post(url: &str, body: &[u8]) -> io::Result<Response> {
    let (address, path) = split(url);
    Client::connect(address)?.request("POST", path, &[("Connection", "close")], body)
}

fn split(url: &str) -> (&str, &str) {
    let rest = url.strip_prefix("http://").expect("an http:// URL");
    rest.find('/').map_or((rest, "/"), |at| rest.split_at(at))
}

/// The bytes of a POST with `Host` and `Content-Length`.
pub(crate) fn post_request(path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// A plain socket whose reads and writes fail after `timeout`.
#[track_caller]
pub(crate) fn connect_raw(address: &str, timeout: Duration) -> TcpStream {
    let socket = TcpStream::connect(address).expect("the server listens");
    socket.set_read_timeout(Some(timeout)).expect("a timeout over zero");
    socket.set_write_timeout(Some(timeout)).expect("a timeout over zero");
    socket
}

/// A plain TCP stream, or TLS over one.
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

    /// As [`Client::connect`], over the stream that `wrap` makes of the socket.
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

    /// The socket, for its options.
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub(crate) fn post(&mut self, path: &str, body: &[u8]) -> io::Result<Response> {
        self.request("POST", path, &[], body)
    }

    pub(crate) fn get(&mut self, path: &str) -> io::Result<Response> {
        self.request("GET", path, &[], b"")
    }

    /// Sends one request, with `Host` and `Content-Length`, and reads its response.
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

    /// Sends these bytes and nothing else.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Reads one response; interim ones (`100 Continue`) are skipped.
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

    /// Reads the status line and headers of one response.
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

    /// Reads until the server closes the connection.
    pub(crate) fn read_rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest)?;
        Ok(rest)
    }

    fn read_line(&mut self) -> io::Result<String> {
        read_line(&mut self.stream)
    }
}

/// Reads a body in chunks; trailers are not expected.
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

/// Reads a line without its end.
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
