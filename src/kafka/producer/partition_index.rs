//! The index of a partition in the record queue.

/// Identifies a partition within one [`RecordAccumulator`](super::accumulator::RecordAccumulator).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionIndex(pub(super) usize);
