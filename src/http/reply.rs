//! The right, and the duty, to answer one request.

use std::sync::Arc;

use super::connection::Connection;
use super::encode::Form;
use super::{DeferredResponse, Response, UNANSWERED};

/// Owns a connection until its request is answered. Dropped without an answer (a bug) it answers 500.
pub struct Reply {
    target: Option<Target>,
}

enum Target {
    Connection(Arc<Connection>, Form),
    Closure(Box<dyn FnOnce(Response) + Send>),
}

/// The reader thread that owns the connection of a [`Reply`].
pub struct ReaderHandle {
    /// `None`: the reply has no connection.
    connection: Option<Arc<Connection>>,
}

impl ReaderHandle {
    /// Has the reader run `response` soon, or runs it here if the reader has ended. Saves time on a thread that receives
    /// many outcomes in a row; for a single outcome, waking the reader costs more than [`Reply::send`].
    pub fn defer(self, response: Box<dyn DeferredResponse>) {
        match self.connection {
            Some(connection) => connection.reader.post_answer(response),
            None => response.run(),
        }
    }
}

impl Reply {
    /// A reply that hands its answer to `deliver`; for tests of handlers.
    pub fn to(deliver: impl FnOnce(Response) + Send + 'static) -> Self {
        Reply { target: Some(Target::Closure(Box::new(deliver))) }
    }

    pub(super) fn on(connection: Arc<Connection>, form: Form) -> Self {
        Reply { target: Some(Target::Connection(connection, form)) }
    }

    /// Answers. May be called from any thread; does not block.
    pub fn send(mut self, response: Response) {
        self.deliver(response);
    }

    /// The reader thread of the connection, which can build and send the response later.
    pub fn reader(&self) -> ReaderHandle {
        let connection = match &self.target {
            Some(Target::Connection(connection, _)) => Some(Arc::clone(connection)),
            _ => None,
        };
        ReaderHandle { connection }
    }

    fn deliver(&mut self, response: Response) {
        match self.target.take() {
            Some(Target::Connection(connection, form)) => connection.answer(&response, form),
            Some(Target::Closure(deliver)) => deliver(response),
            None => {}
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.target.is_some() {
            let response = match &self.target {
                Some(Target::Connection(connection, _)) => connection.unanswered(),
                _ => Response::text(500, UNANSWERED).closing(),
            };
            self.deliver(response);
        }
    }
}
