//! The sender: writes the requests of all callers to the present connection, in the order in which they are pending.

use std::io::Write;
use std::iter::once;
use std::net::Shutdown;
use std::sync::Arc;

use crossbeam_channel::{Receiver, select};

use super::link::{Call, Link};
use crate::shutdown::Stop;

/// Limit on the requests that are written together. Without that, each of many requests would be a packet of its own.
const MAX_CALLS_A_WRITE: usize = 64;

/// Writes calls until `ended`, which the session manager triggers after it has closed the session.
pub(super) fn run(link: &Link, calls: &Receiver<Call>, ended: &Stop) {
    let mut frames = Vec::new();
    loop {
        let call = select! {
            recv(calls) -> call => call,
            recv(ended.closed()) -> _ => return,
        };
        let Ok(first) = call else { return };
        frames.clear();
        let mut target = None;
        for call in once(first).chain(calls.try_iter().take(MAX_CALLS_A_WRITE - 1)) {
            let Some((stream, frame)) = link.prepare(call) else { continue };
            if target.as_ref().is_some_and(|earlier| !Arc::ptr_eq(earlier, &stream)) {
                // The earlier connection was lost, and its calls have failed with it.
                frames.clear();
            }
            frames.extend(frame);
            target = Some(stream);
        }
        if let Some(stream) = target
            && (&*stream).write_all(&frames).is_err()
        {
            // The session manager reads from this connection and reports its end.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
