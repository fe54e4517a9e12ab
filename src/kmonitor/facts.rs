//! The known facts about one place, and the limits for its verdict. Pure data.
//!
//! A *place* is one partition of one topic as one module consumes it, by one source of stored offsets. The poller of a
//! cluster fills a [`Facts`] for each place at each cycle; `verdict` judges it, and `sentence` puts it into words. Both
//! read nothing else, so a verdict and its reason cannot disagree.
//!
//! Ages and durations are computed from a clock that is never set and counts on during a suspend; the wall clock is
//! only for display. A duration that may lead to an alarm ends at the last reading of the number concerned, because
//! later events are not known. So it is a lower bound, however far apart the readings are.

mod counts;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::broker::Offset;
pub(super) use crate::clock::Moment;
pub(super) use counts::{counted, in_transaction, is_beyond_end, lost, readable, waiting};

/// Where the stored offsets of a module are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Source {
    /// In ZooKeeper, below `/consumers/MODULE/offsets`.
    Zookeeper,
    /// In Kafka, as committed offsets of a consumer group.
    Kafka,
}

/// The state of a place or a module, from the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Verdict {
    /// Nothing waits, or what waits is being pushed.
    Ok,
    /// Messages are pushed, but later than the limit.
    Lagging,
    /// The offsets could not be read for a while, or cannot be read at all.
    Unknown,
    /// The stored offset went back, or the topic was created again: messages are pushed a second time.
    Rewound,
    /// Somebody owns the partition, but nothing is pushed.
    Stalled,
    /// Nobody pushes the partition.
    Stopped,
}

/// The stored offset of a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// Offset of the next message to be pushed.
    Offset(Offset),
    /// There is no node or no committed offset, or it is -1.
    Nothing,
    /// The stored text is not an offset.
    Unreadable(Arc<str>),
    /// Reading it is denied; the text names what is denied.
    Refused(Arc<str>),
}

/// Who owns the partition for the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// This member of the module.
    Named(Arc<str>),
    /// Nobody, for this time; `None` if it is not known for how long.
    Nobody {
        /// Time since the partition was seen without an owner.
        since: Option<Duration>,
    },
    /// The consumer does not register owners.
    Unsupported,
    /// The owner has not been read.
    Unknown,
}

/// The log of the partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LogState {
    /// Both ends as last read; `log_age` is their age.
    Known {
        /// Offset of the first message that is still stored.
        oldest: Offset,
        /// Offset that the next appended message will get.
        newest: Offset,
    },
    /// The topic or partition does not exist any more; confirmed.
    Gone,
    /// The ends were never read.
    Unknown(UnknownReason),
}

/// Why a number could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum UnknownReason {
    /// The first reading has not ended.
    NotReadYet,
    /// ZooKeeper or the group coordinator does not answer.
    SourceSilent {
        /// Time since the last answer.
        since: Duration,
        /// What went wrong last.
        cause: Arc<str>,
    },
    /// The broker that leads the partition does not answer.
    LeaderSilent {
        /// Id of the broker.
        broker: i32,
    },
    /// The partition has no leader.
    NoLeader,
    /// kmonitor may not describe the topic or the group.
    NotAuthorized,
    /// No broker accepts this name of a topic.
    InvalidTopic,
    /// No broker was found, or none answers.
    NoBroker,
    /// Another error of the broker, in its words.
    Failed(Arc<str>),
}

/// A stored offset that became smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WentBack {
    /// The stored offset before.
    pub from: Offset,
    /// The stored offset after.
    pub to: Offset,
    /// Time since then.
    pub ago: Duration,
}

/// An operator has paused a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Paused {
    /// Name of the operator.
    pub by: Arc<str>,
    /// Time since then; `None` if unknown.
    pub ago: Option<Duration>,
}

/// How many seconds a place is behind: the age of its first waiting message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Behind {
    /// The seconds, or the smallest number that is certain.
    pub seconds: f64,
    /// Whether it may be more.
    pub at_least: bool,
    /// Where the number is from: `history`, the readings of the end of the log, or `timestamps`, those of the messages.
    pub from: &'static str,
}

