//! The responses of a token endpoint (RFC 6749 sections 5.1 and 5.2).

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;

/// Lifetime of a token if neither the response nor the token states one.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// Limits on the lifetime: a token may expire at once, and a year is as good as forever.
const MAX_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// Limit on the length of a text of the endpoint in an error text.
const MAX_SHOWN_CHARS: usize = 300;

#[derive(Deserialize)]
struct TokenResponse {
    access_token: Option<String>,
    token_type: Option<String>,
    /// Seconds; some providers send a string.
    expires_in: Option<Value>,
}

#[derive(Deserialize)]
struct ErrorResponse {
    error: String,
    error_description: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    exp: Option<f64>,
}

/// Returns the token of a successful response, and its lifetime: that of the response, else that of the token if it is
/// a JWT, else a minute.
pub(super) fn parse(body: &[u8], now: SystemTime) -> Result<(String, Duration), String> {
    let response: TokenResponse =
        // The text of the JSON error could contain a part of the token.
        serde_json::from_slice(body).map_err(|_| "the response is not the JSON object of RFC 6749".to_owned())?;
    let token = response.access_token.filter(|token| !token.is_empty());
    let token = token.ok_or("the response has no access_token")?;
    if let Some(kind) = response.token_type.filter(|kind| !kind.eq_ignore_ascii_case("bearer")) {
        let kind: String = kind.chars().take(40).collect();
        return Err(format!("the token has the type {kind:?} instead of \"Bearer\""));
    }
    let seconds = response.expires_in.and_then(|value| match value {
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_f64(),
    });
    let lifetime = match seconds.or_else(|| seconds_left(&token, now)) {
        None => DEFAULT_LIFETIME,
        // NaN and negative numbers are a lifetime of 0.
        Some(seconds) => {
            Duration::try_from_secs_f64(seconds.max(0.0).min(MAX_LIFETIME.as_secs_f64())).unwrap_or(Duration::ZERO)
        }
    };
    if lifetime.is_zero() {
        return Err("the token has already expired".to_owned());
    }
    Ok((token, lifetime))
}

/// Returns the seconds until a JWT expires (RFC 7519 section 4.1.4).
fn seconds_left(token: &str, now: SystemTime) -> Option<f64> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let expires_at = serde_json::from_slice::<Claims>(&claims).ok()?.exp?;
    Some(expires_at - now.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs_f64())
}

/// Returns what an error response says, with a colon before it; nothing if it is not in the format of RFC 6749.
pub(super) fn explain_refusal(body: &[u8], secret: &str) -> String {
    let Ok(response) = serde_json::from_slice::<ErrorResponse>(body) else { return String::new() };
    let description = response.error_description.map(|text| format!(" ({text})")).unwrap_or_default();
    let mut text = format!(": {}{description}", response.error);
    if !secret.is_empty() {
        text = text.replace(secret, "***");
    }
    text.chars().take(MAX_SHOWN_CHARS).map(|char| if char.is_control() { ' ' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(body: &str) -> Result<(String, u64), String> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        parse(body.as_bytes(), now).map(|(token, lifetime)| (token, lifetime.as_secs()))
    }

    #[test]
    fn the_lifetime_is_that_of_the_response_or_of_the_token() {
        let jwt = format!("h.{}.s", URL_SAFE_NO_PAD.encode(r#"{"sub":"me","exp":1300.5}"#));
        let rows = [
            (r#"{"access_token":"t","token_type":"bearer","expires_in":3600,"scope":"x"}"#.to_owned(), "t", 3600),
            (r#"{"access_token":"t","token_type":"Bearer","expires_in":"3599"}"#.to_owned(), "t", 3599),
            (r#"{"access_token":"t"}"#.to_owned(), "t", 60),
            (format!(r#"{{"access_token":"{jwt}"}}"#), &jwt, 300),
            (format!(r#"{{"access_token":"{jwt}","expires_in":10}}"#), &jwt, 10),
            (r#"{"access_token":"t","expires_in":1e300}"#.to_owned(), "t", MAX_LIFETIME.as_secs()),
        ];
        for (body, token, seconds) in rows {
            assert_eq!(parsed(&body), Ok((token.to_owned(), seconds)), "{body}");
        }
    }

    #[test]
    fn a_response_without_a_usable_token_is_an_error_that_shows_no_token() {
        let expired = format!("secret.{}.s", URL_SAFE_NO_PAD.encode(r#"{"exp":1000}"#));
        let rows = [
            ("", "not the JSON object"),
            ("secret", "not the JSON object"),
            ("[1]", "not the JSON object"),
            (r#"{"access_token":5}"#, "not the JSON object"),
            ("{}", "no access_token"),
            (r#"{"access_token":""}"#, "no access_token"),
            (r#"{"access_token":"secret","token_type":"mac"}"#, "the type \"mac\""),
            (r#"{"access_token":"secret","expires_in":0}"#, "already expired"),
            (r#"{"access_token":"secret","expires_in":-5}"#, "already expired"),
            (&format!(r#"{{"access_token":"{expired}"}}"#), "already expired"),
        ];
        for (body, text) in rows {
            let error = parsed(body).unwrap_err();
            assert!(error.contains(text) && !error.contains("secret"), "{body}: {error}");
        }
    }

    #[test]
    fn the_explanation_of_a_refusal_does_not_repeat_the_secret() {
        let body = br#"{"error":"invalid_client","error_description":"wrong secret: p4ss\n"}"#;
        assert_eq!(explain_refusal(body, "p4ss"), ": invalid_client (wrong secret: *** )");
        assert_eq!(explain_refusal(br#"{"error":"invalid_scope"}"#, ""), ": invalid_scope");
        assert_eq!(explain_refusal(b"<html>p4ss</html>", "p4ss"), "");
    }

    proptest! {
        #[test]
        fn no_response_panics(body: Vec<u8>, lifetime: f64, claims in ".{0,30}") {
            let _ = (parse(&body, SystemTime::now()), explain_refusal(&body, "a"));
            let token = format!("a.{}.b", URL_SAFE_NO_PAD.encode(claims));
            let body = serde_json::json!({ "access_token": token, "expires_in": lifetime }).to_string();
            let _ = parse(body.as_bytes(), SystemTime::now());
        }
    }
}
