//! `SCRAM-SHA-256` and `SCRAM-SHA-512` (RFC 5802, RFC 7677) without channel binding. The password is not sent, and the
//! broker proves that it has the user's verifier.
//!
//! Kafka's brokers and clients do not prepare user names and passwords with SASLprep: they use the UTF-8 bytes. So does
//! this client; it refuses only control characters, which SASLprep prohibits and which are usually a mistake.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256, Sha512};
use subtle::ConstantTimeEq;

use crate::kafka::config::ScramHash;

/// Bounds of the broker's iteration count: Kafka's minimum, and about a second of computation.
const MIN_ITERATIONS: u32 = 4096;
const MAX_ITERATIONS: u32 = 1_000_000;
/// GS2 header: no channel binding, no other authorization identity. `biws` is its base64.
const GS2_HEADER: &str = "n,,";
const CHANNEL_BINDING: &str = "c=biws";

/// The client side of an exchange.
pub(super) struct Scram {
    hash: ScramHash,
    state: State,
}

enum State {
    /// Waits for the broker's salt and iteration count.
    First { password: String, nonce: String, first_bare: String },
    /// Waits for the broker's signature.
    Final { signature: Vec<u8> },
}

impl Scram {
    /// Returns the exchange and its first message.
    pub(super) fn start(
        hash: ScramHash,
        username: &str,
        password: &str,
        nonce: &str,
    ) -> Result<(Scram, Vec<u8>), String> {
        for (name, value) in [("sasl.username", username), ("sasl.password", password)] {
            if value.is_empty() || value.chars().any(char::is_control) {
                return Err(format!("{name} is empty or contains a control character"));
            }
        }
        let escaped = username.replace('=', "=3D").replace(',', "=2C");
        let first_bare = format!("n={escaped},r={nonce}");
        let message = format!("{GS2_HEADER}{first_bare}").into_bytes();
        let state = State::First { password: password.to_owned(), nonce: nonce.to_owned(), first_bare };
        Ok((Scram { hash, state }, message))
    }

    /// Takes a message of the broker; returns the exchange with the message to send, or no exchange if it is complete.
    pub(super) fn next(self, received: &[u8]) -> Result<(Option<Scram>, Vec<u8>), String> {
        let received = std::str::from_utf8(received).map_err(|_| malformed("it is not UTF-8"))?;
        match self.state {
            State::First { password, nonce, first_bare } => {
                let server = ServerFirst::parse(received, &nonce)?;
                let without_proof = format!("{CHANNEL_BINDING},r={}", server.nonce);
                let signed = format!("{first_bare},{received},{without_proof}");
                let (proof, signature) = self.hash.proof_and_signature(&password, &server, signed.as_bytes());
                let message = format!("{without_proof},p={}", STANDARD.encode(proof)).into_bytes();
                Ok((Some(Scram { hash: self.hash, state: State::Final { signature } }), message))
            }
            State::Final { signature } => {
                verify_final(received, &signature)?;
                Ok((None, Vec::new()))
            }
        }
    }
}

/// The broker's first message.
struct ServerFirst<'a> {
    nonce: &'a str,
    salt: Vec<u8>,
    iterations: u32,
}

impl<'a> ServerFirst<'a> {
    fn parse(message: &'a str, client_nonce: &str) -> Result<Self, String> {
        // A mandatory extension (m=) would come first; this client supports none.
        let mut attributes = message.split(',');
        let mut attribute = |name: &str| {
            attributes
                .next()
                .and_then(|attribute| attribute.strip_prefix(name))
                .ok_or_else(|| malformed(&format!("its attribute {name} is missing")))
        };
        let (nonce, salt, iterations) = (attribute("r=")?, attribute("s=")?, attribute("i=")?);
        if nonce.len() <= client_nonce.len() || !nonce.starts_with(client_nonce) {
            return Err(malformed("its nonce does not continue that of the client"));
        }
        let salt = STANDARD.decode(salt).map_err(|_| malformed("its salt is not base64"))?;
        if salt.is_empty() {
            return Err(malformed("its salt is empty"));
        }
        let iterations: u32 = iterations.parse().map_err(|_| malformed("its iteration count is not a number"))?;
        if !(MIN_ITERATIONS..=MAX_ITERATIONS).contains(&iterations) {
            return Err(format!(
                "the broker's SCRAM iteration count {iterations} is not in {MIN_ITERATIONS} to {MAX_ITERATIONS}"
            ));
        }
        Ok(ServerFirst { nonce, salt, iterations })
    }
}

