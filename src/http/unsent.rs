//! The part of a response that the socket has not taken yet, and the budget for its memory.

use std::io::{self, ErrorKind, IoSlice, Write};
use std::net::TcpStream;

use super::budget::ByteLease;
use super::response_body::Body;
use super::tls::Session;

/// Largest body that is sent, and if necessary kept, together with the head; larger bodies stay where they are.
pub(super) const MAX_JOINED_BYTES: usize = 16 * 1024;
/// Largest unsent part of a response that is kept also while the byte budget is exceeded; larger than any answer to one
/// commit. There is at most one for each connection.
const MAX_UNLEASED_BYTES: usize = 4 * 1024;

/// Head and body of a response, and how much of them the socket (with TLS: the session) has taken.
#[derive(Default)]
pub(super) struct Unsent {
    head: Vec<u8>,
    body: Body,
    taken: usize,
}

impl Unsent {
    /// Creates the part of a response after its first `taken` bytes. Shared bytes are not copied. Of a body of its own
    /// only the end is kept if it is small.
    pub(super) fn after(taken: usize, head: &[u8], body: Body) -> Self {
        let head_left = &head[taken.min(head.len())..];
        let taken = taken.saturating_sub(head.len());
        match &body {
            Body::Owned(bytes) if head_left.len() + bytes.len() - taken <= MAX_UNLEASED_BYTES => {
                Unsent { head: [head_left, &bytes[taken..]].concat(), ..Unsent::default() }
            }
            _ => Unsent { head: head_left.to_vec(), body, taken },
        }
    }

    /// Returns the heap memory that only this response holds, in bytes.
    fn allocated(&self) -> usize {
        self.head.capacity() + self.body.allocated()
    }

    fn left(&self) -> [&[u8]; 4] {
        let [start, middle, end] = self.body.parts();
        let mut taken = self.taken;
        [&self.head[..], start, middle, end].map(|part| {
            let of_part = taken.min(part.len());
            taken -= of_part;
            &part[of_part..]
        })
    }

    /// Sends as far as the socket takes bytes; returns their number, and whether none are left. Fails if the page is
    /// withdrawn.
    pub(super) fn send(&mut self, tls: &mut Option<Box<Session>>, socket: &TcpStream) -> io::Result<(usize, bool)> {
        if self.body.is_withdrawn() {
            return Err(io::Error::other("too many clients read older pages slowly"));
        }
        let left = self.left();
        let length: usize = left.iter().map(|part| part.len()).sum();
        let taken = send(tls, socket, left)?;
        self.taken += taken;
        Ok((taken, taken == length))
    }
}

/// The memory of the responses of one connection.
#[derive(Default)]
pub(super) struct AnswerLease {
    lease: ByteLease,
    /// Whether a response that does not fit into the budget is replaced before it is sent. Otherwise it is cut off.
    replaces: bool,
}

impl AnswerLease {
    pub(super) fn new(lease: ByteLease, replaces: bool) -> Self {
        AnswerLease { lease, replaces }
    }

    /// Returns whether a response may be sent whose body holds `bytes` bytes. A response that exceeds the whole budget
    /// by itself may be sent while no other is.
    pub(super) fn admits(&mut self, bytes: usize) -> bool {
        if !self.replaces || bytes <= MAX_JOINED_BYTES || self.lease.set_to(bytes) {
            return true;
        }
        let is_alone = self.lease.is_budget_unused();
        if is_alone {
            self.lease.force_to(bytes);
        }
        is_alone
    }

    /// Leases the memory of an unsent part. If the responses are not replaced, one of them may exceed the budget; while
    /// it is exceeded, only small parts are kept, so that the outcome of each commit still reaches its client.
    pub(super) fn keep(&mut self, unsent: &Unsent) -> bool {
        let bytes = unsent.allocated();
        let was_exceeded = self.lease.force_to(bytes);
        self.replaces || !was_exceeded || bytes <= MAX_UNLEASED_BYTES
    }

