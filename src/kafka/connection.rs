//! One connection to a broker: connect, requests and responses with deadlines. Used by one thread at a time, which
//! blocks; another thread can end the wait through a [`Disconnect`].

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Instant;

use super::config::{BrokerAddress, ConnectionConfig};
use super::frame::{FrameReader, RequestHeader, put_request, split_response};
use super::protocol::api_versions::ApiVersionsRequest;
use super::protocol::{Request, is_flexible};
use super::wire::{Malformed, WireReader};

/// Why a request failed on a connection. After each of these errors but [`ConnectionErrorKind::Unsupported`] the
/// connection is unusable and must be dropped.
#[derive(Clone, Debug, thiserror::Error)]
#[error("broker {address}: {reason}")]
pub struct ConnectionError {
    /// The broker.
    pub address: BrokerAddress,
    /// The kind of failure.
    pub kind: ConnectionErrorKind,
    /// What happened, as an error text.
    pub reason: String,
}

/// The kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionErrorKind {
    /// No byte of the request was handed to the socket: the connection could not be made, or was closed before.
    NotSent,
    /// The request was sent, at least in part, and no complete response came: the connection closed or failed.
    Lost,
    /// The request was sent and its deadline passed.
    TimedOut,
    /// The response violates the protocol.
    Malformed,
    /// The broker refused the credentials, or has no such mechanism; a retry needs another configuration.
    Denied,
    /// The broker does not support the request in any version of this client. Nothing was sent.
    Unsupported,
}

/// Makes connections with the same settings. Clones share the settings.
#[derive(Clone, Debug)]
pub struct Connector {
    config: Arc<ConnectionConfig>,
}

impl Connector {
    /// Returns a connector with these settings.
    pub fn new(config: ConnectionConfig) -> Self {
        Connector { config: Arc::new(config) }
    }

    /// Returns the settings.
    pub fn config(&self) -> &ConnectionConfig {
        &self.config
    }

    /// Connects to a broker until `deadline` at the latest.
    pub fn connect(&self, address: &BrokerAddress, deadline: Instant) -> Result<Connection, ConnectionError> {
        let failed = |cause: io::Error| ConnectionError {
            address: address.clone(),
            kind: ConnectionErrorKind::NotSent,
            reason: format!("cannot connect: {cause}"),
        };
        let addresses = (&*address.host, address.port).to_socket_addrs().map_err(failed)?;
        let mut last = io::Error::other("the name has no address");
        for target in addresses {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                last = io::ErrorKind::TimedOut.into();
                break;
            }
            match TcpStream::connect_timeout(&target, left) {
                Ok(stream) => {
                    stream.set_nodelay(true).map_err(failed)?;
                    let mut connection = Connection {
                        stream: Arc::new(stream),
                        address: address.clone(),
                        frames: FrameReader::new(self.config.max_response_bytes),
                        received: vec![0; 64 << 10],
                        output: Vec::new(),
                        versions: HashMap::new(),
                        correlation_id: 0,
                        config: Arc::clone(&self.config),
                    };
                    connection.request_versions(deadline)?;
                    return Ok(connection);
                }
                Err(cause) => last = cause,
            }
        }
        Err(failed(last))
    }
}

/// A connection to a broker that is ready for requests.
pub struct Connection {
    stream: Arc<TcpStream>,
    address: BrokerAddress,
    frames: FrameReader,
    received: Vec<u8>,
    output: Vec<u8>,
    /// Lowest and highest version that the broker supports, by API key.
    versions: HashMap<i16, (i16, i16)>,
    correlation_id: i32,
    config: Arc<ConnectionConfig>,
}

/// A request whose response has not been received.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct SentRequest {
    /// Version of request and response.
    pub version: i16,
    correlation_id: i32,
    flexible_header: bool,
}

/// Ends a wait of the thread that uses a connection: the connection closes.
#[derive(Clone, Debug)]
pub struct Disconnect(Arc<TcpStream>);

