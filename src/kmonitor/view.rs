//! The data of all answers: the clusters, modules and partitions with their verdicts at one time.
//!
//! The poller of a cluster publishes a [`ClusterView`] at each cycle. It never changes afterwards, and readers share
//! it. An absent number is `None`, never 0.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::broker::{Offset, PartitionId};

use super::facts::{Source, Verdict};

/// The delays of the last hour, one byte for each minute, the newest last; see `sparkline`.
pub(super) type History = [u8; 60];

/// All clusters, in the order of the configuration.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// Grows whenever a cluster publishes.
    pub number: u64,
    /// When this view was put together.
    pub made_at: SystemTime,
    /// The clusters, in the order of the configuration.
    pub clusters: Vec<Arc<ClusterView>>,
}

/// One cluster.
#[derive(Clone, Debug)]
pub(super) struct ClusterView {
    /// Name of the cluster.
    pub name: Arc<str>,
    /// Grows with each publication.
    pub number: u64,
    /// Where the stored offsets are read.
    pub sources: Vec<Source>,
    /// When this was published.
    pub published: Instant,
    /// When the oldest number that is shown was read; `None` if there is none.
    pub oldest_read: Option<Instant>,
    /// Duration of the last cycle.
    pub cycle: Option<Duration>,
    /// What keeps the cluster from being read.
    pub trouble: Option<Trouble>,
    /// Whether the cluster was ever read, and recently enough.
    pub known: bool,
    /// Whether modules may be missing, because the first cycle has not ended.
    pub is_partial: bool,
    /// Without a successor for this time its numbers are older than they should be.
    pub late_after: Duration,
    /// Without a successor for this time this is the view of a poller that hangs.
    pub valid_for: Duration,
    /// The modules, sorted by name, source and topic.
    pub modules: Vec<ModuleView>,
    /// Number of partitions of each verdict, by severity; without those of `gone` and `left_behind`.
    pub counts: [u64; 6],
    /// Number of partitions with a stored offset that do not exist any more.
    pub gone: u64,
    /// Number of partitions of topics that their module does not push any more.
    pub left_behind: u64,
    /// End of the last minute of every history.
    pub history_end: SystemTime,
}

/// Something that keeps a cluster from being read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// What is wrong.
    pub text: Arc<str>,
    /// Since when.
    pub since: SystemTime,
}

/// One topic of one module, from one source.
#[derive(Clone, Debug)]
pub(super) struct ModuleView {
    /// FNV-1a 64 of cluster, module, topic and source; see [`module_id`].
    pub id: u64,
    /// Name of the module.
    pub name: Arc<str>,
    /// Name of the topic.
    pub topic: Arc<str>,
    /// Where the stored offsets are kept.
    pub source: Source,
    /// The worst verdict of its partitions.
    pub verdict: Verdict,
    /// Since when the first of the partitions with this verdict has it; for OK: since when all are OK.
    pub since: SystemTime,
    /// Why, as a sentence.
    pub reason: Arc<str>,
    /// Why, as a code.
    pub reason_code: ReasonCode,
    /// Sum of the known delays; `None` if none is known.
    pub delay: Option<u64>,
    /// Whether some delay is unknown and not in the sum.
    pub delay_is_partial: bool,
    /// The largest of the partitions.
    pub seconds_behind: Option<f64>,
    /// Whether it may be more.
    pub seconds_at_least: bool,
    /// Messages that retention deleted before they were pushed.
    pub lost: u64,
    /// Messages appended in a second, over the last minute.
    pub in_per_second: Option<f64>,
    /// Messages pushed in a second, over the last minute.
    pub out_per_second: Option<f64>,
    /// Number of different owners; `None` if unknown.
    pub owners: Option<u32>,
    /// Number of live members; `None` if unknown.
    pub members: Option<u32>,
    /// The partitions, by number.
    pub partitions: Vec<PartitionView>,
    /// The sum of the delays in the last hour.
    pub history: History,
    /// Whether `/delay` counts it.
    pub in_legacy: bool,
}

/// One partition.
#[derive(Clone, Debug)]
pub(super) struct PartitionView {
    /// Number of the partition.
    pub partition: PartitionId,
    /// The verdict.
    pub verdict: Verdict,
    /// Since when.
    pub since: SystemTime,
    /// Why, as a sentence.
    pub reason: Arc<str>,
    /// Why, as a code.
    pub reason_code: ReasonCode,
    /// Messages that are still to be pushed.
    pub delay: Option<u64>,
    /// Offset of the next message to be pushed.
    pub stored: Option<Offset>,
    /// Offset of the first message of the log.
    pub oldest: Option<Offset>,
    /// Offset that the next appended message will get.
    pub newest: Option<Offset>,
    /// Messages that retention deleted before they were pushed.
    pub lost: u64,
    /// Age of the first waiting message.
    pub seconds_behind: Option<f64>,
    /// Where that is from.
    pub seconds_from: Option<&'static str>,
    /// Whether it may be more.
    pub seconds_at_least: bool,
    /// When the stored offset changed.
    pub stored_moved: Option<Instant>,
    /// Who owns the partition.
    pub owner: Option<Arc<str>>,
    /// When the older of the two offsets was read.
    pub read_at: Option<Instant>,
    /// Code of the reason why the delay is unknown.
    pub unknown: Option<&'static str>,
    /// The delay in the last hour. Partitions of a module with the same one share it.
    pub history: Arc<History>,
}