/// All that is known of one place.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Facts {
    /// The stored offset as last read.
    pub stored: Stored,
    /// Age of that reading; `None` if there was none.
    pub stored_age: Option<Duration>,
    /// Why the stored offset could not be read lately; `None` if the last attempt succeeded.
    pub stored_unknown: Option<UnknownReason>,
    /// The log as last read.
    pub log: LogState,
    /// Age of that reading; `None` if there was none.
    pub log_age: Option<Duration>,
    /// Why the ends could not be read lately; `None` if the last attempt succeeded.
    pub log_unknown: Option<UnknownReason>,
    /// Time since `stored` and `log` were read one right after the other, if either was read again since.
    pub pair_age: Option<Duration>,
    /// The topic was created again, and the stored offset is of the old one: the id of the topic changed, or the stored
    /// offset was beyond the newest one in two readings although the leader was not just elected (the log may end
    /// earlier for a moment then).
    pub recreated: bool,
    /// The last time the stored offset became smaller.
    pub went_back: Option<WentBack>,
    /// An operator has paused it.
    pub paused: Option<Paused>,
    /// How long it had not been paused when that was last read; `None` if it never was.
    pub unpaused_for: Option<Duration>,
    /// The oldest offset of the log as it was read before the stored offset; `None`: as in `log`.
    pub oldest_before: Option<Offset>,
    /// The offset up to which committed messages can be read, where it is below the newest one: the rest waits for a
    /// transaction to end.
    pub stable: Option<Offset>,
    /// How long the stored offset had not changed when it was last read; `None` if it was never read.
    pub moved_ago: Option<Duration>,
    /// Whether `moved_ago` may be more, because no change was seen yet.
    pub moved_at_least: bool,
    /// Time since the stored offset was written, even with the same value, by the clock of ZooKeeper. For display.
    pub written_ago: Option<Duration>,
    /// How long no write of the stored offset, even with the same value, had been seen when it was last read.
    pub unwritten_for: Option<Duration>,
    /// Messages appended since the stored offset changed.
    pub came_in: u64,
    /// Who owns the partition.
    pub owner: Owner,
    /// Number of live members of the module; `None` if unknown.
    pub members: Option<u32>,
    /// How long the module had had no live member when its members were last read; `None` while there is one, or if
    /// unknown.
    pub nobody_there_for: Option<Duration>,
    /// How long the first waiting message had certainly been waiting when the stored offset was last read; `None` if
    /// none waits or it is unknown.
    pub waiting_for: Option<Duration>,
    /// Whether `waiting_for` may be much more.
    pub waiting_at_least: bool,
    /// For how much of that time the message could certainly be read: not while it was part of an open transaction.
    pub readable_for: Option<Duration>,
    /// How many seconds the place is behind.
    pub behind: Option<Behind>,
    /// The delay a minute ago.
    pub delay_1m_ago: Option<u64>,
    /// The delay five minutes ago.
    pub delay_5m_ago: Option<u64>,
    /// A probe found nothing that a consumer could deliver between the stored offset and the newest one, or the first
    /// of an open transaction: only transaction markers and aborted messages.
    pub undeliverable: bool,
    /// Where it is not all, how many of the first waiting offsets are such.
    pub skipped: u64,
    /// The module pushes another topic now.
    pub left_behind: bool,
}

/// When a place gets which verdict. From the configuration.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Limits {
    /// Numbers older than this are unknown (`base.fresh_for_ms`, or three cycles if they take longer).
    pub fresh_for: Duration,
    /// STOPPED: no live member for this time while messages wait.
    pub stopped_after: Duration,
    /// STOPPED: live members, but none owns the partition for this time while messages wait.
    pub unowned_after: Duration,
    /// STALLED: the stored offset has not moved for this time while messages wait.
    pub stalled_after: Duration,
    /// LAGGING: this many seconds behind; `None` switches it off.
    pub lagging_seconds: Option<f64>,
    /// LAGGING: this many messages behind; `None` switches it off.
    pub lagging_messages: Option<u64>,
    /// REWOUND lasts this long after the stored offset went back.
    pub rewound_for: Duration,
    /// LAGGING lasts at least this long.
    pub calm: Duration,
    /// Readings in a row that a worse verdict needs.
    pub confirm: u8,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            fresh_for: Duration::from_secs(15),
            stopped_after: Duration::from_secs(15),
            unowned_after: Duration::from_secs(45),
            stalled_after: Duration::from_secs(45),
            lagging_seconds: Some(60.0),
            lagging_messages: None,
            rewound_for: Duration::from_secs(300),
            calm: Duration::from_secs(30),
            confirm: 2,
        }
    }
}

impl Facts {
    /// The facts of a place of which nothing has been read.
    pub(super) fn unread() -> Self {
        Facts {
            stored: Stored::Nothing,
            stored_age: None,
            stored_unknown: Some(UnknownReason::NotReadYet),
            log: LogState::Unknown(UnknownReason::NotReadYet),
            log_age: None,
            log_unknown: Some(UnknownReason::NotReadYet),
            pair_age: None,
            recreated: false,
            went_back: None,
            paused: None,
            unpaused_for: None,
            oldest_before: None,
            stable: None,
            moved_ago: None,
            moved_at_least: false,
            written_ago: None,
            unwritten_for: None,
            came_in: 0,
            owner: Owner::Unknown,
            members: None,
            nobody_there_for: None,
            waiting_for: None,
            waiting_at_least: false,
            readable_for: None,
            behind: None,
            delay_1m_ago: None,
            delay_5m_ago: None,
            undeliverable: false,
            skipped: 0,
            left_behind: false,
        }
    }
}

impl Source {
    /// The word in answers and labels.
    pub(super) fn word(self) -> &'static str {
        match self {
            Source::Zookeeper => "zookeeper",
            Source::Kafka => "kafka",
        }
    }
}

impl Verdict {
    /// All verdicts, from the best to the worst.
    pub(super) const ALL: [Verdict; 6] =
        [Verdict::Ok, Verdict::Lagging, Verdict::Unknown, Verdict::Rewound, Verdict::Stalled, Verdict::Stopped];

    /// 0 for the best to 5 for the worst; also the value of the metric.
    pub(super) fn severity(self) -> u8 {
        self as u8
    }

    /// The word in answers and on the page.
    pub(super) fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "OK",
            Verdict::Lagging => "LAGGING",
            Verdict::Unknown => "UNKNOWN",
            Verdict::Rewound => "REWOUND",
            Verdict::Stalled => "STALLED",
            Verdict::Stopped => "STOPPED",
        }
    }

    /// Returns the verdict of a word, in any case of letters.
    pub(super) fn parse(word: &str) -> Option<Verdict> {
        Verdict::ALL.into_iter().find(|verdict| verdict.word().eq_ignore_ascii_case(word))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_ordered_by_severity_and_have_words() {
        assert!(Verdict::ALL.is_sorted());
        for (severity, verdict) in Verdict::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(verdict.severity()), severity);
            assert_eq!(Verdict::parse(&verdict.to_string().to_lowercase()), Some(verdict));
        }
        assert_eq!(Verdict::parse("fine"), None);
    }
}
