//! One request at a broker: decode, faults, carry out, encode.

use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request};

use super::fault::ResponseFault;
use super::script::Plan;
use super::state::{Shared, State};

/// The connection on which a request came.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) shared: Arc<Shared>,
    /// The broker.
    pub(super) broker: i32,
    /// The run of the broker in which the connection was accepted.
    pub(super) run: u64,
    /// Address of the client.
    pub(super) client_host: String,
    /// `client.id` of the last request.
    pub(super) client_id: String,
    /// Version of the request.
    pub(super) version: i16,
    /// Whether the client is authenticated, or need not be.
    pub(super) is_authenticated: bool,
    /// The SASL mechanism that the client has chosen.
    pub(super) mechanism: Option<String>,
    /// When the client must have authenticated again.
    pub(super) session_ends: Option<Instant>,
    /// Whether the next bytes are a SASL token without Kafka's headers.
    pub(super) expects_raw_token: bool,
    /// Whether the connection is closed after the next response.
    pub(super) closes_after_response: bool,
    /// Requests before this time violate a throttle time.
    pub(super) throttled_until: Option<Instant>,
}

impl Context {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }

    /// Whether the broker is still in the run that accepted the connection.
    pub(super) fn is_alive(&self, state: &State) -> bool {
        !state.is_closing && state.broker(self.broker).is_some_and(|broker| broker.is_running && broker.run == self.run)
    }

    /// Waits until `until`; fails if the broker stops before.
    pub(super) fn sleep(&self, duration: Duration) -> Result<(), Ended> {
        let until = Instant::now() + duration;
        let mut state = self.lock();
        while self.is_alive(&state) && Instant::now() < until {
            state = self.shared.wait(state, until);
        }
        if self.is_alive(&state) { Ok(()) } else { Err(Ended) }
    }

    /// Waits until the test releases what it holds; fails if the broker stops before.
    fn hold(&self) -> Result<(), Ended> {
        let mut state = self.lock();
        let releases = state.releases;
        state.held += 1;
        self.shared.notify(&mut state);
        while self.is_alive(&state) && state.releases == releases {
            state = self.shared.wait(state, Instant::now() + Duration::from_secs(3600));
        }
        state.held -= 1;
        if self.is_alive(&state) { Ok(()) } else { Err(Ended) }
    }

    /// Waits while the broker is paused; fails if it stops.
    pub(super) fn wait_while_paused(&self) -> Result<(), Ended> {
        let mut state = self.lock();
        while self.is_alive(&state) && state.broker(self.broker).is_some_and(|broker| broker.is_paused) {
            state = self.shared.wait(state, Instant::now() + Duration::from_secs(3600));
        }
        if self.is_alive(&state) { Ok(()) } else { Err(Ended) }
    }
}

/// The connection ends: the broker has stopped, or the request does not deserve an answer.
#[derive(Debug)]
pub(super) struct Ended;

/// What the connection does after a request.
#[derive(Debug)]
pub(super) enum Reply {
    /// Sends these bytes, then closes the connection if `closes`, or waits between bytes.
    Send { bytes: Vec<u8>, closes: bool, pause: Option<Duration> },
    /// Sends nothing and reads the next request.
    Nothing,
}

/// A request that the cluster serves.
pub(super) trait Serve: Request {
    /// Returns the topics and partitions that the request names, for the scopes of faults.
    fn targets(&self, _state: &State) -> Vec<(String, i32)> {
        Vec::new()
    }

    /// Carries out the request; `None` means that there is no response.
    fn serve(self, context: &mut Context, plan: &Plan) -> Result<Option<Self::Response>, Ended>;
}

