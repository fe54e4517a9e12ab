//! The group membership in Kafka: the coordinator, a broker, assigns the partitions, and the offsets are committed to
//! Kafka. No ZooKeeper is needed.
//!
//! One loop owns all state. It takes the events of the [`Membership`] in their order. None of its calls takes longer
//! than a sixth of the session timeout, so that proofs are handled soon. Parts: this file (the loop, the commands and
//! the events), `claims` (the start offsets of assigned partitions), `stores` (commits and releases), `metadata` (the
//! metadata of a committed offset), `pausing` (stores and reads the pauses of operators), `pause_state` and
//! `pause_fields` (the known pauses, and their text), `proof` (the end of the lease), `health`, `leave`.
//!
//! How the invariants of [`group`](super) are kept:
//!
//! - **Claim**: the coordinator assigns a partition to one member, and to another only after the first has released it
//!   (`cooperative-sticky`) or its session has ended.
//! - **Fencing**: each commit has the member id and the generation of the group; the coordinator refuses those of a
//!   member that has been replaced, and of an earlier generation.
//! - **Fencing token**: the generation alone is not sufficient: a restarted static member keeps it, and a deleted group
//!   starts at 1 again. A claim takes the token that is committed beside the offset plus one, or the time in
//!   milliseconds if that is higher, and commits it before the first push. So it grows with every claim while the
//!   offset exists, regardless of the clocks. After a deletion of the group it grows as long as the clocks of the
//!   instances agree.
//! - **Lease**: until a sixth of the session timeout before its end, counted from the time at which the latest
//!   heartbeat that the coordinator answered was sent. The coordinator's session timeout starts later.
//!
//! The claims end with the member, so a module whose loop fails can be started again.

mod claims;
mod health;
mod leave;
pub(super) mod metadata;
pub(super) mod pause_fields;
mod pause_state;
mod pausing;
mod proof;
mod stores;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Select, Sender, TryRecvError, TrySendError};
use log::{error, info, warn};

use super::held_claims::{self, HeldClaim};
use super::observers::{GroupObservers, RateLimitedWarnings};
use super::progress::{EARLY_INTERVAL, Progress, StoreScope, unstored};
use super::{Generation, Group, GroupEvent, Mailbox, TimedFence};
use crate::broker::PartitionId;
use crate::broker::membership::{Membership, MembershipEvent, ReleaseToken};
use pause_fields::PauseFields;
use pause_state::Pausing;
use proof::LeaseClock;

/// Longest time of one call. Shorter if a sixth of the session timeout is.
const MAX_CALL: Duration = Duration::from_secs(2);
/// Pause after a call that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Time after which a failure that lasts is logged: a rebalance makes calls fail for a moment.
const MIN_LOGGED_FAILURE: Duration = Duration::from_secs(1);

/// The configuration of a group membership.
#[derive(Clone, Debug)]
pub struct KafkaGroupConfig {
    /// Name of the group, which is the name of the module.
    pub group: String,
    /// The topic whose partitions the members share.
    pub topic: String,
    /// `session_timeout_ms`.
    pub session_timeout: Duration,
    /// `instance_id`.
    pub instance_id: Option<Arc<str>>,
    /// Longest interval between two commits of an offset that has moved (`zk_offset_update_interval_sec`).
    pub offset_update_interval: Duration,
    /// Time limit for committing offsets and leaving at the end.
    pub leave_timeout: Duration,
}

/// A member of a group in Kafka, and the loop that runs it.
pub struct KafkaGroup {
    config: KafkaGroupConfig,
    membership: Box<dyn Membership>,
    observers: GroupObservers,
    lease: LeaseClock,
    held: BTreeMap<PartitionId, HeldPartition>,
    pausing: Pausing,
    /// Assigned partitions that are not claimed yet.
    to_claim: BTreeSet<PartitionId>,
    /// Partitions that the coordinator waits for, by revocation.
    revoked: Vec<(ReleaseToken, BTreeSet<PartitionId>)>,
    /// Number of partitions that the topic had when the group stored its first offset: the others were added later.
    first_partitions: Option<PartitionId>,
    /// This member has stored an offset.
    has_stored: bool,
    /// Number of partitions of the topic; `None` while it is unknown or the topic does not exist.
    n_partitions: Option<PartitionId>,
    /// The topic did not exist earlier, or was deleted: all its partitions are new to the group.
    topic_was_missing: bool,
    /// The member takes part in the group.
    has_joined: bool,
    /// Offsets that were not stored when the partitions were lost; empty after the member has joined again.
    unstored_at_loss: String,
    /// Limit on the text beside an offset.
    max_metadata_bytes: usize,
    next_store: Instant,
    next_early_store: Instant,
    /// No partition is claimed before this time.
    next_claim: Instant,
    /// When members and partitions are looked at next.
    next_look: Instant,
    /// Since when partitions of the topic have had no owner.
    unowned_since: BTreeMap<PartitionId, Instant>,
    last_generation: u64,
    /// Events that the dispatcher has not received. At most three for a partition, because no partition is claimed
    /// while events are pending.
    pending_events: VecDeque<GroupEvent>,
    failing_since: Option<Instant>,
    /// Since when the topic cannot be looked at, or does not exist, and the latest reason; `None` if it can.
    look_failure: Option<(Instant, String)>,
    warnings: RateLimitedWarnings,
    /// Why the member has ended.
    failure: Option<String>,
}

