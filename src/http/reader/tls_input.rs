//! The TLS part of a reader: the handshake, and the decryption of records into the bytes of requests.
//!
//! All records of one read are decrypted first; the plaintext is then parsed in the same way as the bytes of a
//! connection without TLS.

use std::sync::Arc;
use std::time::Duration;

use log::warn;

use super::Reader;
use super::clients::Handshake;
use crate::http::budget::ByteLease;
use crate::http::connection::Phase;
use crate::http::parser::Parser;
use crate::http::refusal::Refusal;
use crate::http::tls;

/// Each reader logs at most one failed handshake in this time.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

impl Reader {
    /// Closes a connection that the client has closed, or whose socket failed.
    pub(super) fn connection_lost(&mut self, index: usize, reason: &str) {
        if self.client(index).handshake == Handshake::InProgress {
            self.fail_handshake(index, "failed", reason);
        }
        self.close(index);
    }

    /// Handles TLS records that a client in phase `Reading` has sent.
    pub(super) fn on_records(&mut self, index: usize, records: &[u8]) {
        let client = self.client(index);
        let (connection, key) = (Arc::clone(&client.connection), client.connection.key);
        if client.handshake == Handshake::Awaited {
            client.handshake = Handshake::InProgress;
            if records.first() != Some(&tls::HANDSHAKE_RECORD) {
                connection.drop_tls();
                self.fail_handshake(index, "failed", "the client did not send a TLS handshake");
                self.refuse(index, Refusal::bad_request("this port requires TLS: use https"));
                return self.apply_phase(index);
            }
        }
        let mut plaintext = std::mem::take(&mut self.plaintext);
        plaintext.clear();
        match connection.decrypt(records, &mut plaintext) {
            Err(reason) => {
                self.fail_handshake(index, "failed", &reason);
                let head_limits = self.limits.head;
                let client = self.client(index);
                client.parser = Parser::new(head_limits);
                client.request_lease = ByteLease::default();
                self.apply_phase(index);
            }
            Ok((received, phase)) => {
                let client = self.client(index);
                client.peer_closed = received.peer_closed;
                if received.handshake_done && client.handshake == Handshake::InProgress {
                    client.handshake = Handshake::Over;
                    connection.handshake_done();
                    self.metrics.handshake("ok");
                    self.clients.schedule(index, self.now + self.limits.idle_timeout);
                }
                if phase != Phase::Reading {
                    // The socket must take the records that TLS itself sends before a request is answered, so the
                    // plaintext is kept until then.
                    let client = self.client(index);
                    if client.pending_lease.set_to(plaintext.len()) {
                        client.pending = plaintext.clone();
                        self.apply_phase(index);
                    } else {
                        self.metrics.limit_reached("in_flight_bytes");
                        self.close(index);
                    }
                } else if !plaintext.is_empty() {
                    self.on_bytes(index, &plaintext);
                }
                // After the client's close_notify an incomplete request can never become complete, so the connection is
                // closed now. If a response is not finished or bytes are pending, it is closed after those.
                if let Some(index) = self.clients.find(key).filter(|_| received.peer_closed)
                    && connection.phase().0 == Phase::Reading
                    && self.client(index).pending.is_empty()
                {
                    self.close(index);
                }
            }
        }
        self.plaintext = plaintext;
    }

    /// Counts and logs a handshake that failed or timed out. Does nothing if the handshake is already over.
    pub(super) fn fail_handshake(&mut self, index: usize, outcome: &str, reason: &str) {
        let client = self.client(index);
        let (before, peer) = (client.handshake, client.connection.peer);
        client.handshake = Handshake::Over;
        if before == Handshake::Over {
            return;
        }
        self.metrics.handshake(outcome);
        // A connection that times out without a byte is usually a health check of the port or a client's spare
        // connection, so it is counted but not logged.
        if before == Handshake::Awaited {
            return;
        }
        if self.last_handshake_warning.is_some_and(|last| self.now.duration_since(last) < WARNING_INTERVAL) {
            self.suppressed_warnings += 1;
            return;
        }
        self.last_handshake_warning = Some(self.now);
        match std::mem::take(&mut self.suppressed_warnings) {
            0 => warn!("TLS handshake with {peer} failed: {reason}"),
            suppressed => {
                warn!("TLS handshake with {peer} failed: {reason} ({suppressed} more since the last such line)")
            }
        }
    }
}
