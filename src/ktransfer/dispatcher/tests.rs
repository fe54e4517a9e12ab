//! Tests of the dispatcher alone: the test holds the other ends of its channels.

use super::*;
use crate::broker::{LogIdentity, Offset, TopicId, TopicPartition};
use crate::ktransfer::backend_client::PushEnd;
use crate::ktransfer::config::ModuleConfig;
use crate::ktransfer::fetcher::{FetchedBatch, LogChange, StartPosition};
use crate::ktransfer::group::{Claim, Generation, Mailbox, StoredPosition, mailbox};
use crate::ktransfer::job::{ClaimPhase, JobEnd, WindowId, WorkerMessage};
use crate::ktransfer::memory_budget::MemoryBudget;
use crate::ktransfer::operations::OperatorLink;
use crate::ktransfer::test_fixtures::{claim, job as new_job, module_config, worker_context};
use crate::metrics::Registry;
use crossbeam_channel::{Receiver, Sender, unbounded};

mod logs;
mod operators;
mod stops;

const OLD_ID: TopicId = [1; 16];
const NEW_ID: TopicId = [2; 16];

struct DispatcherRig {
    registry: Registry,
    dispatcher: Dispatcher,
    context: Arc<WorkerContext>,
    fetch_commands: Receiver<FetchCommand>,
    inbox: Receiver<WorkerMessage>,
    group: Mailbox,
    _reports: Sender<WorkerReport>,
}

fn rig(adapt: impl FnOnce(&mut ModuleConfig)) -> DispatcherRig {
    let mut config = module_config(&["127.0.0.1:1"]);
    adapt(&mut config);
    let registry = Registry::new();
    let context = Arc::new(worker_context(config, &registry));
    let (_, group_events) = unbounded();
    let (_, fetched) = unbounded();
    let (fetch_commands, fetch_command_receiver) = unbounded();
    let ((worker, inbox), (report_sender, reports)) = (unbounded(), unbounded());
    let ((group_commands, group), memory) = (mailbox(), MemoryBudget::new(1 << 30));
    let workers = [worker].into();
    let operator = OperatorLink::default();
    let channels =
        Channels { group_events, group_commands, fetch_commands, fetched, memory, workers, reports, operator };
    let dispatcher = Dispatcher::new(channels, Arc::clone(&context), Stop::new(), Duration::from_secs(1));
    DispatcherRig {
        registry,
        dispatcher,
        context,
        fetch_commands: fetch_command_receiver,
        inbox,
        group,
        _reports: report_sender,
    }
}

impl DispatcherRig {
    /// Sends `Gained` for partition 0; returns the window that its messages belong to.
    fn gain(&mut self, generation: u64) -> WindowId {
        self.dispatcher.on_group(GroupEvent::Gained(claim(0, generation, Some(0))));
        self.last_assigned().0
    }

    /// Returns the window and the start of the latest `Assign`.
    fn last_assigned(&self) -> (WindowId, StartPosition) {
        let assigned = self.fetch_commands.try_iter().filter_map(|command| match command {
            FetchCommand::Assign { window, start, .. } => Some((window, start.expect("a position"))),
            _ => None,
        });
        assigned.last().expect("a partition is assigned")
    }

    fn changed(&mut self, window: WindowId, change: LogChange) {
        self.dispatcher.on_fetched(Fetched::LogChanged { window, partition: 0, change });
        self.dispatcher.end_turn(Instant::now());
    }

    /// The position moves to `next` without a message.
    fn moved(&mut self, window: WindowId, next: Offset) {
        let batch = FetchedBatch { window, partition: 0, messages: Vec::new(), next, leader_epoch: Some(4) };
        self.dispatcher.on_fetched(Fetched::Messages(vec![batch]));
        self.dispatcher.end_turn(Instant::now());
    }

    fn done(&mut self, window: WindowId, offset: Offset) {
        let (worker, has_waited, end) = (0, false, JobEnd::Done);
        let ack = Ack { worker, has_waited, partition: 0, generation: Generation(1), window, offset, end };
        self.dispatcher.on_ack(ack, Instant::now());
        self.dispatcher.end_turn(Instant::now());
    }

