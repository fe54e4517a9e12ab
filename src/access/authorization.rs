//! Parses the `Authorization` header (RFC 9110 11.6.2, RFC 6750 2.1, RFC 7617 2).

use std::fmt;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::http::Headers;

/// Base64 with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The credentials that a request presents, not verified yet. `Debug` hides them.
#[derive(PartialEq, Eq)]
pub(crate) enum PresentedCredentials<'a> {
    /// A token.
    Bearer(&'a [u8]),
    /// User and password: the bytes before and after the first colon.
    Basic(Vec<u8>, Vec<u8>),
}

impl fmt::Debug for PresentedCredentials<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            PresentedCredentials::Bearer(_) => "Bearer (hidden)",
            PresentedCredentials::Basic(..) => "Basic (hidden)",
        })
    }
}

/// Why a request has no credentials to look up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AuthorizationError {
    /// No `Authorization` header.
    Missing,
    /// Several `Authorization` headers.
    Repeated,
    /// The scheme is neither Bearer nor Basic.
    OtherScheme,
    /// The value does not follow the syntax of its scheme.
    Malformed,
}

/// Returns the credentials in the `Authorization` header of a request.
pub(crate) fn read(headers: &Headers) -> Result<PresentedCredentials<'_>, AuthorizationError> {
    let mut values = headers.iter().filter(|(name, _)| *name == "authorization").map(|(_, value)| value);
    let value = values.next().ok_or(AuthorizationError::Missing)?;
    if values.next().is_some() {
        return Err(AuthorizationError::Repeated);
    }
    let end = value.iter().position(|byte| *byte == b' ').unwrap_or(value.len());
    let (scheme, rest) = value.split_at(end);
    // The scheme may be followed by several spaces (RFC 9110 11.4).
    let rest = rest.trim_ascii_start();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return if is_token(rest) {
            Ok(PresentedCredentials::Bearer(rest))
        } else {
            Err(AuthorizationError::Malformed)
        };
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return Err(AuthorizationError::OtherScheme);
    }
    let mut user = BASE64.decode(rest).map_err(|_| AuthorizationError::Malformed)?;
    let colon = user.iter().position(|byte| *byte == b':').ok_or(AuthorizationError::Malformed)?;
    let password = user.split_off(colon + 1);
    // Removes the colon, which is part of neither user nor password.
    user.pop();
    Ok(PresentedCredentials::Basic(user, password))
}

/// Whether `bytes` is a `b64token` (RFC 6750 2.1), the syntax of a bearer token.
pub(crate) fn is_token(bytes: &[u8]) -> bool {
    let padding = bytes.iter().rev().take_while(|byte| **byte == b'=').count();
    let token = &bytes[..bytes.len() - padding];
    !token.is_empty() && token.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_parsed_into_a_token_a_user_or_an_error() {
        let basic = |user: &[u8], password: &[u8]| Ok(PresentedCredentials::Basic(user.to_vec(), password.to_vec()));
        let rows: [(&[&str], Result<PresentedCredentials<'_>, AuthorizationError>); 20] = [
            (&[], Err(AuthorizationError::Missing)),
            (&["Bearer abc"], Ok(PresentedCredentials::Bearer(b"abc"))),
            (&["bEARER   a-._~+/9=="], Ok(PresentedCredentials::Bearer(b"a-._~+/9=="))),
            (&["Bearer"], Err(AuthorizationError::Malformed)),
            (&["Bearer "], Err(AuthorizationError::Malformed)),
            (&["Bearer =="], Err(AuthorizationError::Malformed)),
            (&["Bearer a=b"], Err(AuthorizationError::Malformed)),
            (&["Bearer a b"], Err(AuthorizationError::Malformed)),
            (&["Bearer a,b"], Err(AuthorizationError::Malformed)),
            (&["Bearer a", "Bearer a"], Err(AuthorizationError::Repeated)),
            (&["Basic dTpw"], basic(b"u", b"p")),
            (&["basic dTpwOnE="], basic(b"u", b"p:q")),
            (&["Basic dTpwOnE"], basic(b"u", b"p:q")),
            (&["Basic Og=="], basic(b"", b"")),
            (&["Basic w7w6w7w="], basic("\u{fc}".as_bytes(), "\u{fc}".as_bytes())),
            (&["Basic dXA="], Err(AuthorizationError::Malformed)),
            (&["Basic !"], Err(AuthorizationError::Malformed)),
            (&["Basic"], Err(AuthorizationError::Malformed)),
            (&["Digest username=x"], Err(AuthorizationError::OtherScheme)),
            (&[""], Err(AuthorizationError::OtherScheme)),
        ];
        for (values, expected) in rows {
            let mut headers = Headers::default();
            headers.push("Host", b"h");
            values.iter().for_each(|value| headers.push("Authorization", value.as_bytes()));
            let presented = read(&headers);
            assert!(presented == expected, "{values:?}");
            assert!(!format!("{presented:?}").contains("abc"));
        }
    }
}
