//! One place: what was seen of the stored offset of a partition and of its owner.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::broker::{Offset, TopicId};
use crate::kmonitor::facts::{Moment, Owner, Stored, WentBack};
use crate::kmonitor::probe::Finding;
use crate::kmonitor::readings::PlaceReading;
use crate::kmonitor::sparkline::Sparkline;
use crate::kmonitor::verdict::Standing;

use super::log::Log;

/// Readings in a row with a stored offset beyond the newest one that prove that the topic was created again.
const CONFIRM: u8 = 2;
/// How far the clock of ZooKeeper may be off.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(30);
/// A place whose stored offset moved less long ago is not probed.
const PROBE_AFTER: Duration = Duration::from_secs(5);
/// Time between two probes of a place that found nothing out.
const PROBE_PAUSE: Duration = Duration::from_secs(60);
/// Number of minutes whose delays are kept.
const MINUTES: usize = 6;

/// A partition of a topic of a module.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) stored: Stored,
    /// When the place was read first.
    first_read: Instant,
    /// When the stored offset was seen to change.
    pub(super) moved: Option<Instant>,
    /// By how much it moved with the last reading.
    pub(super) went_out: u64,
    /// The newest offset up to which the messages that came in were counted.
    counted_to: Option<Offset>,
    /// By the clock of ZooKeeper.
    written: Option<SystemTime>,
    /// When the node was created, by the clock of ZooKeeper.
    created: Option<SystemTime>,
    /// When a write was seen; before the first one: when the place was read first.
    write_seen: Instant,
    owner: Owner,
    /// When the owner was read.
    owner_read: Option<Instant>,
    unowned_since: Option<Instant>,
    went_back: Option<(Offset, Offset, Instant)>,
    /// Id of the topic that the stored offset belongs to.
    topic_id: Option<TopicId>,
    /// The topic was created again since the last reading: which of the two the stored offset belongs to, only the
    /// writer of the offset knows.
    pub(super) wants_topic_id: bool,
    known_recreations: Option<u32>,
    /// The stored offset that the last reading of the log came after: the two are a pair, whose difference is a delay.
    /// And whether it was that of an earlier topic of the name.
    paired: Option<(Stored, bool)>,
    /// Until when nothing that waits could be read, because a transaction was open.
    held_until: Option<Instant>,
    is_held: bool,
    /// When it was seen last that an operator has paused it.
    pub(super) paused_until: Option<Instant>,
    /// Messages have waited for a while and the stored offset has not moved.
    pub(super) stands_still: bool,
    /// Readings in a row with a stored offset beyond the newest one.
    beyond_count: u8,
    /// The number of the last reading of the log that was compared.
    compared_reading: u64,
    pub(super) is_recreated: bool,
    /// The newest offset when the stored one changed.
    newest_when_moved: Option<Offset>,
    /// The delay at the end of each of the last minutes.
    delays: [(u32, Option<u64>); MINUTES],
    probed: Option<Probed>,
    /// When it was probed last.
    probe_tried: Option<Instant>,
    pub(super) standing: Standing,
    pub(super) line: Sparkline,
}

/// What probes found from the first waiting offset on.
#[derive(Clone, Copy, Debug)]
struct Probed {
    from: Offset,
    /// The newest offset then.
    newest: Offset,
    /// Below this offset nothing can be delivered. If it is below `newest`, a message can.
    passed: Offset,
}

impl Place {
    pub(super) fn new(now: Moment) -> Self {
        Place {
            stored: Stored::Nothing,
            first_read: now.at,
            moved: None,
            went_out: 0,
            counted_to: None,
            written: None,
            created: None,
            write_seen: now.at,
            owner: Owner::Unknown,
            owner_read: None,
            unowned_since: None,
            went_back: None,
            topic_id: None,
            wants_topic_id: false,
            known_recreations: None,
            paired: None,
            held_until: None,
            is_held: false,
            paused_until: None,
            stands_still: false,
            beyond_count: 0,
            compared_reading: 0,
            is_recreated: false,
            newest_when_moved: None,
            delays: [(u32::MAX, None); MINUTES],
            probed: None,
            probe_tried: None,
            standing: Standing::unread(now),
            line: Sparkline::default(),
        }
    }

    /// A partition of which nothing is stored.
    pub(super) fn without_offset(owner: Owner, now: Moment) -> Self {
        let mut place = Place::new(now);
        place.record(&PlaceReading::nothing(owner), None, true, now);
        place
    }