    /// Returns the offsets of the jobs that were sent to the worker since the last call.
    fn jobs(&self) -> Vec<Offset> {
        let jobs = self.inbox.try_iter().filter_map(|message| match message {
            WorkerMessage::Job(job) => Some(job.message.offset),
            _ => None,
        });
        jobs.collect()
    }

    /// Returns the latest `StoreNow` of partition 0 since the last call.
    fn stored_now(&self) -> Option<(Offset, LogIdentity)> {
        self.group.take().starts.get(&0).map(|(_, next, log)| (*next, *log))
    }

    fn has_metric(&self, line: &str) -> bool {
        String::from_utf8(self.registry.render()).unwrap().lines().any(|found| found == line)
    }

    fn commit_point(&self) -> Option<Offset> {
        self.dispatcher.partitions[&0].window.commit_point()
    }

    fn fetched(&mut self, window: WindowId, offsets: std::ops::Range<Offset>) {
        self.dispatcher.on_fetched(Fetched::Messages(vec![batch(window, offsets)]));
        self.dispatcher.end_turn(Instant::now());
    }
}

/// A batch of messages with the key `k`.
fn batch(window: WindowId, offsets: std::ops::Range<Offset>) -> FetchedBatch {
    let message = |offset| Message {
        from: TopicPartition { topic: "t".into(), partition: 0 },
        offset,
        key: Some(b"k".to_vec()),
        value: Some(b"v".to_vec()),
        headers: Vec::new(),
        timestamp_ms: None,
    };
    let (next, messages) = (offsets.end, offsets.map(message).collect());
    FetchedBatch { window, partition: 0, messages, next, leader_epoch: Some(4) }
}

#[test]
fn a_dispatcher_that_panics_ends_all_pushes() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.fetched(window, 0..3);
    let Ok(WorkerMessage::Job(job)) = rig.inbox.try_recv() else { panic!("no job") };
    assert_eq!(job.assignment.phase(), ClaimPhase::Held);
    // A panic of the dispatcher's thread drops the dispatcher too.
    drop(rig.dispatcher);
    assert_eq!(job.assignment.phase(), ClaimPhase::Ended);
    assert!(matches!(rig.inbox.try_iter().last(), Some(WorkerMessage::End)));
    let end = rig.context.http_client.pusher(0, Arc::clone(&rig.context.settings().profile)).push(
        &new_job(None, None, &[]),
        "http://a/",
        1,
    );
    assert_eq!(end, PushEnd::NotBegun, "the HTTP client is closed");
}

#[test]
fn messages_read_before_an_offset_gap_are_pushed_and_the_commit_point_does_not_skip_them() {
    let mut rig = rig(|config| config.max_commit_gap = 2.try_into().unwrap());
    let window = rig.gain(1);
    rig.fetched(window, 0..5);
    assert_eq!(rig.jobs(), [0, 1], "the other 3 messages are held back by max_commit_gap");
    rig.changed(window, LogChange::OffsetGone { offset: 5, oldest: 50, newest: 90 });
    let commands: Vec<_> = rig.fetch_commands.try_iter().collect();
    let start = Some(StartPosition { offset: 50, log: LogIdentity::default() });
    let again = FetchCommand::Assign { partition: 0, window, generation: Generation(1), start };
    assert!(commands.ends_with(&[again]), "{commands:?}");
    rig.fetched(window, 50..52);
    for done in [1, 0, 2, 3, 4, 50] {
        rig.done(window, done);
    }
    assert_eq!(rig.jobs(), [2, 3, 4, 50, 51]);
    assert_eq!(rig.dispatcher.partitions[&0].window.commit_point(), Some(51));
}

#[test]
fn the_commit_point_follows_the_position_past_markers_once_all_messages_are_done() {
    let mut rig = rig(|config| config.max_commit_gap = 2.try_into().unwrap());
    let window = rig.gain(1);
    rig.moved(window, 2);
    assert_eq!(rig.commit_point(), Some(2), "the log begins with markers");
    rig.fetched(window, 2..5);
    rig.moved(window, 6);
    assert_eq!(rig.commit_point(), Some(2));
    rig.done(window, 2);
    rig.done(window, 3);
    assert_eq!(rig.commit_point(), Some(4), "offset 4 was held back by max_commit_gap");
    rig.done(window, 4);
    assert_eq!(rig.commit_point(), Some(6));
    rig.moved(window, 9);
    assert_eq!(rig.commit_point(), Some(9));
    let pending = rig.group.take();
    let latest = pending.commits.get(&0).map(|(_, next)| *next).or(pending.starts.get(&0).map(|(_, next, _)| *next));
    assert_eq!(latest, Some(9));
    // Retention deletes markers only: nothing was missed.
    rig.changed(window, LogChange::OffsetGone { offset: 9, oldest: 12, newest: 20 });
    assert_eq!(rig.commit_point(), Some(12), "moves at once, so that the delay does not show deleted messages");
}

