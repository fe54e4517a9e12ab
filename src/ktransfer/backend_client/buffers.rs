//! The input and output buffers of a connection, in the form that the HTTP client requires.
//!
//! The output collects the head and a small body, so that both are sent with one write. The worker lends its buffers to
//! the connection in use, see [`Exchange`](super::exchange::Exchange).

use ureq::unversioned::transport::Buffers;

/// Limit on the head of a response.
pub(super) const INPUT_BYTES: usize = 16 * 1024;
/// Output is collected up to this size before it is sent.
const SEND_FROM_BYTES: usize = 15 * 1024;
/// The client must be able to write the longest request line or header field at once. Both are below 17 KiB.
const OUTPUT_BYTES: usize = SEND_FROM_BYTES + 17 * 1024;

/// The buffers of one worker.
#[derive(Debug)]
pub(super) struct PushBuffers {
    input: Vec<u8>,
    /// The bytes of `input` that were received and not consumed.
    received: std::ops::Range<usize>,
    /// Whether the client consumed bytes of the input: then it tries the rest before it waits for more.
    has_progress: bool,
    output: Vec<u8>,
    /// The length of the output that is not sent yet.
    unsent: usize,
}

impl Default for PushBuffers {
    fn default() -> Self {
        PushBuffers {
            input: vec![0; INPUT_BYTES],
            received: 0..0,
            has_progress: false,
            output: vec![0; OUTPUT_BYTES],
            unsent: 0,
        }
    }
}

impl PushBuffers {
    /// Discards all bytes.
    pub(super) fn clear(&mut self) {
        (self.received, self.has_progress, self.unsent) = (0..0, false, 0);
    }

    /// Adds `amount` bytes that the client wrote to the output. Returns true when the output should be sent.
    pub(super) fn add_output(&mut self, amount: usize) -> bool {
        self.unsent += amount;
        self.unsent > SEND_FROM_BYTES
    }

    /// The output that is to be sent.
    pub(super) fn unsent(&self) -> &[u8] {
        &self.output[..self.unsent]
    }

    /// The output was sent.
    pub(super) fn sent_all(&mut self) {
        self.unsent = 0;
    }

    /// Whether no further byte of input can be received before some are consumed.
    pub(super) fn is_full(&self) -> bool {
        self.received.len() == INPUT_BYTES
    }
}

impl Buffers for PushBuffers {
    fn output(&mut self) -> &mut [u8] {
        &mut self.output[self.unsent..]
    }

    fn input(&self) -> &[u8] {
        &self.input[self.received.clone()]
    }

    fn input_append_buf(&mut self) -> &mut [u8] {
        if self.received.start > 0 {
            self.input.copy_within(self.received.clone(), 0);
            self.received = 0..self.received.len();
        }
        &mut self.input[self.received.end..]
    }

    fn input_appended(&mut self, amount: usize) {
        self.received.end += amount;
    }

    fn input_consume(&mut self, amount: usize) {
        self.has_progress = amount > 0;
        self.received.start += amount;
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        (&mut self.input[self.received.end..], &mut self.output[self.unsent..])
    }

    fn can_use_input(&self) -> bool {
        !self.received.is_empty() && self.has_progress
    }
}
