//! One log: its ends as last read, and when its messages arrived.

use std::time::{Duration, Instant};

use crate::broker::{LogRange, Offset, TopicId};
use crate::kmonitor::ends_history::{Arrival, EndsHistory};
use crate::kmonitor::facts::UnknownReason;
use crate::kmonitor::log_ends::LogReading;
use crate::kmonitor::timestamps::Timestamps;

/// For this long after the newest offset has become smaller, a stored offset beyond it proves nothing: after an
/// election the new leader may show an end that is too low for a moment (KIP-207).
const SETTLES_AFTER: Duration = Duration::from_secs(30);

/// A log of which some module has a stored offset or an owner.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// The oldest and the newest offset; `None` if they were never read.
    pub(super) ends: Option<(Offset, Offset)>,
    /// The offset up to which committed messages could be read then, if that was not the newest one.
    pub(super) stable: Option<Offset>,
    /// When they were read.
    pub(super) read: Option<Instant>,
    /// Why they could not be read lately.
    pub(super) unknown: Option<Box<UnknownReason>>,
    /// It does not exist; confirmed.
    pub(super) is_gone: bool,
    /// Id of the topic.
    pub(super) topic_id: Option<TopicId>,
    /// How often the topic was seen to be another one of the same name.
    pub(super) recreation_count: u32,
    /// When its messages arrived.
    pub(super) history: EndsHistory,
    /// When its messages arrived, by their timestamps.
    pub(super) timestamps: Option<Box<Timestamps>>,
    /// When the timestamps were looked up last.
    pub(super) timestamps_tried: Option<Instant>,
    /// When the newest offset became smaller.
    went_back: Option<Instant>,
    /// Messages appended between the last two readings.
    pub(super) came_in: u64,
    /// The number of readings.
    pub(super) reading_count: u64,
}

impl Log {
    /// Enters a reading. Returns whether the newest offset became smaller.
    pub(super) fn record(
        &mut self,
        reading: &LogReading,
        topic_id: Option<TopicId>,
        now: Instant,
        elapsed: Duration,
    ) -> bool {
        self.came_in = 0;
        match reading {
            LogReading::Range(LogRange { oldest, newest, stable }) => {
                let has_other_id = self.topic_id.is_some() && topic_id.is_some() && self.topic_id != topic_id;
                // Without ids, it is another topic if the one before did not exist any more.
                if has_other_id || (self.is_gone && topic_id.is_none()) {
                    // The messages of the topic before say nothing about this one.
                    self.history = EndsHistory::default();
                    self.timestamps = None;
                    self.ends = None;
                    self.recreation_count += 1;
                }
                self.topic_id = topic_id.or(self.topic_id);
                if let Some((_, before)) = self.ends {
                    self.came_in = u64::try_from(newest - before).unwrap_or(0);
                    if *newest < before {
                        self.went_back = Some(now);
                        self.timestamps = None;
                    }
                }
                self.history.record(elapsed, *newest);
                self.stable = Some(*stable).filter(|stable| stable < newest);
                (self.ends, self.read, self.unknown, self.is_gone) = (Some((*oldest, *newest)), Some(now), None, false);
                self.reading_count += 1;
            }
            LogReading::Gone => {
                *self = Log {
                    is_gone: true,
                    read: Some(now),
                    reading_count: self.reading_count,
                    topic_id: self.topic_id,
                    recreation_count: self.recreation_count,
                    ..Log::default()
                };
            }
            LogReading::Unknown(reason) => self.unknown = Some(Box::new(reason.clone())),
        }
        self.went_back == Some(now)
    }

    /// When the message at `offset` arrived, and where that is from; `None` if it has not arrived.
    pub(super) fn arrival(&self, elapsed: Duration, offset: Offset) -> Option<(Arrival, &'static str)> {
        let seen = self.history.arrival(elapsed, offset)?;
        let by_timestamps = self.timestamps.as_ref().and_then(|times| times.arrival(elapsed, offset, seen));
        Some(by_timestamps.map_or((seen, "history"), |arrival| (arrival, "timestamps")))
    }

    /// Whether the ends were read after `then`.
    pub(super) fn is_read_after(&self, then: Option<Instant>) -> bool {
        then.is_none_or(|then| self.read.is_some_and(|read| then <= read))
    }

    /// Whether the newest offset can be trusted to be no temporary step back.
    pub(super) fn is_settled(&self, now: Instant) -> bool {
        self.went_back.is_none_or(|then| SETTLES_AFTER <= now.saturating_duration_since(then))
    }
}
