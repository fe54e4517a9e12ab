//! The header `Authorization` into what a client shows of itself (RFC 9110 11.6.2, RFC 6750 2.1, RFC 7617 2).

use std::fmt;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::http::Headers;

/// The padding of base64 is taken as it comes.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a client shows. `Debug` hides it.
#[derive(PartialEq, Eq)]
pub(super) enum Shown<'a> {
    /// A token, which is what a client has.
    Bearer(&'a [u8]),
    /// The bytes before and after the first colon.
    Basic(Vec<u8>, Vec<u8>),
}

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Shown::Bearer(_) => "Bearer (hidden)",
            Shown::Basic(..) => "Basic (hidden)",
        })
    }
}

/// Why there is nothing to look up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// There is no such header.
    Missing,
    /// There are several.
    Repeated,
    /// Neither Bearer nor Basic.
    OtherScheme,
    /// Not in the form of its scheme.
    Malformed,
}

/// Reads the header.
pub(super) fn read(headers: &Headers) -> Result<Shown<'_>, Unusable> {
    let mut values = headers.iter().filter(|(name, _)| *name == "authorization").map(|(_, value)| value);
    let value = values.next().ok_or(Unusable::Missing)?;
    if values.next().is_some() {
        return Err(Unusable::Repeated);
    }
    let end = value.iter().position(|byte| *byte == b' ').unwrap_or(value.len());
    let (scheme, rest) = value.split_at(end);
    let rest = rest.trim_ascii_start();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return if is_token(rest) { Ok(Shown::Bearer(rest)) } else { Err(Unusable::Malformed) };
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return Err(Unusable::OtherScheme);
    }
    let mut user = BASE64.decode(rest).map_err(|_| Unusable::Malformed)?;
    let colon = user.iter().position(|byte| *byte == b':').ok_or(Unusable::Malformed)?;
    let password = user.split_off(colon + 1);
    user.pop();
    Ok(Shown::Basic(user, password))
}

/// `b64token` of RFC 6750 2.1: what can be sent as a bearer token.
pub(super) fn is_token(bytes: &[u8]) -> bool {
    let padding = bytes.iter().rev().take_while(|byte| **byte == b'=').count();
    let token = &bytes[..bytes.len() - padding];
    !token.is_empty() && token.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_shows_a_token_a_user_or_nothing_of_use() {
        let basic = |user: &[u8], password: &[u8]| Ok(Shown::Basic(user.to_vec(), password.to_vec()));
        let rows: [(&[&str], Result<Shown<'_>, Unusable>); 20] = [
            (&[], Err(Unusable::Missing)),
            (&["Bearer abc"], Ok(Shown::Bearer(b"abc"))),
            (&["bEARER   a-._~+/9=="], Ok(Shown::Bearer(b"a-._~+/9=="))),
            (&["Bearer"], Err(Unusable::Malformed)),
            (&["Bearer "], Err(Unusable::Malformed)),
            (&["Bearer =="], Err(Unusable::Malformed)),
            (&["Bearer a=b"], Err(Unusable::Malformed)),
            (&["Bearer a b"], Err(Unusable::Malformed)),
            (&["Bearer a,b"], Err(Unusable::Malformed)),
            (&["Bearer a", "Bearer a"], Err(Unusable::Repeated)),
            (&["Basic dTpw"], basic(b"u", b"p")),
            (&["basic dTpwOnE="], basic(b"u", b"p:q")),
            (&["Basic dTpwOnE"], basic(b"u", b"p:q")),
            (&["Basic Og=="], basic(b"", b"")),
            (&["Basic w7w6w7w="], basic("\u{fc}".as_bytes(), "\u{fc}".as_bytes())),
            (&["Basic dXA="], Err(Unusable::Malformed)),
            (&["Basic !"], Err(Unusable::Malformed)),
            (&["Basic"], Err(Unusable::Malformed)),
            (&["Digest username=x"], Err(Unusable::OtherScheme)),
            (&[""], Err(Unusable::OtherScheme)),
        ];
        for (values, expected) in rows {
            let mut headers = Headers::default();
            headers.push("Host", b"h");
            values.iter().for_each(|value| headers.push("Authorization", value.as_bytes()));
            let shown = read(&headers);
            assert!(shown == expected, "{values:?}");
            assert!(!format!("{shown:?}").contains("abc"));
        }
    }
}