/// Verifies the broker's signature in its last message.
fn verify_final(message: &str, expected: &[u8]) -> Result<(), String> {
    let attribute = message.split(',').next().unwrap_or_default();
    if let Some(error) = attribute.strip_prefix("e=") {
        return Err(format!("the broker refused the user name or password: {}", error.escape_debug()));
    }
    let signature = attribute.strip_prefix("v=").ok_or_else(|| malformed("it has no signature"))?;
    let signature = STANDARD.decode(signature).map_err(|_| malformed("its signature is not base64"))?;
    match bool::from(signature.ct_eq(expected)) {
        true => Ok(()),
        false => Err("the broker does not know the password: its SCRAM signature is wrong".to_owned()),
    }
}

fn malformed(how: &str) -> String {
    format!("the broker sent a malformed SCRAM message: {how}")
}

/// Computes the functions of RFC 5802 section 3 with one hash.
macro_rules! proof_and_signature {
    ($digest:ty, $password:expr, $server:expr, $signed:expr) => {{
        let hmac = |key: &[u8], data: &[u8]| {
            let mut mac = <Hmac<$digest>>::new_from_slice(key).expect("HMAC takes keys of every size");
            mac.update(data);
            mac.finalize().into_bytes()
        };
        let mut salted = <$digest>::digest(b"");
        pbkdf2::pbkdf2_hmac::<$digest>($password, &$server.salt, $server.iterations, &mut salted);
        let client_key = hmac(&salted, b"Client Key");
        let client_signature = hmac(&<$digest>::digest(client_key), $signed);
        let proof = client_key.iter().zip(client_signature).map(|(key, signature)| key ^ signature).collect();
        let server_key = hmac(&salted, b"Server Key");
        (proof, hmac(&server_key, $signed).to_vec())
    }};
}

