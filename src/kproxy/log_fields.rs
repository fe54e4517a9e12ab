//! Prints parts of a request for log lines: shortened, and without secrets.

use std::borrow::Cow;
use std::fmt;
use std::iter;
use std::sync::Arc;

use crate::http::{QueryPair, percent_decode, query_pairs};

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
    let is_hidden = |pair: &QueryPair<'_>| pair.value.is_some() && may_be_secret(pair.name);
    if !query_pairs(query).any(|pair| is_hidden(&pair)) {
        return Cow::Borrowed(query);
    }
    let redacted = query_pairs(query).map(|pair| match pair.value {
        Some(_) if is_hidden(&pair) => format!("{}=(hidden)", pair.name),
        Some(value) => format!("{}={value}", pair.name),
        None => pair.name.to_owned(),
    });
    Cow::Owned(redacted.collect::<Vec<_>>().join("&"))
}

fn may_be_secret(name: &str) -> bool {
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
    /// Returns the parts of the label, which follow each other without a separator.
    pub(super) fn parts(&self) -> impl Iterator<Item = &str> {
        let credential = self.credential.iter().flat_map(|name| [" credential=", &**name]);
        iter::once(self.address.as_deref().unwrap_or("-")).chain(credential)
    }
}

impl fmt::Display for ClientLabel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts().try_for_each(|part| formatter.write_str(part))
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
