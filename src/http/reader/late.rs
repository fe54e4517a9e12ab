//! What arrives at the last moment: before a connection is closed at its deadline, the reader looks once more.
//!
//! The reader may be late itself, and the bytes of a client may arrive while it serves others.

use super::Reader;
use crate::http::connection::Phase;

/// Largest number of reads with which a request whose time is over may still be completed; 8 MiB of a large body.
const MAX_LATE_READS: usize = 32;

impl Reader {
    /// Reads what has arrived of a request whose time is over: the reader itself may have been late. Returns whether
    /// the request is complete, refused or gone; its connection then has a new deadline.
    pub(super) fn complete_late(&mut self, index: usize, scratch: &mut [u8]) -> bool {
        let (key, started) = (self.client(index).connection.key, self.client(index).started);
        for _ in 0..MAX_LATE_READS {
            let has_read = self.read(index, scratch);
            let Some(client) = self.clients.find(key).and_then(|index| self.clients.get(index)) else { return true };
            let is_same = client.connection.phase().0 == Phase::Reading && !client.parser.is_idle();
            if !is_same || client.started != started {
                self.clients.schedule(index, self.now);
                return true;
            }
            if !has_read {
                return false;
            }
        }
        false
    }

    /// Reads once more from a connection whose idle time is over. A request that has arrived meanwhile is served:
    /// closing the connection would reset it, and the client could not know whether the request was processed. Returns
    /// whether the connection is not idle any more, or closed; it then has a new deadline.
    pub(super) fn begin_late(&mut self, index: usize, scratch: &mut [u8]) -> bool {
        let client = self.client(index);
        let (key, since) = (client.connection.key, client.connection.phase().1);
        if !client.pending.is_empty() {
            // These bytes are parsed when the queued `Recheck` message is handled.
            self.clients.schedule(index, self.now + self.limits.idle_timeout);
            return true;
        }
        self.read(index, scratch);
        let Some(client) = self.clients.find(key).and_then(|index| self.clients.get(index)) else { return true };
        // Empty lines do not begin a request.
        if self.is_idle(index) && client.connection.phase().1 == since {
            return false;
        }
        self.clients.schedule(index, self.now);
        true
    }
}