/// Decodes a request of a type, applies the faults, carries it out and encodes the response.
pub(super) fn serve_as<R: Serve>(context: &mut Context, mut frame: Bytes) -> Result<Reply, Ended> {
    let version = context.version;
    let decoded = RequestHeader::decode(&mut frame, R::header_version(version))
        .and_then(|header| Ok((header, R::decode(&mut frame, version)?)));
    let (header, request) = match decoded {
        Ok(decoded) if frame.is_empty() => decoded,
        _ => {
            context.lock().counters.malformed += 1;
            return Err(Ended);
        }
    };
    context.client_id = header.client_id.as_deref().unwrap_or_default().to_owned();
    let Ok(api) = ApiKey::try_from(R::KEY) else {
        return Err(Ended);
    };
    let plan = {
        let mut state = context.lock();
        let targets = request.targets(&state);
        *state.counters.partitions.entry(api).or_default().entry(targets.len()).or_default() += 1;
        let broker = context.broker;
        let plan = state.script.plan(api, broker, &targets);
        context.shared.notify(&mut state);
        plan
    };
    if plan.is_held {
        context.hold()?;
    }
    context.sleep(plan.delay)?;
    let response = match plan.is_dropped {
        true => None,
        false => request.serve(context, &plan)?,
    };
    let bytes =
        response.map(|response| encode(header.correlation_id, version, response_header::<R>(version), &response));
    if plan.is_response_held {
        context.hold()?;
    }
    context.sleep(plan.response_delay)?;
    if plan.throttle_ms > 0 {
        context.throttled_until = Some(Instant::now() + Duration::from_millis(plan.throttle_ms as u64));
    }
    let fault = plan.response.or(context.closes_after_response.then_some(ResponseFault::CloseAfter));
    apply(bytes, fault)
}

fn response_header<R: Request>(version: i16) -> i16 {
    R::Response::header_version(version)
}

/// Encodes a response with length and header.
pub(super) fn encode(correlation_id: i32, version: i16, header_version: i16, response: &impl Encodable) -> Vec<u8> {
    let mut body = BytesMut::new();
    ResponseHeader::default()
        .with_correlation_id(correlation_id)
        .encode(&mut body, header_version)
        .expect("a response header can be encoded");
    response.encode(&mut body, version).expect("the handler fills the fields that the version has");
    let mut bytes = BytesMut::new();
    bytes.put_i32(body.len() as i32);
    bytes.put_slice(&body);
    bytes.to_vec()
}

pub(super) fn plain(bytes: Vec<u8>) -> Reply {
    Reply::Send { bytes, closes: false, pause: None }
}

/// Applies the response fault.
fn apply(response: Option<Vec<u8>>, fault: Option<ResponseFault>) -> Result<Reply, Ended> {
    let closing = |bytes| Ok(Reply::Send { bytes, closes: true, pause: None });
    let mut bytes = match (response, &fault) {
        (_, Some(ResponseFault::Close)) => return Err(Ended),
        (None, _) | (_, Some(ResponseFault::Never)) => return Ok(Reply::Nothing),
        (Some(bytes), _) => bytes,
    };
    match fault {
        None | Some(ResponseFault::Never | ResponseFault::Close) => {}
        Some(ResponseFault::CloseWithin(count)) => {
            // At least the last byte is missing.
            bytes.truncate(count.min(bytes.len() - 1));
            return closing(bytes);
        }
        Some(ResponseFault::CloseAfter) => return closing(bytes),
        Some(ResponseFault::WrongCorrelationId) => bytes[7] ^= 0x55,
        Some(ResponseFault::Truncated(count)) => {
            bytes.truncate((bytes.len() - count.min(bytes.len() - 8)).max(8));
            let length = bytes.len() as i32 - 4;
            bytes[..4].copy_from_slice(&length.to_be_bytes());
        }
        Some(ResponseFault::Garbage) => {
            // Every byte is changed: no length and no count stays as it was.
            bytes[8..].iter_mut().for_each(|byte| *byte = !*byte);
        }
        Some(ResponseFault::AnnouncedLength(length)) => bytes[..4].copy_from_slice(&length.to_be_bytes()),
        Some(ResponseFault::Trickle(pause)) => {
            return Ok(Reply::Send { bytes, closes: false, pause: Some(pause) });
        }
    }
    Ok(plain(bytes))
}
