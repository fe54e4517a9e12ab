//! The connections of one reader: their state that no other thread uses, and their deadlines.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::http::budget::ByteLease;
use crate::http::connection::Connection;
use crate::http::deadlines::Deadlines;
use crate::http::handler::RequestHandler;
use crate::http::message::Response;
use crate::http::parser::Parser;
use crate::http::poller::Interest;

/// The clients of one reader by slot. Slots are reused; the generation in a connection's key distinguishes its events
/// from those of the slot's next connection.
#[derive(Default)]
pub(super) struct ClientTable {
    slots: Vec<ClientSlot>,
    /// Slots without a client.
    free: Vec<usize>,
    deadlines: Deadlines,
}

#[derive(Default)]
struct ClientSlot {
    /// Goes up whenever the client is removed.
    generation: u32,
    client: Option<Box<ClientState>>,
}

/// The state of a connection that only the reader uses.
pub(super) struct ClientState {
    pub(super) connection: Arc<Connection>,
    pub(super) parser: Parser<OnComplete>,
    /// Bytes after the request that is being answered; at most one read.
    pub(super) pending: Vec<u8>,
    /// The memory of the request that is being received.
    pub(super) request_lease: ByteLease,
    /// The memory of `pending`.
    pub(super) pending_lease: ByteLease,
    /// When the first byte of the current request arrived; before the handshake is over, when the connection began.
    pub(super) started: Instant,
    /// What the poller reports of the socket; `None`: the poller does not watch it.
    pub(super) interest: Option<Interest>,
    /// The time of the entry in the deadlines.
    pub(super) next_check: Option<Instant>,
    /// Number of bytes discarded after the last response.
    pub(super) discarded_bytes: usize,
    pub(super) handshake: Handshake,
    /// TLS: the client has sent its close_notify.
    pub(super) peer_closed: bool,
}

/// What is done when the body of a request is complete.
pub(super) enum OnComplete {
    /// The request goes to the handler.
    Handle(RequestHandler),
    /// The handler refused the head, and the body was discarded: this response is sent.
    Answer(Response),
}

/// Progress of a connection's TLS handshake.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Handshake {
    /// No byte has arrived.
    Awaited,
    InProgress,
    /// Done or failed; also plain HTTP.
    Over,
}

impl ClientState {
    /// Leases the memory that is held for the request until more of it arrives or it is answered; false if the budget
    /// is exhausted.
    pub(super) fn lease_request(&mut self) -> bool {
        let response = match self.parser.admitted() {
            Some(OnComplete::Answer(response)) => response.allocated(),
            _ => 0,
        };
        self.request_lease.set_to(self.parser.allocated() + response)
    }

    /// Whether the handler refused the request that is being received.
    pub(super) fn is_refused(&self) -> bool {
        matches!(self.parser.admitted(), Some(OnComplete::Answer(_)))
    }
}

impl ClientTable {
    /// The slot and the key of the next connection, for [`Self::insert`].
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

    /// The slot of an open connection.
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

    /// The slots, with a client or without.
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

    /// A client that is due for a check, which must schedule it again or close it.
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

    /// The time until the next check, at most `max`.
    pub(super) fn time_to_next_check(&self, now: Instant, max: Duration) -> Duration {
        self.deadlines.time_to_next(now, max)
    }

    /// Frees the slot.
    pub(super) fn remove(&mut self, index: usize) -> Option<Box<ClientState>> {
        let slot = &mut self.slots[index];
        let client = slot.client.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.deadlines.remove(client.connection.key, client.next_check);
        self.free.push(index);
        Some(client)
    }
}
