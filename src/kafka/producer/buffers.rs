//! Memory of earlier batches that a sender uses again, within a budget.

/// Upper bound of the bytes that are kept.
const MAX_KEPT_BYTES: usize = 4 << 20;
/// Buffers kept are not larger than this.
const MAX_KEPT_BUFFER_BYTES: usize = 256 << 10;

/// Buffers for the next batches.
#[derive(Default)]
pub(super) struct Buffers {
    encoded: Vec<Vec<u8>>,
    kept_bytes: usize,
}

impl Buffers {
    /// Returns an empty buffer.
    pub(super) fn take(&mut self) -> Vec<u8> {
        let buffer = self.encoded.pop().unwrap_or_default();
        self.kept_bytes -= buffer.capacity();
        buffer
    }

    pub(super) fn keep(&mut self, mut buffer: Vec<u8>) {
        if self.has_room(buffer.capacity()) {
            buffer.clear();
            self.encoded.push(buffer);
        }
    }

    /// Counts memory as kept if the budget has room for it.
    fn has_room(&mut self, bytes: usize) -> bool {
        let has_room = (1..=MAX_KEPT_BUFFER_BYTES).contains(&bytes) && self.kept_bytes + bytes <= MAX_KEPT_BYTES;
        if has_room {
            self.kept_bytes += bytes;
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_within_the_budget() {
        let mut buffers = Buffers::default();
        buffers.keep(Vec::with_capacity(MAX_KEPT_BUFFER_BYTES + 1));
        assert_eq!(buffers.take().capacity(), 0);
        for _ in 0..100 {
            let mut buffer = Vec::with_capacity(MAX_KEPT_BUFFER_BYTES);
            buffer.push(1);
            buffers.keep(buffer);
        }
        assert!(buffers.kept_bytes <= MAX_KEPT_BYTES && buffers.encoded.len() > 1);
        let reused = buffers.take();
        assert!(reused.is_empty() && reused.capacity() == MAX_KEPT_BUFFER_BYTES);
        while buffers.take().capacity() > 0 {}
        assert_eq!(buffers.kept_bytes, 0);
    }
}
