//! Requests and responses on one stream, with correlation ids and deadlines. The channel neither authenticates nor
//! retries.

use std::collections::HashMap;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::error::{ConnectionError, ConnectionErrorKind as Kind};
use crate::kafka::config::{BrokerAddress, ConnectionConfig};
use crate::kafka::frame::{FrameReader, RequestBuffer, RequestHeader, put_request, split_response};
use crate::kafka::protocol::api_versions::{ApiVersionsRequest, UNSUPPORTED_VERSION};
use crate::kafka::protocol::{Request, is_flexible};
use crate::kafka::stream::{Stream, StreamError};
use crate::kafka::wire::{Malformed, WireReader};

/// The output buffer of a connection is released if a request has made it larger than this.
const MAX_KEPT_OUTPUT_BYTES: usize = 1 << 20;

/// Data of a request that is at least this large is written without being copied into the output buffer first. For
/// smaller data the copy costs less than one more slice in the write.
const MIN_LARGE_BYTES: usize = 4096;

/// Requests and responses on a stream to a broker.
pub(super) struct Channel {
    stream: Stream,
    address: BrokerAddress,
    /// The address that the broker's name has for this connection.
    peer: SocketAddr,
    frames: FrameReader,
    output: Vec<u8>,
    /// Lowest and highest version that the broker supports, by API key.
    versions: HashMap<i16, (i16, i16)>,
    correlation_id: i32,
    /// Requests without a response.
    in_flight: usize,
    /// Whether a request failed after a part of it was sent, or its response did: the stream has no known position.
    is_broken: bool,
    /// Responses received since the ApiVersions response.
    responses: u64,
    last_used: Instant,
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

impl Channel {
    pub(super) fn new(
        stream: Stream,
        address: BrokerAddress,
        peer: SocketAddr,
        config: Arc<ConnectionConfig>,
    ) -> Channel {
        Channel {
            stream,
            address,
            peer,
            frames: FrameReader::new(config.max_response_bytes),
            output: Vec::new(),
            versions: HashMap::new(),
            correlation_id: 0,
            in_flight: 0,
            is_broken: false,
            responses: 0,
            last_used: Instant::now(),
            config,
        }
    }

