//! Hands many deferred responses to the readers of their connections.

use std::sync::Arc;

use super::deferred::DeferredResponse;
use super::inbox::Inbox;
use super::reply::Reply;

/// Number of responses for one reader that are queued together. The reader begins with them while further ones gather.
const MAX_GATHERED: usize = 64;

/// A deferred response whose reply is accessible.
pub trait HasReply: DeferredResponse {
    /// Returns the reply of the request.
    fn reply(&mut self) -> &Reply;
}

/// Responses that are left to the readers of their connections. Those of one reader are queued together, so that a
/// thread that receives many outcomes in a row takes the lock of each reader once, and wakes it once.
///
/// For a single outcome, waking the reader costs more than [`Reply::send`]. Dropping this queues all responses.
#[derive(Default)]
pub struct DeferredResponses {
    /// Few entries: a server has few readers.
    by_reader: Vec<ResponsesOfReader>,
}

struct ResponsesOfReader {
    /// Number of the reader; see [`Reply::reader`].
    reader: usize,
    inbox: Arc<Inbox>,
    gathered: Vec<Box<dyn DeferredResponse>>,
}

impl DeferredResponses {
    /// Leaves `response` to the reader of its connection; runs it at once if it has none, in tests of handlers.
    pub fn add(&mut self, mut response: Box<impl HasReply + 'static>) {
        let reply = response.reply();
        let Some((reader, inbox)) = reply.reader() else { return response.run() };
        let known = self.by_reader.iter().position(|known| known.reader == reader);
        let index = known.unwrap_or_else(|| {
            self.by_reader.push(ResponsesOfReader { reader, inbox: Arc::clone(inbox), gathered: Vec::new() });
            self.by_reader.len() - 1
        });
        let entry = &mut self.by_reader[index];
        entry.gathered.push(response);
        if entry.gathered.len() >= MAX_GATHERED {
            entry.queue();
        }
    }
}

impl ResponsesOfReader {
    fn queue(&mut self) {
        self.inbox.post_responses(&mut self.gathered);
    }
}

impl Drop for DeferredResponses {
    fn drop(&mut self) {
        self.by_reader.iter_mut().filter(|entry| !entry.gathered.is_empty()).for_each(ResponsesOfReader::queue);
    }
}
