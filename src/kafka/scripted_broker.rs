//! A TCP server that answers requests as a test says; for the tests of what needs one or a few answers of a broker.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::BytesMut;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{ApiKey, ApiVersionsResponse, RequestHeader};
use kafka_protocol::protocol::{Decodable, Encodable};
use socket2::{Domain, Socket, Type};

use super::config::{BrokerAddress, ConnectionConfig};
use super::connection::Connector;
use super::protocol::Request;
use crate::locks::lock;

/// How the server reacts to a request.
pub(super) enum Reply {
    /// Sends this body.
    Body(Vec<u8>),
    /// Sends nothing.
    Silence,
    /// Closes the connection.
    Close,
}

/// A request that the server received.
pub(super) struct Received<'a> {
    pub(super) api_key: i16,
    pub(super) version: i16,
    /// The number of requests with this API key before it, over all connections.
    pub(super) index: usize,
    pub(super) body: &'a [u8],
}

impl Received<'_> {
    /// Decodes the body with the crate.
    pub(super) fn decode<C: Decodable>(&self) -> C {
        C::decode(&mut &*self.body, self.version).unwrap()
    }

    /// Encodes a response with the crate.
    pub(super) fn reply(&self, response: &impl Encodable) -> Reply {
        let mut buffer = BytesMut::new();
        response.encode(&mut buffer, self.version).unwrap();
        Reply::Body(buffer.to_vec())
    }
}

type Script = dyn Fn(&Received) -> Reply + Send + Sync;

/// A running server; it answers ApiVersions itself.
pub(super) struct ScriptedBroker {
    pub(super) address: BrokerAddress,
    counts: Arc<Mutex<HashMap<i16, usize>>>,
    is_stopped: Arc<AtomicBool>,
}

/// The range of versions that a server supports.
pub(super) fn api<R: Request>() -> (i16, i16, i16) {
    (R::API_KEY, R::VERSIONS.0, R::VERSIONS.1)
}

/// Returns a connector for tests.
pub(super) fn connector() -> Connector {
    Connector::new(ConnectionConfig { connect_timeout: Duration::from_secs(5), ..ConnectionConfig::default() })
}

/// A port that refuses connections: it is bound, so nobody else gets it, but does not listen.
pub(super) struct RefusingPort {
    pub(super) address: BrokerAddress,
    socket: Socket,
}

impl RefusingPort {
    pub(super) fn bind() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let port = socket.local_addr().unwrap().as_socket_ipv4().unwrap().port();
        RefusingPort { address: BrokerAddress { host: "127.0.0.1".into(), port }, socket }
    }

    /// Accepts connections from now on.
    pub(super) fn listen(self) -> TcpListener {
        self.socket.listen(16).unwrap();
        self.socket.into()
    }
}

fn address(listener: &TcpListener) -> BrokerAddress {
    BrokerAddress { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() }
}

impl ScriptedBroker {
    /// Starts a server with these API keys and version ranges.
    pub(super) fn start(apis: &[(i16, i16, i16)], script: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        ScriptedBroker::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), apis, script)
    }

    /// Starts a server on a listener.
    pub(super) fn start_on(
        listener: TcpListener,
        apis: &[(i16, i16, i16)],
        script: impl Fn(&Received) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let (counts, is_stopped) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let server = ScriptedBroker {
            address: address(&listener),
            counts: Arc::clone(&counts),
            is_stopped: Arc::clone(&is_stopped),
        };
        let script: Arc<Script> = Arc::new(script);
        let apis: Arc<[_]> = apis.into();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if is_stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (script, apis, counts) = (Arc::clone(&script), Arc::clone(&apis), Arc::clone(&counts));
                thread::spawn(move || serve(stream.unwrap(), &apis, &*script, &counts));
            }
        });
        server
    }

    /// Starts a server that accepts connections and never answers.
    pub(super) fn start_silent() -> Self {
        ScriptedBroker::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), &[], |_| Reply::Silence)
    }

    /// Returns the number of requests with this API key.
    pub(super) fn count<R: Request>(&self) -> usize {
        lock(&self.counts).get(&R::API_KEY).copied().unwrap_or(0)
    }
}

impl Drop for ScriptedBroker {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        // Ends the wait for a connection; afterwards the address refuses connections.
        let _ = TcpStream::connect((&*self.address.host, self.address.port));
    }
}

fn serve(mut stream: TcpStream, apis: &[(i16, i16, i16)], script: &Script, counts: &Mutex<HashMap<i16, usize>>) {
    let mut size = [0; 4];
    while stream.read_exact(&mut size).is_ok() {
        let mut frame = vec![0; u32::from_be_bytes(size) as usize];
        if stream.read_exact(&mut frame).is_err() {
            return;
        }
        let (api_key, version) = (i16::from_be_bytes([frame[0], frame[1]]), i16::from_be_bytes([frame[2], frame[3]]));
        let key = ApiKey::try_from(api_key).unwrap();
        let mut body = &frame[..];
        let header = RequestHeader::decode(&mut body, key.request_header_version(version)).unwrap();
        let index = {
            let mut counts = lock(counts);
            let count = counts.entry(api_key).or_default();
            *count += 1;
            *count - 1
        };
        let received = Received { api_key, version, index, body };
        let reply = if key == ApiKey::ApiVersions && !apis.is_empty() {
            let apis = apis.iter().map(|(key, min, max)| {
                ApiVersion::default().with_api_key(*key).with_min_version(*min).with_max_version(*max)
            });
            let response = ApiVersionsResponse::default().with_api_keys(apis.collect());
            received.reply(&response)
        } else {
            script(&received)
        };
        let body = match reply {
            Reply::Body(body) => body,
            Reply::Silence => continue,
            Reply::Close => return,
        };
        let mut frame = header.correlation_id.to_be_bytes().to_vec();
        frame.resize(if key.response_header_version(version) > 0 { 5 } else { 4 }, 0);
        frame.extend(body);
        let bytes = [&(frame.len() as u32).to_be_bytes()[..], &frame].concat();
        if stream.write_all(&bytes).is_err() {
            return;
        }
    }
}
