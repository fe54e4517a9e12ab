//! The handle with which a handler answers one request.

use std::sync::Arc;

use super::connection::Connection;
use super::encode::EncodeOptions;
use super::inbox::Inbox;
use super::message::Response;
use super::refusal::{Refusal, UNANSWERED};

/// Owns a connection until its request is answered. A reply that is dropped unsent, which is a bug, answers 500.
pub struct Reply {
    target: Option<Target>,
}

enum Target {
    /// With the number of its reader, and with header fields that the response gets in addition.
    Connection(Arc<Connection>, usize, EncodeOptions, Vec<(&'static str, String)>),
    Closure(Box<dyn FnOnce(Response) + Send>),
}

impl Reply {
    /// Creates a reply without a connection, which passes its response to `deliver`; for tests of handlers.
    pub fn to(deliver: impl FnOnce(Response) + Send + 'static) -> Self {
        Reply { target: Some(Target::Closure(Box::new(deliver))) }
    }

    /// Creates the reply to a request; the response gets `headers` in addition to its own.
    pub(super) fn on(
        connection: Arc<Connection>,
        options: EncodeOptions,
        headers: Vec<(&'static str, String)>,
    ) -> Self {
        let reader = connection.inbox.reader;
        Reply { target: Some(Target::Connection(connection, reader, options, headers)) }
    }

    /// Answers the request. May be called from any thread; does not block.
    pub fn send(mut self, response: Response) {
        self.deliver(response);
    }

    /// Returns the number of the connection's reader, without a look at the connection, whose memory the reader uses;
    /// and a reference to the reader's inbox. `None` for a reply without a connection.
    pub(super) fn reader(&self) -> Option<(usize, &Arc<Inbox>)> {
        match &self.target {
            Some(Target::Connection(connection, reader, ..)) => Some((*reader, &connection.inbox)),
            _ => None,
        }
    }

    fn deliver(&mut self, response: Response) {
        match self.target.take() {
            Some(Target::Connection(connection, _, options, headers)) => {
                connection.answer(response, headers, options);
            }
            Some(Target::Closure(deliver)) => deliver(response),
            None => {}
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.target.is_some() {
            let response = match &self.target {
                Some(Target::Connection(connection, ..)) => {
                    connection.inbox.control.refusal(Refusal::new(500, UNANSWERED), &connection.peer_text)
                }
                _ => Response::text(500, UNANSWERED),
            };
            self.deliver(response.closing());
        }
    }
}
