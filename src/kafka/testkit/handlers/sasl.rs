//! SaslHandshake and SaslAuthenticate with PLAIN (RFC 4616).

use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes};
use kafka_protocol::messages::{
    SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse,
};

use super::super::call::{Context, Ended, Reply, Serve};
use super::super::codes;
use super::super::script::Plan;
use super::text;

const MECHANISM: &str = "PLAIN";

impl Serve for SaslHandshakeRequest {
    fn serve(self, context: &mut Context, plan: &Plan) -> Result<Option<SaslHandshakeResponse>, Ended> {
        let has_users = context.lock().users.is_some();
        let code = match plan.error() {
            Some(error) => error.code,
            None if !has_users => codes::ILLEGAL_SASL_STATE,
            None if self.mechanism.as_str() != MECHANISM => codes::UNSUPPORTED_SASL_MECHANISM,
            None => codes::NONE,
        };
        if code == codes::NONE {
            context.mechanism = Some(self.mechanism.to_string());
            // After a handshake in version 0 the tokens follow without Kafka's headers.
            context.expects_raw_token = context.version == 0;
        }
        Ok(Some(SaslHandshakeResponse::default().with_error_code(code).with_mechanisms(vec![text(MECHANISM)])))
    }
}

impl Serve for SaslAuthenticateRequest {
    fn serve(self, context: &mut Context, plan: &Plan) -> Result<Option<SaslAuthenticateResponse>, Ended> {
        let response = SaslAuthenticateResponse::default();
        if let Some(error) = plan.error() {
            return Ok(Some(response.with_error_code(error.code).with_error_message(Some(text("injected")))));
        }
        if context.mechanism.is_none() {
            return Ok(Some(response.with_error_code(codes::ILLEGAL_SASL_STATE)));
        }
        if !authenticate(context, &self.auth_bytes) {
            context.closes_after_response = true;
            let message = text("Authentication failed: Invalid username or password");
            let response = response.with_error_code(codes::SASL_AUTHENTICATION_FAILED);
            return Ok(Some(response.with_error_message(Some(message))));
        }
        let lifetime = context.lock().session_lifetime;
        context.session_ends = lifetime.map(|lifetime| Instant::now() + lifetime);
        let lifetime_ms = if context.version >= 1 { lifetime.unwrap_or(Duration::ZERO).as_millis() as i64 } else { 0 };
        Ok(Some(response.with_session_lifetime_ms(lifetime_ms)))
    }
}

/// Serves a token that comes without Kafka's headers; a wrong one ends the connection.
pub(in super::super) fn serve_raw_token(context: &mut Context, token: &Bytes) -> Result<Reply, Ended> {
    context.expects_raw_token = false;
    if !authenticate(context, token) {
        return Err(Ended);
    }
    let mut bytes = Vec::new();
    bytes.put_i32(0);
    Ok(Reply::Send { bytes, closes: false, pause: None })
}

/// Checks user name and password.
fn authenticate(context: &mut Context, token: &[u8]) -> bool {
    let fields: Vec<_> = token.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let is_known = match &fields[..] {
        [_, user, password] => {
            let state = context.lock();
            let users = state.users.as_ref();
            users.and_then(|users| users.get(&**user)).is_some_and(|expected| *expected == **password)
        }
        _ => false,
    };
    context.is_authenticated = is_known;
    is_known
}
