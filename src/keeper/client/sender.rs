//! The sender: writes the requests of all callers to the present connection, in the order in which they are pending.

use std::io::Write;
use std::net::Shutdown;

use crossbeam_channel::{Receiver, select};

use super::link::{Call, Link};
use crate::shutdown::Stop;

/// Writes calls until `ended`, which the session manager triggers after it has closed the session.
pub(super) fn run(link: &Link, calls: &Receiver<Call>, ended: &Stop) {
    loop {
        let call = select! {
            recv(calls) -> call => call,
            recv(ended.closed()) -> _ => return,
        };
        let Ok(call) = call else { return };
        if let Some((stream, frame)) = link.prepare(call)
            && (&*stream).write_all(&frame).is_err()
        {
            // The session manager reads from this connection and reports its end.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
