//! The jobs that workers have, over all partitions, within two limits: `window_size` and a size in bytes.

/// Size of all messages in flight together; a single message may be larger.
const MAX_BYTES: usize = 64 << 20;

/// Number and size of the jobs.
#[derive(Debug)]
pub(super) struct InFlight {
    max_jobs: usize,
    jobs: usize,
    size_bytes: usize,
}

impl InFlight {
    /// No job, and at most `max_jobs` of them.
    pub(super) fn new(max_jobs: usize) -> InFlight {
        InFlight { max_jobs, jobs: 0, size_bytes: 0 }
    }

    /// Whether another job may be handed out.
    pub(super) fn has_room(&self) -> bool {
        // With nothing in flight a message of any size is taken, or a large one would wait without end.
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

    /// Number of jobs.
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
