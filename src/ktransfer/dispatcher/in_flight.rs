//! Counts the jobs that workers have, over all partitions, against two limits: `window_size` and a size in bytes.

/// Limit on the total size of the messages in flight. It is checked before a message is added, so the last one added
/// may exceed it.
const MAX_BYTES: usize = 64 << 20;

/// Number and total size of the jobs that workers have.
#[derive(Debug)]
pub(super) struct InFlight {
    max_jobs: usize,
    jobs: usize,
    size_bytes: usize,
}

impl InFlight {
    /// A count of no jobs, with room for `max_jobs`.
    pub(super) fn new(max_jobs: usize) -> InFlight {
        InFlight { max_jobs, jobs: 0, size_bytes: 0 }
    }

    /// Whether another job may be sent to the workers.
    pub(super) fn has_room(&self) -> bool {
        // Without a job in flight a message of any size is accepted; otherwise a very large one would wait forever.
        let has_room_in_bytes = self.jobs == 0 || self.size_bytes < MAX_BYTES;
        self.jobs < self.max_jobs && has_room_in_bytes
    }

    pub(super) fn add(&mut self, job_size_bytes: usize) {
        self.jobs += 1;
        self.size_bytes += job_size_bytes;
    }

    pub(super) fn remove(&mut self, job_size_bytes: usize) {
        self.jobs -= 1;
        self.size_bytes -= job_size_bytes;
    }

    /// Returns the number of jobs that workers have.
    pub(super) fn jobs(&self) -> usize {
        self.jobs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_and_bytes_are_limited_but_one_message_of_any_size_is_taken() {
        for (jobs, has_room) in [
            (&[] as &[usize], true),
            (&[MAX_BYTES * 2], false),
            (&[1, MAX_BYTES - 2], true),
            (&[1, MAX_BYTES - 1], false),
            (&[1, 1, 1], false),
        ] {
            let mut in_flight = InFlight::new(3);
            for size_bytes in jobs {
                in_flight.add(*size_bytes);
            }
            assert_eq!(in_flight.has_room(), has_room, "{jobs:?}");
            for size_bytes in jobs {
                in_flight.remove(*size_bytes);
            }
            assert_eq!((in_flight.jobs(), in_flight.has_room()), (0, true), "{jobs:?}");
        }
    }
}
