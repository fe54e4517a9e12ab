//! Prints parts of a request for log lines: shortened, and without secrets.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::http::percent_decode;

/// Longest part of a request's head in a log line, in bytes.
const MAX_LOGGED_BYTES: usize = 300;

/// A parameter whose name contains one of these may be a secret, which clients should not send in a query (RFC 6750 2.3
/// has `access_token`).
const SECRET_NAME_PARTS: [&[u8]; 11] = [
    b"token",
    b"passw",
    b"pwd",
    b"secret",
    b"auth",
    b"apikey",
    b"accesskey",
    b"credential",
    b"jwt",
    b"signature",
    b"session",
];

/// Returns at most the first [`MAX_LOGGED_BYTES`] of a method, path or query. The HTTP server accepts only visible
/// ASCII in these, so the cut cannot split a character, and the text cannot contain a line break.
pub(super) fn truncated(text: &str) -> &str {
    text.get(..MAX_LOGGED_BYTES).unwrap_or(text)
}

/// Returns the truncated query with values that may be secrets replaced by `(hidden)`. kproxy itself takes no secret in
/// a query.
pub(super) fn redacted_query(query: &str) -> Cow<'_, str> {
    let query = truncated(query);
    if !query.split('&').any(may_be_secret) {
        return Cow::Borrowed(query);
    }
    let redacted = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) if may_be_secret(pair) => Cow::Owned(format!("{name}=(hidden)")),
        _ => Cow::Borrowed(pair),
    });
    Cow::Owned(redacted.collect::<Vec<_>>().join("&"))
}

fn may_be_secret(pair: &str) -> bool {
    let Some((name, _)) = pair.split_once('=') else { return false };
    // kproxy's own parameters, which every request has, skip the search below.
    if matches!(name, "topic" | "key" | "acks" | "partition" | "timestamp" | "tombstone") {
        return false;
    }
    let name = percent_decode(name).unwrap_or(Cow::Borrowed(name.as_bytes()));
    // Punctuation is removed, so that `api_key` and `Api-Key` match `apikey`.
    let letters: Vec<u8> = name.iter().copied().filter(u8::is_ascii_alphanumeric).collect();
    SECRET_NAME_PARTS.iter().any(|part| letters.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part)))
}

/// The value of `peer=` in a log line: the client's address, or `-` if it is unknown, and the name of its credential if
/// it has one.
pub(super) struct ClientLabel {
    pub(super) address: Option<Arc<str>>,
    pub(super) credential: Option<Arc<str>>,
}

impl ClientLabel {
    pub(super) fn append_to(&self, line: &mut String) {
        line.push_str(self.address.as_deref().unwrap_or("-"));
        for text in self.credential.iter().flat_map(|name| [" credential=", &**name]) {
            line.push_str(text);
        }
    }
}

impl fmt::Display for ClientLabel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.append_to(&mut text);
        formatter.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_may_be_secrets_are_redacted() {
        for (query, expected) in [
            ("", ""),
            ("topic=t&key=token&acks=1", "topic=t&key=token&acks=1"),
            ("topic=t&access_token=S", "topic=t&access_token=(hidden)"),
            ("Access%5FToken=S&topic=t", "Access%5FToken=(hidden)&topic=t"),
            ("a=b&PASSWORD=S=S&token", "a=b&PASSWORD=(hidden)&token"),
            ("topic=t&%6Bey%&api_secret=S", "topic=t&%6Bey%&api_secret=(hidden)"),
            ("api_key=S&Api-Key=S", "api_key=(hidden)&Api-Key=(hidden)"),
            ("t%zzopic=1", "t%zzopic=1"),
        ] {
            assert_eq!(redacted_query(query), expected);
        }
    }

    #[test]
    fn a_client_is_logged_by_its_address_and_credential_name() {
        let address = Some(Arc::from("127.0.0.1:80"));
        for (address, credential, expected) in [
            (None, None, "-"),
            (None, Some("n".into()), "- credential=n"),
            (address.clone(), None, "127.0.0.1:80"),
            (address, Some("n".into()), "127.0.0.1:80 credential=n"),
        ] {
            assert_eq!(ClientLabel { address, credential }.to_string(), expected);
        }
    }
}
