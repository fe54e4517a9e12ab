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
use super::recent_delays::RecentDelays;

/// Readings in a row with a stored offset beyond the newest one that prove that the topic was created again.
const CONFIRM: u8 = 2;
/// How far the clock of ZooKeeper may be off.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(30);
/// A place whose stored offset moved less long ago is not probed.
const PROBE_AFTER: Duration = Duration::from_secs(5);
/// Time between two probes of a place that found nothing out.
const PROBE_PAUSE: Duration = Duration::from_secs(60);

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
    /// Its delay was unknown when it was published last.
    pub(super) was_unknown: bool,
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
    /// Id of the topic that the stored offset belongs to.
    topic_id: Option<TopicId>,
    /// The topic was created again since the last reading: which of the two the stored offset belongs to, only the
    /// writer of the offset knows.
    pub(super) wants_topic_id: bool,
    known_recreations: Option<u32>,
    /// The stored offset has changed since the log was looked at.
    has_changed: bool,
    pair: Option<Pair>,
    is_held: bool,
    /// Messages have waited for a while and the stored offset has not moved.
    pub(super) stands_still: bool,
    /// Readings in a row with a stored offset beyond the newest one.
    beyond_count: u8,
    /// The number of the last reading of the log that was compared.
    compared_reading: u64,
    pub(super) is_recreated: bool,
    /// The newest offset when the stored one changed.
    newest_when_moved: Option<Offset>,
    pub(super) delays: RecentDelays,
    rare: Option<Box<Rare>>,
    pub(super) standing: Standing,
    pub(super) line: Sparkline,
}

/// A stored offset, and the end of the log as it was read right after it: the difference is a delay. That of a stored
/// offset and an end that was read much later would count also what was pushed in between.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) stored: Stored,
    /// Whether the stored offset is that of an earlier topic of the name.
    pub(super) is_recreated: bool,
    pub(super) oldest: Offset,
    pub(super) newest: Offset,
    pub(super) stable: Option<Offset>,
    /// The oldest offset as it was read before the stored one; [`Offset::MIN`] if it was not. What was deleted later
    /// may have been pushed before.
    pub(super) oldest_before: Offset,
    /// When the end was read.
    pub(super) at: Instant,
    recreation_count: u32,
}

