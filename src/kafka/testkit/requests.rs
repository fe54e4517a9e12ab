//! Decides whether a broker serves a request (version, authentication), and counts requests.

use std::time::Instant;

use bytes::{Buf, Bytes};
use kafka_protocol::messages::ApiKey;

use super::call::{Context, Ended, Reply, encode, plain};
use super::handlers;

/// Serves the request in `frame`, which is without its length.
pub(super) fn serve(context: &mut Context, frame: Bytes) -> Result<Reply, Ended> {
    if context.expects_raw_token {
        return handlers::serve_raw_token(context, &frame);
    }
    if frame.len() < 8 {
        context.lock().counters.malformed += 1;
        return Err(Ended);
    }
    let mut head = frame.clone();
    let (key, version, correlation_id) = (head.get_i16(), head.get_i16(), head.get_i32());
    let Ok(api) = ApiKey::try_from(key) else {
        return Err(Ended);
    };
    context.version = version;
    let range = {
        let mut state = context.lock();
        *state.counters.requests.entry(api).or_default() += 1;
        state.counters.versions.entry(api).or_default().insert(version);
        if context.throttled_until.is_some_and(|until| Instant::now() < until) {
            state.counters.throttle_violations += 1;
        }
        state.release.versions(api)
    };
    let is_decodable = api.valid_versions().min <= version && version <= api.valid_versions().max;
    if !range.is_some_and(|(low, high)| low <= version && version <= high) || !is_decodable {
        if api == ApiKey::ApiVersions {
            // The client uses a version that this release does not have: the answer is in version 0 (KIP-511).
            let response = handlers::versions::unsupported(&context.lock());
            return Ok(plain(encode(correlation_id, 0, 0, &response)));
        }
        return Err(Ended);
    }
    let is_sasl = matches!(api, ApiKey::ApiVersions | ApiKey::SaslHandshake | ApiKey::SaslAuthenticate);
    let is_expired = context.session_ends.is_some_and(|end| end <= Instant::now());
    if (!context.is_authenticated || is_expired) && !is_sasl {
        return Err(Ended);
    }
    handlers::dispatch(context, api, frame)
}
