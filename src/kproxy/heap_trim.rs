//! Returns freed memory to the operating system.
//!
//! glibc's allocator keeps freed memory. When a thread frees chunks of many sizes that other threads allocated, most
//! pages of an arena stay partly in use. So after a flood of large bodies the process would stay as large as
//! `max_in_flight_bytes`. `malloc_trim` releases whole free pages. It walks the heap for some milliseconds, so it is
//! called only after much memory was freed.

/// After a peak below this, a walk through the heap releases too little memory.
const MIN_PEAK_BYTES: usize = 16 << 20;

/// Detects that memory use has fallen far below its peak.
#[derive(Debug, Default)]
pub(super) struct TrimTrigger {
    peak: usize,
}

impl TrimTrigger {
    /// Returns whether to trim now. `peak` is the largest memory use since the last call and `used` the current one,
    /// both in bytes.
    pub(super) fn fires(&mut self, peak: usize, used: usize) -> bool {
        self.peak = self.peak.max(peak).max(used);
        let fires = self.peak >= MIN_PEAK_BYTES && used < self.peak / 4;
        if fires {
            // Without a new peak there is nothing more to trim.
            self.peak = used;
        }
        fires
    }
}

/// Releases free pages to the operating system; does nothing with an allocator other than glibc's.
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