/// A partition that this member has claimed.
struct HeldPartition {
    generation: Generation,
    fence: Arc<TimedFence>,
    /// The fencing token of the claim.
    token: u64,
    progress: Progress,
    /// The pauses beside the offset that is committed; empty without an offset. `None` while they are not known: a
    /// commit of others was not confirmed.
    stored_pauses: Option<PauseFields>,
    stage: ClaimStage,
}

impl HeldClaim for HeldPartition {
    fn generation(&self) -> Generation {
        self.generation
    }

    fn progress(&mut self) -> &mut Progress {
        &mut self.progress
    }

    fn release(&mut self) {
        self.stage = ClaimStage::Released(Instant::now());
        self.fence.end();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClaimStage {
    Active,
    /// `Releasing` was sent: the dispatcher waits for the pushes in flight.
    Releasing,
    /// The dispatcher has sent `Release` at this time: the loop commits the offset, then gives the partition up.
    Released(Instant),
}

impl HeldPartition {
    fn is_released(&self) -> bool {
        matches!(self.stage, ClaimStage::Released(_))
    }
}

/// The result of a step. The error is the reason why it was not completed; a later turn repeats it.
type StepResult = Result<(), String>;

impl KafkaGroup {
    /// Creates the loop of a member, which may have joined already.
    pub fn new(config: KafkaGroupConfig, membership: Box<dyn Membership>) -> KafkaGroup {
        let now = Instant::now();
        KafkaGroup {
            lease: LeaseClock::new(config.session_timeout),
            next_store: now + config.offset_update_interval,
            config,
            membership,
            observers: GroupObservers::default(),
            held: BTreeMap::new(),
            pausing: Pausing::new(now),
            to_claim: BTreeSet::new(),
            revoked: Vec::new(),
            first_partitions: None,
            has_stored: false,
            n_partitions: None,
            topic_was_missing: false,
            has_joined: false,
            unstored_at_loss: String::new(),
            max_metadata_bytes: metadata::MAX_BYTES,
            next_early_store: now,
            next_claim: now,
            next_look: now,
            unowned_since: BTreeMap::new(),
            last_generation: 0,
            pending_events: VecDeque::new(),
            failing_since: None,
            look_failure: None,
            warnings: RateLimitedWarnings::default(),
            failure: None,
        }
    }

    /// Sets where the group reports its state.
    pub(crate) fn observed_by(mut self, observers: GroupObservers) -> KafkaGroup {
        self.observers = observers;
        self
    }

    /// Takes the pending events and returns the deadline of a call. Proofs must not wait for more than one call.
    fn begin_call(&mut self) -> Instant {
        self.take_events();
        Instant::now() + (self.config.session_timeout / 6).min(MAX_CALL)
    }

    fn take_events(&mut self) {
        while let Some(event) = self.membership.next() {
            match event {
                MembershipEvent::Assigned(partitions) => self.on_assigned(partitions),
                MembershipEvent::Revoked(partitions, token) => self.on_revoked(partitions, token),
                MembershipEvent::Lost(token, reason) => self.on_lost(token, &reason),
                MembershipEvent::Proven(sent) => self.on_proven(sent),
                MembershipEvent::Failed(reason) => self.failure = Some(reason),
            }
        }
    }

    fn on_assigned(&mut self, partitions: Vec<PartitionId>) {
        self.note_joined();
        self.to_claim.extend(partitions);
        let n_assigned = self.to_claim.len() + self.held.len();
        info!("group {}: {n_assigned} partitions assigned to this member", self.config.group);
        (self.next_claim, self.next_look) = (Instant::now(), Instant::now());
    }

    /// Asks the dispatcher to release what it has of these partitions.
    fn on_revoked(&mut self, partitions: Vec<PartitionId>, token: ReleaseToken) {
        for partition in &partitions {
            self.to_claim.remove(partition);
            let Some(held) = self.held.get_mut(partition).filter(|held| held.stage == ClaimStage::Active) else {
                continue;
            };
            held.stage = ClaimStage::Releasing;
            let (partition, generation) = (*partition, held.generation);
            self.pending_events.push_back(GroupEvent::Releasing { partition, generation });
        }
        self.revoked.push((token, partitions.into_iter().collect()));
    }

    /// Ends all claims.
    fn on_lost(&mut self, token: ReleaseToken, reason: &str) {
        let held = std::mem::take(&mut self.held);
        warn!(
            "group {}: membership lost, and with it the claims on {} partitions: {reason}; joining again",
            self.config.group,
            held.len()
        );
        self.unstored_at_loss = unstored(held.iter().map(|(partition, held)| (*partition, &held.progress)));
        for (partition, held) in held {
            held.fence.end();
            // After it has sent `Release`, the dispatcher does not know this generation any more.
            if !held.is_released() {
                self.pending_events.push_back(GroupEvent::Lost { partition, generation: held.generation });
            }
        }
        self.to_claim.clear();
        self.revoked.clear();
        self.lease.end();
        self.has_joined = false;
        self.membership.released(token);
    }

    fn on_proven(&mut self, sent: Instant) {
        self.note_joined();
        if let Some(until) = self.lease.prove(sent) {
            self.held.values().filter(|held| !held.is_released()).for_each(|held| held.fence.extend(until));
        }
    }

    fn note_joined(&mut self) {
        if !std::mem::replace(&mut self.has_joined, true) {
            info!("group {}: joined", self.config.group);
            self.unstored_at_loss.clear();
        }
    }

    /// Does what is due, and returns the first failure.
    fn turn(&mut self) -> StepResult {
        let mut outcome = self.store(StoreScope::Urgent);
        self.finish_released();
        let now = Instant::now();
        if now >= self.next_store {
            self.next_store = now + self.config.offset_update_interval;
            outcome = outcome.and_then(|()| self.store(StoreScope::All));
        } else if now >= self.next_early_store {
            self.next_early_store = now + EARLY_INTERVAL;
            outcome = outcome.and_then(|()| self.store(StoreScope::Early));
        }
        if now >= self.next_look {
            outcome = outcome.and(self.look());
        }
        self.change_pauses();
        outcome.and(self.read_pauses()).and(self.claim_assigned())
    }

    /// Returns when the next turn is due without commands and events.
    fn next_turn(&self) -> Instant {
        let claims = (!self.to_claim.is_empty() && self.pending_events.is_empty()).then_some(self.next_claim);
        let early = (!self.held.is_empty()).then_some(self.next_early_store);
        let pauses = self.next_pausing();
        [self.next_store, self.next_look]
            .into_iter()
            .chain(claims)
            .chain(early)
            .chain(pauses)
            .min()
            .expect("two timers")
    }

    fn note_outcome(&mut self, outcome: StepResult) {
        let Err(reason) = outcome else { return self.failing_since = None };
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if MIN_LOGGED_FAILURE <= since.elapsed() {
            self.warnings.warn(&self.config.group, reason);
        }
    }

    /// Waits for a command, an event of the member, room for an event, or the next turn. Returns false if the
    /// dispatcher has dropped its end of a channel.
    fn wait(&mut self, commands: &Mailbox, events: &Sender<GroupEvent>) -> bool {
        let pause = self.next_turn().saturating_duration_since(Instant::now());
        let mut select = Select::new();
        self.membership.register(&mut select);
        select.recv(commands.woken());
        if let Some(requests) = self.pausing.accepts().then(|| self.observers.pauses.requests()).flatten() {
            select.recv(requests);
        }
        if !self.pending_events.is_empty() {
            select.send(events);
        }
        // The timeout is no error: then the next turn is due.
        let _ = select.ready_timeout(pause);
        while let Some(event) = self.pending_events.pop_front() {
            match events.try_send(event) {
                Ok(()) => {}
                Err(TrySendError::Full(event)) => {
                    self.pending_events.push_front(event);
                    break;
                }
                Err(TrySendError::Disconnected(_)) => return false,
            }
        }
        commands.woken().try_recv() != Err(TryRecvError::Disconnected)
    }
}

impl Group for KafkaGroup {
    /// The member ends with the loop, and its claims with its session.
    fn keeps_claims_of_failed_loop(&self) -> bool {
        false
    }

    fn run(mut self: Box<Self>, commands: Mailbox, events: Sender<GroupEvent>) {
        loop {
            let pending = commands.take();
            let leaves = pending.leave;
            held_claims::apply(pending, &mut self.held);
            if leaves {
                return self.leave(&commands);
            }
            self.take_events();
            if let Some(reason) = self.failure.take() {
                let reason = self.explained(&reason);
                error!("group {}: {reason}", self.config.group);
                if let Some(health) = &self.observers.health {
                    health.set(Err(reason));
                }
                // The module is started again.
                return;
            }
            let outcome = self.turn();
            self.note_outcome(outcome);
            self.report_health();
            if !self.wait(&commands, &events) {
                return self.leave(&commands);
            }
        }
    }
}

#[cfg(test)]
mod tests;
