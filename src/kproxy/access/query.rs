//! A query as it may be logged.

use std::borrow::Cow;

use crate::http::percent_decode;

/// Parts of names of parameters in which clients send secrets although they should not (RFC 6750 2.3 has
/// `access_token`).
const SECRETIVE: [&[u8]; 11] = [
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

/// The query with the values of such parameters left out. kproxy itself takes no secret there.
pub(in crate::kproxy) fn without_secrets(query: &str) -> Cow<'_, str> {
    if !query.split('&').any(is_secretive) {
        return Cow::Borrowed(query);
    }
    let shown = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) if is_secretive(pair) => Cow::Owned(format!("{name}=(hidden)")),
        _ => Cow::Borrowed(pair),
    });
    Cow::Owned(shown.collect::<Vec<_>>().join("&"))
}

fn is_secretive(pair: &str) -> bool {
    let Some((name, _)) = pair.split_once('=') else { return false };
    // Those that every request has.
    if matches!(name, "topic" | "key" | "acks" | "partition" | "timestamp") {
        return false;
    }
    let name = percent_decode(name).unwrap_or(Cow::Borrowed(name.as_bytes()));
    let letters: Vec<u8> = name.iter().copied().filter(u8::is_ascii_alphanumeric).collect();
    SECRETIVE.iter().any(|part| letters.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_may_be_secrets_are_left_out() {
        for (query, shown) in [
            ("", ""),
            ("topic=t&key=token&acks=1", "topic=t&key=token&acks=1"),
            ("topic=t&access_token=S", "topic=t&access_token=(hidden)"),
            ("Access%5FToken=S&topic=t", "Access%5FToken=(hidden)&topic=t"),
            ("a=b&PASSWORD=S=S&token", "a=b&PASSWORD=(hidden)&token"),
            ("topic=t&%6Bey%&api_secret=S", "topic=t&%6Bey%&api_secret=(hidden)"),
            ("api_key=S&Api-Key=S", "api_key=(hidden)&Api-Key=(hidden)"),
            ("t%zzopic=1", "t%zzopic=1"),
        ] {
            assert_eq!(without_secrets(query), shown);
        }
    }
}