    pub(super) fn address(&self) -> &BrokerAddress {
        &self.address
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Makes the channel unusable.
    pub(super) fn set_broken(&mut self) {
        self.is_broken = true;
    }

    /// When the last request was sent or the last response received.
    pub(super) fn last_used(&self) -> Instant {
        self.last_used
    }

    /// Returns the highest version of an API that the broker and this client support.
    pub(super) fn version_of(&self, api_key: i16, supported: (i16, i16)) -> Result<i16, ConnectionError> {
        let common = self.versions.get(&api_key).map(|(low, high)| (*low.max(&supported.0), *high.min(&supported.1)));
        match common {
            Some((low, high)) if low <= high => Ok(high),
            _ => {
                let reason = format!("the broker does not support versions {supported:?} of request type {api_key}");
                Err(self.error(Kind::Unsupported, reason))
            }
        }
    }

    /// Requests the versions that the broker supports. Brokers before 2.4 refuse version 3 of this request, and none
    /// refuses version 0.
    pub(super) fn request_versions(&mut self, deadline: Instant) -> Result<(), ConnectionError> {
        for version in [ApiVersionsRequest::VERSIONS.1, 0] {
            let flexible = is_flexible::<ApiVersionsRequest>(version);
            let sent = self.send_with(ApiVersionsRequest::API_KEY, version, flexible, deadline, |request| {
                ApiVersionsRequest.encode(&mut request.bytes, version);
            })?;
            let response = self.receive::<ApiVersionsRequest>(sent, deadline)?;
            match response.error_code {
                0 => {
                    self.versions = response.apis.into_iter().map(|(key, low, high)| (key, (low, high))).collect();
                    self.responses = 0;
                    return Ok(());
                }
                UNSUPPORTED_VERSION => {}
                code => return Err(self.error(Kind::NotSent, format!("the broker returned error code {code}"))),
            }
        }
        Err(self.error(Kind::NotSent, "the broker refused version 0, which every broker supports".into()))
    }

    /// Sends a request and waits for its response.
    pub(super) fn call<R: Request>(
        &mut self,
        request: &R,
        version: i16,
        deadline: Instant,
    ) -> Result<R::Response, ConnectionError> {
        let sent = self.send_with(R::API_KEY, version, is_flexible::<R>(version), deadline, |buffer| {
            request.encode(&mut buffer.bytes, version);
        })?;
        self.receive::<R>(sent, deadline)
    }

    /// Sends a request whose body `body` appends.
    pub(super) fn send_with<'a>(
        &mut self,
        api_key: i16,
        version: i16,
        flexible: bool,
        deadline: Instant,
        body: impl FnOnce(&mut RequestBuffer<'a>),
    ) -> Result<SentRequest, ConnectionError> {
        self.correlation_id = self.correlation_id.wrapping_add(1);
        let correlation_id = self.correlation_id;
        self.output.clear();
        self.output.shrink_to(MAX_KEPT_OUTPUT_BYTES);
        let client_id = &*self.config.client_id;
        let header = RequestHeader { api_key, version, correlation_id, client_id, flexible };
        // TLS copies all data anyway, and makes a record of each slice.
        let min_large_bytes = if self.stream.is_encrypted() { usize::MAX } else { MIN_LARGE_BYTES };
        let mut request = RequestBuffer::new(std::mem::take(&mut self.output), min_large_bytes);
        put_request(&mut request, &header, body);
        let written = self.write(&mut request.slices(), deadline);
        self.output = request.bytes;
        written?;
        // The response to ApiVersions has a header without tagged fields in every version (KIP-511).
        let flexible_header = flexible && api_key != ApiVersionsRequest::API_KEY;
        Ok(SentRequest { version, correlation_id, flexible_header })
    }

    fn write(&mut self, request: &mut [IoSlice<'_>], deadline: Instant) -> Result<(), ConnectionError> {
        if self.is_broken {
            return Err(self.error(Kind::NotSent, "the connection failed before".into()));
        }
        // Reset at the end: every failure below leaves the stream at an unknown position.
        self.is_broken = true;
        self.stream.write_all(request, deadline).map_err(|failure| {
            let kind = match failure.cause {
                _ if failure.is_unsent => Kind::NotSent,
                StreamError::TimedOut => Kind::TimedOut,
                _ => Kind::Lost,
            };
            self.error(kind, format!("the request could not be sent: {}", failure.cause))
        })?;
        self.is_broken = false;
        self.config.requests.count();
        self.in_flight += 1;
        self.last_used = Instant::now();
        Ok(())
    }

    /// Notes that the latest request gets no response.
    pub(super) fn expect_no_response(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Sends bytes with a length prefix only and returns those of the answer: SASL after SaslHandshake version 0.
    pub(super) fn call_raw(&mut self, message: &[u8], deadline: Instant) -> Result<Vec<u8>, ConnectionError> {
        let request = [&(message.len() as i32).to_be_bytes()[..], message].concat();
        self.write(&mut [IoSlice::new(&request)], deadline)?;
        self.next_response(deadline, |frame| Ok(frame.to_vec()))
    }

    /// Waits for the response to the oldest request without one.
    pub(super) fn receive<R: Request>(
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
    pub(super) fn receive_with<T>(
        &mut self,
        sent: SentRequest,
        deadline: Instant,
        decode: impl FnOnce(&[u8]) -> Result<T, Malformed>,
    ) -> Result<T, ConnectionError> {
        self.next_response(deadline, |frame| {
            let (correlation_id, body) = split_response(frame, sent.flexible_header)?;
            match correlation_id == sent.correlation_id {
                true => decode(body),
                false => Err(Malformed("a response to another request")),
            }
        })
    }

    fn next_response<T>(
        &mut self,
        deadline: Instant,
        decode: impl FnOnce(&[u8]) -> Result<T, Malformed>,
    ) -> Result<T, ConnectionError> {
        self.is_broken = true;
        loop {
            match self.frames.next_frame() {
                Ok(Some(frame)) => {
                    let decoded = decode(frame).map_err(|cause| self.malformed(&cause))?;
                    self.is_broken = false;
                    self.in_flight = self.in_flight.saturating_sub(1);
                    self.responses += 1;
                    self.last_used = Instant::now();
                    self.frames.release_large();
                    return Ok(decoded);
                }
                Ok(None) => {}
                Err(cause) => return Err(self.unacceptable(&cause)),
            }
            match self.stream.read(self.frames.space(), deadline) {
                Ok(count) => self.frames.received(count),
                Err(cause) => return Err(self.no_response(&cause)),
            }
        }
    }

    /// Whether the connection is unusable: a request has failed, the broker has closed it, or it has sent bytes that
    /// belong to no request. Does not block.
    pub(super) fn is_closed(&mut self) -> bool {
        // Responses to requests in flight may have arrived; the next read finds a close.
        self.is_broken || self.in_flight == 0 && (self.frames.has_bytes() || self.stream.is_closed())
    }

    fn no_response(&self, cause: &StreamError) -> ConnectionError {
        let is_closed = match cause {
            StreamError::TimedOut => return self.error(Kind::TimedOut, "no response before the deadline".into()),
            // In TLS 1.3 the verdict on the client's certificate comes after the handshake.
            StreamError::Tls(failure) if failure.is_refusal => return self.error(Kind::Denied, cause.to_string()),
            StreamError::Tls(_) => false,
            StreamError::Closed => true,
            StreamError::Io(cause) => cause.kind() == std::io::ErrorKind::ConnectionReset,
        };
        if !is_closed || self.responses > 0 {
            return self.error(Kind::Lost, cause.to_string());
        }
        if let Some(failure) = self.stream.closed_early() {
            return self.error(Kind::Denied, failure.reason);
        }
        let security = &self.config.security;
        let hint = match (self.versions.is_empty(), &security.tls, &security.sasl) {
            (true, None, _) => "; a listener with TLS does so (security.protocol), and a broker before 0.10",
            (true, ..) => "; a broker before 0.10 does so",
            // Such a listener answers ApiVersions only.
            (false, _, None) => {
                " instead of answering the first request; a listener with SASL does so \
                                 (security.protocol)"
            }
            (false, ..) => "",
        };
        self.error(Kind::Lost, format!("{cause}{hint}"))
    }

    /// Explains a response that has begun and cannot be received.
    fn unacceptable(&self, cause: &Malformed) -> ConnectionError {
        // A peer that has answered before is a broker, so the length is one.
        match self.frames.oversize_bytes().filter(|_| !self.versions.is_empty()) {
            Some(size) => {
                let max = self.config.max_response_bytes;
                self.error(
                    Kind::TooLarge,
                    format!("a response of {size} bytes, larger than the maximum of {max} bytes"),
                )
            }
            None => self.malformed(cause),
        }
    }

    fn malformed(&self, cause: &Malformed) -> ConnectionError {
        self.error(Kind::Malformed, format!("malformed response: {cause}"))
    }

    /// Creates an error that names the broker, and its IP address if the broker is known by name.
    pub(super) fn error(&self, kind: Kind, reason: String) -> ConnectionError {
        let reason = if is_ip(&self.address) { reason } else { format!("{reason} (IP address {})", self.peer.ip()) };
        ConnectionError { address: self.address.clone(), kind, reason }
    }
}

/// Whether the host of an address is an IP address.
pub(super) fn is_ip(address: &BrokerAddress) -> bool {
    address.host.parse::<std::net::IpAddr>().is_ok()
}