    /// Enters a reading of the stored offset and the owner. `log`: what was known of the log before.
    pub(super) fn record(&mut self, reading: &PlaceReading, log: Option<&Log>, is_first: bool, now: Moment) {
        self.went_out = 0;
        if reading.written_ms.is_some() {
            let written = wall_time(reading.written_ms);
            if self.written != written && self.written.is_some() {
                self.write_seen = now.at;
            }
            (self.written, self.created) = (written, wall_time(reading.created_ms));
        }
        if self.stored != reading.stored {
            if !is_first {
                self.moved(&reading.stored, log, now.at);
            }
            self.stored = reading.stored.clone();
            // What is known of the log may be older than the offset, so the next look decides.
            self.topic_id = None;
            self.newest_when_moved = log.and_then(|log| log.ends).map(|(_, newest)| newest);
            (self.beyond_count, self.is_recreated) = (0, false);
        }
        if reading.topic_id.is_some() {
            (self.topic_id, self.is_recreated) = (reading.topic_id, false);
        }
        self.wants_topic_id = false;
        // What a reading does not say stays: the owners in a Kafka group are read apart.
        if reading.owner != Owner::Unknown {
            self.set_owner(reading.owner.clone(), now.at);
        }
    }

    fn moved(&mut self, stored: &Stored, log: Option<&Log>, now: Instant) {
        self.moved = Some(now);
        let (Stored::Offset(from), Stored::Offset(to)) = (&self.stored, stored) else { return };
        self.went_out = u64::try_from(to - from).unwrap_or(0);
        // A pusher that begins a recreated topic at its beginning repeats nothing.
        if to < from && !self.is_recreated && !log.is_some_and(|log| self.is_of_another_topic(log)) {
            self.went_back = Some((*from, *to, now));
        }
    }

    /// Sets the owner alone.
    pub(super) fn set_owner(&mut self, owner: Owner, now: Instant) {
        (self.owner, self.owner_read) = (owner, Some(now));
        self.unowned_since = match self.owner {
            Owner::Nobody { .. } => self.unowned_since.or(Some(now)),
            _ => None,
        };
    }

    /// Compares the stored offset, which was read at `read`, with a reading of the log. Only a reading that came after
    /// it proves anything: a stored offset that was read later may be beyond the end.
    pub(super) fn compare(&mut self, log: &Log, read: Option<Instant>, now: Instant) {
        if self.known_recreations.is_some_and(|known| known != log.recreation_count) {
            // Without ids of topics that of the stored offset says nothing.
            self.wants_topic_id |= log.topic_id.is_some();
            self.probed = None;
            // An offset that has changed meanwhile may be that of the new topic.
            let is_as_before = self.paired.as_ref().is_none_or(|(paired, _)| *paired == self.stored);
            self.is_recreated |= log.topic_id.is_none() && is_as_before && self.offset().is_some();
        }
        self.known_recreations = Some(log.recreation_count);
        if self.topic_id.is_none() {
            self.topic_id = log.topic_id;
        }
        if self.is_of_another_topic(log) {
            self.is_recreated = true;
        }
        if log.reading_count <= self.compared_reading || !log.is_read_after(read) {
            return;
        }
        self.compared_reading = log.reading_count;
        self.hold(log);
        if let Some(((_, newest), stored)) = log.ends.zip(self.offset()) {
            if self.newest_when_moved.is_none() {
                self.newest_when_moved = Some(newest);
            }
            if stored <= newest {
                self.beyond_count = 0;
            } else if log.is_settled(now) {
                self.beyond_count = self.beyond_count.saturating_add(1);
                self.is_recreated |= CONFIRM <= self.beyond_count;
            }
        }
        self.paired = Some((self.stored.clone(), self.is_recreated));
    }

    /// Notes whether all that waits is part of an open transaction. The first reading that shows some of it free ends
    /// that.
    fn hold(&mut self, log: &Log) {
        let Some((oldest, newest)) = log.ends else { return };
        let first = self.offset().filter(|_| !self.is_recreated).map_or(oldest, |stored| stored.max(oldest));
        let is_held = first < newest && log.stable.is_some_and(|stable| stable <= first);
        if is_held || self.is_held {
            self.held_until = log.read;
        }
        self.is_held = is_held;
    }

    /// The stored offset to which the delay belongs, and whether it is that of an earlier topic of the name. If the log
    /// could not be read after the stored offset was, that is the one before: the difference of the present one would
    /// be a delay that there never was.
    pub(super) fn consistent(&self, log: Option<&Log>, read: Option<Instant>) -> (Stored, bool) {
        match (&self.stored, &self.paired, log) {
            (Stored::Offset(_), Some((paired @ (Stored::Offset(_) | Stored::Nothing), is_recreated)), Some(log))
                if *paired != self.stored && log.ends.is_some() && !log.is_read_after(read) =>
            {
                (paired.clone(), *is_recreated)
            }
            _ => (self.stored.clone(), self.is_recreated),
        }
    }

    fn is_of_another_topic(&self, log: &Log) -> bool {
        self.topic_id.is_some() && log.topic_id.is_some() && self.topic_id != log.topic_id
    }

    pub(super) fn offset(&self) -> Option<Offset> {
        if let Stored::Offset(offset) = self.stored { Some(offset) } else { None }
    }

    /// The owner, with the time for which there was none when it was last read.
    pub(super) fn owner(&self) -> Owner {
        match &self.owner {
            Owner::Nobody { .. } => {
                let times = self.unowned_since.zip(self.owner_read);
                Owner::Nobody { since: times.map(|(then, read)| read.saturating_duration_since(then)) }
            }
            owner => owner.clone(),
        }
    }

