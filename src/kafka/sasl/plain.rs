//! `PLAIN` (RFC 4616): user name and password in one message.

/// Returns the message: authorization identity (empty: the user's own), NUL, user name, NUL, password.
pub(super) fn message(username: &str, password: &str) -> Result<Vec<u8>, String> {
    for (name, value) in [("sasl.username", username), ("sasl.password", password)] {
        if value.is_empty() || value.contains('\0') {
            return Err(format!("{name} is empty or contains a NUL"));
        }
    }
    Ok([b"\0", username.as_bytes(), b"\0", password.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::sasl::{SaslExchange, Step};

    #[test]
    fn the_message_is_that_of_the_rfc() {
        // RFC 4616 section 4, the first example, without "C: AUTHENTICATE PLAIN".
        assert_eq!(message("tim", "tanstaaftanstaaf").unwrap(), b"\0tim\0tanstaaftanstaaf");
        for (username, password) in [("", "a"), ("a", ""), ("a\0", "a"), ("a", "secret\0")] {
            let error = message(username, password).unwrap_err();
            assert!(error.starts_with("sasl.") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_exchange_ends_with_the_answer() {
        let mut exchange = SaslExchange::plain("u", "p").unwrap();
        assert_eq!((exchange.mechanism(), exchange.first_message()), ("PLAIN", b"\0u\0p".to_vec()));
        assert_eq!(exchange.next(b""), Ok(Step::Done));
        assert!(exchange.next(b"").is_err());
    }
}
