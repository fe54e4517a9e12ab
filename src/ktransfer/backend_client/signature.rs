//! Signatures by which a backend recognises the pushes of this module, as Standard Webhooks defines them.
//!
//! The headers are `webhook-id`, `webhook-timestamp` (seconds since 1970) and `webhook-signature`: for each secret
//! `v1,` and the base64 of the HMAC-SHA256 of `id.timestamp.body`, separated by spaces. While a secret is replaced, a
//! module has two of them, and a backend that has either accepts the push. Each attempt is signed with its own time, so
//! that a backend can refuse a recorded request that is replayed later.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

/// The headers of a signature: id, time and signatures.
pub(crate) const SIGNATURE_HEADERS: [&str; 3] = ["webhook-id", "webhook-timestamp", "webhook-signature"];

/// Prefix of a secret.
const SECRET_PREFIX: &str = "whsec_";
/// The lengths of a secret that Standard Webhooks permits, in bytes before the encoding.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// As the libraries of Standard Webhooks do, this accepts a secret without padding.
const SECRET_ENCODING: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A secret. No `Debug`, so that it is not logged by accident.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SigningSecret(Vec<u8>);

impl SigningSecret {
    /// Reads `whsec_` and base64. The error is the text of the configuration problem; it never shows the secret.
    pub(crate) fn parse(text: &str) -> Result<SigningSecret, &'static str> {
        let encoded = text.strip_prefix(SECRET_PREFIX).ok_or("must begin with whsec_")?;
        let bytes = SECRET_ENCODING.decode(encoded).map_err(|_| "must have base64 after whsec_")?;
        match SECRET_BYTES.contains(&bytes.len()) {
            true => Ok(SigningSecret(bytes)),
            false => Err("must have the base64 of 24 to 64 bytes after whsec_"),
        }
    }

    fn sign(&self, id: &str, timestamp: &str, body: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            mac.update(part);
        }
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

/// Returns the value of `webhook-signature`: one signature for each secret.
pub(super) fn signatures(secrets: &[SigningSecret], id: &str, timestamp: &str, body: &[u8]) -> String {
    let signatures: Vec<String> = secrets.iter().map(|secret| secret.sign(id, timestamp, body)).collect();
    signatures.join(" ")
}

/// Returns `webhook-id` for a message, whose identity is the value of its `Idempotency-Key`. A dot would make the
/// signed text ambiguous, so it is percent-encoded.
pub(super) fn webhook_id(identity: &str) -> String {
    identity.replace('%', "%25").replace('.', "%2E")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};
    use std::time::SystemTime;

    fn secret(first: u8) -> SigningSecret {
        let bytes: Vec<u8> = (first..first + 25).collect();
        SigningSecret::parse(&format!("whsec_{}", STANDARD.encode(bytes))).ok().unwrap()
    }

    #[test]
    fn the_example_of_the_libraries_of_standard_webhooks_has_their_signature() {
        let secret = SigningSecret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").ok().unwrap();
        let (id, body) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", br#"{"test": 2432232314}"#);
        let value = signatures(&[secret], id, "1614265330", body);
        assert_eq!(value, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_rotation_has_a_signature_for_each_secret() {
        let one = |first| signatures(&[secret(first)], "id", "7", b"body");
        let both = signatures(&[secret(1), secret(2)], "id", "7", b"body");
        assert_eq!(both, format!("{} {}", one(1), one(2)));
        assert_ne!(one(1), one(2));
    }

    #[test]
    fn an_id_has_no_dot_and_different_messages_have_different_ids() {
        assert_eq!(webhook_id("m/a.b/3/42/17"), "m/a%2Eb/3/42/17");
        assert_ne!(webhook_id("m/a%2Eb/3/42"), webhook_id("m/a.b/3/42"));
    }

    #[test]
    fn a_wrong_secret_is_a_problem_that_does_not_show_it() {
        for text in ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_*", "whsec_c2hvcnQ=", "whsk_AAAA"] {
            let problem = SigningSecret::parse(text).err().unwrap();
            assert!(problem.starts_with("must "), "{text:?}: {problem}");
        }
        let of_length = |len| SigningSecret::parse(&format!("whsec_{}", STANDARD.encode(vec![7; len]))).is_ok();
        assert_eq!([23, 24, 64, 65].map(of_length), [false, true, true, false]);
    }

    /// The verifier is that of the Python library of Standard Webhooks.
    #[test]
    fn the_library_of_standard_webhooks_accepts_a_signature_and_refuses_another_secret_or_body() {
        const PROGRAM: &str = "import sys, standardwebhooks\n\
            headers = dict(zip(['webhook-id', 'webhook-timestamp', 'webhook-signature'], sys.argv[2:]))\n\
            standardwebhooks.Webhook(sys.argv[1]).verify(sys.stdin.buffer.read(), headers)";
        let (id, body) = ("m/a%2Eb/3/42/17", r#"{"text": "gr\u00fc\u00df \n"}"#);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let value = signatures(&[secret(1), secret(60)], id, &now.to_string(), body.as_bytes());
        for (first, time, body, is_accepted) in [
            (1, now, body, true),
            (60, now, body, true),
            (2, now, body, false),
            (1, now, "{}", false),
            (1, now - 1, body, false),
        ] {
            let secret = format!("whsec_{}", STANDARD.encode((first..first + 25).collect::<Vec<u8>>()));
            let mut python = Command::new("python3")
                .args(["-c", PROGRAM, &secret, id, &time.to_string(), &value])
                .env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures"))
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .stdin(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("python3 is installed");
            python.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
            assert_eq!(python.wait().unwrap().success(), is_accepted, "{first}, {time}, {body}");
        }
    }
}
