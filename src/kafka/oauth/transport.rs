//! The connection to a token endpoint, as a transport of the HTTP client: with the resolver, the TLS and the deadlines
//! of the Kafka client. The HTTP client has no TLS of its own in this build.

use std::fmt;
use std::io::{self, IoSlice};
use std::time::Instant;

use ureq::config::Config as AgentConfig;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver as ResolverTrait};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport as TransportTrait,
};
use ureq::{Error, Timeout};

use crate::kafka::resolve::Resolver;
use crate::kafka::socket::Disconnect;
use crate::kafka::stream::{Stream, StreamError};
use crate::shutdown::Stop;
use crate::tls_client::TlsClient;

/// Looks up the host of the endpoint.
#[derive(Debug)]
pub(super) struct EndpointResolver {
    pub(super) resolver: Resolver,
    pub(super) deadline: Instant,
    pub(super) stop: Stop,
}

impl ResolverTrait for EndpointResolver {
    fn resolve(&self, uri: &Uri, _: &AgentConfig, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let found = self.resolver.addresses(host(uri), port, self.deadline, &self.stop);
        let mut resolved = self.empty();
        // Both have a limit of 16 addresses.
        found.map_err(failed)?.into_iter().for_each(|address| resolved.push(address));
        Ok(resolved)
    }
}

/// Connects to the first address of the endpoint that works.
pub(super) struct EndpointConnector {
    pub(super) tls: Option<TlsClient>,
    pub(super) deadline: Instant,
    pub(super) disconnect: Disconnect,
}

impl fmt::Debug for EndpointConnector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("EndpointConnector")
    }
}

impl Connector for EndpointConnector {
    type Out = EndpointTransport;

    fn connect(&self, details: &ConnectionDetails, _chained: Option<()>) -> Result<Option<EndpointTransport>, Error> {
        let mut failures: Vec<String> = Vec::new();
        for (index, address) in details.addrs.iter().enumerate() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let share = Instant::now() + left / (details.addrs.len() - index) as u32;
            let connected = Stream::connect(*address, share, &self.disconnect).map_err(StreamError::from);
            let outcome = connected.and_then(|mut stream| {
                if let Some(tls) = &self.tls {
                    stream.start_tls(tls, host(details.uri), share)?;
                }
                Ok(stream)
            });
            match outcome {
                Ok(stream) => {
                    let buffers = LazyBuffers::new(16 * 1024, 16 * 1024);
                    let (deadline, is_tls) = (self.deadline, self.tls.is_some());
                    return Ok(Some(EndpointTransport { stream, buffers, deadline, is_tls }));
                }
                Err(cause) => failures.push(format!("{address}: {}", cause)),
            }
        }
        Err(failed(failures.join("; ")))
    }
}

/// One connection to the endpoint, for one request.
pub(super) struct EndpointTransport {
    stream: Stream,
    buffers: LazyBuffers,
    deadline: Instant,
    is_tls: bool,
}

impl fmt::Debug for EndpointTransport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("EndpointTransport")
    }
}

impl TransportTrait for EndpointTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), Error> {
        let output = &self.buffers.output()[..amount];
        self.stream
            .write_all(&mut [IoSlice::new(output)], self.deadline)
            .map_err(|failure| client_error(&failure.cause))
    }

    fn await_input(&mut self, _: NextTimeout) -> Result<bool, Error> {
        let count = match self.stream.read(self.buffers.input_append_buf(), self.deadline) {
            Ok(count) => count,
            Err(StreamError::Closed) => 0,
            Err(cause) => return Err(client_error(&cause)),
        };
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    fn is_open(&mut self) -> bool {
        // Each request has a connection of its own.
        false
    }

    fn is_tls(&self) -> bool {
        self.is_tls
    }
}

/// Returns the host of a URL; IPv6 addresses have no brackets.
fn host(uri: &Uri) -> &str {
    let host = uri.host().unwrap_or_default();
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn client_error(cause: &StreamError) -> Error {
    match cause {
        StreamError::TimedOut => Error::Timeout(Timeout::Global),
        other => failed(other.to_string()),
    }
}

fn failed(reason: String) -> Error {
    Error::Io(io::Error::other(reason))
}