impl ScramHash {
    /// Returns the client's proof, and the signature that the broker must answer with.
    fn proof_and_signature(self, password: &str, server: &ServerFirst, signed: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let password = password.as_bytes();
        match self {
            ScramHash::Sha256 => proof_and_signature!(Sha256, password, server, signed),
            ScramHash::Sha512 => proof_and_signature!(Sha512, password, server, signed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::sasl::{SaslExchange, Step};
    use proptest::prelude::*;

    const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    /// The messages of the broker in RFC 7677 section 3.
    const FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    fn started() -> SaslExchange {
        SaslExchange::scram(ScramHash::Sha256, "user", "pencil", NONCE).unwrap()
    }

    fn sent(step: Result<Step, String>) -> String {
        let Ok(Step::Send(message)) = step else { panic!("{step:?}") };
        String::from_utf8(message).unwrap()
    }

    #[test]
    fn the_exchange_is_that_of_rfc_7677() {
        let mut exchange = started();
        assert_eq!(exchange.first_message(), b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        assert_eq!(
            sent(exchange.next(FIRST.as_bytes())),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(exchange.next(FINAL.as_bytes()), Ok(Step::Done));
        assert!(exchange.next(FINAL.as_bytes()).is_err());
    }

    /// A broker's side with SHA-512, computed with other functions than the client's where that is possible.
    #[test]
    fn sha_512_agrees_with_the_verifier_that_a_broker_stores() {
        let mut exchange = SaslExchange::scram(ScramHash::Sha512, "a,b=c", "pässword", "cn").unwrap();
        assert_eq!(exchange.mechanism(), "SCRAM-SHA-512");
        let first = String::from_utf8(exchange.first_message()).unwrap();
        assert_eq!(first, "n,,n=a=2Cb=3Dc,r=cn");
        let server_first = format!("r=cnsn,s={},i=5000", STANDARD.encode("salt"));
        let last = sent(exchange.next(server_first.as_bytes()));
        let (without_proof, proof) = last.rsplit_once(",p=").unwrap();
        let hmac = |key: &[u8], data: &[u8]| {
            Hmac::<Sha512>::new_from_slice(key).unwrap().chain_update(data).finalize().into_bytes().to_vec()
        };
        // Hi() of RFC 5802 section 2.2, step by step.
        let mut round = hmac("pässword".as_bytes(), b"salt\0\0\0\x01");
        let mut salted = round.clone();
        for _ in 1..5000 {
            round = hmac("pässword".as_bytes(), &round);
            salted.iter_mut().zip(&round).for_each(|(sum, byte)| *sum ^= byte);
        }
        let stored_key = Sha512::digest(hmac(&salted, b"Client Key"));
        let signed = format!("{},{server_first},{without_proof}", &first[3..]);
        let client_signature = hmac(&stored_key, signed.as_bytes());
        let client_key: Vec<u8> =
            STANDARD.decode(proof).unwrap().iter().zip(client_signature).map(|(proof, byte)| proof ^ byte).collect();
        assert_eq!(Sha512::digest(client_key), stored_key);
        let signature = hmac(&hmac(&salted, b"Server Key"), signed.as_bytes());
        let server_final = format!("v={}", STANDARD.encode(signature));
        assert_eq!(exchange.next(server_final.as_bytes()), Ok(Step::Done));
    }

    #[test]
    fn a_broker_without_the_verifier_is_refused() {
        let rows = [
            ("v=AAAA", "signature is wrong"),
            ("v=", "signature is wrong"),
            ("e=other-error", "refused the user name or password: other-error"),
            ("v=*", "not base64"),
            ("", "no signature"),
        ];
        for (message, text) in rows {
            let mut exchange = started();
            exchange.next(FIRST.as_bytes()).unwrap();
            let error = exchange.next(message.as_bytes()).unwrap_err();
            assert!(error.contains(text), "{message}: {error}");
        }
    }

    #[test]
    fn a_malformed_first_message_is_refused() {
        let rows = [
            (FIRST.replace("rOprNGfwEbeRWgbNEkqO", "xOprNGfwEbeRWgbNEkqO"), "nonce"),
            (FIRST.replace("%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0", ""), "nonce"),
            (FIRST.replace("i=4096", "i=4095"), "iteration count 4095 is not in 4096 to 1000000"),
            (FIRST.replace("i=4096", "i=1000001"), "is not in"),
            (FIRST.replace("i=4096", "i=99999999999"), "not a number"),
            (FIRST.replace("i=4096", "i=-1"), "not a number"),
            (FIRST.replace(",i=4096", ""), "i= is missing"),
            (FIRST.replace("s=W22Z", "s=*"), "salt is not base64"),
            (FIRST.replace("W22ZaJ0SNY7soEsUEjb6gQ==", ""), "salt is empty"),
            (format!("m=ext,{FIRST}"), "r= is missing"),
        ];
        for (message, text) in rows {
            let error = started().next(message.as_bytes()).unwrap_err();
            assert!(error.contains(text), "{message}: {error}");
        }
        assert!(started().next(&[0xff]).unwrap_err().contains("UTF-8"));
    }

    #[test]
    fn empty_and_control_characters_are_refused_without_showing_the_password() {
        for (username, password) in [("", "secret"), ("u", ""), ("u", "secret\n"), ("a\0", "secret")] {
            let error = SaslExchange::scram(ScramHash::Sha256, username, password, NONCE).err().unwrap();
            assert!(error.starts_with("sasl.") && !error.contains("secret"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_message_panics(first in ".{0,40}", last: Vec<u8>) {
            let _ = started().next(first.as_bytes());
            let mut exchange = started();
            exchange.next(FIRST.as_bytes()).unwrap();
            prop_assert!(exchange.next(&last).is_err());
        }
    }
}