impl Disconnect {
    /// Closes the connection in both directions.
    pub fn disconnect(&self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Connection {
    /// Returns the address of the broker.
    pub fn address(&self) -> &BrokerAddress {
        &self.address
    }

    /// Returns what closes this connection from another thread.
    pub fn disconnect_handle(&self) -> Disconnect {
        Disconnect(Arc::clone(&self.stream))
    }

    /// Returns the highest version of an API that the broker and this client support.
    pub fn version_of(&self, api_key: i16, supported: (i16, i16)) -> Result<i16, ConnectionError> {
        let common = self.versions.get(&api_key).map(|(low, high)| (*low.max(&supported.0), *high.min(&supported.1)));
        match common {
            Some((low, high)) if low <= high => Ok(high),
            _ => {
                let reason = format!("the broker does not support versions {supported:?} of request type {api_key}");
                Err(self.error(ConnectionErrorKind::Unsupported, reason))
            }
        }
    }

    /// Sends a request and waits for its response.
    pub fn call<R: Request>(&mut self, request: &R, deadline: Instant) -> Result<R::Response, ConnectionError> {
        let sent = self.send(request, deadline)?;
        self.receive::<R>(sent, deadline)
    }

    /// Sends a request; [`receive`](Self::receive) returns its response. Responses come in the order of the requests.
    pub fn send<R: Request>(&mut self, request: &R, deadline: Instant) -> Result<SentRequest, ConnectionError> {
        let version = self.version_of(R::API_KEY, R::VERSIONS)?;
        self.send_with(R::API_KEY, version, is_flexible::<R>(version), deadline, |buffer| {
            request.encode(buffer, version);
        })
    }

    /// Sends a request whose body `body` appends.
    pub fn send_with(
        &mut self,
        api_key: i16,
        version: i16,
        flexible: bool,
        deadline: Instant,
        body: impl FnOnce(&mut Vec<u8>),
    ) -> Result<SentRequest, ConnectionError> {
        self.correlation_id = self.correlation_id.wrapping_add(1);
        let correlation_id = self.correlation_id;
        self.output.clear();
        let client_id = &*self.config.client_id;
        let header = RequestHeader { api_key, version, correlation_id, client_id, flexible };
        put_request(&mut self.output, &header, body);
        let mut rest = &self.output[..];
        while !rest.is_empty() {
            let is_unsent = rest.len() == self.output.len();
            let written = timeout_until(deadline)
                .and_then(|left| self.stream.set_write_timeout(Some(left)))
                .and_then(|()| (&*self.stream).write(rest));
            match written {
                Ok(count) => rest = &rest[count..],
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => {
                    let kind = match is_unsent {
                        true => ConnectionErrorKind::NotSent,
                        false => ConnectionErrorKind::Lost,
                    };
                    return Err(self.error(kind, format!("the request could not be sent: {cause}")));
                }
            }
        }
        // The response to ApiVersions has a header without tagged fields in every version (KIP-511).
        let flexible_header = flexible && api_key != ApiVersionsRequest::API_KEY;
        Ok(SentRequest { version, correlation_id, flexible_header })
    }

    /// Waits for the response to the oldest request without one.
    pub fn receive<R: Request>(
        &mut self,
        sent: SentRequest,
        deadline: Instant,
    ) -> Result<R::Response, ConnectionError> {
        let version = sent.version;
        self.receive_with(sent, deadline, |body| {
            let mut reader = WireReader::new(body);
            let response = R::decode(&mut reader, version)?;
            if reader.is_empty() { Ok(response) } else { Err(Malformed("bytes after the response")) }
        })
    }

    /// Waits for the response to the oldest request without one and decodes its body with `decode`.
    pub fn receive_with<T>(
        &mut self,
        sent: SentRequest,
        deadline: Instant,
        decode: impl FnOnce(&[u8]) -> Result<T, Malformed>,
    ) -> Result<T, ConnectionError> {
        loop {
            match self.frames.next_frame() {
                Ok(Some(frame)) => {
                    let decoded = split_response(frame, sent.flexible_header).and_then(|(id, body)| {
                        match id == sent.correlation_id {
                            true => decode(body),
                            false => Err(Malformed("a response to another request")),
                        }
                    });
                    return decoded.map_err(|cause| self.malformed(&cause));
                }
                Ok(None) => {}
                Err(cause) => return Err(self.malformed(&cause)),
            }
            let received = timeout_until(deadline)
                .and_then(|left| self.stream.set_read_timeout(Some(left)))
                .and_then(|()| (&*self.stream).read(&mut self.received));
            match received {
                Ok(0) => return Err(self.error(ConnectionErrorKind::Lost, "the broker closed the connection".into())),
                Ok(count) => self.frames.push(&self.received[..count]),
                Err(cause) => match cause.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        return Err(self.error(ConnectionErrorKind::TimedOut, "no response before the deadline".into()));
                    }
                    _ => return Err(self.error(ConnectionErrorKind::Lost, format!("connection lost: {cause}"))),
                },
            }
        }
    }

    /// Whether the broker has closed the connection, or sent bytes that belong to no request. Does not block.
    pub fn is_closed(&self) -> bool {
        // MSG_DONTWAIT is needed: the socket itself blocks.
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        !matches!(rustix::net::recv(&*self.stream, &mut [0_u8; 1][..], flags), Err(rustix::io::Errno::AGAIN))
    }

    fn request_versions(&mut self, deadline: Instant) -> Result<(), ConnectionError> {
        let sent = self.send_with(ApiVersionsRequest::API_KEY, 0, false, deadline, |_| {})?;
        let response = self.receive::<ApiVersionsRequest>(sent, deadline)?;
        self.versions = response.apis.into_iter().map(|(key, low, high)| (key, (low, high))).collect();
        Ok(())
    }

    fn malformed(&self, cause: &Malformed) -> ConnectionError {
        self.error(ConnectionErrorKind::Malformed, format!("malformed response: {cause}"))
    }

    fn error(&self, kind: ConnectionErrorKind, reason: String) -> ConnectionError {
        ConnectionError { address: self.address.clone(), kind, reason }
    }
}

/// Returns the time left until `deadline`; fails if it has passed.
fn timeout_until(deadline: Instant) -> io::Result<std::time::Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}
