//! The HTTP server of all three daemons: HTTP/1.1 and 1.0 (RFC 9110, RFC 9112) on non-blocking sockets.
//!
//! A [`Handler`] gets each complete request together with a [`Reply`], which owns the connection until it is
//! answered, from whatever thread the outcome arrives on. No thread waits for an answer.

mod reply;

use std::net::SocketAddr;

pub use reply::Reply;

/// The request line and headers of a request.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// Method as sent, for instance `POST`.
    pub method: String,
    /// Path as sent (not decoded), beginning with `/`, or `*`.
    pub path: String,
    /// What followed the `?`, as sent.
    pub query: Option<String>,
    /// Header fields in order; names in lower case, values without surrounding white space.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Address of the client.
    pub peer: Option<SocketAddr>,
}

impl Head {
    /// The value of the only header of that name (lower case); `None` where there is none or several.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        let mut values = self.headers.iter().filter(|(known, _)| known == name);
        match (values.next(), values.next()) {
            (Some((_, value)), None) => Some(value),
            _ => None,
        }
    }
}

/// A complete request. A truncated body never becomes one.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Request line and headers.
    pub head: Head,
    /// Body, decoded from chunks where it was chunked.
    pub body: Vec<u8>,
}

/// An answer. Always sent with a Content-Length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// Further header fields.
    pub headers: Vec<(&'static str, String)>,
    /// Body; left out when the request was HEAD.
    pub body: Vec<u8>,
    /// Whether the connection is closed after it.
    pub close: bool,
}

impl Response {
    /// An answer without further headers that keeps the connection open.
    pub fn new(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Response { status, content_type, headers: Vec::new(), body: body.into(), close: false }
    }

    /// Plain text.
    pub fn text(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", body)
    }

    /// JSON, already encoded.
    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::new(status, "application/json", body)
    }

    /// The same answer with one header more.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// What is to be done with the body of a request whose head is complete.
#[derive(Debug)]
pub enum Admission {
    /// Read it, at most so many bytes (more: 413), then call [`Handler::handle`].
    Read {
        /// Largest body in bytes.
        most: usize,
    },
    /// Answer now, without the body.
    Refuse(Response),
}

/// What a daemon does with requests. Called on the reader threads: must not block.
pub trait Handler: Send + Sync + 'static {
    /// Decides from the head alone, before any of the body is read or allocated.
    fn admit(&self, head: &Head) -> Admission;

    /// Takes a complete request; `reply` is answered now or later, from any thread.
    fn handle(&self, request: Request, reply: Reply);

    /// The body of an answer the server itself has to give (400, 408, 413, 414, 431, 501, 503, 505); `reason` in words.
    fn refusal(&self, status: u16, reason: &str) -> Response {
        Response::text(status, format!("{reason}\n"))
    }
}
