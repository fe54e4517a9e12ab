//! What a reader does for connections with TLS: handshakes, and from records to the bytes of requests.
//!
//! What a read brought is decrypted whole and then parsed as it is without TLS, so that the two differ nowhere else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use log::warn;

use super::Reader;
use crate::http::ByteLease;
use crate::http::connection::Phase;
use crate::http::parser::Parser;
use crate::http::scan::Refused;
use crate::http::tls;

/// Handshakes that fail are logged at most so often.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// How far a connection is with TLS. Until it is done, `started` is when the connection began.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Handshake {
    /// Nothing arrived.
    Awaited,
    UnderWay,
    /// It is done, or failed; and plain HTTP.
    Over,
}

impl Reader {
    /// Closes a connection that the client ended.
    pub(super) fn lose(&mut self, index: usize, why: &str) {
        if self.client(index).handshake == Handshake::UnderWay {
            self.handshake_failed(index, "failed", why);
        }
        self.close(index);
    }

    /// Takes what a client of TLS sent that may send.
    pub(super) fn take_records(&mut self, index: usize, records: &[u8]) {
        let client = self.client(index);
        let (connection, key) = (Arc::clone(&client.connection), client.connection.key);
        if client.handshake == Handshake::Awaited {
            client.handshake = Handshake::UnderWay;
            if records.first() != Some(&tls::FIRST_BYTE) {
                connection.give_up_tls();
                self.handshake_failed(index, "failed", "the client does not speak TLS");
                self.refuse(index, Refused::bad("this port speaks TLS only: use https"));
                return self.settle(index);
            }
        }
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        match connection.decrypt(records, &mut plain) {
            Err(why) => {
                self.handshake_failed(index, "failed", &why);
                let head_limits = self.limits.head;
                let client = self.client(index);
                client.parser = Parser::new(head_limits);
                client.lease = ByteLease::default();
                self.settle(index);
            }
            Ok((received, phase)) => {
                let client = self.client(index);
                client.ended = received.ended;
                if received.established && client.handshake == Handshake::UnderWay {
                    client.handshake = Handshake::Over;
                    connection.establish();
                    self.metrics.handshake("ok");
                    self.plan(index, self.now + self.limits.idle_timeout);
                }
                if phase != Phase::Reading {
                    // What TLS has to say comes first.
                    let client = self.client(index);
                    if client.ahead.set_to(plain.len()) {
                        client.pending = plain.clone();
                        self.settle(index);
                    } else {
                        self.metrics.limited("in_flight_bytes");
                        self.close(index);
                    }
                } else if !plain.is_empty() {
                    self.take_bytes(index, &plain);
                }
                // Half a request never becomes a whole one. What is being answered, or waits, closes the connection later.
                if let Some(index) = self.find(key).filter(|_| received.ended)
                    && connection.phase().0 == Phase::Reading
                    && self.client(index).pending.is_empty()
                {
                    self.close(index);
                }
            }
        }
        self.plain = plain;
    }

    /// Counts a handshake that was under way and came to nothing.
    pub(super) fn handshake_failed(&mut self, index: usize, outcome: &str, why: &str) {
        let client = self.client(index);
        let (stage, peer) = (client.handshake, client.connection.peer);
        client.handshake = Handshake::Over;
        if stage == Handshake::Over {
            return;
        }
        self.metrics.handshake(outcome);
        // A connection on which nothing was said is a probe of the port, or kept for later.
        if stage == Handshake::Awaited {
            return;
        }
        if self.last_complaint.is_some_and(|last| self.now.duration_since(last) < COMPLAINT_INTERVAL) {
            self.unsaid += 1;
            return;
        }
        self.last_complaint = Some(self.now);
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        match std::mem::take(&mut self.unsaid) {
            0 => warn!("the TLS handshake with {peer} failed: {why}"),
            unsaid => warn!("the TLS handshake with {peer} failed: {why}; so did {unsaid} since the last such line"),
        }
    }
}
