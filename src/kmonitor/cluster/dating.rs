//! Looks up timestamps after a start, for the age of messages that were appended before the first reading.

use std::time::Instant;

use crate::clock;
use crate::kmonitor::facts::Moment;
use crate::kmonitor::timestamps::{Timestamps, ages};
use crate::shutdown::Stop;

use super::Poller;

/// Largest number of logs whose timestamps are looked up in a cycle, with 28 requests to each of their leaders.
const MAX_DATED: usize = 500;

impl Poller {
    pub(super) fn look_up_timestamps(&mut self, stop: &Stop) {
        let now = Moment::now();
        let wanted = self.places.take_undated(MAX_DATED, now);
        if wanted.is_empty() {
            return;
        }
        self.pause(self.kafka_rate.wait(Instant::now()), stop);
        let asked = Instant::now();
        let firsts = self.log_reader.firsts_by_age(&wanted, ages(), clock::unix_ms());
        self.count_kafka();
        let taken = self.places.elapsed(now);
        if firsts.iter().all(Option::is_none) {
            self.memory.waited += asked.elapsed();
        }
        let found =
            wanted.into_iter().zip(firsts).filter_map(|(at, firsts)| Some((at, Timestamps::new(taken, firsts?))));
        self.places.record_timestamps(found.collect());
    }
}
