//! The right, and the duty, to answer one request.

use super::Response;

/// Owns a connection until its request is answered.
pub struct Reply {
    deliver: Option<Box<dyn FnOnce(Response) + Send>>,
}

impl Reply {
    /// A reply that hands its answer to `deliver`; for tests of handlers.
    pub fn to(deliver: impl FnOnce(Response) + Send + 'static) -> Self {
        Reply { deliver: Some(Box::new(deliver)) }
    }

    /// Answers. May be called from any thread.
    pub fn send(mut self, response: Response) {
        if let Some(deliver) = self.deliver.take() {
            deliver(response);
        }
    }
}
