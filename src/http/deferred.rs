//! A response that another thread than the one with the outcome builds and sends.

/// The work that ends one request: builds the response and sends it with the [`super::Reply`] inside. A reply that is
/// dropped unsent (after a panic) answers 500, so a request is answered even if this work fails.
pub trait DeferredResponse: Send {
    /// Builds the response and sends it. Must be quick: the reader's other connections wait meanwhile.
    fn run(self: Box<Self>);
}
