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