    /// The name of the owner.
    pub(super) fn owner_name(&self) -> Option<Arc<str>> {
        if let Owner::Named(name) = &self.owner { Some(Arc::clone(name)) } else { None }
    }

    pub(super) fn went_back(&self, now: Instant) -> Option<WentBack> {
        let (from, to, then) = self.went_back?;
        Some(WentBack { from, to, ago: now.saturating_duration_since(then) })
    }

    /// Time since the stored offset was written, by the clock of ZooKeeper.
    pub(super) fn written_ago(&self, wall: SystemTime) -> Option<Duration> {
        Some(wall.duration_since(self.written?).unwrap_or_default())
    }

    /// By the clock of ZooKeeper: when the node of the stored offset was created and written.
    pub(super) fn created_and_written(&self) -> Option<(SystemTime, SystemTime)> {
        self.created.zip(self.written)
    }

    /// How long no write had been seen at `read`; `None` if writes cannot be seen.
    pub(super) fn unwritten_for(&self, read: Instant) -> Option<Duration> {
        self.written.map(|_| read.saturating_duration_since(self.write_seen))
    }

    /// How long something that waits could be read at `read`; `None` if it always could.
    pub(super) fn free_for(&self, read: Instant) -> Option<Duration> {
        self.held_until.map(|then| read.saturating_duration_since(then))
    }

    /// Time since the stored offset changed, and whether it may be more. `now`: when it was read last.
    pub(super) fn moved_ago(&self, now: Moment) -> (Duration, bool) {
        if let Some(then) = self.moved {
            return (now.at.saturating_duration_since(then), false);
        }
        // A claim writes the node without a change, so the change is no younger than the write.
        let written = self.written_ago(now.wall).unwrap_or_default().saturating_sub(CLOCK_TOLERANCE);
        (now.at.saturating_duration_since(self.first_read).max(written), true)
    }

    /// Messages appended since the stored offset changed.
    pub(super) fn came_in(&self, newest: Offset) -> u64 {
        self.newest_when_moved.map_or(0, |then| u64::try_from(newest.saturating_sub(then)).unwrap_or(0))
    }

    /// Returns the messages that came in since the last call.
    pub(super) fn take_came_in(&mut self, newest: Option<Offset>) -> u64 {
        let before = self.counted_to;
        self.counted_to = newest.or(before);
        newest.zip(before).map_or(0, |(newest, before)| u64::try_from(newest.saturating_sub(before)).unwrap_or(0))
    }

    /// Keeps the delay of now.
    pub(super) fn keep_delay(&mut self, elapsed: Duration, delay: Option<u64>) {
        let minute = u32::try_from(elapsed.as_secs() / 60).unwrap_or(u32::MAX);
        self.delays[minute as usize % MINUTES] = (minute, delay);
    }

    /// The delay at the end of the minute that lies `minutes` before the present one.
    pub(super) fn delay_before(&self, elapsed: Duration, minutes: u32) -> Option<u64> {
        let minute = u32::try_from(elapsed.as_secs() / 60).unwrap_or(u32::MAX).checked_sub(minutes)?;
        let (kept, delay) = self.delays[minute as usize % MINUTES];
        delay.filter(|_| kept == minute)
    }

    /// The offset below which nothing can be delivered, from the first waiting offset on; at most the newest one.
    pub(super) fn passed(&self, from: Offset, newest: Offset) -> Option<Offset> {
        let probed = self.probed.filter(|probed| probed.from == from && probed.newest <= newest)?;
        Some(probed.passed)
    }

    /// Whether a probe is worth its requests: nothing moves, and it is not known yet whether anything can be delivered.
    pub(super) fn wants_probe(&self, from: Offset, newest: Offset, now: Moment) -> bool {
        let is_known = self
            .probed
            .is_some_and(|probed| probed.from == from && (probed.passed < probed.newest || probed.newest == newest));
        let rests =
            |then: Option<Instant>, pause| then.is_none_or(|then| pause <= now.at.saturating_duration_since(then));
        !is_known && rests(self.moved, PROBE_AFTER) && rests(self.probe_tried, PROBE_PAUSE)
    }

    /// Notes that a probe is sent.
    pub(super) fn probe_sent(&mut self, now: Instant) {
        self.probe_tried = Some(now);
    }

    /// Enters what a probe found.
    pub(super) fn record_probe(&mut self, from: Offset, newest: Offset, finding: Finding) {
        let passed = match finding {
            Finding::Nothing => newest,
            Finding::Message => self.passed(from, newest).unwrap_or(from),
        };
        (self.probed, self.probe_tried) = (Some(Probed { from, newest, passed }), None);
    }
}

fn wall_time(since_1970_ms: Option<i64>) -> Option<SystemTime> {
    let millis = u64::try_from(since_1970_ms?).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}