/// What few places have: it is kept apart, because there may be 100,000 places.
#[derive(Debug, Default)]
struct Rare {
    /// From which offset to which the stored one went back, and when.
    went_back: Option<(Offset, Offset, Instant)>,
    /// Until when nothing that waits could be read, because a transaction was open.
    held_until: Option<Instant>,
    /// When it was seen last that an operator has paused it.
    paused_until: Option<Instant>,
    probed: Option<Probed>,
    /// When it was probed last.
    probe_tried: Option<Instant>,
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
            was_unknown: true,
            written: None,
            created: None,
            write_seen: now.at,
            owner: Owner::Unknown,
            owner_read: None,
            unowned_since: None,
            topic_id: None,
            wants_topic_id: false,
            known_recreations: None,
            has_changed: false,
            pair: None,
            is_held: false,
            stands_still: false,
            beyond_count: 0,
            compared_reading: 0,
            is_recreated: false,
            newest_when_moved: None,
            delays: RecentDelays::new(),
            rare: None,
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
            self.has_changed = true;
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
            self.rare_mut().went_back = Some((*from, *to, now));
        }
    }

    /// Sets the owner alone.
    pub(super) fn set_owner(&mut self, owner: Owner, now: Instant) {
        // Readings of the owner may be minutes apart. If the offset has moved since, somebody owned it meanwhile.
        let was_pushed = self.owner_read < self.moved;
        let since = self.unowned_since.filter(|_| !was_pushed).unwrap_or(now);
        self.unowned_since = matches!(owner, Owner::Nobody { .. }).then_some(since);
        (self.owner, self.owner_read) = (owner, Some(now));
    }

    /// When its stored offset moved last.
    pub(super) fn last_moved(&self) -> Option<Instant> {
        self.moved
    }

    /// Forgets who owns it. Since when nobody does is kept for the next reading.
    pub(super) fn forget_owner(&mut self) {
        self.owner = Owner::Unknown;
    }

    /// Compares the stored offset, which was read at `read`, with a reading of the log. Only a reading that came after
    /// it proves anything: a stored offset that was read later may be beyond the end.
    pub(super) fn compare(&mut self, log: &Log, read: Option<Instant>, now: Instant) {
        self.note_recreation(log);
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
        let before = self.pair.as_ref().filter(|pair| pair.recreation_count == log.recreation_count);
        let oldest_before = before.map_or(Offset::MIN, |pair| {
            if read.is_some_and(|read| pair.at <= read) { pair.oldest } else { pair.oldest_before }
        });
        self.pair = log.ends.zip(log.read).map(|((oldest, newest), at)| Pair {
            stored: self.stored.clone(),
            is_recreated: self.is_recreated,
            oldest,
            newest,
            stable: log.stable,
            oldest_before,
            at,
            recreation_count: log.recreation_count,
        });
    }

    /// Notes whether the topic was created again.
    pub(super) fn note_recreation(&mut self, log: &Log) {
        if self.known_recreations.is_some_and(|known| known != log.recreation_count) {
            // Without ids of topics that of the stored offset says nothing.
            self.wants_topic_id |= log.topic_id.is_some();
            self.rare.iter_mut().for_each(|rare| rare.probed = None);
            // An offset that has changed meanwhile may be that of the new topic.
            self.is_recreated |= log.topic_id.is_none() && !self.has_changed && self.offset().is_some();
        }
        (self.known_recreations, self.has_changed) = (Some(log.recreation_count), false);
        if self.topic_id.is_none() {
            self.topic_id = log.topic_id;
        }
        if self.is_of_another_topic(log) {
            self.is_recreated = true;
        }
    }

    /// Notes whether all that waits is part of an open transaction. The first reading that shows some of it free ends
    /// that.
    fn hold(&mut self, log: &Log) {
        let Some((oldest, newest)) = log.ends else { return };
        let first = self.offset().filter(|_| !self.is_recreated).map_or(oldest, |stored| stored.max(oldest));
        let is_held = first < newest && log.stable.is_some_and(|stable| stable <= first);
        if is_held || self.is_held {
            self.rare_mut().held_until = log.read;
        }
        self.is_held = is_held;
    }

    /// The pair that the delay is made of; `None` if there is none yet, and the last readings have to do.
    ///
    /// It is not the last reading of both if only one of them was read since: another module reads the same log, the
    /// end says which modules are at rest, or the log cannot be read.
    pub(super) fn pair(&self, log: &Log) -> Option<&Pair> {
        let (_, newest) = log.ends?;
        let pair = self.pair.as_ref()?;
        // An end that became smaller, or is that of another topic, belongs to no pair of before.
        let is_of_log = pair.recreation_count == log.recreation_count && pair.newest <= newest;
        let are_offsets =
            matches!(self.stored, Stored::Offset(_)) && matches!(pair.stored, Stored::Offset(_) | Stored::Nothing);
        Some(pair).filter(|pair| is_of_log && (pair.stored == self.stored || are_offsets))
    }

    /// The pair that the delay is made of, if one of its numbers was read again since.
    pub(super) fn older_pair(&self, log: &Log) -> Option<&Pair> {
        let newest = log.ends.map(|(_, newest)| newest);
        self.pair(log).filter(|pair| pair.stored != self.stored || Some(pair.newest) != newest)
    }

    /// Whether the end of the log has moved since the stored offset was read.
    pub(super) fn has_moved(&self, log: &Log) -> bool {
        let newest = log.ends.map(|(_, newest)| newest);
        newest.is_some() && newest != self.pair.as_ref().map(|pair| pair.newest)
    }

    /// Notes that an operator has paused it.
    pub(super) fn note_pause(&mut self, now: Instant) {
        self.rare_mut().paused_until = Some(now);
    }

    /// How long it had not been paused at `read`; `None` if it never was.
    pub(super) fn unpaused_for(&self, read: Instant) -> Option<Duration> {
        Some(read.saturating_duration_since(self.rare()?.paused_until?))
    }

    fn rare(&self) -> Option<&Rare> {
        self.rare.as_deref()
    }

    fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
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
        let (from, to, then) = self.rare()?.went_back?;
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
        Some(read.saturating_duration_since(self.rare()?.held_until?))
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

    /// Returns the messages that came in and went out since the last call. Those of a time in which the place was
    /// unknown count in no rate: it is not known when they came.
    pub(super) fn take_counts(&mut self, newest: Option<Offset>) -> (u64, u64) {
        let (before, went_out) = (self.counted_to, std::mem::take(&mut self.went_out));
        self.counted_to = newest.or(before);
        if self.was_unknown {
            return (0, 0);
        }
        let count = |(newest, before): (Offset, Offset)| u64::try_from(newest.saturating_sub(before)).unwrap_or(0);
        (newest.zip(before).map_or(0, count), went_out)
    }

    /// The offset below which nothing can be delivered, from the first waiting offset on; at most the newest one.
    pub(super) fn passed(&self, from: Offset, newest: Offset) -> Option<Offset> {
        let probed = self.rare()?.probed.filter(|probed| probed.from == from && probed.newest <= newest)?;
        Some(probed.passed)
    }

    /// Whether a probe is worth its requests: nothing moves, and it is not known yet whether anything can be delivered.
    pub(super) fn wants_probe(&self, from: Offset, newest: Offset, now: Moment) -> bool {
        let is_known = self
            .rare()
            .and_then(|rare| rare.probed)
            .is_some_and(|probed| probed.from == from && (probed.passed < probed.newest || probed.newest == newest));
        let rests =
            |then: Option<Instant>, pause| then.is_none_or(|then| pause <= now.at.saturating_duration_since(then));
        !is_known && rests(self.moved, PROBE_AFTER) && rests(self.probe_tried(), PROBE_PAUSE)
    }

    /// When it was probed last; `None` if never, or if that probe found something out.
    pub(super) fn probe_tried(&self) -> Option<Instant> {
        self.rare()?.probe_tried
    }

    /// Notes that a probe is sent.
    pub(super) fn probe_sent(&mut self, now: Instant) {
        self.rare_mut().probe_tried = Some(now);
    }

    /// Enters what a probe found.
    pub(super) fn record_probe(&mut self, from: Offset, newest: Offset, finding: Finding) {
        let passed = match finding {
            Finding::Nothing => newest,
            Finding::Message => self.passed(from, newest).unwrap_or(from),
        };
        let rare = self.rare_mut();
        (rare.probed, rare.probe_tried) = (Some(Probed { from, newest, passed }), None);
    }
}

fn wall_time(since_1970_ms: Option<i64>) -> Option<SystemTime> {
    let millis = u64::try_from(since_1970_ms?).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}
