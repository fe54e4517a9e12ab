//! Gives freed memory back to the operating system.
//!
//! glibc's allocator keeps freed memory. Chunks of many sizes, freed by other threads than allocated them, leave most
//! pages of an arena partly in use, so that after a flood of large bodies the process would stay as large as its
//! budget. `malloc_trim` releases whole free pages; it walks the heap for some milliseconds, so it is called only
//! after much was freed.

/// A peak below this is not worth a walk through the heap.
const MIN_PEAK_BYTES: usize = 16 << 20;
/// A buffer from this size on is a memory mapping of its own.
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD_BYTES: libc::c_int = 256 * 1024;

/// Makes large buffers memory mappings of their own, which grow without being copied and are unmapped when freed.
/// That is also glibc's default, but once the first one is freed glibc raises its threshold up to 32 MiB and takes
/// later ones from the heap. The holes between them then come on top of `max_in_flight_bytes` (seen: 174 MiB instead
/// of 125 in a flood of 10 MB bodies within 64 MiB).
pub(super) fn map_large_buffers() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt has no preconditions.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES);
    }
}

/// Detects that memory use has fallen far below its peak.
#[derive(Debug, Default)]
pub(super) struct TrimTrigger {
    peak: usize,
}

impl TrimTrigger {
    /// Whether to trim now: `peak` is the largest use since the last call, `used` the current one, both in bytes.
    pub(super) fn fires(&mut self, peak: usize, used: usize) -> bool {
        self.peak = self.peak.max(peak).max(used);
        let fires = self.peak >= MIN_PEAK_BYTES && used < self.peak / 4;
        if fires {
            // The next trim needs a new peak.
            self.peak = used;
        }
        fires
    }
}

/// Releases free pages to the operating system, where the allocator is glibc's.
pub(super) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions; it takes the locks it needs.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trigger_fires_once_after_each_flood() {
        let mut trigger = TrimTrigger::default();
        let mib = |count: usize| count << 20;
        for (peak, used, fires) in [
            (mib(10), 0, false),
            (mib(64), mib(60), false),
            (mib(60), mib(17), false),
            (mib(17), mib(15), true),
            (mib(15), mib(15), false),
            (mib(15), 0, false),
            (mib(40), 0, true),
            (0, 0, false),
        ] {
            assert_eq!(trigger.fires(peak, used), fires, "{peak} {used}");
        }
    }
}