    pub(super) fn release(&mut self) {
        self.lease.set_to(0);
    }
}

/// Sends parts, with or without TLS, as far as the socket takes them; returns the number of bytes taken.
pub(super) fn send(tls: &mut Option<Box<Session>>, socket: &TcpStream, parts: [&[u8]; 4]) -> io::Result<usize> {
    let Some(session) = tls else { return send_plain(socket, parts) };
    let mut taken = 0;
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        let of_part = session.send(socket, part)?;
        taken += of_part;
        if of_part < part.len() {
            break;
        }
    }
    Ok(taken)
}

/// Writes parts with one system call; returns the number of bytes written, 0 if the socket is full.
fn send_plain(mut socket: &TcpStream, parts: [&[u8]; 4]) -> io::Result<usize> {
    loop {
        let written = match parts {
            [all, [], [], []] => socket.write(all),
            _ => socket.write_vectored(&parts.map(IoSlice::new)),
        };
        match written {
            Err(cause) if cause.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::budget::ByteBudget;
    use crate::http::response_body::SharedBytes;

    fn text(unsent: &Unsent) -> String {
        String::from_utf8(unsent.left().concat()).unwrap()
    }

    #[test]
    fn the_rest_of_a_response_is_kept_without_a_copy_of_a_shared_body() {
        let large = "b".repeat(MAX_UNLEASED_BYTES + 10);
        let whole = format!("head{large}");
        for shared in [false, true] {
            let body = || match shared {
                true => Body::from(SharedBytes::from(large.clone().into_bytes())),
                false => Body::from(large.clone()),
            };
            for taken in [0, 1, 4, 5, 20, whole.len()] {
                assert_eq!(text(&Unsent::after(taken, b"head", body())), whole[taken..], "{taken} {shared}");
            }
        }
        let shared = Unsent::after(5, b"head", SharedBytes::from(large.clone().into_bytes()).into());
        assert_eq!(shared.allocated(), 0);
        let page = SharedBytes::from(large.clone().into_bytes());
        let framed = || Body::Shared { start: b"start".to_vec(), bytes: page.clone(), end: b"end" };
        let whole = format!("headstart{large}end");
        for taken in [0, 3, 4, 6, 9, 10, whole.len() - 4, whole.len() - 3, whole.len() - 1, whole.len()] {
            assert_eq!(text(&Unsent::after(taken, b"head", framed())), whole[taken..], "{taken}");
        }
        let whole = format!("head{large}");
        assert!(Unsent::after(5, b"head", large.clone().into()).allocated() >= large.len());
        // The end of a large body: its memory is released.
        let end = Unsent::after(whole.len() - 7, b"head", large.into());
        assert_eq!(text(&end), "bbbbbbb");
        assert!(end.allocated() < 100, "{}", end.allocated());
    }

    #[test]
    fn a_response_beyond_the_budget_is_replaced_or_cut_off() {
        let budget = ByteBudget::new(100_000);
        let lease = |replaces| AnswerLease::new(budget.lease(), replaces);
        let (mut first, mut second) = (lease(true), lease(true));
        assert!(first.admits(60_000) && second.admits(30_000));
        assert!(!lease(true).admits(20_000) && lease(true).admits(MAX_JOINED_BYTES) && lease(false).admits(20_000));
        first.release();
        assert!(lease(true).admits(20_000), "the lease is released");
        assert!(!lease(true).admits(200_000), "another response is unread");
        second.release();
        assert!(first.admits(200_000) && !second.admits(20_000));
        let unsent = |bytes: usize| Unsent::after(0, b"", vec![0; bytes].into());
        assert!(!lease(false).keep(&unsent(20_000)), "the budget is exceeded");
        assert!(lease(false).keep(&unsent(MAX_UNLEASED_BYTES)) && lease(true).keep(&unsent(MAX_JOINED_BYTES)));
        drop(first);
        assert_eq!(budget.used(), 0);
        assert!(lease(false).keep(&unsent(200_000)), "one response may exceed the budget");
    }
}
