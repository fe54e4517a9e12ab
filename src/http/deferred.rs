//! Responses that a reader thread builds and sends for another thread.

/// The last work on one request: builds the response and sends it with the [`super::Reply`] that it holds. A reply that
/// is dropped unsent answers 500, so the request is answered even if this work panics.
pub trait DeferredResponse: Send {
    /// Builds the response and sends it. Must be quick: the other connections of the reader wait meanwhile.
    fn run(self: Box<Self>);
}
