//! `OAUTHBEARER` (RFC 7628 section 3.1, with the extensions of KIP-342): the token in one message. A refusal comes as a
//! message, which the client must answer before the broker reports the failure.

/// The answer to a refusal (RFC 7628 section 3.2.3).
pub(super) const ACKNOWLEDGEMENT: &[u8] = b"\x01";

/// Returns the message: GS2 header without channel binding, the token, and the extensions, each as a key-value pair.
pub(super) fn message(token: &str, extensions: &[(String, String)]) -> Result<Vec<u8>, String> {
    // RFC 6750 section 2.1. Other bytes could add key-value pairs.
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("the access token is empty, or contains a byte that is not printable ASCII".to_owned());
    }
    let mut message = format!("n,,\x01auth=Bearer {token}\x01");
    for (name, value) in extensions {
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphabetic());
        // Printable ASCII, space, tab, CR and LF (RFC 7628 section 3.1).
        let is_value = value.bytes().all(|byte| byte.is_ascii_graphic() || b" \t\r\n".contains(&byte));
        if !is_name || name == "auth" || !is_value {
            return Err(format!(
                "the SASL extension {name:?} is invalid: a name has letters only and is not \"auth\", \
                                a value has printable ASCII"
            ));
        }
        message += &format!("{name}={value}\x01");
    }
    message.push('\x01');
    Ok(message.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::sasl::{SaslExchange, Step};

    fn extension(name: &str, value: &str) -> Vec<(String, String)> {
        vec![(name.to_owned(), value.to_owned())]
    }

    #[test]
    fn the_message_is_that_of_the_rfc_with_extensions() {
        assert_eq!(message("a.b-c", &[]).unwrap(), b"n,,\x01auth=Bearer a.b-c\x01\x01");
        let message_with = message("t", &extension("logicalCluster", "lkc-1 x")).unwrap();
        assert_eq!(message_with, b"n,,\x01auth=Bearer t\x01logicalCluster=lkc-1 x\x01\x01");
        for (name, value) in [("auth", "x"), ("", "x"), ("a1", "x"), ("a", "x\x01y"), ("a", "é")] {
            assert!(message("t", &extension(name, value)).unwrap_err().contains(&format!("{name:?}")));
        }
        for token in ["", "a b", "a\x01host=x", "é"] {
            assert!(message(token, &[]).is_err(), "{token:?}");
        }
    }

    #[test]
    fn a_refusal_is_acknowledged_and_is_the_reason_of_the_failure() {
        let mut exchange = SaslExchange::oauth_bearer("t", &[]).unwrap();
        assert_eq!(exchange.next(b""), Ok(Step::Done));
        let mut exchange = SaslExchange::oauth_bearer("t", &[]).unwrap();
        assert_eq!(exchange.next(br#"{"status":"invalid_token"}"#), Ok(Step::Send(b"\x01".to_vec())));
        assert_eq!(exchange.refusal(), Some(r#"{"status":"invalid_token"}"#));
        assert!(exchange.next(b"").unwrap_err().contains("invalid_token"));
    }
}
