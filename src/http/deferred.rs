//! Responses that another thread leaves to the reader thread to build and send.

/// The last step of one request. It holds the request's [`super::Reply`], and a reply that is dropped unsent answers
/// 500. So the request is answered even if this step panics.
pub trait DeferredResponse: Send {
    /// Builds the response and sends it with the reply. Must be quick: all connections of the reader wait until it
    /// returns.
    fn run(self: Box<Self>);
}