#[test]
fn a_start_offset_that_was_looked_up_is_the_commit_point() {
    let mut rig = rig(|_| {});
    rig.dispatcher.on_group(GroupEvent::Gained(claim(0, 1, None)));
    let window = rig.dispatcher.partitions[&0].window_id;
    rig.dispatcher.on_fetched(Fetched::StartsAt { window, partition: 0, offset: 7 });
    assert_eq!(rig.commit_point(), Some(7));
    rig.dispatcher.on_group(GroupEvent::Releasing { partition: 0, generation: Generation(1) });
    assert_eq!(rig.group.take().releases[&0], (Generation(1), Some(7)));
}

#[test]
fn a_partition_that_is_being_released_is_not_read_again() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.fetched(window, 0..1);
    rig.dispatcher.on_group(GroupEvent::Releasing { partition: 0, generation: Generation(1) });
    // The fetch loop detected this gap before it received the Revoke.
    rig.changed(window, LogChange::OffsetGone { offset: 1, oldest: 50, newest: 90 });
    assert_eq!(rig.fetch_commands.try_iter().collect::<Vec<_>>(), [FetchCommand::Revoke(0)]);
}

#[test]
fn a_paused_partition_is_resumed_when_half_of_what_was_held_back_is_left() {
    let mut rig = rig(|config| config.max_commit_gap = 1.try_into().unwrap());
    let window = rig.gain(1);
    rig.fetched(window, 0..MAX_HELD_BACK as Offset);
    assert_eq!(rig.fetch_commands.try_iter().count(), 0, "a small gap does not pause with every message");
    rig.fetched(window, MAX_HELD_BACK as Offset..MAX_HELD_BACK as Offset + 10);
    assert_eq!(rig.fetch_commands.try_iter().collect::<Vec<_>>(), [FetchCommand::Pause(0)]);
    let resumed_at = (0..).find(|offset| {
        rig.done(window, *offset);
        rig.fetch_commands.try_iter().next() == Some(FetchCommand::Resume(0))
    });
    assert_eq!(resumed_at, Some(MAX_HELD_BACK as Offset / 2 + 8));
    assert_eq!(rig.jobs(), (0..MAX_HELD_BACK as Offset / 2 + 10).collect::<Vec<_>>());
}

#[test]
fn the_workers_recheck_only_claims_whose_phase_has_changed() {
    let mut rig = rig(|_| {});
    rig.gain(1);
    rig.dispatcher.on_group(GroupEvent::Gained(claim(1, 2, Some(0))));
    rig.dispatcher.on_group(GroupEvent::Lost { partition: 0, generation: Generation(1) });
    rig.dispatcher.end_turn(Instant::now());
    let rechecks = rig.inbox.try_iter().filter_map(|message| match message {
        WorkerMessage::Recheck(claims) => Some(claims.iter().copied().collect::<Vec<_>>()),
        _ => None,
    });
    // Jobs of the other claim may still be sent, and must come before the worker judges that claim.
    assert_eq!(rechecks.collect::<Vec<_>>(), [[(0, Generation(1))]]);
}

#[test]
fn a_release_stores_the_leader_epoch_of_its_offset() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.fetched(window, 0..2);
    rig.dispatcher.on_group(GroupEvent::Releasing { partition: 0, generation: Generation(1) });
    for offset in [1, 0] {
        let (worker, has_waited, end) = (0, false, JobEnd::Done);
        let ack = Ack { worker, has_waited, partition: 0, generation: Generation(1), window, offset, end };
        rig.dispatcher.on_ack(ack, Instant::now());
    }
    let pending = rig.group.take();
    assert_eq!(pending.releases[&0], (Generation(1), Some(2)));
    let (_, next, log) = pending.starts[&0];
    assert_eq!((next, log.leader_epoch), (2, Some(4)));
}
