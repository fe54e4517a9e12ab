//! The handle with which a handler answers one request.

use std::sync::Arc;

use super::connection::Connection;
use super::deferred::DeferredResponse;
use super::encode::EncodeOptions;
use super::message::Response;
use super::refusal::UNANSWERED;

/// Owns a connection until its request is answered. Dropped unsent (a bug) it answers 500.
pub struct Reply {
    target: Option<Target>,
}

enum Target {
    Connection(Arc<Connection>, EncodeOptions),
    Closure(Box<dyn FnOnce(Response) + Send>),
}

/// The reader thread that owns the connection of a [`Reply`].
pub struct ReaderHandle {
    /// `None`: the reply has no connection.
    connection: Option<Arc<Connection>>,
}

impl ReaderHandle {
    /// Has the reader run `response` soon; runs it here if the reader has ended. Saves time on a thread that receives
    /// many outcomes in a row; for a single outcome, waking the reader costs more than [`Reply::send`].
    pub fn defer(self, response: Box<dyn DeferredResponse>) {
        match self.connection {
            Some(connection) => connection.inbox.post_response(response),
            None => response.run(),
        }
    }
}

impl Reply {
    /// A reply that passes its response to `deliver`; for tests of handlers.
    pub fn to(deliver: impl FnOnce(Response) + Send + 'static) -> Self {
        Reply { target: Some(Target::Closure(Box::new(deliver))) }
    }

    pub(super) fn on(connection: Arc<Connection>, options: EncodeOptions) -> Self {
        Reply { target: Some(Target::Connection(connection, options)) }
    }

    /// Answers the request. May be called from any thread; does not block.
    pub fn send(mut self, response: Response) {
        self.deliver(response);
    }

    /// The reader thread of the connection, for a response that is to be built and sent there.
    pub fn reader(&self) -> ReaderHandle {
        let connection = match &self.target {
            Some(Target::Connection(connection, _)) => Some(Arc::clone(connection)),
            _ => None,
        };
        ReaderHandle { connection }
    }

    fn deliver(&mut self, response: Response) {
        match self.target.take() {
            Some(Target::Connection(connection, options)) => connection.answer(&response, options),
            Some(Target::Closure(deliver)) => deliver(response),
            None => {}
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.target.is_some() {
            let response = match &self.target {
                Some(Target::Connection(connection, _)) => connection.inbox.control.unanswered_response(),
                _ => Response::text(500, UNANSWERED).closing(),
            };
            self.deliver(response);
        }
    }
}
