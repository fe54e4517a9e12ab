//! The right, and the duty, to answer one request.

use std::sync::Arc;

use super::connection::Connection;
use super::encode::Form;
use super::{Response, UNANSWERED};

/// Owns a connection until its request is answered. Dropped without an answer (a bug) it answers 500.
pub struct Reply {
    target: Option<Target>,
}

enum Target {
    Connection(Arc<Connection>, Form),
    Closure(Box<dyn FnOnce(Response) + Send>),
}

/// An answer that is still to be put together.
pub trait DeferredResponse: Send {
    /// The reply it ends with; nobody else has the errand, so it may lie in a lock.
    fn reply(&mut self) -> &Reply;

    /// Puts the answer together and gives it. Must be quick: other connections of the reader wait meanwhile.
    fn run(self: Box<Self>);
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

    /// Leaves the work of answering to the reader of the connection, soon. Spares a thread that learns of many outcomes at
    /// once; for one outcome, waking the reader costs more than [`Reply::send`].
    pub fn defer_to_reader(mut errand: Box<dyn DeferredResponse>) {
        match &errand.reply().target {
            Some(Target::Connection(connection, _)) => {
                let connection = Arc::clone(connection);
                connection.reader.post_answer(errand);
            }
            _ => errand.run(),
        }
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