/// Why a place has its verdict. The words of [`ReasonCode::word`] are documented and stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ReasonCode {
    /// OK: nothing waits.
    NothingWaits,
    /// OK: what follows the stored offset cannot be delivered to anybody.
    NothingDeliverable,
    /// OK: some messages wait, within the limits.
    Waiting,
    /// OK or LAGGING: an operator has paused it, and messages wait.
    Paused,
    /// OK: the topic does not exist any more.
    Gone,
    /// OK: the module pushes another topic.
    LeftBehind,
    /// LAGGING: too many seconds behind.
    SecondsBehind,
    /// LAGGING: too many messages behind.
    MessagesBehind,
    /// UNKNOWN: nothing has been read.
    NotReadYet,
    /// UNKNOWN: ZooKeeper or the group coordinator does not answer.
    SourceSilent,
    /// UNKNOWN: the broker that leads the partition does not answer.
    LeaderSilent,
    /// UNKNOWN: the partition has no leader.
    NoLeader,
    /// UNKNOWN: reading is denied.
    NotAuthorized,
    /// UNKNOWN: the topic has a name that Kafka does not accept.
    InvalidTopic,
    /// UNKNOWN: no broker answers.
    NoBroker,
    /// UNKNOWN: another error.
    ReadFailed,
    /// UNKNOWN: the stored text is not an offset.
    NotAnOffset,
    /// UNKNOWN: the stored offset is beyond the end of the log, and it is not known yet why.
    BeyondEnd,
    /// REWOUND: the topic was created again.
    Recreated,
    /// REWOUND: the stored offset went back.
    WentBack,
    /// STALLED: it has an owner, but the stored offset does not move.
    NotMoving,
    /// STALLED or STOPPED: messages wait, and no offset was ever stored.
    NeverStored,
    /// STOPPED: the module has no live member.
    NoMember,
    /// STOPPED: members are there, but none owns the partition.
    NoOwner,
    /// STOPPED, or STALLED if the members are unknown: nothing is stored while messages come in.
    NothingStored,
}

impl ReasonCode {
    /// All codes, in the order of the documentation.
    #[cfg(test)]
    pub(super) const ALL: [ReasonCode; 25] = [
        ReasonCode::NothingWaits,
        ReasonCode::NothingDeliverable,
        ReasonCode::Waiting,
        ReasonCode::Paused,
        ReasonCode::Gone,
        ReasonCode::LeftBehind,
        ReasonCode::SecondsBehind,
        ReasonCode::MessagesBehind,
        ReasonCode::NotReadYet,
        ReasonCode::SourceSilent,
        ReasonCode::LeaderSilent,
        ReasonCode::NoLeader,
        ReasonCode::NotAuthorized,
        ReasonCode::InvalidTopic,
        ReasonCode::NoBroker,
        ReasonCode::ReadFailed,
        ReasonCode::NotAnOffset,
        ReasonCode::BeyondEnd,
        ReasonCode::Recreated,
        ReasonCode::WentBack,
        ReasonCode::NotMoving,
        ReasonCode::NeverStored,
        ReasonCode::NoMember,
        ReasonCode::NoOwner,
        ReasonCode::NothingStored,
    ];

    /// The word in answers.
    pub(super) fn word(self) -> &'static str {
        match self {
            ReasonCode::NothingWaits => "nothing_waits",
            ReasonCode::NothingDeliverable => "nothing_deliverable",
            ReasonCode::Waiting => "waiting",
            ReasonCode::Paused => "paused",
            ReasonCode::Gone => "gone",
            ReasonCode::LeftBehind => "left_behind",
            ReasonCode::SecondsBehind => "seconds_behind",
            ReasonCode::MessagesBehind => "messages_behind",
            ReasonCode::NotReadYet => "not_read_yet",
            ReasonCode::SourceSilent => "source_silent",
            ReasonCode::LeaderSilent => "leader_silent",
            ReasonCode::NoLeader => "no_leader",
            ReasonCode::NotAuthorized => "not_authorized",
            ReasonCode::InvalidTopic => "invalid_topic",
            ReasonCode::NoBroker => "no_broker",
            ReasonCode::ReadFailed => "read_failed",
            ReasonCode::NotAnOffset => "not_an_offset",
            ReasonCode::BeyondEnd => "beyond_end",
            ReasonCode::Recreated => "recreated",
            ReasonCode::WentBack => "went_back",
            ReasonCode::NotMoving => "not_moving",
            ReasonCode::NeverStored => "never_stored",
            ReasonCode::NoMember => "no_member",
            ReasonCode::NoOwner => "no_owner",
            ReasonCode::NothingStored => "nothing_stored",
        }
    }
}

/// Returns the id of a module in answers, the same after a restart: FNV-1a 64 of the names with NUL between them.
pub(super) fn module_id(cluster: &str, module: &str, topic: &str, source: Source) -> u64 {
    let names = [cluster, "\0", module, "\0", topic, "\0", source.word()];
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    names.iter().flat_map(|name| name.bytes()).fold(0xcbf2_9ce4_8422_2325, step)
}
