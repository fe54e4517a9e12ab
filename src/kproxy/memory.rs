//! Sees to it that what is freed is given back to the system.
//!
//! What is freed stays with glibc's allocator: chunks of many sizes, freed by other threads than allocated them, keep most
//! pages of an arena in use by name only, so that after a flood of large bodies the process would go on looking as large as
//! its budget. `malloc_trim` hands whole free pages back; it walks the heap for some milliseconds, so it is called only when
//! much was freed.

/// Less than this is not worth a walk.
const WORTH: usize = 16 << 20;
/// A buffer from this size on is a mapping of its own.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 256 * 1024;

/// Lets large buffers be mappings of their own, which grow without being copied and are gone when they are freed. glibc
/// begins so, but after the first one is freed it takes others of that size, up to 32 MiB, for ordinary: then the holes
/// between them come on top of `max_in_flight_bytes` (seen: 174 MiB instead of 125 in a flood of 10 MB bodies within 64 MiB).
pub(super) fn keep_large_buffers_apart() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt has no preconditions.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Notices that much memory was used and is not any more.
#[derive(Debug, Default)]
pub(super) struct Tide {
    high: usize,
}

impl Tide {
    /// Told the most bytes that were used since it was last told, and those that are used now; whether to give back.
    pub(super) fn has_fallen(&mut self, most: usize, now: usize) -> bool {
        self.high = self.high.max(most).max(now);
        let has_fallen = self.high >= WORTH && now < self.high / 4;
        if has_fallen {
            self.high = now;
        }
        has_fallen
    }
}

/// Gives free pages back to the system, where the allocator is one that would keep them.
pub(super) fn give_back() {
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
    fn memory_is_given_back_once_after_each_flood() {
        let mut tide = Tide::default();
        let mib = |count: usize| count << 20;
        for (most, now, falls) in [
            (mib(10), 0, false),
            (mib(64), mib(60), false),
            (mib(60), mib(17), false),
            (mib(17), mib(15), true),
            (mib(15), mib(15), false),
            (mib(15), 0, false),
            (mib(40), 0, true),
            (0, 0, false),
        ] {
            assert_eq!(tide.has_fallen(most, now), falls, "{most} {now}");
        }
    }
}
