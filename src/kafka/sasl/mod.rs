//! The client side of the SASL mechanisms, as state machines without IO: messages to send for messages received.
//!
//! Error texts and `Debug` contain no password, no token and no hash.

mod oauthbearer;
mod plain;
mod scram;

use scram::Scram;

use super::config::ScramHash;

/// A SASL exchange with a broker.
pub(super) struct SaslExchange {
    mechanism: &'static str,
    first: Vec<u8>,
    state: State,
}

enum State {
    /// The broker's next message ends the exchange.
    Last,
    Scram(Scram),
    OauthBearer,
    /// The broker has refused the token with this text; the client has acknowledged that.
    TokenRefused(String),
    Done,
}

/// The next step after a message of the broker.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The client sends this message.
    Send(Vec<u8>),
    /// The exchange is complete.
    Done,
}

impl SaslExchange {
    /// Starts an exchange with `PLAIN`.
    pub(super) fn plain(username: &str, password: &str) -> Result<Self, String> {
        let first = plain::message(username, password)?;
        Ok(SaslExchange { mechanism: "PLAIN", first, state: State::Last })
    }

    /// Starts an exchange with `SCRAM-SHA-256` or `SCRAM-SHA-512`. `nonce`: random printable ASCII without a comma.
    pub(super) fn scram(hash: ScramHash, username: &str, password: &str, nonce: &str) -> Result<Self, String> {
        let (scram, first) = Scram::start(hash, username, password, nonce)?;
        let mechanism = match hash {
            ScramHash::Sha256 => "SCRAM-SHA-256",
            ScramHash::Sha512 => "SCRAM-SHA-512",
        };
        Ok(SaslExchange { mechanism, first, state: State::Scram(scram) })
    }

    /// Starts an exchange with `OAUTHBEARER`.
    pub(super) fn oauth_bearer(token: &str, extensions: &[(String, String)]) -> Result<Self, String> {
        let first = oauthbearer::message(token, extensions)?;
        Ok(SaslExchange { mechanism: "OAUTHBEARER", first, state: State::OauthBearer })
    }

    /// Returns the name of the mechanism.
    pub(super) fn mechanism(&self) -> &'static str {
        self.mechanism
    }

    /// Returns the first message to send.
    pub(super) fn first_message(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.first)
    }

    /// Takes a message of the broker. An error ends the exchange without success.
    pub(super) fn next(&mut self, received: &[u8]) -> Result<Step, String> {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Last => Ok(Step::Done),
            State::Scram(scram) => match scram.next(received)? {
                (Some(next), message) => {
                    self.state = State::Scram(next);
                    Ok(Step::Send(message))
                }
                (None, _) => Ok(Step::Done),
            },
            State::OauthBearer if received.is_empty() => Ok(Step::Done),
            State::OauthBearer => {
                self.state = State::TokenRefused(shown(received));
                Ok(Step::Send(oauthbearer::ACKNOWLEDGEMENT.to_vec()))
            }
            State::TokenRefused(reason) => Err(format!("the broker refused the token: {reason}")),
            State::Done => Err("the broker sent a SASL message after the end of the exchange".to_owned()),
        }
    }

    /// Returns the reason that the broker has sent within the exchange, if any; it explains a failure that follows.
    pub(super) fn refusal(&self) -> Option<&str> {
        match &self.state {
            State::TokenRefused(reason) => Some(reason),
            _ => None,
        }
    }
}

/// Returns a message of the broker for an error text.
fn shown(received: &[u8]) -> String {
    const MAX_SHOWN_BYTES: usize = 300;
    received[..received.len().min(MAX_SHOWN_BYTES)].escape_ascii().to_string().replace("\\\"", "\"")
}
