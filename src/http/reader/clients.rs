//! The connections of one reader: the state of each that no other thread uses, and their deadlines.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::http::budget::ByteLease;
use crate::http::connection::Connection;
use crate::http::deadlines::Deadlines;
use crate::http::handler::RequestHandler;
use crate::http::message::Response;
use crate::http::parser::Parser;
use crate::http::poller::Interest;

/// The clients of one reader, each in a slot. Slots are reused. The key of a connection contains the generation of its
/// slot, so that an event of a closed connection is not taken for one of the slot's next connection.
#[derive(Default)]
pub(super) struct ClientTable {
    slots: Vec<ClientSlot>,
    /// Slots without a client.
    free: Vec<usize>,
    deadlines: Deadlines,
}

#[derive(Default)]
struct ClientSlot {
    /// Incremented when the slot's client is removed.
    generation: u32,
    client: Option<Box<ClientState>>,
}

/// The state of a connection that only the reader uses.
pub(super) struct ClientState {
    pub(super) connection: Arc<Connection>,
    pub(super) parser: Parser<OnComplete>,
    /// Bytes that arrived after the request that is being answered; at most the bytes of one read.
    pub(super) pending: Vec<u8>,
    /// Lease for the memory of the request that is being received.
    pub(super) request_lease: ByteLease,
    /// Lease for the memory of `pending`.
    pub(super) pending_lease: ByteLease,
    /// Arrival of the first byte of the current request; until the TLS handshake is over, the start of the connection.
    pub(super) started: Instant,
    /// The events of the socket that the poller reports; `None` if the socket is not in the poller.
    pub(super) interest: Option<Interest>,
    /// Time of the connection's entry in [`Deadlines`]; `None` if it has no entry.
    pub(super) next_check: Option<Instant>,
    /// Number of bytes that were discarded after the last response.
    pub(super) discarded_bytes: usize,
    pub(super) handshake: Handshake,
    /// Whether the client has sent a TLS close_notify.
    pub(super) peer_closed: bool,
    /// Whether the connection exceeds `max_connections` or `max_connections_per_ip`, so that it only gets the refusal.
    pub(super) exceeds_limit: bool,
}

/// The action when the body of a request is complete.
pub(super) enum OnComplete {
    /// Pass the request to the handler.
    Handle(RequestHandler),
    /// Send this response. The handler refused the head, and the body was discarded.
    Respond(Box<Response>),
}

/// Progress of a connection's TLS handshake.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Handshake {
    /// No byte of the client has arrived.
    Awaited,
    InProgress,
    /// Done or failed. A connection without TLS begins in this state.
    Over,
}

impl ClientState {
    /// Sets the request's lease to the memory that the request holds now; returns false if the budget is exhausted.
    pub(super) fn lease_request(&mut self) -> bool {
        let response = match self.parser.admitted() {
            Some(OnComplete::Respond(response)) => response.allocated(),
            _ => 0,
        };
        self.request_lease.set_to(self.parser.allocated() + response)
    }

    /// Returns whether the handler refused the request that is being received.
    pub(super) fn is_refused(&self) -> bool {
        matches!(self.parser.admitted(), Some(OnComplete::Respond(_)))
    }
}

impl ClientTable {
    /// Reserves a slot for [`Self::insert`]; returns the slot and the key of its connection.
    pub(super) fn reserve(&mut self) -> (usize, usize) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(ClientSlot::default());
            self.slots.len() - 1
        });
        (index, index | (self.slots[index].generation as usize) << 32)
    }

    pub(super) fn insert(&mut self, index: usize, client: ClientState) {
        self.slots[index].client = Some(Box::new(client));
    }

    /// Returns the slot of the connection with this key, if the connection is still open.
    pub(super) fn find(&self, key: usize) -> Option<usize> {
        let index = key & 0xffff_ffff;
        let slot = self.slots.get(index)?;
        (slot.generation as usize == key >> 32 && slot.client.is_some()).then_some(index)
    }

    pub(super) fn get(&self, index: usize) -> Option<&ClientState> {
        self.slots[index].client.as_deref()
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut ClientState> {
        self.slots[index].client.as_deref_mut()
    }

    /// Returns the indices of all slots, with and without a client.
    pub(super) fn slots(&self) -> std::ops::Range<usize> {
        0..self.slots.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &ClientState> {
        self.slots.iter().filter_map(|slot| slot.client.as_deref())
    }

    /// Schedules a check of the client no later than `at`.
    pub(super) fn schedule(&mut self, index: usize, at: Instant) {
        if let Some(client) = &mut self.slots[index].client {
            self.deadlines.schedule(client.connection.key, &mut client.next_check, at);
        }
    }

    /// Returns a client whose check is due. The caller must schedule its next check, or close it.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<usize> {
        while let Some(key) = self.deadlines.pop_due(now) {
            if let Some(index) = self.find(key) {
                if let Some(client) = self.get_mut(index) {
                    client.next_check = None;
                }
                return Some(index);
            }
        }
        None
    }

    /// Returns the time until the next check, at most `max`.
    pub(super) fn time_to_next_check(&self, now: Instant, max: Duration) -> Duration {
        self.deadlines.time_to_next(now, max)
    }

    /// Removes the client of a slot, which can then be reused.
    pub(super) fn remove(&mut self, index: usize) -> Option<Box<ClientState>> {
        let slot = &mut self.slots[index];
        let client = slot.client.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.deadlines.remove(client.connection.key, client.next_check);
        self.free.push(index);
        Some(client)
    }
}
